package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

func parse(name, text string) *pgproto3.Parse { return &pgproto3.Parse{Name: name, Query: text} }

func bind(portal, statement string, values ...string) *pgproto3.Bind {
	b := &pgproto3.Bind{DestinationPortal: portal, PreparedStatement: statement}
	for _, v := range values {
		b.Parameters = append(b.Parameters, []byte(v))
	}
	return b
}

func execute(portal string) *pgproto3.Execute { return &pgproto3.Execute{Portal: portal} }

var syncMessage = &pgproto3.Sync{}

// denyWord denies every statement that begins with word.
func denyWord(word string) func(access.Request) access.Decision {
	return func(r access.Request) access.Decision {
		if r.Action.SQL.Command == word {
			return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: word + " is not allowed", Hint: "ask for it", Revision: "r1"}
		}
		return allowed(access.Obligations{})
	}
}

func TestSimpleProtocol(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := start(t, version)
			w := g.wire(t)
			for _, c := range []struct {
				name, text string
				want       []string
			}{
				{"rows", "select id, name from customers where id < 3 order by id", []string{"columns id,name", "row 1,name-1", "row 2,name-2", "SELECT 2", "ready I"}},
				{"change", "update orders set status = 'paid' where id = 1", []string{"UPDATE 1", "ready I"}},
				{"returning", "update orders set status = 'open' where id = 1 returning id", []string{"columns id", "row 1", "UPDATE 1", "ready I"}},
				{"empty", "", []string{"EmptyQueryResponse", "ready I"}},
				{"only a semicolon", " ; ", []string{"EmptyQueryResponse", "ready I"}},
				{"error of the target", "select 1/0", []string{"columns ?column?", "ERROR 22012", "ready I"}},
				{"begin", "begin", []string{"BEGIN", "ready T"}},
				{"in transaction", "select 1 as one", []string{"columns one", "row 1", "SELECT 1", "ready T"}},
				{"error in transaction", "select nothing", []string{"ERROR 42703", "ready E"}},
				{"failed transaction", "select 1 as one", []string{"ERROR 25P02", "ready E"}},
				{"rollback", "rollback", []string{"ROLLBACK", "ready I"}},
				{"merge", "merge into orders using notes on false when not matched then do nothing", []string{"ERROR 0A000", "ready I"}},
				{"prepare", "prepare p as select 1", []string{"ERROR 0A000", "ready I"}},
				{"do", "do $$ begin end $$", []string{"ERROR 0A000", "ready I"}},
				{"definition", "create table x (id int)", []string{"ERROR 0A000", "ready I"}},
				{"search_path", "set search_path = evil", []string{"ERROR 0A000", "ready I"}},
				{"parameter", "select $1::int", []string{"ERROR 42P02", "ready I"}},
				{"still usable", "select 1 as one", []string{"columns one", "row 1", "SELECT 1", "ready I"}},
			} {
				if got := w.ask(c.text); !equal(got, c.want) && !(c.name == "error of the target" && equal(got, c.want[1:])) {
					t.Errorf("%s: got %q, want %q", c.name, got, c.want)
				}
			}
		})
	}
}

func equal(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }

func TestDenied(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.policy.set(denyWord("DELETE"))
	w := g.wire(t)
	mark := len(g.pg.Log())
	w.send(&pgproto3.Query{String: "delete from orders where id = 12345"})
	e, ok := w.receive().(*pgproto3.ErrorResponse)
	if !ok {
		t.Fatal("no error")
	}
	if e.Code != sqlstateDenied || e.Message != "DELETE is not allowed" || e.Hint != "ask for it" {
		t.Errorf("error %s %q hint %q", e.Code, e.Message, e.Hint)
	}
	if !containsAll(e.Detail, "rule default-deny", "reason no-rule", "request req_") {
		t.Errorf("detail %q", e.Detail)
	}
	same(t, w.until(1), []string{"ready I"})
	same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
	if strings.Contains(g.pg.Log()[mark:], "12345") {
		t.Error("the denied statement reached the target")
	}
	same(t, g.recorder.types(0), []string{"opened", "decided", "decided", "executed", "rows", "ended"})

	t.Run("in a transaction", func(t *testing.T) {
		w.ask("begin")
		same(t, w.ask("delete from orders where id = 12345"), []string{"ERROR 42501", "ready E"})
		same(t, w.ask("select 1"), []string{"ERROR 25P02", "ready E"})
		same(t, w.ask("rollback"), []string{"ROLLBACK", "ready I"})
	})
}

