package record

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
)

// faults are ways in which a disk goes bad, each for one segment file or all.
var faults = map[string]func(op operation) outcome{
	"disk full at once": func(op operation) outcome {
		if op.kind == "write" {
			return outcome{err: syscall.ENOSPC}
		}
		return outcome{}
	},
	"disk full within a line": func(op operation) outcome {
		if op.kind == "write" {
			return outcome{err: syscall.ENOSPC, take: 40}
		}
		return outcome{}
	},
	"disk full after a line": func(op operation) outcome {
		if op.kind == "write" {
			return outcome{err: syscall.ENOSPC, take: op.size}
		}
		return outcome{}
	},
	"short write without error": func(op operation) outcome {
		if op.kind == "write" {
			return outcome{less: true, take: op.size - 3}
		}
		return outcome{}
	},
	"failing fsync": func(op operation) outcome {
		if op.kind == "sync" {
			return outcome{err: syscall.EIO}
		}
		return outcome{}
	},
	"read-only": func(op operation) outcome {
		if op.kind != "sync" {
			return outcome{err: syscall.EROFS}
		}
		return outcome{}
	},
}

func TestFaultsAreStickyAndMend(t *testing.T) {
	t.Parallel()
	for name, bad := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testFault(t, bad) })
		})
	}
}

func testFault(t *testing.T, bad func(operation) outcome) {
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{}, d, slowHead())
	appendAll(t, r, access.Synced, ask("ses", "before"))
	appendAll(t, r, access.Written, ask("ses", "promised"))
	d.set(bad)
	if err := r.Append(t.Context(), access.Synced, ask("ses", "lost")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("on a bad disk: %v", err)
	}
	d.set(nil)
	for _, level := range []access.Durability{access.Synced, access.Written} {
		if err := r.Append(t.Context(), level, ask("ses", "sticky")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("before the disk was shown to be good: %v", err)
		}
	}
	if err := r.Healthy(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("healthy: %v", err)
	}
	if seq, _ := r.Checkpoint(); seq != 1 {
		t.Errorf("checkpoint at %d, but only event 1 is on disk", seq)
	}
	<-time.After(usualPace.retryMin + time.Millisecond)
	synctest.Wait()
	if err := r.Healthy(); err != nil {
		t.Errorf("not mended by itself: %v", err)
	}
	appendAll(t, r, access.Synced, ask("ses", "after"))
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	mustVerify(t, string(d.folder))
	mustNames(t, string(d.folder), "before", "promised", "recording.mended", "after")
}

// While the disk stays bad the attempts become rarer, and every Append fails
// at once.
func TestFaultBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		reg := prometheus.NewPedanticRegistry()
		r := openTest(t, Config{Registerer: reg}, d, slowHead())
		appendAll(t, r, access.Synced, ask("ses", "before"))
		appendAll(t, r, access.Written, ask("ses", "promised"))
		attempts := 0
		d.set(func(op operation) outcome {
			if op.kind == "truncate" {
				attempts++
			}
			return faults["disk full within a line"](op)
		})
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for range 600 {
			start := time.Now()
			if err := r.Append(t.Context(), access.Synced, ask("ses", "lost")); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
			if time.Since(start) > 0 {
				t.Fatal("an Append waited")
			}
			<-tick.C
		}
		if attempts < 10 || attempts > 20 {
			t.Errorf("%d attempts in a minute", attempts)
		}
		if got := gauge(t, reg, "chaperone_record_available"); got != 0 {
			t.Errorf("available is %v", got)
		}
		d.set(nil)
		<-time.After(usualPace.retryMax)
		synctest.Wait()
		appendAll(t, r, access.Synced, ask("ses", "after"))
		if got := gauge(t, reg, "chaperone_record_available"); got != 1 {
			t.Errorf("available is %v", got)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		mustVerify(t, string(d.folder))
		mustNames(t, string(d.folder), "before", "promised", "recording.mended", "after")
	})
}

