package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/localserver"
)

// A chapter is one thing that the gateway does.
type chapter struct {
	title string
	tell  func(context.Context) error
}

const (
	hostsTitle      = "Hosts, with the ordinary ssh"
	kubernetesTitle = "Kubernetes, with the ordinary kubectl"
)

// chapters are the story in order.
func (t *teller) chapters() []chapter {
	all := []chapter{
		{"Without a valid token nothing opens", t.noToken},
		{"What is allowed is answered, and masked", t.masked},
		{"What is not allowed never reaches the database", t.refused},
		{"The same over HTTP", t.http},
		{"The subagent never had a credential", t.noCredential},
		{"Who did what, for whom: recorded and replayed", t.recorded},
		{"A high-impact statement waits for a reviewer", t.held},
		{"So does a high-impact HTTP call", t.heldHTTP},
		{"A token is handed on, reaches less, and is taken back", t.delegated},
		{hostsTitle, t.hosts},
		{kubernetesTitle, t.kubernetes},
		{"A session can be cut", t.cut},
		{"A proposed policy is tried on what was recorded", t.replayed},
		{"A policy edit takes effect at once, and a broken one does not", t.reload},
		{"A crash opens nothing and loses nothing", t.crash},
	}
	if t.Host == nil {
		all = slices.DeleteFunc(all, func(c chapter) bool { return c.title == hostsTitle })
	}
	if t.Cluster == nil {
		all = slices.DeleteFunc(all, func(c chapter) bool { return c.title == kubernetesTitle })
	}
	return all
}

// bin is a folder with psql and chaperone by their ordinary names.
func (t *teller) bin() string { return t.path("run", "bin") }

func (t *teller) links(ctx context.Context) error {
	if err := os.MkdirAll(t.bin(), 0o755); err != nil {
		return err
	}
	binary, err := filepath.Abs(t.options.Binary)
	if err != nil {
		return err
	}
	if t.Cluster != nil {
		kubectl, err := localserver.Tool("kubectl")
		if err := errors.Join(err, os.Symlink(kubectl, filepath.Join(t.bin(), "kubectl"))); err != nil {
			return err
		}
	}
	var psql string
	psql, t.tls = t.psqlOf(ctx)
	return errors.Join(os.Symlink(psql, filepath.Join(t.bin(), "psql")), os.Symlink(binary, filepath.Join(t.bin(), "chaperone")),
		// \bind needs psql 16, which the PostgreSQL in use has, perhaps without TLS.
		os.Symlink(filepath.Join(t.Database.Bin, "psql"), filepath.Join(t.bin(), "psql-new")))
}

func psql(token, statement string) string {
	return `PGPASSWORD=$` + token + ` psql "$ORDERS" -c "` + statement + `"`
}

func curl(token, args string) string {
	return `curl -sS --cacert $CA -H "Authorization: Bearer $` + token + `" ` + args
}

func (t *teller) noToken(ctx context.Context) error {
	t.say("an expired token: it was good for " + t.options.ShortLifetime.String() + ", and its provider allows no skew")
	if err := t.waitUntilExpired(ctx); err != nil {
		return err
	}
	uniform := []string{"FATAL", "reason unauthenticated", "request req_"}
	problem := []string{`"status":401`, `"reason":"unauthenticated"`, `"request_id":"req_`, "application/problem+json"}
	before := len(t.Billing.Seen())
	err := t.tell(ctx,
		beat{say: "psql sends nothing for an empty password, so it sends a word that is no token",
			run: `PGPASSWORD=none psql "$ORDERS" -c "select 1"`, fails: true, want: uniform},
		beat{run: psql("EXPIRED", "select 1"), fails: true, want: uniform},
		beat{say: "a token for another audience", run: psql("OTHER", "select 1"), fails: true, want: uniform},
		beat{run: `curl -sS -i --cacert $CA $GW/http/billing/customers/1`, want: problem},
		beat{run: curl("EXPIRED", "-i $GW/http/billing/customers/1"), want: problem},
		beat{run: curl("OTHER", "-i $GW/http/billing/customers/1"), want: problem},
	)
	if err != nil {
		return err
	}
	if len(t.Billing.Seen()) != before {
		return errors.New("a refused call reached the service")
	}
	t.say("the caller learns no more than that; the reason is in chaperone's own log:")
	for _, reason := range []string{"expired", "audience"} {
		line := ""
		for l := range strings.SplitSeq(t.Gateway.Log(), "\n") {
			if strings.Contains(l, reason) && strings.Contains(l, "req_") {
				line = l
			}
		}
		if line == "" {
			return fmt.Errorf("the log does not say %q", reason)
		}
		t.answer(line)
	}
	return nil
}

