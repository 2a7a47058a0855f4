package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"chaperone.dev/chaperone/envoy"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/sql/parser"
	"chaperone.dev/chaperone/internal/telemetry"
)

// Bounds of the pause before serve is started again, and how long it must have
// run for its next failure to count as the first.
const (
	minPause   = 100 * time.Millisecond
	maxPause   = 10 * time.Second
	steadyTime = 2 * time.Second
	// stopWithin is how long serve has between SIGTERM and SIGKILL.
	stopWithin = 10 * time.Second
)

func runCommand() *cobra.Command {
	var file string
	var noEnvoy bool
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway: starts and watches serve and Envoy",
		Long: `run is the parent: it starts 'chaperone serve', the SQL parser workers and Envoy,
restarts what ends, and takes all with it when it ends itself, however it ends.`,
		Example: "  chaperone run --config chaperone.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			// Once it runs, a broken edit is refused and the last good revision
			// serves; there is none yet.
			cfg, _, _, err := validated(file)
			if err != nil {
				return err
			}
			p := &parent{config: cfg, file: file, log: telemetry.Logger(c.ErrOrStderr(), level(cfg))}
			return p.run(c.Context(), noEnvoy)
		},
	}
	configFlag(c, &file)
	c.Flags().BoolVar(&noEnvoy, "no-envoy", false, "Envoy runs elsewhere: see chaperone bootstrap")
	return c
}

func configFlag(c *cobra.Command, file *string) {
	c.Flags().StringVarP(file, "config", "c", "chaperone.yaml", "configuration file")
	_ = c.MarkFlagFilename("config", "yaml", "yml") // shell completion only
}

// A parent owns the gateway's processes.
type parent struct {
	config *config.Config
	file   string
	log    *slog.Logger

	nursery string // folder of the parser workers
	serving atomic.Pointer[os.Process]
}

func (p *parent) run(ctx context.Context, noEnvoy bool) error {
	if err := privateFolder(p.config.Sockets); err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // unhandled, it ends the process
	defer signal.Stop(hangup)
	p.pidFile("run", os.Getpid())
	nursery, err := p.parsers()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return nursery.Run(ctx) })
	group.Go(func() error { return p.keep(ctx) })
	group.Go(func() error { return p.relay(ctx, hangup) })
	if !noEnvoy {
		supervisor, err := p.envoy(ctx)
		if err != nil {
			return err
		}
		group.Go(func() error { return supervisor.Run(ctx) })
		group.Go(func() error { return p.note(ctx, "envoy", supervisor.PID) })
	}
	return group.Wait()
}

// parsers are the SQL parser workers, which outlive serve: it finds them warm
// when it is started again.
func (p *parent) parsers() (*parser.Nursery, error) {
	worker, err := workerCommand()
	if err != nil {
		return nil, err
	}
	p.nursery = filepath.Join(p.config.Sockets, "parsers")
	return parser.NewNursery(parser.NurseryConfig{Command: worker, Dir: p.nursery, Workers: p.config.Parsers, Logger: p.log})
}

func (p *parent) envoy(ctx context.Context) (*envoy.Supervisor, error) {
	binary, err := envoy.Find(ctx, envoy.Options{Logger: p.log})
	if err != nil {
		return nil, err
	}
	bootstrap, err := envoy.Bootstrap(bootstrapConfig(p.config))
	if err != nil {
		return nil, err
	}
	return envoy.NewSupervisor(envoy.SupervisorConfig{Binary: binary, Bootstrap: bootstrap, Dir: p.config.Sockets,
		AdminSocket: filepath.Join(p.config.Sockets, "admin.sock"), LogLevel: "warning", Logger: p.log})
}

// keep runs serve, and runs it again with a growing pause whenever it ends,
// until ctx ends.
func (p *parent) keep(ctx context.Context) error {
	pause := minPause
	for {
		began := time.Now()
		err := p.serve(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steadyTime {
			pause = minPause
		}
		p.log.Error("serve ended; it is started again", "error", err, "pause", pause.String())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// serve runs `chaperone serve` once and returns when it has ended.
func (p *parent) serve(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "serve", "--config", p.file, "--"+nurseryFlag, p.nursery)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.WaitDelay = stopWithin
	return startTied(cmd, func(pid int) {
		p.pidFile("serve", pid)
		p.serving.Store(cmd.Process)
	})
}

// relay passes SIGHUP on to serve, which reads the files anew.
func (p *parent) relay(ctx context.Context, hangup <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
		}
		if serve := p.serving.Load(); serve != nil {
			if err := serve.Signal(syscall.SIGHUP); err != nil {
				p.log.Warn("serve does not take SIGHUP; it reads the files when it starts", "error", err)
			}
		}
	}
}

// note keeps the pid file of a process that somebody else restarts.
func (p *parent) note(ctx context.Context, name string, pid func() int) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for last := 0; ; {
		if now := pid(); now != 0 && now != last {
			last = now
			p.pidFile(name, now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p *parent) pidFile(name string, pid int) {
	path := filepath.Join(p.config.Sockets, name+".pid")
	if err := os.WriteFile(path, []byte(strconv.Itoa(pid)+"\n"), 0o600); err != nil {
		p.log.Warn("cannot write the pid file", "file", path, "error", err)
	}
}

// privateFolder makes dir for this user alone, and refuses one that is not.
func privateFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others: they could replace the sockets; run chmod 700 on it", dir)
	}
	return nil
}

func level(cfg *config.Config) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(cfg.Telemetry.Log)); err != nil {
		return slog.LevelInfo // validated; "" is info
	}
	return l
}

func bootstrapConfig(cfg *config.Config) envoy.Config {
	host, err := os.Hostname()
	if err != nil {
		host = "envoy"
	}
	return envoy.Config{NodeID: host, ADS: envoy.ADS{Socket: filepath.Join(cfg.Sockets, "ads.sock")},
		AdminSocket: filepath.Join(cfg.Sockets, "admin.sock")}
}
