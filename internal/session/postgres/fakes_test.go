package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

var errRejected = errors.New("token rejected")

type verifier struct{}

func (verifier) Verify(_ context.Context, token access.Secret) (access.Principal, error) {
	switch token.Reveal() {
	case goodToken:
		return access.Principal{
			Issuer: "test", Subject: "agent-7", User: "ann@example.com", Subagent: "reporter", Groups: []string{"orders-agents"},
			Token: access.TokenRef{ID: "sha256:1", ExpiresAt: time.Now().Add(time.Hour)},
		}, nil
	case "stranger":
		return access.Principal{Issuer: "test", Subject: "stranger", Token: access.TokenRef{ExpiresAt: time.Now().Add(time.Hour)}}, nil
	case "no-keys":
		return access.Principal{}, errors.New("no signing keys")
	default:
		return access.Principal{}, fmt.Errorf("%w: %s", errRejected, token.Reveal())
	}
}

// policy is a decider that a test can change at any time.
type policy struct {
	changed bool // since the last decision
	mu      sync.Mutex
	decide  func(access.Request) access.Decision
	masks   []access.Mask
	asked   []access.Request

	estimates  bool // the rules read them
	sessionMax time.Duration
}

func (p *policy) allowAll() {
	p.set(func(access.Request) access.Decision { return allowed(access.Obligations{}) })
}

func allowed(o access.Obligations) access.Decision {
	return access.Decision{Effect: access.Allow, Rules: []access.RuleRef{{Policy: "test", Rule: "all", Hash: "h1"}}, Revision: "r1", Obligations: o}
}

func (p *policy) set(decide func(access.Request) access.Decision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.decide, p.changed = decide, true
}

// Revision is that of the decisions, unless they have changed since the last.
func (p *policy) Revision() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed {
		return "r2"
	}
	return "r1"
}

func (p *policy) setMasks(masks ...access.Mask) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.masks = masks
}

func (p *policy) SessionMax(context.Context, access.Principal, access.Resource) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessionMax
}

func (p *policy) Decide(_ context.Context, req access.Request) access.Decision {
	p.mu.Lock()
	decide := p.decide
	p.changed = false
	p.asked = append(p.asked, req)
	p.mu.Unlock()
	return decide(req)
}

func (p *policy) Masks(context.Context, access.Principal, access.Resource) []access.Mask {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.masks
}

func (p *policy) ReadsEstimate(_ context.Context, req access.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.estimates
}

func (p *policy) MayConnect(_ context.Context, who access.Principal, _ access.Resource) bool {
	return who.Subject != "stranger"
}

// recorder keeps events, or fails.
type recorder struct {
	mu     sync.Mutex
	events []access.Event
	broken bool
	before func(access.Durability, []access.Event)
}

func (r *recorder) Append(_ context.Context, d access.Durability, evs ...access.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken {
		return errors.New("disk full")
	}
	if r.before != nil {
		r.before(d, evs)
	}
	r.events = append(r.events, evs...)
	return nil
}

// onAppend runs before each Append from now on.
func (r *recorder) onAppend(before func(access.Durability, []access.Event)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = before
}

func (r *recorder) fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = true
}

func (r *recorder) all() []access.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// types renders the recorded events from n on.
func (r *recorder) types(n int) []string {
	var types []string
	for _, e := range r.all()[n:] {
		types = append(types, e.Type())
	}
	return types
}

func (r *recorder) count(match func(access.Event) bool) int {
	n := 0
	for _, e := range r.all() {
		if match(e) {
			n++
		}
	}
	return n
}

// approvals answers as a test says.
type approvals struct {
	mu       sync.Mutex
	byID     map[string]*access.Approval
	changed  chan struct{}
	consumed []string
}

func newApprovals() *approvals {
	return &approvals{byID: map[string]*access.Approval{}, changed: make(chan struct{})}
}

func (a *approvals) Ask(_ context.Context, ask access.Ask) (access.Approval, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	digest := access.AskDigest(ask)
	for _, have := range a.byID {
		if have.Digest == digest && (have.State == access.Pending || have.State == access.Granted) {
			return *have, nil
		}
	}
	now := time.Now()
	fresh := &access.Approval{ID: ask.Request.ID, Digest: digest, State: access.Pending, Ask: ask, Opened: now, Expires: now.Add(time.Hour)}
	a.byID[fresh.ID] = fresh
	a.signal()
	return *fresh, nil
}

func (a *approvals) signal() {
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *approvals) Wait(ctx context.Context, id string) (access.Approval, error) {
	for {
		a.mu.Lock()
		have, changed := *a.byID[id], a.changed
		a.mu.Unlock()
		if have.State != access.Pending {
			return have, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return access.Approval{}, ctx.Err()
		}
	}
}

func (a *approvals) Consume(_ context.Context, id, digest string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	have := a.byID[id]
	if have == nil || have.State != access.Granted || have.Digest != digest {
		return errors.New("not granted")
	}
	have.State = access.Consumed
	a.consumed = append(a.consumed, id)
	return nil
}

func (a *approvals) Abandon(_ context.Context, id string) error {
	a.answer(id, access.Abandoned, access.Pending, access.Granted)
	return nil
}

// answer moves an approval on when it is in one of the states from.
func (a *approvals) answer(id string, to access.ApprovalState, from ...access.ApprovalState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if have := a.byID[id]; have != nil && slices.Contains(from, have.State) {
		have.State = to
		a.signal()
	}
}

// pending returns the ids that wait.
func (a *approvals) in(state access.ApprovalState) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []string
	for id, have := range a.byID {
		if have.State == state {
			ids = append(ids, id)
		}
	}
	return ids
}

// registry keeps live sessions and kills them.
type registry struct {
	mu     sync.Mutex
	live   map[string]context.CancelCauseFunc
	closed map[string]string
	fresh  access.Principal
}

func newRegistry() *registry {
	return &registry{live: map[string]context.CancelCauseFunc{}, closed: map[string]string{}}
}

func (r *registry) Open(ctx context.Context, s access.Session) (context.Context, func(string), error) {
	ctx, cancel := context.WithCancelCause(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[s.ID] = cancel
	return ctx, func(cause string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.live, s.ID)
		r.closed[s.ID] = cause
		cancel(nil)
	}, nil
}

// Principal is who a test says; nobody else came.
func (r *registry) Principal(string) (access.Principal, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fresh, r.fresh.Token.ID != ""
}

func (r *registry) renew(p access.Principal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fresh = p
}

func (r *registry) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, cancel := range r.live {
		cancel(&access.Denial{RequestID: access.NewRequestID(), Reason: access.SessionEnded, Message: "killed by operator", Hint: "ask the operator"})
	}
}

func (r *registry) causes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var causes []string
	for _, c := range r.closed {
		causes = append(causes, c)
	}
	return causes
}

func containsAll(text string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) })
}

// discard is a recorder that is always done.
type discard struct{}

func (discard) Append(context.Context, access.Durability, ...access.Event) error { return nil }