func TestExtendedProtocol(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.policy.set(denyWord("DELETE"))
	w := g.wire(t)
	one := []string{"ParseComplete", "BindComplete"}
	for _, c := range []struct {
		name string
		msgs []pgproto3.FrontendMessage
		want []string
	}{
		{"one statement", []pgproto3.FrontendMessage{parse("", "select id from orders where id = $1"), bind("", "", "7"), execute(""), syncMessage},
			append(one[:2:2], "row 7", "SELECT 1", "ready I")},
		{"describe portal", []pgproto3.FrontendMessage{parse("", "select id as x from orders where id = $1"), bind("", "", "7"),
			&pgproto3.Describe{ObjectType: 'P'}, execute(""), syncMessage},
			append(one[:2:2], "columns x", "row 7", "SELECT 1", "ready I")},
		{"prepare", []pgproto3.FrontendMessage{parse("named", "select name from customers where id = $1"), &pgproto3.Describe{ObjectType: 'S', Name: "named"}, syncMessage},
			[]string{"ParseComplete", "ParameterDescription", "columns name", "ready I"}},
		{"run it twice in one pipeline", []pgproto3.FrontendMessage{bind("", "named", "1"), execute(""), bind("", "named", "2"), execute(""), syncMessage},
			[]string{"BindComplete", "row name-1", "SELECT 1", "BindComplete", "row name-2", "SELECT 1", "ready I"}},
		{"prepare the same name", []pgproto3.FrontendMessage{parse("named", "select 1"), syncMessage}, []string{"ERROR 42P05", "ready I"}},
		{"denied at parse", []pgproto3.FrontendMessage{parse("", "delete from orders"), bind("", ""), execute(""), syncMessage}, []string{"ERROR 42501", "ready I"}},
		{"denied in the middle", []pgproto3.FrontendMessage{
			parse("", "select 1"), bind("", ""), execute(""), parse("", "delete from orders"), bind("", ""), execute(""),
			parse("", "select 2"), bind("", ""), execute(""), syncMessage, bind("", "named", "3"), execute(""), syncMessage},
			[]string{"ParseComplete", "BindComplete", "row 1", "SELECT 1", "ERROR 42501", "ready I", "BindComplete", "row name-3", "SELECT 1", "ready I"}},
		{"what ran before a denial is undone", []pgproto3.FrontendMessage{
			parse("", "insert into notes values (77, 'undone')"), bind("", ""), execute(""), parse("", "delete from orders"), bind("", ""), execute(""), syncMessage,
			parse("", "select count(*) from notes where id = 77"), bind("", ""), execute(""), syncMessage},
			[]string{"ParseComplete", "BindComplete", "INSERT 0 1", "ERROR 42501", "ready I", "ParseComplete", "BindComplete", "row 0", "SELECT 1", "ready I"}},
		{"target error in the middle", []pgproto3.FrontendMessage{parse("", "select nothing"), bind("", ""), execute(""), syncMessage, bind("", "named", "1"), execute(""), syncMessage},
			[]string{"ERROR 42703", "ready I", "BindComplete", "row name-1", "SELECT 1", "ready I"}},
		{"close", []pgproto3.FrontendMessage{&pgproto3.Close{ObjectType: 'S', Name: "named"}, &pgproto3.Close{ObjectType: 'S', Name: "never"},
			parse("named", "select 5"), &pgproto3.Close{ObjectType: 'S', Name: "named"}, bind("", "named"), syncMessage},
			[]string{"CloseComplete", "CloseComplete", "ParseComplete", "CloseComplete", "ERROR 26000", "ready I"}},
		{"no such statement", []pgproto3.FrontendMessage{bind("", "never"), syncMessage}, []string{"ERROR 26000", "ready I"}},
		{"no such portal", []pgproto3.FrontendMessage{execute("never"), syncMessage}, []string{"ERROR 34000", "ready I"}},
		{"empty", []pgproto3.FrontendMessage{parse("", " "), bind("", ""), &pgproto3.Describe{ObjectType: 'P'}, execute(""), syncMessage},
			[]string{"ParseComplete", "BindComplete", "NoData", "EmptyQueryResponse", "ready I"}},
		{"sync alone", []pgproto3.FrontendMessage{syncMessage, syncMessage}, []string{"ready I", "ready I"}},
		{"rows in portions", []pgproto3.FrontendMessage{parse("", "select id from orders order by id limit 3"), bind("p", ""),
			&pgproto3.Execute{Portal: "p", MaxRows: 2}, &pgproto3.Execute{Portal: "p", MaxRows: 2}, syncMessage},
			[]string{"ParseComplete", "BindComplete", "row 1", "row 2", "PortalSuspended", "row 3", "SELECT 1", "ready I"}},
		{"portals end with their transaction", []pgproto3.FrontendMessage{execute("p"), syncMessage}, []string{"ERROR 34000", "ready I"}},
		{"flush", []pgproto3.FrontendMessage{parse("", "select 1"), &pgproto3.Flush{}, bind("", ""), &pgproto3.Flush{}, execute(""), &pgproto3.Flush{}, syncMessage},
			[]string{"ParseComplete", "BindComplete", "row 1", "SELECT 1", "ready I"}},
	} {
		w.send(c.msgs...)
		got := w.until(strings.Count(strings.Join(c.want, "\n"), "ready"))
		if !equal(got, c.want) {
			t.Errorf("%s\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

// An error is told at once, as the target tells it: a client may wait for it
// before it sends Sync.
func TestErrorsAreNotKept(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.policy.set(denyWord("DELETE"))
	w := g.wire(t)
	for _, c := range []struct{ text, state string }{{"delete from orders", sqlstateDenied}, {"select nothing", "42703"}} {
		w.send(parse("", c.text), &pgproto3.Describe{ObjectType: 'S'}, &pgproto3.Flush{})
		if e, ok := w.receive().(*pgproto3.ErrorResponse); !ok || e.Code != c.state {
			t.Errorf("%s: %+v", c.text, e)
		}
		w.send(syncMessage)
		same(t, w.until(1), []string{"ready I"})
	}
	w.send(bind("", "never"))
	if e, ok := w.receive().(*pgproto3.ErrorResponse); !ok || e.Code != sqlstateNoStatement {
		t.Errorf("without a Flush: %+v", e)
	}
	w.send(syncMessage)
	same(t, w.until(1), []string{"ready I"})
}

func TestRefusedMessages(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	w.send(&pgproto3.FunctionCall{Function: 1})
	same(t, w.until(1), []string{"ERROR 0A000", "ready I"})
	// As with the target: data of a copy that failed may still be on its way.
	w.send(&pgproto3.CopyData{Data: []byte("x")}, &pgproto3.CopyDone{}, &pgproto3.CopyFail{Message: "x"}, syncMessage)
	same(t, w.until(1), []string{"ready I"})
	same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})

	for name, raw := range map[string][]byte{
		"unknown type":         {'!', 0, 0, 0, 4},
		"length below four":    {'Q', 0, 0, 0, 3},
		"length of a gigabyte": {'Q', 0x40, 0, 0, 0},
		"text without its end": {'Q', 0, 0, 0, 5, 'x'},
		"bind that lies":       {'B', 0, 0, 0, 10, 0, 0, 0xff, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			w := g.wire(t)
			if _, err := w.conn.Write(raw); err != nil {
				t.Fatal(err)
			}
			e, ok := w.receive().(*pgproto3.ErrorResponse)
			if !ok || e.Severity != "FATAL" {
				t.Errorf("got %+v", e)
			}
			if _, err := w.Receive(); err == nil {
				t.Error("the session goes on")
			}
		})
	}
	same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
}

func TestPgxModes(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			ctx := context.Background()
			conn := g.connect(t, mode)
			for range 2 {
				var name string
				var amount float64
				row := conn.QueryRow(ctx, "select c.name, o.amount from orders o join customers c on c.id = o.customer where o.id = $1", 10)
				if err := row.Scan(&name, &amount); err != nil || name != "name-11" || amount != 15 {
					t.Fatalf("got %q %v, %v", name, amount, err)
				}
			}
			tx, err := conn.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(ctx, "insert into notes values ($1, $2)", 1000, "x"); err != nil {
				t.Fatal(err)
			}
			if err := tx.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
			if err := pgError(t, conn.QueryRow(ctx, "select 1/0").Scan(new(int))); err.Code != "22012" {
				t.Errorf("code %s", err.Code)
			}
			if err := conn.Ping(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("batch", func(t *testing.T) {
		conn := g.connect(t, pgx.QueryExecModeCacheStatement)
		batch := &pgx.Batch{}
		sum := 0
		for i := range 200 {
			batch.Queue("select $1::int + 1", i).QueryRow(func(row pgx.Row) error {
				var n int
				err := row.Scan(&n)
				sum += n
				return err
			})
		}
		if err := conn.SendBatch(context.Background(), batch).Close(); err != nil || sum != 200*201/2 {
			t.Errorf("sum %d, %v", sum, err)
		}
	})
}

// The recording holds what happened, in the order in which it happened.
func TestRecorded(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	conn := g.connect(t, pgx.QueryExecModeCacheStatement)
	var ids []int32
	rows, err := conn.Query(context.Background(), "select id, name from customers where id > $1 order by id", 17)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var id int32
		var name string
		if err := rows.Scan(&id, &name); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if len(ids) != 3 || rows.Err() != nil {
		t.Fatalf("got %v, %v", ids, rows.Err())
	}
	conn.Close(context.Background())
	eventually(t, "closed", func() bool { return len(g.registry.causes()) == 1 })
	same(t, g.recorder.types(0), []string{"opened", "decided", "decided", "executed", "rows", "ended", "closed"})
	events := g.recorder.all()
	if s := events[0].Opened.Session; s.Principal.Subject != "agent-7" || s.Client != "10.1.2.3:4321" || s.Deadline.IsZero() {
		t.Errorf("session %+v", s)
	}
	decided, executed, shown, ended := events[2], events[3].Executed, events[4].Rows, events[5].Ended
	if p := executed.Parameters; len(p) != 1 || p[0].Value == "" {
		t.Errorf("parameters %+v", p)
	}
	if decided.Request == "" || decided.Request != events[3].Request || events[4].Request != decided.Request || decided.Decided.Request.Action.SQL.Parameters == nil {
		t.Errorf("the events of one execution do not belong together")
	}
	if fmt.Sprint(shown.Columns) != "[id name]" || len(shown.Rows) != 3 || *shown.Rows[0][0] != "18" || *shown.Rows[2][1] != "name-20" {
		t.Errorf("rows %+v", shown)
	}
	if ended.Tag != "SELECT 3" || ended.Rows != 3 || ended.Bytes == 0 || ended.Error != "" {
		t.Errorf("ended %+v", ended)
	}
	if events[6].Closed.Cause != "client left" {
		t.Errorf("cause %q", events[6].Closed.Cause)
	}
}

// Without a recorder nothing reaches the target, and nothing the client.
func TestRecorderFails(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	w.ask("select 1")
	g.recorder.fail()
	mark := len(g.pg.Log())
	w.send(&pgproto3.Query{String: "select 4242"})
	e, ok := w.receive().(*pgproto3.ErrorResponse)
	if !ok || e.Severity != "FATAL" || e.Code != sqlstateUnavailable {
		t.Errorf("got %+v", e)
	}
	if strings.Contains(g.pg.Log()[mark:], "4242") {
		t.Error("ran unrecorded")
	}

	t.Run("during the answer", func(t *testing.T) {
		g := start(t, "18")
		w := g.wire(t)
		g.recorder.before = func(_ access.Durability, evs []access.Event) {
			if evs[len(evs)-1].Executed != nil {
				g.recorder.broken = true
			}
		}
		w.send(&pgproto3.Query{String: "select 4242"})
		if e, ok := w.receive().(*pgproto3.ErrorResponse); !ok || e.Severity != "FATAL" {
			t.Errorf("shown unrecorded: %+v", e)
		}
	})
}
