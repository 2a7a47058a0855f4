package postgres

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/internal/access"
)

// grantSessions lets a session live for an hour, and statements as obliged says.
func grantSessions(g *gateway, obliged func(access.Request) access.Obligations) {
	g.policy.mu.Lock()
	g.policy.sessionMax = time.Hour
	g.policy.mu.Unlock()
	g.policy.set(func(r access.Request) access.Decision { return allowed(obliged(r)) })
}

// newToken is the session's principal with another token, from now on.
func (g *gateway) newToken(id string, expires time.Time, groups ...string) {
	p, _ := verifier{}.Verify(context.Background(), access.NewSecret(goodToken))
	p.Token = access.TokenRef{ID: id, ExpiresAt: expires}
	p.Groups = groups
	g.registry.renew(p)
}

// Past its token a session does only what a rule grants it, and what runs when
// the token expires goes on, or not, in the same way.
func TestSessionMax(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64 // of the clock
	g := start(t, "18", func(_ *gateway, _ *Config, d *Deps) {
		d.Clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	grantSessions(g, func(r access.Request) access.Obligations {
		if r.Action.SQL.Command == "VALUES" {
			return access.Obligations{}
		}
		return access.Obligations{SessionMax: 40 * time.Minute}
	})
	g.newToken("sha256:short", time.Now().Add(10*time.Minute))
	conn := g.connect(t, pgx.QueryExecModeSimpleProtocol)
	run := func(text string) error {
		_, err := conn.Exec(t.Context(), text)
		return err
	}
	for _, at := range []struct {
		minutes         time.Duration
		granted, others bool
	}{{9, true, true}, {11, true, false}, {39, true, false}, {41, false, false}} {
		ahead.Store(int64(at.minutes * time.Minute))
		if err := run("select 1"); (err == nil) != at.granted || err != nil && pgError(t, err).Code != sqlstateAuthentication {
			t.Errorf("after %d minutes, a granted statement: %v", at.minutes, err)
		}
		if err := run("values (1)"); (err == nil) != at.others || err != nil && pgError(t, err).Code != sqlstateAuthentication {
			t.Errorf("after %d minutes, another: %v", at.minutes, err)
		}
	}
	g.newToken("sha256:fresh", time.Now().Add(2*time.Hour))
	if err := run("values (1)"); err != nil {
		t.Errorf("with a fresh token: %v", err)
	}
}

// A statement that runs when the token expires is cancelled, unless a rule
// grants more or a fresh token came.
func TestTokenExpiresWhileRunning(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		granted time.Duration
		renewed bool
		cut     bool
	}{
		"neither":     {0, false, true},
		"granted":     {time.Hour, false, false},
		"too little":  {time.Millisecond, false, true},
		"a new token": {0, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := start(t, "18")
			grantSessions(g, func(access.Request) access.Obligations { return access.Obligations{SessionMax: c.granted} })
			conn := g.connect(t, pgx.QueryExecModeSimpleProtocol)
			g.newToken("sha256:short", time.Now().Add(500*time.Millisecond))
			done := make(chan error, 1)
			go func() {
				_, err := conn.Exec(t.Context(), "select pg_sleep(1.5), '"+name+"'")
				done <- err
			}()
			eventually(t, "it runs", func() bool { return g.running(t, "'"+name+"'") == "1" })
			if c.renewed {
				g.newToken("sha256:fresh", time.Now().Add(time.Hour))
			}
			err := <-done
			if (err != nil) != c.cut || c.cut && pgError(t, err).Code != sqlstateAuthentication {
				t.Errorf("it ends with %v", err)
			}
			if c.cut {
				return
			}
			if _, err := conn.Exec(t.Context(), "select 1"); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// What is masked follows the fresh token's groups.
func TestRenewedPrincipalIsJudged(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	var seen atomic.Value
	g.policy.set(func(r access.Request) access.Decision {
		seen.Store(r.Principal)
		return allowed(access.Obligations{})
	})
	conn := g.connect(t, pgx.QueryExecModeSimpleProtocol)
	g.newToken("sha256:fresh", time.Now().Add(time.Hour), "others")
	if _, err := conn.Exec(t.Context(), "select 1"); err != nil {
		t.Fatal(err)
	}
	p := seen.Load().(access.Principal)
	if len(p.Groups) != 1 || p.Groups[0] != "others" || p.Token.ID != "sha256:fresh" {
		t.Errorf("judged as %+v", p)
	}
	decided := g.recorder.all()
	last := decided[len(decided)-1]
	for i := len(decided) - 1; i >= 0 && last.Decided == nil; i-- {
		last = decided[i]
	}
	if last.Decided == nil || last.Decided.Request.Principal.Token.ID != "sha256:fresh" {
		t.Errorf("recorded %+v", last)
	}
}
