package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// What a rule lets be written to a masked column arrives; a mask that comes back
// does not, in whatever form it comes.
func TestWriteMasked(t *testing.T) {
	t.Parallel()
	g := judged(t, "18")
	masks := []access.Mask{{Column: "public.customers.ssn"}, {Column: "public.orders.amount"}}
	g.policy.set(func(access.Request) access.Decision {
		return allowed(access.Obligations{Masks: masks, WriteMasked: []string{"public.customers.ssn", "public.orders.amount"}})
	})
	w := g.wire(t)
	scene{
		{"update customers set ssn = '999-12-3456' where id = 19 returning id", ok("columns id", "row 19", "UPDATE 1")},
		{"select ssn from customers where id = 19", ok("columns ssn", "row ***", "SELECT 1")},
		{"update customers set ssn = '***' where id = 19", ok("ERROR 42501")},
		{"update customers set ssn = ssn where id = 19", ok("ERROR 42501")},
		{"update customers set ssn = 'x' where id = 19 returning ssn", ok("ERROR 42501")},
		{"update customers set card = 'x' where id = 19", ok("UPDATE 1")},
		{"update orders set amount = 7.5 where id = 190", ok("UPDATE 1")},
		{"update orders set amount = null where id = 190", ok("ERROR 42501")},
		{"prepare n as update orders set amount = $1 where id = 190", ok("PREPARE")},
		{"execute n (null)", ok("ERROR 42501")},
		{"execute n (8.5)", ok("UPDATE 1")},
	}.play(t, w)
	amount := parse("", "update orders set amount = $1 where id = 190")
	w.send(amount, &pgproto3.Bind{Parameters: [][]byte{nil}}, execute(""), syncMessage)
	same(t, w.until(1), ok("ERROR 42501"))
	ssn := parse("", "update customers set ssn = $1 where id = 19")
	w.send(ssn, &pgproto3.Bind{Parameters: [][]byte{[]byte("***")}, ParameterFormatCodes: []int16{1}}, execute(""), syncMessage)
	same(t, w.until(1), ok("ERROR 42501"))
	w.send(ssn, &pgproto3.Bind{Parameters: [][]byte{[]byte("999-12-0000")}, ParameterFormatCodes: []int16{1}}, execute(""), syncMessage)
	same(t, w.until(1), ok("ParseComplete", "BindComplete", "UPDATE 1"))
	if got := g.straight(t, "select ssn || ' ' || (select amount from orders where id = 190) from customers where id = 19"); got != "999-12-0000 8.50" {
		t.Errorf("stored: %q", got)
	}
	// The right goes with its rule.
	g.policy.set(func(access.Request) access.Decision { return allowed(access.Obligations{Masks: masks}) })
	w.send(ssn, bind("", "", "1"), execute(""), syncMessage)
	same(t, w.until(1), ok("ERROR 42501"))
	scene{{"execute n (9)", ok("ERROR 42501")}}.play(t, w)
}

// Rows that a cursor over masks is on can be locked and changed.
func TestChangeThroughACursor(t *testing.T) {
	t.Parallel()
	g := judged(t, "16")
	scene{
		{"begin", within("BEGIN")},
		{"declare c cursor for select id, ssn from customers where id > 16 order by id for update", within("DECLARE CURSOR")},
		{"fetch 2 from c", within("columns id,ssn", "row 17,***", "row 18,***", "FETCH 2")},
		{"update customers set name = 'through a cursor' where current of c returning id", within("columns id", "row 18", "UPDATE 1")},
		{"update customers set ssn = 'x' where current of c", failed("ERROR 42501")},
		{"rollback", ok("ROLLBACK")},
		{"update customers set name = 'x' where current of c", ok("ERROR 34000")},
	}.play(t, g.wire(t))
}

// Rows that triggers change count, also those of triggers that wait for the
// commit, and those of a server that counts nothing are taken for too many.
func TestChangesOfTriggersCount(t *testing.T) {
	t.Parallel()
	g := start(t, "16")
	g.exec(t, `CREATE TABLE loud (id int PRIMARY KEY, n int); CREATE TABLE quiet (id int PRIMARY KEY, n int); CREATE TABLE patient (id int PRIMARY KEY, n int); CREATE TABLE written (n int);
		CREATE FUNCTION writes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO written SELECT generate_series(1, 10); RETURN NULL; END $$;
		CREATE TRIGGER at_once AFTER UPDATE ON loud FOR EACH ROW EXECUTE FUNCTION writes();
		CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON patient DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION writes();
		INSERT INTO loud VALUES (1, 0); INSERT INTO quiet VALUES (1, 0); INSERT INTO patient VALUES (1, 0);
		GRANT SELECT, INSERT, UPDATE ON loud, quiet, patient, written TO app`)
	w := g.wire(t)
	for _, c := range []struct {
		most int64
		text string
		want []string
	}{
		{5, "update quiet set n = 1", ok("UPDATE 1")},
		{5, "update loud set n = 1", ok("ERROR 53400")},
		{5, "update patient set n = 1", ok("ERROR 53400")},
		{11, "update loud set n = 1", ok("UPDATE 1")},
		{11, "update patient set n = 1", ok("UPDATE 1")},
	} {
		g.policy.set(limit(access.Limits{RowsChanged: c.most}))
		if got := w.ask(c.text); !equal(got, c.want) {
			t.Errorf("%s within %d\n got %q\nwant %q", c.text, c.most, got, c.want)
		}
	}
	if got := g.straight(t, "select count(*)::text from written"); got != "20" {
		t.Errorf("triggers wrote %s rows", got)
	}
	// The control: without a limit nothing is counted.
	g.policy.set(limit(access.Limits{}))
	same(t, w.ask("update patient set n = 2"), ok("UPDATE 1"))
	g.exec(t, "CREATE ROLE uncounted LOGIN PASSWORD '"+rolePassword+"'; ALTER ROLE uncounted SET track_counts = off; GRANT SELECT, UPDATE ON quiet TO uncounted")
	uncounted := start(t, "16", func(g *gateway, _ *Config, _ *Deps) {
		g.setResource("orders", func(r *Resource) { r.User = "uncounted" })
	})
	uncounted.policy.set(limit(access.Limits{RowsChanged: 5}))
	same(t, uncounted.wire(t).ask("update quiet set n = 3"), ok("ERROR 58000"))
}
