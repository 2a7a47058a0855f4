package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"chaperone.dev/chaperone/envoy"
	"chaperone.dev/chaperone/internal/approval"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/issuer"
	"chaperone.dev/chaperone/internal/policy"
	"chaperone.dev/chaperone/internal/quota"
	"chaperone.dev/chaperone/internal/record"
	"chaperone.dev/chaperone/internal/session"
	"chaperone.dev/chaperone/internal/session/ssh"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
	"chaperone.dev/chaperone/internal/store"
	"chaperone.dev/chaperone/internal/telemetry"
	"chaperone.dev/chaperone/xds"
)

func serveCommand() *cobra.Command {
	var file, nursery string
	c := &cobra.Command{
		Use:     "serve",
		Short:   "Run the control plane and the services beside an Envoy that runs elsewhere",
		Example: "  chaperone serve --config chaperone.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			log := telemetry.Logger(c.ErrOrStderr(), level(cfg))
			err = serve(c.Context(), file, nursery, cfg, log)
			if err != nil {
				log.Error("serve failed", "error", err)
				return errReported
			}
			return nil
		},
	}
	configFlag(c, &file)
	c.Flags().StringVar(&nursery, nurseryFlag, "", "folder of the parser workers that run keeps")
	_ = c.Flags().MarkHidden(nurseryFlag)
	return c
}

// nurseryFlag is how run tells serve of the parser workers that it keeps.
const nurseryFlag = "parser-nursery"

// A server is the whole of chaperone serve. Its members are made in the order
// in which they stand and closed in the reverse.
type server struct {
	log       *slog.Logger
	replica   string
	hangup    chan os.Signal // of SIGHUP
	metrics   *prometheus.Registry
	handler   http.Handler // of the metrics
	recorder  *record.Recorder
	store     store.Store
	sealing   [32]byte // key of what browsers keep for the console
	approvals *approval.Service
	sessions  *session.Registry
	calls     *session.HTTPSessions
	usage     *quota.Service
	keys      *issuer.Keys    // nil: no token service
	sshKeys   *authority.Keys // nil: no SSH
	builder   *builder
	engine    *policy.Engine
	current   current
	xds       *xds.Server
	reloader  *reloader
	closers   []func() error
}

// onClose remembers what to undo, last first.
func (s *server) onClose(f func() error) { s.closers = append(s.closers, f) }

func (s *server) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	return errors.Join(errs...)
}

// serve runs until ctx ends. Full state is loaded before the first Envoy is
// answered: it takes what it is given for the whole truth.
func serve(ctx context.Context, file, nursery string, cfg *config.Config, log *slog.Logger) (err error) {
	s := &server{log: log, hangup: make(chan os.Signal, 1)}
	signal.Notify(s.hangup, syscall.SIGHUP) // from the start: unhandled, it ends the process
	defer signal.Stop(s.hangup)
	s.current.swapped = make(chan struct{}, 1)
	defer func() { err = errors.Join(err, s.close()) }()
	if err := privateFolder(cfg.Sockets); err != nil {
		return err
	}
	s.metrics, s.handler = telemetry.Metrics()
	if err := s.state(ctx, cfg); err != nil {
		return err
	}
	if err := s.rules(file, nursery, cfg); err != nil {
		return err
	}
	return s.run(ctx, cfg)
}

// state opens what outlives a restart: recording, store, approvals, sessions.
func (s *server) state(ctx context.Context, cfg *config.Config) (err error) {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	s.replica = fmt.Sprintf("%s-%d", host, os.Getpid())
	if err := os.MkdirAll(cfg.Recording.Dir, 0o700); err != nil {
		return err
	}
	s.recorder, err = record.Open(record.Config{Dir: cfg.Recording.Dir, Replica: s.replica, Retention: cfg.Recording.Retention,
		Logger: s.log, Registerer: s.metrics})
	if err != nil {
		return err
	}
	s.onClose(s.recorder.Close)
	if err := os.MkdirAll(filepath.Dir(cfg.Store.Key), 0o700); err != nil {
		return err
	}
	key, err := store.LoadOrCreateKey(cfg.Store.Key)
	if err != nil {
		return err
	}
	s.sealing = key.Derived("console login")
	if cfg.Store.Redis != nil {
		redis, err := store.OpenRedis(ctx, store.RedisConfig{URL: cfg.Store.Redis.URL.Secret(), Key: key})
		if err != nil {
			return err
		}
		s.store = redis
		s.onClose(redis.Close)
	} else {
		embedded, err := store.OpenEmbedded(store.EmbeddedConfig{Path: filepath.Join(cfg.Store.Embedded.Dir, "store.db"), Key: key})
		if err != nil {
			return err
		}
		s.store = embedded
		s.onClose(embedded.Close)
	}
	return s.lifecycles(cfg, s.replica)
}

