package record

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// A gate holds operations of one kind on segments back until it is opened.
type gate struct{ open chan struct{} }

func (g gate) hold(kind string) func(operation) outcome {
	return func(op operation) outcome {
		if op.kind == kind && strings.HasSuffix(op.name, ".ndjson") {
			<-g.open
		}
		return outcome{}
	}
}

func TestOneSyncServesMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, slowHead())
		g := gate{make(chan struct{})}
		before, _ := d.counts()
		d.set(g.hold("sync"))
		var wg sync.WaitGroup
		appendOne := func(id string) {
			wg.Go(func() {
				if err := r.Append(t.Context(), access.Synced, ask("ses", id)); err != nil {
					t.Error(err)
				}
			})
		}
		appendOne("first")
		synctest.Wait() // its fsync is under way
		for i := range 200 {
			appendOne(fmt.Sprint(i))
		}
		synctest.Wait()
		close(g.open)
		wg.Wait()
		if syncs, _ := d.counts(); syncs-before != 2 {
			t.Errorf("%d fsyncs for 201 appends, want 2", syncs-before)
		}
		if seq, _ := r.Checkpoint(); seq != 201 {
			t.Errorf("checkpoint at %d", seq)
		}
	})
}

func TestOneWriteTakesMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, slowHead())
		g := gate{make(chan struct{})}
		d.set(g.hold("write"))
		_, before := d.counts()
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := r.Append(t.Context(), access.Written, ask("ses", fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		close(g.open)
		wg.Wait()
		if _, writes := d.counts(); writes-before != 2 {
			t.Errorf("%d writes for 100 appends, want 2", writes-before)
		}
	})
}

// Synced returns after the fsync, Written after the write and without waiting
// for an fsync that is under way.
func TestLevels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, slowHead())
		g := gate{make(chan struct{})}
		d.set(g.hold("sync"))
		synced := make(chan error, 1)
		go func() { synced <- r.Append(t.Context(), access.Synced, ask("ses", "s")) }()
		synctest.Wait()
		appendAll(t, r, access.Written, row("ses", "w", "x"))
		synctest.Wait()
		select {
		case <-synced:
			t.Error("Synced returned before the fsync did")
		default:
		}
		if seq, _ := r.Checkpoint(); seq != 0 {
			t.Errorf("checkpoint at %d before any fsync", seq)
		}
		mustNames(t, string(d.folder), "s", "w")
		close(g.open)
		if err := <-synced; err != nil {
			t.Error(err)
		}
	})
}

func TestWrittenIsSyncedWithin100ms(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, usualPace)
		synctest.Wait()
		synced := make(chan time.Time, 10)
		d.set(func(op operation) outcome {
			if op.kind == "sync" && strings.HasSuffix(op.name, ".ndjson") {
				synced <- time.Now()
			}
			return outcome{}
		})
		for i := range 3 {
			written := time.Now()
			appendAll(t, r, access.Written, row("ses", fmt.Sprint(i), "x"))
			if len(synced) > 0 {
				t.Error("an fsync at once, so nothing is gathered")
			}
			if late := (<-synced).Sub(written); late > 100*time.Millisecond {
				t.Errorf("fsync %v after the write", late)
			}
			synctest.Wait()
			if seq, _ := r.Checkpoint(); seq != uint64(i+1) {
				t.Errorf("checkpoint at %d, want %d", seq, i+1)
			}
		}
	})
}

// What is written during an fsync does not wait for two times the delay.
func TestWrittenDuringSlowSync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, slowHead())
		synctest.Wait()
		begun := make(chan time.Time, 10)
		d.set(func(op operation) outcome {
			if op.kind == "sync" && strings.HasSuffix(op.name, ".ndjson") {
				begun <- time.Now()
				<-time.After(80 * time.Millisecond)
			}
			return outcome{}
		})
		go func() { _ = r.Append(t.Context(), access.Synced, ask("ses", "s")) }()
		<-begun
		<-time.After(10 * time.Millisecond)
		written := time.Now()
		appendAll(t, r, access.Written, row("ses", "w", "x"))
		if late := (<-begun).Sub(written); late > 100*time.Millisecond {
			t.Errorf("fsync %v after the write", late)
		}
	})
}

// A steady stream of Written events is synced every so often, not only when
// it pauses, and not once each.
func TestSteadyStreamIsSynced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, slowHead())
		before, _ := d.counts()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var last time.Time
		for range 100 {
			last = <-tick.C
			appendAll(t, r, access.Written, row("ses", "r", "x"))
		}
		_ = last
		synctest.Wait()
		if syncs, _ := d.counts(); syncs-before < 10 || syncs-before > 21 {
			t.Errorf("%d fsyncs in one second of events", syncs-before)
		}
	})
}

func TestHeadFollows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, usualPace)
		replaced := 0
		d.set(func(op operation) outcome {
			if op.kind == "rename" {
				replaced++
			}
			return outcome{}
		})
		for range 100 {
			appendAll(t, r, access.Synced, ask("ses", "r"))
		}
		<-time.After(usualPace.head + time.Millisecond)
		synctest.Wait()
		h, ok, err := readHead(string(d.folder))
		if err != nil || !ok || h.Seq != 100 {
			t.Errorf("HEAD %+v, %v, %v", h, ok, err)
		}
		if replaced > 2 {
			t.Errorf("HEAD replaced %d times in a second", replaced)
		}
	})
}

// A disk that hangs makes Append fail in time, and what waits is bounded.
func TestHangingDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, slowHead())
		g := gate{make(chan struct{})}
		d.set(g.hold("sync"))
		start := time.Now()
		if err := r.Append(context.Background(), access.Synced, ask("ses", "r")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("without a deadline: %v", err)
		}
		if waited := time.Since(start); waited != usualPace.patience {
			t.Errorf("failed after %v", waited)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := r.Append(ctx, access.Synced, ask("ses", "r"))
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline: %v", err)
		}
		mib := row("ses", "r", strings.Repeat("x", 1e6))
		accepted := 0
		for accepted < 100 && r.Append(t.Context(), access.Written, mib) == nil {
			accepted++
		}
		if accepted < 10 || accepted > 20 {
			t.Errorf("%d MB were taken while the disk hung", accepted)
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if err := r.Append(t.Context(), access.Written, mib); !errors.Is(err, ErrUnavailable) {
					t.Errorf("over the bound: %v", err)
				}
			})
		}
		wg.Wait()
		close(g.open)
		appendAll(t, r, access.Synced, ask("ses", "again"))
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		mustVerify(t, string(d.folder))
	})
}
