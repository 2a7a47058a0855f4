package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
)

// running counts the statements with a mark that run at the target.
func (g *gateway) running(t testing.TB, mark string) string {
	t.Helper()
	return g.straight(t, "select count(*)::text from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() and query like $1", "%"+mark+"%")
}

func TestKill(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	w.send(&pgproto3.Query{String: "select pg_sleep(60), 'kill-mark'"})
	eventually(t, "it runs", func() bool { return g.running(t, "kill-mark") == "1" })
	begun := time.Now()
	g.registry.kill()
	for {
		msg := w.receive()
		e, ok := msg.(*pgproto3.ErrorResponse)
		if !ok {
			continue
		}
		if e.Severity != "FATAL" || e.Code != sqlstateKilled || e.Message != "killed by operator" || !strings.Contains(e.Detail, "session-ended") {
			t.Errorf("got %+v", e)
		}
		break
	}
	if took := time.Since(begun); took > time.Second { // generous: the machine may be busy
		t.Errorf("the client was told after %v", took)
	}
	if _, err := w.Receive(); err == nil {
		t.Error("the socket stays open")
	}
	eventually(t, "it is cancelled at the target", func() bool { return g.running(t, "kill-mark") == "0" })
	eventually(t, "closed", func() bool { return len(g.registry.causes()) == 1 })
	last := g.recorder.all()[len(g.recorder.all())-1]
	if last.Closed == nil || last.Closed.Cause != "killed by operator" {
		t.Errorf("last event %+v", last)
	}

	t.Run("idle", func(t *testing.T) {
		w := g.wire(t)
		g.registry.kill()
		if got := line(w.receive()); got != "FATAL 57P01" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a disk that is busy", func(t *testing.T) {
		w := g.wire(t)
		g.recorder.onAppend(func(_ access.Durability, evs []access.Event) {
			if evs[0].Denied != nil { // what farewell writes before it tells the client
				<-time.After(2 * killGrace)
			}
		})
		g.registry.kill()
		if got := line(w.receive()); got != "FATAL 57P01" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a client that does not read", func(t *testing.T) {
		w := g.wire(t)
		w.send(&pgproto3.Query{String: "select repeat('x', 100000), 'stalled-mark' from generate_series(1, 100000)"})
		eventually(t, "it runs", func() bool { return g.running(t, "stalled-mark") == "1" })
		begun := time.Now()
		g.registry.kill()
		eventually(t, "closed", func() bool { return len(g.registry.causes()) == 4 })
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("closed after %v", took)
		}
		eventually(t, "gone at the target", func() bool { return g.running(t, "stalled-mark") == "0" })
	})
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	g.stop()
	e, ok := w.receive().(*pgproto3.ErrorResponse)
	if !ok || e.Code != sqlstateKilled || !strings.Contains(e.Message, "shutting down") {
		t.Errorf("got %+v", e)
	}
}

func TestClientLeavesWhileRunning(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	w.send(&pgproto3.Query{String: "select pg_sleep(60), 'left-mark'"})
	eventually(t, "it runs", func() bool { return g.running(t, "left-mark") == "1" })
	w.conn.Close()
	eventually(t, "it is cancelled", func() bool { return g.running(t, "left-mark") == "0" })
	eventually(t, "closed", func() bool { return len(g.registry.causes()) == 1 })
	if got := g.registry.causes(); got[0] != "client left" {
		t.Errorf("cause %q", got)
	}
	// One that says goodbye behind its statement gets the statement run.
	w = g.wire(t)
	w.send(&pgproto3.Query{String: "insert into notes select 5000 from pg_sleep(0.2)"}, &pgproto3.Terminate{})
	eventually(t, "it ran", func() bool { return g.straight(t, "select count(*)::text from notes where id = 5000") == "1" })
}

