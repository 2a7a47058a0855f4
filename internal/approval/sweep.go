package approval

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"chaperone.dev/chaperone/internal/store"
)

// tidyEvery is how often ended approvals that are kept no longer are removed.
const tidyEvery = time.Minute

// follow takes over what other replicas do, and wakes who waits for it.
func (s *Service) follow(ctx context.Context) {
	const shortest, longest = 100 * time.Millisecond, 5 * time.Second
	for pause := shortest; ctx.Err() == nil; pause = min(2*pause, longest) {
		at, err := s.reload(ctx)
		for err == nil {
			pause = shortest
			var entries []store.Entry
			entries, err = s.store.Read(ctx, feedTopic, at, store.MaxPage)
			for _, one := range entries {
				at = one.Position
				s.hear(one.Payload)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, store.ErrTrimmed) { // trimmed: read the state anew at once
			s.log.Error("approval feed interrupted", "error", err)
		}
		_ = sleep(ctx, nil, pause)
	}
}

func (s *Service) hear(payload []byte) {
	var n note
	if err := json.Unmarshal(payload, &n); err != nil || n.From == s.owner {
		return // its own steps are known
	}
	s.live.learn(n)
	s.waiters.wake(n.ID)
}

// reload reads all approvals and returns the position in the feed from which
// to go on. Steps taken meanwhile are in the feed after it.
func (s *Service) reload(ctx context.Context) (store.Position, error) {
	at, err := s.store.Tail(ctx, feedTopic)
	if err != nil {
		return 0, err
	}
	known := s.live.ids()
	found := map[string]bool{}
	err = s.each(ctx, func(e *entry) {
		if !e.final() {
			found[e.Approval.ID] = true
			s.live.update(noteOf(e, ""), s.live.newDeadline(e))
		}
	})
	if err != nil {
		return 0, err
	}
	for _, id := range known {
		if !found[id] {
			s.live.remove(id)
		}
	}
	s.waiters.wakeAll()
	return at, nil
}

// each calls fn with every approval in the store.
func (s *Service) each(ctx context.Context, fn func(*entry)) error {
	for after := ""; ; {
		page, err := s.store.List(ctx, recordPrefix, after, store.MaxPage)
		if err != nil {
			return err
		}
		for _, r := range page.Items {
			e, err := decode(r)
			if err != nil {
				return err
			}
			fn(e)
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}

// sweep ends what expired or lost its client, and removes what is old.
func (s *Service) sweep(ctx context.Context) {
	tick := time.NewTicker(s.config.Sweep)
	defer tick.Stop()
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	for {
		select {
		case <-tick.C:
			s.endDue(ctx)
		case <-tidy.C:
			if err := s.tidy(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("old approvals not removed", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// endDue looks at what is known before it looks at the leases: whatever is
// known has had its lease by then.
func (s *Service) endDue(ctx context.Context) {
	due, onLease := s.live.due()
	if len(onLease) > 0 {
		leased, err := s.leased(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("leases of approvals not read", "error", err)
			}
			onLease = nil
		}
		for _, id := range onLease {
			if !leased[id] {
				due = append(due, id)
			}
		}
	}
	for _, id := range due {
		if _, err := s.settle(ctx, id); err != nil && !errors.Is(err, ErrNotFound) && ctx.Err() == nil {
			s.log.Warn("approval not ended", "approval", id, "error", err)
		}
	}
}

func (s *Service) leased(ctx context.Context) (map[string]bool, error) {
	ids := map[string]bool{}
	for after := ""; ; {
		page, err := s.store.Holders(ctx, leasePrefix, after, store.MaxPage)
		if err != nil {
			return nil, err
		}
		for _, l := range page.Items {
			ids[l.Key[len(leasePrefix):]] = true
		}
		if after = page.Next; after == "" {
			return ids, nil
		}
	}
}

// tidy removes ended approvals that are older than is kept, or too many.
func (s *Service) tidy(ctx context.Context) error {
	type old struct {
		entry *entry
		ended time.Time
	}
	var ended []old
	err := s.each(ctx, func(e *entry) {
		if e.final() {
			slim := *e
			action := &slim.Approval.Ask.Request.Action
			action.HTTP, action.K8s, action.SQL, action.SSH = nil, nil, nil, nil // bodies are large; only names are needed here
			ended = append(ended, old{&slim, e.Ended})
		}
	})
	if err != nil {
		return err
	}
	slices.SortFunc(ended, func(a, b old) int { return cmp.Compare(b.ended.UnixNano(), a.ended.UnixNano()) })
	limit := s.config.Clock().Add(-s.config.Retention)
	for i, one := range ended {
		if i < s.config.MaxKept && one.ended.After(limit) {
			continue
		}
		if err := s.forget(ctx, one.entry); err != nil {
			return err
		}
	}
	return nil
}

// forget removes an ended approval and the pointer to it. Another replica may
// do the same; that is no fault.
func (s *Service) forget(ctx context.Context, e *entry) error {
	id, version, err := s.pointer(ctx, e)
	if err == nil && id == e.Approval.ID {
		err = s.store.Delete(ctx, samePrefix+e.same(), version)
	}
	if err == nil || errors.Is(err, store.ErrConflict) {
		err = s.store.Delete(ctx, recordPrefix+e.Approval.ID, e.version)
	}
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}

// renew keeps the leases of this replica's asks until ctx ends.
func (s *Service) renew(ctx context.Context) {
	tick := time.NewTicker(s.config.LeaseTTL / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.renewOnce(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (s *Service) renewOnce(ctx context.Context) {
	keys := s.heldKeys()
	if len(keys) == 0 {
		return
	}
	lost, err := s.store.Renew(ctx, s.owner, keys...)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("leases of approvals not renewed", "error", err)
		}
		return
	}
	for _, key := range lost {
		id := key[len(leasePrefix):]
		s.mu.Lock()
		delete(s.held, id)
		s.mu.Unlock()
		s.waiters.wake(id) // to find it abandoned
	}
}

func (s *Service) heldKeys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]string, 0, len(s.held))
	for id := range s.held {
		keys = append(keys, leasePrefix+id)
	}
	return keys
}

// hold takes the lease of an ask of this replica.
func (s *Service) hold(ctx context.Context, id string) error {
	if err := s.store.Acquire(ctx, leasePrefix+id, s.owner, nil, s.config.LeaseTTL); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[id] = struct{}{}
	return nil
}

// release gives the lease of an ask back, if this replica has it. Failing that
// it ends by itself.
func (s *Service) release(id string) {
	s.mu.Lock()
	delete(s.held, id)
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), tidyTime)
	defer cancel()
	if err := s.store.Release(ctx, s.owner, leasePrefix+id); err != nil {
		s.log.Warn("lease of approval not released; it ends by itself", "approval", id, "error", err)
	}
}

// letGo ends all leases when the service stops.
func (s *Service) letGo() {
	ctx, cancel := context.WithTimeout(context.Background(), tidyTime)
	defer cancel()
	if keys := s.heldKeys(); len(keys) > 0 {
		if err := s.store.Release(ctx, s.owner, keys...); err != nil {
			s.log.Warn("leases of approvals not released; they end by themselves", "error", err)
		}
	}
}
