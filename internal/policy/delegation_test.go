package policy

import (
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

const everything = `policy: everything
principal: 'true'
resource: 'true'
rules:
  - {name: all, when: 'true', effect: allow, limits: {rows_read: 50}}
`

// TestChainBoundsWhatPolicyAllows: the rights are the intersection; the twin is
// the same principal without the hop that refuses.
func TestChainBoundsWhatPolicyAllows(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "everything.yaml", everything)
	req := access.Request{
		ID: "req_1", Resource: access.Resource{Name: "orders", Kind: access.Postgres},
		Principal: access.Principal{Issuer: "dex", Subject: "a", Chain: []access.Hop{
			{Subject: "first", Actor: "planner", Attenuation: &access.Attenuation{Resources: []string{"orders"}, Rows: 10}},
			{Subject: "second", Actor: "reporter", Attenuation: &access.Attenuation{ReadOnly: true, Rows: 20}},
		}},
		Action: access.Action{SQL: &access.SQL{Command: "UPDATE", Writes: []string{"public.t"}}},
	}
	d := set.Decide(req, time.Now())
	if d.Effect != access.Deny || d.Rule() != "delegation/hop-2" || d.Reason != access.DeniedByRule || d.Revision == "" ||
		!strings.Contains(d.Message, "not delegated to reporter (hop 2 of 2): it is for reading only") || d.Hint == "" {
		t.Errorf("a write: %+v", d)
	}
	req.Action.SQL = &access.SQL{Command: "SELECT", ReadOnly: true}
	if d = set.Decide(req, time.Now()); d.Effect != access.Allow || d.Obligations.Limits.RowsRead != 10 || d.Obligations.Limits.RowsChanged != 10 {
		t.Errorf("the twin: %+v", d)
	}
	if !set.mayConnect(req, time.Now()) {
		t.Error("the resource it is for does not open")
	}
	req.Resource.Name = "billing"
	if d = set.Decide(req, time.Now()); d.Rule() != "delegation/hop-1" {
		t.Errorf("another resource: %+v", d)
	}
	if set.mayConnect(req, time.Now()) {
		t.Error("another resource opens")
	}
	req.Principal.Chain = nil
	if d = set.Decide(req, time.Now()); d.Effect != access.Allow || d.Obligations.Limits.RowsRead != 50 || d.Obligations.Limits.RowsChanged != 0 {
		t.Errorf("without a chain: %+v", d)
	}
}
