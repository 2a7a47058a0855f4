package session

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/store"
	"chaperone.dev/chaperone/internal/store/storetest"
)

var operator = access.Principal{Issuer: "dex", Subject: "sub-olga", User: "olga@example.com"}

func TestSelector(t *testing.T) {
	t.Parallel()
	s := access.Session{ID: "ses_1", Resource: access.Resource{Name: "orders"}, Principal: access.Principal{
		Issuer: "dex", Subject: "sub", User: "Alice@example.com", Subagent: "agent", Workflow: "nightly", Token: access.TokenRef{ID: "sha256:t"},
		Chain: []access.Hop{{Issuer: "dex", Subject: "carol-sub", User: "carol@example.com", Actor: "planner", Parent: "sha256:parent", ActorToken: "sha256:actor"}}}}
	for name, test := range map[string]struct {
		selector Selector
		want     bool
	}{
		"nothing":            {Selector{}, false},
		"all":                {Selector{All: true}, true},
		"all and more":       {Selector{All: true, User: "alice@example.com"}, false},
		"session":            {Selector{Session: "ses_1"}, true},
		"another session":    {Selector{Session: "ses_2"}, false},
		"token":              {Selector{Token: "sha256:t"}, true},
		"parent token":       {Selector{Token: "sha256:parent"}, true},
		"another token":      {Selector{Token: "sha256:x"}, false},
		"principal":          {Selector{Principal: s.Principal.Key()}, true},
		"subject":            {Selector{Principal: "sub"}, true},
		"part of a subject":  {Selector{Principal: "su"}, false},
		"user":               {Selector{User: "alice@EXAMPLE.com"}, true},
		"user of the chain":  {Selector{User: "carol@example.com"}, true},
		"another user":       {Selector{User: "bob@example.com"}, false},
		"subagent":           {Selector{Subagent: "agent"}, true},
		"actor of the chain": {Selector{Subagent: "planner"}, true},
		"another subagent":   {Selector{Subagent: "x"}, false},
		"workflow":           {Selector{Workflow: "nightly"}, true},
		"another workflow":   {Selector{Workflow: "x"}, false},
		"chain by actor":     {Selector{Chain: "planner"}, true},
		"chain by subject":   {Selector{Chain: "carol-sub"}, true},
		"chain by token":     {Selector{Chain: "sha256:parent"}, true},
		"actor's token":      {Selector{Token: "sha256:actor"}, true},
		"another chain":      {Selector{Chain: "agent"}, false},
		"resource":           {Selector{Resource: "orders"}, true},
		"another resource":   {Selector{Resource: "billing"}, false},
		"both":               {Selector{User: "alice@example.com", Resource: "orders"}, true},
		"only one of both":   {Selector{User: "alice@example.com", Resource: "billing"}, false},
	} {
		if got := test.selector.Matches(s); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A kill ends what it names at every replica, and nothing else.
func TestKill(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, nil)
		here, there, other := opened(t, p.one, p.session("alice")), opened(t, p.two, p.session("alice")), opened(t, p.two, p.session("zoe"))
		n, err := p.one.Kill(t.Context(), Selector{User: "ALICE@example.com"}, "suspicious\x1b[31m queries", operator)
		if err != nil || n != 2 {
			t.Fatalf("killed %d, %v", n, err)
		}
		for name, d := range map[string]*access.Denial{"here": ends(t, here), "there": ends(t, there)} {
			if d.Reason != access.SessionEnded || d.Message != "an operator ended this session: suspicious [31m queries" || d.Resource != "orders" {
				t.Errorf("%s: %+v", name, d)
			}
		}
		lives(t, other)
		p.clock.Advance(time.Second)
		again := opened(t, p.two, p.session("alice")) // with a new token: it is not a ban
		clocktest.Eventually(t, func() error {
			if list, err := p.one.List(t.Context()); err != nil || len(list) != 2 {
				return fmt.Errorf("%d sessions, %w", len(list), err)
			}
			return nil
		})
		lives(t, again)
		if n, err := p.two.Kill(t.Context(), Selector{All: true}, "", operator); err != nil || n != 2 {
			t.Fatalf("killed %d, %v", n, err)
		}
		ends(t, again)
		ends(t, other)
		for _, sel := range []Selector{{}, {All: true, User: "x"}} {
			if _, err := p.one.Kill(t.Context(), sel, "", operator); err == nil {
				t.Errorf("took %+v", sel)
			}
		}
	})
}

