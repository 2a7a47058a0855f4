package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// limited reports whether the end of an execution waits for settle. Such an
// execution runs on its own: no Sync, which would commit it, follows at once.
func (e *execution) limited() bool { return e != nil && e.limits != (access.Limits{}) }

// countsChanges reports whether changed rows must be counted.
func (e *execution) countsChanges() bool {
	return (e.limits.RowsChanged > 0 || e.use.CountsChanges()) && !e.request.Action.SQL.ReadOnly
}

// maxRows is how many rows to ask the target for: with a limit one more than it
// allows, so that what is too much is never computed, but noticed.
func (e *execution) maxRows() uint32 {
	if e.limits.RowsRead <= 0 {
		return e.max
	}
	ask := max(e.limits.RowsRead-*e.seen(), 0) + 1
	if e.max != 0 && int64(e.max) < ask || ask > 1<<31-1 {
		return e.max
	}
	return uint32(ask)
}

// settle ends a limited execution: the client sees its end only when it kept
// within its limits, and otherwise an error that undoes it.
func (s *session) settle(ctx context.Context, e *execution) error {
	if e.ended {
		return nil // it failed, and the client knows
	}
	if e.over != nil {
		return s.cut(ctx, e, e.over)
	}
	if e.withheld == 0 {
		return nil
	}
	if e.countsChanges() {
		r, err := s.countAfter(ctx, e)
		if err != nil {
			return err
		}
		if r != nil {
			return s.cut(ctx, e, r)
		}
	}
	s.complete(e, e.withheld, e.tag)
	return nil
}

// cut ends an execution that went over a limit: what it did is undone with its
// transaction.
func (s *session) cut(ctx context.Context, e *execution, r *refusal) error {
	s.finish(e, "", "SQLSTATE "+r.state+": "+r.denial.Message)
	if err := s.record(ctx, r); err != nil {
		return err
	}
	if err := s.poison(ctx); err != nil {
		return err
	}
	s.discarding = true
	return s.emit(r.response("ERROR"))
}

// cutBy returns the refusal in whose place the target's error came, or nil.
func (e *execution) cutBy(s *session, err *pgproto3.ErrorResponse) *refusal {
	switch {
	case e.over != nil:
		return e.over
	case e.expired.Load() && err.Code == sqlstateNotGranted:
		return refuse(s.outlived(e.request.ID, e.decision), "token expired")
	case e.timedOut.Load() && err.Code == sqlstateNotGranted:
		return s.overLimit(e, "the statement ran longer than "+e.limits.Time.String())
	}
	return nil
}

// changesQuery counts every row that the transaction has changed so far,
// through triggers and cascades too. Everything in it is named so that no
// object of the database's users can take part. A server that does not count
// says nothing, and the execution is undone.
const changesQuery = `SELECT CASE WHEN pg_catalog.current_setting('track_counts') OPERATOR(pg_catalog.=) 'on' THEN COALESCE(pg_catalog.sum(n_tup_ins OPERATOR(pg_catalog.+) n_tup_upd OPERATOR(pg_catalog.+) n_tup_del), 0::pg_catalog.numeric)::pg_catalog.text END FROM pg_catalog.pg_stat_xact_user_tables`

// countBefore notes how much the transaction has changed already.
func (s *session) countBefore(ctx context.Context, e *execution) (*refusal, error) {
	if s.failed() {
		return nil, nil // the target refuses it anyway
	}
	changed, r, err := s.changes(ctx, e)
	e.changed = changed
	return r, err
}

// countAfter refuses an execution that changed more than its limit.
func (s *session) countAfter(ctx context.Context, e *execution) (*refusal, error) {
	var tagged int64
	if e.withheld == 'C' && len(e.request.Action.SQL.Writes) > 0 {
		tagged = pgconn.NewCommandTag(string(e.tag[:max(len(e.tag)-1, 0)])).RowsAffected()
	}
	if e.limits.RowsChanged > 0 && tagged > e.limits.RowsChanged {
		return s.overLimit(e, fmt.Sprintf("the statement changes %d rows, more than %d", tagged, e.limits.RowsChanged)), nil
	}
	if r, err := s.runDeferred(ctx, e); err != nil || r != nil {
		return r, err
	}
	changed, r, err := s.changes(ctx, e)
	if err != nil || r != nil {
		return r, err
	}
	n := max(changed-e.changed, tagged)
	if e.limits.RowsChanged > 0 && n > e.limits.RowsChanged {
		return s.overLimit(e, fmt.Sprintf("the statement changes %d rows with those that follow from it, more than %d", n, e.limits.RowsChanged)), nil
	}
	if err := e.use.Changed(ctx, n); err != nil {
		return s.usedUp(e, err), nil
	}
	return nil, nil
}

