package postgres

import (
	"testing"

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
