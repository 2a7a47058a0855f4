package postgres

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ingress"
	"chaperone.dev/chaperone/internal/sql"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// Config is how the service behaves. A zero value means the default that its
// comment names.
type Config struct {
	// PlaintextOnLoopback lets clients whose address, as Envoy saw it, is a
	// loopback one go without TLS. All others must use TLS.
	PlaintextOnLoopback bool
	// ApprovalWait is how long a held statement waits before the client gets
	// the request id and may repeat it later. Default 5 minutes.
	ApprovalWait time.Duration
	// StartupTimeout bounds everything before authentication. Default 10 s.
	StartupTimeout time.Duration
	// DialTimeout bounds reaching and preparing the target. Default 10 s.
	DialTimeout time.Duration
	// LeaveTimeout bounds how long a target has to answer once its client has
	// left and what ran was cancelled. Default 10 s.
	LeaveTimeout time.Duration
	// MaxUnauthenticated bounds connections that have not authenticated,
	// MaxWaitingPerSource those of them from one address as Envoy saw it (of an
	// IPv6 address its /64), and MaxSessions those that have. Defaults 256, 32
	// and 1000.
	MaxUnauthenticated  int
	MaxWaitingPerSource int
	MaxSessions         int
	// MaxMessage bounds one message of a client, MaxRow one row of a result,
	// in bytes. Default 16 MiB each.
	MaxMessage int
	MaxRow     int
	// RecordedResult bounds what is recorded of one statement's rows, in
	// bytes; the rest is counted. Default 1 MiB.
	RecordedResult int64
	// Replica is in the names of the roles that are made for sessions.
	Replica string
}

func (c Config) withDefaults() Config {
	c.ApprovalWait = cmp.Or(c.ApprovalWait, 5*time.Minute)
	c.StartupTimeout = cmp.Or(c.StartupTimeout, 10*time.Second)
	c.DialTimeout = cmp.Or(c.DialTimeout, 10*time.Second)
	c.LeaveTimeout = cmp.Or(c.LeaveTimeout, 10*time.Second)
	c.MaxUnauthenticated = cmp.Or(c.MaxUnauthenticated, 256)
	c.MaxWaitingPerSource = cmp.Or(c.MaxWaitingPerSource, 32)
	c.MaxSessions = cmp.Or(c.MaxSessions, 1000)
	c.MaxMessage = cmp.Or(c.MaxMessage, 16<<20)
	c.MaxRow = cmp.Or(c.MaxRow, 16<<20)
	c.RecordedResult = cmp.Or(c.RecordedResult, 1<<20)
	return c
}

