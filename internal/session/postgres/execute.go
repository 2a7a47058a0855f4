package postgres

import (
	"bytes"
	"context"
	"encoding/base64"
	"slices"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"
	"go.opentelemetry.io/otel/attribute"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
)

// query serves the simple protocol. Towards the target each statement is one
// Parse, Bind, Describe and Execute, with a Sync after the last; the client sees
// a simple answer.
func (s *session) query(ctx context.Context, body []byte) error {
	if len(body) == 0 || bytes.IndexByte(body, 0) != len(body)-1 {
		return s.inboxFault(ctx, malformed("Query"))
	}
	if len(s.steps) > 0 { // a pipeline without its Sync comes first
		if err := s.drain(ctx); err != nil || s.discarding {
			return err
		}
	}
	s.forget("")
	delete(s.portals, "")
	statements, err := s.statementsOf(ctx, string(body[:len(body)-1]))
	if err != nil {
		return err
	}
	for i, st := range statements {
		p := &portal{statement: st, types: s.types, last: i == len(statements)-1}
		if err := s.runPortal(ctx, p, 0, true); err != nil {
			return err
		}
		if !p.last { // its outcome decides whether the next one counts
			if err := s.drain(ctx); err != nil {
				return err
			}
		}
		if s.discarding {
			break
		}
	}
	return s.sync(ctx)
}

// statementsOf cuts a message into its statements. Towards the target they
// become a pipeline with one Sync, which has the same implicit transaction.
func (s *session) statementsOf(ctx context.Context, text string) ([]*statement, error) {
	whole := &statement{text: text, count: 1}
	if err := s.renewResource(); err != nil {
		return nil, err
	}
	if r := s.analyze(ctx, whole, false); r != nil {
		whole.fault = r // told when it is its turn, and not tried again
		return []*statement{whole}, nil
	}
	parts := whole.judged.Parts
	if len(parts) == 0 {
		return []*statement{whole}, nil
	}
	statements := make([]*statement, len(parts))
	for i, part := range parts {
		statements[i] = &statement{text: part.Text, offset: part.Offset, count: len(parts)}
	}
	return statements, nil
}

// runPortal takes one execution from the judge to the target. When it returns
// nil, a refusal has been answered, or the execution is staged; one with limits
// has run to its end.
func (s *session) runPortal(ctx context.Context, p *portal, max uint32, simple bool) error {
	e, empty, err := s.admit(ctx, p, max, simple)
	switch {
	case err != nil:
		return err
	case empty && simple:
		s.out = appendFrame(s.out, 'I', nil)
		return nil
	case empty:
		return s.stage(ctx, step{kind: stepExecute, statement: p.statement, portal: p}, &pgproto3.Execute{Portal: p.target, MaxRows: max})
	case e == nil:
		return nil
	}
	if p.statement.judged.Kind == sql.KindDiscard {
		if err := s.discardAll(ctx, e); err != nil {
			return err
		}
	}
	if e.countsChanges() {
		if r, err := s.countBefore(ctx, e); err != nil || r != nil {
			e.span.End()
			return s.refuseUnless(ctx, err, r, belongsTo(p.statement, p))
		}
	}
	if err := s.stageRun(ctx, e, simple); err != nil || !e.limited() && !e.copies(sql.KindCopyIn) {
		return err
	}
	if err := s.drain(ctx); err != nil || !e.limited() {
		return err
	}
	return s.settle(ctx, e)
}

