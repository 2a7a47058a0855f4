package postgres

import (
	"context"
	"strconv"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// A named is what DECLARE or PREPARE left at the target: its statement is
// decided anew whenever FETCH or EXECUTE runs it.
type named struct {
	statement *statement // the DECLARE or PREPARE
	params    []access.BoundParameter
	sent      string // as the target has it

	cursor  bool
	hold    bool
	binary  bool
	rows    int64  // of a cursor, already fetched
	granted string // digest of the grant that DECLARE used
}

// reserved begins the names of the gateway's own statements and portals.
const reserved = "chaperone_"

// runs reports whether a statement runs what another one left.
func runs(st *sql.Statement) bool {
	return st.Kind == sql.KindFetch || st.Kind == sql.KindExecute
}

// left finds what st runs.
func (s *session) left(st *statement) *named {
	switch st.judged.Kind {
	case sql.KindFetch:
		return s.cursors[st.judged.Name]
	case sql.KindExecute:
		return s.prepared[st.judged.Name]
	}
	return nil
}

// judgeEarly judges a statement that is prepared or bound. What runs something
// else is judged when it is executed: only then it is known what that is.
func (s *session) judgeEarly(ctx context.Context, st *statement, params []access.BoundParameter) (*verdict, error) {
	if err := s.renewResource(); err != nil {
		return nil, err
	}
	if r := s.analyze(ctx, st, false); r == nil && runs(st.judged) {
		st.forward, st.detect = &sql.Forward{Text: st.text}, nil
		return &verdict{empty: true}, nil
	} else if r != nil && ctx.Err() == nil {
		st.fault = r // judge tells it, and does not try again
	}
	v, err := s.judge(ctx, st, access.NewRequestID(), params, false)
	st.fault = nil
	return v, err
}

// judgeNamed decides a FETCH or EXECUTE as the statement that it runs.
func (s *session) judgeNamed(ctx context.Context, st *statement, v *verdict, fresh bool) error {
	n := s.left(st)
	if n == nil && s.namedByTarget(st.judged) && s.open(ctx) {
		st.judged = st.judged.AsUnknown()
		return s.decide(ctx, st, v, nil)
	}
	if n == nil {
		v.refused = s.unknownName(st.judged)
		return nil
	}
	params := n.params
	if st.judged.Kind == sql.KindExecute {
		params = st.judged.Arguments
	}
	if r := s.analyze(ctx, n.statement, fresh); r != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.denial.RequestID, r.asked, v.refused = v.request.ID, n.statement.text, r
		return nil
	}
	if err := s.decide(ctx, n.statement, v, params); err != nil || v.refused != nil {
		return err
	}
	if n.statement.forwardText() != n.sent {
		v.refused = s.stale(v)
		v.refused.denial.Hint = "close it, and declare or prepare it again"
		return nil
	}
	st.forward, st.detect = &sql.Forward{Text: st.text}, n.statement.detect
	return nil
}

// namedByTarget reports whether a name that the session does not know can be
// one that the target knows: a function or a block may have made it.
func (s *session) namedByTarget(st *sql.Statement) bool {
	return st.Kind == sql.KindFetch && s.portals[st.Name] == nil || st.Kind == sql.KindExecute && s.statements[st.Name] == nil
}

func (s *session) unknownName(st *sql.Statement) *refusal {
	switch {
	case s.failed():
		return plainError(sqlstateFailed, "current transaction is aborted, commands ignored until end of transaction block")
	case st.Kind == sql.KindFetch && s.portals[st.Name] != nil:
		return s.mixed("the portal "+strconv.Quote(access.Printable(st.Name, 100))+" was bound by the protocol, and SQL cannot fetch from it", "fetch with Execute, or DECLARE a cursor")
	case st.Kind == sql.KindExecute && s.statements[st.Name] != nil:
		return s.mixed("the statement "+strconv.Quote(access.Printable(st.Name, 100))+" was prepared by the protocol, and EXECUTE cannot run it", "bind it, or PREPARE it in SQL")
	case st.Kind == sql.KindFetch:
		return plainError(sqlstateNoPortal, "cursor %q does not exist", access.Printable(st.Name, 100))
	}
	return plainError(sqlstateNoStatement, "prepared statement %q does not exist", access.Printable(st.Name, 100))
}