func TestTargetLost(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.startWire(t, map[string]string{"user": "agent", "database": "orders", "application_name": "victim"})
	w.send(&pgproto3.PasswordMessage{Password: goodToken})
	w.until(1)
	if n := g.straight(t, "select count(pg_terminate_backend(pid))::text from pg_stat_activity where application_name = 'victim'"); n != "1" {
		t.Fatalf("ended %s", n)
	}
	w.send(&pgproto3.Query{String: "select 1"})
	e, ok := w.receive().(*pgproto3.ErrorResponse)
	if !ok || e.Severity != "FATAL" {
		t.Errorf("got %+v", e)
	}
	eventually(t, "closed", func() bool { return len(g.registry.causes()) == 1 })
}

func TestCancel(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.policy.setMasks(access.Mask{Detect: []string{"CREDIT_CARD"}})
	w, other := g.wire(t), g.wire(t)
	w.send(&pgproto3.Query{String: "select pg_sleep(60), 'cancel-mark'"})
	eventually(t, "it runs", func() bool { return g.running(t, "cancel-mark") == "1" })
	secret := binary.BigEndian.Uint32(w.secret)
	g.cancel(t, other.pid, binary.BigEndian.Uint32(other.secret)) // another's own
	g.cancel(t, w.pid, secret+1)                                  // a guess
	g.cancel(t, w.pid+1, secret)
	target := g.straight(t, "select pid::text from pg_stat_activity where query like '%cancel-mark%' and pid <> pg_backend_pid()")
	if fmt.Sprint(w.pid) == target {
		t.Error("the client knows the target's process id")
	}
	if g.running(t, "cancel-mark") != "1" {
		t.Fatal("cancelled with another's key")
	}
	g.cancel(t, w.pid, secret)
	got := w.until(1)
	if len(got) < 2 || got[len(got)-2] != "ERROR 57014" {
		t.Errorf("got %q", got)
	}
	same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
	g.cancel(t, w.pid, secret) // nothing runs: nothing happens
	same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})

	t.Run("pgx", func(t *testing.T) {
		conn := g.connect(t, pgx.QueryExecModeCacheStatement)
		go func() {
			eventually(t, "it runs", func() bool { return g.running(t, "pgx-mark") == "1" })
			conn.PgConn().CancelRequest(context.Background())
		}()
		_, err := conn.Exec(context.Background(), "select pg_sleep(60), 'pgx-mark'")
		if e := pgError(t, err); e.Code != "57014" {
			t.Errorf("got %+v", e)
		}
	})
}

// A change of the target's configuration ends its sessions; a change of labels
// does not.
func TestResourceChanges(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	g.setResource("orders", func(r *Resource) { r.Access.Labels = map[string]string{"env": "test"} })
	same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
	asked := g.policy.asked[len(g.policy.asked)-1]
	if asked.Resource.Labels["env"] != "test" {
		t.Errorf("decided with %v", asked.Resource.Labels)
	}
	g.setResource("orders", func(r *Resource) { r.User = "nosy" })
	w.send(&pgproto3.Query{String: "select 1"})
	if got := line(w.receive()); got != "FATAL 57P01" {
		t.Errorf("got %s", got)
	}
}

