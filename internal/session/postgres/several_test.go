package postgres

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// Several statements in one message have the target's own transaction: each
// message is sent to the gateway and to the target itself, and gets the same
// answers.
func TestSeveralStatements(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := start(t, version)
			through, straight := g.wire(t), g.straightWire(t)
			for _, text := range []string{
				"select 1; select 2",
				"select 1;; select 2;",
				"select 1; select 1/0; select 2",
				"begin; select 1; commit; select 2",
				"begin; select 1", "select 2; select nothing; select 3", "select 4; rollback", "rollback; begin; select 1", "commit",
				"select 1; begin; select 2", "rollback",
				"select 1; commit; select 2", "select 1; rollback", "commit; select 1",
				"savepoint a; select 1", "select 1; savepoint a",
				"begin; savepoint a; select nothing", "rollback to a; select 5; release a; commit",
				"begin isolation level serializable read only; select current_setting('transaction_isolation'); update orders set status = 'x'", "rollback and chain; select 1; rollback",
				"begin; begin; commit; commit", "select nothing; select 1", "begin; select 1; commit and chain; select 2; rollback",
				"set transaction read only; update orders set status = 'x' where false", "select 1; set transaction isolation level serializable",
			} {
				if got, want := withoutBlockWarning(through.ask(text)), straight.ask(text); !alike(got, want) && !alike(withoutEarlyColumns(got), want) {
					t.Fatalf("%s\n got %q\nwant %q", text, got, want)
				}
			}
			control := []string{"begin", "commit", "rollback", "rollback and chain", "commit and chain", "savepoint s", "rollback to s", "release s"}
			texts := append([]string{"select 1 as one", "select id from orders order by id limit 2", "select nothing", "select 1/(id-1) from orders order by id desc limit 2",
				"update orders set status = status where false", "", "set local extra_float_digits = 1"}, control...)
			r := rand.New(rand.NewPCG(7, 7))
			for range 120 {
				var list []string
				for range 1 + r.IntN(6) {
					list = append(list, texts[r.IntN(len(texts))])
				}
				text := strings.Join(list, ";")
				if got, want := withoutBlockWarning(through.ask(text)), withoutBlockWarning(straight.ask(text)); !alike(got, want) && !alike(withoutEarlyColumns(got), want) {
					t.Fatalf("%s\n got %q\nwant %q", text, got, want)
				}
			}
		})
	}
}

// withoutBlockWarning drops the warning that SET LOCAL and SET TRANSACTION give
// outside a block: the target does not count a message's implicit transaction
// as one before something ran in it.
func withoutBlockWarning(lines []string) []string {
	return slices.DeleteFunc(lines, func(l string) bool { return strings.HasSuffix(l, "can only be used in transaction blocks") })
}

// What a message did before a statement of it is denied is undone with it, as
// by an error of the server, and what follows is not looked at.
func TestSeveralDenied(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.policy.set(denyWord("DELETE"))
	w := g.wire(t)
	mark := len(g.pg.Log())
	for _, c := range []struct {
		text string
		want []string
	}{
		{"insert into notes values (501, 'a'); delete from orders where id = 777123; insert into notes values (502, 'b')",
			[]string{"INSERT 0 1", "ERROR 42501", "ready I"}},
		{"delete from orders where id = 777123; insert into notes values (503, 'c')", []string{"ERROR 42501", "ready I"}},
		{"select count(*) from notes where id between 501 and 503", []string{"columns count", "row 0", "SELECT 1", "ready I"}},
		{"insert into notes values (504, 'd'); commit; insert into notes values (505, 'e'); delete from orders where id = 777123",
			[]string{"INSERT 0 1", "notice there is no transaction in progress", "COMMIT", "INSERT 0 1", "ERROR 42501", "ready I"}},
		{"select id from notes where id between 501 and 505", []string{"columns id", "row 504", "SELECT 1", "ready I"}},
		{"begin; insert into notes values (506, 'f'); delete from orders where id = 777123; rollback", []string{"BEGIN", "INSERT 0 1", "ERROR 42501", "ready E"}},
		{"rollback; begin; delete from orders where id = 777123; commit", []string{"ROLLBACK", "BEGIN", "ERROR 42501", "ready E"}},
		{"select 1; rollback", []string{"ERROR 25P02", "ready E"}},
		{"rollback", []string{"ROLLBACK", "ready I"}},
		{"begin; savepoint a; delete from orders where id = 777123", []string{"BEGIN", "SAVEPOINT", "ERROR 42501", "ready E"}},
		{"rollback to a; select 7 as n; commit", []string{"ROLLBACK", "columns n", "row 7", "SELECT 1", "COMMIT", "ready I"}},
		// the twin: with nothing to deny all of it is kept
		{"insert into notes values (507, 'g'); delete from notes where false; select 1", []string{"INSERT 0 1", "ERROR 42501", "ready I"}},
		{"insert into notes values (508, 'h'); update notes set body = 'i' where id = 508; select body from notes where id = 508",
			[]string{"INSERT 0 1", "UPDATE 1", "columns body", "row i", "SELECT 1", "ready I"}},
		{"select id from notes where id between 505 and 508", []string{"columns id", "row 508", "SELECT 1", "ready I"}},
	} {
		if got := w.ask(c.text); !equal(got, c.want) {
			t.Errorf("%s\n got %q\nwant %q", c.text, got, c.want)
		}
	}
	if strings.Contains(g.pg.Log()[mark:], "777123") {
		t.Error("a denied statement reached the target")
	}
	// Control: straight at the target the same message goes through.
	straight := g.straightWire(t)
	same(t, straight.ask("insert into notes values (501, 'a'); delete from orders where id = 777123; delete from notes where id = 501"),
		[]string{"INSERT 0 1", "DELETE 0", "DELETE 1", "ready I"})
}