func gauge(t *testing.T, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// A rotation that fails loses nothing and is a fault like any other.
func TestFaultAtRotation(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"open", "write", "sync"} {
		synctest.Test(t, func(t *testing.T) {
			d := newTestDisk(t.TempDir())
			r := openTest(t, Config{SegmentBytes: 500}, d, slowHead())
			appendAll(t, r, access.Synced, ask("ses", "before"))
			d.set(func(op operation) outcome {
				if op.kind == kind && op.name == segmentName(2) {
					return outcome{err: syscall.ENOSPC, take: 10}
				}
				return outcome{}
			})
			if err := r.Append(t.Context(), access.Synced, ask("ses", "lost")); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: %v", kind, err)
			}
			d.set(nil)
			<-time.After(usualPace.retryMin + time.Millisecond)
			synctest.Wait()
			appendAll(t, r, access.Synced, ask("ses", "after"))
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			mustVerify(t, string(d.folder))
			mustNames(t, string(d.folder), "before", "recording.mended", "after")
		})
	}
}

// HEAD that cannot be replaced stops the recording too: without it, a cut end
// would go unnoticed.
func TestFaultOfHead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, usualPace)
		synctest.Wait() // HEAD was replaced for the new segment
		d.set(func(op operation) outcome {
			if op.kind == "rename" {
				return outcome{err: syscall.EIO}
			}
			return outcome{}
		})
		appendAll(t, r, access.Synced, ask("ses", "before"))
		<-time.After(usualPace.head + time.Millisecond)
		synctest.Wait()
		if err := r.Healthy(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("healthy: %v", err)
		}
		d.set(nil)
		<-time.After(usualPace.retryMax)
		synctest.Wait()
		appendAll(t, r, access.Synced, ask("ses", "after"))
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if report := mustVerify(t, string(d.folder)); report.Head != report.Last {
			t.Errorf("HEAD at %d of %d", report.Head, report.Last)
		}
	})
}

// An fsync that was under way when a write failed still counts.
func TestWriteFailsDuringSync(t *testing.T) {
	t.Parallel()
	for name, syncErr := range map[string]error{"fsync succeeds": nil, "fsync fails too": syscall.EIO} {
		synctest.Test(t, func(t *testing.T) {
			d := newTestDisk(t.TempDir())
			r := openTest(t, Config{}, d, slowHead())
			release := make(chan struct{})
			d.set(func(op operation) outcome {
				switch {
				case op.name != segmentName(1):
				case op.kind == "sync":
					<-release
					return outcome{err: syncErr}
				case op.kind == "write" && op.size > 2000:
					return outcome{err: syscall.ENOSPC, take: 100}
				}
				return outcome{}
			})
			first, second := make(chan error, 1), make(chan error, 1)
			go func() { first <- r.Append(t.Context(), access.Synced, ask("ses", "first")) }()
			synctest.Wait()
			go func() { second <- r.Append(t.Context(), access.Synced, ask("ses", "second")) }()
			synctest.Wait()
			big := row("ses", "big", strings.Repeat("x", 3000))
			if err := r.Append(t.Context(), access.Written, big); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: big: %v", name, err)
			}
			released := time.Now()
			close(release)
			if err := <-first; (err == nil) != (syncErr == nil) {
				t.Errorf("%s: first: %v", name, err)
			}
			if err := <-second; !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: second: %v", name, err)
			}
			if waited := time.Since(released); waited > 0 {
				t.Errorf("%s: refused %v after it was known", name, waited)
			}
			d.set(nil)
			<-time.After(usualPace.retryMax)
			synctest.Wait()
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			mustVerify(t, string(d.folder))
			if syncErr == nil {
				mustNames(t, string(d.folder), "first", "recording.mended")
			} else {
				mustNames(t, string(d.folder), "recording.mended")
			}
		})
	}
}

