package demo

import (
	"context"
	"fmt"
	"os"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/record"
)

// replayed tries a proposed policy on what the story has recorded so far. It
// comes before the story edits its policies.
func (t *teller) replayed(ctx context.Context) error {
	for _, dir := range []string{"proposed", "cases"} {
		defer os.RemoveAll(t.path(dir))
	}
	cases := beat{say: "the policies have cases of their own", run: "chaperone policy test --min-coverage 100 policies", want: []string{"0 failed", "100%"}}
	if t.Cluster != nil { // whose policy has none
		cases.run, cases.want = "chaperone policy test policies", []string{"0 failed"}
	}
	err := t.tell(ctx, cases,
		beat{say: "and nothing in them is without effect", run: "chaperone policy lint policies --config chaperone.yaml", want: []string{"0 errors, 0 warnings"}},
		beat{say: "somebody proposes that orders be fixed without a reviewer, and forgets a mask",
			run: `cp -r policies proposed && sed -i -e '/approval:/d' -e 's/effect: approve/effect: allow/' -e '/customers.card/d' proposed/orders-agents.yaml`},
		beat{say: "what that would have changed about what was done here: exit status 1, a gate for a pipeline",
			run: "chaperone policy replay --policies proposed --recordings data/recordings", fails: true,
			want: []string{Ada + " by agent in nightly-report on orders", "approve by orders-agents/fix-an-order -> allow by orders-agents/fix-an-order",
				"no longer masked: public.customers.card", "not replayed:", "unauthenticated"}},
		beat{say: "the policies that serve flip nothing: exit status 0",
			run: "chaperone policy replay --policies policies --recordings data/recordings", want: []string{", 0 flip"}, not: []string{" 0 decisions"}},
		beat{say: "an auditor needs no files for that", run: as("SOFIA", "policy replay --policies policies"), want: []string{", 0 flip"}, not: []string{" 0 decisions"}},
	)
	if err != nil {
		return err
	}
	return t.exported(ctx)
}

// exported makes cases of everything that was decided, and runs them.
func (t *teller) exported(ctx context.Context) error {
	ids := map[string]string{}
	_, err := record.VerifyEach(ctx, t.path("data", "recordings"), record.Visit{Types: []string{"decided"}, Event: func(ev access.Event) error {
		ids[ev.Request] = ev.Decided.Decision.Effect.String()
		return nil
	}})
	if err != nil {
		return err
	}
	var all []string
	effects := map[string]int{}
	for id, effect := range ids {
		all = append(all, id)
		effects[effect]++
	}
	if len(effects) != 3 {
		return fmt.Errorf("what was decided is of one kind only: %v", effects)
	}
	t.env = append(t.env, "ALL="+strings.Join(all, " "))
	return t.tell(ctx, beat{say: fmt.Sprintf("every one of the %d requests, as a case: beside the same policies they pass", len(all)),
		run:  `cp -r policies cases && chaperone policy export $ALL --recordings data/recordings > cases/tests.yaml && chaperone policy test cases`,
		want: []string{fmt.Sprintf("cases: %d passed, 0 failed", len(all))}})
}
