package sql

import (
	"context"
	"testing"
)

const benchQuery = "select c.id, c.name, c.ssn, o.total from customers c join orders o on o.customer_id = c.id where o.total > $1 order by o.at limit 10"

func BenchmarkAnalyze(b *testing.B) {
	a, cat := newTestAnalyzer(b), testCatalog(b)
	for b.Loop() {
		if st := judge(b, a, cat, benchQuery); !st.Action.ReadOnly {
			b.Fatal(st.Refusal)
		}
	}
}

// BenchmarkBind leaves the parser out.
func BenchmarkBind(b *testing.B) {
	a, cat := newTestAnalyzer(b), testCatalog(b)
	parsed, err := pool.Parse(context.Background(), benchQuery)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if st, err := a.judge(context.Background(), benchQuery, cat, parsed); err != nil || st.Refusal != nil {
			b.Fatal(err, st.Refusal)
		}
	}
}

func BenchmarkMask(b *testing.B) {
	a, cat := newTestAnalyzer(b), testCatalog(b)
	st := judge(b, a, cat, benchQuery)
	for b.Loop() {
		if f, err := a.Mask(context.Background(), st, cat, secrets); err != nil || len(f.Masked) != 1 {
			b.Fatal(err)
		}
	}
}
