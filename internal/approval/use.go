package approval

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// Consume uses the grant for what has the digest. When it returns nil, exactly
// this caller may run it, once; the use is on record. Everything else is an
// error: *StateError unless granted and unexpired, ErrDigest for anything but
// what was granted. A grant for a window can be consumed until the window ends.
// After an error that is store.ErrUnavailable the grant may be used up.
func (s *Service) Consume(ctx context.Context, id, digest string) error {
	if err := s.consume(ctx, id, digest); err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	return nil
}

func (s *Service) consume(ctx context.Context, id, digest string) error {
	e, err := s.change(ctx, id, func(e *entry) (*step, error) {
		switch {
		case e.state() != access.Granted:
			return nil, &StateError{id, e.state()}
		case digest == "" || e.Approval.Digest != digest || access.AskDigest(e.Approval.Ask) != digest:
			return nil, ErrDigest
		}
		if err := s.upheld(e); err != nil {
			return nil, err
		}
		used := func(e *entry) { e.Uses++ }
		if e.terms().Window > 0 {
			return &step{to: access.Granted, as: access.Consumed, edit: used}, nil
		}
		return &step{to: access.Consumed, edit: used}, nil
	})
	if err != nil {
		return err
	}
	if e.state() == access.Granted && e.Uses == 1 {
		// It stands on its own now, and identical asks shall find it.
		if e.Approval.Ask.Leased {
			s.release(id)
		}
		if err := s.pointTo(ctx, e); err != nil {
			s.log.Warn("window grant will not be found by its next ask", "approval", id, "error", err)
		}
	}
	return nil
}

// Abandon ends the approval because the client has left, unless it has ended
// already or is a window grant in use. It works on when ctx has ended. An
// approval that cannot be ended now ends with its lease.
func (s *Service) Abandon(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(ctx)
	s.mu.Lock()
	delete(s.held, id) // whatever happens now, its lease is not renewed
	s.mu.Unlock()
	_, err := s.change(ctx, id, func(e *entry) (*step, error) {
		if e.final() || e.Uses > 0 {
			return nil, nil
		}
		return &step{to: access.Abandoned}, nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("abandon: %w", err)
	}
	return nil
}

// Get returns the approval as it is now. What has expired or lost its client is
// shown as that, whether or not it could be written down yet.
func (s *Service) Get(ctx context.Context, id string) (access.Approval, error) {
	e, err := s.current(ctx, id)
	if err != nil {
		return access.Approval{}, fmt.Errorf("approval %s: %w", id, err)
	}
	return e.Approval, nil
}

// current loads the approval and takes the step that is due, if one is.
func (s *Service) current(ctx context.Context, id string) (*entry, error) {
	e, err := s.load(ctx, id)
	if err != nil {
		return nil, err
	}
	lapse, err := s.lapse(ctx, e)
	if err != nil {
		return nil, err
	}
	if lapse == "" {
		return e, nil
	}
	settled, err := s.settle(ctx, id)
	if err == nil {
		return settled, nil
	}
	s.log.Error("approval has ended but cannot be recorded so", "approval", id, "state", lapse, "error", err)
	e.Approval.State = lapse
	return e, nil
}

// settle takes the step that time or a lost lease makes due.
func (s *Service) settle(ctx context.Context, id string) (*entry, error) {
	return s.change(ctx, id, func(*entry) (*step, error) { return nil, nil })
}

// While waiting, the store is asked at least this often even if nothing is
// heard, and may be gone for that long.
const (
	lookAgain = 2 * time.Second
	patience  = 5 * time.Second
)

// Wait blocks until the approval is no longer pending and returns it. It fails
// when ctx ends, with its cause, and when the store is away for five seconds.
func (s *Service) Wait(ctx context.Context, id string) (access.Approval, error) {
	var failing time.Time
	for {
		changed, leave, err := s.waiters.join(id) // before looking, so that no step is missed
		if err != nil {
			return access.Approval{}, fmt.Errorf("wait for approval %s: %w", id, err)
		}
		e, err := s.current(ctx, id)
		switch {
		case err == nil && e.state() != access.Pending:
			leave()
			return e.Approval, nil
		case err == nil:
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
		}
		if err != nil && (!errors.Is(err, store.ErrUnavailable) || time.Since(failing) > patience) {
			leave()
			return access.Approval{}, fmt.Errorf("wait for approval %s: %w", id, err)
		}
		pause := lookAgain / 4
		if err == nil {
			pause = min(lookAgain, s.live.deadline(e).Left()+time.Millisecond)
		}
		err = sleep(ctx, changed, pause)
		leave()
		if err != nil {
			return access.Approval{}, fmt.Errorf("wait for approval %s: %w", id, err)
		}
	}
}

// sleep returns nil when woken or when the pause is over.
func sleep(ctx context.Context, wake <-chan struct{}, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}
