// Package extauthz answers Envoy's question, once for each HTTP request,
// whether it may go to its target. It reads the question strictly, learns who
// asks, has policy decide, has the decision recorded, holds what needs a
// reviewer, and words every refusal in the one way that chaperone has.
//
//	token → principal → resource → call → session → decision → recorded
//	        │ allow                          → forwarded, caller's credentials taken off
//	        │ approve → asked → granted → consumed → decided anew → recorded → forwarded
//	        └ deny, and every fault          → problem document
//
// It refuses whatever it cannot read in exactly one way, and it never answers
// with a gRPC error: no setting of Envoy can turn a fault here into an allow.
package extauthz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/quota"
	streams "chaperone.dev/chaperone/internal/session/kube"
)

// A Verifier turns a token into its principal. An error that is not
// identity.ErrTokenRejected means that no verdict was reached.
type Verifier interface {
	Verify(ctx context.Context, token access.Secret) (access.Principal, error)
}

// Resources knows the targets of the current revision by name.
type Resources interface {
	Resource(name string) (access.Resource, bool)
}

// A Decider is the policy.
type Decider interface {
	// Decide never fails: what it cannot decide it denies.
	Decide(ctx context.Context, req access.Request) access.Decision
	// MayConnect reports whether any rule could let the principal do anything
	// with the resource.
	MayConnect(ctx context.Context, p access.Principal, r access.Resource) bool
}

// A Recorder keeps events. After an error the recorded action must not happen.
type Recorder interface {
	Append(ctx context.Context, d access.Durability, evs ...access.Event) error
}

// Approvals puts questions to reviewers.
type Approvals interface {
	// Ask files the question, or returns the live one of the same digest that
	// is not bound to the life of another client.
	Ask(ctx context.Context, ask access.Ask) (access.Approval, error)
	// Wait returns once it is no longer pending, or when ctx ends.
	Wait(ctx context.Context, id string) (access.Approval, error)
	// Standing reports whether Ask would return one that there is already.
	Standing(ctx context.Context, ask access.Ask) bool
	// Consume uses the grant; when it returns nil, this request may run.
	Consume(ctx context.Context, id, digest string) error
}

// Departures says what becomes of a question whose client goes.
type Departures interface {
	// Detach leaves it open for the client to come back to.
	Detach(ctx context.Context, id string) error
	// Abandon ends it.
	Abandon(ctx context.Context, id string) error
}

// Streams is the session service that Envoy hands connections over to.
type Streams interface {
	// Admit keeps a permit until its request arrives with the ticket.
	Admit(p streams.Permit) (ticket string, err error)
}

// Previews asks targets what a held request would do.
type Previews interface {
	// Preview does not do it, and returns within a few seconds. body is what
	// would be sent, as the impersonation of its caller. Nil: there is nothing to
	// ask.
	Preview(ctx context.Context, req access.Request, body []byte, as http.Header) *access.Preview
}

// Sessions groups the requests of one principal to one resource.
type Sessions interface {
	// For returns the id of the session and a context that ends, with a
	// *access.Denial as its cause, when the session does. release says that
	// this request no longer uses it.
	For(ctx context.Context, p access.Principal, r access.Resource, client string) (id string, session context.Context, release func(), err error)
}

// Usage counts what requests use of the limits that hold beyond one of them:
// *quota.Service.
type Usage interface {
	Begin(ctx context.Context, session, account string, limits access.Limits) (*quota.Use, error)
}

// Dependencies are what a Server works with; all are required that do
// not say what happens without them.
type Dependencies struct {
	Verifier   Verifier
	Resources  Resources
	Decider    Decider
	Recorder   Recorder
	Approvals  Approvals
	Departures Departures
	Sessions   Sessions
	Usage      Usage // without it requests with such a limit are refused

	// Streams carries what leaves HTTP for another protocol; without it, that is
	// refused.
	Streams Streams
	// Connections carries what clients CONNECT to; without it, that is refused.
	Connections Connections

	// Impersonation says as whom an API server acts for a caller; nil: as the
	// gateway's own account, at every resource.
	Impersonation func(resource string) *Impersonation

	// Previews tells reviewers what a request would do; without it they see the
	// request alone.
	Previews Previews
}

func (d Dependencies) complete() bool {
	return d.Verifier != nil && d.Resources != nil && d.Decider != nil && d.Recorder != nil &&
		d.Approvals != nil && d.Departures != nil && d.Sessions != nil
}

// Bounds on requests that wait for a reviewer, when Config sets none.
const (
	DefaultMaxHolds             = 1024
	DefaultMaxHoldsPerPrincipal = 32
)

