package ssh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/quota"
	"chaperone.dev/chaperone/internal/telemetry"
)

// A verdict is what was decided about one act, and what became of it.
type verdict struct {
	session  *session
	request  access.Request
	decision access.Decision
	approval string     // the grant that it consumed
	use      *quota.Use // nil: nothing beyond this act has a limit
	span     trace.Span

	started time.Time // when it was let through
	bytes   int64
	masked  int64
	tag     string // how it came out
	failure string
	streams []access.StreamSum
}

func (v *verdict) decided() access.Event {
	return v.session.event(access.Event{Request: v.request.ID, Decided: &access.Decided{Request: v.request, Decision: v.decision}})
}

// A refusal is a denial on its way to the client. recorded says that the
// recording has it.
type refusal struct {
	denial   *access.Denial
	cause    string
	recorded bool
}

// decide asks policy about a call.
func (s *session) decide(ctx context.Context, id string, call access.SSHCall) *verdict {
	v := &verdict{session: s, request: access.Request{ID: id, Session: s.info.ID, Time: s.deps.Clock(), Principal: s.principal(),
		Resource: s.resource.Access, Action: access.Action{SSH: &call}}}
	v.decision = s.deps.Decider.Decide(ctx, v.request)
	return v
}

// permit decides about a call, holds it when policy asks for that (tell gets the
// lines for the client), counts it, and records that it is about to happen. When
// the refusal is not nil it must not. Otherwise the caller ends the verdict.
func (s *session) permit(ctx context.Context, call access.SSHCall, tell func(string) error) (*verdict, *refusal) {
	ctx, span := s.startActSpan(ctx, &call)
	v := s.decide(ctx, access.NewRequestID(), call)
	v.span = span
	span.SetAttributes(telemetry.DecisionAttributes(v.request, v.decision)...)
	r := s.permitted(ctx, v, tell)
	outcome := v.decision.Effect.String()
	if r != nil {
		if v.decision.Effect != access.Deny {
			outcome = "refused"
		}
		span.SetStatus(codes.Error, string(r.denial.Reason))
		span.End()
	}
	s.metrics.acts.WithLabelValues(call.Act, outcome).Inc()
	return v, r
}

func (s *session) permitted(ctx context.Context, v *verdict, tell func(string) error) *refusal {
	if ctx.Err() != nil {
		return s.over(ctx, v)
	}
	if v.decision.Effect == access.Deny {
		return s.append(ctx, v, &refusal{denial: access.DenialOf(v.request, v.decision), cause: "policy", recorded: true}, v.decided())
	}
	if !s.mayGoOn(v) {
		return s.append(ctx, v, &refusal{denial: v.outlived(), cause: "token expired"}, v.decided())
	}
	if r := s.unservable(v); r != nil {
		return s.append(ctx, v, r, v.decided())
	}
	if v.decision.Effect == access.Approve {
		if r := s.hold(ctx, v, tell); r != nil {
			return r
		}
	}
	use, r := s.beginUse(ctx, v)
	if r != nil {
		return s.append(ctx, v, r, v.decided())
	}
	v.use, v.started = use, s.deps.Clock()
	executed := s.event(access.Event{Request: v.request.ID, Executed: &access.Executed{SSH: v.request.Action.SSH, Approval: v.approval}})
	return s.append(ctx, v, nil, v.decided(), executed)
}

// append records events before what follows from them, which is r, or that
// nothing may follow.
func (s *session) append(ctx context.Context, v *verdict, r *refusal, events ...access.Event) *refusal {
	if err := s.deps.Recorder.Append(ctx, access.Synced, events...); err != nil {
		if ctx.Err() != nil {
			return s.over(ctx, v)
		}
		return s.notNow(v, access.Unavailable, "the gateway cannot record this now", "try again; tell the operators if it lasts", err.Error())
	}
	return r
}

// unservable refuses obligations that cannot be met for the act.
func (s *session) unservable(v *verdict) *refusal {
	if len(v.decision.Obligations.Masks) == 0 {
		return nil
	}
	switch v.request.Action.SSH.Act {
	case access.ActExec, access.ActShell:
		return nil // newRelay compiles them
	}
	return s.notNow(v, access.MaskedField, "files and connections in transit cannot be masked, and "+v.decision.Rule()+" masks what this host answers",
		"ask for a rule without masks for it", "masks on a transfer")
}

// over is the refusal of an act whose session has ended.
func (s *session) over(ctx context.Context, v *verdict) *refusal {
	var denial *access.Denial
	if !errors.As(context.Cause(ctx), &denial) {
		return s.notNow(v, access.SessionEnded, "the client left", "", "client left")
	}
	return s.notNow(v, denial.Reason, denial.Message, denial.Hint, denial.Message)
}