// A Resource is a target as the current configuration has it.
type Resource struct {
	Access   access.Resource
	Address  string // host:port
	Database string
	// TLS is how the target proves itself; nil sends the credential and all
	// else in the clear.
	TLS *tls.Config
	// User logs in with Password, which is asked for each time that the target
	// is dialled, or, when that is nil, with the certificate in TLS.
	User     string
	Password func(context.Context) (access.Secret, error)
	// Profile is the role with whose rights sessions run, when it is not User:
	// then User makes a role in it for each connection.
	Profile string
	// Claims are settings of the target, each with the attribute of the
	// principal that is its value in a session (access.Principal.Attribute).
	Claims map[string]string
	// SearchPath is what unqualified names mean; default public.
	SearchPath []string
	// Unwalled accepts a role that may read masked columns.
	Unwalled bool
	// Analyzer judges the statements for this resource.
	Analyzer Analyzer
	// Dial replaces the ordinary dialler, for targets behind an egress.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Verifier turns a token into its principal.
type Verifier interface {
	Verify(ctx context.Context, token access.Secret) (access.Principal, error)
}

// A Decider is the policy engine.
type Decider interface {
	Decide(ctx context.Context, req access.Request) access.Decision
	Masks(ctx context.Context, p access.Principal, r access.Resource) []access.Mask
	// ReadsEstimate reports whether the decision on req could be another one
	// with an estimate in it.
	ReadsEstimate(ctx context.Context, req access.Request) bool
	MayConnect(ctx context.Context, p access.Principal, r access.Resource) bool
	// Revision names the rules that the next decision goes by.
	Revision() string
	// SessionMax is the longest that a rule grants to a session beyond its
	// token, counted from its opening.
	SessionMax(ctx context.Context, p access.Principal, r access.Resource) time.Duration
}

// A Recorder stores events: durable when it returns nil. After an error the
// recorded action must not happen.
type Recorder interface {
	Append(ctx context.Context, d access.Durability, evs ...access.Event) error
}

// Approvals is the lifecycle of held statements. Ask files a question, or
// returns the live one with the same digest; Wait blocks until it is answered;
// Consume uses a grant up; Abandon says that nobody waits any more.
type Approvals interface {
	Ask(ctx context.Context, ask access.Ask) (access.Approval, error)
	Wait(ctx context.Context, id string) (access.Approval, error)
	Consume(ctx context.Context, id, digest string) error
	Abandon(ctx context.Context, id string) error
}

// Sessions is the registry of live sessions. The context that Open returns ends
// with a *access.Denial as its cause; the function closes the session. Principal
// is whom it acts for now: a fresh token may have come.
type Sessions interface {
	Open(ctx context.Context, s access.Session) (context.Context, func(cause string), error)
	Principal(session string) (access.Principal, bool)
}

// An Analyzer reads SQL: *sql.Analyzer.
type Analyzer interface {
	Analyze(ctx context.Context, text string, cat *catalog.Snapshot) (*sql.Statement, error)
	Mask(ctx context.Context, st *sql.Statement, cat *catalog.Snapshot, o access.Obligations) (*sql.Forward, error)
}

// A Detector replaces in one cell of a result what its masks look for, and
// reports whether there was any: (*mask.Masker).Text. It must not keep the cell
// nor change it in place.
type Detector func(cell []byte) (masked []byte, found bool)

// Deps are the parts that the service joins. All but those marked optional are
// required.
type Deps struct {
	Verifier  Verifier
	Decider   Decider
	Recorder  Recorder
	Approvals Approvals
	Sessions  Sessions
	// Resource looks a PostgreSQL resource up by name, each time anew.
	Resource func(name string) (Resource, bool)
	// TLS returns the gateway's certificate configuration, each time anew; a
	// nil function or result means that there is none.
	TLS func() *tls.Config
	// Detector builds what masks with Detect ask for. Optional: without it
	// statements with such a mask are refused.
	Detector func(masks []access.Mask) (Detector, error)
	// Rejected tells whether an error of the Verifier is a verdict on the
	// token, rather than the lack of one. Optional: without it every error is.
	Rejected func(err error) bool

	// Usage counts for limits of a session and of an hour. Optional: without it
	// statements with such a limit are refused.
	Usage Usage

	Log    *slog.Logger          // optional
	Tracer trace.Tracer          // optional
	Clock  func() time.Time      // optional
	Metric prometheus.Registerer // optional
	// Ticker ticks for the reminders of held statements. Optional.
	Ticker func(d time.Duration) (tick <-chan time.Time, stop func())
}

// A Service serves PostgreSQL clients. It is safe for concurrent use.
type Service struct {
	cfg      Config
	deps     Deps
	metrics  *metrics
	catalogs *catalogs
	logins   logins
	keys     *cancelKeys
	gate     *ingress.Gate
	live     chan struct{} // sessions
	buffers  buffers
}

// New checks its arguments; it opens nothing.
func New(cfg Config, deps Deps) (*Service, error) {
	if deps.Verifier == nil || deps.Decider == nil || deps.Recorder == nil || deps.Approvals == nil ||
		deps.Sessions == nil || deps.Resource == nil {
		return nil, errors.New("postgres service: a required dependency is missing")
	}
	cfg = cfg.withDefaults()
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Tracer == nil {
		deps.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if deps.Clock == nil {
		deps.Clock = time.Now
	}
	if deps.Ticker == nil {
		deps.Ticker = func(d time.Duration) (<-chan time.Time, func()) {
			t := time.NewTicker(d)
			return t.C, t.Stop
		}
	}
	if deps.TLS == nil {
		deps.TLS = func() *tls.Config { return nil }
	}
	if deps.Rejected == nil {
		deps.Rejected = func(error) bool { return true }
	}
	m, err := newMetrics(deps.Metric)
	if err != nil {
		return nil, fmt.Errorf("postgres service: %w", err)
	}
	all := logins{newSessionRoles(cfg.Replica, deps.Clock, deps.Log)}
	s := &Service{
		cfg: cfg, deps: deps, metrics: m, catalogs: newCatalogs(deps.Clock, all), logins: all, keys: newCancelKeys(cfg.MaxSessions),
		live: make(chan struct{}, cfg.MaxSessions),
	}
	s.gate = ingress.New(ingress.Config{Name: "postgres", HeaderTimeout: cfg.StartupTimeout, MaxWaiting: cfg.MaxUnauthenticated,
		MaxWaitingEach: cfg.MaxWaitingPerSource, Log: deps.Log, Refused: func(reason string) { m.refused.WithLabelValues(reason).Inc() },
		TurnAway: func(ctx context.Context, conn *ingress.Conn) { s.connection(conn).turnAway(ctx) }})
	return s, nil
}

func (s *Service) connection(conn *ingress.Conn) *connection {
	return &connection{Service: s, conn: conn, source: conn.Source, unwatch: conn.Keep, authenticated: conn.Authenticated}
}

// Serve accepts connections from l, each of which must begin with a PROXY v2
// header, until ctx ends or l fails. It closes l, and returns when every
// session has ended; after ctx ended it returns nil.
func (s *Service) Serve(ctx context.Context, l net.Listener) error {
	defer s.catalogs.close()
	return s.gate.Serve(ctx, l, func(ctx context.Context, conn *ingress.Conn) {
		s.connection(conn).serve(ctx)
	})
}