// mixed refuses what PostgreSQL would do, by name: what the protocol made and
// what SQL made are two worlds here.
func (s *session) mixed(message, hint string) *refusal {
	d := s.newDenial(access.Unsupported, message+" through the gateway")
	d.Hint = hint
	return refuse(d, "protocol and SQL mixed")
}

// checkName refuses names that the gateway needs or that are taken, and more of
// them than it keeps.
func (s *session) checkName(st *statement, v *verdict) *refusal {
	judged := st.judged
	switch judged.Kind {
	case sql.KindDeclare, sql.KindClose, sql.KindPrepare, sql.KindDeallocate:
	default:
		return nil
	}
	if strings.HasPrefix(judged.Name, reserved) {
		return s.judgeRefused(v, &sql.Refusal{Reason: access.Unsupported,
			Message: "names that begin with " + reserved + " are the gateway's own", Hint: "use another name"})
	}
	if judged.Kind == sql.KindPrepare && s.statements[judged.Name] != nil {
		return plainError(sqlstateDupStatement, "prepared statement %q already exists", access.Printable(judged.Name, 100))
	}
	if judged.Kind == sql.KindPrepare && s.tooManyStatements(len(st.text)) || judged.Kind == sql.KindDeclare && len(s.cursors) >= maxPortals {
		d := s.newDenial(access.LimitExceeded, "too many prepared statements or cursors")
		d.Hint = "close some of them"
		return refuse(d, "names")
	}
	return nil
}

// tooManyStatements reports whether there is no room for one more prepared
// statement with so many bytes of text.
func (s *session) tooManyStatements(text int) bool {
	return len(s.statements)+len(s.prepared) >= maxStatements || s.textBytes+text > maxStatementText
}

// deallocated is what the target gets for DEALLOCATE of a statement that was
// prepared by the protocol: there it has another name.
func (s *session) deallocated(st *statement) {
	if st.judged.Kind != sql.KindDeallocate || st.judged.Name == "" {
		return
	}
	text := st.text
	if p := s.statements[st.judged.Name]; p != nil {
		text = "DEALLOCATE " + catalog.QuoteIdentifier(p.target)
	}
	st.forward = &sql.Forward{Text: text}
}

// learn notes what an execution that the target has ended left or took away.
// Of what a failing commit takes back, a cursor WITH HOLD, too much is kept here
// and nothing missed: the target knows no such name then.
func (s *session) learn(e *execution) {
	st := e.statement
	judged := st.judged
	switch judged.Kind {
	case sql.KindDeclare:
		s.cursors[judged.Name] = &named{statement: st.copied(), params: e.portal.params, sent: e.sent,
			cursor: true, hold: judged.Hold, binary: judged.Binary, granted: e.portal.granted}
	case sql.KindPrepare:
		s.prepared[judged.Name] = &named{statement: st.copied(), sent: e.sent}
		s.textBytes += len(st.text)
	case sql.KindClose:
		if judged.Name == "" {
			clear(s.cursors)
		}
		delete(s.cursors, judged.Name)
	case sql.KindDeallocate:
		s.forgetPrepared(judged.Name)
	case sql.KindListen:
		s.channels[judged.Name] = st.detect
	case sql.KindDiscard:
		clear(s.channels)
		clear(s.cursors)
		s.forgetPrepared("")
	case sql.KindTransaction:
		if judged.Transaction == sql.TxCommit || judged.Transaction == sql.TxRollback {
			s.transactionEnded()
		}
	}
}

// copied is st as it was judged, for what outlives it.
func (st *statement) copied() *statement {
	c := *st
	c.name, c.target, c.offset, c.describing, c.fields = "", "", 0, false, nil
	return &c
}

func (s *session) forgetPrepared(name string) {
	for key, n := range s.prepared {
		if name == "" || key == name {
			s.textBytes -= len(n.statement.text)
			delete(s.prepared, key)
		}
	}
	if name != "" {
		s.forget(name)
		return
	}
	for key := range s.statements {
		s.forget(key)
	}
}

// transactionEnded forgets what ended with the target's transaction.
func (s *session) transactionEnded() {
	clear(s.portals)
	for name, c := range s.cursors {
		if !c.hold {
			delete(s.cursors, name)
		}
	}
}
