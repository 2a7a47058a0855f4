package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console"
)

var requestID = regexp.MustCompile(`NOTICE:[^\n]*(req_[a-z0-9]+)`)

func as(who, command string) string { return `CHAPERONE_TOKEN=$` + who + ` chaperone ` + command }

// list runs a command with -o json and decodes its answer.
func (t *teller) list(ctx context.Context, who, command string, v any) error {
	out, err := t.shell(ctx, as(who, command+" -o json"))
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return json.Unmarshal([]byte(out), v)
}

// session waits for the newest session that wanted accepts.
func (t *teller) session(ctx context.Context, wanted func(console.SessionSummary) bool) (id string, err error) {
	return id, Eventually(ctx, startWithin, func() error {
		var all []console.SessionSummary
		if err := t.list(ctx, "SOFIA", "sessions list", &all); err != nil {
			return err
		}
		for _, s := range all {
			if wanted(s) {
				id = s.ID
			}
		}
		if id == "" {
			return fmt.Errorf("none of %d sessions is the one", len(all))
		}
		return nil
	})
}

func (t *teller) recorded(ctx context.Context) error {
	sql, err := t.session(ctx, func(s console.SessionSummary) bool {
		return s.Resource.Name == "orders" && s.Denied > 0 && s.Requests > 1
	})
	if err != nil {
		return err
	}
	http, err := t.session(ctx, func(s console.SessionSummary) bool { return s.Resource.Name == "billing" && s.Requests > 0 })
	if err != nil {
		return err
	}
	p := customers(40)[0]
	secrets := []string{p.SSN, p.Card, t.DBPassword, t.APIKey}
	err = t.tell(ctx,
		beat{run: as("SOFIA", "sessions list"), want: []string{Ada, "agent", "nightly-report", "orders", "billing"}, not: secrets},
		beat{run: as("SOFIA", "sessions show "+sql), want: []string{"drop table orders", "orders-agents/no-schema-changes", "120"}, not: secrets},
		beat{run: as("SOFIA", "sessions replay --speed 0 "+http), want: []string{"/customers/1", "***"}, not: secrets},
		beat{say: "a subagent's token reads no recording", run: as("ADA", "sessions show "+sql), fails: true, want: []string{"auditor"}},
	)
	if err != nil {
		return err
	}
	return t.nothingOnDisk(secrets)
}

// nothingOnDisk searches the recordings themselves.
func (t *teller) nothingOnDisk(secrets []string) error {
	return filepath.WalkDir(t.path("data"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, secret := range secrets {
			if strings.Contains(string(b), secret) {
				return fmt.Errorf("%s holds a secret", path)
			}
		}
		return err
	})
}

// value asks the database itself, past the gateway.
func (t *teller) value(ctx context.Context, query string) (v string, err error) {
	conn, err := pgx.Connect(ctx, t.Database.DSN("postgres", t.Database.Password, "orders"))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	return v, conn.QueryRow(ctx, query).Scan(&v)
}

func (t *teller) expectValue(ctx context.Context, query, want string) error {
	got, err := t.value(ctx, query)
	if err == nil && got != want {
		err = fmt.Errorf("%s: the database says %q, want %q", query, got, want)
	}
	return err
}

func (t *teller) held(ctx context.Context) error {
	update := psql("ADA", "update orders set status = 'fixed' where id = 7")
	p, id, err := t.begin(ctx, "an update by Ada's agent: the NOTICE comes at once", update, requestID)
	if err != nil {
		return err
	}
	approve := "approvals approve " + id[1]
	err = t.tell(ctx,
		beat{run: as("GRACE", "approvals show "+id[1]), want: []string{"update orders set status = 'fixed' where id = 7", Ada, "agent", "nightly-report", "public.orders", "pending"}},
		beat{say: "the subagent itself cannot approve, nor can just anybody", run: as("ADA", approve), fails: true, want: []string{"reviewer"}},
		beat{run: as("TOMSELF", approve), fails: true, want: []string{"reviewer"}},
	)
	if err != nil {
		return err
	}
	if err := t.expectValue(ctx, "select count(*)::text from orders where id = 7 and status = 'fixed'", "0"); err != nil {
		return err
	}
	if err := t.hookTold(ctx, id[1]); err != nil {
		return err
	}
	if err := t.tell(ctx, beat{say: "Grace, a senior engineer, can", run: as("GRACE", approve), want: []string{id[1], "granted"}}); err != nil {
		return err
	}
	if err := t.end(ctx, p, beat{say: "and psql goes on", want: []string{"UPDATE 1"}}); err != nil {
		return err
	}
	if err := t.expectValue(ctx, "select status from orders where id = 7", "fixed"); err != nil {
		return err
	}
	return t.heldAgain(ctx, update)
}

