package envoy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// TestMain runs the test binary as the parent of an Envoy when asked to: see
// TestEnvoyDiesWithItsParent.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ENVOY_TEST_PARENT"); dir != "" {
		parent(dir)
	}
	os.Exit(m.Run())
}

// parent supervises an Envoy, prints its pid when it is ready, and never ends.
func parent(dir string) {
	ctx := context.Background()
	binary, err := Find(ctx, Options{})
	if err != nil {
		panic(err)
	}
	s, err := NewSupervisor(supervised(binary, dir))
	if err != nil {
		panic(err)
	}
	go s.Run(ctx)
	if err := s.Ready(ctx); err != nil {
		panic(err)
	}
	fmt.Println(s.PID())
	select {}
}

// supervised is an Envoy that needs no control plane.
func supervised(b Binary, dir string) SupervisorConfig {
	admin := filepath.Join(dir, "admin.sock")
	return SupervisorConfig{Binary: b, Dir: dir, AdminSocket: admin, Concurrency: 1,
		Bootstrap: []byte(`{"node":{"id":"n","cluster":"c"},"admin":{"address":{"pipe":{"path":"` + admin + `","mode":384}}}}`)}
}

func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "chp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start runs s until the test, or the returned func, ends it.
func start(t *testing.T, s *Supervisor) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func ready(t *testing.T, s *Supervisor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// ended waits until the process is no more.
func ended(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if n != 1 || err != nil {
		t.Fatalf("process %d still runs: %v", pid, err)
	}
}

func TestSupervise(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	cfg := supervised(installed(t), dir)
	registry := prometheus.NewRegistry()
	cfg.Metrics = registry
	s, err := NewSupervisor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, s)
	ready(t, s)
	first := s.PID()

	info, err := os.Stat(cfg.AdminSocket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin socket: %v %v", info.Mode(), err)
	}
	info, err = os.Stat(filepath.Join(dir, "envoy.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("bootstrap: %v %v", info.Mode(), err)
	}
	environment, err := os.ReadFile("/proc/" + strconv.Itoa(first) + "/environ")
	if err != nil || len(environment) != 0 {
		t.Errorf("Envoy has chaperone's environment: %q %v", environment, err)
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(first, unix.RLIMIT_NOFILE, nil, &limit); err != nil || limit.Cur != limit.Max {
		t.Errorf("file limit %+v, %v", limit, err)
	}

	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended(t, first)
	ready(t, s)
	second := s.PID()
	if second == first || second == 0 {
		t.Fatalf("pid %d after %d", second, first)
	}
	if got := counter(t, registry, "chaperone_envoy_restarts_total"); got != 1 {
		t.Errorf("%v restarts counted", got)
	}
	stop()
	ended(t, second)
	if s.PID() != 0 {
		t.Errorf("pid %d after the end", s.PID())
	}
}

func counter(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// TestEnvoyDiesWithItsParent: kill -9 of the supervisor leaves no Envoy behind
// that would serve without anybody watching it.
func TestEnvoyDiesWithItsParent(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "ENVOY_TEST_PARENT="+socketDir(t))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("envoy does not run: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // killed, as it should be
	ended(t, pid)
}

func TestBrokenEnvoyIsRetriedWithPauses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	runs := filepath.Join(dir, "runs")
	path := filepath.Join(dir, "envoy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho x >> "+runs+"\necho 'critical main out of order' >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	log := &logged{seen: make(chan string, 64)}
	cfg := supervised(Binary{Path: path}, dir)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	s, err := NewSupervisor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, s)
	for n := 0; n < 3; {
		line := <-log.seen
		if !strings.Contains(line, "started again") {
			continue
		}
		if !strings.Contains(line, "out of order") || !strings.Contains(line, "exit status 3") {
			t.Errorf("the log does not say why: %s", line)
		}
		n++
	}
	stop()
	content, err := os.ReadFile(runs)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(content, []byte("x")); n < 3 || n > 4 {
		t.Errorf("%d runs", n)
	}
}

type logged struct{ seen chan string }

func (l *logged) Write(p []byte) (int, error) {
	select {
	case l.seen <- string(p):
	default:
	}
	return len(p), nil
}

func TestStubbornEnvoyIsKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "envoy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ntrap '' TERM\necho 'info main up' >&2\nwhile :; do sleep 1; done\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	log := &logged{seen: make(chan string, 64)}
	cfg := supervised(Binary{Path: path}, dir)
	cfg.StopTimeout = 100 * time.Millisecond
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	s, err := NewSupervisor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, s)
	for up, started := false, false; !up || !started; { // in either order
		line := <-log.seen
		up = up || strings.Contains(line, "msg=up")
		started = started || strings.Contains(line, "envoy started")
	}
	pid := s.PID()
	stop()
	ended(t, pid)
}

func TestMissingEnvoyIsNotRetried(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := NewSupervisor(supervised(Binary{Path: filepath.Join(dir, "envoy")}, dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestSupervisorRefuses(t *testing.T) {
	t.Parallel()
	whole := supervised(Binary{Path: "/envoy"}, "/run")
	for name, edit := range map[string]func(*SupervisorConfig){
		"no binary": func(c *SupervisorConfig) { c.Binary = Binary{} }, "no bootstrap": func(c *SupervisorConfig) { c.Bootstrap = nil },
		"no folder":                     func(c *SupervisorConfig) { c.Dir = "" },
		"a log level that shows tokens": func(c *SupervisorConfig) { c.LogLevel = "debug" },
	} {
		c := whole
		edit(&c)
		if _, err := NewSupervisor(c); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestLogLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s, err := NewSupervisor(SupervisorConfig{Binary: Binary{Path: "/envoy"}, Bootstrap: []byte("{}"), Dir: "/run", Logger: slog.New(slog.NewJSONHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	last := &lines{max: 2}
	w := &lineWriter{emit: func(l string) { s.logLine(l, last) }}
	for _, part := range []string{"warning config a ", "b c\nerror main one\nassert failure\n", "critical x two\n", strings.Repeat("z", 3*maxLine), "\ninfo upstream done"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	w.flush()
	access := &lineWriter{emit: s.logAccess}
	io.WriteString(access, `{"status":503}`+"\nnot json\n")
	for _, want := range []string{`"level":"WARN","msg":"a b c","envoy":"config"`, `"level":"ERROR","msg":"one","envoy":"main"`,
		`"level":"ERROR","msg":"assert failure"`, `"msg":"done","envoy":"upstream"`, `"access":{"status":503}`, `"msg":"not json"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in\n%s", want, out.String())
		}
	}
	if got := last.all(); len(got) != 2 || got[0] != "two" || len(got[1]) != maxLine {
		t.Errorf("last words: %d, %.20q", len(got), got)
	}
}
