package extauthz

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// A world is everything around a Server. Its steps are what was asked of it, in
// order.
type world struct {
	decide     func(access.Request) access.Decision
	mayConnect bool
	verify     func(token string) (access.Principal, error)
	recordErr  error
	sessionErr error
	session    context.Context
	wait       func(ctx context.Context, a access.Approval) (access.Approval, error)
	askErr     error
	consumeErr error
	detachErr  error

	mu        sync.Mutex
	steps     []string
	events    []access.Event
	live      map[string]access.Approval // by digest
	abandoned []error                    // state of the context of each Abandon
	metrics   *prometheus.Registry
}

func newWorld() *world {
	return &world{
		mayConnect: true, session: context.Background(), live: map[string]access.Approval{}, metrics: prometheus.NewRegistry(),
		decide: func(access.Request) access.Decision {
			return access.Decision{Effect: access.Allow, Rules: rule("read")}
		},
		verify: func(token string) (access.Principal, error) {
			return access.Principal{Issuer: "dex", Subject: "sub-" + token, User: "ann@example.com", Subagent: "agent",
				Token: access.TokenRef{ID: token, ExpiresAt: start.Add(time.Hour)}}, nil
		},
		wait: func(ctx context.Context, a access.Approval) (access.Approval, error) {
			<-ctx.Done()
			return a, ctx.Err()
		},
	}
}

func rule(name string) []access.RuleRef {
	return []access.RuleRef{{Policy: "p", Rule: name, Hash: "h-" + name}}
}

func approve(name string) func(access.Request) access.Decision {
	return func(access.Request) access.Decision {
		return access.Decision{Effect: access.Approve, Rules: rule(name), Obligations: access.Obligations{Approval: &access.ApprovalTerms{Count: 1}}}
	}
}

// answers makes Wait return the state at once.
func answers(s access.ApprovalState) func(context.Context, access.Approval) (access.Approval, error) {
	return func(_ context.Context, a access.Approval) (access.Approval, error) {
		a.State = s
		return a, nil
	}
}

func (w *world) step(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps = append(w.steps, fmt.Sprintf(format, args...))
}

func (w *world) Verify(_ context.Context, token access.Secret) (access.Principal, error) {
	w.step("verify")
	return w.verify(token.Reveal())
}

func (w *world) Resource(name string) (access.Resource, bool) {
	switch name {
	case "billing":
		return access.Resource{Name: "billing", Kind: access.HTTP}, true
	case "orders":
		return access.Resource{Name: "orders", Kind: access.Postgres}, true
	case "web":
		return access.Resource{Name: "web", Kind: access.SSH}, true
	case "cluster":
		return access.Resource{Name: "cluster", Kind: access.Kubernetes}, true
	}
	return access.Resource{}, false
}

func (w *world) Decide(_ context.Context, r access.Request) access.Decision {
	w.step("decide")
	return w.decide(r)
}

func (w *world) MayConnect(context.Context, access.Principal, access.Resource) bool {
	return w.mayConnect
}

func (w *world) Append(ctx context.Context, d access.Durability, evs ...access.Event) error {
	var names []string
	for _, e := range evs {
		names = append(names, e.Type())
	}
	w.step("append %s", strings.Join(names, "+"))
	if d != access.Synced {
		return errors.New("not synced")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.recordErr != nil {
		return w.recordErr
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, evs...)
	return nil
}

func (w *world) For(context.Context, access.Principal, access.Resource, string) (string, context.Context, func(), error) {
	if w.sessionErr != nil {
		return "", nil, nil, w.sessionErr
	}
	w.step("session")
	return "ses_1", w.session, func() { w.step("release") }, nil
}

func (w *world) Ask(_ context.Context, ask access.Ask) (access.Approval, error) {
	w.step("ask leased=%v", ask.Leased)
	if w.askErr != nil {
		return access.Approval{}, w.askErr
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	digest := access.AskDigest(ask)
	if a, ok := w.live[digest]; ok {
		return a, nil
	}
	a := access.Approval{ID: ask.Request.ID, Digest: digest, State: access.Pending, Ask: ask, Expires: start.Add(15 * time.Minute)}
	w.live[digest] = a
	return a, nil
}

func (w *world) Standing(_ context.Context, ask access.Ask) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.live[access.AskDigest(ask)]
	return ok
}

func (w *world) Wait(ctx context.Context, id string) (access.Approval, error) {
	w.step("wait")
	w.mu.Lock()
	var a access.Approval
	for _, l := range w.live {
		if l.ID == id {
			a = l
		}
	}
	w.mu.Unlock()
	return w.wait(ctx, a)
}

func (w *world) Consume(_ context.Context, id, digest string) error {
	w.step("consume")
	if w.consumeErr != nil {
		return w.consumeErr
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live[digest].ID != id {
		return approval.ErrDigest
	}
	delete(w.live, digest)
	return nil
}

func (w *world) Abandon(ctx context.Context, _ string) error {
	w.step("abandon")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandoned = append(w.abandoned, ctx.Err())
	return nil
}

func (w *world) Detach(context.Context, string) error {
	w.step("detach")
	return w.detachErr
}

func (w *world) grant(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.live) != 1 {
		t.Fatalf("%d open questions", len(w.live))
	}
	for digest, a := range w.live {
		a.State = access.Granted
		w.live[digest] = a
	}
}

func (w *world) takeSteps() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.steps
	w.steps = nil
	return s
}

func (w *world) server(t *testing.T, edit func(*Config)) *Server {
	t.Helper()
	cfg := Config{Wait: 50 * time.Millisecond, Now: func() time.Time { return start }, Metrics: w.metrics}
	if edit != nil {
		edit(&cfg)
	}
	s, err := New(cfg, Dependencies{w, w, w, w, w, w, w, nil, nil, nil, nil, nil})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