func (t *teller) waitUntilExpired(ctx context.Context) error {
	return Eventually(ctx, startWithin, func() error {
		token, err := os.ReadFile(t.path("tokens", "expired"))
		if err != nil {
			return err
		}
		expiry, err := expiryOf(string(token))
		if err != nil {
			return err
		}
		if left := time.Until(expiry); left > 0 {
			return fmt.Errorf("still valid for %s", left)
		}
		return nil
	})
}

func (t *teller) masked(ctx context.Context) error {
	p := customers(40)[0]
	secrets := []string{p.SSN, p.Card, p.SSN[:3] + "-"}
	seen := func(say, statement string, want ...string) beat {
		return beat{say: say, run: psql("ADA", statement), want: append([]string{"***"}, want...), not: secrets}
	}
	return t.tell(ctx,
		seen("", "select * from customers where id <= 3 order by id", p.Name),
		seen("by another name", "select ssn as x from customers where id = 1"),
		seen("through an alias", "select * from customers c where c.id = 1", p.Email),
		seen("as a whole row", "select c::text from customers c where id = 1", p.Name),
		seen("as JSON", "select row_to_json(c) from customers c where id = 1", p.Name),
		seen("computed upon", "select ssn || '' from customers where id = 1"),
		beat{say: "described before it runs", run: `printf '%s' 'select ssn, card from customers \gdesc' | PGPASSWORD=$ADA psql "$ORDERS"`, want: []string{"ssn", "text"}, not: secrets},
		beat{say: "a statement prepared by the protocol, with a bound value",
			run: `printf '%s' 'select name, ssn from customers where id = $1 \bind 1 \g' | PGPASSWORD=$ADA psql-new "$PLAIN"`, want: []string{p.Name, "***"}, not: secrets},
		beat{say: "asking about the hidden value is refused, with the reason",
			run: psql("ADA", "select id from customers where ssn like '1%'"), fails: true, want: []string{"ERROR", "ssn", "reason masked-field", "HINT"}, not: secrets},
	)
}

func (t *teller) refused(ctx context.Context) error {
	err := t.tell(ctx,
		beat{say: "a DROP, and on the same connection the next SELECT",
			run:  `PGPASSWORD=$ADA psql "$ORDERS" -c "drop table orders" -c "select count(*) from orders"`,
			want: []string{"ERROR", "DETAIL", "HINT", "orders-agents/no-schema-changes", "120"}},
		beat{say: "two statements in one message are judged one by one", run: psql("ADA", "select 1 as one; select 2 as two"), want: []string{"one", "two"}},
		beat{run: psql("ADA", "copy orders to program 'true'"), fails: true, want: []string{"ERROR", "COPY"}},
		beat{run: psql("ADA", `do \$\$ begin null; end \$\$`), fails: true, want: []string{"ERROR", "DO"}},
	)
	if err != nil {
		return err
	}
	t.say("what the database's own statement log has of it:")
	if t.command("grep -ci 'drop table' pg/postgres.log"); strings.Contains(strings.ToLower(t.Database.Log()), "drop table") {
		return errors.New("a DROP reached the database")
	}
	t.answer("0")
	return nil
}

func (t *teller) http(ctx context.Context) error {
	p := customers(40)[0]
	err := t.tell(ctx,
		beat{run: curl("ADA", "$GW/http/billing/customers/1"), want: []string{p.Name, `"ssn":"***"`, p.Card[12:], "129.9", "prefers e-mail"}, not: []string{p.SSN, p.Card}},
		beat{run: curl("ADA", "-i -X DELETE $GW/http/billing/customers/1"),
			want: []string{"403", "application/problem+json", `"rule":"billing-agents/no-deletes"`, `"requestable":false`, `"request_id":"req_`}},
	)
	if err != nil {
		return err
	}
	for _, call := range t.Billing.Seen() {
		if strings.HasPrefix(call, "DELETE") {
			return errors.New("the DELETE reached the service")
		}
	}
	t.say("what the service saw: " + strings.Join(t.Billing.Seen(), ", "))
	return nil
}

func (t *teller) noCredential(ctx context.Context) error {
	err := t.tell(ctx,
		beat{say: "the token, straight at the database", run: `PGPASSWORD=$ADA psql "host=$DIRECT dbname=orders user=` + appRole + `" -c "select 1"`, fails: true, want: []string{"password authentication failed"}},
		beat{say: "the token, straight at the service", run: `curl -sS -i -H "Authorization: Bearer $ADA" $BILLING/customers/1`, want: []string{"401"}},
	)
	if err != nil {
		return err
	}
	for what, secret := range map[string]string{"the database password": t.DBPassword, "the API key": t.APIKey} {
		if strings.Contains(t.clients.String(), secret) {
			return fmt.Errorf("%s is in what the clients received", what)
		}
	}
	t.say("neither the database password nor the API key is in anything the clients received so far")
	return nil
}