// runDeferred has triggers run now that would run when the transaction commits,
// where nobody would count any more. Where no table has any, constraints stay
// deferred: they change no rows.
func (s *session) runDeferred(ctx context.Context, e *execution) (*refusal, error) {
	view := e.statement.view
	if view == nil || !view.snapshot.DefersTriggers() {
		return nil, nil
	}
	result := &ownResult{}
	if err := s.ownInto(ctx, "SET CONSTRAINTS ALL IMMEDIATE", false, result); err != nil || !result.failed {
		return nil, err
	}
	r := s.unavailable("a deferred constraint or trigger failed, and limits on changed rows let none wait for the commit")
	r.denial.RequestID, r.denial.Rule = e.request.ID, e.decision.Rule()
	return r, nil
}

func (s *session) changes(ctx context.Context, e *execution) (int64, *refusal, error) {
	rows, err := s.own(ctx, changesQuery, false)
	if err != nil {
		return 0, nil, err
	}
	if len(rows) == 1 && len(rows[0]) == 1 {
		if n, err := strconv.ParseInt(rows[0][0], 10, 64); err == nil {
			return n, nil, nil
		}
	}
	r := s.unavailable("the gateway cannot count the rows that a statement changes")
	r.denial.RequestID, r.denial.Rule = e.request.ID, e.decision.Rule()
	return 0, r, nil
}

// An ownResult is what a statement of the gateway's own gave.
type ownResult struct {
	rows   [][]string
	failed bool
}

// maxOwnRows bounds it.
const maxOwnRows = 1000

func (o *ownResult) add(cells [][]byte) {
	if len(o.rows) >= maxOwnRows {
		return
	}
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = string(cell)
	}
	o.rows = append(o.rows, row)
}

// ownName names the statements and portals of the gateway itself.
const ownName = "chaperone_own"

// own runs a statement of the gateway's on the session's connection and returns
// its rows as text; none when it failed. What the client has staged stays
// staged. With sync it has a transaction of its own.
func (s *session) own(ctx context.Context, text string, sync bool) ([][]string, error) {
	result := &ownResult{}
	err := s.ownInto(ctx, text, sync, result)
	return result.rows, err
}

// ownInto is own that tells a failure too.
func (s *session) ownInto(ctx context.Context, text string, sync bool, result *ownResult) error {
	client, unsent := s.steps, s.unsent // all of them: answers are awaited in drain alone
	s.steps, s.unsent, s.sent = nil, nil, 0
	err := s.runOwn(ctx, text, sync, result)
	if err == nil && s.skipping {
		for _, st := range slices.Backward(client) {
			if st.undo != nil {
				st.undo()
			}
		}
		result.rows = nil
		return nil
	}
	s.steps, s.unsent = append(s.steps, client...), append(s.unsent, unsent...)
	return err
}

func (s *session) runOwn(ctx context.Context, text string, sync bool, result *ownResult) error {
	messages := []struct {
		kind stepKind
		msg  pgproto3.FrontendMessage
	}{
		{stepParse, &pgproto3.Parse{Name: ownName, Query: text}},
		{stepBind, &pgproto3.Bind{DestinationPortal: ownName, PreparedStatement: ownName}},
		{stepExecute, &pgproto3.Execute{Portal: ownName}},
		{stepClose, &pgproto3.Close{ObjectType: 'P', Name: ownName}},
		{stepClose, &pgproto3.Close{ObjectType: 'S', Name: ownName}},
		{stepSync, &pgproto3.Sync{}},
	}
	if !sync {
		messages = messages[:len(messages)-1]
	}
	for _, m := range messages {
		if err := s.stage(ctx, step{kind: m.kind, quiet: true, own: result}, m.msg); err != nil {
			return err
		}
	}
	return s.drain(ctx)
}
