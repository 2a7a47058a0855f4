package e2e

import (
	"fmt"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// TestUnwalledStillMasks: with a role that may read the masked columns only the
// gateway's own reading of SQL protects them. Each statement was once, or would
// be, a way around it.
func TestUnwalledStillMasks(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{Config: func(text string) string {
		return strings.Replace(text, "      database: orders\n", "      database: orders\n      unwalled: true\n", 1)
	}})
	if err := s.Database.Exec(t.Context(), "orders", "grant select on customers to chaperone_app"); err != nil {
		t.Fatal(err)
	}
	owner := direct(t, s)
	agent := connect(t, s, token(t, s, demo.Ada))
	ssn, card := secretsOf(t, s)
	for _, query := range []string{
		"with recursive r as (select 1 as a union all select 2 limit (select ssn::bigint from customers where id = 1)) select count(*) from r",
		"with recursive r as (select 1 as a union all select 2 offset (select ssn::int from customers where id = 1)) select count(*) from r",
		"with recursive r(a, b) as (select 1, '' union all select r.a + 1, z.ssn from r, z where r.a < 2), z as (select id, ssn from customers where id = 1) select * from r",
		"with recursive y as (select * from z), z as (select ssn from customers where id = 1) select * from y",
		"select ssn::int from customers where id = 1",
		"select 1 / (length(ssn) - 11) from customers where id = 1",
		"select * from customers c where c = (select d from customers d where id = 1)",
		"select customers from customers where id = 1",
		"select (c).ssn from customers c where id = 1",
		"select (select c from customers c where id = 1)",
		"with customers as (select * from public.customers) select ssn from customers where id = 1",
		`select U&"\0073sn" from customers where id = 1`,
		"update orders set status = (select ssn from customers where id = 1) where id = 1 returning status",
		"insert into orders select id, id, ssn, 'x', 1, now() from customers returning item",
	} {
		got, err := read(t.Context(), agent, query)
		if all := got + fmt.Sprintf("%v %+v", err, err); strings.Contains(all, ssn) || strings.Contains(all, card) {
			t.Errorf("%s leaks: %s", query, all)
		}
		if agent.IsClosed() {
			t.Fatalf("%s ended the session", query)
		}
	}
	// Control: this role does see the values, and the twin still answers.
	if got, err := read(t.Context(), owner, "set role chaperone_app; select ssn from customers where id = 1"); !strings.Contains(got, ssn) {
		t.Errorf("control: %q %v", got, err)
	}
	if got, err := read(t.Context(), agent, "select ssn, name from customers where id = 1"); err != nil || !strings.HasPrefix(got, "***|") {
		t.Errorf("twin: %q %v", got, err)
	}
	// A read that would change how the next statement is read, and that one.
	for _, statement := range []string{
		"with recursive r as (select 1 as a union all select 2 limit (select length(set_config('standard_conforming_strings','off',false)))) select count(*) from r",
		`with a as (select 'a\' || '), d as (delete from orders where id = 118 returning id) select id from d -- ' as x) select * from a`,
	} {
		_, _ = read(t.Context(), agent, statement) // refused or harmless; the row tells
	}
	if got := value(t, s, "select count(*)::text from orders where id = 118"); got != "1" {
		t.Error("a row was deleted without an approval")
	}
}
