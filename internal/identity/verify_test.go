package identity

import (
	"context"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

func TestVerifyMapsAPrincipal(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	token := key.token(p.claims(map[string]any{
		"job": "42", "act": map[string]any{"sub": "second", "azp": "deployer", "act": map[string]any{
			"sub": "first", "iss": "https://elsewhere.example", "email": "bob@example.com",
		}},
	}))
	got := mustAccept(t, v, token)
	want := access.Principal{
		Issuer: "dex", Subject: "CgVhbGljZQ", User: "alice@example.com", Subagent: "orders-agent",
		Instance: "pod-7", Workflow: "nightly", Job: "42", Groups: []string{"dev", "orders-agents"},
		Chain: []access.Hop{
			{Issuer: "https://elsewhere.example", Subject: "first", User: "bob@example.com", Actor: "first"},
			{Issuer: "dex", Subject: "second", Actor: "deployer"},
		},
		Token: access.TokenRef{ID: TokenID(token), IssuedAt: noon.Add(-time.Minute), ExpiresAt: noon.Add(time.Hour)},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if len(got.Token.ID) != len("tok_")+32 {
		t.Errorf("token id %q", got.Token.ID)
	}
	got.Groups[0], got.Chain[0].Subject = "mine", "mine"
	if again := mustAccept(t, v, token); !reflect.DeepEqual(again, want) {
		t.Errorf("a caller can change what the next one gets: %+v", again)
	}
}

func TestVerifyAcceptsEachAlgorithm(t *testing.T) {
	t.Parallel()
	keys := []signer{
		{kid: "r", alg: "RS256", key: rsaKey()}, {kid: "p", alg: "PS512", key: rsaKey()},
		newES256(t, "e256"), newEC(t, "e384", "ES384", elliptic.P384()), newEC(t, "e521", "ES512", elliptic.P521()),
		newEdDSA(t, "ed"),
	}
	p := newProvider(t, keys...)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	for _, key := range keys {
		t.Run(key.alg, func(t *testing.T) { mustAccept(t, v, key.token(p.claims(nil))) })
	}
}

func TestVerifyAcceptsLawfulVariety(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	claims := func(changes map[string]any) string { return asJSON(p.claims(changes)) }
	for name, token := range map[string]string{
		"audience as text":        key.sign(key.header(), claims(map[string]any{"aud": "chaperone"})),
		"no typ":                  key.sign(`{"alg":"ES256","kid":"k1"}`, claims(nil)),
		"access token":            key.sign(`{"alg":"ES256","kid":"k1","typ":"application/AT+JWT"}`, claims(nil)),
		"no kid, one key":         key.sign(`{"alg":"ES256"}`, claims(nil)),
		"thumbprint beside":       key.sign(`{"alg":"ES256","kid":"k1","x5t":"AA"}`, claims(nil)),
		"one group as text":       key.sign(key.header(), claims(map[string]any{"groups": "dev"})),
		"no groups, no user":      key.sign(key.header(), claims(map[string]any{"groups": nil, "email": nil})),
		"fraction of a second":    key.sign(key.header(), claims(map[string]any{"exp": json.Number("1.898856e9")})),
		"just issued, skewed":     key.sign(key.header(), claims(map[string]any{"iat": noon.Add(29 * time.Second).Unix()})),
		"just expired, skewed":    key.sign(key.header(), claims(map[string]any{"exp": noon.Add(-29 * time.Second).Unix()})),
		"eight hops":              key.sign(key.header(), claims(map[string]any{"act": acts(8)})),
		"email not spoken of":     key.sign(key.header(), claims(map[string]any{"email_verified": nil})),
		"names in other scripts":  key.sign(key.header(), claims(map[string]any{"groups": []string{"Ärzte", "運用"}})),
		"unknown claims, nested":  key.sign(key.header(), claims(map[string]any{"x": map[string]any{"exp": "?", "Y": []any{1, nil}}})),
		"groups kept by somebody": key.sign(key.header(), claims(map[string]any{"_claim_names": map[string]any{"roles": "s"}})),
	} {
		t.Run(name, func(t *testing.T) { mustAccept(t, v, access.NewSecret(token)) })
	}
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// acts nests n act claims.
func acts(n int) map[string]any {
	act := map[string]any{"sub": fmt.Sprint("hop", n)}
	if n > 1 {
		act["act"] = acts(n - 1)
	}
	return act
}

func TestVerifyRejectsBadTokens(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	rsaSigner := signer{kid: "r1", alg: "RS256", key: rsaKey()}
	p := newProvider(t, key, rsaSigner)
	config := p.config("dex")
	config.Algorithms = []string{"ES256", "RS256"}
	config.MaxLife = 24 * time.Hour
	strangers := newES256(t, "k1")
	v := newVerifier(t, Config{Issuers: []Issuer{config}, Clock: newFakeClock().Now})

	good := asJSON(p.claims(nil))
	with := func(changes map[string]any) string { return key.sign(key.header(), asJSON(p.claims(changes))) }
	raw := func(member string) string {
		return key.sign(key.header(), strings.TrimSuffix(good, "}")+","+member+"}")
	}
	header := func(header string) string { return key.sign(header, good) }
	plus := func(member string) string { return header(`{"alg":"ES256","kid":"k1",` + member + `}`) }
	valid := key.sign(key.header(), good)
	parts := strings.Split(valid, ".")
	der, err := x509.MarshalPKIXPublicKey(rsaSigner.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	mac := func(secret []byte) string {
		signed := b64([]byte(`{"alg":"HS256","kid":"r1"}`)) + "." + b64([]byte(good))
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(signed))
		return signed + "." + b64(h.Sum(nil))
	}

	for _, c := range []struct{ name, token, reason string }{
		{"empty", "", "there is none"},
		{"too long", valid + strings.Repeat("A", MaxTokenBytes), "it is too long"},
		{"one part", "hello", "it does not have three parts"},
		{"four parts", valid + ".AA", "it does not have three parts"},
		{"encrypted", "a.b.c.d.e", "it does not have three parts"},
		{"json serialisation", `{"payload":"","signature":""}`, "it does not have three parts"},
		{"padded header", parts[0] + "=." + parts[1] + "." + parts[2], "its header part is not strict base64url"},
		{"line break", parts[0][:4] + "\n" + parts[0][4:] + "." + parts[1] + "." + parts[2], "its header part is not strict base64url"},
		{"bearer left on", "Bearer " + valid, "its header part is not strict base64url"},
		{"standard alphabet", "+/+/." + parts[1] + "." + parts[2], "its header part is not strict base64url"},
		{"trailing bits in header", b64([]byte(`{}`)) + "x." + parts[1] + "." + parts[2], "its header part is not a JSON object"},
		{"padded claims", parts[0] + "." + parts[1] + "=." + parts[2], "its claims part is not strict base64url"},
		{"padded signature", valid + "==", "its signature is not strict base64url"},
		{"trailing bits in signature", valid[:len(valid)-1] + nextBase64(valid[len(valid)-1]), "its signature is not strict base64url"},
		{"line break at the end", valid + "\n", "its signature is not strict base64url"},
		{"header is an array", header(`["ES256"]`), "its header part is not a JSON object"},
		{"header has a tail", header(key.header() + "{}"), "its header part is not a JSON object"},
		{"header twice alg", header(`{"alg":"ES256","kid":"k1","alg":"none"}`), "its header part holds a name twice"},
		{"header alg in capitals", plus(`"Alg":"none"`), "its header part holds a known name in another case"},
		{"header crit in capitals", plus(`"CRIT":["b64"]`), "its header part holds a known name in another case"},
		{"header folded kelvin", header(`{"alg":"ES256","kid":"k1","\u212aid":"k2"}`), "its header part holds a known name in another case"},
		{"header nested deep", plus(`"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40)), "its header part nests too deep"},
		{"jku", plus(`"jku":"` + p.URL + `/evil"`), "its header brings its own key (jku)"},
		{"jwk", plus(`"jwk":` + asJSON(strangers.jwk())), "its header brings its own key (jwk)"},
		{"x5u", plus(`"x5u":"` + p.URL + `/evil"`), "its header brings its own key (x5u)"},
		{"x5c", plus(`"x5c":["AA"]`), "its header brings its own key (x5c)"},
		{"crit", plus(`"crit":["exp"],"exp":1`), "its header asks for an extension (crit)"},
		{"b64", plus(`"b64":false`), "its header asks for an extension (b64)"},
		{"enc", plus(`"enc":"A128GCM"`), "its header asks for an extension (enc)"},
		{"zip", plus(`"zip":"DEF"`), "its header asks for an extension (zip)"},
		{"no alg", header(`{"kid":"k1"}`), "its header has no alg that is text"},
		{"alg a number", header(`{"alg":1}`), "its header has no alg that is text"},
		{"alg none", b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", "it is unsigned (alg none)"},
		{"alg nOnE", header(`{"alg":"nOnE","kid":"k1"}`), "it is unsigned (alg none)"},
		{"public key as a secret", mac(der), "its signature is symmetric (alg HS*)"},
		{"public key in PEM as a secret", mac(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "its signature is symmetric (alg HS*)"},
		{"alg unknown", header(`{"alg":"ES256K","kid":"k1"}`), "its signature algorithm is not known"},
		{"alg in lower case", header(`{"alg":"es256","kid":"k1"}`), "its signature algorithm is not known"},
		{"alg of another issuer", header(`{"alg":"PS256","kid":"r1"}`), "its signature algorithm is not accepted of this issuer"},
		{"kid a number", header(`{"alg":"ES256","kid":7}`), "its kid header is not a short printable text"},
		{"kid empty", header(`{"alg":"ES256","kid":""}`), "its kid header is not a short printable text"},
		{"kid with a line break", header(`{"alg":"ES256","kid":"k1\n"}`), "its kid header is not a short printable text"},
		{"kid long", header(`{"alg":"ES256","kid":"` + strings.Repeat("k", 300) + `"}`), "its kid header is not a short printable text"},
		{"typ a list", plus(`"typ":["JWT"]`), "its typ header is not text"},
		{"typ of something else", plus(`"typ":"logout+jwt"`), "its typ header is not accepted of this issuer"},
		{"no signature", parts[0] + "." + parts[1] + ".", "it is not signed"},
		{"claims twice exp", raw(`"exp":9999999999`), "its claims part holds a name twice"},
		{"claims escaped twice", raw(`"\u0065xp":9999999999`), "its claims part holds a name twice"},
		{"claims nested twice", raw(`"x":{"a":1,"a":2}`), "its claims part holds a name twice"},
		{"claims EXP", raw(`"EXP":9999999999`), "its claims part holds a known name in another case"},
		{"claims Iss", raw(`"Iss":"https://evil.example"`), "its claims part holds a known name in another case"},
		{"claims folded", raw(`"i\u017fs":"https://evil.example"`), "its claims part holds a known name in another case"},
		{"claims mapped in another case", raw(`"Email":"root@example.com"`), "its email claim holds a known name in another case"},
		{"claims half a character", raw(`"x":"\ud800"`), "its claims part holds text that is not Unicode"},
		{"claims not UTF-8", key.sign(key.header(), strings.Replace(good, "nightly", "night\xff", 1)), "its claims part holds text that is not Unicode"},
		{"claims nested deep", raw(`"x":` + strings.Repeat(`{"x":`, 1000) + "1" + strings.Repeat("}", 1000)), "its claims part nests too deep"},
		{"no issuer", with(map[string]any{"iss": nil}), "it has no iss claim that is text"},
		{"issuer a list", with(map[string]any{"iss": []string{p.URL}}), "it has no iss claim that is text"},
		{"issuer unknown", with(map[string]any{"iss": "https://evil.example"}), "its issuer is not configured"},
		{"issuer nearly", with(map[string]any{"iss": p.URL + "/"}), "its issuer is not configured"},
		{"unknown key", newES256(t, "k9").token(p.claims(nil)).Reveal(), "its key is not among those of its issuer"},
		{"key of another kind", signer{kid: "r1", alg: "ES256", key: key.key}.token(p.claims(nil)).Reveal(), "its key is not among those of its issuer"},
		{"key of the same name", strangers.token(p.claims(nil)).Reveal(), "its signature does not verify"},
		{"claims exchanged", parts[0] + "." + b64([]byte(asJSON(p.claims(map[string]any{"groups": "admin"})))) + "." + parts[2], "its signature does not verify"},
		{"signature too short", parts[0] + "." + parts[1] + "." + b64(make([]byte, 63)), "its signature does not verify"},
		{"no audience", with(map[string]any{"aud": nil}), "it has no aud claim"},
		{"audience a number", with(map[string]any{"aud": 7}), "its aud claim is not text, or a short list of texts"},
		{"audience mixed", with(map[string]any{"aud": []any{"chaperone", 7}}), "its aud claim is not text, or a short list of texts"},
		{"audience another", with(map[string]any{"aud": []string{"other", "Chaperone"}}), "it is for another audience"},
		{"audience none", with(map[string]any{"aud": []string{}}), "it is for another audience"},
		{"no expiry", with(map[string]any{"exp": nil}), "it has no exp claim"},
		{"expiry null", key.sign(key.header(), strings.Replace(good, `"exp":1898859600`, `"exp":null`, 1)), "its exp claim is not a number"},
		{"expiry text", with(map[string]any{"exp": "9999999999"}), "its exp claim is not a number"},
		{"expiry endless", with(map[string]any{"exp": json.Number("1e400")}), "its exp claim is not a sane time"},
		{"expiry huge", with(map[string]any{"exp": json.Number("1e300")}), "its exp claim is not a sane time"},
		{"expiry negative", with(map[string]any{"exp": -1}), "its exp claim is not a sane time"},
		{"expired", with(map[string]any{"exp": noon.Add(-30 * time.Second).Unix()}), "it has expired"},
		{"not yet", with(map[string]any{"nbf": noon.Add(31 * time.Second).Unix()}), "it is not valid yet"},
		{"not yet, text", with(map[string]any{"nbf": "0"}), "its nbf claim is not a number"},
		{"never", with(map[string]any{"nbf": noon.Add(2 * time.Hour).Unix()}), "it becomes valid after it expires"},
		{"issued later", with(map[string]any{"iat": noon.Add(31 * time.Second).Unix()}), "it is issued in the future"},
		{"issued a list", with(map[string]any{"iat": []int{1}}), "its iat claim is not a number"},
		{"issued after expiry", with(map[string]any{"iat": noon.Add(2 * time.Hour).Unix()}), "it is issued after it expires"},
		{"lives long", with(map[string]any{"exp": noon.Add(24 * time.Hour).Unix()}), "it lives longer than is configured"},
		{"lives, nobody knows how long", with(map[string]any{"iat": nil}), "it has no iat claim, and a longest life is configured"},
		{"no subject", with(map[string]any{"sub": nil}), "it has no sub claim"},
		{"subject a number", with(map[string]any{"sub": 7}), "its sub claim is not text"},
		{"subject with a zero", with(map[string]any{"sub": "a\x00b"}), "its sub claim is unprintable or overlong"},
		{"user reversed", with(map[string]any{"email": "a\u202eb@example.com"}), "its email claim is unprintable or overlong"},
		{"user overlong", with(map[string]any{"email": strings.Repeat("a", 2000)}), "its email claim is unprintable or overlong"},
		{"user an object", with(map[string]any{"email": map[string]any{}}), "its email claim is not text"},
		{"user not verified", with(map[string]any{"email_verified": false}), "its email address is not verified"},
		{"pointer into text", with(map[string]any{"ctx": "x"}), "its /ctx/instance claim points into something that is not an object"},
		{"groups an object", with(map[string]any{"groups": map[string]any{}}), "its groups claim is not a list of texts"},
		{"groups mixed", with(map[string]any{"groups": []any{"a", 1}}), "its groups claim is not a list of texts"},
		{"group empty", with(map[string]any{"groups": []string{""}}), "its groups claim holds an unprintable or overlong name"},
		{"groups many", with(map[string]any{"groups": strings.Split(strings.Repeat("a,", 1000)+"a", ",")}), "its groups claim holds too many groups"},
		{"groups elsewhere", with(map[string]any{"groups": nil, "_claim_names": map[string]any{"groups": "src1"}}), "its groups are too many for it and kept elsewhere; have the provider send fewer"},
		{"actor text", with(map[string]any{"act": "x"}), "its act claim is not an object"},
		{"actor nobody", with(map[string]any{"act": map[string]any{}}), "its act claim names nobody"},
		{"actor in another case", with(map[string]any{"act": map[string]any{"sub": "a", "Sub": "b"}}), "its act claim holds a known name in another case"},
		{"actor of a false name", with(map[string]any{"act": map[string]any{"sub": "a", "iss": "dex"}}), "its act claim has an iss that is not a URL"},
		{"nine hops", with(map[string]any{"act": acts(9)}), "its delegation chain is too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := v.Verify(context.Background(), access.NewSecret(c.token))
			if !errors.Is(err, ErrTokenRejected) {
				t.Fatalf("not rejected: %v", err)
			}
			if _, reason, _ := strings.Cut(err.Error(), ErrTokenRejected.Error()+": "); reason != c.reason {
				t.Errorf("reason %q, want %q", reason, c.reason)
			}
			if !reflect.DeepEqual(got, access.Principal{}) {
				t.Errorf("a principal comes with the rejection: %+v", got)
			}
		})
	}
	mustAccept(t, v, access.NewSecret(valid))
	if strays := p.wandered(); strays != nil {
		t.Errorf("fetched %v", strays)
	}
}

// nextBase64 returns the character whose value is one more: in the last place of
// an encoding with unused bits that changes only those.
func nextBase64(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)+1])
}

func TestVerifyKeepsIssuersApart(t *testing.T) {
	t.Parallel()
	a, b := newES256(t, "k"), newES256(t, "k")
	pa, pb := newProvider(t, a), newProvider(t, b)
	v := newVerifier(t, Config{Issuers: []Issuer{pa.config("a"), pb.config("b")}, Clock: newFakeClock().Now})
	if got := mustAccept(t, v, a.token(pa.claims(nil))); got.Issuer != "a" {
		t.Errorf("issuer %q", got.Issuer)
	}
	if got := mustAccept(t, v, b.token(pb.claims(nil))); got.Issuer != "b" {
		t.Errorf("issuer %q", got.Issuer)
	}
	if _, err := v.Verify(context.Background(), a.token(pb.claims(nil))); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("issuer a can speak for issuer b: %v", err)
	}
	chained := mustAccept(t, v, a.token(pa.claims(map[string]any{"act": map[string]any{"sub": "x", "iss": pb.URL}})))
	if chained.Chain[0].Issuer != "b" {
		t.Errorf("the hop's issuer is %q", chained.Chain[0].Issuer)
	}
}

// A second valid signature on the same claims must not be a token with another
// id: it would not be on any list of revoked ones.
func TestVerifyGivesOneIDToEverySignature(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	revoked := revokedTokens{}
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now, Revocations: revoked})
	token := key.token(p.claims(nil))
	parts := strings.Split(token.Reveal(), ".")
	signature, err := decodeBase64(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(signature[32:])
	twin := access.NewSecret(parts[0] + "." + parts[1] + "." + b64(signature))
	if twin.Reveal() == token.Reveal() {
		t.Fatal("the twin is the same token")
	}
	id := mustAccept(t, v, token).Token.ID
	if got := mustAccept(t, v, twin).Token.ID; got != id {
		t.Errorf("two ids: %s and %s", id, got)
	}
	revoked[id] = true
	for _, one := range []access.Secret{token, twin} {
		if _, err := v.Verify(context.Background(), one); !errors.Is(err, ErrTokenRejected) {
			t.Errorf("revoked, and still: %v", err)
		}
	}
}

// revokedTokens are those whose ids it holds; "down" is a store that is gone.
type revokedTokens map[string]bool

func (r revokedTokens) Revoked(_ context.Context, p access.Principal) (bool, error) {
	if r["down"] {
		return false, errors.New("the store is gone")
	}
	return r[p.Token.ID], nil
}

func TestVerifyHasNoVerdictWithoutRevocations(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	revoked := revokedTokens{}
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now, Revocations: revoked})
	token := key.token(p.claims(nil))
	mustAccept(t, v, token)
	revoked["down"] = true
	if _, err := v.Verify(context.Background(), token); err == nil || errors.Is(err, ErrTokenRejected) {
		t.Errorf("with revocations down: %v", err)
	}
	delete(revoked, "down")
	mustAccept(t, v, token)
}

func TestVerifyAsksOnEveryUse(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	token := key.token(p.claims(map[string]any{"exp": noon.Add(time.Minute).Unix()}))
	mustAccept(t, v, token)
	clock.Advance(time.Minute + 29*time.Second)
	mustAccept(t, v, token)
	clock.Advance(time.Second)
	if _, err := v.Verify(context.Background(), token); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("remembered past its expiry: %v", err)
	}
}

// A remembered token lends nothing to another with the same claims.
func TestVerifyRemembersTheWholeToken(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	token := key.token(p.claims(nil)).Reveal()
	mustAccept(t, v, access.NewSecret(token))
	forged := signedPart(token) + "." + b64(make([]byte, 64))
	if _, err := v.Verify(context.Background(), access.NewSecret(forged)); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("a forged signature on remembered claims: %v", err)
	}
}

func TestErrorsHoldNothingOfTheToken(t *testing.T) {
	t.Parallel()
	const secret = "ThisIsFromTheToken"
	key := newES256(t, "k1")
	p := newProvider(t, key)
	var log logBuffer
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now, Log: log.logger()})
	for _, token := range []string{
		secret, secret + "." + secret + "." + secret,
		key.sign(`{"alg":"`+secret+`"}`, "{}"), key.sign(`{"alg":"ES256","kid":"`+secret+`"}`, asJSON(p.claims(nil))),
		key.sign(key.header(), asJSON(p.claims(map[string]any{"iss": "https://" + secret}))),
		key.sign(key.header(), asJSON(p.claims(map[string]any{"aud": secret}))),
		key.sign(key.header(), asJSON(p.claims(map[string]any{"exp": secret}))),
		key.sign(key.header(), asJSON(p.claims(map[string]any{"groups": []any{secret, 1}}))),
		key.sign(key.header(), `{"`+secret+`":1,"`+secret+`":2}`),
	} {
		_, err := v.Verify(context.Background(), access.NewSecret(token))
		if err == nil {
			t.Fatal("accepted")
		}
		if text := err.Error() + log.String(); strings.Contains(text, secret) || strings.Contains(text, b64([]byte(secret))[:12]) {
			t.Errorf("the error quotes the token: %s", text)
		}
	}
}

// A key is used only when it is sound, whoever publishes it.
func TestVerifyPassesOverUnsoundKeys(t *testing.T) {
	t.Parallel()
	good := newES256(t, "k1")
	weak := weakRSA(t)
	change := func(s signer, changes map[string]any) map[string]any {
		m := s.jwk()
		for k, v := range changes {
			m[k] = v
		}
		return m
	}
	cases := []struct {
		name  string
		jwk   map[string]any
		token signer
	}{
		{"weak RSA", weak.jwk(), weak},
		{"for encryption", change(good, map[string]any{"use": "enc"}), good},
		{"for signing only", change(good, map[string]any{"key_ops": []string{"sign"}}), good},
		{"private half published", change(good, map[string]any{"d": "AAAA"}), good},
		{"of another algorithm", change(good, map[string]any{"alg": "ES384"}), good},
		{"off its curve", change(good, map[string]any{"x": b64(make([]byte, 32))}), good},
		{"short Ed25519", map[string]any{"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "k1"}, newEdDSA(t, "k1")},
		{"symmetric", map[string]any{"kty": "oct", "k": "AAAA", "kid": "k1"}, good},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newProvider(t)
			p.keys = []map[string]any{c.jwk}
			v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
			_, err := v.Verify(context.Background(), c.token.token(p.claims(nil)))
			if !errors.Is(err, ErrTokenRejected) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// weakRSA is a key that the standard library no longer makes.
func weakRSA(t *testing.T) signer {
	t.Helper()
	e := big.NewInt(65537)
	one := big.NewInt(1)
	for {
		p, err := rand.Prime(rand.Reader, 512)
		if err != nil {
			t.Fatal(err)
		}
		q, err := rand.Prime(rand.Reader, 512)
		if err != nil {
			t.Fatal(err)
		}
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(e, phi)
		if d == nil || p.Cmp(q) == 0 {
			continue
		}
		key := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}, D: d, Primes: []*big.Int{p, q},
		}
		return signer{kid: "k1", alg: "RS256", key: key}
	}
}

func TestNewRefusesBadIssuers(t *testing.T) {
	t.Parallel()
	good := Issuer{Name: "dex", URL: "https://dex.internal", Audiences: []string{"c"}, Algorithms: []string{"ES256"}}
	change := func(f func(*Issuer)) []Issuer {
		is := good
		f(&is)
		return []Issuer{is}
	}
	for _, c := range []struct {
		name    string
		issuers []Issuer
		want    string
	}{
		{"none", nil, "no issuer"},
		{"name", change(func(i *Issuer) { i.Name = "https://x" }), "name"},
		{"plain http", change(func(i *Issuer) { i.URL = "http://dex.internal" }), "https"},
		{"file", change(func(i *Issuer) { i.URL = "file:///etc/passwd" }), "absolute"},
		{"ftp", change(func(i *Issuer) { i.URL = "ftp://dex.internal" }), "https"},
		{"user in URL", change(func(i *Issuer) { i.URL = "https://u:p@dex.internal" }), "user name"},
		{"query", change(func(i *Issuer) { i.URL = "https://dex.internal?x" }), "query"},
		{"fragment", change(func(i *Issuer) { i.URL = "https://dex.internal#x" }), "fragment"},
		{"jwks plain http", change(func(i *Issuer) { i.JWKSURL = "http://dex.internal/keys" }), "jwks_url"},
		{"no audience", change(func(i *Issuer) { i.Audiences = nil }), "audiences"},
		{"empty audience", change(func(i *Issuer) { i.Audiences = []string{""} }), "audiences"},
		{"no algorithm", change(func(i *Issuer) { i.Algorithms = nil }), "algorithms"},
		{"symmetric", change(func(i *Issuer) { i.Algorithms = []string{"HS256"} }), `"HS256"`},
		{"unsigned", change(func(i *Issuer) { i.Algorithms = []string{"none"} }), `"none"`},
		{"skew", change(func(i *Issuer) { i.Skew = 61 * time.Second }), "skew"},
		{"skew negative", change(func(i *Issuer) { i.Skew = -1 }), "skew"},
		{"key age", change(func(i *Issuer) { i.KeyAge = 48 * time.Hour }), "key age"},
		{"max life", change(func(i *Issuer) { i.MaxLife = -1 }), "max life"},
		{"pointer", change(func(i *Issuer) { i.Claims.User = "/a//b" }), "claims: user"},
		{"pointer escape", change(func(i *Issuer) { i.Claims.Groups = "/a~2" }), "claims: groups"},
		{"ca", change(func(i *Issuer) { i.CA = []byte("x") }), "ca"},
		{"same name", []Issuer{good, {Name: "dex", URL: "https://b.internal", Audiences: good.Audiences, Algorithms: good.Algorithms}}, "taken"},
		{"same url", []Issuer{good, {Name: "b", URL: good.URL, Audiences: good.Audiences, Algorithms: good.Algorithms}}, "another issuer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(Config{Issuers: c.issuers})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
		})
	}
	if _, err := New(Config{Issuers: []Issuer{good}}); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestClaimPathUnescapes(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"":                        nil,
		"kubernetes.io":           {"kubernetes.io"},
		"/kubernetes.io/pod/name": {"kubernetes.io", "pod", "name"},
		"/https:~1~1x~0y":         {"https://x~y"},
		"/a~01":                   {"a~1"},
	} {
		got, err := claimPath(name)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := newTokenCache(3)
	digest := func(i int) [sha256.Size]byte { return sha256.Sum256([]byte{byte(i)}) }
	for i := range 5 {
		c.add(digest(i), &verified{who: access.Principal{Token: access.TokenRef{ID: fmt.Sprint(i)}}})
		if c.get(digest(0)) == nil && i < 3 {
			t.Errorf("0 is gone after %d", i)
		}
	}
	if len(c.index) != 3 || c.recent.Len() != 3 {
		t.Errorf("%d entries", len(c.index))
	}
	if c.get(digest(4)) == nil || c.get(digest(1)) != nil {
		t.Error("the oldest stayed, or the newest did not")
	}
	c.invalidate("4")
	if c.get(digest(4)) != nil || len(c.index) != 2 {
		t.Error("invalidated and still there")
	}
}

// A directory is one for the tests: who → groups.
type directory map[string][]string

func (d directory) Groups(_ context.Context, who string) ([]string, error) {
	if groups, ok := d[who]; ok {
		return groups, nil
	}
	if who == "down@example.com" {
		return nil, errors.New("no answer")
	}
	return nil, fmt.Errorf("%w: nobody", ErrTokenRejected)
}

func (directory) Close() {}

// TestGroupsAreLookedUp, in place of what the token says, or leaves out.
func TestGroupsAreLookedUp(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	c := p.config("entra")
	c.LookUp, c.LookUpBy = directory{"alice@example.com": {"ops"}, "odd@example.com": {"a\nb"}}, "email"
	v := newVerifier(t, Config{Issuers: []Issuer{c}, Clock: newFakeClock().Now})
	overage := map[string]any{"groups": nil, "_claim_names": map[string]any{"groups": "src1"}}
	for name, changes := range map[string]map[string]any{"a token that says": nil, "overage": overage} {
		token := key.token(p.claims(changes))
		for range 2 { // the second from memory
			if got := mustAccept(t, v, token); !reflect.DeepEqual(got.Groups, []string{"ops"}) {
				t.Errorf("%s: %v", name, got.Groups)
			}
		}
	}
	if got := mustAccept(t, v, key.token(p.claims(map[string]any{"email": nil}))); got.Groups != nil {
		t.Errorf("a program without a user is in %v", got.Groups)
	}
	for who, rejected := range map[string]bool{"nobody@example.com": true, "down@example.com": false, "odd@example.com": false} {
		_, err := v.Verify(t.Context(), key.token(p.claims(map[string]any{"email": who})))
		if err == nil || errors.Is(err, ErrTokenRejected) != rejected {
			t.Errorf("%s: %v", who, err)
		}
	}
	c.LookUpBy = ""
	if _, err := New(Config{Issuers: []Issuer{c}}); err == nil {
		t.Error("a look-up by no claim is taken")
	}
}
