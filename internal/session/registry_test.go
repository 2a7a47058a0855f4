package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/store"
	"chaperone.dev/chaperone/internal/store/storetest"
)

func TestOpenListClose(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		registry := prometheus.NewPedanticRegistry()
		p := open(t, func(c *Config) {
			if c.Replica == "one" {
				c.Registerer = registry
			}
		})
		type key struct{}
		s := p.session("alice")
		ctx, end, err := p.one.Open(context.WithValue(t.Context(), key{}, "kept"), s)
		ok(t, err)
		if ctx.Value(key{}) != "kept" {
			t.Fatal("the session's context is not the caller's")
		}
		other := opened(t, p.two, p.session("zoe"))
		for _, r := range []*Registry{p.one, p.two} {
			list, err := r.List(t.Context())
			if err != nil || len(list) != 2 {
				t.Fatalf("%d sessions, %v", len(list), err)
			}
			for _, got := range list {
				if got.ID == s.ID && (got.Principal.User != s.Principal.User || !got.Deadline.Equal(s.Deadline) || got.Client != s.Client) {
					t.Fatalf("listed %+v", got)
				}
			}
		}
		ok(t, p.one.Check(s.ID))
		end("client left")
		end("twice")
		if d := ends(t, ctx); d.Reason != access.SessionEnded || !strings.Contains(d.Message, "client left") {
			t.Fatalf("cause %+v", d)
		}
		if p.one.Check(s.ID) == nil {
			t.Fatal("a closed session passes")
		}
		clocktest.Eventually(t, func() error {
			if list, err := p.two.List(t.Context()); err != nil || len(list) != 1 {
				return fmt.Errorf("%d sessions, %w", len(list), err)
			}
			return nil
		})
		lives(t, other)
		if len(p.one.live)+len(p.one.perPrincipal) != 0 {
			t.Fatal("something is left")
		}
		families, err := registry.Gather()
		if err != nil || len(families) < 2 {
			t.Fatalf("metrics %v, %v", families, err)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, func(c *Config) { c.MaxSessions, c.MaxPerPrincipal = 4, 3 })
	first := p.session("alice")
	opened(t, p.one, first)
	for name, test := range map[string]struct {
		change func(s *access.Session)
		want   access.Reason
	}{
		"no id":       {func(s *access.Session) { s.ID = "" }, access.Unavailable},
		"bad id":      {func(s *access.Session) { s.ID = "a b" }, access.Unavailable},
		"same id":     {func(s *access.Session) { s.ID = first.ID }, access.Unavailable},
		"no deadline": {func(s *access.Session) { s.Deadline = time.Time{} }, access.Unavailable},
		"over":        {func(s *access.Session) { s.Deadline = p.clock.Now() }, access.SessionEnded},
	} {
		s := p.session("alice")
		test.change(&s)
		_, _, err := p.one.Open(t.Context(), s)
		if d := denialOf(t, err); d.Reason != test.want || d.Resource != "orders" {
			t.Errorf("%s: %+v", name, d)
		}
	}
	opened(t, p.one, p.session("alice"))
	_, end, err := p.one.Open(t.Context(), p.session("alice"))
	ok(t, err)
	_, _, err = p.one.Open(t.Context(), p.session("alice"))
	if d := denialOf(t, err); d.Reason != access.LimitExceeded {
		t.Errorf("a fourth session: %+v", d)
	}
	opened(t, p.one, p.session("zoe"))
	_, _, err = p.one.Open(t.Context(), p.session("yves"))
	if d := denialOf(t, err); d.Reason != access.Unavailable {
		t.Errorf("a fifth session: %+v", d)
	}
	end("") // makes room
	opened(t, p.one, p.session("yves"))
	many := p.session("groups")
	for i := range 1000 {
		many.Principal.Groups = append(many.Principal.Groups, strings.Repeat("g", 1000)+fmt.Sprint(i))
	}
	opened(t, p.two, many)
	if _, err := New(Config{Store: e, LeaseTTL: time.Second}); err == nil {
		t.Error("took leases that end before the feed is known to be lost")
	}
	idle, err := New(Config{Store: e})
	ok(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err = idle.Open(ctx, p.session("alice"))
	if d := denialOf(t, err); d.Reason != access.Unavailable {
		t.Errorf("a registry that does not run: %+v", d)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	s := p.session("alice")
	ctx := opened(t, p.one, s)
	short := p.session("zoe")
	short.Deadline = p.clock.Now().Add(50 * time.Millisecond)
	if d := ends(t, opened(t, p.one, short)); d.Reason != access.SessionEnded { // the clock stands still: by the timer
		t.Fatalf("%+v", d)
	}
	p.clock.Advance(-time.Hour) // not put off
	p.clock.Advance(time.Hour + 29*time.Minute)
	ok(t, p.one.Check(s.ID))
	p.clock.Advance(time.Minute)
	if d := denialOf(t, p.one.Check(s.ID)); d.Reason != access.SessionEnded { // at its use, before any timer
		t.Fatalf("%+v", d)
	}
	ends(t, ctx)
	watched := p.session("yves")
	ctx = opened(t, p.one, watched)
	p.clock.Advance(time.Hour) // nobody uses it: by the clock
	ends(t, ctx)
	p.clock.Advance(-time.Hour)
	if p.one.Check(watched.ID) == nil {
		t.Fatal("the clock went back and revived it")
	}
}

// With the store gone, sessions end within 5 s and nothing opens; when it is
// back, sessions open again.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct{ begin, end func(t *testing.T, s faulty) }{
		"dead":   {func(_ *testing.T, s faulty) { s.Kill() }, func(t *testing.T, s faulty) { ok(t, s.Start(t.Context())) }},
		"silent": {func(t *testing.T, s faulty) { ok(t, s.Pause()) }, func(t *testing.T, s faulty) { ok(t, s.Resume()) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := storetest.StartRedis(t)
			config := store.RedisConfig{URL: access.NewSecret(server.URL()), Key: store.NewKey()}
			p := newPair(t, [2]store.Store{storetest.Redis(t, config), storetest.Redis(t, config)}, nil)
			ctx := opened(t, p.one, p.session("alice"))
			fault.begin(t, server)
			began := time.Now()
			d := ends(t, ctx)
			if took := time.Since(began); took > 5*time.Second || d.Reason != access.Unavailable {
				t.Fatalf("ended after %s: %+v", took, d)
			}
			_, _, err := p.one.Open(t.Context(), p.session("alice"))
			if d := denialOf(t, err); d.Reason != access.Unavailable {
				t.Fatalf("opened without a store: %+v", d)
			}
			fault.end(t, server)
			clocktest.Eventually(t, func() error {
				_, end, err := p.one.Open(t.Context(), p.session("alice"))
				if err == nil {
					end("")
				}
				return err
			})
		})
	}
}

