package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/localserver"
)

// A server of its own for tests that stop it.
func ownRedis(t *testing.T, config RedisConfig) (*localserver.Redis, *Redis) {
	t.Helper()
	server := redisServer(t)
	config.URL, config.Key = access.NewSecret(server.URL()), NewKey()
	r, err := OpenRedis(t.Context(), config)
	ok(t, err)
	t.Cleanup(func() { r.Close() })
	return server, r
}

// A server that does not answer, or has gone, is an error within the timeout;
// when it is back the store works again by itself.
func TestRedisGone(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	server, r := ownRedis(t, RedisConfig{Timeout: timeout})
	v, err := r.Put(t.Context(), "k", []byte("kept"), 0)
	ok(t, err)
	at, err := r.Publish(t.Context(), "t", []byte("kept"))
	ok(t, err)
	refusesAll := func(t *testing.T) {
		t.Helper()
		began := time.Now()
		_, get := r.Get(t.Context(), "k")
		_, put := r.Put(t.Context(), "k", nil, v)
		_, read := r.Read(t.Context(), "t", at, 10)
		_, publish := r.Publish(t.Context(), "t", nil)
		_, renew := r.Renew(t.Context(), "me", "l")
		acquire := r.Acquire(t.Context(), "l", "me", nil, time.Second)
		for i, err := range []error{get, put, read, publish, renew, acquire} {
			if !errors.Is(err, ErrUnavailable) {
				t.Errorf("call %d: %v", i, err)
			}
		}
		if took := time.Since(began); took > 6*timeout+4*time.Second {
			t.Errorf("six calls took %s", took)
		}
	}
	ok(t, server.Pause())
	refusesAll(t)
	ok(t, server.Resume())
	clocktest.Eventually(t, func() error { _, err := r.Get(t.Context(), "k"); return err })
	server.Kill()
	refusesAll(t)
	ok(t, server.Start(t.Context()))
	clocktest.Eventually(t, func() error { _, err := r.Get(t.Context(), "k"); return err })
	if entries, err := r.Read(t.Context(), "t", 0, 10); err != nil || string(entries[0].Payload) != "kept" {
		t.Fatalf("feed after the restart: %v, %v", entries, err)
	}
}

// A server that lost its memory: readers learn it, versions and positions do
// not begin again.
func TestRedisForgets(t *testing.T) {
	t.Parallel()
	_, r := ownRedis(t, RedisConfig{})
	ctx := t.Context()
	v1, err := r.Put(ctx, "k", nil, 0)
	ok(t, err)
	at, err := r.Publish(ctx, "t", nil)
	ok(t, err)
	ok(t, r.client.FlushAll(ctx).Err())
	_, err = r.Read(ctx, "t", at, 10)
	wants(t, err, ErrTrimmed)
	if v2, err := r.Put(ctx, "k", nil, 0); err != nil || v2 <= v1 {
		t.Fatalf("version %d after %d, %v", v2, v1, err)
	}
	if again, err := r.Publish(ctx, "t", nil); err != nil || again <= at {
		t.Fatalf("position %d after %d, %v", again, at, err)
	}
	_, err = r.Read(ctx, "t", at, 10)
	wants(t, err, ErrTrimmed)
}

// The server itself ends a lease that nobody renews.
func TestRedisLeaseEnds(t *testing.T) {
	t.Parallel()
	_, r := ownRedis(t, RedisConfig{})
	ok(t, r.Acquire(t.Context(), "l", "me", nil, 50*time.Millisecond))
	clocktest.Eventually(t, func() error {
		if _, err := r.Holder(t.Context(), "l"); !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("holder: %w", err)
		}
		return nil
	})
	if names, err := r.client.ZCard(t.Context(), r.name("leases")).Result(); err != nil || names != 0 {
		t.Fatalf("%d leases in the index, %v", names, err)
	}
}

