package approval

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// Ask files the question and returns it pending. When the same principal has
// asked exactly the same before, and that approval is pending or granted and
// not bound to the life of another client, it returns that one, whose ID is not
// this request's. A refused, expired, abandoned or used one is never returned:
// asking again is a new question.
//
// A leased ask ends when Abandon is called, or with this replica.
func (s *Service) Ask(ctx context.Context, ask access.Ask) (access.Approval, error) {
	e, err := s.newEntry(ask)
	if err != nil {
		return access.Approval{}, fmt.Errorf("ask: %w", err)
	}
	found, err := s.ask(ctx, e)
	if err != nil {
		return access.Approval{}, fmt.Errorf("ask: %w", err)
	}
	return found.Approval, nil
}

// Standing reports whether Ask would, as things are, return an approval that
// there is already.
func (s *Service) Standing(ctx context.Context, ask access.Ask) bool {
	e, err := s.newEntry(ask)
	if err != nil {
		return false
	}
	found, err := s.identical(ctx, e)
	return err == nil && found != nil
}

func (s *Service) ask(ctx context.Context, e *entry) (*entry, error) {
	if found, err := s.identical(ctx, e); err != nil || found != nil {
		return found, err
	}
	if !e.Shared {
		return s.file(ctx, e)
	}
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	unlock, err := s.lock(ctx, e.same()) // of two identical asks, one is filed
	if err != nil {
		return nil, err
	}
	defer unlock()
	if found, err := s.identical(ctx, e); err != nil || found != nil {
		return found, err
	}
	return s.file(ctx, e)
}

// newEntry checks an ask and brings it into the form in which it is stored.
func (s *Service) newEntry(ask access.Ask) (*entry, error) {
	terms := ask.Decision.Obligations.Approval
	switch {
	case !validID(ask.Request.ID):
		return nil, fmt.Errorf("request id %q", ask.Request.ID)
	case ask.Decision.Effect != access.Approve || terms == nil:
		return nil, errors.New("no rule asks for approval")
	case len(terms.Groups) == 0:
		return nil, errors.New("nobody may review it: the rules that apply have no group in common")
	case terms.Expires <= 0 || terms.Window < 0:
		return nil, errors.New("the approval has no end")
	}
	if http := ask.Request.Action.HTTP; http != nil && http.BodyState != access.BodyNone && http.BodyDigest == "" {
		return nil, errors.New("the body is not bound to the request")
	}
	if k := ask.Request.Action.K8s; k != nil && k.BodyState != access.BodyNone && k.BodyDigest == "" {
		return nil, errors.New("the body is not bound to the request")
	}
	own := *terms
	own.Count = max(own.Count, 1)
	ask.Decision.Obligations.Approval = &own
	now := s.config.Clock().UTC()
	e := &entry{Replica: s.config.Replica, Shared: !ask.Leased, Approval: access.Approval{
		ID: ask.Request.ID, Digest: access.AskDigest(ask), State: access.Pending, Ask: ask, Opened: now, Expires: now.Add(own.Expires)}}
	b, err := e.encode()
	if err != nil {
		return nil, err
	}
	if len(b) > store.MaxValue {
		return nil, fmt.Errorf("the request of %d bytes: %w", len(b), store.ErrTooLarge)
	}
	stored, err := decode(store.Record{Key: recordPrefix + e.Approval.ID, Value: b})
	if err != nil {
		return nil, err
	}
	// JSON has one form for many broken texts. What does not come back as it
	// was could be swapped for another with the same form.
	if access.AskDigest(stored.Approval.Ask) != e.Approval.Digest {
		return nil, errors.New("the request has text that is not UTF-8 and cannot be shown to a reviewer")
	}
	return stored, nil
}

// A samePointer is the record that identical asks share.
type samePointer struct {
	ID string `json:"id"`
}

// identical returns the approval that answers an ask, or nil.
func (s *Service) identical(ctx context.Context, e *entry) (*entry, error) {
	pointer, _, err := s.pointer(ctx, e)
	if err != nil || pointer == "" {
		return nil, err
	}
	found, err := s.current(ctx, pointer)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !found.shareable() || found.Approval.Digest != e.Approval.Digest || found.principal() != e.principal() {
		return nil, nil
	}
	return found, nil
}

func (s *Service) pointer(ctx context.Context, e *entry) (id string, version uint64, err error) {
	r, err := s.store.Get(ctx, samePrefix+e.same())
	if errors.Is(err, store.ErrNotFound) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	var p samePointer
	if err := json.Unmarshal(r.Value, &p); err != nil {
		return "", 0, fmt.Errorf("stored pointer: %w", err)
	}
	return p.ID, r.Version, nil
}

// pointTo lets identical asks find the approval.
func (s *Service) pointTo(ctx context.Context, e *entry) error {
	id, version, err := s.pointer(ctx, e)
	if err != nil || id == e.Approval.ID {
		return err
	}
	b, err := json.Marshal(samePointer{e.Approval.ID})
	if err != nil {
		return err
	}
	_, err = s.store.Put(ctx, samePrefix+e.same(), b, version)
	return err
}

// file stores a new question: lease and pointer first, so that the question
// never stands without them, then the record of it, then the question.
func (s *Service) file(ctx context.Context, e *entry) (*entry, error) {
	id := e.Approval.ID
	if !s.paces.allow(e.principal()) {
		return nil, fmt.Errorf("%w: %d a minute", ErrTooMany, s.config.MaxAsksPerMinute)
	}
	if err := s.live.reserve(e); err != nil {
		return nil, err
	}
	defer s.live.unreserve(id)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
	defer cancel()
	if known, err := s.current(ctx, id); !errors.Is(err, ErrNotFound) {
		return s.again(e, known, err)
	}
	if e.onLease() {
		if err := s.hold(ctx, id); err != nil {
			return nil, err
		}
	}
	err := s.fileRecord(ctx, e)
	if err != nil {
		if e.onLease() {
			s.release(id)
		}
		return nil, err
	}
	s.pass(ctx, e)
	s.tell(e, access.Pending)
	return e, nil
}

func (s *Service) fileRecord(ctx context.Context, e *entry) error {
	if e.Shared {
		if err := s.pointTo(ctx, e); err != nil {
			return err
		}
	}
	if err := s.record(ctx, e, access.Pending, nil); err != nil {
		return err
	}
	return s.save(ctx, e)
}

// again answers a request that asks twice under one id.
func (s *Service) again(e, known *entry, err error) (*entry, error) {
	switch {
	case err != nil:
		return nil, err
	case known.Approval.Digest != e.Approval.Digest:
		return nil, fmt.Errorf("request %s has asked for something else before: %w", e.Approval.ID, ErrDigest)
	case known.final():
		return nil, &StateError{e.Approval.ID, known.state()}
	default:
		return known, nil
	}
}

// Detach leaves a leased ask behind: its client goes, but will come back with
// the identical request, as after an HTTP 202. Without it a leased ask ends
// with its client.
func (s *Service) Detach(ctx context.Context, id string) error {
	_, err := s.change(ctx, id, func(e *entry) (*step, error) {
		if e.final() {
			return nil, &StateError{id, e.state()}
		}
		if !e.Approval.Ask.Leased {
			return nil, nil
		}
		shared := *e
		shared.Approval.Ask.Leased, shared.Shared = false, true
		if err := s.pointTo(ctx, &shared); err != nil {
			return nil, err
		}
		return &step{to: e.state(), silent: true, edit: func(e *entry) { e.Approval.Ask.Leased, e.Shared = false, true }}, nil
	})
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	s.release(id)
	return nil
}
