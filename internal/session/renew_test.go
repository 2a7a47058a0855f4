package session

import (
	"context"
	"errors"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
)

// fresher is the principal with a token that lasts longer by more.
func fresher(p access.Principal, id string, more time.Duration) access.Principal {
	p.Token = access.TokenRef{ID: id, IssuedAt: p.Token.IssuedAt, ExpiresAt: p.Token.ExpiresAt.Add(more), Bound: p.Token.Bound}
	return p
}

// A fresh token of the same principal, chain and address carries a session on,
// also from another replica; nobody else's does.
func TestRenew(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, nil)
		s := p.session("ann")
		s.Principal.Chain = []access.Hop{{Subject: "ann", Actor: "planner", Parent: "tok_1", Attenuation: &access.Attenuation{ReadOnly: true}}}
		s.Principal.Token.Bound = "one certificate"
		ctx := opened(t, p.one, s)
		for name, attack := range map[string]func(*access.Principal, *string){
			"another subject":  func(p *access.Principal, _ *string) { p.Subject = "sub-eve" },
			"another user":     func(p *access.Principal, _ *string) { p.User = "eve@example.com" },
			"another program":  func(p *access.Principal, _ *string) { p.Subagent = "other" },
			"another instance": func(p *access.Principal, _ *string) { p.Instance = "i-2" },
			"another job":      func(p *access.Principal, _ *string) { p.Job = "j-2" },
			"another issuer":   func(p *access.Principal, _ *string) { p.Issuer = "okta" },
			"no chain":         func(p *access.Principal, _ *string) { p.Chain = nil },
			"another actor": func(p *access.Principal, _ *string) {
				p.Chain = []access.Hop{{Subject: "ann", Actor: "thief", Attenuation: s.Principal.Chain[0].Attenuation}}
			},
			"a wider chain":                  func(p *access.Principal, _ *string) { p.Chain = []access.Hop{{Subject: "ann", Actor: "planner"}} },
			"another address":                func(_ *access.Principal, from *string) { *from = "10.0.0.2" },
			"a bearer token for a bound one": func(p *access.Principal, _ *string) { p.Token.Bound = "" },
			"no address":                     func(_ *access.Principal, from *string) { *from = "" },
			"one that ends earlier": func(p *access.Principal, _ *string) {
				p.Token.ExpiresAt = s.Principal.Token.ExpiresAt.Add(-time.Second)
			},
		} {
			who, from := fresher(s.Principal, "sha256:fresh", time.Hour), "10.0.0.1"
			attack(&who, &from)
			n, err := p.two.Renewable(t.Context(), who, from)
			ok(t, err)
			ok(t, p.two.Renew(t.Context(), who, from))
			if n != 0 {
				t.Errorf("%s: %d sessions", name, n)
			}
		}
		who := fresher(s.Principal, "sha256:fresh", time.Hour)
		who.Chain = []access.Hop{{Subject: "ann", Actor: "planner", Parent: "tok_2", Attenuation: &access.Attenuation{ReadOnly: true}}}
		who.Groups, who.Token.Bound = []string{"others"}, "the next certificate"
		if n, err := p.two.Renewable(t.Context(), who, "10.0.0.1"); err != nil || n != 1 {
			t.Fatalf("%d sessions, %v", n, err)
		}
		if now, _ := p.one.Principal(s.ID); now.Token.ID != s.Principal.Token.ID {
			t.Fatalf("an attack renewed it: %+v", now)
		}
		ok(t, p.two.Renew(t.Context(), who, "10.0.0.1"))
		until(t, func() bool {
			now, _ := p.one.Principal(s.ID)
			return now.Token.ID == "sha256:fresh" && now.Groups[0] == "others"
		})
		until(t, func() bool { // other replicas see it in the lease
			all, err := p.two.List(t.Context())
			return err == nil && len(all) == 1 && all[0].Principal.Token.ID == "sha256:fresh"
		})
		p.clock.Advance(45 * time.Minute) // beyond the first token
		ok(t, p.one.Check(s.ID))
		lives(t, ctx)
		p.clock.Advance(46 * time.Minute) // beyond the second
		if d := ends(t, ctx); d.Reason != access.SessionEnded {
			t.Errorf("it ends with %v", d)
		}
	})
}

// A session can be renewed for a day, and ended by any token that it had.
func TestRenewedEnds(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, nil)
		for name, sel := range map[string]Selector{
			"the first token":             {Token: "sha256:token-ann"},
			"what the first came from":    {Token: "tok_parent"},
			"by the chain":                {Chain: "tok_parent"},
			"the first token and more":    {Token: "sha256:token-ann", User: "ann@example.com"},
			"the fresh one":               {Token: "sha256:fresh"},
			"who, whatever the token was": {User: "ann@example.com"},
		} {
			s := p.session("ann")
			s.Principal.Chain = []access.Hop{{Actor: "planner", Parent: "tok_parent"}}
			ctx := opened(t, p.two, s)
			who := fresher(s.Principal, "sha256:fresh", 48*time.Hour)
			who.Chain = []access.Hop{{Actor: "planner", Parent: "tok_other"}}
			p.two.renewMatching(&renewal{Principal: who, Client: "10.0.0.1"})
			p.two.mu.Lock()
			until := p.two.live[s.ID].session.Deadline
			p.two.mu.Unlock()
			if want := s.Opened.Add(24 * time.Hour); !until.Equal(want) {
				t.Errorf("%s: it lasts until %s, not %s", name, until, want)
			}
			_, err := p.one.Kill(context.Background(), Selector{Token: "sha256:token-ann", User: "eve@example.com"}, "", operator)
			ok(t, err)
			lives(t, ctx)
			_, err = p.one.Kill(context.Background(), sel, "stolen", operator)
			ok(t, err)
			ends(t, ctx)
			p.clock.Advance(25 * time.Hour) // what was revoked is forgotten
		}
	})
}

// A fresh token that was taken back renews nothing.
func TestRevokedRenewsNothing(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, nil)
		s := p.session("ann")
		ctx := opened(t, p.one, s)
		who := fresher(s.Principal, "sha256:fresh", time.Hour)
		ok(t, p.one.RevokeToken(t.Context(), who, "stolen"))
		ok(t, p.one.Renew(t.Context(), who, "10.0.0.1"))
		if now, _ := p.one.Principal(s.ID); now.Token.ID != s.Principal.Token.ID {
			t.Errorf("renewed with %s", now.Token.ID)
		}
		lives(t, ctx)
	})
}

// until waits for what another goroutine does.
func until(t *testing.T, done func() bool) {
	t.Helper()
	clocktest.Eventually(t, func() error {
		if !done() {
			return errors.New("it did not happen")
		}
		return nil
	})
}
