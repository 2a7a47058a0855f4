package approval

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.etcd.io/bbolt"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/store"
	"chaperone.dev/chaperone/internal/store/storetest"
)

// A writer changes what is stored of an approval, around the store: it gets the
// stored value and returns what to put in its place.
type writer func(t *testing.T, id string, change func(value []byte) []byte)

// Somebody who can write to the store, but has no key, makes a pending approval
// granted. The control shows that the same change made with the key would have
// worked, so it is the MAC that stops it; the twin is a real reviewer's grant.
func TestForgedGrant(t *testing.T) {
	t.Parallel()
	attack := func(t *testing.T, open func() *Service, write writer, sealed func(id string, change func([]byte) []byte)) {
		ctx := t.Context()
		ask := func(n string) access.Approval {
			a, err := open().Ask(ctx, newAsk(n, false, access.ApprovalTerms{}))
			ok(t, err)
			return a
		}
		forge := func(value []byte) []byte {
			var e entry
			ok(t, json.Unmarshal(value, &e))
			e.Approval.State = access.Granted
			e.Approval.Answers = []access.Answer{{Reviewer: reviewer("bob"), Grant: true, Time: time.Now()}}
			forged, err := e.encode()
			ok(t, err)
			return forged
		}
		victim := ask("attack")
		write(t, victim.ID, forge)
		for name, act := range map[string]func(context.Context) error{
			"consume": func(ctx context.Context) error { return open().Consume(ctx, victim.ID, victim.Digest) },
			"wait":    func(ctx context.Context) error { _, err := open().Wait(ctx, victim.ID); return err },
			"get":     func(ctx context.Context) error { _, err := open().Get(ctx, victim.ID); return err },
			"answer": func(ctx context.Context) error {
				_, err := open().Answer(ctx, victim.ID, reviewer("dora"), true, "")
				return err
			},
			"ask": func(ctx context.Context) error {
				_, err := open().Ask(ctx, newAsk("attack", false, access.ApprovalTerms{}))
				return err
			},
		} {
			if err := act(ctx); !errors.Is(err, store.ErrForged) {
				t.Errorf("attack: %s: %v", name, err)
			}
		}
		control := ask("control")
		sealed(control.ID, forge)
		if err := open().Consume(ctx, control.ID, control.Digest); err != nil {
			t.Errorf("control: %v", err)
		}
		twin := ask("twin")
		write(t, twin.ID, func(value []byte) []byte { return value })
		_, err := open().Answer(ctx, twin.ID, reviewer("bob"), true, "")
		ok(t, err)
		if err := open().Consume(ctx, twin.ID, twin.Digest); err != nil {
			t.Errorf("twin: %v", err)
		}
	}
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := storetest.StartRedis(t)
		config := store.RedisConfig{URL: access.NewSecret(server.URL()), Key: store.NewKey(), Name: "forged"}
		raw := redis.NewClient(&redis.Options{Addr: server.Addr, Password: server.Password})
		defer raw.Close()
		p := newPair(t, [2]store.Store{storetest.Redis(t, config), storetest.Redis(t, config)}, nil)
		write := func(t *testing.T, id string, change func([]byte) []byte) {
			t.Helper()
			key := "{forged}:record:" + recordPrefix + id
			value, err := raw.HGet(t.Context(), key, "v").Bytes()
			ok(t, err)
			ok(t, raw.HSet(t.Context(), key, "v", change(value)).Err())
		}
		attack(t, func() *Service { return p.one }, write, sealedWriter(t, p.stores[1]))
	})
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		config := store.EmbeddedConfig{Path: filepath.Join(storetest.Dir(t), "store.db"), Key: store.NewKey()}
		var s *store.Embedded
		reopen := func() *Service {
			var err error
			s, err = store.OpenEmbedded(config)
			ok(t, err)
			return newPair(t, [2]store.Store{s, s}, nil).one
		}
		service := reopen()
		write := func(t *testing.T, id string, change func([]byte) []byte) {
			t.Helper()
			ok(t, s.Close())
			rewriteFile(t, config.Path, recordPrefix+id, change)
			service = reopen()
		}
		t.Cleanup(func() { s.Close() })
		attack(t, func() *Service { return service }, write, func(id string, change func([]byte) []byte) { sealedWriter(t, s)(id, change) })
	})
}

// sealedWriter changes a record through the store, which has the key.
func sealedWriter(t *testing.T, s store.Store) func(id string, change func([]byte) []byte) {
	return func(id string, change func([]byte) []byte) {
		t.Helper()
		r, err := s.Get(t.Context(), recordPrefix+id)
		ok(t, err)
		_, err = s.Put(t.Context(), r.Key, change(r.Value), r.Version)
		ok(t, err)
	}
}

