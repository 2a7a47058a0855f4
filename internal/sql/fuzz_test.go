package sql

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// seeds are the statements of testdata/seeds.sql, one a line.
func seeds(t testing.TB) []string {
	t.Helper()
	b, err := os.ReadFile("testdata/seeds.sql")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		list = append(list, strings.TrimSuffix(line, "\n"))
	}
	if len(list) < 200 {
		t.Fatalf("only %d seeds", len(list))
	}
	return list
}

// checkJudged holds what must be true of every statement whatever its text.
func checkJudged(t *testing.T, text string, st *Statement) {
	t.Helper()
	a := st.Action
	switch {
	case a.ReadOnly && (len(a.Unknown) > 0 || len(a.Writes) > 0 || a.Locks || a.DDL || st.Refusal != nil):
		t.Errorf("%q is read-only: %+v", text, a)
	case st.Refusal != nil && len(a.Unknown) == 0 && !a.DDL:
		t.Errorf("%q is refused and known: %+v", text, a)
	case st.Refusal != nil && (st.Refusal.Message == "" || st.Refusal.Hint == "" || st.Refusal.SQLState == "" || st.Refusal.Reason == ""):
		t.Errorf("%q is refused without saying why: %+v", text, st.Refusal)
	case a.Statements > 1 && st.Refusal == nil:
		t.Errorf("%q is %d statements and goes through", text, a.Statements)
	case st.Kind == KindRefused && st.Refusal == nil || st.Kind != KindRefused && st.Kind != KindDefinition && st.Refusal != nil:
		t.Errorf("%q: kind %d, refusal %v", text, st.Kind, st.Refusal)
	case st.Text != text || a.Text != text:
		t.Errorf("%q became %q", text, st.Text)
	}
}

func FuzzJudge(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	a, cat := newTestAnalyzer(f), testCatalog(f)
	f.Fuzz(func(t *testing.T, text string) {
		st, err := a.Analyze(context.Background(), text, cat)
		if err != nil {
			return // no verdict: nothing is forwarded
		}
		checkJudged(t, text, st)
	})
}

// FuzzMask checks a rewritten text by other means than Mask does: with the
// gateway's own subqueries pointed at tables of harmless columns, it must still
// bind in a database that has no customers at all.
func FuzzMask(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	a, cat := newTestAnalyzer(f), testCatalog(f)
	without := testCatalog(f, withoutCustomers)
	own := regexp.MustCompile(`FROM (ONLY )?"public"\."(customers|dirty)"( TABLESAMPLE |\))`)
	f.Fuzz(func(t *testing.T, text string) {
		st, err := a.Analyze(context.Background(), text, cat)
		if err != nil {
			return // no verdict: nothing is forwarded
		}
		forward, err := a.Mask(context.Background(), st, cat, access.Obligations{Masks: secrets})
		var r *Refusal
		if errors.As(err, &r) {
			return
		}
		if err != nil {
			return // no verdict: nothing is forwarded
		}
		for _, ref := range maskedColumnsOf(forward) {
			t.Errorf("%q reaches %s", text, ref)
		}
		if forward.Text == text {
			return
		}
		harmless := own.ReplaceAllStringFunc(forward.Text, func(from string) string {
			return strings.NewReplacer(`"customers"`, `"harmless"`, `"dirty"`, `"harmless_view"`).Replace(from)
		})
		again, err := a.Analyze(context.Background(), harmless, without)
		if err != nil {
			return // no verdict: nothing is forwarded
		}
		if again.Refusal != nil && len(st.Action.Writes) == 0 {
			t.Errorf("%q\nas %q\nstill needs customers: %v", text, forward.Text, again.Refusal)
		}
		if p := forward.ClientPosition(len([]rune(forward.Text))); p < 0 || p > len([]rune(text))+1 {
			t.Errorf("%q: position %d", text, p)
		}
	})
}

// maskedColumnsOf lists masked columns that the forwarded action reads although
// the text was not changed.
func maskedColumnsOf(f *Forward) []string {
	if f.Action.Forward != "" {
		return nil
	}
	var found []string
	for _, c := range f.Action.Columns {
		if c == "public.customers.ssn" || c == "public.customers.card" {
			found = append(found, c)
		}
	}
	return found
}

// withoutCustomers takes customers and what is made of it away.
func withoutCustomers(c *catalog.Contents) {
	var kept []catalog.Relation
	for _, r := range c.Relations {
		switch r.Schema + "." + r.Name {
		case "public.customers":
			harmless := relation(1, "public", "harmless", "r", "id int4", "name", "email")
			harmless.Constraints = r.Constraints[:1]
			kept = append(kept, harmless)
		case "public.dirty":
			kept = append(kept, relation(6, "public", "harmless_view", "r", "id int4"))
		case "public.over":
			kept = append(kept, relation(7, "public", "over", "r", "id int4"))
		default:
			kept = append(kept, r)
		}
	}
	c.Relations = kept
}

// A tree of which a part was not bound is noticed.
func TestUnseen(t *testing.T) {
	t.Parallel()
	cat := testCatalog(t)
	for _, text := range []string{
		"select id from customers", "select lower('x')", "select 1 + 2", "select '1'::int", "select * from orders", "select 1 limit (select 2)",
		"delete from orders where id = 1", "insert into orders (id) select 1", "update orders set (id, total) = (select 1, 2)",
	} {
		r, err := pool.Parse(t.Context(), text)
		if err != nil {
			t.Fatal(err)
		}
		node := r.Tree.GetStmts()[0].GetStmt()
		b := newBinder(text, cat, newLibrary(nil))
		if b.unseen(node) == nil {
			t.Errorf("%s: nothing is missed before binding", text)
		}
		st := judge(t, newTestAnalyzer(t), cat, text)
		if st.Refusal != nil {
			t.Errorf("%s: %v", text, st.Refusal)
		}
	}
}
