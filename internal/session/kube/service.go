package kube

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/cluster"
	"chaperone.dev/chaperone/internal/quota"
	"chaperone.dev/chaperone/internal/session/ticket"
)

// Config is how the service behaves. A zero value means the default that its
// comment names.
type Config struct {
	// DialTimeout bounds reaching the API server, and HandshakeTimeout its
	// answer, for which it reaches the node. Defaults 10 s and 30 s.
	DialTimeout      time.Duration
	HandshakeTimeout time.Duration
	// MaxFlows bounds the streams under way. Default 2000.
	MaxFlows int
	// RecordedOutput bounds what is recorded of one command's streams, in bytes;
	// the rest is counted. Default 1 MiB.
	RecordedOutput int64
	// RecordedTerminal bounds what is recorded of one terminal; beyond it the
	// command ends. Default 64 MiB.
	RecordedTerminal int64
}

func (c Config) withDefaults() Config {
	c.DialTimeout = cmp.Or(c.DialTimeout, 10*time.Second)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, 30*time.Second)
	c.MaxFlows = cmp.Or(c.MaxFlows, 2000)
	c.RecordedOutput = cmp.Or(c.RecordedOutput, 1<<20)
	c.RecordedTerminal = cmp.Or(c.RecordedTerminal, 64<<20)
	return c
}

// A Resource is an API server as the current configuration has it.
type Resource = cluster.Target

// A Recorder stores events: durable when it returns nil. After an error the
// recorded act must not go on.
type Recorder interface {
	Append(ctx context.Context, d access.Durability, evs ...access.Event) error
}

// Usage counts what flows use of the limits that hold beyond one of them:
// *quota.Service.
type Usage interface {
	Resume(session, account string, limits access.Limits) *quota.Use
}

// Deps are the parts that the service joins. All but those marked optional are
// required.
type Deps struct {
	Recorder Recorder
	// Resource looks an API server up by name, each time anew.
	Resource func(name string) (Resource, bool)
	// Watch returns a context that ends when the session does, with a
	// *access.Denial as its cause, and a function to call when the flow is over.
	Watch func(session string) (ended context.Context, release func())
	// Usage is optional: without it flows with such a limit are refused.
	Usage Usage

	Log    *slog.Logger          // optional
	Clock  func() time.Time      // optional
	Metric prometheus.Registerer // optional
}

// A Service serves what was let through. It is safe for concurrent use.
type Service struct {
	cfg     Config
	deps    Deps
	metrics *metrics
	tickets *ticket.Desk[Permit]
	places  chan struct{}
	flows   sync.WaitGroup
}

// New checks its arguments; it opens nothing.
func New(cfg Config, deps Deps) (*Service, error) {
	if deps.Recorder == nil || deps.Resource == nil || deps.Watch == nil {
		return nil, errors.New("kube service: a required dependency is missing")
	}
	cfg = cfg.withDefaults()
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Clock == nil {
		deps.Clock = time.Now
	}
	m, err := newMetrics(deps.Metric)
	if err != nil {
		return nil, fmt.Errorf("kube service: %w", err)
	}
	return &Service{cfg: cfg, deps: deps, metrics: m, tickets: ticket.NewDesk[Permit](deps.Clock), places: make(chan struct{}, cfg.MaxFlows)}, nil
}

// Admit keeps a permit until its request arrives, and returns the ticket that
// the request must bring in ticket.Header. It is good once, and not for long.
func (s *Service) Admit(p Permit) (id string, err error) { return s.tickets.Admit(p) }

// maxRequest bounds the head of a request, which Envoy has bounded before.
const maxRequest = 128 << 10

// Serve accepts connections from l, which must be one that only Envoy can reach,
// until ctx ends or l fails. It closes l, and returns when every flow has ended;
// after ctx ended it returns nil.
func (s *Service) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: s.cfg.DialTimeout, MaxHeaderBytes: maxRequest,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(l)
	s.flows.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ServeHTTP takes a request that Envoy passes on.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.flows.Add(1)
	defer s.flows.Done()
	defer func() {
		if fault := recover(); fault != nil {
			s.deps.Log.Error("stream panics", "fault", fault, "stack", string(debug.Stack()))
		}
	}()
	permit, ok := s.redeem(r)
	if !ok {
		s.metrics.flows.WithLabelValues("no ticket").Inc()
		s.deps.Log.Error("a stream without a permit reached the session service", "method", r.Method, "path", r.URL.Path)
		refuse(w, &access.Denial{RequestID: access.NewRequestID(), Reason: access.DeniedByRule, Message: "nobody let this request through"})
		return
	}
	f := &flow{Service: s, permit: permit, call: permit.Request.Action.K8s, began: s.deps.Clock(),
		log: s.deps.Log.With("session", permit.Request.Session, "resource", permit.Request.Resource.Name)}
	outcome := f.serve(w, r)
	s.metrics.flows.WithLabelValues(outcome).Inc()
}