// admit judges, decides and, where a rule says so, holds one execution. It
// returns nil and not empty when that was refused and answered.
func (s *session) admit(ctx context.Context, p *portal, max uint32, simple bool) (e *execution, empty bool, err error) {
	st, id := p.statement, access.NewRequestID()
	belongs := belongsTo(st, p)
	ctx, span := s.startStatementSpan(ctx, id)
	defer func() {
		if e == nil {
			span.End()
		}
	}()
	v, err := s.judge(ctx, st, id, p.params, false)
	if err != nil {
		return nil, false, err
	}
	if v.empty {
		return nil, true, nil
	}
	if again, err := s.resettle(ctx, v, st); err != nil {
		return nil, false, err
	} else if again {
		if v, err = s.judge(ctx, st, id, p.params, false); err != nil {
			return nil, false, err
		}
	}
	if v.refused == nil && simple && p.call == nil && st.judged.Parameters > 0 {
		v.refused = plainError(sqlstateNoParameter, "there is no parameter $%d", st.judged.Parameters)
	}
	describeSpan(span, v)
	if v.refused != nil {
		return nil, false, s.refuseVerdict(ctx, v, belongs)
	}
	grant := ""
	evidence := []access.Event{v.decided(s)}
	preparing := st.judged.Kind == sql.KindPrepare // runs nothing: EXECUTE is held
	if v.decision.Effect == access.Approve && !preparing && !s.continues(p, v) {
		var r *refusal
		if v, grant, r, err = s.hold(ctx, p, v); err != nil {
			return nil, false, err
		}
		if r != nil {
			s.metrics.judged("refused")
			return nil, false, s.refuse(ctx, r, belongs)
		}
		evidence[0], p.granted = v.decided(s), continuationDigest(v)
		span.SetAttributes(attribute.String("chaperone.approval", grant))
	}
	if !simple && p.bound != st.forwardText() {
		return nil, false, s.refuse(ctx, s.stale(v), belongs)
	}
	use, r := s.beginUse(ctx, v)
	if r != nil {
		r.before = evidence
		s.metrics.judged("refused")
		return nil, false, s.refuse(ctx, r, belongs)
	}
	s.metrics.judged(v.decision.Effect.String())
	s.doubts(v, st.judged)
	if !preparing {
		evidence = append(evidence, s.event(access.Event{Request: id, Executed: &access.Executed{
			SQL: st.forwardText(), Parameters: v.request.Action.SQL.Parameters, Approval: grant}}))
	}
	e = &execution{
		request: v.request, decision: v.decision, statement: st, portal: p, max: max, runs: s.left(st), sent: st.forwardText(),
		limits: v.decision.Obligations.Limits, use: use, detector: st.detect, span: span, before: evidence,
	}
	if left := use.Left(); left > 0 && (e.limits.Time == 0 || left < e.limits.Time) {
		e.limits.Time = left
	}
	return e, false, nil
}

// continues reports whether an execution is the rest of one that was granted:
// the same portal, stopped at its row count, with nothing changed since.
func (s *session) continues(p *portal, v *verdict) bool {
	if n := s.left(p.statement); n != nil && n.cursor { // FETCH goes on with what DECLARE began
		return n.granted != "" && n.granted == continuationDigest(v)
	}
	return p.suspended && p.granted != "" && p.granted == continuationDigest(v)
}

// continuationDigest binds a suspended portal to what was granted for it.
func continuationDigest(v *verdict) string {
	request := v.request
	action := *request.Action.SQL
	action.InTransaction = false
	request.Action.SQL = &action
	return access.AskDigest(access.Ask{Request: request, Decision: v.decision})
}

// stale is the refusal of a portal whose text the rules or the catalog would
// now have otherwise.
func (s *session) stale(v *verdict) *refusal {
	r := s.refuseUnavailable(v, "the rules or the catalog changed after this statement was bound", nil)
	r.denial.Hint, r.state = "bind and execute it again", sqlstateStale
	return r
}

// stageRun stages the execution, and for the simple protocol all that comes
// before it.
func (s *session) stageRun(ctx context.Context, e *execution, simple bool) error {
	p, st := e.portal, e.statement
	s.supersede(st)
	if simple {
		err := s.stage(ctx, step{kind: stepParse, simple: true, statement: st}, &pgproto3.Parse{Query: st.forwardText(), ParameterOIDs: st.types})
		if err != nil {
			return err
		}
		if e.runs != nil && e.runs.binary {
			p.formats = []int16{1}
		}
		bind := p.call
		if bind == nil {
			bind = &pgproto3.Bind{ResultFormatCodes: p.formats}
		}
		if err := s.stage(ctx, step{kind: stepBind, simple: true, statement: st}, bind); err != nil {
			return err
		}
	}
	if simple || p.needsShape() {
		p.describing = true
		described := step{kind: stepDescribePortal, simple: simple, quiet: !simple, statement: st, portal: p}
		if err := s.stage(ctx, described, &pgproto3.Describe{ObjectType: 'P', Name: p.target}); err != nil {
			return err
		}
	}
	run := step{kind: stepExecute, simple: simple, statement: st, portal: p, exec: e, before: e.before}
	return s.stage(ctx, run, &pgproto3.Execute{Portal: p.target, MaxRows: e.maxRows()})
}