// Config holds the settings of a Server. Zero members have defaults.
type Config struct {
	Wait                 time.Duration // how long a client is kept waiting for a reviewer; required
	MaxHolds             int           // requests kept waiting at once
	MaxHoldsPerPrincipal int
	Now                  func() time.Time
	Logger               *slog.Logger
	Metrics              prometheus.Registerer
}

// A Server implements Envoy's Authorization service. It is safe for concurrent
// use.
type Server struct {
	authv3.UnimplementedAuthorizationServer
	Dependencies
	wait    time.Duration
	now     func() time.Time
	log     *slog.Logger
	holds   *holds
	views   *holds // previews under way
	left    *departures
	metrics metrics
}

// New returns a Server, ready to be registered with a gRPC server.
func New(cfg Config, deps Dependencies) (*Server, error) {
	if !deps.complete() {
		return nil, errors.New("extauthz: a dependency is missing")
	}
	if cfg.Wait <= 0 {
		return nil, errors.New("extauthz: the time to wait for a reviewer must be more than 0")
	}
	if cfg.MaxHolds <= 0 {
		cfg.MaxHolds = DefaultMaxHolds
	}
	if cfg.MaxHoldsPerPrincipal <= 0 {
		cfg.MaxHoldsPerPrincipal = DefaultMaxHoldsPerPrincipal
	}
	s := &Server{Dependencies: deps, wait: cfg.Wait, now: cfg.Now, log: cfg.Logger,
		holds: newHolds(cfg.MaxHolds, cfg.MaxHoldsPerPrincipal), views: newHolds(maxViews, maxViewsPerPrincipal),
		left: &departures{at: map[string]time.Time{}}}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.metrics.register(cfg.Metrics, s.holds); err != nil {
		return nil, fmt.Errorf("extauthz: %w", err)
	}
	return s, nil
}

// Check decides one request. The error is always nil.
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (resp *authv3.CheckResponse, _ error) {
	c := &check{Server: s, id: access.NewRequestID()}
	defer func() {
		if p := recover(); p != nil {
			s.log.ErrorContext(ctx, "check panicked", "request", c.id, "panic", p, "stack", string(debug.Stack()))
			resp = c.denied(unavailable("the gateway failed to decide"))
		}
		s.metrics.count(c.outcome)
	}()
	resp = c.run(ctx, in)
	if resp == nil { // Envoy takes an empty response for an allow
		panic("no response")
	}
	annotate(ctx, c)
	return resp, nil
}

// A check is one request on its way through the steps of the package comment.
type check struct {
	*Server
	id      string
	message message
	token   access.Secret
	request access.Request
	rule    string // that decided
	outcome string
}

func (c *check) run(ctx context.Context, in *authv3.CheckRequest) *authv3.CheckResponse {
	c.request.ID = c.id
	if f := c.authenticate(ctx, in); f != nil {
		return c.refuse(ctx, f)
	}
	if f := c.locate(ctx); f != nil {
		return c.refuse(ctx, f)
	}
	if c.message.kind() == access.SSH {
		return c.connect(ctx)
	}
	if f := c.act(); f != nil {
		return c.refuse(ctx, f)
	}
	id, session, release, err := c.Sessions.For(ctx, c.request.Principal, c.request.Resource, c.message.client)
	if err != nil {
		return c.refuse(ctx, asFault(err, "the gateway cannot open a session now"))
	}
	defer release()
	c.request.Session = id
	// What ends the session ends the wait for a reviewer, too.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(session, func() { cancel(context.Cause(session)) })()
	if session.Err() != nil {
		return c.refuse(ctx, asFault(context.Cause(session), "the session has ended"))
	}
	return c.decide(ctx)
}

// authenticate learns who asks. Every fault of the token looks the same to the
// client.
func (c *check) authenticate(ctx context.Context, in *authv3.CheckRequest) *fault {
	var f *fault
	if c.message, f = read(in); f != nil {
		return f
	}
	shown, err := identity.Forwarded(c.message.headers[identity.ForwardedHeader])
	if err != nil {
		return unauthenticated(err.Error())
	}
	if len(c.message.credentials()) > 0 || shown.Empty() {
		if c.token, f = c.message.bearer(); f != nil {
			return f
		}
	}
	return c.verify(identity.WithShown(ctx, shown))
}

func (c *check) verify(ctx context.Context) *fault {
	p, err := c.Verifier.Verify(ctx, c.token)
	switch {
	case err == nil:
		c.request.Principal = p
		return nil
	case errors.Is(err, identity.ErrTokenRejected):
		return unauthenticated(err.Error())
	default:
		return unavailable("the gateway cannot check tokens now").because(err)
	}
}