func (t *teller) hookTold(ctx context.Context, id string) error {
	t.say("the webhook listener has been told, with a signature:")
	return Eventually(ctx, startWithin, func() error {
		messages, forged := t.Hook.Messages()
		if forged > 0 {
			return errors.New("a message had a wrong signature")
		}
		for _, m := range messages {
			if strings.Contains(m, id) {
				t.answer(m)
				return nil
			}
		}
		return errors.New("the webhook was not told")
	})
}

func (t *teller) heldAgain(ctx context.Context, update string) error {
	p, id, err := t.begin(ctx, "the same statement again asks again; this time Ctrl-C", update, requestID)
	if err != nil {
		return err
	}
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	if err := t.end(ctx, p, beat{say: "psql says", fails: true, want: []string{"ERROR"}}); err != nil {
		return err
	}
	err = t.tell(ctx, beat{say: "who leaves has abandoned the request: an approval now runs nothing",
		run: as("GRACE", "approvals approve "+id[1]), fails: true, want: []string{"abandoned"}})
	if err != nil {
		return err
	}
	other, id, err := t.begin(ctx, "Rhea works at the order desk and is a senior engineer too", psql("RHEA", "update orders set status = 'free' where id = 8"), requestID)
	if err != nil {
		return err
	}
	err = t.tell(ctx,
		beat{say: "she cannot approve what her own agent asks", run: as("RHEASELF", "approvals approve "+id[1]), fails: true, want: []string{"denied"}},
		beat{run: as("GRACE", "approvals refuse "+id[1]+` --comment "not without a ticket"`), want: []string{"refused"}},
	)
	if err != nil {
		return err
	}
	if err := t.end(ctx, other, beat{say: "psql says", fails: true, want: []string{"ERROR", "reason approval-refused"}}); err != nil {
		return err
	}
	if err := t.expectValue(ctx, "select count(*)::text from orders where status = 'free'", "0"); err != nil {
		return err
	}
	return t.tell(ctx, beat{say: "inside an open transaction it is refused: its locks would be held too",
		run:   `PGPASSWORD=$ADA psql "$ORDERS" -v ON_ERROR_STOP=1 -c begin -c "update orders set status = 'fixed' where id = 9"`,
		fails: true, want: []string{"ERROR", "transaction"}})
}

// pending waits for the one approval that is pending for a resource and returns
// its id.
func (t *teller) pending(ctx context.Context, resource string) (id string, err error) {
	return id, Eventually(ctx, startWithin, func() error {
		var all []console.ApprovalSummary
		if err := t.list(ctx, "GRACE", "approvals list --state "+string(access.Pending), &all); err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(a console.ApprovalSummary) bool { return a.Resource != resource })
		if len(all) != 1 {
			return fmt.Errorf("%d approvals for %s are pending", len(all), resource)
		}
		id = all[0].ID
		return nil
	})
}

var anything = regexp.MustCompile("")

func (t *teller) heldHTTP(ctx context.Context) error {
	refund := func(more, body string) string {
		return curl("ADA", more+` -d '`+body+`' -H 'Content-Type: application/json' $GW/http/billing/refunds`)
	}
	p, _, err := t.begin(ctx, "a refund waits; HTTP can show nothing meanwhile", refund("", `{"order": 7}`), anything)
	if err != nil {
		return err
	}
	id, err := t.pending(ctx, "billing")
	if err != nil {
		return err
	}
	err = t.tell(ctx,
		beat{run: as("GRACE", "approvals show "+id), want: []string{"POST /refunds", `"order": 7`, Ada}},
		beat{run: as("GRACE", "approvals approve "+id), want: []string{"granted"}},
	)
	if err != nil {
		return err
	}
	if err := t.end(ctx, p, beat{say: "and curl goes on", want: []string{"POST /refunds"}}); err != nil {
		return err
	}
	async := refund("-i -H 'Prefer: respond-async'", `{"order": 9}`)
	if err := t.tell(ctx, beat{say: "or it takes a request id and comes back later", run: async, want: []string{"202", "req_"}, not: []string{"POST /refunds"}}); err != nil {
		return err
	}
	if id, err = t.pending(ctx, "billing"); err != nil {
		return err
	}
	return t.tell(ctx,
		beat{run: as("GRACE", "approvals approve "+id), want: []string{"granted"}},
		beat{say: "another body is another request", run: refund("-i -H 'Prefer: respond-async'", `{"order": 10}`), want: []string{"202"}, not: []string{"POST /refunds"}},
		beat{say: "the same request passes, once", run: async, want: []string{"200", "POST /refunds"}},
		beat{run: async, want: []string{"202"}, not: []string{"POST /refunds"}},
		beat{say: "a body that is too large to judge is refused", run: `head -c 2000000 /dev/zero | tr '\0' 'x' | ` + curl("ADA", "-i --http1.1 --data-binary @- $GW/http/billing/refunds"), want: []string{"413"}},
	)
}