// redeem finds what let the request through. A ticket serves the request that it
// was given for alone.
func (s *Service) redeem(r *http.Request) (Permit, bool) {
	shown := r.Header.Values(ticket.Header)
	if len(shown) != 1 {
		return Permit{}, false
	}
	p, ok := s.tickets.Redeem(shown[0])
	if !ok || p.Request.Action.K8s == nil {
		return Permit{}, false
	}
	k := p.Request.Action.K8s
	return p, k.Method == r.Method && k.Path == r.URL.Path && k.LeavesHTTP()
}

// refuse answers with a Status.
func refuse(w http.ResponseWriter, d *access.Denial) {
	status := d.Status()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(d.KubernetesStatus(status)) // it may have left
}

// serve carries one flow from the request to its end, and says how it came out.
func (f *flow) serve(w http.ResponseWriter, r *http.Request) (outcome string) {
	ctx, denial := f.enter(r.Context())
	defer f.leave()
	if denial == nil {
		denial = f.prepare()
	}
	var client, target side
	var h *handshake
	if denial == nil {
		h, denial = f.handshake(r)
	}
	if denial == nil {
		target, denial = f.reach(ctx, w, h)
	}
	if denial != nil {
		f.fail(denial)
		refuse(w, denial)
		return "refused"
	}
	if target.conn == nil { // the API server has answered, and said no
		return "refused by the target"
	}
	client, err := h.accept(w)
	if err != nil {
		_ = target.conn.Close()
		f.end(err)
		return "client left"
	}
	f.metrics.open.Inc()
	defer f.metrics.open.Dec()
	err = f.run(ctx, h.relay(f, client, target), client.conn, target.conn)
	f.end(err)
	if err != nil {
		f.log.Info("stream ended", "request", f.permit.Request.ID, "cause", err.Error())
		return "ended"
	}
	return "served"
}

// enter takes a place for the flow, and ties it to its session.
func (f *flow) enter(ctx context.Context) (context.Context, *access.Denial) {
	select {
	case f.places <- struct{}{}:
		f.placed = true
	default:
		return ctx, f.denial(access.LimitExceeded, "the gateway carries too many streams", "try again later")
	}
	session, release := f.deps.Watch(f.permit.Request.Session)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(session, func() { cancel(context.Cause(session)) })
	f.release = func() { stop(); cancel(nil); release() }
	if session.Err() != nil {
		return ctx, f.denialOf(context.Cause(session))
	}
	return ctx, nil
}

func (f *flow) leave() {
	if f.release != nil {
		f.release()
	}
	if f.placed {
		<-f.places
	}
}

// fail records that a flow that was let through did not begin.
func (f *flow) fail(d *access.Denial) {
	ctx, cancel := context.WithTimeout(context.Background(), recordWithin)
	defer cancel()
	err := f.deps.Recorder.Append(ctx, access.Synced, f.event(access.Event{Denied: &access.Denied{Denial: *d, Resource: d.Resource}}),
		f.event(access.Event{Ended: &access.Ended{Tag: string(d.Reason), Error: d.Message, Duration: f.deps.Clock().Sub(f.began)}}))
	if err == nil && f.use != nil {
		err = f.use.End(ctx, f.deps.Clock().Sub(f.began))
	}
	if err != nil {
		f.log.Error("a refused stream is not recorded", "request", f.permit.Request.ID, "error", err)
	}
}

// A side is a connection that has left HTTP, and what was read of it before.
type side struct {
	conn   net.Conn
	reader *bufio.Reader
}

func (s side) Read(p []byte) (int, error)  { return s.reader.Read(p) }
func (s side) Write(p []byte) (int, error) { return s.conn.Write(p) }
