package sql

import (
	"fmt"
	"strings"
	"testing"
)

// TestForwardNamedQueriesAreRefused: what a WITH query reads that is named
// before it is written was once counted, forgotten and forwarded unmasked.
func TestForwardNamedQueriesAreRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`with recursive r(a, b) as (select 1, '' union all select r.a + 1, z.ssn from r, z where r.a < 2), z as (select id, ssn from customers) select * from r`,
		`with recursive r as (select 1 as a union all select o.customer_id from r, d, orders o where false), d as (delete from orders where id = 119 returning id) select * from r`,
		`with recursive y as (select * from z), z as (select ssn from customers) select * from y`,
	} {
		st := judge(t, newTestAnalyzer(t), testCatalog(t), text)
		if st.Refusal == nil || !strings.Contains(st.Refusal.Message, "named before it is written") {
			t.Errorf("%s: %+v", text, st.Refusal)
		}
	}
	twin := judge(t, newTestAnalyzer(t), testCatalog(t), `with recursive z as (select id from orders), r(a) as (select 1 union all select r.a + 1 from r, z where r.a < 2) select * from r`)
	if twin.Refusal != nil {
		t.Errorf("in order it should pass: %v", twin.Refusal)
	}
}

// TestBindingIsBounded: statements whose binding multiplies are refused quickly.
func TestBindingIsBounded(t *testing.T) {
	t.Parallel()
	doubling := "with c0 as (select id from orders)"
	for i := range 40 {
		doubling += fmt.Sprintf(", c%d as (select * from c%d a, c%d b)", i+1, i, i)
	}
	joined := "with c0 as (select id from orders)"
	for i := range 40 {
		joined += fmt.Sprintf(", c%d as (select * from c%d a join c%d b on true)", i+1, i, i)
	}
	nested := "select 1 as a1"
	for i := range 10 {
		nested = fmt.Sprintf(`with recursive n%[1]d(a1, a2, a3, a4, a5, a6) as (select 1, 2, 3, 4, 5, o.id from orders o union all
			select x.a2, x.a3, x.a4, x.a5, x.a6, x.a6 from n%[1]d x, (%[2]s) y) select a1 from n%[1]d`, i, nested)
	}
	for name, text := range map[string]string{"doubling": doubling + " select * from c40", "joined": joined + " select * from c40", "nested": nested} {
		t.Run(name, func(t *testing.T) {
			if st := judge(t, newTestAnalyzer(t), testCatalog(t), text); st.Refusal == nil {
				t.Error("it was not refused")
			}
		})
	}
}
