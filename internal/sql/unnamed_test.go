package sql

import (
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/sql/catalog"
)

// What a read runs without naming it is judged like what it names.
func TestUnnamedCode(t *testing.T) {
	t.Parallel()
	a := newTestAnalyzer(t)
	// with returns the catalog in which orders have these policies and folded
	// expressions.
	with := func(policies, folded []string) *catalog.Snapshot {
		return testCatalog(t, func(c *catalogContents) {
			for i := range c.Relations {
				switch c.Relations[i].Qualified() {
				case "public.orders":
					c.Relations[i].Policies = policies
				case "public.events_1":
					c.Relations[i].Folded = folded
				}
			}
		})
	}
	for _, c := range []struct {
		name             string
		policies, folded []string
		text, why        string // why is "" when the statement is read-only
	}{
		{"known policy", []string{"(customer_id = (CURRENT_SETTING('app.customer'::text))::integer)"}, nil, "select id from orders", ""},
		{"function in a policy", []string{"(total > 0)", "(public.mystery(id) = 1)"}, nil, "select id from orders", "row security of public.orders: function public.mystery"},
		{"sequence in a policy", []string{"(nextval('seq'::regclass) > 0)"}, nil, "select 1 from orders", "row security of public.orders: function pg_catalog.nextval"},
		{"policy behind a view", []string{"(public.mystery(id) = 1)"}, nil, "select id from clean", "row security of public.orders: function public.mystery"},
		{"view in a policy", []string{"(EXISTS ( SELECT 1 FROM public.calls WHERE (calls.id = orders.id)))"}, nil, "select id from orders", "view public.calls: function public.mystery"},
		{"table in a policy", []string{"(EXISTS ( SELECT 1 FROM public.customers c WHERE (c.id = orders.customer_id)))"}, nil, "select id from orders", ""},
		{"unreadable policy", []string{"(total >"}, nil, "select id from orders", "what row security of public.orders does is not known"},
		{"policy and change", []string{"(public.mystery(id) = 1)"}, nil, "delete from orders where id = 1", "row security of public.orders: function public.mystery"},
		{"policy and COPY", []string{"(public.mystery(id) = 1)"}, nil, "copy orders to stdout", "row security of public.orders: function public.mystery"},
		{"policy and cursor", []string{"(public.mystery(id) = 1)"}, nil, "declare c cursor for select id from orders", "row security of public.orders: function public.mystery"},
		{"other table", []string{"(public.mystery(id) = 1)"}, nil, "select id from customers", ""},
		{"constant call", nil, []string{"(public.mystery(1) > 0)"}, "select id from events_1", "planning a query of public.events_1: function public.mystery"},
		{"constant operator", nil, []string{"(1 OPERATOR(public.~~~) 2)"}, "select id from events_1", "operator public.~~~"},
		{"constant call below", nil, []string{"((id + public.mystery(1)) > 0)"}, "explain select id from events_1", "function public.mystery"},
		{"constant call in a partition", nil, []string{"(public.mystery(1) > 0)"}, "select id from events", "planning a query of public.events_1"},
		{"call on a column", nil, []string{"(public.mystery(id) > 0)"}, "select id from events", ""},
		{"constants", nil, []string{"(public.mystery(id) > (1 + abs('-2'::integer)))"}, "select id from events", ""},
		{"planning a change", nil, []string{"(public.mystery(1) > 0)"}, "insert into events_1 (id) values (1)", "planning a query of public.events_1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cat := with(c.policies, c.folded)
			for range 2 { // from the cache as well
				st := judge(t, a, cat, c.text)
				if unknown := strings.Join(st.Action.Unknown, "; "); (unknown == "") != (c.why == "") || !strings.Contains(unknown, c.why) {
					t.Errorf("%s\nunknown %q, not %q", c.text, unknown, c.why)
				}
				if st.Action.ReadOnly && c.why != "" {
					t.Errorf("%s is read-only", c.text)
				}
			}
		})
	}
	if st := judge(t, a, testCatalog(t), "select id from remote"); st.Action.ReadOnly {
		t.Error("a foreign table is taken for known")
	}
}

// An operator vouches for a function by name or by signature; what somebody put
// into pg_catalog makes the name there unknown.
func TestCuratedFunctions(t *testing.T) {
	t.Parallel()
	cat := testCatalog(t, func(c *catalogContents) {
		c.Routines = append(c.Routines,
			catalog.Routine{Schema: "public", Name: "twice", Arguments: "integer, text"}, catalog.Routine{Schema: "public", Name: "twice", Arguments: "text"},
			catalog.Routine{Schema: "pg_catalog", Name: "reverse", Arguments: "integer"})
		c.Operators = append(c.Operators, catalog.Operator{Schema: "pg_catalog", Name: "||"})
	})
	for _, c := range []struct {
		curated []string
		text    string
		known   bool
	}{
		{nil, "select twice('x')", false},
		{[]string{"public.twice"}, "select twice('x'), public.twice(1, 'x')", true},
		{[]string{"public.twice(text)"}, "select twice('x')", false}, // which one it is, is not known here
		{[]string{"public.twice(text)", "public.twice( integer,text )"}, "select twice('x'), public.twice(1, 'x')", true},
		{[]string{"public.twice(int4, text)", "public.twice(text)"}, "select twice('x')", false},
		{[]string{"hidden.twice"}, "select twice('x')", false},
		{nil, "select reverse('x')", false},
		{nil, "select pg_catalog.reverse('x')", false},
		{[]string{"pg_catalog.reverse(integer)"}, "select pg_catalog.reverse('x'), reverse('x')", true},
		{nil, "select 'a' || 'b'", false},
		{nil, "select 'a' operator(pg_catalog.||) 'b'", false},
	} {
		a, err := New(Config{Parser: &pool, CuratedFunctions: c.curated})
		if err != nil {
			t.Fatal(err)
		}
		if st := judge(t, a, cat, c.text); st.Action.ReadOnly != c.known {
			t.Errorf("%s with %q: read-only %v, unknown %q", c.text, c.curated, st.Action.ReadOnly, st.Action.Unknown)
		}
	}
	for _, wrong := range []string{"", "f", "a.b.c", "a.b(", "a.b)", "a.(int)", "a b.c", "a.b(int)x"} {
		if _, err := New(Config{Parser: &pool, CuratedFunctions: []string{wrong}}); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}
