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