type faulty interface {
	Kill()
	Start(context.Context) error
	Pause() error
	Resume() error
}

// A meddled store fails or delays what a test wants.
type meddled struct {
	store.Store
	deaf    atomic.Bool
	acquire func() // before each Acquire; may be nil
}

func (m *meddled) Read(ctx context.Context, topic string, after store.Position, limit int) ([]store.Entry, error) {
	if m.deaf.Load() {
		return nil, store.ErrUnavailable
	}
	return m.Store.Read(ctx, topic, after, limit)
}

func (m *meddled) Tail(ctx context.Context, topic string) (store.Position, error) {
	if m.deaf.Load() {
		return 0, store.ErrUnavailable
	}
	return m.Store.Tail(ctx, topic)
}

func (m *meddled) Acquire(_ context.Context, key, owner string, value []byte, ttl time.Duration) error {
	if m.acquire != nil {
		m.acquire()
	}
	return m.Store.Acquire(context.Background(), key, owner, value, ttl)
}

// A replica that kills do not reach ends its sessions, though it could renew
// their leases.
func TestDeaf(t *testing.T) {
	t.Parallel()
	s := &meddled{Store: storetest.Embedded(t)}
	p := newPair(t, [2]store.Store{s, s}, nil)
	ctx := opened(t, p.one, p.session("alice"))
	began := time.Now()
	s.deaf.Store(true)
	if d := ends(t, ctx); d.Reason != access.Unavailable || time.Since(began) > 5*time.Second {
		t.Fatalf("after %s: %+v", time.Since(began), d)
	}
	s.deaf.Store(false)
	clocktest.Eventually(t, func() error {
		_, end, err := p.one.Open(t.Context(), p.session("alice"))
		if err == nil {
			end("")
		}
		return err
	})
}

