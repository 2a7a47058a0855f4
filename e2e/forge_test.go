package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
)

// A forgery is a provider that the gateway believes and whose key we hold, so
// that it can sign what no honest one would.
type forgery struct {
	URL    string
	key    *ecdsa.PrivateKey
	strays atomic.Int64 // requests for what the configuration does not name
}

var forge = sync.OnceValue(func() *forgery {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	f := &forgery{key: key}
	server := httptest.NewServer(f) // for as long as the tests run
	f.URL = server.URL
	return f
})

func (f *forgery) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	public, err := f.key.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, f.URL, f.URL+"/keys")
	case "/keys":
		fmt.Fprintf(w, `{"keys":[{"kty":"EC","crv":"P-256","use":"sig","kid":"k1","x":%q,"y":%q}]}`, part(public[1:33]), part(public[33:]))
	default:
		f.strays.Add(1)
	}
}

// withForgery makes the gateway believe it.
func withForgery(text string) string {
	return strings.Replace(text, "  issuers:\n", fmt.Sprintf(`  issuers:
    - name: forge
      oidc: {issuer: %q, audiences: [chaperone], algorithms: [ES256]}
      claims: {user: email, subagent: azp, groups: groups}
`, forge().URL), 1)
}

func part(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// sign makes a token of a header and claims, whatever they say.
func sign(key *ecdsa.PrivateKey, header, claims string) string {
	signed := part([]byte(header)) + "." + part([]byte(claims))
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + part(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

const forgedHeader = `{"alg":"ES256","kid":"k1","typ":"JWT"}`

// claims are Ada's, with changes; nil takes one away.
func (f *forgery) claims(changes map[string]any) string {
	now := time.Now()
	all := map[string]any{"iss": f.URL, "sub": "ada", "aud": "chaperone", "azp": "agent", "email": demo.Ada, "groups": []string{"orders-agents"},
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	for name, value := range changes {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// bad are tokens that must open nothing, each with why, for operators alone.
func (f *forgery) bad(dex string) map[string][2]string {
	with := func(changes map[string]any) string { return sign(f.key, forgedHeader, f.claims(changes)) }
	header := func(h string) string { return sign(f.key, h, f.claims(nil)) }
	more := func(member string) string {
		return sign(f.key, forgedHeader, strings.TrimSuffix(f.claims(nil), "}")+","+member+"}")
	}
	good := strings.Split(with(nil), ".")
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&f.key.PublicKey)
	if err != nil {
		panic(err)
	}
	symmetric := part([]byte(`{"alg":"HS256","kid":"k1"}`)) + "." + good[1]
	mac := hmac.New(sha256.New, public)
	mac.Write([]byte(symmetric))
	point, err := own.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	jwk := fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":"k1","x":%q,"y":%q}`, part(point[1:33]), part(point[33:]))
	return map[string][2]string{
		"unsigned":                 {part([]byte(`{"alg":"none"}`)) + "." + good[1] + ".", "it is unsigned (alg none)"},
		"no signature":             {good[0] + "." + good[1] + ".", "it is not signed"},
		"a public key as a secret": {symmetric + "." + part(mac.Sum(nil)), "its signature is symmetric"},
		"another family":           {header(`{"alg":"RS256","kid":"k1"}`), "its signature algorithm is not accepted of this issuer"},
		"its own key":              {sign(own, `{"alg":"ES256","kid":"k1","jwk":`+jwk+`}`, f.claims(nil)), "its header brings its own key (jwk)"},
		"its own address of keys":  {header(`{"alg":"ES256","kid":"k1","jku":"` + f.URL + `/evil"}`), "its header brings its own key (jku)"},
		"its own certificate":      {header(`{"alg":"ES256","kid":"k1","x5u":"` + f.URL + `/evil"}`), "its header brings its own key (x5u)"},
		"a key id of a path":       {header(`{"alg":"ES256","kid":"../../dev/null"}`), "its key is not among those of its issuer"},
		"a key id of two lines":    {header(`{"alg":"ES256","kid":"k1\nx"}`), "its kid header is not a short printable text"},
		"a key id that is none":    {header(`{"alg":"ES256","kid":{}}`), "its kid header is not a short printable text"},
		"another issuer's key":     {with(map[string]any{"iss": dex}), "its key is not among those of its issuer"},
		"another's signature":      {sign(own, forgedHeader, f.claims(nil)), "its signature does not verify"},
		"an unknown issuer":        {with(map[string]any{"iss": f.URL + "/"}), "its issuer is not configured"},
		"a claim twice":            {more(`"groups":["platform"]`), "its claims part holds a name twice"},
		"a claim in another case":  {more(`"Groups":["platform"]`), "its groups claim holds a known name in another case"},
		"an issuer in another":     {more(`"ISS":"x"`), "its claims part holds a known name in another case"},
		"another audience":         {with(map[string]any{"aud": "else"}), "it is for another audience"},
		"no audience":              {with(map[string]any{"aud": nil}), "it has no aud claim"},
		"another type":             {header(`{"alg":"ES256","kid":"k1","typ":"logout+jwt"}`), "its typ header is not accepted of this issuer"},
		"no expiry":                {with(map[string]any{"exp": nil}), "it has no exp claim"},
		"an expiry of text":        {with(map[string]any{"exp": "9999999999"}), "its exp claim is not a number"},
		"an expiry without end":    {with(map[string]any{"exp": json.Number("1e400")}), "its exp claim is not a sane time"},
		"a beginning of a list":    {with(map[string]any{"nbf": []int{0}}), "its nbf claim is not a number"},
		"an issue of an object":    {with(map[string]any{"iat": map[string]any{}}), "its iat claim is not a number"},
		"expired":                  {with(map[string]any{"exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()}), "it has expired"},
		"not yet":                  {with(map[string]any{"nbf": time.Now().Add(10 * time.Minute).Unix()}), "it is not valid yet"},
		"living too long":          {with(map[string]any{"exp": time.Now().Add(25 * time.Hour).Unix()}), "it lives longer than is configured"},
		"of unknown life":          {with(map[string]any{"iat": nil}), "it has no iat claim, and a longest life is configured"},
		"nested deep":              {more(`"x":` + strings.Repeat("[", 500) + strings.Repeat("]", 500)), "its claims part nests too deep"},
		"oversized":                {more(`"x":"` + strings.Repeat("x", 13000) + `"`), "too "},
		"nine hops":                {with(map[string]any{"act": acts(9)}), "its delegation chain is too long"},
	}
}

// acts nests n act claims.
func acts(n int) map[string]any {
	act := map[string]any{"sub": fmt.Sprint("hop", n)}
	if n > 1 {
		act["act"] = acts(n - 1)
	}
	return act
}

var requestNamed = regexp.MustCompile(`req_[a-z0-9]+`)

// TestForgedTokens: attack, at every door: HTTP, a cluster, the API, the
// directory, the certificates and the streams of SSH, PostgreSQL. Whatever is
// wrong with a token, its caller hears the same, and operators hear what it is.
// The twin is that provider's honest token.
func TestForgedTokens(t *testing.T) {
	t.Parallel()
	s := site(t)
	f := forge()
	web := map[string]func(tok string) (string, string){
		"HTTP":         func(tok string) (string, string) { return answered(t, s, "GET", "/http/billing/customers/1", tok) },
		"Kubernetes":   func(tok string) (string, string) { return answered(t, s, "GET", "/k8s/cluster/api", tok) },
		"the API":      func(tok string) (string, string) { return answered(t, s, "GET", "/api/v1/sessions", tok) },
		"a kill":       func(tok string) (string, string) { return answered(t, s, "POST", "/api/v1/kill", tok) },
		"directory":    func(tok string) (string, string) { return answered(t, s, "GET", "/.well-known/chaperone", tok) },
		"certificates": func(tok string) (string, string) { return answered(t, s, "POST", authority.Path, tok) },
		"SSH": func(tok string) (string, string) {
			conn := https(t, s, "http/1.1")
			fmt.Fprintf(conn, "CONNECT web:22 HTTP/1.1\r\nHost: web:22\r\nProxy-Authorization: Bearer %s\r\n\r\n", tok)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<16)) // the connection may end with it
			return res.Status + " " + string(body), requestNamed.FindString(string(body))
		},
		"PostgreSQL": func(tok string) (string, string) {
			_, err := pgx.Connect(t.Context(), s.DSN(tok))
			var refused *pgconn.PgError
			if !errors.As(err, &refused) {
				return "open", ""
			}
			return "401 " + refused.Message + refused.Detail + refused.Hint, requestNamed.FindString(refused.Detail)
		},
	}
	good := sign(f.key, forgedHeader, f.claims(nil))
	if got, _ := web["HTTP"](good); !strings.HasPrefix(got, "200 ") {
		t.Fatalf("the twin: %s", got)
	}
	if got, _ := web["PostgreSQL"](good); got != "open" {
		t.Fatalf("the twin, PostgreSQL: %s", got)
	}
	same, reasons := map[string]string{}, map[string]string{}
	for name, c := range f.bad(s.Dex.Issuer) {
		for door, ask := range web {
			answer, id := ask(c[0])
			plain := requestNamed.ReplaceAllString(answer, "")
			if same[door] == "" {
				same[door] = plain
			}
			if !strings.HasPrefix(answer, "401 ") || plain != same[door] || id == "" {
				t.Errorf("%s, %s: %s\nothers: %s", name, door, answer, same[door])
			}
			if door == "HTTP" || door == "Kubernetes" || door == "PostgreSQL" {
				reasons[id] = c[1]
			}
		}
	}
	eventually(t, func() error { return recordedCauses(s, maps.Clone(reasons)) })
	if n := f.strays.Load(); n != 0 {
		t.Errorf("%d requests for addresses that tokens brought", n)
	}
}

// answered is the status and body of an answer, and the request's id.
func answered(t *testing.T, s *demo.Site, method, path, tok string) (string, string) {
	t.Helper()
	res := request(t, s, method, path, tok, "{}")
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.Status + " " + string(body), requestNamed.FindString(string(body))
}

// recordedCauses looks for the refusals of requests, with their reasons.
func recordedCauses(s *demo.Site, want map[string]string) error {
	segments, err := filepath.Glob(filepath.Join(s.Dir, "data", "recordings", "segment-*.ndjson"))
	if err != nil {
		return err
	}
	for _, path := range segments {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			var e access.Event
			if !strings.Contains(line, `"denied"`) || json.Unmarshal([]byte(line), &e) != nil || e.Denied == nil {
				continue
			}
			if reason, ok := want[e.Denied.Denial.RequestID]; ok && strings.Contains(e.Denied.Cause, reason) {
				delete(want, e.Denied.Denial.RequestID)
			}
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("not on record: %v", want)
	}
	return nil
}
