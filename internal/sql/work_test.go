package sql

import (
	"fmt"
	"strings"
	"testing"
)

// Whole rows of wide tables, named again and again, are refused before they
// cost seconds; a wide table by itself is not.
func TestWorkIsBounded(t *testing.T) {
	t.Parallel()
	var columns []string
	for i := range 1600 {
		columns = append(columns, fmt.Sprintf("c%d", i))
	}
	cat := testCatalog(t, func(c *catalogContents) {
		c.Relations = append(c.Relations, relation(100, "public", "wide", "r", columns...))
	})
	a := newTestAnalyzer(t)
	if st := judge(t, a, cat, "select w.*, w.* from wide w where w.c1 = 'x'"); st.Refusal == nil {
		t.Error("more columns than PostgreSQL has room for")
	}
	if st := judge(t, a, cat, "select *, row_to_json(w) from wide w where w.c1 = 'x'"); st.Refusal != nil || len(st.Action.Columns) != 1600 {
		t.Errorf("a wide table: %v", st.Refusal)
	}
	for name, text := range map[string]string{
		"rows":        "select array[w" + strings.Repeat(",w", 9000) + "] from wide w",
		"expansions":  "select concat(w.*" + strings.Repeat(",w.*", 4000) + ") from wide w",
		"nested rows": "select array[x" + strings.Repeat(",x", 5000) + "] from (select w::text as c0" + strings.Repeat(", w::text as c1", 500) + " from wide w) x",
		"sources":     "select 1 from wide" + strings.Repeat(", wide", 6000),
		"names":       "select c1" + strings.Repeat(",c1", 3000) + " from orders a" + strings.Repeat(",orders a", 3000),
		"natural":     "select 1 from wide a" + strings.Repeat(" natural join wide", 700),
		"joins":       "select 1 from wide a" + strings.Repeat(" natural join orders", 1400),
		"order by":    "select * from wide order by c1" + strings.Repeat(",c1", 9000),
		"group by":    "select array[w" + strings.Repeat(",w", 9000) + "] from wide w group by c1",
	} {
		t.Run(name, func(t *testing.T) {
			if st := judge(t, a, cat, text); st.Refusal == nil {
				t.Error("it was not refused")
			}
		})
	}
}

// A relation that was bound and then forgotten is noticed.
func TestLost(t *testing.T) {
	t.Parallel()
	text := "select id from customers, orders"
	r, err := pool.Parse(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	b := newBinder(text, testCatalog(t), newLibrary(nil))
	before := b.mark()
	b.selectStmt(r.Tree.GetStmts()[0].GetStmt().GetSelectStmt(), nil, nil)
	if b.lost() != nil {
		t.Error("nothing is lost")
	}
	b.reset(before)
	if b.lost() == nil {
		t.Error("a relation is lost unnoticed")
	}
}
