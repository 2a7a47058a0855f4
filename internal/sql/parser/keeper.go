package parser

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"
)

// A worker is one process. One statement at a time uses it.
type worker struct {
	cmd        *exec.Cmd
	requests   *os.File      // its standard input
	answers    *os.File      // its standard output
	reader     *bufio.Reader // of answers
	ended      chan struct{}
	killing    sync.Once
	nextID     uint64
	statements int
}

func (w *worker) pid() int { return w.cmd.Process.Pid }

func (w *worker) dead() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// kill ends the process; its keeper reaps it.
func (w *worker) kill() {
	w.killing.Do(func() { _ = w.cmd.Process.Kill() })
}

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
func (p *Pool) keepWorker(warming chan struct{}) {
	defer p.keepers.Done()
	pause := firstPause
	for p.ctx.Err() == nil {
		w, err := p.warmWorker(warming)
		if err == nil {
			pause = firstPause
			p.metrics.workers.Inc()
			p.idle.put(w)
			select {
			case <-w.ended:
			case <-p.ctx.Done():
				w.kill()
				<-w.ended
			}
			p.idle.remove(w)
			p.metrics.workers.Dec()
			continue
		}
		if p.ctx.Err() != nil {
			return
		}
		p.log.Error("parser worker did not start", "error", err, "retry_in", pause)
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
		}
		pause = min(2*pause, longestPause)
	}
}

// warmWorker starts a worker and returns it once it has answered the canary.
// The process is gone when an error is returned.
func (p *Pool) warmWorker(warming chan struct{}) (*worker, error) {
	select {
	case warming <- struct{}{}:
		defer func() { <-warming }()
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
	w, err := p.startWorker()
	if err != nil {
		return nil, err
	}
	cancel := context.AfterFunc(p.ctx, w.kill)
	defer cancel()
	err = w.awaitReady()
	if err == nil {
		err = p.checkCanary(w)
	}
	if err != nil {
		w.kill()
		<-w.ended
		return nil, err
	}
	return w, nil
}

func (w *worker) awaitReady() error {
	if err := w.answers.SetReadDeadline(time.Now().Add(warmUp)); err != nil {
		return fmt.Errorf("set the deadline: %w", err)
	}
	f, err := readFrame(w.reader, maxAnswer)
	if err != nil {
		return fmt.Errorf("await the worker: %w", err)
	}
	if f.kind != frameReady || f.id != 0 {
		return fmt.Errorf("await the worker: %w: kind %q", errFrame, f.kind)
	}
	return nil
}

// A startRequest asks the starter for a process.
type startRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// runStarter starts every worker from one thread that lives as long as the
// pool: the kernel takes the end of the starting thread for the end of the
// parent.
func (p *Pool) runStarter() {
	defer p.starter.Done()
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	// Keepers stop first, so that no worker is killed by the thread's end while
	// its keeper still counts on it.
	keepersDone := make(chan struct{})
	go func() { p.keepers.Wait(); close(keepersDone) }()
	for {
		select {
		case r := <-p.starts:
			r.done <- r.cmd.Start()
		case <-keepersDone:
			return
		}
	}
}

// startWorker starts a process with an empty environment, nothing of ours but
// its two pipes, and what it prints thrown away: a stack trace may hold the
// statement.
func (p *Pool) startWorker() (*worker, error) {
	childIn, requests, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start a parser worker: %w", err)
	}
	answers, childOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a parser worker: %w", err), childIn.Close(), requests.Close())
	}
	cmd := exec.Command(p.config.Command[0], p.config.Command[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout = []string{}, "/", childIn, childOut
	cmd.SysProcAttr = workerAttributes()
	r := startRequest{cmd: cmd, done: make(chan error, 1)}
	p.starts <- r // the starter outlives every keeper
	err = <-r.done
	_ = errors.Join(childIn.Close(), childOut.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a parser worker: %w", err), requests.Close(), answers.Close())
	}
	w := &worker{cmd: cmd, requests: requests, answers: answers, reader: bufio.NewReader(answers), ended: make(chan struct{})}
	p.keepers.Add(1)
	go func() {
		defer p.keepers.Done()
		_ = cmd.Wait()
		close(w.ended)
		_ = errors.Join(requests.Close(), answers.Close())
	}()
	return w, nil
}
