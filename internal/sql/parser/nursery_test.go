package parser

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A nursery has one worker and its spare.
func TestNursery(t *testing.T) {
	t.Parallel()
	dir := startNursery(t)
	t.Run("outlives pools", func(t *testing.T) { testNurseryOutlivesPools(t, dir) })
	t.Run("torn pool", func(t *testing.T) { testNurseryAfterTornPool(t, dir) })
	t.Run("ends only its own", func(t *testing.T) { testNurseryEndsOnlyItsOwn(t, dir) })
}

func startNursery(t *testing.T) (dir string) {
	t.Helper()
	root, err := os.MkdirTemp("", "nursery") // the test's own folder may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(root, "n")
	n, err := NewNursery(NurseryConfig{Command: []string{workerBinary}, Dir: dir, Workers: 1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, w := range n.workers {
			if w.process != nil {
				t.Errorf("process %d outlived its nursery", w.process.Pid)
			}
		}
		os.RemoveAll(root)
	})
	return dir
}

// awaitBoth waits for both workers and returns their processes.
func awaitBoth(t *testing.T, p *Pool) []int {
	t.Helper()
	for {
		p.idle.mu.Lock()
		var pids []int
		for _, w := range p.idle.workers {
			pids = append(pids, w.pid)
		}
		wake := p.idle.wake
		p.idle.mu.Unlock()
		if len(pids) == 2 {
			slices.Sort(pids)
			return pids
		}
		select {
		case <-wake:
		case <-time.After(2 * warmUp):
			t.Fatalf("workers %v", pids)
		}
	}
}

// What a pool leaves serves the next one, and what it distrusts does not.
func testNurseryOutlivesPools(t *testing.T, dir string) {
	first := startPool(t, Config{Nursery: dir})
	parse(t, first, "select 1")
	pids := awaitBoth(t, first)
	first.Close()
	second := startPool(t, Config{Nursery: dir})
	parse(t, second, "select 2")
	if got := awaitBoth(t, second); !slices.Equal(got, pids) {
		t.Fatalf("workers %v after the pool was closed, %v before", got, pids)
	}
	// One that does not answer within its time is replaced.
	testSilentWorker(t, second)
	after := awaitBoth(t, second)
	if slices.Equal(after, pids) {
		t.Fatal("a stopped worker was kept")
	}
	// One that dies idle costs no statement.
	if err := syscall.Kill(after[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, after[0], nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil && !errors.Is(err, unix.ECHILD) {
		t.Fatal(err)
	}
	for range 3 {
		parse(t, second, "select 3")
	}
}

// A pool that dies within a statement or a frame leaves no half of it behind.
func testNurseryAfterTornPool(t *testing.T, dir string) {
	p := startPool(t, Config{Nursery: dir})
	for _, torn := range []func(w *worker) error{
		func(w *worker) error {
			return writeFrame(w.requests, frame{id: 7, kind: frameParse, payload: []byte("select 7")})
		},
		func(w *worker) error { _, err := w.requests.Write([]byte{0, 0, 0}); return err },
	} {
		parse(t, p, "select 1")
		w := awaitIdle(t, p)
		p.idle.remove(w)
		if err := torn(w); err != nil {
			t.Fatal(err)
		}
		w.killing.Do(func() { _ = w.requests.Close(); close(w.ended) }) // as the end of the process does
		for range 4 {
			if r := parse(t, p, "select 1, 2"); len(r.Tree.GetStmts()) != 1 || len(r.Tokens) != 4 {
				t.Fatalf("got the answer to another statement: %v", r.Tree)
			}
		}
	}
}

func testNurseryEndsOnlyItsOwn(t *testing.T, dir string) {
	p := startPool(t, Config{Nursery: dir})
	pids := awaitBoth(t, p)
	p.tellNursery(os.Getpid()) // not a worker: this test goes on
	p.tellNursery(pids[0])
	// Until the signal has arrived a statement may meet it.
	var e *Error
	for got := pids; slices.Equal(got, pids); got = awaitBoth(t, p) {
		if _, err := p.Parse(t.Context(), "select 1"); err != nil && !errors.As(err, &e) {
			t.Fatal(err)
		}
	}
}

func TestNurseryRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{{}, {Command: []string{"x"}, Nursery: "y"}, {Nursery: t.TempDir()}} {
		if p, err := NewPool(c); err == nil {
			p.Close()
			t.Errorf("%+v was taken", c)
		}
	}
	if _, err := NewNursery(NurseryConfig{Dir: filepath.Join(os.DevNull, "x")}); err == nil {
		t.Error("a folder that cannot be was taken")
	}
	if Work([]string{Kept, "more"}) == nil {
		t.Error("an unknown argument was taken")
	}
}
