package ssh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/quota"
	"chaperone.dev/chaperone/internal/session/ingress"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
	"chaperone.dev/chaperone/internal/session/ticket"
)

// Config is how the service behaves. A zero value means the default that its
// comment names.
type Config struct {
	// ApprovalWait is how long a held act waits before the client gets the
	// request id and may repeat it later. Default 5 minutes.
	ApprovalWait time.Duration
	// StartupTimeout bounds everything before authentication. Default 10 s.
	StartupTimeout time.Duration
	// DialTimeout bounds reaching the target. Default 10 s.
	DialTimeout time.Duration
	// MaxUnauthenticated, MaxWaitingPerSource and MaxSessions bound connections
	// as in package postgres. Defaults 256, 32 and 2000.
	MaxUnauthenticated  int
	MaxWaitingPerSource int
	MaxSessions         int
	// MaxSessionsPerPrincipal bounds the sessions of one principal, so that one
	// cannot keep the others out. Default 200.
	MaxSessionsPerPrincipal int
	// MaxChannels bounds the channels of one session. Default 10, which is what
	// sshd allows.
	MaxChannels int
	// RecordedOutput bounds what is recorded of one act's streams, in bytes; the
	// rest is counted. Default 1 MiB.
	RecordedOutput int64
	// RecordedTerminal bounds what is recorded of one terminal; beyond it the
	// act ends. Default 64 MiB.
	RecordedTerminal int64
}

func (c Config) withDefaults() Config {
	c.ApprovalWait = cmp.Or(c.ApprovalWait, 5*time.Minute)
	c.StartupTimeout = cmp.Or(c.StartupTimeout, 10*time.Second)
	c.DialTimeout = cmp.Or(c.DialTimeout, 10*time.Second)
	c.MaxUnauthenticated = cmp.Or(c.MaxUnauthenticated, 256)
	c.MaxWaitingPerSource = cmp.Or(c.MaxWaitingPerSource, 32)
	c.MaxSessions = cmp.Or(c.MaxSessions, 2000)
	c.MaxSessionsPerPrincipal = cmp.Or(c.MaxSessionsPerPrincipal, 200)
	c.MaxChannels = cmp.Or(c.MaxChannels, 10)
	c.RecordedOutput = cmp.Or(c.RecordedOutput, 1<<20)
	c.RecordedTerminal = cmp.Or(c.RecordedTerminal, 64<<20)
	return c
}

// A Resource is a target as the current configuration has it.
type Resource struct {
	Access  access.Resource
	Address string   // host:port
	Users   []string // accounts that clients may ask for
	// HostKeys are the target's own keys, HostCAs authorities that certify one
	// for the host of Address. No other key is taken.
	HostKeys []gossh.PublicKey
	HostCAs  []gossh.PublicKey
	// Environment names variables that clients may set beside the usual ones.
	Environment []string
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
	MayConnect(ctx context.Context, p access.Principal, r access.Resource) bool
	// SessionMax is the longest that a rule grants to a session beyond its
	// token, counted from its opening.
	SessionMax(ctx context.Context, p access.Principal, r access.Resource) time.Duration
}

// A Recorder stores events: durable when it returns nil. After an error the
// recorded act must not happen.
type Recorder interface {
	Append(ctx context.Context, d access.Durability, evs ...access.Event) error
}

// Approvals is the lifecycle of held acts. Ask files a question, or returns the
// live one with the same digest; Wait blocks until it is answered; Consume uses
// a grant up; Abandon says that nobody waits any more, Detach that whoever waited
// will come back.
type Approvals interface {
	Ask(ctx context.Context, ask access.Ask) (access.Approval, error)
	Wait(ctx context.Context, id string) (access.Approval, error)
	Consume(ctx context.Context, id, digest string) error
	Abandon(ctx context.Context, id string) error
	Detach(ctx context.Context, id string) error
}

// Sessions is the registry of live sessions. The context that Open returns ends
// with a *access.Denial as its cause; the function closes the session. Principal
// is whom it acts for now: a fresh token may have come. Revoked reports whether the principal's token has been taken back; an error means that
// it is not known.
type Sessions interface {
	Open(ctx context.Context, s access.Session) (context.Context, func(cause string), error)
	Principal(session string) (access.Principal, bool)
	Revoked(ctx context.Context, p access.Principal) (bool, error)
}

// Usage counts what acts use of the limits that hold beyond one of them:
// *quota.Service.
type Usage interface {
	Begin(ctx context.Context, session, account string, limits access.Limits) (*quota.Use, error)
}

