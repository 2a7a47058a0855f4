package approval

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// The times of one step. Recording and storing together stay below the lock's
// life, so that a lock is not lost while its holder is at work; if it is all the
// same, the compare-and-swap fails.
const (
	lockTTL    = 15 * time.Second
	stepTime   = 10 * time.Second
	appendTime = 5 * time.Second
	tidyTime   = 2 * time.Second // to release what would end by itself anyway
)

// A step is what a change makes of an approval.
type step struct {
	to     access.ApprovalState
	as     access.ApprovalState // what is recorded and told, when it is not to
	answer *access.Answer       // that leads to it
	silent bool                 // neither recorded nor told to people: the state stays what it is
	edit   func(e *entry)       // further changes; may be nil
}

// change takes one step. Under the lock of the approval it first ends what has
// expired or lost its client, then asks decide, which returns the step, or an
// error and no step. It returns the approval as it then is, also with an error
// of decide.
func (s *Service) change(ctx context.Context, id string, decide func(e *entry) (*step, error)) (*entry, error) {
	if !validID(id) {
		return nil, ErrNotFound
	}
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	unlock, err := s.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, err := s.load(ctx, id)
	if err != nil {
		return nil, err
	}
	lapse, err := s.lapse(ctx, e)
	if err != nil {
		return nil, err
	}
	if lapse != "" {
		if e, err = s.take(ctx, e, &step{to: lapse}); err != nil {
			return nil, err
		}
	}
	st, err := decide(e)
	if err != nil || st == nil {
		return e, err
	}
	return s.take(ctx, e, st)
}

// lapse returns the state that time or the client's leaving has led to, or "".
func (s *Service) lapse(ctx context.Context, e *entry) (access.ApprovalState, error) {
	if e.final() {
		return "", nil
	}
	if s.live.deadline(e).Passed() {
		return access.Expired, nil
	}
	if !e.onLease() {
		return "", nil
	}
	switch _, err := s.store.Holder(ctx, leasePrefix+e.Approval.ID); {
	case errors.Is(err, store.ErrNotFound):
		return access.Abandoned, nil
	case err != nil:
		return "", err
	}
	return "", nil
}

// take records the step, stores it, and tells whom it concerns. Once begun it
// is not broken off by a caller who leaves: half a step helps nobody.
func (s *Service) take(ctx context.Context, from *entry, st *step) (*entry, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
	defer cancel()
	if st.to != from.state() && !follows(from.state(), st.to) || from.final() {
		return nil, &StateError{from.Approval.ID, from.state()}
	}
	to := *from
	to.Approval.State = st.to
	if st.answer != nil {
		to.Approval.Answers = append(slices.Clone(from.Approval.Answers), *st.answer)
	}
	if to.final() {
		to.Ended = s.config.Clock().UTC()
	}
	if st.edit != nil {
		st.edit(&to)
	}
	as := st.as
	if as == "" {
		as = st.to
	}
	if !st.silent {
		if err := s.record(ctx, &to, as, st.answer); err != nil {
			return nil, err
		}
	}
	if err := s.save(ctx, &to); err != nil {
		return nil, err
	}
	s.pass(ctx, &to)
	if !st.silent {
		s.tell(&to, as)
	}
	return &to, nil
}

// record writes the step down. When it fails, the step must not happen.
func (s *Service) record(ctx context.Context, to *entry, as access.ApprovalState, answer *access.Answer) error {
	ctx, cancel := context.WithTimeout(ctx, appendTime)
	defer cancel()
	a := to.Approval
	ev := &access.ApprovalEvent{ID: a.ID, Digest: a.Digest, State: as, Answer: answer}
	if as == access.Pending {
		ev.Preview = a.Ask.Preview // as the reviewers see it
	}
	err := s.config.Recorder.Append(ctx, access.Synced, access.Event{Session: a.Ask.Request.Session, Request: a.ID, Approval: ev})
	if err != nil {
		return fmt.Errorf("approval %s: %s is not recorded: %w", a.ID, as, err)
	}
	return nil
}

// save stores the entry over the version it came from.
func (s *Service) save(ctx context.Context, e *entry) error {
	b, err := e.encode()
	if err != nil {
		return err
	}
	if e.version, err = s.store.Put(ctx, recordPrefix+e.Approval.ID, b, e.version); err != nil {
		return err
	}
	s.live.update(noteOf(e, s.owner), s.live.newDeadline(e))
	return nil
}

// pass makes a stored step known to who waits here and to the other replicas. A
// step whose passing fails stands; waiters elsewhere look by themselves too.
func (s *Service) pass(ctx context.Context, e *entry) {
	s.waiters.wake(e.Approval.ID)
	if _, err := s.store.Publish(ctx, feedTopic, noteOf(e, s.owner).encode()); err != nil {
		s.log.Error("approval step not published", "approval", e.Approval.ID, "state", e.state(), "error", err)
	}
	if e.final() && e.Approval.Ask.Leased {
		s.release(e.Approval.ID)
	}
}

// tell makes a step known to people. It never waits for them.
func (s *Service) tell(e *entry, as access.ApprovalState) {
	request := e.Approval.Ask.Request
	s.metrics.steps.WithLabelValues(string(as)).Inc()
	s.log.Info("approval", "id", e.Approval.ID, "state", string(as), "session", request.Session, "resource", request.Resource.Name,
		"user", request.Principal.User, "subagent", request.Principal.Subagent, "rule", e.Approval.Ask.Decision.Rule())
	if as == e.state() || e.Uses <= 1 { // of a window grant, the first use
		for _, h := range s.hooks {
			h.offer(e, as)
		}
	}
}

// lock waits for its turn within this process, then for the lock that replicas
// share. The function gives both back.
func (s *Service) lock(ctx context.Context, name string) (func(), error) {
	done, err := s.turns.take(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("lock approval %s: %w", name, err)
	}
	const shortest, longest = 2 * time.Millisecond, 50 * time.Millisecond
	for pause := shortest; ; pause = min(2*pause, longest) {
		err := s.store.Acquire(ctx, lockPrefix+name, s.owner, nil, lockTTL)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrHeld) {
			done()
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			done()
			return nil, fmt.Errorf("approval %s is busy: %w: %w", name, store.ErrUnavailable, context.Cause(ctx))
		}
	}
	return func() {
		defer done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
		defer cancel()
		if err := s.store.Release(ctx, s.owner, lockPrefix+name); err != nil {
			s.log.Warn("approval lock not released; it ends by itself", "approval", name, "error", err)
		}
	}, nil
}

// turns are locks within this process, by name.
type turns struct {
	mu     sync.Mutex
	byName map[string]*turn
}

type turn struct {
	free  chan struct{} // holds one token when free
	users int
}

func newTurns() *turns { return &turns{byName: map[string]*turn{}} }

func (t *turns) take(ctx context.Context, name string) (func(), error) {
	t.mu.Lock()
	one := t.byName[name]
	if one == nil {
		one = &turn{free: make(chan struct{}, 1)}
		one.free <- struct{}{}
		t.byName[name] = one
	}
	one.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(t.byName, name)
		}
	}
	select {
	case <-one.free:
		return func() { one.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
