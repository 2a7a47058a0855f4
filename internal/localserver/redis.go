package localserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// A Redis is a running Redis server on loopback with a password.
type Redis struct {
	Addr     string // 127.0.0.1:port
	Password string
	proc     *process
	path     string
	dir      string
	port     int
}

// StartRedis starts a Redis server with its files in dir.
func StartRedis(ctx context.Context, dir string) (*Redis, error) {
	path, err := Tool("redis-server")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	r := &Redis{Password: "redis-for-tests", path: path, dir: dir}
	if r.port, err = FreePort(); err != nil {
		return nil, err
	}
	r.Addr = loopback(r.port)
	return r, r.Start(ctx)
}

// Start starts the server again after Kill, on the same port and files.
func (r *Redis) Start(ctx context.Context) (err error) {
	cmd := exec.Command(r.path, "--bind", "127.0.0.1", "--port", strconv.Itoa(r.port), "--requirepass", r.Password,
		"--dir", r.dir, "--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no")
	if r.proc, err = start(cmd, filepath.Join(r.dir, "redis.log")); err != nil {
		return err
	}
	if err := r.proc.ready(ctx, dial(r.Addr)); err != nil {
		r.Close()
		return err
	}
	return nil
}

// URL is the connection string with the password in it.
func (r *Redis) URL() string { return "redis://:" + r.Password + "@" + r.Addr + "/0" }

// Pause stops the server from answering without closing a connection.
func (r *Redis) Pause() error { return r.proc.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (r *Redis) Resume() error { return r.proc.cmd.Process.Signal(syscall.SIGCONT) }

// Kill ends the server at once.
func (r *Redis) Kill() { r.proc.stop(syscall.SIGKILL) }

// Close stops the server.
func (r *Redis) Close() error {
	r.proc.stop(syscall.SIGTERM)
	return nil
}