// Deps are the parts that the service joins. All but those marked optional are
// required.
type Deps struct {
	Keys      *authority.Keys
	Verifier  Verifier
	Decider   Decider
	Recorder  Recorder
	Approvals Approvals
	Sessions  Sessions
	// Resource looks an SSH resource up by name, each time anew.
	Resource func(name string) (Resource, bool)
	// HostNames are the names that the gateway's host certificate is for.
	HostNames func() []string
	// KnownIssuer reports whether an issuer of principals is configured still.
	KnownIssuer func(name string) bool
	// Rejected tells whether an error of the Verifier is a verdict on the
	// token, rather than the lack of one. Optional: without it every error is.
	Rejected func(err error) bool
	// Usage counts for limits of a session and of an hour. Optional: without it
	// acts with such a limit are refused.
	Usage Usage

	Log    *slog.Logger          // optional
	Tracer trace.Tracer          // optional
	Clock  func() time.Time      // optional
	Metric prometheus.Registerer // optional
	// Ticker ticks for the reminders of held acts. Optional.
	Ticker func(d time.Duration) (tick <-chan time.Time, stop func())
}

// A Service serves SSH clients. It is safe for concurrent use.
type Service struct {
	cfg     Config
	deps    Deps
	metrics *metrics
	gate    *ingress.Gate
	live    chan struct{} // sessions
	desk    *ticket.Desk[Permit]

	mu     sync.Mutex
	places map[string]int // sessions of each principal
}

// place takes a place among the sessions of a principal, which leave gives back.
func (s *Service) place(p access.Principal) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := p.Key()
	if s.places[key] >= s.cfg.MaxSessionsPerPrincipal {
		return nil, false
	}
	s.places[key]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.places[key]--; s.places[key] == 0 {
			delete(s.places, key)
		}
	}, true
}

// New checks its arguments; it opens nothing.
func New(cfg Config, deps Deps) (*Service, error) {
	if deps.Keys == nil || deps.Verifier == nil || deps.Decider == nil || deps.Recorder == nil || deps.Approvals == nil ||
		deps.Sessions == nil || deps.Resource == nil || deps.HostNames == nil || deps.KnownIssuer == nil {
		return nil, errors.New("ssh service: a required dependency is missing")
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
	if deps.Rejected == nil {
		deps.Rejected = func(error) bool { return true }
	}
	m, err := newMetrics(deps.Metric)
	if err != nil {
		return nil, fmt.Errorf("ssh service: %w", err)
	}
	gate := ingress.New(ingress.Config{Name: "ssh", HeaderTimeout: cfg.StartupTimeout, MaxWaiting: cfg.MaxUnauthenticated,
		MaxWaitingEach: cfg.MaxWaitingPerSource, Log: deps.Log,
		Refused: func(reason string) { m.refused.WithLabelValues(reason).Inc() }})
	return &Service{cfg: cfg, deps: deps, metrics: m, gate: gate, live: make(chan struct{}, cfg.MaxSessions), desk: ticket.NewDesk[Permit](deps.Clock),
		places: map[string]int{}}, nil
}

// Serve accepts connections from l, each of which must begin with a PROXY v2
// header, until ctx ends or l fails. It closes l, and returns when every
// session has ended; after ctx ended it returns nil.
func (s *Service) Serve(ctx context.Context, l net.Listener) error {
	return s.gate.Serve(ctx, l, s.serve)
}

// A Permit is a connection that the authorizer let through before a byte of it
// came: who connects, by which token it was checked there, and to which host.
type Permit struct {
	Principal access.Principal
	Resource  string
}

// Admit keeps a permit until its connection arrives, and returns the ticket that
// Envoy's PROXY header must bring (ingress.TicketTLV). It is good once, and not
// for long.
func (s *Service) Admit(p Permit) (id string, err error) { return s.desk.Admit(p) }

// serve takes a connection from its first byte to its end.
func (s *Service) serve(ctx context.Context, conn *ingress.Conn) {
	a := &authentication{Service: s, ctx: ctx, source: conn.Source}
	if id, shown := conn.Ticket(); shown {
		permit, ok := s.desk.Redeem(id)
		if !ok {
			s.metrics.refused.WithLabelValues("no-ticket").Inc()
			s.deps.Log.Error("ssh connection closed: its ticket is none of ours", "client", conn.Source.String())
			return
		}
		a.permit = &permit
	}
	client, channels, requests, err := a.handshake(conn)
	if err != nil {
		a.fail(err)
		return
	}
	conn.Authenticated()
	defer client.Close()
	s.open(ctx, conn, &link{client, channels, requests}, a.who(client))
}
