package extauthz

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"sync"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
)

// settleTimeout bounds what is still to be said about an approval after its
// client has gone.
const settleTimeout = 5 * time.Second

// hold puts the request before the reviewers and, unless the client would
// rather come back, keeps it until they have answered, it has waited long
// enough, or it leaves.
func (c *check) hold(ctx context.Context, d access.Decision) *authv3.CheckResponse {
	if http := c.request.Action.HTTP; http != nil && http.BodyState == access.BodyUnread {
		// The grant would not cover the body. Envoy learns with the next
		// snapshot that bodies of this resource are to be read.
		return c.refuse(ctx, unavailable("the gateway did not read the request body, so it cannot be put before a reviewer"))
	}
	if err := c.record(ctx, c.decided(d)); err != nil {
		return c.refuse(ctx, unrecorded(err))
	}
	_, async := c.message.preferences()
	ask := c.ask(d)
	ask.Leased = !async
	ask.Preview = c.preview(ctx, ask)
	a, err := c.Approvals.Ask(ctx, ask)
	if err != nil {
		return c.refuse(ctx, unasked(err))
	}
	if a.State == access.Pending && async {
		return c.accepted(a)
	}
	if a.State == access.Pending && a.ID != c.id && c.fallsBack(a.ID) {
		return c.refuse(ctx, notGranted(a))
	}
	if a.State == access.Pending {
		var f *fault
		if a, f = c.await(ctx, a); f != nil {
			return c.refuse(ctx, f)
		}
	}
	if a.State != access.Granted {
		return c.refuse(ctx, notGranted(a))
	}
	return c.use(ctx, a)
}

// ask is the question. The digest covers the request target byte for byte, for
// the call shows it decoded.
func (c *check) ask(d access.Decision) access.Ask {
	return access.Ask{Request: c.request, Decision: d, Settings: map[string]string{"target": c.message.target}}
}

// Bounds on previews under way: each asks a target many things.
const (
	maxViews             = 16
	maxViewsPerPrincipal = 4
)

// preview asks the target what a new question is about.
func (c *check) preview(ctx context.Context, ask access.Ask) *access.Preview {
	if c.Previews == nil || c.Approvals.Standing(ctx, ask) {
		return nil
	}
	as, f := c.impersonated()
	if f != nil { // unserved has seen it
		return nil
	}
	release, ok := c.views.take(c.request.Principal.Key())
	if !ok {
		return &access.Preview{Taken: c.now().UTC(), None: "too many requests were held at once"}
	}
	defer release()
	return c.Previews.Preview(ctx, c.request, c.message.body, headersOf(as))
}

// await waits for the reviewers' answer.
func (c *check) await(ctx context.Context, a access.Approval) (access.Approval, *fault) {
	release, ok := c.holds.take(c.request.Principal.Key())
	if !ok {
		c.abandon(ctx, a)
		return a, tooMany("too many requests are waiting for reviewers")
	}
	defer release()
	waiting, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	waiting, end := startHold(waiting, a.ID)
	answered, err := c.Approvals.Wait(waiting, a.ID)
	end(answered.State)
	switch {
	case err == nil:
		return answered, nil
	case ctx.Err() != nil: // the client left, or the session ended
		c.abandon(ctx, a)
		return a, asFault(context.Cause(ctx), "the client left")
	case waiting.Err() != nil:
		return a, c.leave(ctx, a)
	default:
		c.abandon(ctx, a)
		return a, unavailable("the gateway lost touch with its reviewers").because(err)
	}
}

// leave sends the client away with the id to come back with. The question stays
// open without it.
func (c *check) leave(ctx context.Context, a access.Approval) *fault {
	var answered *approval.StateError
	if err := c.Departures.Detach(ctx, a.ID); err != nil && !errors.As(err, &answered) {
		c.abandon(ctx, a)
		return unavailable("the gateway lost touch with its reviewers").because(err)
	}
	if answered != nil {
		a.State = answered.State
	}
	c.left.add(a.ID, c.now())
	f := notGranted(a)
	f.cause = "no answer within " + c.wait.String()
	return f
}

// fallsBack reports whether a request for a stream comes from a client that was
// just sent away: kubectl asks for the same again over its other protocol, and
// would wait twice.
func (c *check) fallsBack(approval string) bool {
	k := c.request.Action.K8s
	return k != nil && k.LeavesHTTP() && c.left.lately(approval, c.now())
}

