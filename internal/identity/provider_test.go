package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
)

// noon is when these tests begin.
var noon = time.Date(2030, time.March, 4, 12, 0, 0, 0, time.UTC)

// A fakeClock stands still until it is told otherwise.
func newFakeClock() *clocktest.Clock { return clocktest.New(noon) }

// A signer is a key as an issuer has it.
type signer struct {
	kid string
	alg string
	key crypto.Signer
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func newES256(t testing.TB, kid string) signer {
	t.Helper()
	return newEC(t, kid, "ES256", elliptic.P256())
}

func newEC(t testing.TB, kid, alg string, curve elliptic.Curve) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{kid: kid, alg: alg, key: key}
}

func newEdDSA(t testing.TB, kid string) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{kid: kid, alg: "EdDSA", key: key}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// jwk is the public half as an issuer publishes it.
func (s signer) jwk() map[string]any {
	m := map[string]any{"use": "sig", "kid": s.kid, "alg": s.alg}
	switch key := s.key.Public().(type) {
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			panic(err)
		}
		half := (len(point) - 1) / 2
		m["kty"], m["crv"] = "EC", key.Curve.Params().Name
		m["x"], m["y"] = b64(point[1:1+half]), b64(point[1+half:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", b64(key)
	}
	return m
}

// sign makes a compact JWS of exactly these bytes.
func (s signer) sign(header, claims string) string {
	signed := b64([]byte(header)) + "." + b64([]byte(claims))
	return signed + "." + b64(s.signature(signed))
}

func (s signer) signature(signed string) []byte {
	message := []byte(signed)
	var digest []byte
	hash := crypto.SHA256
	switch s.alg {
	case "EdDSA":
		sig, err := s.key.Sign(rand.Reader, message, crypto.Hash(0))
		if err != nil {
			panic(err)
		}
		return sig
	case "ES512", "PS512":
		sum := sha512.Sum512(message)
		digest, hash = sum[:], crypto.SHA512
	case "ES384":
		sum := sha512.Sum384(message)
		digest, hash = sum[:], crypto.SHA384
	default:
		sum := sha256.Sum256(message)
		digest = sum[:]
	}
	if key, ok := s.key.(*ecdsa.PrivateKey); ok {
		r, sv, err := ecdsa.Sign(rand.Reader, key, digest)
		if err != nil {
			panic(err)
		}
		size := (key.Curve.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, size)), sv.FillBytes(make([]byte, size))...)
	}
	var opts crypto.SignerOpts = hash
	if s.alg[0] == 'P' {
		opts = &rsa.PSSOptions{Hash: hash, SaltLength: rsa.PSSSaltLengthEqualsHash}
	}
	sig, err := s.key.Sign(rand.Reader, digest, opts)
	if err != nil {
		panic(err)
	}
	return sig
}

func (s signer) header() string { return fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, s.alg, s.kid) }

// token signs claims with the ordinary header.
func (s signer) token(claims map[string]any) access.Secret {
	b, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return access.NewSecret(s.sign(s.header(), string(b)))
}

// A provider is an OpenID provider whose answers a test decides.
type provider struct {
	*httptest.Server

	mu        sync.Mutex
	keys      []map[string]any
	discovery http.HandlerFunc // nil: the honest one
	jwks      http.HandlerFunc
	fetches   int           // of discovery documents, one for each fetch
	asked     chan struct{} // gets a value for each, as far as there is room
	strays    []string      // paths that nobody should have asked for
}

func newProvider(t testing.TB, keys ...signer) *provider {
	t.Helper()
	p := &provider{asked: make(chan struct{}, 100)}
	p.publish(keys...)
	p.Server = httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.Close)
	return p
}

func (p *provider) publish(keys ...signer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = []map[string]any{}
	for _, k := range keys {
		p.keys = append(p.keys, k.jwk())
	}
}

// answer replaces the answers; nil is honest.
func (p *provider) answer(discovery, jwks http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.discovery, p.jwks = discovery, jwks
}

func (p *provider) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetches
}

// wandered are the paths that were asked for and should not have been.
func (p *provider) wandered() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.strays
}

func (p *provider) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	var answer http.HandlerFunc
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		p.fetches++
		select {
		case p.asked <- struct{}{}:
		default:
		}
		if answer = p.discovery; answer == nil {
			answer = p.honestDiscovery
		}
	case "/keys":
		body, err := json.Marshal(map[string]any{"keys": p.keys})
		if err != nil {
			panic(err)
		}
		if answer = p.jwks; answer == nil {
			answer = jsonAnswer(string(body))
		}
	default:
		p.strays = append(p.strays, r.URL.Path)
		answer = http.NotFound
	}
	p.mu.Unlock()
	answer(w, r)
}

func (p *provider) honestDiscovery(w http.ResponseWriter, r *http.Request) {
	jsonAnswer(fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, p.URL, p.URL+"/keys"))(w, r)
}

func jsonAnswer(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	}
}

// config is an ordinary configuration of p.
func (p *provider) config(name string) Issuer {
	return Issuer{
		Name: name, URL: p.URL, Audiences: []string{"chaperone"},
		Algorithms: []string{"RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"}, Skew: 30 * time.Second,
		Claims: Claims{
			User: "email", Subagent: "azp", Groups: "groups", Workflow: "workflow",
			Instance: "/ctx/instance", Job: "job",
		},
	}
}

// claims are those of an ordinary token of p, changed by changes; a nil value
// takes a claim away.
func (p *provider) claims(changes map[string]any) map[string]any {
	m := map[string]any{
		"iss": p.URL, "sub": "CgVhbGljZQ", "aud": []string{"other", "chaperone"}, "azp": "orders-agent",
		"iat": noon.Add(-time.Minute).Unix(), "exp": noon.Add(time.Hour).Unix(),
		"email": "alice@example.com", "email_verified": true, "groups": []string{"orders-agents", "dev", "dev"},
		"workflow": "nightly", "ctx": map[string]any{"instance": "pod-7"},
	}
	maps.Copy(m, changes)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	return m
}

// newVerifier makes a verifier that is closed with the test.
func newVerifier(t testing.TB, c Config) *Verifier {
	t.Helper()
	v, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// A logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// mustAccept verifies a token that has to pass.
func mustAccept(t testing.TB, v *Verifier, token access.Secret) access.Principal {
	t.Helper()
	p, err := v.Verify(context.Background(), token)
	if err != nil {
		t.Fatalf("a good token is refused: %v", err)
	}
	return p
}