// locate finds the resource that the route is for. One that the principal could
// do nothing with looks like one that does not exist.
func (c *check) locate(ctx context.Context) *fault {
	name, kind := c.message.extensions[contextResource], c.message.kind()
	if kind == access.SSH {
		var f *fault
		if name, f = c.message.connecting(); f != nil {
			return f
		}
	}
	r, ok := c.Resources.Resource(name)
	if !ok || r.Kind != kind {
		return unknownResource(fmt.Sprintf("there is no %s resource %q", kind, name))
	}
	if !c.Decider.MayConnect(ctx, c.request.Principal, r) {
		return unknownResource(fmt.Sprintf("no policy lets the principal do anything with %q", name))
	}
	c.request.Resource = r
	return nil
}

// act reads what is asked, in the target's own terms.
func (c *check) act() (f *fault) {
	if c.message.kind() == access.Kubernetes {
		c.request.Action.K8s, f = c.message.kubernetes()
	} else {
		c.request.Action.HTTP, f = c.message.call()
	}
	return f
}

// judge asks policy about the request as of now.
func (c *check) judge(ctx context.Context) access.Decision {
	c.request.Time = c.now()
	d := c.Decider.Decide(ctx, c.request)
	c.rule = d.Rule()
	return d
}

// decide acts on what policy says.
func (c *check) decide(ctx context.Context) *authv3.CheckResponse {
	d := c.judge(ctx)
	if f := c.unserved(d); f != nil {
		return c.refuse(ctx, f)
	}
	switch d.Effect {
	case access.Allow:
		return c.forward(ctx, d, "")
	case access.Approve:
		return c.hold(ctx, d)
	default:
		return c.deny(ctx, d)
	}
}

// deny refuses what policy refuses.
func (c *check) deny(ctx context.Context, d access.Decision) *authv3.CheckResponse {
	if err := c.record(ctx, c.decided(d)); err != nil {
		return c.refuse(ctx, unrecorded(err))
	}
	return c.denied(&fault{Denial: *access.DenialOf(c.request, d)})
}

// forward lets the request through, once that is on record.
func (c *check) forward(ctx context.Context, d access.Decision, approval string) *authv3.CheckResponse {
	if f := c.count(ctx, &d); f != nil {
		if err := c.record(ctx, c.decided(d)); err != nil {
			return c.refuse(ctx, unrecorded(err))
		}
		return c.refuse(ctx, f)
	}
	err := c.record(ctx, c.decided(d), c.event(access.Event{Executed: c.executed(approval)}))
	if err != nil {
		return c.refuse(ctx, unrecorded(err))
	}
	if ctx.Err() != nil { // the session ended, or the client left, while it was written down
		return c.refuse(ctx, asFault(context.Cause(ctx), "the client left"))
	}
	return c.allowed(d)
}

// executed is the request as it goes on. Its body is in the decision's input; the
// digest stands for it.
func (c *check) executed(approval string) *access.Executed {
	x := &access.Executed{Approval: approval}
	if k := c.request.Action.K8s; k != nil {
		x.K8s = new(access.K8s)
		*x.K8s = *k
		x.K8s.Body = nil
		return x
	}
	x.HTTP = new(access.HTTPCall)
	*x.HTTP = *c.request.Action.HTTP
	x.HTTP.Body = nil
	return x
}

// count counts the request where a limit holds beyond it, and leaves word for
// whoever counts its answer.
func (c *check) count(ctx context.Context, d *access.Decision) *fault {
	limits := d.Obligations.Limits
	if limits.Session == (access.Quota{}) && limits.Hour == (access.Quota{}) {
		return nil
	}
	if c.Usage == nil {
		return unavailable("the gateway cannot count what this would use")
	}
	account := quota.Account(c.request.Principal, c.request.Resource)
	if _, err := c.Usage.Begin(ctx, c.request.Session, account, limits); err != nil {
		return &fault{Denial: *quota.DenialOf(err, c.id, c.request.Resource.Name, *d), cause: err.Error()}
	}
	d.Obligations.Account = account
	return nil
}

func (c *check) decided(d access.Decision) access.Event {
	return c.event(access.Event{Decided: &access.Decided{Request: c.request, Decision: d}})
}

func (c *check) event(e access.Event) access.Event {
	e.Session, e.Request = c.request.Session, c.id
	return e
}

// record writes events that must be on disk before the client hears anything. A
// client that leaves does not keep its deeds from being written down.
func (c *check) record(ctx context.Context, events ...access.Event) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	return c.Recorder.Append(ctx, access.Synced, events...)
}

// recordTimeout bounds one Append: a disk that takes longer is as good as none.
const recordTimeout = 10 * time.Second
