package authcode

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/clocktest"
)

// A fake answers as a provider whose documents can be spoilt.
type fake struct {
	*httptest.Server
	document func(issuer string) string
	token    string
	asked    int
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{document: func(issuer string) string {
		return fmt.Sprintf(`{"issuer": %q, "authorization_endpoint": "%s/auth?tenant=x", "token_endpoint": "%s/token"}`, issuer, issuer, issuer)
	}}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			fmt.Fprint(w, f.token)
			return
		}
		f.asked++
		fmt.Fprint(w, f.document(f.URL))
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fake) client(clock *clocktest.Clock) *Client {
	return &Client{Issuer: f.URL, ID: "cli", Scope: "openid", HTTP: f.Client(), Clock: clock.Now}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	f, clock := newFake(t), clocktest.New(time.Unix(1e9, 0))
	c, a := f.client(clock), NewAttempt("http://127.0.0.1:1/callback")
	for range 3 {
		address, err := c.Address(t.Context(), a)
		to, _ := url.Parse(address)
		if err != nil || to.Path != "/auth" || to.Query().Get("tenant") != "x" || to.Query().Get("state") != a.State || strings.Contains(address, a.Verifier) {
			t.Errorf("%s %v", address, err)
		}
	}
	if f.asked != 1 {
		t.Errorf("asked %d times", f.asked)
	}
	clock.Advance(foundFor)
	if _, err := c.Address(t.Context(), a); err != nil || f.asked != 2 {
		t.Errorf("%v, asked %d times", err, f.asked)
	}
	if b := NewAttempt(""); b.State == a.State || b.Nonce == a.Nonce || b.Verifier == a.Verifier || len(a.Verifier) < 43 {
		t.Error("attempts can be guessed")
	}
}

func TestSpoiltDocuments(t *testing.T) {
	t.Parallel()
	for name, document := range map[string]string{
		"another issuer": `{"issuer": "https://evil.test", "authorization_endpoint": "https://evil.test/a", "token_endpoint": "https://evil.test/t"}`,
		"no TLS":         `{"issuer": "URL", "authorization_endpoint": "http://evil.test/a", "token_endpoint": "URL/t"}`,
		"script":         `{"issuer": "URL", "authorization_endpoint": "javascript:alert(1)", "token_endpoint": "URL/t"}`,
		"a page":         `<html>`, "nothing": ``,
	} {
		f, clock := newFake(t), clocktest.New(time.Unix(1e9, 0))
		f.document = func(issuer string) string { return strings.ReplaceAll(document, "URL", issuer) }
		c := f.client(clock)
		for range 2 { // the second time it is not asked
			if address, err := c.Address(t.Context(), NewAttempt("x")); err == nil {
				t.Errorf("%s: %s", name, address)
			}
		}
		f.document = newFake(t).document
		clock.Advance(failedFor)
		if _, err := c.Address(t.Context(), NewAttempt("x")); err != nil || f.asked != 2 {
			t.Errorf("%s: afterwards: %v, asked %d times", name, err, f.asked)
		}
	}
}

func TestRedeem(t *testing.T) {
	t.Parallel()
	a := NewAttempt("x")
	id := "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"nonce": "`+a.Nonce+`"}`)) + ".x"
	for name, c := range map[string]struct {
		attempt Attempt
		answer  string
		want    bool
	}{
		"right": {a, `{"id_token": "` + id + `", "access_token": "opaque"}`, true}, "another login": {NewAttempt("x"), `{"id_token": "` + id + `"}`, false},
		"no nonce asked for": {Attempt{}, `{"id_token": "e30.e30.x"}`, false}, "no ID token": {a, `{"access_token": "opaque"}`, false},
		"not a token": {a, `{"id_token": "a.!.c"}`, false}, "not JSON": {a, `<html>`, false},
	} {
		f := newFake(t)
		f.token = c.answer
		got, err := f.client(clocktest.New(time.Unix(1e9, 0))).Redeem(t.Context(), c.attempt, "code")
		if (err == nil) != c.want || c.want && (got.ID.Reveal() != id || got.Access.Reveal() != "opaque") {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}

func TestSecure(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{"https://a.test": true, "http://127.0.0.1:5556/dex": true, "http://[::1]/": true, "http://a.test": false, "http://localhost": false,
		"ftp://a.test": false, "/path": false, "": false} {
		if Secure(address) != want {
			t.Errorf("%q: %t", address, !want)
		}
	}
}
