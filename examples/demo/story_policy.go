package demo

import (
	"context"
	"os"
)

// replayed tries a proposed policy on what the story has recorded so far. It
// comes before the story edits its policies.
func (t *teller) replayed(ctx context.Context) error {
	defer os.RemoveAll(t.path("proposed"))
	return t.tell(ctx,
		beat{say: "the policies have cases of their own", run: "chaperone policy test --min-coverage 100 policies", want: []string{"0 failed", "100%"}},
		beat{say: "somebody proposes that orders be fixed without a reviewer, and forgets a mask",
			run: `cp -r policies proposed; sed -i -e '/approval:/d' -e 's/effect: approve/effect: allow/' -e '/customers.card/d' proposed/orders-agents.yaml`},
		beat{say: "what that would have changed about what was done here: exit status 1, a gate for a pipeline",
			run: "chaperone policy replay --policies proposed --recordings data/recordings", fails: true,
			want: []string{Ada + " by agent in nightly-report on orders", "approve by orders-agents/fix-an-order -> allow by orders-agents/fix-an-order",
				"no longer masked: public.customers.card", "not replayed:", "unauthenticated"}},
		beat{say: "the policies that serve flip nothing: exit status 0",
			run: "chaperone policy replay --policies policies --recordings data/recordings", want: []string{", 0 flip"}, not: []string{" 0 decisions"}},
		beat{say: "an auditor needs no files for that", run: as("SOFIA", "policy replay --policies policies"), want: []string{", 0 flip"}, not: []string{" 0 decisions"}},
	)
}
