// Package envoytest starts a real Envoy for a test and stops it with the test.
// A test that needs Envoy fails where there is none: nothing is skipped.
package envoytest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chaperone.dev/chaperone/envoy"
)

// startTimeout bounds the time until Envoy has its first configuration.
const startTimeout = 30 * time.Second

// Options say which Envoy to start.
type Options struct {
	ADSSocket string    // unix socket of the control plane
	ADS       envoy.ADS // in place of ADSSocket
	NodeID    string    // "" means the name of the test
	LogLevel  string    // "" means warning
}

// An Envoy is a running one.
type Envoy struct {
	Admin      *envoy.Admin
	Supervisor *envoy.Supervisor
}

// Binary finds Envoy or fails the test.
func Binary(t testing.TB) envoy.Binary {
	t.Helper()
	b, err := envoy.Find(t.Context(), envoy.Options{})
	if err != nil {
		t.Fatalf("tests need Envoy: %v", err)
	}
	return b
}

// Start runs an Envoy until the test ends and returns when it serves the first
// snapshot of its control plane. What Envoy logs goes to the log of the test.
func Start(t testing.TB, o Options) *Envoy {
	t.Helper()
	e, run := Prepare(t, o)
	run()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := e.Supervisor.Ready(ctx); err != nil {
		t.Fatalf("start envoy: %v", err)
	}
	return e
}

// Prepare is Start without starting: run starts Envoy and does not wait.
func Prepare(t testing.TB, o Options) (e *Envoy, run func()) {
	t.Helper()
	if o.NodeID == "" {
		o.NodeID = t.Name()
	}
	if o.ADSSocket != "" {
		o.ADS = envoy.ADS{Socket: o.ADSSocket}
	}
	dir := SocketDir(t)
	admin := filepath.Join(dir, "admin.sock")
	bootstrap, err := envoy.Bootstrap(envoy.Config{NodeID: o.NodeID, ADS: o.ADS, AdminSocket: admin})
	if err != nil {
		t.Fatal(err)
	}
	s, err := envoy.NewSupervisor(envoy.SupervisorConfig{
		Binary: Binary(t), Bootstrap: bootstrap, Dir: dir, AdminSocket: admin, Concurrency: 2, LogLevel: o.LogLevel,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &Envoy{Admin: envoy.NewAdmin(admin), Supervisor: s}, func() {
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("envoy: %v", err)
			}
		})
	}
}

// SocketDir is a folder of mode 0700 with a path short enough for unix sockets.
func SocketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "chp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Listen is envoy.Listen that closes with the test.
func Listen(t testing.TB, path string) net.Listener {
	t.Helper()
	l, err := envoy.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// ReserveAddress returns a free address of 127.0.0.1 for Envoy to listen on:
// Envoy cannot choose a port itself. The port stays reserved until the test
// ends, by a socket that is bound and does not listen, so that Envoy, which
// binds with SO_REUSEPORT, gets it and nobody else does.
func ReserveAddress(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	if err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at, ok := name.(*unix.SockaddrInet4)
	if !ok {
		t.Fatal(syscall.EAFNOSUPPORT)
	}
	return (&net.TCPAddr{IP: at.Addr[:], Port: at.Port}).String()
}
