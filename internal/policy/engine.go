package policy

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// An Engine answers from the Set that is current when it is asked. It is safe
// for concurrent use; its zero value denies everything.
type Engine struct {
	current atomic.Pointer[Set]
	clock   func() time.Time
}

// An Option changes an Engine.
type Option func(*Engine)

// WithClock makes the engine take the time from clock instead of time.Now.
func WithClock(clock func() time.Time) Option { return func(e *Engine) { e.clock = clock } }

// NewEngine returns an Engine that answers from s. With a nil Set it denies
// everything until Swap.
func NewEngine(s *Set, options ...Option) *Engine {
	e := &Engine{}
	for _, o := range options {
		o(e)
	}
	e.current.Store(s)
	return e
}

// Swap makes s the current Set: the next question is answered from it.
// Questions under way are answered from the old one.
func (e *Engine) Swap(s *Set) { e.current.Store(s) }

// Current returns the current Set, nil when there is none.
func (e *Engine) Current() *Set { return e.current.Load() }

// Revision names the Set that the next question is answered from.
func (e *Engine) Revision() string {
	if s := e.Current(); s != nil {
		return s.revision
	}
	return ""
}

func (e *Engine) now() time.Time {
	if e.clock == nil {
		return time.Now()
	}
	return e.clock()
}

// Decide answers req. It never fails: whatever goes wrong denies. The slices of
// the decision are shared and must not be written.
func (e *Engine) Decide(_ context.Context, req access.Request) access.Decision {
	return e.Current().Decide(req, e.now())
}

// Masks returns every mask that any rule of a policy about p and r could
// impose, joined. A policy whose conditions fail, or depend on the time, counts
// as being about them.
func (e *Engine) Masks(_ context.Context, p access.Principal, r access.Resource) []access.Mask {
	return e.Current().masks(&p, &r)
}

// MasksOf returns every mask that any rule of a policy about r could impose on
// anybody, joined: the stricter of two for one column.
func (e *Engine) MasksOf(r access.Resource) []access.Mask {
	s := e.Current()
	if s.empty() {
		return nil
	}
	var masks []access.Mask
	for _, c := range s.target(&r).covering {
		for _, rule := range c.policy.rules {
			masks = append(masks, rule.masks...)
		}
	}
	return mergeMasks(masks)
}

// SessionMax returns the longest that any rule of a policy about p and r grants
// to a session beyond its token, counted from its opening; 0 when none does.
func (e *Engine) SessionMax(_ context.Context, p access.Principal, r access.Resource) time.Duration {
	return e.Current().sessionMax(&p, &r)
}

// MayConnect reports whether at least one policy with a rule that allows or
// asks for approval is about p and r now.
func (e *Engine) MayConnect(_ context.Context, p access.Principal, r access.Resource) bool {
	return e.Current().mayConnect(access.Request{Principal: p, Resource: r}, e.now())
}

// ReadsBody reports whether any rule that could apply to requests on r needs
// the body: holds the request, for a grant covers the body too, or reads
// http.body: whether the body is worth reading before the decision.
func (e *Engine) ReadsBody(r access.Resource) bool {
	return e.Current().readsBody(&r)
}

// ReadsEstimate reports whether the decision on req, an SQL statement without an
// estimate, could be another one with it: whether it is worth asking for.
func (e *Engine) ReadsEstimate(_ context.Context, req access.Request) bool {
	return e.Current().readsEstimate(&req, e.now())
}

func (s *Set) masks(p *access.Principal, r *access.Resource) (masks []access.Mask) {
	if s.empty() {
		return nil
	}
	defer func() {
		if recover() != nil {
			masks = nil // the decision meets the same fault and denies
		}
	}()
	for _, c := range s.scope(p, r).candidates {
		for _, rule := range c.policy.rules {
			masks = append(masks, rule.masks...)
		}
	}
	return mergeMasks(masks)
}

func (s *Set) sessionMax(p *access.Principal, r *access.Resource) (longest time.Duration) {
	if s.empty() {
		return 0
	}
	defer func() {
		if recover() != nil {
			longest = 0
		}
	}()
	for _, c := range s.scope(p, r).candidates {
		for _, rule := range c.policy.rules {
			longest = max(longest, rule.session)
		}
	}
	return longest
}

func (s *Set) mayConnect(req access.Request, now time.Time) (may bool) {
	if s.empty() {
		return false
	}
	defer func() {
		if recover() != nil {
			may = false
		}
	}()
	if hop, _ := req.Principal.OutOfBounds(req.Resource, access.Action{}); hop > 0 {
		return false
	}
	sc := s.scope(&req.Principal, &req.Resource)
	e := s.begin()
	e.of(&req, sc, now)
	for i := range sc.candidates {
		if applies, err := e.applies(&sc.candidates[i]); err != nil || !applies {
			continue
		}
		may = may || slices.ContainsFunc(sc.candidates[i].policy.rules, func(r *rule) bool { return r.effect != access.Deny })
	}
	s.end(e)
	return may
}

func (s *Set) readsBody(r *access.Resource) (reads bool) {
	if s.empty() {
		return false
	}
	defer func() {
		if recover() != nil {
			reads = true // the decision meets the same fault and denies
		}
	}()
	return slices.ContainsFunc(s.target(r).covering, func(c coveringPolicy) bool {
		return slices.ContainsFunc(c.policy.rules, func(r *rule) bool {
			return r.when.reads.has(readsBody) || r.effect == access.Approve // a reviewer grants the body too
		})
	})
}

func (s *Set) readsEstimate(req *access.Request, now time.Time) (reads bool) {
	if s.empty() || !s.estimates || req.Action.SQL == nil {
		return false
	}
	defer func() {
		if recover() != nil {
			reads = false // the decision meets the same fault and denies
		}
	}()
	sc := s.scope(&req.Principal, &req.Resource)
	e := s.begin()
	e.of(req, sc, now)
	for i := range sc.candidates {
		if applies, err := e.applies(&sc.candidates[i]); err != nil || !applies {
			continue
		}
		reads = reads || slices.ContainsFunc(sc.candidates[i].policy.rules, e.awaitsEstimate)
	}
	s.end(e)
	return reads
}

// awaitsEstimate reports whether a rule is neither met nor ruled out without
// the estimate.
func (e *evaluation) awaitsEstimate(r *rule) bool {
	if !r.when.reads.has(readsEstimate) || len(e.req.Action.SQL.Unknown) > 0 {
		return false
	}
	out, _ := e.run(r.when)
	return out == unknown
}
