package store

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/clocktest"
)

func TestEmbeddedFile(t *testing.T) {
	t.Parallel()
	config := EmbeddedConfig{Path: filepath.Join(t.TempDir(), "data", "store.db"), Key: NewKey(), Timeout: 100 * time.Millisecond}
	e, err := OpenEmbedded(config)
	ok(t, err)
	info, err := os.Stat(config.Path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if _, err := OpenEmbedded(config); err == nil {
		t.Fatal("opened twice")
	}
	_, err = e.Put(t.Context(), "k", nil, 0)
	ok(t, err)
	ok(t, e.Close())
	ok(t, os.Chmod(config.Path, 0o640))
	if _, err := OpenEmbedded(config); err == nil {
		t.Fatal("opened a file that others can read")
	}
	ok(t, os.Chmod(config.Path, 0o600))
	if _, err := OpenEmbedded(EmbeddedConfig{Path: config.Path}); err == nil {
		t.Fatal("opened without a key")
	}
	config.Key = NewKey()
	e, err = OpenEmbedded(config)
	ok(t, err)
	defer e.Close()
	_, err = e.Get(t.Context(), "k")
	wants(t, err, ErrForged)
}

// A disk that does not answer is an error within the timeout, and not for ever.
func TestEmbeddedDiskHangs(t *testing.T) {
	t.Parallel()
	e, err := OpenEmbedded(EmbeddedConfig{Path: filepath.Join(fastDir(t), "store.db"), Key: NewKey(), Timeout: 100 * time.Millisecond})
	ok(t, err)
	defer e.Close()
	tx, err := e.db.Begin(true) // whoever holds the only write transaction stands for the disk
	ok(t, err)
	for range inFlight + 2 { // beyond the bound on waiting operations too
		if _, err = e.Put(t.Context(), "k", nil, 0); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		e.config.Timeout = time.Millisecond
	}
	e.config.Timeout = DefaultTimeout
	ok(t, tx.Rollback())
	clocktest.Eventually(t, func() error { _, err := e.Get(t.Context(), "k"); return err }) // one of them happened after all
}

// Leases end with the process that held them.
func TestEmbeddedLeasesEndWithProcess(t *testing.T) {
	t.Parallel()
	config := EmbeddedConfig{Path: filepath.Join(fastDir(t), "store.db"), Key: NewKey()}
	e, err := OpenEmbedded(config)
	ok(t, err)
	ok(t, e.Acquire(t.Context(), "l", "me", nil, time.Hour))
	ok(t, e.Close())
	e, err = OpenEmbedded(config)
	ok(t, err)
	defer e.Close()
	_, err = e.Holder(t.Context(), "l")
	wants(t, err, ErrNotFound)
}

func TestWatermarkIsBounded(t *testing.T) {
	t.Parallel()
	var w watermark
	for i := range 3 * watermarkKeys {
		w.raise(strconv.Itoa(i), uint64(i)+1)
	}
	if n := len(w.young) + len(w.old); n > 2*watermarkKeys {
		t.Fatalf("%d keys", n)
	}
	if got := w.floor(strconv.Itoa(3*watermarkKeys - 1)); got != 3*watermarkKeys {
		t.Fatalf("newest %d", got)
	}
	w.raise("k", 9)
	w.raise("k", 3)
	if w.floor("k") != 9 {
		t.Fatal("went back")
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	clock := newFakeClock()
	d := NewDeadline(clock.Now, clock.Now().Add(time.Hour), 0)
	if d.Passed() || d.Left() > time.Hour || d.Left() < 59*time.Minute {
		t.Fatalf("left %s", d.Left())
	}
	clock.Advance(-time.Hour) // set back: it is not put off
	if d.Left() > time.Hour {
		t.Fatalf("put off to %s", d.Left())
	}
	clock.Advance(2 * time.Hour)
	if !d.Passed() || d.Left() != 0 {
		t.Fatal("has not passed")
	}
	clock.Advance(-2 * time.Hour)
	if !d.Passed() {
		t.Fatal("passed, and no more")
	}
	bounded := NewDeadline(clock.Now, clock.Now().Add(time.Hour), time.Minute)
	if bounded.Left() > time.Minute {
		t.Fatalf("bounded to %s", bounded.Left())
	}
	monotonic := NewDeadline(clock.Now, clock.Now().Add(time.Millisecond), 0) // the clock stands still
	clocktest.Eventually(t, func() error {
		if !monotonic.Passed() {
			return errors.New("has not passed although the time went by")
		}
		return nil
	})
}