// notNow is a refusal that policy did not make.
func (s *session) notNow(v *verdict, reason access.Reason, message, hint, cause string) *refusal {
	return &refusal{cause: cause, denial: &access.Denial{RequestID: v.request.ID, Reason: reason, Rule: v.decision.Rule(), Message: message, Hint: hint,
		Resource: s.resource.Access.Name, Revision: v.decision.Revision}}
}

// denied records a refusal, unless the recording has it.
func (s *session) denied(ctx context.Context, r *refusal, text string) {
	if r.recorded {
		return
	}
	s.lastWords(ctx, s.event(access.Event{Request: r.denial.RequestID, Denied: &access.Denied{Denial: *r.denial, Cause: r.cause,
		Resource: s.resource.Access.Name, Client: s.info.Client, Text: text}}))
}

// refuse records a refusal and tells the client.
func (c *channel) refuse(ctx context.Context, v *verdict, r *refusal) {
	c.denied(ctx, r, "")
	c.log.Info("ssh act refused", "request", v.request.ID, "reason", r.denial.Reason, "rule", r.denial.Rule, "cause", r.cause)
	c.deny(r.denial)
}

// denyUnjudged refuses what no judge can read.
func (c *channel) denyUnjudged(ctx context.Context, reason access.Reason, message, text string) {
	r := &refusal{cause: "bounds", denial: &access.Denial{RequestID: access.NewRequestID(), Reason: reason, Rule: ruleDefault, Message: message, Resource: c.resource.Access.Name}}
	c.denied(ctx, r, text)
	c.deny(r.denial)
}

// neverServed records the decision on something that the gateway does not do,
// whatever policy says.
func (s *session) neverServed(ctx context.Context, call access.SSHCall, message string) {
	s.mu.Lock()
	s.wishes++
	wishes := s.wishes
	s.mu.Unlock()
	if wishes > maxWishes {
		if wishes == maxWishes+1 {
			s.metrics.refused.WithLabelValues("flood").Inc()
			s.log.Warn("ssh session ended: it asks again and again for what is never served", "client", s.info.Client)
			s.stop(&access.Denial{RequestID: access.NewRequestID(), Reason: access.LimitExceeded, Rule: ruleDefault,
				Message: fmt.Sprintf("more than %d requests for forwards that are never served", maxWishes), Resource: s.resource.Access.Name})
		}
		return
	}
	v := s.decide(ctx, access.NewRequestID(), call)
	s.metrics.acts.WithLabelValues(call.Act, "refused").Inc()
	s.lastWords(ctx, v.decided())
	if v.decision.Effect != access.Deny {
		s.denied(ctx, s.notNow(v, access.Unsupported, message, "", "never served"), "")
	}
}

// beginUse counts the act before it happens.
func (s *session) beginUse(ctx context.Context, v *verdict) (*quota.Use, *refusal) {
	limits := v.decision.Obligations.Limits
	if limits.Session == (access.Quota{}) && limits.Hour == (access.Quota{}) {
		return nil, nil
	}
	if s.deps.Usage == nil {
		return nil, s.notNow(v, access.Unavailable, "the gateway cannot count what this would use", "", "no counters")
	}
	use, err := s.deps.Usage.Begin(ctx, v.request.Session, quota.Account(v.request.Principal, v.request.Resource), limits)
	if err != nil {
		return nil, &refusal{denial: quota.DenialOf(err, v.request.ID, s.resource.Access.Name, v.decision), cause: err.Error()}
	}
	return use, nil
}

// endUseTimeout bounds giving back what an act did not use.
const endUseTimeout = 2 * time.Second

// end closes the request of an act that was let through.
func (v *verdict) end(ctx context.Context) {
	s := v.session
	took := s.deps.Clock().Sub(v.started)
	if v.use != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endUseTimeout)
		defer cancel()
		if err := v.use.End(ctx, took); err != nil {
			s.log.Warn("the use of an act is counted too high", "request", v.request.ID, "error", err)
		}
	}
	s.record(ctx, access.Written, s.event(access.Event{Request: v.request.ID, Ended: &access.Ended{Tag: v.tag, Bytes: v.bytes, Masked: v.masked,
		Duration: took, Error: v.failure, Streams: v.streams}}))
	if v.failure != "" {
		v.span.SetStatus(codes.Error, "failed")
	}
	v.span.End()
}

// limit is the denial of an act that reached a limit of its rule.
func (v *verdict) limit(message string) *access.Denial {
	return &access.Denial{RequestID: v.request.ID, Reason: access.LimitExceeded, Rule: v.decision.Rule(),
		Message: fmt.Sprintf("%s, which is the limit of %s", message, v.decision.Rule()), Hint: "ask for less at a time",
		Resource: v.request.Resource.Name, Revision: v.decision.Revision}
}
