package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// fetchInterval is the least time between two fetches of one issuer's keys,
	// whatever arrives and however they ended. So it is also how long a new key
	// may take to be accepted.
	fetchInterval = 10 * time.Second
	// removedKeyLife is how long a key may serve after its issuer has taken it
	// back, while the issuer answers.
	removedKeyLife = 5 * time.Minute
	// refreshAfter is when keys are fetched anew beside the work, so that
	// usually nobody waits for it.
	refreshAfter = 4 * time.Minute
)

var errClosed = errors.New("the verifier is closed")

// A keyring holds one issuer's keys and decides when to fetch them. At most one
// fetch is under way; whoever needs its outcome waits for that one.
type keyring struct {
	issuer  string
	source  *source
	clock   *clock
	age     time.Duration // how long keys serve while fetches fail
	log     *slog.Logger
	metrics *metrics

	mu      sync.Mutex
	set     *keySet // nil until the first fetch has succeeded
	fault   error   // of the last fetch; nil when it succeeded
	flight  *flight // nil when no fetch is under way
	tried   bool
	lastTry time.Duration // steady time of the last fetch
	closed  bool
	work    sync.WaitGroup
}

// A flight is one fetch. done is closed when its outcome is in the keyring.
type flight struct {
	done   chan struct{}
	cancel context.CancelFunc
}

// current returns keys that may be used now, or why there are none. It waits
// for a fetch only when there are no keys or they are due, and then only when
// the issuer answered the last time.
func (k *keyring) current(ctx context.Context) (*keySet, error) {
	set, f := k.look()
	if f != nil {
		if err := f.wait(ctx); err != nil {
			return nil, err
		}
		set, _ = k.look()
	}
	if set == nil {
		return nil, fmt.Errorf("no verdict without signing keys: %w", k.failureOr(errors.New("none fetched yet")))
	}
	return set, nil
}

// look returns the keys that may be used, and a fetch to wait for when there is
// one that should be waited for.
func (k *keyring) look() (*keySet, *flight) {
	now := k.clock.read()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set == nil || now.since(k.set.fetched) >= k.age {
		k.launch(now)
		return nil, k.flight
	}
	age := now.since(k.set.fetched)
	if age >= min(refreshAfter, k.age/2) {
		k.launch(now)
	}
	if age >= removedKeyLife && k.fault == nil {
		return k.set, k.flight
	}
	return k.set, nil
}

// newer returns the keys after a fetch, when one is allowed now; else those that
// are known. old are the keys that did not do.
func (k *keyring) newer(ctx context.Context, old *keySet) (*keySet, error) {
	now := k.clock.read()
	k.mu.Lock()
	set := k.set
	if set == old {
		k.launch(now)
	}
	f := k.flight
	k.mu.Unlock()
	if set != old || f == nil {
		return set, nil
	}
	if err := f.wait(ctx); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set, nil
}

// refresh fetches the keys beside the work when they are due.
func (k *keyring) refresh() { k.look() }

// failure is why the last fetch failed, or nil.
func (k *keyring) failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fault
}

func (k *keyring) failureOr(other error) error {
	if err := k.failure(); err != nil {
		return err
	}
	return other
}

// close cancels a fetch under way, waits for it and allows no other.
func (k *keyring) close() {
	k.mu.Lock()
	k.closed = true
	if k.set == nil && k.fault == nil {
		k.fault = errClosed
	}
	if k.flight != nil {
		k.flight.cancel()
	}
	k.mu.Unlock()
	k.work.Wait()
	k.source.client.CloseIdleConnections()
}

// launch starts a fetch, unless one is under way or it is too early. The caller
// holds mu.
func (k *keyring) launch(now reading) {
	if k.closed || k.flight != nil || k.tried && now.steady-k.lastTry < fetchInterval {
		return
	}
	k.tried, k.lastTry = true, now.steady
	ctx, cancel := context.WithTimeout(context.Background(), k.source.timeout)
	f := &flight{done: make(chan struct{}), cancel: cancel}
	k.flight = f
	k.work.Go(func() {
		defer cancel()
		set, err := k.fetch(ctx)
		k.land(f, set, err, now)
	})
}

// fetch never panics: the keys are a stranger's text.
func (k *keyring) fetch(ctx context.Context) (set *keySet, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			set, err = nil, fmt.Errorf("read signing keys: panic of type %T", fault)
		}
	}()
	return k.source.fetch(ctx)
}

// land tells of the outcome of f and puts it in place. The keys are as old as
// the question.
func (k *keyring) land(f *flight, set *keySet, err error, asked reading) {
	k.metrics.fetched(k.issuer, err)
	switch before := k.failure(); {
	case err != nil && before == nil:
		k.log.Warn("signing keys cannot be fetched", "issuer", k.issuer, "error", err)
	case err == nil && before != nil:
		k.log.Info("signing keys can be fetched again", "issuer", k.issuer, "keys", len(set.keys))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.flight, k.fault = nil, err
	if err == nil {
		set.fetched = asked
		k.set = set
	}
	close(f.done)
}

func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for signing keys: %w", context.Cause(ctx))
	}
}