// A session that was accepted before the kill and opens after it is refused.
func TestKillMeetsOpening(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	accepted, unrelated := p.session("alice"), p.session("zoe")
	p.clock.Advance(time.Second)
	_, err := p.two.Kill(t.Context(), Selector{User: "alice@example.com"}, "", operator)
	ok(t, err)
	clocktest.Eventually(t, func() error {
		_, end, err := p.one.Open(t.Context(), accepted)
		if err == nil {
			end("")
			return fmt.Errorf("opened")
		}
		return nil
	})
	_, _, err = p.one.Open(t.Context(), accepted)
	if d := denialOf(t, err); d.Reason != access.SessionEnded {
		t.Fatalf("%+v", d)
	}
	opened(t, p.one, unrelated)
	p.clock.Advance(2 * skew)
	opened(t, p.one, p.session("alice"))
}

// A revoked token is refused until it expires, at replicas that start later
// too, and a token that was exchanged from it as well.
func TestTokenStaysRevoked(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, nil)
		ctx := opened(t, p.one, p.session("alice"))
		token := p.principal("alice").Token.ID
		n, err := p.two.Kill(t.Context(), Selector{Token: token}, "stolen", operator)
		if err != nil || n != 1 {
			t.Fatalf("killed %d, %v", n, err)
		}
		ends(t, ctx)
		p.clock.Advance(10 * time.Minute)
		late, _ := p.start(t, "late", p.stores[0], nil)
		child := p.session("bob")
		child.Principal.Chain = []access.Hop{{Parent: token}}
		for name, r := range map[string]*Registry{"one": p.one, "two": p.two, "late": late} {
			for _, s := range []access.Session{p.session("alice"), child} {
				_, _, err := r.Open(t.Context(), s)
				if d := denialOf(t, err); d.Reason != access.SessionEnded {
					t.Fatalf("%s: %+v", name, d)
				}
			}
			opened(t, r, p.session("zoe"))
		}
		p.clock.Advance(22 * time.Minute) // the token is no good any more: nothing to remember
		for _, r := range []*Registry{p.one, p.two, late} {
			ok(t, r.forgetOnce(t.Context()))
			if len(r.revoked.byID) != 0 {
				t.Fatalf("remembered %v", r.revoked.byID)
			}
		}
		page, err := p.stores[0].List(t.Context(), revokePrefix, "", 10)
		if err != nil || len(page.Items) != 0 {
			t.Fatalf("stored %v, %v", page.Items, err)
		}
	})
}

// Whoever is named loses the tokens got until then, and what was exchanged from
// them, and nothing else; a session or a resource that is named costs no token.
func TestRevoked(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	alice, zoe := p.principal("alice"), p.principal("zoe")
	child := p.principal("zoe")
	child.Token.ID, child.Chain = "sha256:child", []access.Hop{{Issuer: "dex", Subject: "sub-planner", Actor: "planner", Parent: zoe.Token.ID}}
	timeless := p.principal("alice")
	timeless.Token.IssuedAt = time.Time{}
	asked := func(who access.Principal) bool {
		revoked, err := p.two.Revoked(t.Context(), who)
		ok(t, err)
		return revoked
	}
	kill := func(sel Selector, who access.Principal) {
		t.Helper()
		_, err := p.one.Kill(t.Context(), sel, "", operator)
		ok(t, err)
		clocktest.Eventually(t, func() error {
			if !asked(who) {
				return fmt.Errorf("%+v does not reach the other replica", sel)
			}
			return nil
		})
	}
	for _, sel := range []Selector{{Session: "ses_1"}, {Resource: "orders"}, {Resource: "orders", User: "alice@example.com"}, {All: true}} {
		_, err := p.one.Kill(t.Context(), sel, "", operator)
		ok(t, err)
	}
	kill(Selector{User: "alice@example.com"}, alice)
	if !asked(timeless) || asked(zoe) || asked(child) {
		t.Error("not exactly alice's tokens are revoked")
	}
	p.clock.Advance(time.Second)
	if asked(p.principal("alice")) {
		t.Error("a newer token is revoked too")
	}
	kill(Selector{Chain: "planner"}, child)
	if asked(zoe) {
		t.Error("the parent is revoked with the child")
	}
	sibling := child
	sibling.Token.ID, sibling.Chain = "sha256:sibling", []access.Hop{{Actor: "other", Parent: zoe.Token.ID}}
	kill(Selector{Token: zoe.Token.ID}, sibling)
	if !asked(zoe) {
		t.Error("the token itself is not revoked")
	}
	p.stop[1]()
	if _, err := p.two.Revoked(t.Context(), zoe); err == nil {
		t.Error("a registry that has stopped knows")
	}
}

