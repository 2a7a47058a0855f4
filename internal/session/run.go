package session

import (
	"context"
	"errors"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// tidyTime bounds giving leases back, which end by themselves anyway.
const tidyTime = 2 * time.Second

// Run keeps the registry in touch with the store until ctx ends. Then it ends
// all sessions, gives their leases back and returns nil.
func (r *Registry) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { r.follow(ctx) })
	wg.Go(func() { r.renew(ctx) })
	wg.Go(func() { r.watch(ctx) })
	wg.Go(func() { r.giveBack(ctx) })
	wg.Go(func() { r.forgetRevocations(ctx) })
	wg.Wait()
	r.stop()
	return nil
}

func (r *Registry) stop() {
	r.mu.Lock()
	r.stopped = true
	var keys []string
	for _, one := range r.live {
		keys = append(keys, leasePrefix+one.session.ID)
		r.end(one, ended(one.session, "the gateway is stopping"), "shutdown")
	}
	r.mu.Unlock()
	r.release(context.Background(), keys)
}

// follow reads the feed. As long as each read succeeds, kills reach this
// replica; when they do not, watch ends the sessions.
func (r *Registry) follow(ctx context.Context) {
	const shortest, longest = 50 * time.Millisecond, time.Second
	for pause := shortest; ctx.Err() == nil; pause = min(2*pause, longest) {
		at, err := r.reload(ctx)
		for err == nil {
			pause = shortest
			r.hear()
			var entries []store.Entry
			entries, err = r.store.Read(ctx, feedTopic, at, store.MaxPage)
			for _, one := range entries {
				at = one.Position
				r.take(one.Payload)
			}
		}
		if ctx.Err() == nil && !errors.Is(err, store.ErrTrimmed) {
			r.log.Error("session feed interrupted", "error", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// hear notes that the feed was reached, and lets sessions open.
func (r *Registry) hear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = time.Now()
	select {
	case <-r.ready:
	default:
		close(r.ready)
	}
}

// inTouch reports whether kills reach this replica. r.mu is held.
func (r *Registry) inTouch() bool { return time.Since(r.heard) < r.lasting() }

// lasting is how long the store may be silent: a bit less than leases last, so
// that a session ends before others may think that it has.
func (r *Registry) lasting() time.Duration { return r.config.LeaseTTL * 7 / 8 }

// renew renews the leases of all sessions, four times in their life.
func (r *Registry) renew(ctx context.Context) {
	tick := time.NewTicker(r.config.LeaseTTL / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.renewOnce(ctx)
			r.tellChanged(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (r *Registry) renewOnce(ctx context.Context) {
	r.mu.Lock()
	byKey := map[string]*live{}
	var keys []string
	for id, one := range r.live {
		if one.leased && one.ended == nil {
			byKey[leasePrefix+id] = one
			keys = append(keys, leasePrefix+id)
		}
	}
	r.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	asked := time.Now()
	lost, err := r.store.Renew(ctx, r.owner, keys...)
	if err != nil {
		if ctx.Err() == nil {
			r.log.Error("session leases not renewed", "error", err)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range lost {
		r.end(byKey[key], ended(byKey[key].session, "the gateway lost track of this session"), "lease")
		delete(byKey, key)
	}
	for _, one := range byKey {
		one.until = asked.Add(r.config.LeaseTTL)
	}
}

// watch ends sessions whose deadline has passed, whose lease is about to end,
// and all of them when kills no longer arrive.
func (r *Registry) watch(ctx context.Context) {
	tick := time.NewTicker(r.config.LeaseTTL / 32)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.watchOnce()
		case <-ctx.Done():
			return
		}
	}
}

func (r *Registry) watchOnce() {
	r.mu.Lock()
	defer r.mu.Unlock()
	inTouch := r.inTouch()
	if !inTouch {
		select {
		case <-r.ready: // nothing opens until the feed is reached again
			r.ready = make(chan struct{})
		default:
		}
	}
	margin := r.config.LeaseTTL - r.lasting()
	for _, one := range r.live {
		r.expire(one)
		if !inTouch || one.leased && time.Until(one.until) < margin {
			r.end(one, &access.Denial{Reason: access.Unavailable, Resource: one.session.Resource.Name,
				Message: "the gateway cannot supervise this session any more and has ended it", Hint: "connect again"}, "store")
		}
	}
}

// giveBack releases the leases of sessions that have ended.
func (r *Registry) giveBack(ctx context.Context) {
	for {
		var keys []string
		select {
		case key := <-r.gone:
			keys = append(keys, key)
		case <-ctx.Done():
			return
		}
		for more := true; more && len(keys) < 256; {
			select {
			case key := <-r.gone:
				keys = append(keys, key)
			default:
				more = false
			}
		}
		r.release(ctx, keys)
	}
}

func (r *Registry) release(ctx context.Context, keys []string) {
	if len(keys) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tidyTime)
	defer cancel()
	if err := r.store.Release(ctx, r.owner, keys...); err != nil {
		r.log.Warn("session leases not released; they end by themselves", "error", err)
	}
}
