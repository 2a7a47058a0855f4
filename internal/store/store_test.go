package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.etcd.io/bbolt"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/localserver"
)

const feedLength = 16

// A backend is one kind of store as the conformance suite drives it: the store
// as two replicas see it, and what somebody who can write to it can do.
type backend struct {
	one, two Store
	key      Key
	// elapse lets a lease time pass.
	elapse func(t *testing.T, d time.Duration)
	// raw reads and writes what is stored, around the Store.
	rawGet   func(t *testing.T, key string) []string
	rawPut   func(t *testing.T, key string, raw []string)
	rawEntry func(t *testing.T, topic string, at Position, change func(fields []string) []string)
	// reopen returns the store as a replica started now sees it.
	reopen func(t *testing.T) Store
}

// fastDir is a folder in memory where there is one: the suite writes a lot.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "store-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A fakeClock moves only when told to.
type fakeClock = clocktest.Clock

func newFakeClock() *fakeClock { return clocktest.New(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)) }

func embeddedBackend(t *testing.T) *backend {
	t.Helper()
	clock, key := newFakeClock(), NewKey()
	config := EmbeddedConfig{Path: filepath.Join(fastDir(t), "store.db"), Key: key, Clock: clock.Now, FeedLength: feedLength}
	open := func(t *testing.T) *Embedded {
		t.Helper()
		e, err := OpenEmbedded(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}
	e := open(t)
	b := &backend{one: e, two: e, key: key}
	b.elapse = func(_ *testing.T, d time.Duration) { clock.Advance(d) }
	b.rawGet = func(t *testing.T, key string) (raw []string) {
		view(t, e, func(tx *bbolt.Tx) { raw = []string{string(tx.Bucket(recordBucket).Get([]byte(key)))} })
		return raw
	}
	b.rawPut = func(t *testing.T, key string, raw []string) {
		t.Helper()
		err := e.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(recordBucket).Put([]byte(key), []byte(raw[0])) })
		if err != nil {
			t.Fatal(err)
		}
	}
	b.rawEntry = func(t *testing.T, topic string, at Position, change func([]string) []string) {
		t.Helper()
		err := e.db.Update(func(tx *bbolt.Tx) error {
			entries := tx.Bucket(feedBucket).Bucket([]byte(topic))
			raw := bytes.Clone(entries.Get(positionKey(at)))
			fields := change([]string{string(raw[:8]), string(raw[8:entryHeader]), string(raw[entryHeader:])})
			if fields == nil {
				return entries.Delete(positionKey(at))
			}
			return entries.Put(positionKey(at), []byte(fields[0]+fields[1]+fields[2]))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.reopen = func(t *testing.T) Store {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t)
		return e
	}
	return b
}

func view(t *testing.T, e *Embedded, fn func(*bbolt.Tx)) {
	t.Helper()
	if err := e.db.View(func(tx *bbolt.Tx) error { fn(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

// redisServer starts the one server that the tests of a run share; each test
// has a store name of its own in it.
func redisServer(t *testing.T) *localserver.Redis {
	t.Helper()
	server, err := localserver.StartRedis(t.Context(), fastDir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

func redisBackend(t *testing.T, server *localserver.Redis) *backend {
	t.Helper()
	config := RedisConfig{URL: access.NewSecret(server.URL()), Key: NewKey(), FeedLength: feedLength, Name: "t" + access.NewRequestID()}
	open := func(t *testing.T) *Redis {
		t.Helper()
		r, err := OpenRedis(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	one, two := open(t), open(t)
	raw := one.client
	b := &backend{one: one, two: two, key: config.Key, reopen: func(t *testing.T) Store { return open(t) }}
	b.elapse = func(t *testing.T, d time.Duration) { // the server's own clock: shorten what is left
		t.Helper()
		keys, err := raw.Keys(t.Context(), "{"+config.Name+"}:lease:*").Result()
		ok(t, err)
		for _, key := range keys {
			left, err := raw.PTTL(t.Context(), key).Result()
			ok(t, err)
			ok(t, raw.PExpire(t.Context(), key, max(left-d, 0)).Err())
		}
	}
	b.rawGet = func(t *testing.T, key string) []string {
		t.Helper()
		fields, err := raw.HMGet(t.Context(), one.name("record", key), "n", "v", "m").Result()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := texts(fields, 3)
		return out
	}
	b.rawPut = func(t *testing.T, key string, fields []string) {
		t.Helper()
		ok(t, raw.HSet(t.Context(), one.name("record", key), "n", fields[0], "v", fields[1], "m", fields[2]).Err())
		ok(t, raw.ZAdd(t.Context(), one.name("records"), redis.Z{Member: key}).Err())
	}
	b.rawEntry = func(t *testing.T, topic string, at Position, change func([]string) []string) {
		t.Helper()
		replaceEntry(t, raw, one.name("feed", topic), at, change)
	}
	return b
}

// replaceEntry rebuilds a stream with one entry changed, as only somebody at
// the server can.
func replaceEntry(t *testing.T, raw *redis.Client, stream string, at Position, change func([]string) []string) {
	t.Helper()
	all, err := raw.XRange(t.Context(), stream, "-", "+").Result()
	ok(t, err)
	ok(t, raw.Del(t.Context(), stream).Err())
	for _, m := range all {
		fields := []string{text(m, "b"), text(m, "m"), text(m, "v")}
		if m.ID == streamID(at) {
			fields = change(fields)
		}
		if fields != nil {
			ok(t, raw.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, ID: m.ID,
				Values: []any{"b", fields[0], "m", fields[1], "v", fields[2]}}).Err())
		}
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	backends := map[string]func(*testing.T) *backend{
		"embedded": embeddedBackend,
		"redis":    func(t *testing.T) *backend { return redisBackend(t, server) },
	}
	tests := map[string]func(*testing.T, *backend){
		"compare and swap":         testCompareAndSwap,
		"one of many wins":         testOneWins,
		"names and sizes":          testBounds,
		"list":                     testList,
		"forged records":           testForgedRecords,
		"an older record":          testOlderRecord,
		"versions outlive records": testVersions,
		"leases":                   testLeases,
		"one of many leads":        testOneHolds,
		"listing leases":           testHolders,
		"feed":                     testFeed,
		"feed wakes readers":       testFeedWakes,
		"feed of many":             testFeedConcurrent,
		"feed is bounded":          testTrimmed,
		"forged feed":              testForgedFeed,
		"restart":                  testRestart,
		"closed":                   testClosed,
	}
	// Groups, so that the server outlives the parallel tests.
	for kind, open := range backends {
		t.Run(kind, func(t *testing.T) {
			for name, test := range tests {
				t.Run(name, func(t *testing.T) { t.Parallel(); test(t, open(t)) })
			}
		})
	}
}

func testCompareAndSwap(t *testing.T, b *backend) {
	ctx := t.Context()
	_, err := b.one.Get(ctx, "a/1")
	wants(t, err, ErrNotFound)
	_, err = b.one.Put(ctx, "a/1", []byte("x"), 7)
	wants(t, err, ErrConflict)
	v1, err := b.one.Put(ctx, "a/1", []byte("x"), 0)
	ok(t, err)
	_, err = b.two.Put(ctx, "a/1", []byte("y"), 0)
	wants(t, err, ErrConflict)
	v2, err := b.two.Put(ctx, "a/1", []byte{0, 0xff, '\n'}, v1)
	ok(t, err)
	if v2 <= v1 {
		t.Fatalf("version %d after %d", v2, v1)
	}
	got, err := b.one.Get(ctx, "a/1")
	ok(t, err)
	if got.Version != v2 || string(got.Value) != "\x00\xff\n" || got.Key != "a/1" {
		t.Fatalf("got %+v", got)
	}
	wants(t, b.one.Delete(ctx, "a/1", v1), ErrConflict)
	ok(t, b.one.Delete(ctx, "a/1", v2))
	wants(t, b.one.Delete(ctx, "a/1", v2), ErrConflict)
	_, err = b.two.Get(ctx, "a/1")
	wants(t, err, ErrNotFound)
	empty, err := b.one.Put(ctx, "empty", nil, 0)
	ok(t, err)
	if got, err := b.two.Get(ctx, "empty"); err != nil || len(got.Value) != 0 || got.Version != empty {
		t.Fatalf("empty value: %+v, %v", got, err)
	}
}

func testOneWins(t *testing.T, b *backend) {
	ctx := t.Context()
	version, err := b.one.Put(ctx, "k", []byte("start"), 0)
	ok(t, err)
	var wg sync.WaitGroup
	errs := make([]error, 32)
	for i := range errs {
		wg.Go(func() {
			s := b.one
			if i%2 == 1 {
				s = b.two
			}
			_, errs[i] = s.Put(ctx, "k", []byte(strconv.Itoa(i)), version)
		})
	}
	wg.Wait()
	won := ""
	for i, err := range errs {
		switch {
		case err == nil && won == "":
			won = strconv.Itoa(i)
		case !errors.Is(err, ErrConflict):
			t.Errorf("writer %d: %v", i, err)
		}
	}
	got, err := b.one.Get(ctx, "k")
	ok(t, err)
	if string(got.Value) != won {
		t.Fatalf("stored %s, the winner is %q", got.Value, won)
	}
}

func testBounds(t *testing.T, b *backend) {
	ctx := t.Context()
	long := string(bytes.Repeat([]byte("k"), MaxKey+1))
	for name, key := range map[string]string{"empty": "", "space": "a b", "newline": "a\n", "not ASCII": "ä", "NUL": "a\x00b"} {
		if _, err := b.one.Put(ctx, key, nil, 0); err == nil {
			t.Errorf("key with %s was taken", name)
		}
		if err := b.one.Acquire(ctx, key, "me", nil, time.Second); err == nil {
			t.Errorf("lease with %s was taken", name)
		}
	}
	_, err := b.one.Put(ctx, long, nil, 0)
	wants(t, err, ErrTooLarge)
	_, err = b.one.Put(ctx, "big", make([]byte, MaxValue+1), 0)
	wants(t, err, ErrTooLarge)
	_, err = b.one.Put(ctx, "big", make([]byte, MaxValue), 0)
	ok(t, err)
	_, err = b.one.Publish(ctx, "t", make([]byte, MaxPayload+1))
	wants(t, err, ErrTooLarge)
	wants(t, b.one.Acquire(ctx, "l", "me", make([]byte, MaxLease+1), time.Second), ErrTooLarge)
	for _, limit := range []int{0, -1, MaxPage + 1} {
		if _, err := b.one.List(ctx, "", "", limit); err == nil {
			t.Errorf("limit %d was taken", limit)
		}
	}
}

func testList(t *testing.T, b *backend) {
	ctx := t.Context()
	for i := range 25 {
		_, err := b.one.Put(ctx, fmt.Sprintf("p/%02d", i), []byte{byte(i)}, 0)
		ok(t, err)
	}
	for _, other := range []string{"o", "p", "p.", "q/1", "p0"} {
		_, err := b.one.Put(ctx, other, nil, 0)
		ok(t, err)
	}
	var keys []string
	pages := 0
	for after := ""; ; pages++ {
		page, err := b.two.List(ctx, "p/", after, 10)
		ok(t, err)
		for _, r := range page.Items {
			keys = append(keys, r.Key)
		}
		if page.Next == "" {
			break
		}
		after = page.Next
	}
	if len(keys) != 25 || !slices.IsSorted(keys) || keys[24] != "p/24" || pages != 2 {
		t.Fatalf("%d pages with %v", pages, keys)
	}
	page, err := b.two.List(ctx, "none/", "", 10)
	if err != nil || len(page.Items) != 0 || page.Next != "" {
		t.Fatalf("empty listing: %+v, %v", page, err)
	}
	for i := range 5 { // pages end early when the records are large
		_, err := b.one.Put(ctx, fmt.Sprintf("large/%d", i), make([]byte, MaxValue), 0)
		ok(t, err)
	}
	count := 0
	for after := ""; ; {
		page, err := b.two.List(ctx, "large/", after, 100)
		ok(t, err)
		if count += len(page.Items); page.Next == "" {
			break
		}
		after = page.Next
	}
	if count != 5 {
		t.Fatalf("listed %d of 5 large records", count)
	}
}