// A replica that missed the feed's entries reads the kill from the store.
func TestKillAfterTrim(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	p.stop[1]()
	two, err := New(Config{Store: e, Clock: p.clock.Now}) // not following
	ok(t, err)
	two.hear()
	ctx := opened(t, two, p.session("alice"))
	p.clock.Advance(10 * time.Second)
	_, err = p.one.Kill(t.Context(), Selector{User: "alice@example.com"}, "", operator)
	ok(t, err)
	p.clock.Advance(10 * time.Second)
	after := opened(t, two, p.session("alice"))
	lives(t, ctx)
	_, err = two.reload(t.Context())
	ok(t, err)
	ends(t, ctx)
	lives(t, after)
}

// With the store gone a kill still ends the sessions of its replica, and says
// that others may live.
func TestKillWithoutStore(t *testing.T) {
	t.Parallel()
	server := storetest.StartRedis(t)
	config := store.RedisConfig{URL: access.NewSecret(server.URL()), Key: store.NewKey(), Timeout: 300 * time.Millisecond}
	p := newPair(t, [2]store.Store{storetest.Redis(t, config), storetest.Redis(t, config)}, func(c *Config) { c.LeaseTTL = time.Minute })
	ctx := opened(t, p.one, p.session("alice"))
	server.Kill()
	n, err := p.one.Kill(t.Context(), Selector{All: true}, "", operator)
	if err == nil || n != 1 {
		t.Fatalf("killed %d, %v", n, err)
	}
	ends(t, ctx)
}

// From Kill at one replica to the end of a session at another: p99 is to be
// below 250 ms. Measured on Redis; the bound here leaves room for a busy
// machine.
func TestKillLatency(t *testing.T) {
	t.Parallel()
	server := storetest.StartRedis(t)
	config := store.RedisConfig{URL: access.NewSecret(server.URL()), Key: store.NewKey()}
	p := newPair(t, [2]store.Store{storetest.Redis(t, config), storetest.Redis(t, config)}, nil)
	const rounds = 50
	took := make([]time.Duration, rounds)
	for i := range rounds {
		s := p.session(fmt.Sprint("user", i))
		ctx := opened(t, p.two, s)
		began := time.Now()
		_, err := p.one.Kill(t.Context(), Selector{Session: s.ID}, "", operator)
		ok(t, err)
		ends(t, ctx)
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	t.Logf("median %s, most %s", took[rounds/2], took[rounds-1])
	if took[rounds/2] > 250*time.Millisecond {
		t.Errorf("median %s", took[rounds/2])
	}
}

// Opening, closing, killing and listing at once: no session survives the last
// kill, and nothing is left behind.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, nil)
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				r := []*Registry{p.one, p.two}[i%2]
				ctx, end, err := r.Open(t.Context(), p.session(fmt.Sprint("user", i%4)))
				if err != nil {
					if !strings.Contains(err.Error(), "an operator ended") {
						t.Error(err)
					}
					return
				}
				if i%3 == 0 {
					end("done")
				}
				<-ctx.Done()
				end("over")
			})
			if i%10 == 0 {
				wg.Go(func() {
					if _, err := p.one.Kill(t.Context(), Selector{User: fmt.Sprintf("user%d@example.com", i%4)}, "", operator); err != nil {
						t.Error(err)
					}
				})
			}
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		clocktest.Eventually(t, func() error {
			if _, err := p.two.Kill(t.Context(), Selector{All: true}, "", operator); err != nil {
				return err
			}
			select {
			case <-done:
				return nil
			default:
				return fmt.Errorf("sessions live on")
			}
		})
		for _, r := range []*Registry{p.one, p.two} {
			r.mu.Lock()
			if len(r.live)+len(r.perPrincipal) != 0 {
				t.Errorf("%d sessions left", len(r.live))
			}
			r.mu.Unlock()
		}
		clocktest.Eventually(t, func() error {
			if list, err := p.one.List(t.Context()); err != nil || len(list) != 0 {
				return fmt.Errorf("%d listed, %w", len(list), err)
			}
			return nil
		})
	})
}