// A fault of the judge ends its session, and no other.
func TestPanic(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w, other := g.wire(t), g.wire(t)
	w.send(&pgproto3.Query{String: "panic now"})
	if got := line(w.receive()); got != "FATAL 58000" {
		t.Errorf("got %s", got)
	}
	same(t, other.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
	eventually(t, "closed", func() bool { return len(g.registry.causes()) == 1 })
}

// A result is never in memory as a whole: with a client that does not read, the
// target stops, too.
func TestResultsAreStreamed(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	conn, err := pgconn.Connect(context.Background(), g.dsn(goodToken))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const rows, size = 3000, 100_000
	result := conn.ExecParams(context.Background(), "select repeat('x', 100000) from generate_series(1, 3000)", nil, nil, nil, nil)
	n := 0
	for result.NextRow() {
		n++
		if len(result.Values()[0]) != size {
			t.Fatal("short row")
		}
	}
	if _, err := result.Close(); err != nil || n != rows {
		t.Fatalf("%d rows, %v", n, err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("300 MB of rows left the heap %d bytes larger", grown)
	}
	var kept, omitted int64
	for _, e := range g.recorder.all() {
		if e.Rows != nil {
			omitted += e.Rows.Omitted
			kept += int64(len(e.Rows.Rows))
		}
	}
	if kept > 11 || kept+omitted != rows {
		t.Errorf("recorded %d, omitted %d", kept, omitted)
	}
	ended := g.recorder.all()[len(g.recorder.all())-1].Ended
	if ended == nil || ended.Rows != rows || ended.Bytes < rows*size {
		t.Errorf("ended %+v", ended)
	}
}

func TestRowBound(t *testing.T) {
	t.Parallel()
	g := start(t, "18", func(_ *gateway, c *Config, _ *Deps) { c.MaxRow = 64 << 10 })
	w := g.wire(t)
	w.send(&pgproto3.Query{String: "select repeat('x', 70000)"})
	for {
		msg, err := w.Receive()
		if err == io.ErrUnexpectedEOF {
			t.Fatal("no error")
		}
		if e, ok := msg.(*pgproto3.ErrorResponse); ok {
			if e.Severity != "FATAL" || e.Code != sqlstateLimit {
				t.Errorf("got %+v", e)
			}
			return
		}
	}
}

// limit allows everything within limits.
func limit(l access.Limits) func(access.Request) access.Decision {
	return func(access.Request) access.Decision { return allowed(access.Obligations{Limits: l}) }
}

func TestLimits(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	for _, c := range []struct {
		name   string
		limits access.Limits
		msgs   []pgproto3.FrontendMessage
		want   []string
	}{
		{"rows within", access.Limits{RowsRead: 3}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "select id from orders order by id limit 3"}},
			[]string{"columns id", "row 1", "row 2", "row 3", "SELECT 3", "ready I"}},
		{"rows beyond", access.Limits{RowsRead: 2}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "select id from orders order by id limit 3"}},
			[]string{"columns id", "row 1", "row 2", "ERROR 53400", "ready I"}},
		{"rows beyond, in portions", access.Limits{RowsRead: 3}, []pgproto3.FrontendMessage{
			parse("", "select id from orders order by id"), bind("p", ""), &pgproto3.Execute{Portal: "p", MaxRows: 2}, &pgproto3.Execute{Portal: "p", MaxRows: 2}, syncMessage},
			[]string{"ParseComplete", "BindComplete", "row 1", "row 2", "PortalSuspended", "row 3", "ERROR 53400", "ready I"}},
		{"bytes beyond", access.Limits{Bytes: 100}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "select repeat('x', 60) as x from generate_series(1, 100000)"}},
			[]string{"columns x", "row " + strings.Repeat("x", 60), "ERROR 53400", "ready I"}},
		{"time beyond", access.Limits{Time: 200 * time.Millisecond}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "select pg_sleep(60) as x"}},
			[]string{"columns x", "ERROR 53400", "ready I"}},
		{"changes within", access.Limits{RowsChanged: 2}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "update orders set status = 'x' where id in (120, 121)"}},
			[]string{"UPDATE 2", "ready I"}},
		{"changes beyond", access.Limits{RowsChanged: 2}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "update orders set status = 'undone' where id in (122, 123, 124)"}},
			[]string{"ERROR 53400", "ready I"}},
		{"changes beyond by a cascade", access.Limits{RowsChanged: 2}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "delete from parents where id = 1"}},
			[]string{"ERROR 53400", "ready I"}},
		{"changes beyond, with rows", access.Limits{RowsChanged: 1}, []pgproto3.FrontendMessage{
			parse("", "update orders set status = 'undone' where id in (125, 126) returning id"), bind("", ""), execute(""), syncMessage},
			[]string{"ParseComplete", "BindComplete", "row 125", "row 126", "ERROR 53400", "ready I"}},
		{"a limit beyond one statement, and nobody counts", access.Limits{Hour: access.Quota{Statements: 9}}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "select 1 as one"}},
			[]string{"ERROR 58000", "ready I"}},
		{"reads are no changes", access.Limits{RowsChanged: 1}, []pgproto3.FrontendMessage{&pgproto3.Query{String: "select 1 as one"}},
			[]string{"columns one", "row 1", "SELECT 1", "ready I"}},
	} {
		g.policy.set(limit(c.limits))
		w.send(c.msgs...)
		if got := w.until(1); !equal(got, c.want) {
			t.Errorf("%s\n got %q\nwant %q", c.name, got, c.want)
		}
	}
	if n := g.straight(t, "select count(*)::text from orders where status = 'undone'"); n != "0" {
		t.Errorf("%s rows beyond the limit stayed changed", n)
	}
	if n := g.straight(t, "select count(*)::text from children"); n != "50" {
		t.Errorf("a cascade beyond the limit left %s", n)
	}

	t.Run("in a transaction", func(t *testing.T) {
		g.policy.set(limit(access.Limits{RowsChanged: 1, RowsRead: 1}))
		w.ask("begin")
		same(t, w.ask("update orders set status = 'undone' where id = 130"), []string{"UPDATE 1", "ready T"})
		same(t, w.ask("update orders set status = 'undone' where id in (131, 132)"), []string{"ERROR 53400", "ready E"})
		same(t, w.ask("commit"), []string{"ROLLBACK", "ready I"})
		w.ask("begin")
		same(t, w.ask("select id from orders order by id"), []string{"columns id", "row 1", "ERROR 53400", "ready E"})
		same(t, w.ask("rollback"), []string{"ROLLBACK", "ready I"})
		if n := g.straight(t, "select count(*)::text from orders where status = 'undone'"); n != "0" {
			t.Errorf("%s rows stayed changed", n)
		}
	})
}

