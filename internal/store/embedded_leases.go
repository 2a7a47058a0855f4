package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxLeases bounds the memory of the embedded store's leases.
const maxLeases = 200_000

type heldLease struct {
	owner string
	value []byte
	ttl   time.Duration
	ends  time.Time // with the monotonic reading of the clock, if it has one: a jump ends no lease
}

// ready refuses once the store is closed or the caller has gone.
func (e *Embedded) ready(ctx context.Context) error {
	select {
	case <-e.closed:
		return fmt.Errorf("closed: %w", ErrUnavailable)
	default:
		return ctx.Err()
	}
}

// live returns the lease of key and forgets it if it has ended. e.mu is held.
func (e *Embedded) live(key string) (heldLease, bool) {
	l, ok := e.leases[key]
	if ok && !e.config.Clock().Before(l.ends) {
		delete(e.leases, key)
		return heldLease{}, false
	}
	return l, ok
}

func (e *Embedded) claim(owner string, value []byte, ttl time.Duration) heldLease {
	return heldLease{owner: owner, value: value, ttl: ttl, ends: e.config.Clock().Add(ttl)}
}

// Acquire implements Leases.
func (e *Embedded) Acquire(ctx context.Context, key, owner string, value []byte, ttl time.Duration) error {
	if err := checkLease(key, owner, value, ttl); err != nil {
		return fmt.Errorf("acquire: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ready(ctx); err != nil {
		return fmt.Errorf("acquire %s: %w", key, err)
	}
	if l, ok := e.live(key); ok && l.owner != owner {
		return fmt.Errorf("acquire %s: %w", key, ErrHeld)
	}
	if len(e.leases) >= maxLeases {
		for k := range e.leases {
			e.live(k)
		}
		if len(e.leases) >= maxLeases {
			return fmt.Errorf("acquire %s: %d leases: %w", key, maxLeases, ErrUnavailable)
		}
	}
	e.leases[key] = e.claim(owner, slices.Clone(value), ttl)
	return nil
}

// Renew implements Leases.
func (e *Embedded) Renew(ctx context.Context, owner string, keys ...string) (lost []string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ready(ctx); err != nil {
		return nil, fmt.Errorf("renew: %w", err)
	}
	for _, key := range keys {
		if l, ok := e.live(key); ok && l.owner == owner {
			e.leases[key] = e.claim(owner, l.value, l.ttl)
		} else {
			lost = append(lost, key)
		}
	}
	return lost, nil
}

// Release implements Leases.
func (e *Embedded) Release(ctx context.Context, owner string, keys ...string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ready(ctx); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	for _, key := range keys {
		if e.leases[key].owner == owner {
			delete(e.leases, key)
		}
	}
	return nil
}

// Holder implements Leases.
func (e *Embedded) Holder(ctx context.Context, key string) (Lease, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ready(ctx); err != nil {
		return Lease{}, fmt.Errorf("holder of %s: %w", key, err)
	}
	l, ok := e.live(key)
	if !ok {
		return Lease{}, fmt.Errorf("holder of %s: %w", key, ErrNotFound)
	}
	return Lease{Key: key, Owner: l.owner, Value: slices.Clone(l.value)}, nil
}

// Holders implements Leases.
func (e *Embedded) Holders(ctx context.Context, prefix, after string, limit int) (Page[Lease], error) {
	if err := checkLimit(limit); err != nil {
		return Page[Lease]{}, fmt.Errorf("holders: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ready(ctx); err != nil {
		return Page[Lease]{}, fmt.Errorf("holders: %w", err)
	}
	var keys []string
	for key := range e.leases {
		if _, ok := e.live(key); ok && strings.HasPrefix(key, prefix) && key > after {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	var page Page[Lease]
	if len(keys) > limit {
		keys = keys[:limit]
		page.Next = keys[limit-1]
	}
	for _, key := range keys {
		l := e.leases[key]
		page.Items = append(page.Items, Lease{Key: key, Owner: l.owner, Value: slices.Clone(l.value)})
	}
	return page, nil
}

func checkLease(key, owner string, value []byte, ttl time.Duration) error {
	if ttl < time.Millisecond {
		return fmt.Errorf("lease of %s", ttl)
	}
	return errors.Join(checkName("key", key), checkName("owner", owner), checkSize("lease", value, MaxLease))
}