// rules loads the first revision.
func (s *server) rules(file, nursery string, cfg *config.Config) error {
	pool, err := newParser(nursery, cfg.Parsers, s.log, s.metrics)
	if err != nil {
		return err
	}
	s.onClose(func() error { pool.Close(); return nil })
	s.builder = &builder{file: file, parser: pool}
	first, err := s.builder.build()
	if err != nil {
		return err
	}
	verifier, err := s.newVerifier(cfg, s.metrics)
	if err != nil {
		return err
	}
	s.onClose(func() error { s.current.verifier.Load().Close(); return nil })
	s.current.revision.Store(first)
	s.current.verifier.Store(verifier)
	s.engine = policy.NewEngine(first.policies)
	s.xds, err = xds.NewServer(xds.ServerConfig{Logger: s.log, Metrics: s.metrics}, first.envoy)
	if err != nil {
		return err
	}
	s.reloader = newReloader(s, cfg)
	s.log.Info("revision serves", "revision", first.policies.Revision(), "config", first.config.Digest[:12])
	return nil
}

// run serves everything until ctx ends or one part fails.
func (s *server) run(ctx context.Context, cfg *config.Config) error {
	tracing, stopTracing, err := telemetry.Tracing(ctx, telemetry.Config{Endpoint: cfg.Telemetry.OTLP.Endpoint, Insecure: cfg.Telemetry.OTLP.Insecure, Service: "chaperone"})
	if err != nil {
		return err
	}
	s.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := stopTracing(ctx); err != nil {
			s.log.Warn("some spans were lost", "error", err)
		}
		return nil
	})
	sql, err := s.postgres(cfg, tracing)
	if err != nil {
		return err
	}
	hosts, err := s.ssh(cfg, tracing)
	if err != nil {
		return err
	}
	carried, err := s.streams()
	if err != nil {
		return err
	}
	authorizer, tap, err := s.http(cfg, carried, hosts)
	if err != nil {
		return err
	}
	own, err := s.own(cfg, s.api(tracing.Tracer("console")))
	if err != nil {
		return err
	}
	services := grpc.NewServer(append(xds.ServerOptions(),
		grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(tracing), otelgrpc.WithPropagators(propagation.TraceContext{}))))...)
	authv3.RegisterAuthorizationServer(services, authorizer)
	extprocv3.RegisterExternalProcessorServer(services, tap)
	s.onClose(func() error { tap.Close(); return nil })

	group, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{s.approvals.Run, s.usage.Run, s.sessions.Run, s.calls.Run, s.current.run, s.reloader.run, s.tell, s.prune} {
		group.Go(func() error { return part(ctx) })
	}
	on := func(name string, serve func(context.Context, net.Listener) error) error {
		l, err := envoy.Listen(ctx, filepath.Join(cfg.Sockets, name))
		if err != nil {
			return err
		}
		group.Go(func() error { return serve(ctx, l) })
		return nil
	}
	err = errors.Join(
		on(servicesSocket, func(ctx context.Context, l net.Listener) error { return serveGRPC(ctx, services, l) }),
		on(postgresSocket, sql.Serve),
		s.serveSSH(cfg, hosts, on),
		on(kubernetesSocket, carried.Serve),
		on(apiSocket, func(ctx context.Context, l net.Listener) error {
			return serveHTTP(ctx, own, l)
		}),
		s.serveMetrics(ctx, group, cfg.Telemetry.Metrics),
		// Last: an Envoy that connects finds everything it is sent to.
		on(adsSocket, func(ctx context.Context, l net.Listener) error { return s.xds.Serve(ctx, l) }),
	)
	if err != nil {
		group.Go(func() error { return err })
	}
	return group.Wait()
}

// serveSSH serves hosts when there is a listener for them.
func (s *server) serveSSH(cfg *config.Config, hosts *ssh.Service, on func(string, func(context.Context, net.Listener) error) error) error {
	if hosts == nil {
		return nil
	}
	return on(sshSocket, hosts.Serve)
}

func (s *server) serveMetrics(ctx context.Context, group *errgroup.Group, address string) error {
	if address == "" {
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("telemetry.metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", s.handler)
	group.Go(func() error { return serveHTTP(ctx, mux, l) })
	return nil
}

// pruneEvery is how often recordings past their retention are removed.
const pruneEvery = 6 * time.Hour

// prune removes what retention has ended for, at the start and then regularly.
func (s *server) prune(ctx context.Context) error {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if _, err := s.recorder.Prune(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.log.Error("recordings past their retention were not removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// serveHTTP serves until ctx ends; a connection still busy then is cut.
func serveHTTP(ctx context.Context, h http.Handler, l net.Listener) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })() // its error is Serve's
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveGRPC serves until ctx ends; what is held or streaming then is cut, and
// Envoy refuses or resets it.
func serveGRPC(ctx context.Context, server *grpc.Server, l net.Listener) error {
	defer context.AfterFunc(ctx, server.Stop)()
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}