// Each statement of a message has a decision, an execution and an end of its
// own, and policy knows how many there are.
func TestSeveralRecorded(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	same(t, w.ask("select 1 as a; update orders set status = status where id = 9; select nope"),
		[]string{"columns a", "row 1", "SELECT 1", "UPDATE 1", "ERROR 42703", "ready I"})
	same(t, g.recorder.types(0), []string{"opened", "decided", "executed", "rows", "ended", "decided", "executed", "ended", "decided", "executed", "ended"})
	var texts []string
	requests := map[string]bool{}
	for _, e := range g.recorder.all() {
		if e.Decided != nil {
			action := e.Decided.Request.Action.SQL
			texts, requests[e.Request] = append(texts, action.Text), true
			if action.Statements != 3 {
				t.Errorf("%s: %d statements", action.Text, action.Statements)
			}
		}
	}
	if !slices.Equal(texts, []string{"select 1 as a", "update orders set status = status where id = 9", "select nope"}) || len(requests) != 3 {
		t.Errorf("decided %q as %d requests", texts, len(requests))
	}

	t.Run("a rule on their number", func(t *testing.T) {
		g.policy.set(func(r access.Request) access.Decision {
			if r.Action.SQL.Statements > 1 {
				return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "one at a time", Revision: "r1"}
			}
			return allowed(access.Obligations{})
		})
		same(t, w.ask("select 1 as a; select 2"), []string{"ERROR 42501", "ready I"})
		same(t, w.ask("select 1 as a;"), []string{"columns a", "row 1", "SELECT 1", "ready I"})
	})
}

// A statement of a message that needs a reviewer is held when it is its turn;
// inside the message's transaction that is refused like in any other.
func TestSeveralHeld(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.policy.set(holdUpdates(access.ApprovalTerms{}))
	w := g.wire(t)
	w.send(&pgproto3.Query{String: "update orders set status = 'held' where id = 151; select status from orders where id = 151"})
	id := w.notice()
	g.approvals.answer(id, access.Granted, access.Pending)
	same(t, w.until(1), []string{"UPDATE 1", "columns status", "row held", "SELECT 1", "ready I"})
	same(t, w.ask("select 1 as a; update orders set status = 'again' where id = 151"), []string{"columns a", "row 1", "SELECT 1", "ERROR 57014", "ready I"})
	same(t, w.ask("select status from orders where id = 151"), []string{"columns status", "row held", "SELECT 1", "ready I"})
}

// An error tells where it is in the whole message, and one that comes with the
// commit comes in place of the last statement's end.
func TestSeveralErrors(t *testing.T) {
	t.Parallel()
	g := masked(t, "18")
	w := g.wire(t)
	for _, c := range []struct{ text, at, code string }{
		{"select 'é'; select ssn, 'x'::int4 from customers", "'x'", "22P02"},
		{"select 'é'; select id from customers where ssn = 'x'", "ssn", "42501"},
		{"select 1; selec 2", "selec 2", "42601"},
	} {
		w.send(&pgproto3.Query{String: c.text})
		var e *pgproto3.ErrorResponse
		for e == nil {
			e, _ = w.receive().(*pgproto3.ErrorResponse)
		}
		if want := len([]rune(c.text[:strings.Index(c.text, c.at)])) + 1; e.Code != c.code || int(e.Position) != want {
			t.Errorf("%s: %s %q at %d, want %d", c.text, e.Code, e.Message, e.Position, want)
		}
		w.until(1)
	}

	t.Run("at commit", func(t *testing.T) {
		g := start(t, "18")
		w, straight := g.wire(t), g.straightWire(t)
		for _, text := range []string{
			"insert into deferred values (1, 99)", "select 1; insert into deferred values (1, 99)", "insert into deferred values (1, 99); select 1",
			"begin; insert into deferred values (1, 99); commit; select 1", "select 1",
		} {
			if got, want := w.ask(text), straight.ask(text); !equal(got, want) {
				t.Errorf("%s\n got %q\nwant %q", text, got, want)
			}
		}
		last := g.recorder.all()
		failed := 0
		for _, e := range last {
			if e.Ended != nil && strings.Contains(e.Ended.Error, "23503") {
				failed++
			}
		}
		if failed != 4 {
			t.Errorf("%d executions are recorded as failed", failed)
		}
	})
}