// abandon ends the question, unless it was another request's that this one only
// joined.
func (c *check) abandon(ctx context.Context, a access.Approval) {
	if a.ID != c.id {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if err := c.Departures.Abandon(ctx, a.ID); err != nil {
		c.log.WarnContext(ctx, "an abandoned request is still open", "request", a.ID, "error", err)
	}
}

// use consumes the grant and lets the request through if, by now, the token
// still stands and policy would still ask the same question.
func (c *check) use(ctx context.Context, a access.Approval) *authv3.CheckResponse {
	if ctx.Err() != nil {
		c.abandon(ctx, a)
		return c.refuse(ctx, asFault(context.Cause(ctx), "the client left"))
	}
	principal := c.request.Principal
	if f := c.verify(ctx); f != nil {
		return c.refuse(ctx, f)
	}
	if c.request.Principal.Key() != principal.Key() {
		return c.refuse(ctx, unauthenticated("the token names somebody else than before the hold"))
	}
	if err := c.Approvals.Consume(ctx, a.ID, a.Digest); err != nil {
		return c.refuse(ctx, unconsumed(a, err))
	}
	d := c.judge(ctx)
	switch {
	case d.Effect == access.Allow, d.Effect == access.Approve && access.AskDigest(c.ask(d)) == a.Digest:
		return c.forward(ctx, d, a.ID)
	case d.Effect == access.Approve:
		if err := c.record(ctx, c.decided(d)); err != nil {
			return c.refuse(ctx, unrecorded(err))
		}
		return c.refuse(ctx, unconsumed(a, approval.ErrDigest))
	default:
		return c.deny(ctx, d)
	}
}

// notGranted words what became of a question that was not granted. It carries
// the question's id: that is what reviewers know it by.
func notGranted(a access.Approval) *fault {
	f := &fault{Denial: access.Denial{RequestID: a.ID, Rule: a.Ask.Decision.Rule(), Revision: a.Ask.Decision.Revision,
		Reason: access.ApprovalRequired, Requestable: true,
		Message: "a reviewer has to grant this", Hint: "have " + a.ID + " granted, then send the same request again"}}
	switch a.State {
	case access.Refused:
		f.Reason, f.Message, f.Requestable = access.ApprovalRefused, "a reviewer refused this", false
		f.Hint = "ask the reviewers why before you ask again"
	case access.Expired:
		f.Reason, f.Message = access.ApprovalExpired, "no reviewer granted this in time"
		f.Hint = "send the request again to ask again"
	case access.Abandoned, access.Consumed:
		f.Message, f.Hint = "the question to the reviewers is closed", "send the request again to ask again"
	}
	if f.Requestable {
		f.Recourse = access.RecourseOf(a.Ask.Decision.Obligations.Approval, &a)
	}
	return f
}

// unconsumed is a grant that could not be used: it was used already, by a
// twin of this request, or has run out, or is for something else.
func unconsumed(a access.Approval, err error) *fault {
	var state *approval.StateError
	if !errors.As(err, &state) && !errors.Is(err, approval.ErrDigest) && !errors.Is(err, approval.ErrNotFound) {
		return unavailable("the gateway cannot use the grant now").because(err)
	}
	f := notGranted(a)
	f.cause = err.Error()
	f.Message, f.Hint = "the grant cannot be used any more", "send the request again to ask again"
	return f
}

func unasked(err error) *fault {
	if errors.Is(err, approval.ErrTooMany) {
		return tooMany("too many requests for approval are open").because(err)
	}
	return unavailable("the gateway cannot ask the reviewers now").because(err)
}

func tooMany(message string) *fault {
	return &fault{status: http.StatusTooManyRequests, Denial: access.Denial{
		Reason: access.LimitExceeded, Message: message, Hint: "wait until some are answered"}}
}

// fallback is how soon kubectl asks again over its other protocol, and
// maxDepartures how many clients that were sent away are remembered.
const (
	fallback      = 2 * time.Second
	maxDepartures = 4096
)

// departures remember for a moment which questions their clients left behind.
type departures struct {
	mu sync.Mutex
	at map[string]time.Time // by approval
}

func (d *departures) add(approval string, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.at) >= maxDepartures {
		maps.DeleteFunc(d.at, func(_ string, at time.Time) bool { return now.Sub(at) > fallback })
	}
	if len(d.at) < maxDepartures {
		d.at[approval] = now
	}
}

// lately reports whether it was left a moment ago, once.
func (d *departures) lately(approval string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.at[approval]
	delete(d.at, approval)
	return ok && now.Sub(at) <= fallback
}

// holds bounds the requests that wait, in all and by principal.
type holds struct {
	max, maxEach int

	mu   sync.Mutex
	all  int
	each map[string]int
}

func newHolds(max, maxEach int) *holds {
	return &holds{max: max, maxEach: maxEach, each: map[string]int{}}
}

// take returns the func that gives the place back, or false when there is none.
func (h *holds) take(principal string) (release func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all >= h.max || h.each[principal] >= h.maxEach {
		return nil, false
	}
	h.all++
	h.each[principal]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.all--
		if h.each[principal]--; h.each[principal] == 0 {
			delete(h.each, principal)
		}
	}, true
}

func (h *holds) count() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return float64(h.all)
}
