package approval

import (
	"context"
	"errors"
	"slices"
	"sync"
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

// A memoryRecorder is the recording: what is not in it has not happened.
type memoryRecorder struct {
	mu     sync.Mutex
	events []access.Event
	fail   func(access.Event) error
}

func (r *memoryRecorder) Append(_ context.Context, d access.Durability, events ...access.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if d != access.Synced || e.Approval == nil {
			return errors.New("approvals are recorded synced")
		}
		if r.fail != nil {
			if err := r.fail(e); err != nil {
				return err
			}
		}
	}
	r.events = append(r.events, events...)
	return nil
}

func (r *memoryRecorder) failWith(fail func(access.Event) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = fail
}

// steps returns the recorded states of an approval, in order.
func (r *memoryRecorder) steps(id string) (states []access.ApprovalState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Approval.ID == id {
			states = append(states, e.Approval.State)
		}
	}
	return states
}

// A pair is two replicas over one store, with one recording and one clock.
type pair struct {
	one, two *Service
	stores   [2]store.Store
	clock    *fakeClock
	recorder *memoryRecorder
}

type stores func(t *testing.T) [2]store.Store

func embeddedStores(t *testing.T) [2]store.Store {
	e := storetest.Embedded(t)
	return [2]store.Store{e, e}
}

// onBothStores runs test on the embedded store and on a real Redis.
func onBothStores(t *testing.T, test func(t *testing.T, open stores)) {
	t.Run("embedded", func(t *testing.T) { t.Parallel(); test(t, embeddedStores) })
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := storetest.StartRedis(t)
		test(t, func(t *testing.T) [2]store.Store {
			config := storetest.RedisConfig(server)
			return [2]store.Store{storetest.Redis(t, config), storetest.Redis(t, config)}
		})
	})
}

func newPair(t *testing.T, s [2]store.Store, change func(*Config)) *pair {
	t.Helper()
	p := &pair{stores: s, clock: newFakeClock(), recorder: &memoryRecorder{}}
	service := func(name string, s store.Store) *Service {
		config := Config{Store: s, Recorder: p.recorder, Replica: name, Clock: p.clock.Now, Sweep: 50 * time.Millisecond}
		if change != nil {
			change(&config)
		}
		service, err := New(config)
		ok(t, err)
		return service
	}
	p.one, p.two = service("one", s[0]), service("two", s[1])
	return p
}

// run runs a service until the test ends or the returned function is called.
func run(t *testing.T, s *Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func (p *pair) run(t *testing.T) *pair {
	t.Helper()
	run(t, p.one)
	run(t, p.two)
	return p
}

var requester = access.Principal{
	Issuer: "dex", Subject: "CgVhbGljZQ", User: "alice@example.com", Subagent: "orders-agent", Workflow: "nightly", Groups: []string{"senior"},
	Chain: []access.Hop{{Issuer: "dex", Subject: "CgVjYXJvbA", User: "carol@example.com", Actor: "planner"}},
	Token: access.TokenRef{ID: "sha256:token", ExpiresAt: time.Date(2026, 5, 1, 13, 0, 0, 0, time.UTC)},
}

func reviewer(name string) access.Principal {
	return access.Principal{Issuer: "dex", Subject: "sub-" + name, User: name + "@example.com", Subagent: "chaperone-cli", Groups: []string{"senior", "staff"}}
}

// newAsk returns an ask for a statement; equal n means an identical one.
func newAsk(n string, leased bool, terms access.ApprovalTerms) access.Ask {
	if terms.Groups == nil {
		terms.Groups = []string{"senior"}
	}
	if terms.Expires == 0 {
		terms.Expires = 15 * time.Minute
	}
	return access.Ask{
		Leased:   leased,
		Settings: map[string]string{"role": "app", "search_path": "public"},
		Request: access.Request{
			ID: access.NewRequestID(), Session: "ses_1", Principal: requester,
			Resource: access.Resource{Name: "orders", Kind: access.Postgres, Labels: map[string]string{"env": "prod"}},
			Action: access.Action{SQL: &access.SQL{Text: "update orders set note = '4111111111111111' where id = " + n, Command: "UPDATE",
				Tables: []string{"public.orders"}, Writes: []string{"public.orders"}, HasWhere: true, Statements: 1,
				Parameters: []access.BoundParameter{{Type: 23, Value: n}}}},
		},
		Decision: access.Decision{Effect: access.Approve, Revision: "r1", Rules: []access.RuleRef{{Policy: "orders-agents", Rule: "fix-an-order", Hash: "h1"}},
			Obligations: access.Obligations{Approval: &terms}},
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// wantsState checks that an error says what became of the approval.
func wantsState(t *testing.T, err error, want access.ApprovalState) {
	t.Helper()
	var state *StateError
	if !errors.As(err, &state) || state.State != want {
		t.Fatalf("error %v, want that it is %s", err, want)
	}
}

func isState(t *testing.T, s *Service, id string, want access.ApprovalState) access.Approval {
	t.Helper()
	a, err := s.Get(t.Context(), id)
	ok(t, err)
	if a.State != want {
		t.Fatalf("approval is %s, want %s", a.State, want)
	}
	return a
}

func recorded(t *testing.T, r *memoryRecorder, id string, want ...access.ApprovalState) {
	t.Helper()
	if got := r.steps(id); !slices.Equal(got, want) {
		t.Fatalf("recorded %v, want %v", got, want)
	}
}
