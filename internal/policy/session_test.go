package policy

import (
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// A session outlives its token as long as every rule that matches grants, and
// the shortest of them; it is opened for the longest of all.
func TestSessionMax(t *testing.T) {
	t.Parallel()
	s := mustLoad(t, "p.yaml", `
policy: dump
principal: '"dumpers" in principal.groups'
resource: 'resource.name == "orders"'
rules:
  - {name: read, when: 'sql.read_only', effect: allow, session: {max: 2h}}
  - {name: orders, when: '"public.orders" in sql.tables', effect: allow, session: {max: 1h}}
  - {name: customers, when: '"public.customers" in sql.tables', effect: allow}
  - {name: delete, when: 'sql.command == "DELETE"', effect: approve, approval: {groups: [a]}, session: {max: 3h}}
`)
	p, r := access.Principal{Groups: []string{"dumpers"}}, access.Resource{Name: "orders", Kind: access.Postgres}
	decide := func(q access.SQL) time.Duration {
		return s.Decide(access.Request{Principal: p, Resource: r, Action: access.Action{SQL: &q}}, time.Now()).Obligations.SessionMax
	}
	for name, c := range map[string]struct {
		action access.SQL
		want   time.Duration
	}{
		"one rule":             {access.SQL{ReadOnly: true}, 2 * time.Hour},
		"the shortest":         {access.SQL{ReadOnly: true, Tables: []string{"public.orders"}}, time.Hour},
		"one grants nothing":   {access.SQL{ReadOnly: true, Tables: []string{"public.customers"}}, 0},
		"what is to be held":   {access.SQL{Command: "DELETE"}, 3 * time.Hour},
		"held, and a shorter":  {access.SQL{Command: "DELETE", Tables: []string{"public.orders"}}, time.Hour},
		"what no rule matches": {access.SQL{Command: "UPDATE"}, 0},
	} {
		if got := decide(c.action); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	e := NewEngine(s)
	if got := e.SessionMax(t.Context(), p, r); got != 3*time.Hour {
		t.Errorf("the longest is %s", got)
	}
	if got := e.SessionMax(t.Context(), access.Principal{Groups: []string{"others"}}, r); got != 0 {
		t.Errorf("others get %s", got)
	}
	if got := NewEngine(nil).SessionMax(t.Context(), p, r); got != 0 {
		t.Errorf("without policies: %s", got)
	}
}
