package policy

import (
	"fmt"

	"chaperone.dev/chaperone/internal/access"
)

// delegation stands in place of a policy's name where a hop of the principal's
// chain refuses: delegation/hop-2. No policy can lift it.
const delegation = "delegation"

// beyondDelegation refuses what some hop of the chain gave up, whatever the
// policies say: rights are the intersection along the chain.
func (s *Set) beyondDelegation(req *access.Request) (access.Decision, bool) {
	hop, why := req.Principal.OutOfBounds(req.Resource, req.Action)
	if hop == 0 {
		return access.Decision{}, false
	}
	actor := req.Principal.Chain[hop-1].Actor
	return access.Decision{
		Effect: access.Deny, Reason: access.DeniedByRule, Revision: s.revision,
		Rules:   []access.RuleRef{{Policy: delegation, Rule: fmt.Sprintf("hop-%d", hop)}},
		Message: fmt.Sprintf("%s was not delegated to %s (hop %d of %d): %s", describe(req), shortened(actor), hop, len(req.Principal.Chain), why),
		Hint:    "no reviewer can lift this; ask whoever handed the token on for a wider one",
	}, true
}

// boundRows lowers the limits to the rows that the chain allows; 0 is no bound.
func boundRows(l *access.Limits, rows int64) {
	if rows == 0 {
		return
	}
	for _, limit := range []*int64{&l.RowsRead, &l.RowsChanged} {
		if *limit == 0 || *limit > rows {
			*limit = rows
		}
	}
}
