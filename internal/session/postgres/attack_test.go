package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// PREPARE and DEALLOCATE stand even when the transaction that they were in
// fails at its end, as the target has it. A session that missed that would
// decide EXECUTE as a statement that the target no longer has by that name.
func TestNamesOutliveAFailedCommit(t *testing.T) {
	t.Parallel()
	// The cursor is computed at commit, where it fails.
	const fails = "declare h cursor with hold for select 1/(id - 1) from orders where id = 1; "
	const change = "prepare p as update orders set status = 'swapped' where id = 171"
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			for name, limits := range map[string]access.Limits{"plain": {}, "limited": {RowsRead: 100, RowsChanged: 100}} {
				t.Run(name, func(t *testing.T) {
					g := judged(t, version)
					// straight at the database the swap works
					straight := g.straightWire(t)
					scene{
						{"prepare p as select 1 as one", ok("PREPARE")},
						{fails + "deallocate p", ok("DECLARE CURSOR", "ERROR 22012")},
						{fails + change, ok("DECLARE CURSOR", "ERROR 22012")},
						{"begin; execute p; rollback", ok("BEGIN", "UPDATE 1", "ROLLBACK")},
					}.play(t, straight)

					hold := holdUpdates(access.ApprovalTerms{})
					g.policy.set(func(r access.Request) access.Decision {
						d := hold(r)
						d.Obligations.Limits = limits
						return d
					})
					w := g.wire(t)
					scene{
						{"prepare p as select 1 as one", ok("PREPARE")},
						{"execute p", ok("columns one", "row 1", "SELECT 1")},
						{fails + "deallocate p", ok("DECLARE CURSOR", "ERROR 22012")},
						{"execute p", ok("ERROR 26000")},
						{fails + change, ok("DECLARE CURSOR", "ERROR 22012")},
						// it is the UPDATE that is decided now, and needs a reviewer
						{"begin; execute p", failed("BEGIN", "ERROR 57014")},
						{"rollback", ok("ROLLBACK")},
						{"deallocate p; prepare p as select 2 as two; execute p", ok("DEALLOCATE", "PREPARE", "columns two", "row 2", "SELECT 1")},
					}.play(t, w)
					if got := g.status(t, 171); got != "open" {
						t.Errorf("the update ran: %s", got)
					}
				})
			}
		})
	}
}

// The values of EXECUTE are decided and shown to reviewers as constants, so no
// cast may make others of them.
func TestExecuteRunsTheValuesThatAreShown(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := judged(t, version)
			prepared := scene{{"prepare p (int) as select id from orders where id = $1", ok("PREPARE")}}
			straight, w := g.straightWire(t), g.wire(t)
			prepared.play(t, straight)
			prepared.play(t, w)
			for _, c := range []struct{ value, runs string }{
				{"'99'::char(1)::int", "9"},
				{"'99'::char::int", "9"},
				{"'99'::varchar(1)::int", "9"},
				{"b'11'::bit(1)::int", "1"},
				{"98.6::int", "99"},
				{"'98.6'::numeric::int", "99"},
				{"'98.6'::numeric(2,0)", "99"},
				{"cast(cast('99' as \"char\") as text)::int", "9"},
				{"'00:01'::interval::text::char(2)::int", "0"},
				{"true::int", "1"},
			} {
				text := "execute p (" + c.value + ")"
				want := ok("columns id", "row "+c.runs, "SELECT 1")
				if c.runs == "0" {
					want = ok("columns id", "SELECT 0")
				}
				scene{{text, want}}.play(t, straight)
				scene{{text, ok("ERROR 0A000")}}.play(t, w)
			}
			for _, value := range []string{"99", "'99'", "99::int", "int '99'", "'99'::pg_catalog.int8", "99::numeric", "cast('99' as bigint)"} {
				scene{{"execute p (" + value + ")", ok("columns id", "row 99", "SELECT 1")}}.play(t, w)
			}
			scene{
				{"execute p (null::int)", ok("columns id", "SELECT 0")},
				{"prepare b (bool, text) as select $1 as b, $2 as t", ok("PREPARE")},
				{"execute b (true, 'x'::text)", ok("columns b,t", "row t,x", "SELECT 1")},
			}.play(t, w)
		})
	}
}

// TestCursorAcrossSavepoint: a name that two cursors had, one of them undone,
// runs neither as the other. The control is what the server says to the same.
func TestCursorAcrossSavepoint(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	w, straight := g.wire(t), g.straightWire(t)
	steps := []string{"begin", "declare c cursor for select id from orders order by id", "savepoint s", "close c",
		"declare c cursor for select status from orders order by id", "fetch c", "rollback to s", "fetch c", "rollback",
		"begin", "savepoint s", "declare c cursor for select id from orders order by id", "rollback to s", "fetch c", "rollback",
		"begin", "declare c cursor for select id from orders order by id", "savepoint s", "fetch c", "rollback to s", "fetch c", "rollback"}
	for i, text := range steps {
		if got, want := w.ask(text), straight.ask(text); !slices.Equal(got, want) {
			t.Errorf("%d %s: got %q, the server %q", i, text, got, want)
		}
	}
}

// TestCopyBinaryLies: lengths that lie are the server's to refuse, nothing of
// the copy stays, and the session goes on. A true copy is the twin.
func TestCopyBinaryLies(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	w := g.wire(t)
	const header = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	const row = "\x00\x02\x00\x00\x00\x04\x00\x0b\xad\x00\x00\x00\x00\x04body"
	for _, c := range []struct {
		name, data, want string
	}{
		{"a field longer than the data", header + "\x00\x02\x00\x00\x00\x04\x00\x0b\xad\x00\x7f\xff\xff\xff", "ERROR"},
		{"a negative length", header + "\x00\x02\x00\x00\x00\x04\x00\x0b\xad\x00\xff\xff\xff\xf0", "ERROR"},
		{"more fields than columns", header + "\x00\x09\x00\x00\x00\x00", "ERROR"},
		{"no header", row, "ERROR"},
		{"data after the end", header + row + "\xff\xffmore", "ERROR"},
		{"a true copy", header + row + "\xff\xff", "COPY 1"},
	} {
		w.send(&pgproto3.Query{String: "copy notes (id, body) from stdin (format binary)"}, &pgproto3.CopyData{Data: []byte(c.data)}, &pgproto3.CopyDone{})
		if got := strings.Join(w.until(1), " "); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s", c.name, got)
		}
		want := map[bool]string{true: "1", false: "0"}[c.want == "COPY 1"]
		if n := g.straight(t, "select count(*)::text from notes where id = 765184"); n != want {
			t.Errorf("%s: %s rows", c.name, n)
		}
	}
}
