package session

import (
	"context"
	"errors"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/store"
	"chaperone.dev/chaperone/internal/store/storetest"
)

// fakeClock is the clock of both replicas.
type fakeClock = clocktest.Clock

func newFakeClock() *fakeClock { return clocktest.New(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)) }

// A pair is two replicas over one store, both running.
type pair struct {
	one, two *Registry
	stop     [2]func()
	clock    *fakeClock
	stores   [2]store.Store
}

// onBothStores runs test with two replicas on the embedded store and on a real
// Redis.
func onBothStores(t *testing.T, test func(t *testing.T, open func(t *testing.T, change func(*Config)) *pair)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, func(t *testing.T, change func(*Config)) *pair {
			e := storetest.Embedded(t)
			return newPair(t, [2]store.Store{e, e}, change)
		})
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := storetest.StartRedis(t)
		test(t, func(t *testing.T, change func(*Config)) *pair {
			config := storetest.RedisConfig(server)
			return newPair(t, [2]store.Store{storetest.Redis(t, config), storetest.Redis(t, config)}, change)
		})
	})
}

func newPair(t *testing.T, s [2]store.Store, change func(*Config)) *pair {
	t.Helper()
	p := &pair{clock: newFakeClock(), stores: s}
	p.one, p.stop[0] = p.start(t, "one", s[0], change)
	p.two, p.stop[1] = p.start(t, "two", s[1], change)
	return p
}

func (p *pair) start(t *testing.T, name string, s store.Store, change func(*Config)) (*Registry, func()) {
	t.Helper()
	config := Config{Store: s, Replica: name, Clock: p.clock.Now, CountWithin: time.Minute}
	if change != nil {
		change(&config)
	}
	r, err := New(config)
	ok(t, err)
	return r, run(t, r.Run)
}

// run runs fn until the test ends or the returned function is called.
func run(t *testing.T, fn func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := fn(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func (p *pair) principal(user string) access.Principal {
	return access.Principal{Issuer: "dex", Subject: "sub-" + user, User: user + "@example.com", Subagent: "orders-agent", Workflow: "nightly",
		Groups: []string{"agents"}, Token: access.TokenRef{ID: "sha256:token-" + user, IssuedAt: p.clock.Now(), ExpiresAt: p.clock.Now().Add(30 * time.Minute)}}
}

func (p *pair) session(user string) access.Session {
	return access.Session{ID: access.NewSessionID(), Principal: p.principal(user), Resource: access.Resource{Name: "orders", Kind: access.Postgres},
		Client: "10.0.0.1:5", Opened: p.clock.Now(), Deadline: p.clock.Now().Add(30 * time.Minute)}
}

// opened opens a session and closes it when the test ends.
func opened(t *testing.T, r *Registry, s access.Session) context.Context {
	t.Helper()
	ctx, end, err := r.Open(context.Background(), s)
	ok(t, err)
	t.Cleanup(func() { end("test over") })
	return ctx
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ends waits for a session to end and returns the denial.
func ends(t *testing.T, ctx context.Context) *access.Denial {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	select {
	case <-ctx.Done():
	case <-limit.C:
		t.Fatal("the session did not end")
	}
	return denialOf(t, context.Cause(ctx))
}

func denialOf(t *testing.T, err error) *access.Denial {
	t.Helper()
	var denial *access.Denial
	if !errors.As(err, &denial) {
		t.Fatalf("%v is no denial", err)
	}
	return denial
}

func lives(t *testing.T, ctx context.Context) {
	t.Helper()
	if err := ctx.Err(); err != nil {
		t.Fatalf("the session ended: %v", context.Cause(ctx))
	}
}
