package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
)

// A stepKind is what the target answers a message with.
type stepKind uint8

const (
	stepParse             stepKind = iota // ParseComplete
	stepBind                              // BindComplete
	stepClose                             // CloseComplete
	stepDescribeStatement                 // ParameterDescription, then as stepDescribePortal
	stepDescribePortal                    // RowDescription or NoData
	stepExecute                           // DataRow …, then CommandComplete, EmptyQueryResponse or PortalSuspended
	stepSync                              // ReadyForQuery
	stepLocal                             // nothing: the gateway answers in the right place
	stepPoison                            // ErrorResponse, on purpose
)

// A step is one message for the target and the answer that is awaited. Steps
// are answered in order. What is not sent yet can be taken back.
type step struct {
	kind      stepKind
	size      int            // of the message, while it is unsent
	before    []access.Event // durable before the message leaves
	local     []byte         // stepLocal: what the client gets
	quiet     bool           // the gateway's own: the client sees no answer
	simple    bool           // the client speaks the simple protocol: only rows and tags are shown
	statement *statement     // whose text an error's position is in
	portal    *portal
	exec      *execution
	own       *ownResult
	undo      func() // the message had no effect
}

// maxSteps and maxUnsent bound what is collected before the target is asked.
const (
	maxSteps  = 64
	maxUnsent = 1 << 20

	keepUnsent = 4 << 10
)

// poisonText fails to parse. It aborts the target's transaction, as an error of
// the target's own would, and explains itself in the target's log.
const poisonText = "chaperone refused a statement of this transaction and aborts it"

// poisonName keeps the client's unnamed statement alive.
const poisonName = "chaperone_refused"

// stage adds a step. It first waits for earlier answers when leaving them
// unread could stop both sides: a big answer is never left behind a message of
// unknown size. After an error of the target steps have no effect up to Sync.
func (s *session) stage(ctx context.Context, st step, msg pgproto3.FrontendMessage) error {
	if s.mustDrain(st.kind) {
		if err := s.drain(ctx); err != nil {
			return err
		}
	}
	if s.skipping && st.kind != stepSync {
		if st.undo != nil {
			st.undo()
		}
		return nil
	}
	if msg != nil {
		unsent, err := msg.Encode(s.unsent)
		if err != nil {
			return fmt.Errorf("encode %T: %w", msg, err)
		}
		st.size, s.unsent = len(unsent)-len(s.unsent), unsent
	}
	s.steps = append(s.steps, st)
	return nil
}

func (s *session) mustDrain(next stepKind) bool {
	if len(s.steps) == 0 || next == stepSync {
		return false
	}
	if len(s.steps) >= maxSteps {
		return true
	}
	if next == stepExecute && s.steps[len(s.steps)-1].describes() {
		return slices.ContainsFunc(s.steps[:len(s.steps)-1], step.answersMuch)
	}
	return len(s.unsent) > maxUnsent || slices.ContainsFunc(s.steps, step.answersMuch)
}

func (st step) describes() bool {
	return st.kind == stepDescribeStatement || st.kind == stepDescribePortal
}

// answersMuch reports whether the answer has no small bound.
func (st step) answersMuch() bool { return st.kind == stepExecute && st.own == nil || st.describes() }

// unstage takes back, from the end, the unsent steps that belong to a statement
// or portal that is refused now.
func (s *session) unstage(belongs func(step) bool) {
	for len(s.steps) > s.sent {
		last := s.steps[len(s.steps)-1]
		if !belongs(last) {
			return
		}
		if last.undo != nil {
			last.undo()
		}
		s.unsent = s.unsent[:len(s.unsent)-last.size]
		s.steps = s.steps[:len(s.steps)-1]
	}
}

// send writes the unsent steps, after everything that must be durable before
// them is. With flush the target is asked to answer without a Sync.
func (s *session) send(ctx context.Context, flush bool) error {
	if s.sent == len(s.steps) && !flush {
		return nil
	}
	if err := s.recordBefore(ctx); err != nil {
		return err
	}
	wire := s.unsent
	s.unsent = s.unsent[:0]
	if cap(s.unsent) > keepUnsent {
		s.unsent = nil
	}
	for i := s.sent; i < len(s.steps); i++ {
		st := &s.steps[i]
		st.size, st.before = 0, nil
		s.dirty = s.dirty || st.kind != stepLocal
		if st.kind == stepExecute && st.own == nil {
			s.ran = true
			st.exec.begin(s)
		}
	}
	s.sent = len(s.steps)
	if flush && len(s.steps) > 0 && s.steps[len(s.steps)-1].kind != stepSync {
		wire = append(wire, msgFlush, 0, 0, 0, 4)
	}
	if len(wire) == 0 {
		return nil
	}
	if s.in.isGone() {
		return errClientLeft
	}
	if err := s.up.write(wire); err != nil {
		return s.upstreamFault(ctx, err)
	}
	if s.in.isGone() || s.current != nil && (s.current.timedOut.Load() || s.current.expired.Load()) {
		s.up.cancel() // the one that was sent meanwhile came too early
	}
	return nil
}