// supersede drops the evidence of a Parse that has not left yet: that of its
// execution, which leaves with it, says more.
func (s *session) supersede(st *statement) {
	for i := s.sent; i < len(s.steps); i++ {
		if s.steps[i].kind == stepParse && s.steps[i].statement == st {
			s.steps[i].before = nil
		}
	}
}

// executed takes the end of an execution. What it left or took away is learnt
// at once: names stand at the target even when the transaction fails later.
func (s *session) executed(st step, typ byte, body []byte) {
	if st.exec != nil && typ == 'C' {
		s.learn(st.exec)
	}
	switch {
	case st.quiet:
	case st.exec == nil:
		s.out = appendFrame(s.out, typ, body)
	case st.exec.limited():
		st.exec.withheld, st.exec.tag = typ, slices.Clone(body)
	default:
		s.complete(st.exec, typ, body)
	}
}

// complete shows the end of an execution. The last of a simple query is shown
// when its transaction is done: it may still fail there.
func (s *session) complete(e *execution, typ byte, body []byte) {
	if e.portal.last && s.committing == nil {
		s.committing, e.withheld, e.tag = e, typ, slices.Clone(body)
		return
	}
	tag := ""
	if typ == 'C' && e.statement.judged.Kind == sql.KindDiscard {
		body = []byte("DISCARD ALL\x00")
	}
	switch typ {
	case 'C':
		tag = string(bytes.TrimSuffix(body, []byte{0}))
	case 's':
		tag = "suspended"
	}
	e.portal.suspended = typ == 's'
	if e.portal.call == nil {
		s.out = appendFrame(s.out, typ, body)
	}
	s.finish(e, tag, "")
}

// refuseVerdict refuses what was judged. The decision is part of the evidence.
func (s *session) refuseVerdict(ctx context.Context, v *verdict, belongs func(step) bool) error {
	outcome := "refused"
	if v.asked && v.decision.Effect == access.Deny {
		outcome = "deny"
	}
	s.metrics.judged(outcome)
	if v.asked {
		v.refused.before = append(v.refused.before, v.decided(s))
	}
	return s.refuse(ctx, v.refused, belongs)
}

// refuse answers one message with an error, in its place among the answers:
// first comes what was forwarded before it. Steps that belong only to what is
// refused are taken back. The client's messages have no effect up to Sync.
func (s *session) refuse(ctx context.Context, r *refusal, belongs func(step) bool) error {
	if belongs != nil {
		s.unstage(belongs)
	}
	if err := s.record(ctx, r); err != nil {
		return err
	}
	if err := s.drain(ctx); err != nil || s.discarding {
		return err
	}
	if err := s.poison(ctx); err != nil {
		return err
	}
	s.discarding = true
	return s.emit(r.response("ERROR"))
}

// record makes the evidence of a refusal durable.
func (s *session) record(ctx context.Context, r *refusal) error {
	events := r.before
	if r.denial != nil && r.denial.Reason == access.Unavailable {
		s.log.Warn("postgres statement refused", "message", r.denial.Message, "cause", r.cause, "request", r.denial.RequestID)
	}
	if r.denial != nil && !r.recorded {
		events = append(events, s.event(access.Event{Request: r.denial.RequestID, Denied: &access.Denied{
			Denial: *r.denial, Cause: r.cause, Resource: s.resource.Access.Name, Client: s.info.Client, Text: r.asked,
		}}))
	}
	if len(events) == 0 {
		return nil
	}
	r.recorded, r.before = true, nil
	return s.append(ctx, access.Synced, events)
}

// refuseUnless ends the session for err, and otherwise refuses.
func (s *session) refuseUnless(ctx context.Context, err error, r *refusal, belongs func(step) bool) error {
	if err != nil {
		return err
	}
	return s.refuse(ctx, r, belongs)
}

// setValue writes one bound value in the words of decisions.
func setValue(p *access.BoundParameter, value []byte, null, binary bool) {
	switch {
	case null:
		p.Null = true
	case binary || !utf8.Valid(value):
		p.Binary, p.Value = true, base64.StdEncoding.EncodeToString(value)
	default:
		p.Value = string(value)
	}
}