// On a masked resource what the target says beside its message is dropped; on
// others it is not.
func TestErrorsAreFiltered(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	ask := func(w *wire, text string) (notice *pgproto3.NoticeResponse, e *pgproto3.ErrorResponse) {
		w.send(&pgproto3.Query{String: text})
		for {
			switch m := w.receive().(type) {
			case *pgproto3.NoticeResponse:
				c := *m
				notice = &c
			case *pgproto3.ErrorResponse:
				c := *m
				e = &c
			case *pgproto3.ReadyForQuery:
				return notice, e
			}
		}
	}
	duplicate := "insert into customers (id, name) values (1, 'x')"
	w := g.wire(t)
	n, _ := ask(w, "select talk()")
	if n == nil || n.Detail != "secret detail" || n.Hint != "secret hint" {
		t.Errorf("control: notice %+v", n)
	}
	if _, e := ask(w, duplicate); e == nil || !strings.Contains(e.Detail, "Key (id)=(1)") {
		t.Errorf("control: error %+v", e)
	}
	g.policy.setMasks(access.Mask{Column: "public.customers.ssn"})
	w = g.wire(t)
	n, _ = ask(w, "select talk()")
	if n == nil || n.Message != "heard" || n.Detail+n.Hint+n.Where+n.InternalQuery != "" {
		t.Errorf("notice %+v", n)
	}
	_, e := ask(w, duplicate)
	if e == nil || e.Code != "23505" || e.Detail+e.Hint+e.Where != "" || e.ConstraintName != "customers_pkey" {
		t.Errorf("error %+v", e)
	}
}