// Recording does not go on behind a segment that was changed on disk.
func TestMendVerifiesWhatWasOnDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newTestDisk(t.TempDir())
		r := openTest(t, Config{}, d, slowHead())
		appendAll(t, r, access.Synced, numbered(3)...)
		d.set(faults["failing fsync"])
		if err := r.Append(t.Context(), access.Synced, ask("ses", "lost")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("on a bad disk: %v", err)
		}
		name := filepath.Join(string(d.folder), segmentName(1))
		whole := readFile(t, name)
		bad := append([]byte(nil), whole...)
		bad[600] ^= 1
		writeFile(t, name, bad)
		d.set(nil)
		<-time.After(time.Minute)
		synctest.Wait()
		var damage *Damage
		if err := r.Healthy(); !errors.As(err, &damage) || damage.Line != 2 {
			t.Errorf("recording goes on over damage: %v", err)
		}
		writeFile(t, name, whole)
		<-time.After(usualPace.retryMax)
		synctest.Wait()
		if err := r.Healthy(); err != nil {
			t.Errorf("benign twin: %v", err)
		}
	})
}

// Close says when something promised may be lost, and mends if it can.
func TestCloseDuringFault(t *testing.T) {
	t.Parallel()
	for _, mended := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			d := newTestDisk(t.TempDir())
			r := openTest(t, Config{}, d, slowHead())
			appendAll(t, r, access.Written, ask("ses", "promised"))
			d.set(faults["failing fsync"])
			if err := r.Append(t.Context(), access.Synced, ask("ses", "lost")); !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
			if mended {
				d.set(nil)
			}
			if err := r.Close(); (err == nil) != mended {
				t.Errorf("disk good again %v, Close returns %v", mended, err)
			}
			if mended {
				mustVerify(t, string(d.folder))
				mustNames(t, string(d.folder), "promised", "recording.mended")
			}
		})
	}
}

// Open fails on a bad disk and leaves the folder free.
func TestOpenOnBadDisk(t *testing.T) {
	t.Parallel()
	for name, bad := range faults {
		d := newTestDisk(t.TempDir())
		d.set(bad)
		if _, err := open(Config{Dir: string(d.folder)}, d, usualPace); err == nil {
			t.Errorf("%s: opened", name)
		}
		d.set(nil)
		r, err := open(Config{Dir: string(d.folder)}, d, usualPace)
		if err != nil {
			t.Errorf("%s, then good: %v", name, err)
			continue
		}
		appendAll(t, r, access.Synced, numbered(1)...)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		mustVerify(t, string(d.folder))
	}
}

// A real file system that has no more room: a child process runs into its
// limit of the size of a file, which the kernel treats like a full disk (a
// part of the write, then an error), and then the limit is lifted.
func TestRealDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := startChild(t, "full", dir)
	out, err := c.output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var want []string
	for l := range strings.Lines(out) {
		want = append(want, strings.TrimSpace(l))
	}
	report := mustVerify(t, dir)
	if report.Segments < 2 || len(want) < 3 {
		t.Errorf("report %+v for %q", report, want)
	}
	mustNames(t, dir, want...)
}

// fullChild prints the names of the events that must be in the recording.
func fullChild(dir string) int {
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		return fatal(err)
	}
	ignoreFileSizeSignal()
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 10_000, Max: was.Max}); err != nil {
		return fatal(err)
	}
	p := usualPace
	p.retryMin, p.retryMax = time.Millisecond, 10*time.Millisecond
	r, err := open(Config{Dir: dir}, folder(dir), p)
	if err != nil {
		return fatal(err)
	}
	stdout := &lineWriter{w: os.Stdout}
	failed := 0
	for i := 0; failed == 0 && i < 1000; i++ {
		if failed += tryAppend(r, stdout, i); failed > 0 {
			break
		}
	}
	if failed == 0 {
		return fatal(errors.New("the limit was never reached"))
	}
	// A segment that is full is left behind; only room for the next one mends.
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		return fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if r.Healthy() == nil {
			stdout.line("recording.mended")
			if tryAppend(r, stdout, 5000) > 0 {
				return fatal(errors.New("failed after it was mended"))
			}
			if err := r.Close(); err != nil {
				return fatal(err)
			}
			return 0
		}
		<-tick.C
	}
	return fatal(errors.New("never mended"))
}
