// Package datapath_test drives the resources of xds and the answers of extauthz
// through a real Envoy. Attacks have a control, the same bytes straight at the
// target, and a benign twin.
package datapath_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/extauthz"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
	"chaperone.dev/chaperone/internal/identity"
)

const bearer = "Authorization: Bearer good"

// A world is what extauthz asks: tokens, policy, approvals, sessions. Every
// token but "good" and "other" is rejected.
type world struct {
	decide func(access.Request) access.Decision

	mu        sync.Mutex
	events    []access.Event
	asked     []access.Approval
	answered  chan access.ApprovalState
	waiting   chan string
	abandoned chan string
}

func newWorld() *world {
	return &world{
		decide:   allowAll,
		answered: make(chan access.ApprovalState, 1), waiting: make(chan string, 8), abandoned: make(chan string, 8),
	}
}

func allowAll(access.Request) access.Decision {
	return access.Decision{Effect: access.Allow, Rules: []access.RuleRef{{Policy: "test", Rule: "all"}},
		Obligations: access.Obligations{Masks: []access.Mask{{JSON: "/ssn"}}}}
}

func denial() access.Decision {
	return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "no rule allows this"}
}

// below allows what lies below the prefix.
func below(prefix string) func(access.Request) access.Decision {
	return func(r access.Request) access.Decision {
		if strings.HasPrefix(r.Action.HTTP.Path, prefix) {
			return allowAll(r)
		}
		return denial()
	}
}

func approveAll(access.Request) access.Decision {
	return access.Decision{Effect: access.Approve, Rules: []access.RuleRef{{Policy: "test", Rule: "ask"}},
		Obligations: access.Obligations{Approval: &access.ApprovalTerms{Groups: []string{"reviewers"}, Count: 1, Expires: time.Hour}}}
}

func (w *world) server(t testing.TB, wait time.Duration) *extauthz.Server {
	t.Helper()
	s, err := extauthz.New(extauthz.Config{Wait: wait, Logger: logger(t)}, extauthz.Dependencies{
		Verifier: w, Resources: w, Decider: w, Recorder: w, Approvals: w, Departures: w, Sessions: w})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) Verify(_ context.Context, token access.Secret) (access.Principal, error) {
	if t := token.Reveal(); t == "good" || t == "other" {
		return access.Principal{Issuer: "dex", Subject: t, User: "ann@example.com", Subagent: "agent"}, nil
	}
	return access.Principal{}, identity.ErrTokenRejected
}

func (w *world) Resource(name string) (access.Resource, bool) {
	return access.Resource{Name: name, Kind: access.HTTP}, name != "" && name != "nope"
}

func (w *world) Decide(_ context.Context, r access.Request) access.Decision {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.decide(r)
}

func (w *world) MayConnect(context.Context, access.Principal, access.Resource) bool { return true }

func (w *world) Append(_ context.Context, _ access.Durability, evs ...access.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, evs...)
	return nil
}

// take returns what was recorded since the last take.
func (w *world) take() []access.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.events
	w.events = nil
	return e
}

func (w *world) For(context.Context, access.Principal, access.Resource, string) (string, context.Context, func(), error) {
	return "ses_test", context.Background(), func() {}, nil
}

func (w *world) Ask(_ context.Context, ask access.Ask) (access.Approval, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a, ok := w.open(ask); ok {
		return a, nil
	}
	a := access.Approval{ID: ask.Request.ID, Digest: access.AskDigest(ask), State: access.Pending, Ask: ask}
	w.asked = append(w.asked, a)
	return a, nil
}

func (w *world) Standing(_ context.Context, ask access.Ask) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.open(ask)
	return ok
}

// open finds the question that ask would repeat; w.mu is held.
func (w *world) open(ask access.Ask) (access.Approval, bool) {
	digest := access.AskDigest(ask)
	for _, a := range w.asked {
		if a.Digest == digest && (a.State == access.Granted || a.State == access.Pending) {
			return a, true
		}
	}
	return access.Approval{}, false
}

func (w *world) Wait(ctx context.Context, id string) (access.Approval, error) {
	w.waiting <- id
	select {
	case state := <-w.answered:
		return w.become(id, state), nil
	case <-ctx.Done():
		return access.Approval{}, ctx.Err()
	}
}

func (w *world) become(id string, state access.ApprovalState) access.Approval {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.asked {
		if w.asked[i].ID == id {
			w.asked[i].State = state
			return w.asked[i]
		}
	}
	return access.Approval{}
}

func (w *world) Consume(_ context.Context, id, digest string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, a := range w.asked {
		if a.ID == id && a.Digest == digest && a.State == access.Granted {
			w.asked[i].State = access.Consumed
			return nil
		}
	}
	return &approval.StateError{ID: id, State: access.Consumed}
}

func (w *world) Detach(context.Context, string) error { return nil }

func (w *world) Abandon(_ context.Context, id string) error {
	w.become(id, access.Abandoned)
	w.abandoned <- id
	return nil
}
