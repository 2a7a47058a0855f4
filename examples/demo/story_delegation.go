package demo

import (
	"context"
	"errors"

	"chaperone.dev/chaperone/internal/console"
)

// delegated hands a part of Ada's rights to another program, and takes it back.
func (t *teller) delegated(ctx context.Context) error {
	const handed = "$(cat tokens/handed)"
	psqlWith := func(statement string) string {
		return `PGPASSWORD=` + handed + ` psql "$ORDERS" -c "` + statement + `"`
	}
	err := t.tell(ctx,
		beat{say: "Ada hands a part of her rights to the reporter, which proves itself with a token of its own",
			run: "CHAPERONE_TOKEN=$ADASELF chaperone token --actor-token-file tokens/reporter --resource orders --read-only --table public.orders > tokens/handed"},
		beat{say: "what the gateway tells the reporter that it may reach",
			run: `curl -sS --cacert $CA -H "Authorization: Bearer ` + handed + `" $GW/.well-known/chaperone`, want: []string{Ada, `"name":"orders"`, "read only"}, not: []string{`"name":"billing"`}},
		beat{run: psqlWith("select count(*) from orders"), want: []string{"120"}},
		beat{say: "Ada herself may read customers; that was not handed on",
			run: psqlWith("select name from customers where id = 1"), fails: true, want: []string{"was not delegated to agent (hop 1 of 1)", "rule delegation/hop-1", "requestable no"}},
		beat{run: `PGPASSWORD=$ADASELF psql "$ORDERS" -c "select name from customers where id = 1"`, want: []string{customers(40)[0].Name}},
		beat{say: "nor can it be widened again",
			run: "CHAPERONE_TOKEN=" + handed + " chaperone token --resource billing", fails: true, want: []string{"invalid_target"}},
	)
	if err != nil {
		return err
	}
	var chain console.SessionSummary
	id, err := t.session(ctx, func(s console.SessionSummary) bool {
		if len(s.Principal.Chain) > 0 {
			chain = s
		}
		return len(s.Principal.Chain) > 0
	})
	if err != nil {
		return err
	}
	parent := chain.Principal.Chain[0].Parent
	if parent == "" {
		return errors.New("the hop does not name its parent")
	}
	return t.tell(ctx,
		beat{say: "the recording shows the chain", run: as("SOFIA", "sessions show "+id), want: []string{Ada, "hop 1: to agent", parent, "only: read only; resources orders; tables public.orders"}},
		beat{say: "Ada's token is revoked, and with it all that was exchanged from it",
			run: as("ALAN", "sessions kill --token "+parent+` --cause "lost laptop"`), want: []string{"sessions ended"}},
		beat{run: psqlWith("select 1"), fails: true, want: []string{"reason unauthenticated"}},
	)
}