// rewriteFile changes a value in the file of an embedded store: version, MAC,
// value.
func rewriteFile(t *testing.T, path, key string, change func([]byte) []byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	ok(t, err)
	defer db.Close()
	ok(t, db.Update(func(tx *bbolt.Tx) error {
		records := tx.Bucket([]byte("records"))
		b := bytes.Clone(records.Get([]byte(key)))
		return records.Put([]byte(key), append(b[:40:40], change(b[40:])...))
	}))
}

// A used grant put back as it was before does not run again, wherever the newer
// state was seen.
func TestReplayedGrant(t *testing.T) {
	t.Parallel()
	server := storetest.StartRedis(t)
	config := store.RedisConfig{URL: access.NewSecret(server.URL()), Key: store.NewKey(), Name: "replay"}
	p := newPair(t, [2]store.Store{storetest.Redis(t, config), storetest.Redis(t, config)}, nil)
	raw := redis.NewClient(&redis.Options{Addr: server.Addr, Password: server.Password})
	defer raw.Close()
	a, err := p.one.Ask(t.Context(), newAsk("1", false, access.ApprovalTerms{}))
	ok(t, err)
	_, err = p.one.Answer(t.Context(), a.ID, reviewer("bob"), true, "")
	ok(t, err)
	key := "{replay}:record:" + recordPrefix + a.ID
	granted, err := raw.HGetAll(t.Context(), key).Result()
	ok(t, err)
	ok(t, p.one.Consume(t.Context(), a.ID, a.Digest))
	ok(t, raw.HSet(t.Context(), key, granted).Err())
	wants(t, p.one.Consume(t.Context(), a.ID, a.Digest), store.ErrForged)
}

// The store goes away and comes back: nothing is granted or run meanwhile,
// waiting clients survive a short absence, and all works again by itself.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	server := storetest.StartRedis(t)
	config := store.RedisConfig{URL: access.NewSecret(server.URL()), Key: store.NewKey(), Timeout: 300 * time.Millisecond}
	p := newPair(t, [2]store.Store{storetest.Redis(t, config), storetest.Redis(t, config)}, nil).run(t)
	ctx := t.Context()
	pending, err := p.one.Ask(ctx, newAsk("1", false, access.ApprovalTerms{}))
	ok(t, err)
	granted, err := p.one.Ask(ctx, newAsk("2", false, access.ApprovalTerms{}))
	ok(t, err)
	_, err = p.one.Answer(ctx, granted.ID, reviewer("bob"), true, "")
	ok(t, err)
	waited := make(chan error, 1)
	go func() {
		got, err := p.two.Wait(ctx, pending.ID)
		if err == nil && got.State != access.Granted {
			err = errors.New(string(got.State))
		}
		waited <- err
	}()
	server.Kill()
	_, ask := p.one.Ask(ctx, newAsk("3", false, access.ApprovalTerms{}))
	_, answer := p.one.Answer(ctx, pending.ID, reviewer("bob"), true, "")
	for name, err := range map[string]error{"ask": ask, "answer": answer, "consume": p.one.Consume(ctx, granted.ID, granted.Digest)} {
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s while the store is gone: %v", name, err)
		}
	}
	ok(t, server.Start(ctx))
	clocktest.Eventually(t, func() error {
		_, err := p.one.Answer(ctx, pending.ID, reviewer("bob"), true, "")
		return err
	})
	ok(t, <-waited)
	ok(t, p.two.Consume(ctx, granted.ID, granted.Digest))
	recorded(t, p.recorder, granted.ID, access.Pending, access.Granted, access.Consumed)
}

// Open questions and grants survive a restart on the embedded store; what
// waited in the process that ended does not.
func TestRestart(t *testing.T) {
	t.Parallel()
	config := store.EmbeddedConfig{Path: filepath.Join(storetest.Dir(t), "store.db"), Key: store.NewKey()}
	open := func() (*store.Embedded, *pair) {
		s, err := store.OpenEmbedded(config)
		ok(t, err)
		t.Cleanup(func() { s.Close() })
		return s, newPair(t, [2]store.Store{s, s}, nil)
	}
	s, before := open()
	var filed []access.Approval
	for i, leased := range []bool{true, false, false} {
		a, err := before.one.Ask(t.Context(), newAsk(strconv.Itoa(i), leased, access.ApprovalTerms{}))
		ok(t, err)
		filed = append(filed, a)
	}
	_, err := before.one.Answer(t.Context(), filed[2].ID, reviewer("bob"), true, "")
	ok(t, err)
	ok(t, s.Close())
	_, after := open()
	run(t, after.one)
	clocktest.Eventually(t, func() error {
		if steps := after.recorder.steps(filed[0].ID); len(steps) != 1 || steps[0] != access.Abandoned {
			return errors.New("not abandoned")
		}
		return nil
	})
	isState(t, after.one, filed[1].ID, access.Pending)
	ok(t, after.one.Consume(t.Context(), filed[2].ID, filed[2].Digest))
}
