package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

func testLeases(t *testing.T, b *backend) {
	ctx := t.Context()
	const ttl = 2 * time.Minute
	ok(t, b.one.Acquire(ctx, "l/1", "a", []byte("v1"), ttl))
	wants(t, b.two.Acquire(ctx, "l/1", "b", nil, ttl), ErrHeld)
	ok(t, b.two.Acquire(ctx, "l/1", "a", []byte("v2"), ttl)) // its owner again
	lease, err := b.two.Holder(ctx, "l/1")
	if err != nil || lease.Owner != "a" || string(lease.Value) != "v2" {
		t.Fatalf("%+v, %v", lease, err)
	}
	b.elapse(t, ttl/2)
	lost, err := b.one.Renew(ctx, "a", "l/1", "l/none")
	if err != nil || !slices.Equal(lost, []string{"l/none"}) {
		t.Fatalf("lost %v, %v", lost, err)
	}
	b.elapse(t, ttl*3/4) // past the first end, not past the renewed one
	if _, err := b.two.Holder(ctx, "l/1"); err != nil {
		t.Fatalf("renewed lease: %v", err)
	}
	lost, err = b.one.Renew(ctx, "b", "l/1")
	if err != nil || len(lost) != 1 {
		t.Fatalf("renewed by another owner: %v, %v", lost, err)
	}
	ok(t, b.one.Release(ctx, "b", "l/1"))
	if _, err := b.two.Holder(ctx, "l/1"); err != nil {
		t.Fatalf("released by another owner: %v", err)
	}
	b.elapse(t, ttl)
	_, err = b.two.Holder(ctx, "l/1")
	wants(t, err, ErrNotFound)
	if lost, err := b.one.Renew(ctx, "a", "l/1"); err != nil || len(lost) != 1 {
		t.Fatalf("renewed an ended lease: %v, %v", lost, err)
	}
	ok(t, b.two.Acquire(ctx, "l/1", "b", nil, time.Minute))
	ok(t, b.two.Release(ctx, "b", "l/1", "l/none"))
	_, err = b.one.Holder(ctx, "l/1")
	wants(t, err, ErrNotFound)
	if err := b.one.Acquire(ctx, "l/1", "a", nil, 0); err == nil {
		t.Fatal("a lease without an end was taken")
	}
}

