package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// withJudge is a gateway with the real judge, which lets through what policy does.
func withJudge(t *testing.T, version string) *gateway {
	t.Helper()
	analyzer := realAnalyzer(t)
	return start(t, version, func(g *gateway, _ *Config, _ *Deps) {
		g.setResource("orders", func(r *Resource) { r.Analyzer = analyzer })
	})
}

// told waits for the client's next notification.
func told(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n, err := conn.WaitForNotification(ctx)
	if err != nil {
		return err.Error()
	}
	return n.Channel + " " + n.Payload
}

func must(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, text := range statements {
		if _, err := conn.Exec(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
}

// TestListen: notifications come while the client waits for nothing, those of
// channels that policy gives it alone, recorded; the session goes on between them.
func TestListen(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := withJudge(t, version)
			g.policy.set(func(r access.Request) access.Decision {
				if c := r.Action.SQL.Channels; len(c) > 0 && c[0] == "private" {
					return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "nothing allows it", Revision: "r1"}
				}
				return allowed(access.Obligations{})
			})
			conn := g.connect(t, pgx.QueryExecModeExec)
			other := g.connect(t, pgx.QueryExecModeSimpleProtocol)
			if _, err := conn.Exec(t.Context(), "listen private"); err == nil {
				t.Error("a channel that policy denies is listened to")
			}
			must(t, conn, "listen jobs", `listen "Odd one"`)
			owner, err := pgx.Connect(t.Context(), g.pg.DSN("postgres", g.pg.Password, "orders"))
			if err != nil {
				t.Fatal(err)
			}
			defer owner.Close(context.Background())
			for i := range 3 {
				must(t, owner, "notify private, 'secret'", fmt.Sprintf("notify jobs, 'straight %d'", i))
				if got := told(t, conn); got != fmt.Sprintf("jobs straight %d", i) {
					t.Errorf("told %q", got)
				}
				if got, err := one(t, conn, "select 'between'"); err != nil || got != "between" {
					t.Errorf("%q %v", got, err)
				}
			}
			must(t, other, `notify "Odd one", 'through'`)
			if got := told(t, conn); got != "Odd one through" {
				t.Errorf("told %q", got)
			}
			must(t, conn, "begin", "notify jobs, 'own'", "commit")
			if got := told(t, conn); got != "jobs own" {
				t.Errorf("told %q", got)
			}
			must(t, conn, "unlisten jobs")
			must(t, owner, "notify jobs, 'nobody listens'", `notify "Odd one", 'last'`)
			if got := told(t, conn); got != "Odd one last" {
				t.Errorf("after UNLISTEN: %q", got)
			}
			must(t, conn, "discard all")
			must(t, owner, `notify "Odd one", 'discarded'`)
			short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if n, err := conn.WaitForNotification(short); err == nil {
				t.Errorf("after DISCARD ALL: %+v", n)
			}
			seen := 0
			for _, e := range g.recorder.all() {
				if e.Notice != nil && e.Notice.Severity == aNotification {
					seen++
				}
			}
			if seen != 6 {
				t.Errorf("%d notifications are recorded", seen)
			}
		})
	}
}

// TestListenEnds: a kill, the target's end and the client's reach a session that
// only listens.
func TestListenEnds(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	for name, end := range map[string]func(name string){
		"killed": func(string) { g.registry.kill() },
		"target": func(string) {
			g.straight(t, "select count(pg_terminate_backend(pid))::text from pg_stat_activity where query = 'listen target'")
		},
	} {
		w := g.wire(t)
		w.send(&pgproto3.Query{String: "listen " + name})
		w.until(1)
		end(name)
		if e, ok := w.receive().(*pgproto3.ErrorResponse); !ok || e.Severity != "FATAL" {
			t.Errorf("%s: %+v", name, e)
		}
		if _, err := w.Receive(); err == nil {
			t.Errorf("%s: the socket stays open", name)
		}
	}
	w := g.wire(t)
	w.send(&pgproto3.Query{String: "listen left"})
	w.until(1)
	closed := len(g.registry.causes())
	w.conn.Close()
	eventually(t, "the session ends", func() bool { return len(g.registry.causes()) > closed })
}

