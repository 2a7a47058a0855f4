package parser

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"
)

// A link is one direction of what joins a pool and a worker, or both.
type link interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// A worker is one process. One statement at a time uses it.
type worker struct {
	pid        int           // as the system says, or the kept worker itself
	requests   link          // its standard input, or the connection
	answers    link          // its standard output, or the connection
	reader     *bufio.Reader // of answers
	ended      chan struct{}
	gone       func() bool // whether a kept worker left while idle; nil for one of our own
	end        func()      // ends the process
	killing    sync.Once
	nextID     uint64
	statements int
}

func (w *worker) dead() bool {
	select {
	case <-w.ended:
		return true
	default:
		return w.gone != nil && w.gone()
	}
}

// kill ends the process; its keeper reaps it.
func (w *worker) kill() { w.killing.Do(w.end) }

// exchange sends text and waits for the answer with the same id. The error is
// an *Error when the worker refused the text; after any other the worker is to
// be killed.
func (w *worker) exchange(text string, timeout time.Duration) ([]byte, error) {
	w.nextID++
	deadline := time.Now().Add(timeout)
	if err := errors.Join(w.requests.SetWriteDeadline(deadline), w.answers.SetReadDeadline(deadline)); err != nil {
		return nil, fmt.Errorf("set the deadline: %w", err)
	}
	if err := writeFrame(w.requests, frame{id: w.nextID, kind: frameParse, payload: []byte(text)}); err != nil {
		return nil, fmt.Errorf("send the statement: %w", err)
	}
	f, err := readFrame(w.reader, maxAnswer)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if f.id != w.nextID {
		return nil, fmt.Errorf("%w: answer %d to request %d", errFrame, f.id, w.nextID)
	}
	switch f.kind {
	case frameTree:
		return f.payload, nil
	case frameRefused:
		verdict, err := parseRefused(f.payload)
		if err != nil {
			return nil, err
		}
		return nil, verdict
	case frameFault:
		return nil, errWorkerSpent
	}
	return nil, fmt.Errorf("%w: kind %q", errFrame, f.kind)
}

// idleWorkers are the warm workers that no statement uses.
type idleWorkers struct {
	mu      sync.Mutex
	workers []*worker
	wake    chan struct{} // closed and replaced when one comes in
}

// take returns a live worker, or nil and what to wait for.
func (i *idleWorkers) take() (*worker, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for len(i.workers) > 0 {
		w := i.workers[0]
		i.workers = i.workers[1:]
		if !w.dead() {
			return w, nil
		}
		w.kill() // its keeper looks for another
	}
	return nil, i.wake
}

func (i *idleWorkers) put(w *worker) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.workers = append(i.workers, w)
	close(i.wake)
	i.wake = make(chan struct{})
}

// remove drops a worker that ended, if it is there.
func (i *idleWorkers) remove(w *worker) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.workers = slices.DeleteFunc(i.workers, func(o *worker) bool { return o == w })
}

// keepWorker keeps one worker alive until the pool closes.
func (p *Pool) keepWorker(start func() (*worker, error)) {
	defer p.keepers.Done()
	keep(p.ctx, p.log, func() error {
		w, err := p.warmWorker(start)
		if err != nil {
			return err
		}
		p.metrics.workers.Inc()
		defer p.metrics.workers.Dec()
		p.idle.put(w)
		select {
		case <-w.ended:
		case <-p.ctx.Done():
			w.kill()
			<-w.ended
		}
		p.idle.remove(w)
		return nil
	})
}

// keep runs one worker after the other until ctx ends, with a growing pause
// between those that do not start.
func keep(ctx context.Context, log *slog.Logger, run func() error) {
	pause := firstPause
	for ctx.Err() == nil {
		err := run()
		if err == nil {
			pause = firstPause
			continue
		}
		if ctx.Err() != nil {
			return
		}
		log.Error("parser worker did not start", "error", err, "retry_in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, longestPause)
	}
}

// warmWorker starts a worker and returns it once it has answered the canary.
// The process is gone when an error is returned.
func (p *Pool) warmWorker(start func() (*worker, error)) (*worker, error) {
	select {
	case p.warming <- struct{}{}:
		defer func() { <-p.warming }()
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
	w, err := start()
	if err != nil {
		return nil, err
	}
	cancel := context.AfterFunc(p.ctx, w.kill)
	defer cancel()
	if w.pid, err = w.awaitReady(); err == nil {
		err = p.checkCanary(w)
	}
	if err != nil {
		w.kill()
		<-w.ended
		return nil, err
	}
	return w, nil
}

// awaitReady returns the worker's process, as it says itself.
func (w *worker) awaitReady() (pid int, err error) {
	if err := w.answers.SetReadDeadline(time.Now().Add(warmUp)); err != nil {
		return 0, fmt.Errorf("set the deadline: %w", err)
	}
	f, err := readFrame(w.reader, maxAnswer)
	if err != nil {
		return 0, fmt.Errorf("await the worker: %w", err)
	}
	if f.kind != frameReady || f.id != 0 || len(f.payload) != 4 {
		return 0, fmt.Errorf("await the worker: %w: kind %q", errFrame, f.kind)
	}
	return int(binary.BigEndian.Uint32(f.payload)), nil
}

// A starter starts every worker from one thread that lives as long as they do:
// the kernel takes the end of the starting thread for the end of the parent.
type starter struct {
	requests chan startRequest
	done     sync.WaitGroup
}

type startRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// run lasts until users, those who may call start, are done.
func (s *starter) run(users *sync.WaitGroup) {
	defer s.done.Done()
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	usersDone := make(chan struct{})
	go func() { users.Wait(); close(usersDone) }()
	for {
		select {
		case r := <-s.requests:
			r.done <- r.cmd.Start()
		case <-usersDone:
			return
		}
	}
}

func (s *starter) start(cmd *exec.Cmd) error {
	r := startRequest{cmd: cmd, done: make(chan error, 1)}
	s.requests <- r
	return <-r.done
}

// command is a worker's: an empty environment, and what it prints thrown away,
// for a stack trace may hold the statement.
func command(argv []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = []string{}, "/", workerAttributes()
	return cmd
}

// startWorker starts a process with nothing of ours but its two pipes.
func (p *Pool) startWorker() (*worker, error) {
	childIn, requests, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start a parser worker: %w", err)
	}
	answers, childOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a parser worker: %w", err), childIn.Close(), requests.Close())
	}
	cmd := command(p.config.Command)
	cmd.Stdin, cmd.Stdout = childIn, childOut
	err = p.starter.start(cmd) // the starter outlives every keeper
	_ = errors.Join(childIn.Close(), childOut.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a parser worker: %w", err), requests.Close(), answers.Close())
	}
	w := &worker{requests: requests, answers: answers, reader: bufio.NewReader(answers), ended: make(chan struct{}),
		end: func() { _ = cmd.Process.Kill() }}
	p.keepers.Add(1)
	go func() {
		defer p.keepers.Done()
		_ = cmd.Wait()
		close(w.ended)
		_ = errors.Join(requests.Close(), answers.Close())
	}()
	return w, nil
}