func testOneHolds(t *testing.T, b *backend) {
	var wg sync.WaitGroup
	errs := make([]error, 32)
	for i := range errs {
		wg.Go(func() {
			s := []Store{b.one, b.two}[i%2]
			errs[i] = s.Acquire(t.Context(), "lock", fmt.Sprint("owner-", i), nil, time.Minute)
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, ErrHeld) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Fatalf("%d owners hold the lease", won)
	}
}

func testHolders(t *testing.T, b *backend) {
	ctx := t.Context()
	for i := range 7 {
		ok(t, b.one.Acquire(ctx, fmt.Sprintf("s/%d", i), "a", []byte{byte(i)}, time.Minute))
	}
	ok(t, b.one.Acquire(ctx, "s/8", "a", nil, 20*time.Second))
	ok(t, b.one.Acquire(ctx, "t/1", "a", nil, time.Minute))
	b.elapse(t, 20*time.Second)
	var keys []string
	for after := ""; ; {
		page, err := b.two.Holders(ctx, "s/", after, 3)
		ok(t, err)
		for _, l := range page.Items {
			keys = append(keys, l.Key)
		}
		if page.Next == "" {
			break
		}
		after = page.Next
	}
	if len(keys) != 7 || !slices.IsSorted(keys) {
		t.Fatalf("holders %v", keys)
	}
}

func testFeed(t *testing.T, b *backend) {
	ctx := t.Context()
	tail, err := b.one.Tail(ctx, "t")
	if err != nil || tail != 0 {
		t.Fatalf("tail %d, %v", tail, err)
	}
	var at []Position
	for i := range 5 {
		p, err := []Store{b.one, b.two}[i%2].Publish(ctx, "t", []byte{byte(i)})
		ok(t, err)
		at = append(at, p)
	}
	_, err = b.one.Publish(ctx, "another", nil)
	ok(t, err)
	if !slices.IsSorted(at) {
		t.Fatalf("positions %v", at)
	}
	entries, err := b.two.Read(ctx, "t", 0, 3)
	if err != nil || len(entries) != 3 || entries[2].Position != at[2] || entries[2].Payload[0] != 2 {
		t.Fatalf("%v, %v", entries, err)
	}
	entries, err = b.one.Read(ctx, "t", at[2], 10)
	if err != nil || len(entries) != 2 || entries[1].Position != at[4] {
		t.Fatalf("%v, %v", entries, err)
	}
	if tail, err = b.one.Tail(ctx, "t"); err != nil || tail != at[4] {
		t.Fatalf("tail %d, %v", tail, err)
	}
	began := time.Now()
	entries, err = b.one.Read(ctx, "t", tail, 10)
	if err != nil || len(entries) != 0 || time.Since(began) > 3*time.Second {
		t.Fatalf("idle read: %v, %v after %s", entries, err, time.Since(began))
	}
	if _, err := b.one.Read(ctx, "t", at[4]+1, 10); !errors.Is(err, ErrTrimmed) {
		t.Fatalf("beyond the end: %v", err)
	}
}

func testFeedWakes(t *testing.T, b *backend) {
	ctx := t.Context()
	first, err := b.one.Publish(ctx, "t", []byte("first"))
	ok(t, err)
	got := make(chan error, 1)
	go func() {
		for {
			entries, err := b.two.Read(ctx, "t", first, 10)
			if err == nil && len(entries) == 0 {
				continue
			}
			if err == nil && string(entries[0].Payload) != "second" {
				err = fmt.Errorf("read %s", entries[0].Payload)
			}
			got <- err
			return
		}
	}()
	_, err = b.one.Publish(ctx, "t", []byte("second"))
	ok(t, err)
	ok(t, <-got)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := b.one.Read(gone, "t", first+1000, 10); err == nil {
		t.Fatal("read for a caller that has gone")
	}
}

// Concurrent publishers on both replicas: every reader sees all entries once,
// in the same order.
func testFeedConcurrent(t *testing.T, b *backend) {
	ctx := t.Context()
	const publishers = feedLength // what is kept
	var wg sync.WaitGroup
	for i := range publishers {
		wg.Go(func() {
			if _, err := []Store{b.one, b.two}[i%2].Publish(ctx, "t", []byte{byte(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var seen [2][]byte
	for i, s := range []Store{b.one, b.two} {
		for at := Position(0); len(seen[i]) < publishers; {
			entries, err := s.Read(ctx, "t", at, 3)
			ok(t, err)
			for _, e := range entries {
				seen[i] = append(seen[i], e.Payload...)
				at = e.Position
			}
		}
	}
	if !slices.Equal(seen[0], seen[1]) {
		t.Fatalf("orders %v and %v", seen[0], seen[1])
	}
	slices.Sort(seen[0])
	if len(slices.Compact(seen[0])) != publishers {
		t.Fatalf("entries %v", seen[0])
	}
}

func testTrimmed(t *testing.T, b *backend) {
	ctx := t.Context()
	first, err := b.one.Publish(ctx, "t", []byte("first"))
	ok(t, err)
	for range feedLength {
		_, err := b.one.Publish(ctx, "t", []byte("more"))
		ok(t, err)
	}
	_, err = b.two.Read(ctx, "t", 0, 10)
	wants(t, err, ErrTrimmed)
	entries, err := b.two.Read(ctx, "t", first, 100) // exactly the oldest kept follows
	if err != nil || len(entries) != feedLength {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
}

func testRestart(t *testing.T, b *backend) {
	ctx := t.Context()
	v, err := b.one.Put(ctx, "k", []byte("kept"), 0)
	ok(t, err)
	at, err := b.one.Publish(ctx, "t", []byte("kept"))
	ok(t, err)
	s := b.reopen(t)
	if r, err := s.Get(ctx, "k"); err != nil || r.Version != v || string(r.Value) != "kept" {
		t.Fatalf("%+v, %v", r, err)
	}
	if entries, err := s.Read(ctx, "t", 0, 10); err != nil || len(entries) != 1 || entries[0].Position != at {
		t.Fatalf("%v, %v", entries, err)
	}
	if next, err := s.Publish(ctx, "t", nil); err != nil || next <= at {
		t.Fatalf("position %d after %d, %v", next, at, err)
	}
}

func testClosed(t *testing.T, b *backend) {
	ctx := t.Context()
	ok(t, b.one.Close())
	_, err := b.one.Get(ctx, "k")
	wants(t, err, ErrUnavailable)
	_, err = b.one.Put(ctx, "k", nil, 0)
	wants(t, err, ErrUnavailable)
	_, err = b.one.Read(ctx, "t", 0, 1)
	wants(t, err, ErrUnavailable)
	wants(t, b.one.Acquire(ctx, "k", "a", nil, time.Second), ErrUnavailable)
	_, err = b.one.Renew(ctx, "a", "k")
	wants(t, err, ErrUnavailable)
}
