package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/telemetry"
)

const (
	// remindEvery is how often a waiting client is told again what it waits for.
	remindEvery = 15 * time.Second
	// maxOpenAsks bounds the questions that a session leaves open to repeat
	// them later.
	maxOpenAsks = 16
)

// hold puts an execution before the reviewers and waits. Nothing of it has
// reached the target yet, but what the client prepared in an earlier round
// trip. After a grant it is judged again from scratch; what runs is what was
// granted, or nothing. A refusal is for the caller to answer; an error ends the
// session.
func (s *session) hold(ctx context.Context, p *portal, v *verdict) (*verdict, string, *refusal, error) {
	terms := v.decision.Obligations.Approval
	if terms == nil {
		r := s.notHeld(v, access.Unavailable, "the rule asks for an approval and names no reviewers", "")
		return v, "", s.withDecision(r, v), nil
	}
	if s.inTransaction() && !terms.InTransaction {
		r := s.notHeld(v, access.ApprovalRequired, "this needs an approval, and would hold the locks of an open transaction while it waits",
			"run it outside a transaction, in a message of its own")
		r.denial.Requestable, r.denial.Recourse = true, access.RecourseOf(terms, nil)
		return v, "", s.withDecision(r, v), nil
	}
	settings, r, err := s.heldSettings(ctx, v)
	if r != nil || err != nil {
		return v, "", s.withDecision(r, v), err
	}
	s.estimateCard(ctx, p.statement, v)
	if err := s.append(ctx, access.Synced, []access.Event{v.decided(s)}); err != nil {
		return v, "", nil, err
	}
	ask := access.Ask{Request: v.request, Decision: v.decision, Settings: settings, Leased: true, Trace: telemetry.Traceparent(ctx)}
	a, err := s.deps.Approvals.Ask(ctx, ask)
	if err != nil {
		if ctx.Err() != nil {
			return v, "", nil, context.Cause(ctx)
		}
		r := s.notHeld(v, access.Unavailable, "the gateway cannot ask for an approval now", "try again in a moment")
		r.cause = err.Error()
		return v, "", r, nil
	}
	if a.State == access.Pending {
		s.metrics.held.Inc()
		a, r, err = s.await(ctx, v, a)
		s.metrics.held.Dec()
		if r != nil || err != nil {
			return v, "", r, err
		}
	}
	if a.State != access.Granted {
		return v, "", s.notGranted(v, a), nil
	}
	return s.use(ctx, p, v, ask, a)
}

// use judges a granted execution again and uses the grant up for exactly that.
func (s *session) use(ctx context.Context, p *portal, v *verdict, ask access.Ask, a access.Approval) (*verdict, string, *refusal, error) {
	again, err := s.judge(ctx, p.statement, v.request.ID, p.params, true)
	if err != nil {
		return v, "", nil, err
	}
	if again.refused != nil {
		s.abandon(ctx, a.ID)
		if again.asked {
			again.refused.before = append(again.refused.before, again.decided(s))
		}
		return v, "", again.refused, nil
	}
	if again.decision.Effect == access.Allow {
		s.abandon(ctx, a.ID)
		return again, "", nil, nil
	}
	settings, r, err := s.heldSettings(ctx, again)
	if r != nil || err != nil {
		return v, "", r, err
	}
	digest := access.AskDigest(access.Ask{Request: again.request, Decision: again.decision, Settings: settings})
	if digest != a.Digest {
		s.abandon(ctx, a.ID)
		return v, "", s.notHeld(v, access.ApprovalExpired,
			"the rules, the catalog or the session changed since "+a.ID+" was approved", "run it again to ask anew"), nil
	}
	if err := s.deps.Approvals.Consume(ctx, a.ID, digest); err != nil {
		if ctx.Err() != nil {
			return v, "", nil, context.Cause(ctx)
		}
		r := s.notHeld(v, access.ApprovalExpired, "the approval "+a.ID+" cannot be used", "run it again to ask anew")
		r.cause = err.Error()
		return v, "", r, nil
	}
	return again, a.ID, nil, nil
}

// await waits for the answer to a, telling the client, until there is one, the
// client leaves or cancels, or the wait is over.
func (s *session) await(ctx context.Context, v *verdict, a access.Approval) (access.Approval, *refusal, error) {
	cancelled := make(chan struct{}, 1)
	s.setHold(cancelled)
	defer s.setHold(nil)
	s.in.pin()
	defer s.in.unpin()
	answers, stop := s.waitAsync(ctx, a.ID)
	defer stop()
	tick, stopTick := s.deps.Ticker(remindEvery)
	defer stopTick()
	over := time.NewTimer(s.cfg.ApprovalWait)
	defer over.Stop()
	for {
		if err := s.tellHeld(ctx, a); err != nil {
			s.abandon(ctx, a.ID)
			return a, nil, err
		}
		if s.in.crowded() {
			s.abandon(ctx, a.ID)
			return a, s.notHeld(v, access.LimitExceeded, "too much was sent behind a statement that waits for approval", "send less at a time"), nil
		}
		select {
		case answer := <-answers:
			if answer.err != nil && ctx.Err() == nil {
				s.abandon(ctx, a.ID)
				r := s.notHeld(v, access.Unavailable, "the gateway cannot wait for the approval now", "try again in a moment")
				r.cause = answer.err.Error()
				return a, r, nil
			}
			if answer.err == nil {
				return answer.approval, nil, nil
			}
			s.abandon(ctx, a.ID)
			return a, nil, context.Cause(ctx)
		case <-tick:
		case <-s.in.full:
		case <-s.in.left:
			s.abandon(ctx, a.ID)
			return a, nil, errClientLeft
		case <-cancelled:
			s.abandon(ctx, a.ID)
			return a, plainError(sqlstateNotGranted, "canceling statement due to user request"), nil
		case <-over.C:
			s.leaveOpen(ctx, a.ID)
			r := s.notHeld(v, access.ApprovalRequired, "no reviewer has answered "+a.ID+" yet",
				"run the same statement again in this session once "+a.ID+" is approved")
			r.denial.Requestable, r.denial.Recourse = true, access.RecourseOf(v.decision.Obligations.Approval, &a)
			return a, r, nil
		case <-ctx.Done():
			s.abandon(ctx, a.ID)
			return a, nil, context.Cause(ctx)
		}
	}
}