// drain sends what is unsent and relays every awaited answer. Afterwards the
// target waits for us: after a Sync, or within a pipeline.
func (s *session) drain(ctx context.Context) error {
	s.setRunning(true)
	defer s.setRunning(false)
	if err := s.send(ctx, s.awaitsTarget()); err != nil {
		return err
	}
	for {
		for len(s.steps) > 0 && s.steps[0].kind == stepLocal {
			s.out = append(s.out, s.pop().local...)
		}
		if len(s.steps) == 0 {
			return nil
		}
		typ, body, err := s.up.read()
		if err != nil {
			return s.upstreamFault(ctx, err)
		}
		if err := s.answer(ctx, typ, body); err != nil {
			return err
		}
		if (typ == 'D' || typ == msgCopyData) && !s.up.atHand() { // the next row may be long in coming
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
	}
}

// awaitsTarget reports whether an answer of the target, rather than the
// gateway's, is awaited.
func (s *session) awaitsTarget() bool {
	return slices.ContainsFunc(s.steps, func(st step) bool { return st.kind != stepLocal })
}

func (s *session) pop() step {
	st := s.steps[0]
	s.sent--
	s.steps = slices.Delete(s.steps, 0, 1) // there are few, and their place is used again
	return st
}

// answer relays one message of the target.
func (s *session) answer(ctx context.Context, typ byte, body []byte) error {
	switch typ {
	case 'N':
		return s.notice(ctx, body)
	case 'S':
		return s.parameterStatus(body)
	case 'A':
		return s.notification(body)
	case 'E':
		return s.targetError(ctx, body)
	}
	head := &s.steps[0]
	switch {
	case typ == '1' && head.kind == stepParse, typ == '2' && head.kind == stepBind, typ == '3' && head.kind == stepClose:
		s.show(s.pop(), typ, body)
	case typ == 't' && head.kind == stepDescribeStatement:
		s.show(*head, typ, body)
	case (typ == 'T' || typ == 'n') && head.describes():
		return s.rowsDescribed(s.pop(), typ, body)
	case typ == 'D' && head.kind == stepExecute:
		return s.row(ctx, head, body)
	case typ == 'G' && head.kind == stepExecute && head.exec.copies(sql.KindCopyIn):
		return s.copyIn(ctx, head.exec, body)
	case (typ == 'H' || typ == msgCopyData || typ == msgCopyDone) && head.kind == stepExecute && head.exec.copies(sql.KindCopyOut):
		return s.copyOut(ctx, head.exec, typ, body)
	case (typ == 'C' || typ == 'I' || typ == 's') && head.kind == stepExecute:
		s.executed(s.pop(), typ, body)
	case typ == 'Z' && head.kind == stepSync && len(body) == 1:
		return s.readyForQuery(ctx, s.pop(), body[0])
	default:
		return s.unexpected(typ)
	}
	return nil
}

// show passes a small answer on when the client asked for it by itself.
func (s *session) show(st step, typ byte, body []byte) {
	if !st.quiet && !st.simple {
		s.out = appendFrame(s.out, typ, body)
	}
}

// unexpected ends the session: who answers so is not in step with us, and what
// it says next could be taken for something else.
func (s *session) unexpected(typ byte) error {
	return lostTarget(s.unavailable("the target broke the protocol"), fmt.Errorf("unexpected message %q", typ))
}

// upstreamFault is the end of a session that cannot reach its target.
func (s *session) upstreamFault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.in.isGone() { // nobody is there to tell, and the target may have had its time
		return fmt.Errorf("%w: %w", errClientLeft, err)
	}
	if isTooLong(err) {
		d := s.newDenial(access.LimitExceeded, fmt.Sprintf("a row of the result is larger than %d bytes", s.cfg.MaxRow))
		d.Hint = "select less in one row"
		return &fatalError{refuse(d, err.Error()), err}
	}
	var frame *frameError
	if errors.As(err, &frame) {
		return lostTarget(s.unavailable("the target broke the protocol"), err)
	}
	return lostTarget(s.unavailable("the connection to the target is lost"), err)
}

// targetError relays an error of the target and drops what the target drops:
// every step up to the next Sync.
func (s *session) targetError(ctx context.Context, body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return lostTarget(s.unavailable("the target broke the protocol"), err)
	}
	if s.steps[0].kind == stepPoison {
		s.pop()
		s.skipping = true
		return nil
	}
	var exec *execution
	var text *statement
	own := s.steps[0].own
	for _, st := range s.steps {
		if st.kind == stepSync {
			break
		}
		if text == nil {
			text = st.statement
		}
		if exec == nil {
			exec = st.exec
		}
	}
	if exec == nil {
		exec = s.committing
	}
	s.committing = nil
	s.dropToSync()
	s.skipping, s.discarding = true, true
	if own != nil {
		own.failed = true
		s.discarding = false // whoever ran the gateway's own statement answers
		return nil
	}
	shown := s.shownError(&e, text)
	if exec != nil {
		if r := exec.cutBy(s, &e); r != nil {
			return s.cut(ctx, exec, r)
		}
		s.finish(exec, "", errorText(shown))
	}
	if err := s.emit(shown); err != nil {
		return err
	}
	if isFatal(&e) {
		return errTargetClosed
	}
	return nil
}

