package policy

import (
	"slices"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// A masked column may be written as soon as one rule that matches says so; a
// rule that does not match, or a denial, says nothing.
func TestWriteMasked(t *testing.T) {
	t.Parallel()
	s := mustLoad(t, "p.yaml", `
policy: intake
principal: 'true'
resource: 'true'
rules:
  - {name: all, effect: allow, mask: [{column: public.customers.ssn}]}
  - {name: insert, when: 'sql.command == "INSERT"', effect: allow, write_masked: [public.customers.ssn, public.customers.card]}
  - {name: update, when: 'sql.command in ["UPDATE", "MERGE"]', effect: approve, approval: {groups: [a]}, write_masked: [public.customers.ssn, public.a.b]}
  - {name: both, when: 'sql.command == "MERGE"', effect: allow, write_masked: [public.a.a]}
  - {name: never, when: 'sql.command == "DELETE"', effect: deny}
`)
	for command, want := range map[string][]string{
		"SELECT": nil, "DELETE": nil, "INSERT": {"public.customers.card", "public.customers.ssn"},
		"UPDATE": {"public.a.b", "public.customers.ssn"}, "MERGE": {"public.a.a", "public.a.b", "public.customers.ssn"},
	} {
		d := s.Decide(access.Request{Action: access.Action{SQL: &access.SQL{Command: command}}}, time.Now())
		if !slices.Equal(d.Obligations.WriteMasked, want) {
			t.Errorf("%s: %v, not %v", command, d.Obligations.WriteMasked, want)
		}
	}
}