func (t *teller) cut(ctx context.Context) error {
	const sleeping = "select count(*)::text from pg_stat_activity where state = 'active' and query like '%pg_sleep%' and pid <> pg_backend_pid()"
	p, _, err := t.begin(ctx, "a statement that runs for a minute", psql("ADA", "select pg_sleep(60)"), anything)
	if err != nil {
		return err
	}
	if err := Eventually(ctx, startWithin, func() error { return t.expectValue(ctx, sleeping, "1") }); err != nil {
		return err
	}
	id, err := t.session(ctx, func(s console.SessionSummary) bool { return s.Live && s.Resource.Name == "orders" })
	if err != nil {
		return err
	}
	if err := t.tell(ctx, beat{run: as("ALAN", "sessions kill "+id+` --cause "it went wild"`), want: []string{"sessions ended: 1"}}); err != nil {
		return err
	}
	if err := t.end(ctx, p, beat{say: "psql says", fails: true, want: []string{"FATAL"}}); err != nil {
		return err
	}
	t.say("and at the database nothing sleeps any more")
	if err := Eventually(ctx, startWithin, func() error { return t.expectValue(ctx, sleeping, "0") }); err != nil {
		return err
	}
	held, reqID, err := t.begin(ctx, "a held statement is ended too", psql("ADA", "update orders set status = 'late' where id = 11"), requestID)
	if err != nil {
		return err
	}
	err = t.tell(ctx, beat{run: as("ALAN", "sessions kill --user "+Ada+` --cause "leave of absence"`), want: []string{"sessions ended"}})
	if err != nil {
		return err
	}
	if err := t.end(ctx, held, beat{say: "psql says", fails: true, want: []string{"FATAL"}}); err != nil {
		return err
	}
	err = t.tell(ctx, beat{run: as("GRACE", "approvals approve "+reqID[1]), fails: true, want: []string{"abandoned"}},
		beat{say: "the tokens that her agents had are refused from now on", run: psql("ADA", "select 1"), fails: true, want: []string{"reason unauthenticated"}})
	if err != nil {
		return err
	}
	t.say("she is back: a token that she gets now is a new one")
	return Eventually(ctx, startWithin, func() error { // tokens count in whole seconds
		if err := t.tokens(ctx); err != nil {
			return err
		}
		if out, err := t.shell(ctx, psql("ADA", "select 1")); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// A shell is a psql that stays open.
type openPsql struct {
	*running
	stdin io.WriteCloser
}

// open starts a psql that reads statements as they come.
func (t *teller) open(ctx context.Context) (*openPsql, error) {
	r := &running{done: make(chan error, 1)}
	r.cmd = t.shellCommand(ctx, `PGPASSWORD=$ADA exec psql "$ORDERS" -At`)
	r.cmd.Stdout, r.cmd.Stderr = r, r
	stdin, err := r.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { r.done <- r.cmd.Wait() }()
	return &openPsql{r, stdin}, nil
}

// ask sends one statement and waits until the output since then holds want.
func (t *teller) ask(ctx context.Context, p *openPsql, statement, want string) error {
	before := len(p.Output())
	t.command("(the open psql) " + statement)
	if _, err := io.WriteString(p.stdin, statement+"\n"); err != nil {
		return err
	}
	err := Eventually(ctx, startWithin, func() error {
		if got := p.Output()[before:]; !strings.Contains(got, want) {
			return fmt.Errorf("%s: answered %q, want %q", statement, got, want)
		}
		return nil
	})
	t.answer(p.Output()[before:])
	return err
}
