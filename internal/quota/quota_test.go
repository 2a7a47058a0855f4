package quota

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/store"
)

// A clock moves only when told to.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time { return time.Unix(0, c.now.Load()).UTC() }

func newClock() *clock {
	c := &clock{}
	c.now.Store(time.Date(2026, 5, 1, 14, 20, 0, 0, time.UTC).UnixNano())
	return c
}

// A world is the service as two replicas run it over one store.
type world struct {
	clock    *clock
	records  store.Records
	replicas [2]*Service
	gone     func() // makes the store unreachable
}

func newWorld(t *testing.T, stores [2]store.Store, gone func()) *world {
	t.Helper()
	w := &world{clock: newClock(), records: stores[0], gone: gone}
	for i := range w.replicas {
		var err error
		if w.replicas[i], err = New(Config{Store: stores[i], Clock: w.clock.Now}); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// conformance runs test on both kinds of store.
func conformance(t *testing.T, test func(t *testing.T, w *world)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		s, err := store.OpenEmbedded(store.EmbeddedConfig{Path: filepath.Join(fastDir(t), "store.db"), Key: store.NewKey()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		test(t, newWorld(t, [2]store.Store{s, s}, func() { s.Close() }))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server, err := localserver.StartRedis(t.Context(), fastDir(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		key, stores := store.NewKey(), [2]store.Store{}
		for i := range stores {
			r, err := store.OpenRedis(t.Context(), store.RedisConfig{URL: access.NewSecret(server.URL()), Key: key, Timeout: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close() })
			stores[i] = r
		}
		test(t, newWorld(t, stores, server.Kill))
	})
}

func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "quota-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func hour(q access.Quota) access.Limits { return access.Limits{Hour: q} }

// exceeded fails unless err says that limit is used up.
func exceeded(t *testing.T, err error, limit string) *ExceededError {
	t.Helper()
	over, ok := errors.AsType[*ExceededError](err)
	if !ok || over.Limit != limit {
		t.Fatalf("got %v, want %s used up", err, limit)
	}
	return over
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func begin(t *testing.T, s *Service, session, account string, l access.Limits) *Use {
	t.Helper()
	u, err := s.Begin(t.Context(), session, account, l)
	must(t, err)
	return u
}

func TestStatements(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T, w *world) {
		both := access.Limits{Session: access.Quota{Statements: 2}, Hour: access.Quota{Statements: 3}}
		begin(t, w.replicas[0], "one", "ada", both)
		begin(t, w.replicas[1], "one", "ada", both)
		_, err := w.replicas[0].Begin(t.Context(), "one", "ada", both)
		if over := exceeded(t, err, "per_session.statements"); !over.Frees.IsZero() {
			t.Errorf("a session's limit is free at %v", over.Frees)
		}
		begin(t, w.replicas[0], "two", "ada", both) // another session
		_, err = w.replicas[1].Begin(t.Context(), "three", "ada", both)
		if over := exceeded(t, err, "per_hour.statements"); !over.Frees.Equal(time.Date(2026, 5, 1, 15, 0, 0, 0, time.UTC)) {
			t.Errorf("free at %v", over.Frees)
		}
		begin(t, w.replicas[0], "four", "bob", both) // another principal
		w.clock.now.Add(int64(40 * time.Minute))
		u := begin(t, w.replicas[0], "three", "ada", both) // another hour; the refused try was given back
		begin(t, w.replicas[0], "three", "ada", both)
		must(t, u.End(t.Context(), time.Second))
		if u, err := w.replicas[0].Begin(t.Context(), "one", "ada", access.Limits{RowsRead: 1}); u != nil || err != nil || u.Read(t.Context(), 5, 5) != nil {
			t.Errorf("what has no such limit is counted: %v, %v", u, err)
		}
	})
}

// However many read at once, no more rows than the limit pass, and no more are
// lost than what was reserved; what was not used is given back.
func TestReadersAtOnce(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T, w *world) {
		const most = 300
		var passed atomic.Int64
		var uses []*Use
		for i := range 8 {
			uses = append(uses, begin(t, w.replicas[i%2], fmt.Sprint(i), "ada", hour(access.Quota{RowsRead: most})))
		}
		var readers sync.WaitGroup
		for _, u := range uses {
			readers.Go(func() {
				for u.Read(t.Context(), 1, 100) == nil {
					passed.Add(1)
				}
				if err := u.End(t.Context(), 0); err != nil {
					t.Error(err)
				}
			})
		}
		readers.Wait()
		if n := passed.Load(); n != most {
			t.Errorf("%d rows passed, %d may", n, most)
		}
		_, err := w.replicas[0].Begin(t.Context(), "x", "ada", hour(access.Quota{RowsRead: most}))
		exceeded(t, err, "per_hour.rows_read")
	})
}

func TestUnusedIsGivenBack(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T, w *world) {
		l := access.Limits{Session: access.Quota{Bytes: 1000}, Hour: access.Quota{Bytes: 800}}
		u := begin(t, w.replicas[0], "s", "ada", l)
		must(t, u.Read(t.Context(), 3, 10))
		must(t, u.End(t.Context(), 0))
		u = begin(t, w.replicas[1], "s", "ada", l)
		exceeded(t, u.Read(t.Context(), 0, 791), "per_hour.bytes")
		must(t, u.Read(t.Context(), 0, 790))
		must(t, u.End(t.Context(), 0))
		_, err := w.replicas[0].Begin(t.Context(), "s", "ada", l)
		exceeded(t, err, "per_hour.bytes")
		u = begin(t, w.replicas[0], "s", "bob", l) // the session has 200 left
		exceeded(t, u.Read(t.Context(), 0, 201), "per_session.bytes")
		must(t, u.Read(t.Context(), 0, 200))
	})
}

