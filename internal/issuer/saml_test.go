package issuer

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
)

// An assertions is a Verifier to which the texts "ada" and "late" are SAML
// assertions; everything else is the real one's.
type assertions struct {
	*identity.Verifier
	clock *fakeClock
}

func (a assertions) VerifyAssertion(_ context.Context, text access.Secret) (identity.Asserted, error) {
	switch text.Reveal() {
	case "ada":
		return identity.Asserted{Once: "id-1", Until: a.clock.Now().Add(time.Minute), Principal: access.Principal{Issuer: "keycloak", Subject: "ada", User: "ada@example.com",
			Subagent: "console", Groups: []string{"orders-agents"}, Token: access.TokenRef{ID: "tok_assertion", IssuedAt: a.clock.Now(), ExpiresAt: a.clock.Now().Add(time.Hour)}}}, nil
	case "late":
		return identity.Asserted{}, errors.New("no metadata")
	}
	return identity.Asserted{}, identity.ErrTokenRejected
}

func (a assertions) URLOf(name string) string {
	if name == "keycloak" {
		return "saml://idp"
	}
	return a.Verifier.URLOf(name)
}

func samlForm(assertion string, pairs ...string) url.Values {
	f := exchange(assertion, pairs...)
	f.Set("subject_token_type", typeSAML2)
	return f
}

// TestAssertionIsExchangedOnce: for a token handed on, or to log in.
func TestAssertionIsExchangedOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		form url.Values
		hops int
	}{
		"to log in":      {samlForm("ada"), 0},
		"for a resource": {samlForm("ada", "audience", "orders"), 1},
	} {
		w := newWorld(t, nil)
		w.Verifier = assertions{w.verifier, w.clock}
		// What narrows is wrong first: the assertion is not used up by that.
		if got := w.post(t, TokenPath, samlForm("ada", "audience", "nowhere")); got.status != 400 {
			t.Errorf("%s: a bad wish: %d", name, got.status)
		}
		got := w.post(t, TokenPath, c.form)
		if got.status != 200 {
			t.Fatalf("%s: %d %v", name, got.status, got.body)
		}
		p := w.last().Admin.Actor
		if len(p.Chain) != c.hops || p.Issuer != "keycloak" || p.User != "ada@example.com" || p.Subagent != "console" ||
			c.hops == 1 && p.Chain[0].Parent != "tok_assertion" {
			t.Errorf("%s: %+v", name, p)
		}
		if again := w.post(t, TokenPath, c.form); again.status != 400 || again.text("error") != "invalid_request" {
			t.Errorf("%s: replayed: %d %v", name, again.status, again.body)
		}
	}
}

func TestBadAssertionsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.Verifier = assertions{w.verifier, w.clock}
	for text, want := range map[string]int{"forged": 400, "late": 503} {
		if got := w.post(t, TokenPath, samlForm(text)); got.status != want {
			t.Errorf("%s: %d %v", text, got.status, got.body)
		}
	}
	// A token as an assertion, and the other way round.
	if got := w.post(t, TokenPath, samlForm(w.user(t, nil))); got.status != 400 {
		t.Errorf("a JWT as an assertion: %d", got.status)
	}
	if got := w.post(t, TokenPath, exchange("ada", "audience", "orders")); got.status != 400 {
		t.Errorf("an assertion as a JWT: %d", got.status)
	}
	w.Once = func(context.Context, string, time.Duration) error { return errors.New("no store") }
	if got := w.post(t, TokenPath, samlForm("ada")); got.status != 503 {
		t.Errorf("without the store: %d", got.status)
	}
}