// A kill that comes while the lease is being taken refuses the session.
func TestKillMeetsLease(t *testing.T) {
	t.Parallel()
	s := &meddled{Store: storetest.Embedded(t)}
	p := newPair(t, [2]store.Store{s, s}, func(c *Config) { c.LeaseTTL = time.Minute })
	opened(t, p.one, p.session("zoe")) // both run
	s.acquire = func() {
		if _, err := p.one.Kill(t.Context(), Selector{User: "alice@example.com"}, "", operator); err != nil {
			t.Error(err)
		}
	}
	session := p.session("alice")
	_, _, err := p.one.Open(t.Context(), session)
	if d := denialOf(t, err); d.Reason != access.SessionEnded {
		t.Fatalf("%+v", d)
	}
	clocktest.Eventually(t, func() error { // its lease is given back
		if list, err := p.one.List(t.Context()); err != nil || len(list) != 1 {
			return fmt.Errorf("%d listed, %w", len(list), err)
		}
		return nil
	})
}

// Whoever takes a lease away ends the session.
func TestLeaseLost(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, nil)
		s := p.session("alice")
		ctx := opened(t, p.one, s)
		ok(t, p.stores[1].Release(t.Context(), p.one.owner, leasePrefix+s.ID))
		if d := ends(t, ctx); d.Reason != access.SessionEnded {
			t.Fatalf("%+v", d)
		}
	})
}

// Sessions are renewed: they outlive their first lease, and the death of
// another replica, whose sessions vanish from the list.
func TestLeaseRenewed(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, func(c *Config) { c.LeaseTTL = 3 * time.Second })
		ctx := opened(t, p.one, p.session("alice"))
		dead := p.session("zoe") // of a replica that is killed: nobody renews it, nobody gives it back
		ok(t, p.stores[1].Acquire(t.Context(), leasePrefix+dead.ID, "dead/1", mustEncode(t, dead), 4*time.Second))
		if list, err := p.one.List(t.Context()); err != nil || len(list) != 2 {
			t.Fatalf("listed %v, %v", list, err)
		}
		clocktest.Eventually(t, func() error {
			list, err := p.two.List(t.Context())
			if err != nil || len(list) != 1 || list[0].Principal.User != "alice@example.com" {
				return fmt.Errorf("listed %v, %w", list, err)
			}
			return nil
		})
		lives(t, ctx)
	})
}

func mustEncode(t *testing.T, s access.Session) []byte {
	t.Helper()
	b, err := encode(s)
	ok(t, err)
	return b
}

func TestStop(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func(*testing.T, func(*Config)) *pair) {
		p := open(t, nil)
		ctx := opened(t, p.one, p.session("alice"))
		p.stop[0]()
		if d := ends(t, ctx); d.Reason != access.SessionEnded {
			t.Fatalf("%+v", d)
		}
		if list, err := p.two.List(t.Context()); err != nil || len(list) != 0 {
			t.Fatalf("listed %v, %v", list, err)
		}
		_, _, err := p.one.Open(t.Context(), p.session("alice"))
		if d := denialOf(t, err); d.Reason != access.Unavailable {
			t.Fatalf("opened after the end: %+v", d)
		}
	})
}

// A caller whose context ends gets its own reason, not a kill.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	left := errors.New("client left")
	parent, cancel := context.WithCancelCause(t.Context())
	ctx, end, err := p.one.Open(parent, p.session("alice"))
	ok(t, err)
	defer end("")
	cancel(left)
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, left) {
		t.Fatalf("cause %v", cause)
	}
}
