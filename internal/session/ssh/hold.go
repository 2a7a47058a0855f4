package ssh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
	"chaperone.dev/chaperone/internal/telemetry"
)

// remindEvery is how often a waiting client is told again what it waits for. The
// line also keeps the connection alive.
const remindEvery = 15 * time.Second

// hold puts an act before the reviewers and waits; nothing of it has reached the
// target. After a grant it is decided again: what happens is what was granted,
// or nothing.
func (s *session) hold(ctx context.Context, v *verdict, tell func(string) error) *refusal {
	if v.decision.Obligations.Approval == nil {
		return s.append(ctx, v, s.notNow(v, access.Unavailable, "the rule asks for an approval and names no reviewers", "", "no terms"), v.decided())
	}
	if r := s.append(ctx, v, nil, v.decided()); r != nil {
		return r
	}
	// Leased: it ends with whoever waits for it, this process included.
	ask := access.Ask{Request: v.request, Decision: v.decision, Settings: s.heldSettings(), Leased: true, Trace: telemetry.Traceparent(ctx)}
	a, err := s.deps.Approvals.Ask(ctx, ask)
	if err != nil {
		if ctx.Err() != nil {
			return s.over(ctx, v)
		}
		return s.notNow(v, access.Unavailable, "the gateway cannot ask for an approval now", "try again in a moment", err.Error())
	}
	if a.State == access.Pending {
		s.metrics.held.Inc()
		var r *refusal
		a, r = s.wait(ctx, v, a, tell)
		s.metrics.held.Dec()
		if r != nil {
			return r
		}
	}
	if a.State != access.Granted {
		return s.notGranted(v, a)
	}
	return s.useGrant(ctx, v, a)
}

// heldSettings are what a grant is bound to beside the call.
func (s *session) heldSettings() map[string]string {
	return map[string]string{"address": s.resource.Address}
}

// useGrant decides anew and uses the grant up for exactly what was granted.
func (s *session) useGrant(ctx context.Context, v *verdict, a access.Approval) *refusal {
	again := s.decide(ctx, v.request.ID, *v.request.Action.SSH)
	switch again.decision.Effect {
	case access.Deny:
		s.abandon(ctx, a.ID)
		v.decision = again.decision
		return s.append(ctx, v, &refusal{denial: access.DenialOf(again.request, again.decision), cause: "policy", recorded: true}, again.decided())
	case access.Allow:
		s.abandon(ctx, a.ID)
		v.request, v.decision = again.request, again.decision
		return nil
	}
	digest := access.AskDigest(access.Ask{Request: again.request, Decision: again.decision, Settings: s.heldSettings()})
	if digest != a.Digest {
		s.abandon(ctx, a.ID)
		return s.notNow(v, access.ApprovalExpired, "the rules changed since "+a.ID+" was approved", "run it again to ask anew", "digest")
	}
	if err := s.deps.Approvals.Consume(ctx, a.ID, digest); err != nil {
		if ctx.Err() != nil {
			return s.over(ctx, v)
		}
		return s.notNow(v, access.ApprovalExpired, "the approval "+a.ID+" cannot be used", "run it again to ask anew", err.Error())
	}
	v.request, v.decision, v.approval = again.request, again.decision, a.ID
	return nil
}

type waited struct {
	approval access.Approval
	err      error
}

// wait waits for the answer to a, telling the client, until there is one, the
// client leaves, or the wait is over.
func (s *session) wait(ctx context.Context, v *verdict, a access.Approval, tell func(string) error) (access.Approval, *refusal) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan waited, 1)
	go func() { // ends with waiting
		a, err := s.deps.Approvals.Wait(waiting, a.ID)
		answers <- waited{a, err}
	}()
	tick, stopTick := s.deps.Ticker(remindEvery)
	defer stopTick()
	over := time.NewTimer(s.cfg.ApprovalWait)
	defer over.Stop()
	for {
		if err := s.tellHeld(ctx, a, tell); err != nil {
			s.depart(ctx, v, a)
			return a, s.notNow(v, access.SessionEnded, "the client left", "", err.Error())
		}
		select {
		case answer := <-answers:
			if answer.err == nil {
				return answer.approval, nil
			}
			s.depart(ctx, v, a)
			if ctx.Err() != nil {
				return a, s.over(ctx, v)
			}
			return a, s.notNow(v, access.Unavailable, "the gateway cannot wait for the approval now", "try again in a moment", answer.err.Error())
		case <-tick:
		case <-over.C:
			return s.unanswered(ctx, v, a)
		case <-ctx.Done():
			s.depart(ctx, v, a)
			return a, s.over(ctx, v)
		}
	}
}

// unanswered sends the client away with the id to come back with: each run of ssh
// is a connection of its own, and the one that repeats the command finds the
// question, which stands without this one. An answer that came meanwhile is
// returned.
func (s *session) unanswered(ctx context.Context, v *verdict, a access.Approval) (access.Approval, *refusal) {
	var answered *approval.StateError
	if err := s.deps.Approvals.Detach(ctx, a.ID); errors.As(err, &answered) {
		a.State = answered.State
		return a, nil
	} else if err != nil {
		s.depart(ctx, v, a)
		return a, s.notNow(v, access.Unavailable, "the gateway lost touch with its reviewers", "run it again to ask anew", err.Error())
	}
	r := s.notNow(v, access.ApprovalRequired, "no reviewer has answered "+a.ID+" yet", "run the same again once "+a.ID+" is approved", "wait over")
	r.denial.Requestable, r.denial.Recourse = true, access.RecourseOf(v.decision.Obligations.Approval, &a)
	return a, r
}

// depart ends a question of the act's own. One that an earlier connection left
// behind stands for the next.
func (s *session) depart(ctx context.Context, v *verdict, a access.Approval) {
	if a.ID == v.request.ID {
		s.abandon(ctx, a.ID)
	}
}

// tellHeld tells the client what it waits for, and records that it did.
func (s *session) tellHeld(ctx context.Context, a access.Approval, tell func(string) error) error {
	text := "waiting for approval " + a.ID
	e := s.event(access.Event{Request: a.ID, Notice: &access.Notice{Severity: "NOTICE", Text: text}})
	if err := s.deps.Recorder.Append(ctx, access.Written, e); err != nil {
		return err
	}
	return tell(fmt.Sprintf("%s; nothing has reached %s; the question stands until %s\n  a reviewer can: chaperone approvals approve %s",
		text, s.resource.Access.Name, a.Expires.UTC().Format(time.RFC3339), a.ID))
}

// abandon says that nobody waits for an approval any more.
func (s *session) abandon(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	if err := s.deps.Approvals.Abandon(ctx, id); err != nil {
		s.log.Error("approval not abandoned", "error", err, "approval", id)
	}
}

// notGranted is the refusal for an approval that ended without a grant.
func (s *session) notGranted(v *verdict, a access.Approval) *refusal {
	reason, message := a.NotGranted()
	hint := "run it again to ask anew"
	if reason == access.ApprovalRefused {
		hint = "change the command, or talk to the reviewers"
	}
	return s.notNow(v, reason, message, hint, "approval")
}
