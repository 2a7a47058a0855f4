package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// edit changes a policy file and waits until the gateway's log says what became
// of it.
func (t *teller) edit(ctx context.Context, name, text, logged string) error {
	before := len(t.Gateway.Log())
	if err := os.WriteFile(t.path("policies", name), []byte(text), 0o644); err != nil {
		return err
	}
	return Eventually(ctx, startWithin, func() error {
		if !strings.Contains(t.Gateway.Log()[before:], logged) {
			return fmt.Errorf("after an edit of %s the log does not say %q", name, logged)
		}
		return nil
	})
}

func (t *teller) reload(ctx context.Context) error {
	const name = "orders-agents.yaml"
	original, err := os.ReadFile(t.path("policies", name))
	if err != nil {
		return err
	}
	p, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer p.stdin.Close()
	if err := t.ask(ctx, p, "select count(*) from orders;", "120"); err != nil {
		return err
	}
	t.say("somebody takes public.orders out of the policy's list of tables")
	narrowed := strings.Replace(string(original), `["public.orders", "public.customers"]`, `["public.customers"]`, 1)
	if err := t.edit(ctx, name, narrowed, "revision serves"); err != nil {
		return err
	}
	if err := t.ask(ctx, p, "select count(*) from orders;", "reason no-rule"); err != nil {
		return err
	}
	t.say("a broken edit is refused, with file, line and column, and the old policy keeps serving")
	if err := t.edit(ctx, name, strings.Replace(string(original), "sql.read_only", "sql.read_olny", 1), name+":7:"); err != nil {
		return err
	}
	t.answer(lastWith(t.Gateway.Log(), name+":7:"))
	if err := t.ask(ctx, p, "select count(*) from customers;", "40"); err != nil {
		return err
	}
	if err := t.edit(ctx, name, string(original), "revision serves"); err != nil {
		return err
	}
	return t.ask(ctx, p, "select count(*) from orders;", "120")
}

func lastWith(text, part string) (found string) {
	for line := range strings.SplitSeq(text, "\n") {
		if strings.Contains(line, part) {
			found = line
		}
	}
	return found
}

func (t *teller) crash(ctx context.Context) error {
	p := customers(40)[0]
	for _, name := range []string{"serve", "envoy"} {
		open, err := t.open(ctx)
		if err != nil {
			return err
		}
		if err := t.ask(ctx, open, "select ssn from customers where id = 1;", "***"); err != nil {
			return err
		}
		t.say("kill -9 of " + name)
		if err := t.Gateway.Kill9(name); err != nil {
			return err
		}
		if err := t.ask(ctx, open, "select ssn from customers where id = 1;", "connection"); err != nil {
			return err
		}
		_ = open.stdin.Close() // psql may have left
		<-open.done
		if err := t.recovers(ctx, p); err != nil {
			return err
		}
		if out := open.Output(); strings.Contains(out, p.SSN) {
			return errors.New("the open psql saw an unmasked value")
		}
	}
	if err := t.tell(ctx,
		beat{say: "both are back, unaided", run: psql("ADA", "select ssn from customers where id = 1"), want: []string{"***"}, not: []string{p.SSN}},
		beat{run: curl("ADA", "$GW/http/billing/customers/1"), want: []string{`"ssn":"***"`}, not: []string{p.SSN}},
		beat{say: "the recording is whole, to the last event before the kill", run: "chaperone evidence verify data/recordings"},
	); err != nil {
		return err
	}
	return t.tamper(ctx)
}

// recovers asks psql and curl until both work; every answer meanwhile must be
// an error or masked.
func (t *teller) recovers(ctx context.Context, p customer) error {
	for _, command := range []string{psql("ADA", "select ssn from customers where id = 1"), curl("ADA", "-f $GW/http/billing/customers/1")} {
		leaked := false
		err := Eventually(ctx, startWithin, func() error {
			out, err := t.shell(ctx, command)
			if strings.Contains(out, p.SSN) {
				leaked = true
				return nil
			}
			if err == nil && !strings.Contains(out, "***") {
				err = errors.New("an answer without a mask")
			}
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		})
		if leaked {
			return errors.New("an unmasked value passed while the gateway was down")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tamper changes one byte in a copy of the recording.
func (t *teller) tamper(ctx context.Context) error {
	copied := t.path("data", "tampered")
	if err := os.CopyFS(copied, os.DirFS(t.path("data", "recordings"))); err != nil {
		return err
	}
	defer os.RemoveAll(copied)
	changed := false
	err := filepath.WalkDir(copied, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || changed {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := strings.Index(string(b), "drop table orders")
		if at < 0 {
			return nil
		}
		b[at] = 'c'
		changed = true
		return os.WriteFile(path, b, 0o600)
	})
	if err == nil && !changed {
		err = errors.New("the recording does not hold the DROP")
	}
	if err != nil {
		return err
	}
	return t.tell(ctx, beat{say: "with one byte of a copy changed (drop became crop), the first bad event is named",
		run: "chaperone evidence verify data/tampered", fails: true, want: []string{"event", "was changed"}})
}