type waited struct {
	approval access.Approval
	err      error
}

// waitAsync waits beside the session's other events. stop ends the wait and
// returns when it has ended.
func (s *session) waitAsync(ctx context.Context, id string) (<-chan waited, func()) {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan waited, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if fault := recover(); fault != nil {
				answers <- waited{err: fmt.Errorf("panic: %v", fault)}
			}
		}()
		a, err := s.deps.Approvals.Wait(ctx, id)
		answers <- waited{a, err}
	}()
	return answers, func() {
		cancel()
		<-done
	}
}

// tellHeld tells the client, at once, what it waits for.
func (s *session) tellHeld(ctx context.Context, a access.Approval) error {
	text := "waiting for approval " + a.ID
	err := s.emit(&pgproto3.NoticeResponse{
		Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: text,
		Detail: "The statement has not reached the database. The question stands until " + a.Expires.UTC().Format(time.RFC3339) + ".",
		Hint:   "a reviewer can: chaperone approvals approve " + a.ID,
	})
	if err != nil {
		return err
	}
	e := s.event(access.Event{Notice: &access.Notice{Severity: "NOTICE", Text: text}})
	e.Request = a.ID
	s.responses = append(s.responses, e)
	return s.flush(ctx)
}

func (s *session) setHold(c chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancelHold = c
}

// abandon says that nobody waits for an approval any more.
func (s *session) abandon(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	if err := s.deps.Approvals.Abandon(ctx, id); err != nil {
		s.log.Error("approval not abandoned", "error", err, "approval", id)
	}
}

// leaveOpen keeps a question open for as long as the session lasts.
func (s *session) leaveOpen(ctx context.Context, id string) {
	for _, open := range s.asks {
		if open == id {
			return
		}
	}
	if len(s.asks) >= maxOpenAsks {
		s.abandon(ctx, s.asks[0])
		s.asks = s.asks[1:]
	}
	s.asks = append(s.asks, id)
}

// heldSettings are the settings that a grant is bound to, as the target has
// them now.
func (s *session) heldSettings(ctx context.Context, v *verdict) (map[string]string, *refusal, error) {
	settings := map[string]string{"database": s.resource.Database, "role": s.resource.Role()}
	if s.failed() || s.skipping {
		return nil, s.notHeld(v, access.ApprovalRequired, "this needs an approval, and the transaction has failed already", "roll back first"), nil
	}
	rows, err := s.own(ctx, settingsQuery(), s.status == statusIdle && !s.dirty)
	if err != nil {
		return nil, nil, err
	}
	if len(rows) == 0 {
		return nil, s.refuseUnavailable(v, "the gateway cannot read the settings of the session", errors.New("settings query failed")), nil
	}
	for _, row := range rows {
		if len(row) == 2 && row[0] == "session_authorization" && s.resource.Profile != "" {
			row[1] = "" // a role of this session alone
		}
		if len(row) == 2 {
			settings["setting "+row[0]] = row[1]
		}
	}
	return settings, nil, nil
}

func settingsQuery() string {
	list := ""
	for i, name := range meaningSettings() {
		if i > 0 {
			list += ","
		}
		list += name
	}
	return fmt.Sprintf(`SELECT name, setting FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) ANY ('{%s}'::pg_catalog.text[])`, list)
}

// notHeld is a refusal of something that policy would let a reviewer grant.
func (s *session) notHeld(v *verdict, reason access.Reason, message, hint string) *refusal {
	return refuse(&access.Denial{
		RequestID: v.request.ID, Reason: reason, Rule: v.decision.Rule(), Message: message, Hint: hint,
		Resource: s.resource.Access.Name, Revision: v.decision.Revision,
	}, "approval")
}

// withDecision makes the decision that r follows from part of its evidence. r may
// be nil.
func (s *session) withDecision(r *refusal, v *verdict) *refusal {
	if r != nil {
		r.before = append(r.before, v.decided(s))
	}
	return r
}

// notGranted is the refusal for an approval that ended without a grant.
func (s *session) notGranted(v *verdict, a access.Approval) *refusal {
	reason, message := a.NotGranted()
	hint := "run it again to ask anew"
	if reason == access.ApprovalRefused {
		hint = "change the statement, or talk to the reviewers"
	}
	return s.notHeld(v, reason, message, hint)
}
