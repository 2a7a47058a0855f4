package sql

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// A rule's write_masked lets masked columns be written, and nothing else.
func TestWriteMasked(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	masks := masksOf("public.customers.ssn", "public.customers.card", "public.orders.total", "public.events.secret")
	writable := []string{"public.customers.ssn", "public.orders.total", "public.events.secret", "public.gone.x"}
	for _, c := range []struct {
		name, text, refused string
		nulls               []int
	}{
		{"update", "update customers set ssn = '1' where id = 1", "", nil},
		{"a value of another column", "update customers set ssn = name || '-' || id where id = 1", "", nil},
		{"insert", "insert into customers (id, ssn) values ($1, $2), (2, null)", "", nil},
		{"on conflict", "insert into customers (id, ssn) values (1, '1') on conflict (id) do update set email = 'x' returning id, name", "", nil},
		{"a partition", "update events_1 set secret = 'x' where id = 1", "", nil},
		{"the number of a parameter", "update orders set total = $2 where id = $1", "", []int{2}},
		{"of several", "update orders set (at, total) = (now(), $1::numeric) where id = 1", "", []int{1}},
		{"of rows", "insert into orders (id, total) values (1, 1.5), (2, $3), ($1, default)", "", []int{3}},

		{"merge", "merge into orders o using crm.customers c on o.id = c.id when matched then update set total = $1 when not matched then insert (id, total) values (c.id, $2)", "", []int{1, 2}},

		{"merge of the null that is its mask", "merge into orders o using customers c on o.id = c.id when not matched then insert (id, total) values (c.id, null)", "NULL cannot be written", nil},
		{"not granted", "update customers set card = '1' where id = 1", "public.customers.card is masked and cannot be written", nil},
		{"both", "update customers set ssn = '1', card = '1' where id = 1", "public.customers.card is masked and cannot be written", nil},
		{"every column", "insert into customers values (1, 'a', 'b', 'c', 'd')", "public.customers.card is masked and cannot be written", nil},
		{"from itself", "update customers set ssn = ssn || '1' where id = 1", "cannot take part in UPDATE", nil},
		{"from another", "update customers set ssn = card where id = 1", "cannot take part in UPDATE", nil},
		{"where", "update customers set ssn = '1' where ssn = '2'", "cannot take part in UPDATE", nil},
		{"returning", "update customers set ssn = '1' where id = 1 returning ssn", "cannot take part in UPDATE", nil},
		{"on conflict of it", "insert into customers (id, ssn) values (1, '1') on conflict (ssn) do nothing", "cannot take part in INSERT", nil},
		{"excluded", "insert into customers (id, ssn) values (1, '1') on conflict (id) do update set email = excluded.ssn", "cannot take part in INSERT", nil},
		{"a reference to it", "insert into orders (id, customer_ssn) values (1, '1')", "would tell whether a value of public.customers.ssn exists", nil},
		{"a key with it", "update customers set name = 'guess' where id = 1", "would tell whether a value of public.customers.ssn exists", nil},
		{"copy", "copy customers (id, ssn) from stdin", "cannot be written by COPY", nil},
		{"the null that is its mask", "update orders set total = null where id = 1", "NULL cannot be written", nil},
		{"that of a cast", "insert into orders (id, total) values (1, 2), (2, null::numeric)", "NULL cannot be written", nil},
		{"that of several", "update orders set (at, total) = row(now(), null) where id = 1", "NULL cannot be written", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := judge(t, a, cat, c.text)
			f, err := a.Mask(t.Context(), st, cat, access.Obligations{Masks: masks, WriteMasked: writable})
			var r *Refusal
			switch {
			case errors.As(err, &r):
				if c.refused == "" || !strings.Contains(r.Message, c.refused) || r.Hint == "" {
					t.Errorf("%s: %+v", c.text, r)
				}
			case err != nil:
				t.Fatal(err)
			case c.refused != "" || f.Text != c.text || !slices.Equal(f.NullMasks, c.nulls):
				t.Errorf("%s: forwarded as %s, nulls %v", c.text, f.Text, f.NullMasks)
			}
			_, err = a.Mask(t.Context(), st, cat, access.Obligations{Masks: masks})
			if !errors.As(err, &r) {
				t.Errorf("%s passes without write_masked: %v", c.text, err)
			}
		})
	}
}
