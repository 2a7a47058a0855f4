package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of the pause before a restart, and how long Envoy must have run for
// its next failure to count as the first.
const (
	minPause   = 100 * time.Millisecond
	maxPause   = 10 * time.Second
	steadyTime = 30 * time.Second
)

// DefaultStopTimeout is how long Envoy has between SIGTERM and SIGKILL.
const DefaultStopTimeout = 5 * time.Second

// SupervisorConfig says what to run and how. Binary, Bootstrap and Dir are
// required.
type SupervisorConfig struct {
	Binary      Binary
	Bootstrap   []byte // from Bootstrap
	Dir         string // existing private folder; Run writes envoy.json there
	AdminSocket string // as in Config; "" makes Ready an error
	Concurrency int    // worker threads; 0 means one for each CPU
	LogLevel    string // info, warning or error; "" means warning
	StopTimeout time.Duration
	Logger      *slog.Logger          // nil means silent
	Metrics     prometheus.Registerer // nil means none
}

// A Supervisor keeps one Envoy running. On Linux the Envoy dies with the process
// that supervises it, however that ends.
type Supervisor struct {
	cfg      SupervisorConfig
	log      *slog.Logger
	pid      atomic.Int64
	up       prometheus.Gauge
	restarts prometheus.Counter
}

// NewSupervisor checks cfg and returns a Supervisor that runs nothing yet.
func NewSupervisor(cfg SupervisorConfig) (*Supervisor, error) {
	if cfg.Binary.Path == "" || len(cfg.Bootstrap) == 0 || cfg.Dir == "" {
		return nil, errors.New("supervise envoy: a binary, a bootstrap and a folder are required")
	}
	if cfg.LogLevel == "" {
		cfg.LogLevel = "warning"
	}
	// trace and debug print headers, and headers hold tokens.
	if !slices.Contains([]string{"info", "warning", "error"}, cfg.LogLevel) {
		return nil, fmt.Errorf("supervise envoy: log level %q is not info, warning or error", cfg.LogLevel)
	}
	if cfg.StopTimeout <= 0 {
		cfg.StopTimeout = DefaultStopTimeout
	}
	s := &Supervisor{
		cfg: cfg, log: cfg.Logger,
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_envoy_up", Help: "1 while the supervised Envoy process runs."}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_envoy_restarts_total", Help: "Times the supervised Envoy ended by itself and was started again."}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics != nil {
		for _, c := range []prometheus.Collector{s.up, s.restarts} {
			if err := cfg.Metrics.Register(c); err != nil {
				return nil, fmt.Errorf("supervise envoy: %w", err)
			}
		}
	}
	return s, nil
}

// PID is the process id of the running Envoy, 0 between two.
func (s *Supervisor) PID() int { return int(s.pid.Load()) }

// Run starts Envoy, and starts it again with a growing pause whenever it ends,
// until ctx ends; then it stops Envoy and returns nil. Any other return is a
// fault that no restart can mend. Call it once.
func (s *Supervisor) Run(ctx context.Context) error {
	// The kernel sends the parent-death signal when the thread that started the
	// child ends, so this goroutine keeps its thread for as long as Envoy runs.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	if err := os.WriteFile(s.bootstrapPath(), s.cfg.Bootstrap, 0o600); err != nil {
		return fmt.Errorf("supervise envoy: %w", err)
	}
	pause := minPause
	for {
		started := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("supervise envoy: %w", err)
		}
		if time.Since(started) >= steadyTime {
			pause = minPause
		}
		wait := pause/2 + rand.N(pause)
		s.log.Error("envoy ended and is started again", "error", err, "after", time.Since(started).Round(time.Millisecond), "pause", wait)
		s.restarts.Inc()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		pause = min(2*pause, maxPause)
	}
}

// once runs one Envoy to its end. The error says how it ended.
func (s *Supervisor) once(ctx context.Context) error {
	last := &lines{max: 8}
	stdout, stderr := &lineWriter{emit: s.logAccess}, &lineWriter{emit: func(line string) { s.logLine(line, last) }}
	cmd := exec.CommandContext(ctx, s.cfg.Binary.Path, s.arguments()...)
	cmd.Env = []string{} // chaperone's own may hold secrets that Envoy gets by SDS or not at all
	cmd.Stdout, cmd.Stderr = stdout, stderr
	tie(cmd)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = s.cfg.StopTimeout
	if err := cmd.Start(); err != nil {
		return err
	}
	s.raiseFileLimit(cmd.Process.Pid)
	s.pid.Store(int64(cmd.Process.Pid))
	s.log.Info("envoy started", "pid", cmd.Process.Pid, "version", s.cfg.Binary.Version)
	s.up.Set(1)
	err := cmd.Wait()
	s.up.Set(0)
	s.pid.Store(0)
	stdout.flush()
	stderr.flush()
	if ctx.Err() != nil {
		s.log.Info("envoy stopped", "pid", cmd.Process.Pid)
		return nil
	}
	if err == nil {
		err = errors.New("exit status 0")
	}
	if words := last.all(); len(words) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(words, "; "))
	}
	return err
}

func (s *Supervisor) bootstrapPath() string { return filepath.Join(s.cfg.Dir, "envoy.json") }

func (s *Supervisor) arguments() []string {
	args := []string{
		"-c", s.bootstrapPath(), "--disable-hot-restart", "--reject-unknown-dynamic-fields",
		"-l", s.cfg.LogLevel, "--log-format", "%l %n %v", "--log-format-escaped",
		"--file-flush-interval-msec", "1000", // of the access log; the default is ten seconds
	}
	if s.cfg.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(s.cfg.Concurrency))
	}
	return args
}

// logLine passes on one line of Envoy's own log: "<level> <logger> <text>".
func (s *Supervisor) logLine(line string, last *lines) {
	word, rest, _ := strings.Cut(line, " ")
	name, text, ok := strings.Cut(rest, " ")
	level, known := map[string]slog.Level{
		"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo,
		"warning": slog.LevelWarn, "error": slog.LevelError, "critical": slog.LevelError,
	}[word]
	if !known || !ok { // a crash's backtrace, a message of the loader
		level, name, text = slog.LevelError, "", line
	}
	if level >= slog.LevelError {
		last.add(text)
	}
	s.log.Log(context.Background(), level, text, "envoy", name)
}

// logAccess passes on one access log line, which is JSON.
func (s *Supervisor) logAccess(line string) {
	if json.Valid([]byte(line)) {
		s.log.Info("envoy answered a request itself", "access", json.RawMessage(line))
		return
	}
	s.log.Info(line, "envoy", "stdout")
}
