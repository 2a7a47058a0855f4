// Package localserver starts real servers on loopback for the demo and the
// tests: PostgreSQL, PgBouncer, Redis, Dex, Keycloak, Jaeger. Each lives in a folder of its own, is ready
// when its Start function returns, and dies with this process. It refuses to
// run what it cannot find, naming how to install it; nothing is downloaded here.
package localserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// readyWithin bounds every start.
const readyWithin = 60 * time.Second

// ToolsDir is the folder that tools/install fills: $CHAPERONE_TOOLS, else
// /var/cache/chaperone/tools for root, else chaperone/tools in the user's cache.
func ToolsDir() string {
	if dir := os.Getenv("CHAPERONE_TOOLS"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/cache/chaperone/tools"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = filepath.Join(os.TempDir(), "cache")
	}
	return filepath.Join(cache, "chaperone", "tools")
}

// Tool finds an executable: $PATH first, then the tools folder. The error says
// what to run.
func Tool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := filepath.Join(ToolsDir(), "bin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is neither on PATH nor in the tools folder: run tools/install %s", name, name)
	}
	return path, nil
}

// Ports below those that systems give to outgoing connections, one of which
// could otherwise have a port before its server does.
const (
	firstPort = 10_000
	lastPort  = 32_767
)

// FreePort returns a port that was free on loopback a moment ago. Who needs it
// must start again when another process was faster.
func FreePort() (int, error) {
	var err error
	for range 100 {
		var l net.Listener
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("free port: %w", err)
}

// A process is a child that is killed with this process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	log  string
	once sync.Once
}

// start runs a command with its output in the file logPath.
func start(cmd *exec.Cmd, logPath string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	dieWithParent(cmd)
	p := &process{cmd: cmd, done: make(chan struct{}), log: logPath}
	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	return p, nil
}

// ready asks until ask returns nil, the process ends or the time is up.
func (p *process) ready(ctx context.Context, ask func(context.Context) error) error {
	return p.readyWithin(ctx, readyWithin, ask)
}

func (p *process) readyWithin(ctx context.Context, limit time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended at once: %w\n%s", filepath.Base(p.cmd.Path), p.err, tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", filepath.Base(p.cmd.Path), errors.Join(ctx.Err(), err), tail(p.log))
		case <-tick.C:
		}
	}
}

// stop sends sig, waits, and kills what has not ended after ten seconds.
func (p *process) stop(sig syscall.Signal) {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(sig)
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	})
}

// tail returns the end of a log for an error message.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return string(bytes.TrimSpace(b))
}

// dial asks whether a TCP port answers.
func dial(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

var _ io.Closer = (*Postgres)(nil)