func TestChanges(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T, w *world) {
		l := hour(access.Quota{RowsChanged: 10})
		u := begin(t, w.replicas[0], "s", "ada", l)
		if !u.CountsChanges() || begin(t, w.replicas[0], "s", "eve", hour(access.Quota{Bytes: 1})).CountsChanges() {
			t.Error("changes are counted where they have no limit, or not where they have")
		}
		must(t, u.Changed(t.Context(), 6))
		exceeded(t, u.Changed(t.Context(), 5), "per_hour.rows_changed")
		must(t, u.Changed(t.Context(), 4))
	})
}

func TestTime(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T, w *world) {
		l := access.Limits{Session: access.Quota{Time: time.Minute}, Hour: access.Quota{Time: 30 * time.Second}}
		u := begin(t, w.replicas[0], "s", "ada", l)
		if u.Left() != 30*time.Second {
			t.Errorf("%v left", u.Left())
		}
		must(t, u.End(t.Context(), 20*time.Second))
		u = begin(t, w.replicas[1], "s", "ada", l)
		if u.Left() != 10*time.Second {
			t.Errorf("%v left", u.Left())
		}
		must(t, u.End(t.Context(), 11*time.Second))
		_, err := w.replicas[0].Begin(t.Context(), "s", "ada", l)
		if over := exceeded(t, err, "per_hour.time"); over.Error() != "the limit per_hour.time of 30s an hour is used up; it is free again at 15:00 UTC" {
			t.Errorf("got %s", over)
		}
	})
}

// Whoever writes to the store cannot make room, and without the store nothing
// passes.
func TestFailsClosed(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T, w *world) {
		l := hour(access.Quota{Statements: 5, RowsRead: 5})
		u := begin(t, w.replicas[0], "s", "ada", l)
		w.gone()
		_, err := w.replicas[0].Begin(t.Context(), "s", "ada", l)
		for what, err := range map[string]error{"begin": err, "read": u.Read(t.Context(), 1, 1)} {
			if !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%s: %v", what, err)
			}
			if d := DenialOf(err, "req_1", "orders", access.Decision{}); d.Reason != access.Unavailable || d.Limit != "" {
				t.Errorf("%s: %+v", what, d)
			}
		}
	})
}

func TestSweep(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T, w *world) {
		l := access.Limits{Session: access.Quota{Statements: 9}, Hour: access.Quota{Statements: 9}}
		begin(t, w.replicas[0], "s", "ada", l)
		if _, err := w.records.Put(t.Context(), "other/record", []byte("{}"), 0); err != nil {
			t.Fatal(err)
		}
		kept := func(want int) {
			t.Helper()
			must(t, w.replicas[0].Sweep(t.Context()))
			page, err := w.records.List(t.Context(), "", "", 100)
			must(t, err)
			if len(page.Items) != want+1 {
				t.Errorf("%d records, want %d", len(page.Items), want+1)
			}
		}
		kept(2)
		w.clock.now.Add(int64(3 * time.Hour))
		kept(1)
		begin(t, w.replicas[0], "s", "ada", l) // the session's counter goes on
		record, err := w.records.Get(t.Context(), sessionPrefix+"s")
		must(t, err)
		var c counter
		must(t, json.Unmarshal(record.Value, &c))
		if c.Used[statements] != 2 {
			t.Errorf("%d statements", c.Used[statements])
		}
		w.clock.now.Add(int64(8 * 24 * time.Hour))
		kept(0)
	})
}

func TestRunEnds(t *testing.T) {
	t.Parallel()
	s, err := store.OpenEmbedded(store.EmbeddedConfig{Path: filepath.Join(fastDir(t), "store.db"), Key: store.NewKey()})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	service, err := New(Config{Store: s})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, service.Run(ctx))
	if _, err := New(Config{}); err == nil {
		t.Error("no store is taken")
	}
}

func TestAccount(t *testing.T) {
	t.Parallel()
	p, r := access.Principal{Issuer: "dex", Subject: "ada"}, access.Resource{Name: "orders"}
	if Account(p, r) == Account(p, access.Resource{Name: "order"}) || Account(p, r) == Account(access.Principal{Issuer: "dex", Subject: "bob"}, r) {
		t.Error("two accounts are one")
	}
	p.Groups, p.Token.ID = []string{"g"}, "other"
	if Account(p, r) != Account(access.Principal{Issuer: "dex", Subject: "ada"}, r) {
		t.Error("a new token makes a new account")
	}
}