func TestDetectors(t *testing.T) {
	t.Parallel()
	g := start(t, "18", func(_ *gateway, _ *Config, d *Deps) {
		d.Detector = func(masks []access.Mask) (Detector, error) {
			m, err := mask.Compile(masks)
			if err != nil {
				return nil, err
			}
			return m.Text, nil
		}
	})
	g.policy.set(func(access.Request) access.Decision {
		return allowed(access.Obligations{Masks: []access.Mask{{Detect: []string{"CREDIT_CARD"}, With: access.Partial}}})
	})
	w := g.wire(t)
	same(t, w.ask("select id, card, 4111111111111111 as number from customers where id = 1"),
		[]string{"columns id,card,number", "row 1,***1111,4111111111111111", "SELECT 1", "ready I"})
	events := g.recorder.all()
	ended := events[len(events)-1].Ended
	if ended.Masked != 1 || strings.Contains(fmt.Sprint(*events[len(events)-2].Rows.Rows[0][1]), "4111111111111111") {
		t.Errorf("ended %+v, rows %+v", ended, events[len(events)-2].Rows)
	}
	conn := g.connect(t, pgx.QueryExecModeCacheStatement)
	var card string
	if err := conn.QueryRow(context.Background(), "select card from customers where id = $1", 2).Scan(&card); err != nil || card != "***1111" {
		t.Errorf("binary: %q, %v", card, err)
	}

	t.Run("in errors and notices", func(t *testing.T) {
		const number = "4111111111111111"
		if err := g.pg.Exec(t.Context(), "orders", "create or replace function shout(t text) returns text language plpgsql as $$ begin raise notice 'a %', t using detail = t, hint = t; return 'said'; end $$"); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{
			"select card::int from customers where id = 1", "select shout(card) from customers where id = 1",
			"insert into notes (id, body) select 8000 + id, card from customers where id < 3", "select ('{' || card || '}')::jsonb from customers where id = 1",
		} {
			said := func(w *wire) (all string) {
				w.send(&pgproto3.Query{String: text})
				for {
					msg := w.receive()
					if all += fmt.Sprintf("%+v\n", msg); line(msg) == "ready I" {
						return all
					}
				}
			}
			if straight := said(g.straightWire(t)); !strings.Contains(straight, number) {
				t.Errorf("control: %s says %q", text, straight)
			}
			if got := said(w); strings.Contains(got, number) || !strings.Contains(got, "***1111") {
				t.Errorf("%s says %q", text, got)
			}
		}
		if all := fmt.Sprintf("%+v", g.recorder.all()); strings.Contains(all, "\""+number+"\"") {
			t.Error("the recording holds it")
		}
	})

	t.Run("a mask that nobody can apply", func(t *testing.T) {
		for name, m := range map[string]access.Mask{"detect": {Detect: []string{"X"}}, "json": {JSON: "/a"}} {
			g := start(t, "18")
			g.policy.set(func(access.Request) access.Decision { return allowed(access.Obligations{Masks: []access.Mask{m}}) })
			if got := g.wire(t).ask("select card from customers"); got[0] != "ERROR 58000" {
				t.Errorf("%s: got %q", name, got)
			}
		}
	})
}

// A mask that comes back is not stored.
func TestMaskComesBack(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	literal := "update customers set email = '***@x' where id = 9"
	same(t, w.ask(literal), []string{"UPDATE 1", "ready I"}) // nothing is masked: it is a value as any other
	g.policy.setMasks(access.Mask{Column: "public.customers.ssn"})
	w = g.wire(t)
	same(t, w.ask(literal), []string{"ERROR 42501", "ready I"})
	w.send(parse("", "update customers set email = $1 where id = 9"), bind("", "", "***1111"), execute(""), syncMessage)
	same(t, w.until(1), []string{"ERROR 42501", "ready I"})
	same(t, w.ask("update customers set email = 'mail-9@example.com' where id = 9 /*** twin ***/"), []string{"UPDATE 1", "ready I"})
}

// A policy that changes while a statement is prepared changes what runs.
func TestPreparedThenMasked(t *testing.T) {
	t.Parallel()
	g := start(t, "18", func(g *gateway, _ *Config, _ *Deps) {
		g.setResource("orders", func(r *Resource) { r.User = "nosy"; r.Unwalled = true })
	})
	w := g.wire(t)
	w.send(parse("s", "select ssn from customers where id = 1"), syncMessage, bind("", "s"), execute(""), syncMessage)
	same(t, w.until(2), []string{"ParseComplete", "ready I", "BindComplete", "row 123-45-6001", "SELECT 1", "ready I"})
	g.policy.set(func(access.Request) access.Decision {
		return allowed(access.Obligations{Masks: []access.Mask{{Column: "public.customers.ssn"}}})
	})
	w.send(bind("", "s"), execute(""), syncMessage)
	same(t, w.until(1), []string{"BindComplete", "row ***", "SELECT 1", "ready I"})

	t.Run("between bind and execute", func(t *testing.T) {
		w.send(bind("", "s"), &pgproto3.Flush{})
		w.receive()
		g.policy.allowAll()
		w.send(execute(""), syncMessage)
		same(t, w.until(1), []string{"ERROR 40001", "ready I"})
	})
}