// dropToSync removes the steps that the target discards after an error, the
// last first.
func (s *session) dropToSync() {
	n := slices.IndexFunc(s.steps, func(st step) bool { return st.kind == stepSync })
	if n < 0 {
		n = len(s.steps)
	}
	for _, st := range slices.Backward(s.steps[:n]) {
		if st.undo != nil {
			st.undo()
		}
	}
	s.sent = max(0, s.sent-n)
	s.steps = s.steps[n:]
}

// shownError is e as the client may see it: positions point into the client's
// own text, and what may hold values of masked columns is gone.
func (s *session) shownError(e *pgproto3.ErrorResponse, st *statement) *pgproto3.ErrorResponse {
	shown := *e
	if s.masked {
		filterError(&shown)
	}
	if st == nil {
		return &shown
	}
	if shown.Position > 0 && st.forward != nil {
		shown.Position = int32(st.forward.ClientPosition(int(shown.Position)) + st.offset)
	}
	if st.detect != nil { // a value that fails a cast is told in the message
		for _, text := range []*string{&shown.Message, &shown.Detail, &shown.Hint, &shown.Where} {
			if masked, found := st.detect([]byte(*text)); found {
				*text = string(masked)
			}
		}
	}
	return &shown
}

// notice relays a notice at once, so that the client sees it while it waits.
func (s *session) notice(ctx context.Context, body []byte) error {
	var n pgproto3.NoticeResponse
	if err := n.Decode(body); err != nil {
		return lostTarget(s.unavailable("the target broke the protocol"), err)
	}
	if len(s.steps) > 0 && s.steps[0].quiet {
		return nil
	}
	severity := n.SeverityUnlocalized
	if s.masked && (strings.HasPrefix(severity, "DEBUG") || severity == "LOG") {
		return nil // inner workings, values among them
	}
	var of *statement
	if len(s.steps) > 0 {
		of = s.steps[0].statement
	}
	shown := s.shownError((*pgproto3.ErrorResponse)(&n), of)
	shown.Position = 0
	if err := s.emit((*pgproto3.NoticeResponse)(shown)); err != nil {
		return err
	}
	s.responses = append(s.responses, s.event(access.Event{Notice: &access.Notice{Severity: shown.Severity, Text: shown.Message}}))
	return s.flush(ctx)
}

// ownedParameters are the settings that the target reports and that decide how
// text is read and whose rights it runs with.
var ownedParameters = []string{"standard_conforming_strings", "client_encoding", "search_path", "session_authorization", "is_superuser"}

func (s *session) parameterStatus(body []byte) error {
	var p pgproto3.ParameterStatus
	if err := p.Decode(body); err != nil {
		return lostTarget(s.unavailable("the target broke the protocol"), err)
	}
	// Nothing that is let through changes these, so whoever did found a way
	// around the judge, who would read the next statement wrongly.
	switch {
	case p.Name == "search_path" && s.plain && p.Value != s.up.target.ParameterStatuses[p.Name]:
		s.unsettledBy = cmp.Or(s.unsettledBy, "a change of search_path")
	case p.Name == "client_encoding" && isUTF8(p.Value): // as the client spelled it
	case slices.Contains(ownedParameters, p.Name) && p.Value != s.up.target.ParameterStatuses[p.Name]:
		return lostTarget(s.unavailable("a setting that the gateway owns has changed at the target"), errors.New(p.Name))
	}
	if reportedParameter(p.Name) {
		s.out = appendFrame(s.out, 'S', body)
	}
	return nil
}

// readyForQuery ends a cycle: the target's word on the transaction counts.
func (s *session) readyForQuery(ctx context.Context, st step, status byte) error {
	if e := s.committing; e != nil {
		s.complete(e, e.withheld, e.tag)
		s.committing = nil
	}
	s.status, s.ran, s.dirty, s.skipping, s.discarding = status, false, false, false, false
	if status == statusIdle {
		s.transactionEnded()
	}
	if st.quiet {
		return nil
	}
	s.out = appendFrame(s.out, 'Z', []byte{status})
	return s.flush(ctx)
}

// poison makes the target's transaction fail when there is one, so that a
// denial within it has the effect of any other error.
func (s *session) poison(ctx context.Context) error {
	if s.skipping || s.failed() || s.status == statusIdle && !s.ran {
		return nil
	}
	if err := s.stage(ctx, step{kind: stepPoison}, &pgproto3.Parse{Name: poisonName, Query: poisonText}); err != nil {
		return err
	}
	return s.drain(ctx)
}

// failed reports whether the client is known to be in a failed transaction,
// where the target takes nothing but its end.
func (s *session) failed() bool { return s.status == statusFailed && !s.ran }

// The states of ReadyForQuery.
const (
	statusIdle   = 'I'
	statusFailed = 'E'
)
