package issuer

import (
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// TestRevokingCutsAllBelow: and nothing above.
func TestRevokingCutsAllBelow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	user := w.user(t, nil)
	one, _ := w.issue(t, exchange(user, "audience", "orders"))
	two, _ := w.issue(t, exchange(one))
	if got := w.post(t, RevokePath, url.Values{"token": {one}}); got.status != 200 || w.last().Admin.Act != "token.revoke" {
		t.Fatalf("%d %v, recorded %+v", got.status, got.body, w.last())
	}
	for name, c := range map[string]struct {
		token string
		good  bool
	}{"the parent": {user, true}, "the token": {one, false}, "its child": {two, false}} {
		if _, err := w.verifier.Verify(t.Context(), access.NewSecret(c.token)); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := w.post(t, TokenPath, exchange(two)); got.text("error") != "invalid_request" {
		t.Errorf("a revoked token is exchanged: %v", got.body)
	}
	for _, bad := range []string{one, "hunter2"} {
		if got := w.post(t, RevokePath, url.Values{"token": {bad}}); got.status != 200 {
			t.Errorf("%d %v", got.status, got.body)
		}
	}
	if got := w.post(t, RevokePath, nil); got.status != 400 {
		t.Errorf("%d %v", got.status, got.body)
	}
}

func TestIntrospection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	server := w.agent(t, "resource-server", nil)
	one, p := w.issue(t, exchange(w.user(t, nil), append(actor(w.agent(t, "planner", nil)), "audience", "orders")...))
	ask := func(caller, token string) reply {
		return w.post(t, IntrospectPath, url.Values{"token": {token}}, "Authorization", "Bearer "+caller)
	}
	got := ask(server, one)
	act, _ := got.body["act"].(map[string]any)
	if got.status != 200 || got.body["active"] != true || got.text("sub") != "ada-sub" || got.text("username") != "ada@example.com" ||
		got.text("token_id") != p.Token.ID || act["sub"] != "planner-sub" || got.body["exp"] != float64(p.Token.ExpiresAt.Unix()) {
		t.Errorf("%d %v", got.status, got.body)
	}
	if got := ask(server, "hunter2"); got.status != 200 || got.body["active"] != false || len(got.body) != 1 {
		t.Errorf("a bad token: %d %v", got.status, got.body)
	}
	w.clock.Advance(DefaultLife)
	if got := ask(server, one); got.body["active"] != false {
		t.Errorf("an expired token: %v", got.body)
	}
	if got := ask(w.agent(t, "planner", nil), one); got.status != 403 || got.body["active"] != nil {
		t.Errorf("just anybody: %d %v", got.status, got.body)
	}
	if got := w.post(t, IntrospectPath, url.Values{"token": {one}}); got.status != 401 {
		t.Errorf("nobody: %d %v", got.status, got.body)
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	got := w.do(t, httptest.NewRequest("GET", MetadataPath, nil))
	if got.text("issuer") != gateway || got.text("token_endpoint") != gateway+TokenPath || got.text("jwks_uri") != gateway+KeysPath ||
		got.body["response_types_supported"] == nil || strings.Contains(got.header.Get("Cache-Control"), "no-store") {
		t.Errorf("%v", got.body)
	}
	keys := w.do(t, httptest.NewRequest("GET", KeysPath, nil))
	if list, _ := keys.body["keys"].([]any); len(list) != 1 || keys.header.Get("Content-Type") != "application/jwk-set+json" {
		t.Errorf("%v", keys.body)
	}
}

// TestClientAssertion: with clients configured, nobody else exchanges; the
// client is the actor when there is no other; an assertion is good once.
func TestClientAssertion(t *testing.T) {
	t.Parallel()
	clock := newFakeClock()
	own, err := OpenKeys(t.TempDir()+"/client", 24*time.Hour, time.Hour, clock.Now)
	must(t, err)
	jwks, err := own.Published()
	must(t, err)
	w := newWorld(t, func(c *Config) { c.Clients = []Client{{ID: "reporter", Keys: jwks}} })
	claims := map[string]any{"iss": "reporter", "sub": "reporter", "aud": gateway + TokenPath, "iat": clock.Now().Unix(), "exp": clock.Now().Add(time.Minute).Unix()}
	assertion := func(changes map[string]any) string { return signed(t, own, "JWT", claims, changes) }
	ask := func(assertion string, more ...string) reply {
		form := exchange(w.user(t, nil), append(more, "audience", "orders", "client_assertion_type", assertionType, "client_assertion", assertion)...)
		return w.post(t, TokenPath, form)
	}
	good := assertion(map[string]any{"jti": "1"})
	got := ask(good)
	if got.status != 200 {
		t.Fatalf("%d %v", got.status, got.body)
	}
	p, err := w.verifier.Verify(t.Context(), access.NewSecret(got.text("access_token")))
	if err != nil || p.Subagent != "reporter" || p.Chain[0].Issuer != Name || p.Chain[0].Subject != "reporter" {
		t.Errorf("%+v, %v", p, err)
	}
	forged := signed(t, w.foreign, "JWT", claims, map[string]any{"jti": "2"})
	for name, got := range map[string]reply{
		"again":            ask(good),
		"none":             w.post(t, TokenPath, exchange(w.user(t, nil), "audience", "orders")),
		"forged":           ask(forged),
		"no jti":           ask(assertion(nil)),
		"expired":          ask(assertion(map[string]any{"jti": "3", "exp": clock.Now().Unix()})),
		"a long life":      ask(assertion(map[string]any{"jti": "4", "exp": clock.Now().Add(time.Hour).Unix()})),
		"not good yet":     ask(assertion(map[string]any{"jti": "5", "nbf": clock.Now().Add(2 * time.Minute).Unix(), "exp": clock.Now().Add(3 * time.Minute).Unix()})),
		"another audience": ask(assertion(map[string]any{"jti": "6", "aud": "https://elsewhere.example"})),
		"another subject":  ask(assertion(map[string]any{"jti": "7", "sub": "planner"})),
		"an unknown one":   ask(assertion(map[string]any{"jti": "8", "iss": "planner", "sub": "planner"})),
		"another id":       ask(assertion(map[string]any{"jti": "9"}), "client_id", "planner"),
		"with a secret":    ask(assertion(map[string]any{"jti": "10"}), "client_secret", "x"),
	} {
		if got.status != 401 || got.text("error") != "invalid_client" {
			t.Errorf("%s: %d %v", name, got.status, got.body)
		}
	}
	b, _ := json.Marshal(w.last())
	if strings.Contains(string(b), "eyJ") {
		t.Errorf("an assertion is in the recording: %s", b)
	}
}
