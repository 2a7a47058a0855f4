package identity

import (
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/localserver"
)

// A real provider: its tokens pass, those for somebody else do not, and after it
// has come back with new keys the new tokens pass and the old ones do not.
func TestDex(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dex, err := localserver.StartDex(ctx, filepath.Join(t.TempDir(), "dex"), localserver.DexConfig{
		People: []localserver.Person{{Email: "alice@example.com", Groups: []string{"orders-agents"}, Workflow: "nightly"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dex.Close() })
	clock := &offsetClock{}
	v := newVerifier(t, Config{Clock: clock.now, Issuers: []Issuer{{
		Name: "dex", URL: dex.Issuer, Audiences: []string{"chaperone"}, Algorithms: []string{"RS256"},
		Skew:   30 * time.Second,
		Claims: Claims{User: "email", Subagent: "azp", Groups: "groups", Workflow: "preferred_username"},
	}}})
	raw, err := dex.Token(ctx, "alice@example.com")
	if err != nil {
		t.Fatal(err)
	}
	before := access.NewSecret(raw)
	got := mustAccept(t, v, before)
	if got.Subject == "" || got.Token.IssuedAt.IsZero() || !got.Token.ExpiresAt.After(time.Now()) {
		t.Errorf("principal %+v", got)
	}
	got.Subject, got.Token = "", access.TokenRef{}
	want := access.Principal{
		Issuer: "dex", User: "alice@example.com", Subagent: "agent", Workflow: "nightly", Groups: []string{"orders-agents"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}

	raw, err = dex.TokenForAgent(ctx, "alice@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(ctx, access.NewSecret(raw)); !errors.Is(err, ErrTokenRejected) ||
		!strings.HasSuffix(err.Error(), "it is for another audience") {
		t.Errorf("a token for another audience: %v", err)
	}

	dex.Kill()
	mustAccept(t, v, before) // known keys serve
	if err := dex.Start(ctx); err != nil {
		t.Fatal(err)
	}
	raw, err = dex.Token(ctx, "alice@example.com")
	if err != nil {
		t.Fatal(err)
	}
	clock.Advance(fetchInterval)
	mustAccept(t, v, access.NewSecret(raw))
	if _, err := v.Verify(ctx, before); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("a token of a removed key: %v", err)
	}
}

// An offsetClock is the machine's, some time later.
type offsetClock struct{ clocktest.Clock }

func (c *offsetClock) now() time.Time { return time.Now().Add(c.Now().Sub(time.Time{})) }
