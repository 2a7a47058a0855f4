package parser

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A Nursery keeps warm workers for a process that may end and start again: its
// pool finds them warm, where compiling the grammar would take each of them
// seconds. Each worker listens on a socket of its own in the folder and serves
// one connection at a time; the nursery holds the sockets, so that who connects
// while a worker is replaced only waits.
//
// Every file in the folder belongs to the nursery. Whoever may open its sockets
// may parse, and may have workers ended.
type Nursery struct {
	config  NurseryConfig
	workers []*keptWorker
	endings net.Listener // process ids of workers to end, four bytes each
	starter starter
	keepers sync.WaitGroup
	warming chan struct{}
}

// NurseryConfig says what a Nursery keeps.
type NurseryConfig struct {
	Command []string // program and arguments of a worker; it must call Work, and gets the argument Kept
	Dir     string   // for the sockets; only this user may enter it
	Workers int      // those that parse at once, and a spare
	Logger  *slog.Logger
}

// A keptWorker is a place for one process.
type keptWorker struct {
	listener *os.File
	mu       sync.Mutex
	process  *os.Process // nil while none runs
}

const (
	endingsSocket  = "end.sock"
	endingPatience = time.Second // for a nursery to take a process id
	maxEndings     = 16          // connections that ask for one, at once
)

func workerSocket(i int) string { return fmt.Sprintf("worker-%02d.sock", i) }

// NewNursery makes the sockets; Run starts the workers. A pool may connect
// already.
func NewNursery(c NurseryConfig) (*Nursery, error) {
	if err := os.RemoveAll(c.Dir); err != nil {
		return nil, fmt.Errorf("parser nursery: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("parser nursery: %w", err)
	}
	n := &Nursery{config: c, warming: make(chan struct{}, 1), starter: starter{requests: make(chan startRequest)}}
	for i := range c.Workers + 1 {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(c.Dir, workerSocket(i)), Net: "unix"})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("parser nursery: %w", err), n.close())
		}
		l.SetUnlinkOnClose(false)
		file, err := l.File()
		if err := errors.Join(err, l.Close()); err != nil {
			return nil, errors.Join(fmt.Errorf("parser nursery: %w", err), n.close())
		}
		n.workers = append(n.workers, &keptWorker{listener: file})
	}
	var err error
	if n.endings, err = net.Listen("unix", filepath.Join(c.Dir, endingsSocket)); err != nil {
		return nil, errors.Join(fmt.Errorf("parser nursery: %w", err), n.close())
	}
	return n, nil
}

func (n *Nursery) close() (err error) {
	for _, w := range n.workers {
		err = errors.Join(err, w.listener.Close())
	}
	if n.endings != nil {
		err = errors.Join(err, n.endings.Close())
	}
	return err
}

// Run keeps the workers until ctx ends; they have ended when it returns. The
// end of this process, however it comes, ends them too.
func (n *Nursery) Run(ctx context.Context) error {
	n.keepers.Add(len(n.workers))
	n.starter.done.Add(1)
	go n.starter.run(&n.keepers)
	for _, w := range n.workers {
		go func() {
			defer n.keepers.Done()
			keep(ctx, n.config.Logger, func() error { return n.run(ctx, w) })
		}()
	}
	stop := context.AfterFunc(ctx, func() { _ = n.endings.Close() })
	defer stop()
	n.takeEndings()
	n.keepers.Wait()
	n.starter.done.Wait()
	_ = n.close()
	return nil
}

// run starts a worker and returns when it has ended. The error is of one that
// never became warm.
func (n *Nursery) run(ctx context.Context, place *keptWorker) error {
	select {
	case n.warming <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	said, out, err := os.Pipe()
	if err != nil {
		<-n.warming
		return fmt.Errorf("start a parser worker: %w", err)
	}
	cmd := command(append(slices.Clone(n.config.Command), Kept))
	cmd.Stdout, cmd.ExtraFiles = out, []*os.File{place.listener}
	err = n.starter.start(cmd)
	_ = out.Close()
	if err == nil {
		place.set(cmd.Process)
		stop := context.AfterFunc(ctx, func() { place.end(cmd.Process.Pid) })
		defer stop()
		w := worker{answers: said, reader: bufio.NewReader(said)}
		if _, err = w.awaitReady(); err != nil {
			place.end(cmd.Process.Pid)
		}
	}
	_ = said.Close()
	<-n.warming
	if cmd.Process == nil {
		return fmt.Errorf("start a parser worker: %w", err)
	}
	state, waitErr := cmd.Process.Wait()
	place.set(nil)
	if err == nil && ctx.Err() == nil {
		n.config.Logger.Warn("parser worker ended; another takes its place", "pid", cmd.Process.Pid, "state", state.String(), "error", waitErr)
	}
	return err
}

func (w *keptWorker) set(p *os.Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.process = p
}

// end kills the worker if it is still the process pid.
func (w *keptWorker) end(pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.process != nil && w.process.Pid == pid {
		_ = w.process.Kill() // it may have ended
	}
}

// takeEndings ends the workers that a pool distrusts, until the listener is
// closed.
func (n *Nursery) takeEndings() {
	places := make(chan struct{}, maxEndings)
	var asking sync.WaitGroup
	defer asking.Wait()
	for {
		c, err := n.endings.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(firstPause) // out of files, say
			continue
		}
		places <- struct{}{}
		asking.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			var pid [4]byte
			_ = c.SetDeadline(time.Now().Add(endingPatience))
			if _, err := io.ReadFull(c, pid[:]); err != nil {
				return
			}
			for _, w := range n.workers {
				w.end(int(binary.BigEndian.Uint32(pid[:])))
			}
		})
	}
}

// keptSockets are the workers' in a nursery's folder; none without a folder.
func keptSockets(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	sockets, err := filepath.Glob(filepath.Join(dir, "worker-*.sock"))
	if err == nil && len(sockets) == 0 {
		err = fmt.Errorf("%s holds no sockets of a nursery", dir)
	}
	return sockets, err
}

// visit connects to the worker of a nursery, which may still be warming up.
func (p *Pool) visit(socket string) (*worker, error) {
	dialed, err := net.DialTimeout("unix", socket, warmUp)
	if err != nil {
		return nil, fmt.Errorf("reach a parser worker: %w", err)
	}
	c := dialed.(*net.UnixConn)
	w := &worker{requests: c, answers: c, reader: bufio.NewReader(c), ended: make(chan struct{}), gone: func() bool { return !silent(c) }}
	w.end = func() {
		if p.ctx.Err() == nil { // else it is left for the next pool
			p.tellNursery(w.pid)
		}
		_ = c.Close()
		close(w.ended)
	}
	return w, nil
}

// tellNursery has the worker pid ended. One that is gone is no longer found.
func (p *Pool) tellNursery(pid int) {
	c, err := net.DialTimeout("unix", filepath.Join(p.config.Nursery, endingsSocket), endingPatience)
	if err != nil {
		p.log.Warn("the nursery of parser workers cannot be reached", "error", err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(endingPatience))
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(pid))); err != nil {
		p.log.Warn("the nursery of parser workers does not listen", "error", err)
	}
}

// silent reports whether the other end is there and has said nothing, as a
// worker between two statements does.
func silent(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
	})
	return err == nil && quiet
}