// TestNotificationIsMasked: where columns are masked, a trigger could put one
// into a payload.
func TestNotificationIsMasked(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	ssn := access.Mask{Column: "public.customers.ssn", With: access.Redact}
	g.policy.setMasks(ssn)
	g.policy.set(func(access.Request) access.Decision { return allowed(access.Obligations{Masks: []access.Mask{ssn}}) })
	conn := g.connect(t, pgx.QueryExecModeExec)
	must(t, conn, "listen leak")
	g.straight(t, "select pg_notify('leak', ssn)::text from customers where id = 1")
	if got := told(t, conn); got != "leak ***" {
		t.Errorf("told %q", got)
	}
	if _, err := conn.Exec(t.Context(), "notify leak, '***'"); err == nil {
		t.Error("a mask comes back")
	}
	control, err := pgx.Connect(t.Context(), g.pg.DSN("app", rolePassword, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close(context.Background())
	must(t, control, "listen leak")
	g.straight(t, "select pg_notify('leak', ssn)::text from customers where id = 1")
	if got := told(t, control); !strings.HasPrefix(got, "leak 123-45-") {
		t.Errorf("the control: %q", got)
	}
}

// TestAdvisoryLocks: they lock between sessions, by the gateway and past it.
func TestAdvisoryLocks(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	g.policy.set(func(r access.Request) access.Decision {
		if !r.Action.SQL.ReadOnly && !r.Action.SQL.Locks && !r.Action.SQL.Session || len(r.Action.SQL.Unknown) > 0 {
			return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "nothing allows it", Revision: "r1"}
		}
		return allowed(access.Obligations{})
	})
	holder, waiter := g.connect(t, pgx.QueryExecModeExec), g.connect(t, pgx.QueryExecModeExec)
	must(t, holder, "select pg_advisory_lock(4711)", "select pg_catalog.pg_advisory_lock_shared(1, 2)")
	try := func(conn *pgx.Conn) string {
		got, err := one(t, conn, "select pg_try_advisory_lock(4711)::text")
		if err != nil {
			return err.Error()
		}
		return got
	}
	if got := try(waiter); got != "false" {
		t.Errorf("a lock that is held is got: %s", got)
	}
	must(t, holder, "select pg_advisory_unlock(4711)")
	if got := try(waiter); got != "true" {
		t.Errorf("a free lock is not got: %s", got)
	}
	must(t, waiter, "discard all")
	if got := try(holder); got != "true" {
		t.Errorf("after DISCARD ALL: %s", got)
	}
}

// TestMixedIsRefusedByName: what SQL made and what the protocol made.
func TestMixedIsRefusedByName(t *testing.T) {
	t.Parallel()
	w := withJudge(t, "18").wire(t)
	fails := func(want string, messages ...pgproto3.FrontendMessage) {
		t.Helper()
		w.send(messages...)
		found := ""
		for {
			switch m := w.receive().(type) {
			case *pgproto3.ErrorResponse:
				found = m.Code + " " + m.Message
			case *pgproto3.ReadyForQuery:
				if !strings.HasPrefix(found, "0A000 ") || !strings.Contains(found, want) {
					t.Errorf("got %q, want %q", found, want)
				}
				return
			}
		}
	}
	sync := &pgproto3.Sync{}
	w.send(&pgproto3.Parse{Name: "proto", Query: "select 1"}, sync)
	w.until(1)
	fails("EXECUTE cannot run it", &pgproto3.Query{String: "execute proto"})
	w.send(&pgproto3.Query{String: "prepare inside as select 1"})
	w.until(1)
	fails("the protocol cannot bind or describe it", &pgproto3.Bind{PreparedStatement: "inside"}, sync)
	fails("the protocol cannot bind or describe it", &pgproto3.Describe{ObjectType: 'S', Name: "inside"}, sync)
	w.send(&pgproto3.Query{String: "begin"})
	w.until(1)
	w.send(&pgproto3.Query{String: "declare cur cursor for select 1"})
	w.until(1)
	fails("Execute cannot run it", &pgproto3.Execute{Portal: "cur"}, sync)
	w.send(&pgproto3.Query{String: "rollback"})
	w.until(1)
	w.send(&pgproto3.Query{String: "begin"})
	w.until(1)
	w.send(&pgproto3.Bind{DestinationPortal: "port", PreparedStatement: "proto"}, sync)
	w.until(1)
	fails("SQL cannot fetch from it", &pgproto3.Query{String: "fetch port"})
	w.send(&pgproto3.Query{String: "rollback"})
	w.until(1)
	fails("FunctionCall messages", &pgproto3.FunctionCall{Function: 1})
}