// What somebody at the server can do to a lease. It may end it; it may not take
// it, change it or make it last.
func TestRedisForgedLease(t *testing.T) {
	t.Parallel()
	_, r := ownRedis(t, RedisConfig{})
	ctx := t.Context()
	for name, attack := range map[string]func(key string) error{
		"owner":    func(key string) error { return r.client.HSet(ctx, key, "o", "them").Err() },
		"value":    func(key string) error { return r.client.HSet(ctx, key, "v", "them").Err() },
		"longer":   func(key string) error { return r.client.PExpire(ctx, key, time.Hour).Err() },
		"for ever": func(key string) error { return r.client.Persist(ctx, key).Err() },
		"moved":    func(key string) error { return r.client.Copy(ctx, r.name("lease", "source"), key, 0, true).Err() },
	} {
		t.Run(name, func(t *testing.T) {
			ok(t, r.Acquire(ctx, "source", "me", []byte("other"), time.Minute))
			key := "lease-" + strings.ReplaceAll(name, " ", "-")
			ok(t, r.Acquire(ctx, key, "me", []byte("value"), time.Minute))
			if l, err := r.Holder(ctx, key); err != nil || l.Owner != "me" {
				t.Fatalf("twin: %+v, %v", l, err)
			}
			ok(t, attack(r.name("lease", key)))
			_, err := r.Holder(ctx, key)
			wants(t, err, ErrForged)
			_, err = r.Holders(ctx, key, "", 10)
			wants(t, err, ErrForged)
		})
	}
}

// A position put far ahead stops the feed; it does not pass for an entry.
func TestRedisForgedPosition(t *testing.T) {
	t.Parallel()
	_, r := ownRedis(t, RedisConfig{})
	ctx := t.Context()
	at, err := r.Publish(ctx, "t", nil)
	ok(t, err)
	ok(t, r.client.Do(ctx, "XADD", r.name("feed", "t"), "18446744073709551615-0", "b", uint64(at), "v", "x", "m", "y").Err())
	_, err = r.Publish(ctx, "t", nil)
	wants(t, err, ErrForged)
	_, err = r.Read(ctx, "t", at, 10)
	wants(t, err, ErrForged)
}

func TestOpenRedisRefuses(t *testing.T) {
	t.Parallel()
	server, r := ownRedis(t, RedisConfig{})
	ok(t, r.client.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lru").Err())
	_, err := OpenRedis(t.Context(), RedisConfig{URL: access.NewSecret(server.URL()), Key: NewKey()})
	if err == nil || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("a server that evicts: %v", err)
	}
	const password = "s3cret"
	for name, config := range map[string]RedisConfig{
		"no key":         {URL: access.NewSecret(server.URL())},
		"wrong password": {URL: access.NewSecret("redis://:" + password + "@" + server.Addr), Key: NewKey()},
		"no url":         {URL: access.NewSecret("http://:" + password + "@%zz"), Key: NewKey()},
		"bad name":       {URL: access.NewSecret(server.URL()), Key: NewKey(), Name: "a b"},
	} {
		_, err := OpenRedis(t.Context(), config)
		if err == nil || strings.Contains(err.Error(), password) {
			t.Errorf("%s: %v", name, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Get(gone, "k"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("a caller that has gone: %v", err)
	}
}

// Two chaperones in one Redis do not see each other, even with one key.
func TestRedisNames(t *testing.T) {
	t.Parallel()
	server, one := ownRedis(t, RedisConfig{Name: "one"})
	two, err := OpenRedis(t.Context(), RedisConfig{URL: access.NewSecret(server.URL()), Key: one.config.Key, Name: "two"})
	ok(t, err)
	t.Cleanup(func() { two.Close() })
	_, err = one.Put(t.Context(), "k", []byte("x"), 0)
	ok(t, err)
	_, err = two.Get(t.Context(), "k")
	wants(t, err, ErrNotFound)
	ok(t, one.client.Copy(t.Context(), one.name("record", "k"), two.name("record", "k"), 0, true).Err())
	_, err = two.Get(t.Context(), "k")
	wants(t, err, ErrForged)
}
