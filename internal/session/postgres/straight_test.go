package postgres

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// asItCame are statements that the judge does not bind, or refuses by form.
var asItCame = []string{
	"create temp table t (a int, b text)", "insert into t values (1, 'one'), (2, 'two')", "select * from t order by a", "copy t to stdout",
	"create temp table t2 as select a from t", "select a into temp t3 from t", "update t set b = upper(b) where a = 1", "drop table t2",
	"do $$ begin perform 1; end $$", "create function pg_temp.twice(x int) returns int language sql as 'select 2 * x'", "select pg_temp.twice(21)",
	"begin", "select lo_create(0) > 0", "declare c cursor for select b from t order by a", "fetch 1 from c",
	"do $$ declare r refcursor := 'made'; begin open r for select 42; end $$", "fetch all from made", "lock table t", "commit",
	"set search_path = pg_temp, public", "set client_encoding = unicode", "show client_encoding", "set work_mem = '5MB'", "show work_mem", "reset work_mem",
	"prepare p as select a from t where a = $1", "execute p (1 + 1)", "explain (costs off) create temp table x as select 1",
	"select json_array(1, 2)", "select 1 is json", "select nothing_known", "select 1 from nowhere", "selct 1",
	"set transaction snapshot 'x'", "vacuum t", "analyze t", "select /*" + strings.Repeat("x", 70_000) + "*/ 7", "discard all", "select 1 from t",
}

// Where nothing is hidden, what the judge cannot bind runs as it came when
// policy allows it, and the answers are the database's own.
func TestAsItCame(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := withJudge(t, version)
			through, straight := g.wire(t), g.straightWire(t)
			for _, text := range asItCame {
				got, want := through.ask(text), straight.ask(text)
				if !alike(got, want) && !alike(withoutEarlyColumns(got), want) {
					t.Errorf("%.100s\n got %q\nwant %q", text, got, want)
				}
			}
			for _, text := range []string{"set standard_conforming_strings = off", "set client_encoding = latin1", "set role postgres",
				"set session authorization postgres", "copy orders to '/tmp/x'", "copy orders from program 'echo 1'"} {
				if got := through.ask(text); !slices.Contains(got, "ERROR 0A000") {
					t.Errorf("%s: %q", text, got)
				}
			}
		})
	}
}

// Where something is hidden, by a mask or by claims, or changes have to be
// counted, none of it runs.
func TestNotAsItCame(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*gateway){
		"mask": func(g *gateway) {
			g.policy.setMasks(access.Mask{Column: "public.customers.ssn"})
			g.setResource("orders", func(r *Resource) { r.Unwalled = true })
		},
		"detector": func(g *gateway) { g.policy.setMasks(access.Mask{Detect: []string{"CREDIT_CARD"}}) },
		"claims": func(g *gateway) {
			g.setResource("orders", func(r *Resource) { r.Claims = map[string]string{"app.job": "subject"} })
		},
		"limit": func(g *gateway) {
			g.policy.set(func(access.Request) access.Decision {
				return allowed(access.Obligations{Limits: access.Limits{RowsChanged: 9}})
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := withJudge(t, "18")
			set(g)
			w := g.wire(t)
			for _, text := range []string{"create temp table t (a int)", "do $$ begin end $$", "set work_mem = '6MB'", "select lo_create(77)", "select 1 from nowhere", "lock table orders", "selct 1"} {
				got := w.ask(text)
				if len(got) != 2 || !strings.HasPrefix(got[0], "ERROR ") || strings.Contains(g.pg.Log(), "execute <unnamed>: "+text) {
					t.Errorf("%s: %q", text, got)
				}
			}
			w.send(&pgproto3.Parse{Query: "select $1", ParameterOIDs: []uint32{16384}}, &pgproto3.Sync{})
			if got := w.until(1); name != "limit" && !slices.Contains(got, "ERROR 0A000") {
				t.Errorf("a parameter of a user's type: %q", got)
			}
			same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
		})
	}
}

// After such a statement names may mean something else, so nothing is known of
// what names something; and a session where that is so ends when masks come.
func TestUnsettled(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	known := func(r access.Request) bool { return len(r.Action.SQL.Unknown) == 0 }
	g.policy.set(func(r access.Request) access.Decision {
		if known(r) || r.Action.SQL.Command == "CREATE TABLE" {
			return allowed(access.Obligations{})
		}
		return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "nothing allows it", Revision: "r1"}
	})
	w := g.wire(t)
	same(t, w.ask("select count(*) from notes where id < 0"), []string{"columns count", "row 0", "SELECT 1", "ready I"})
	same(t, w.ask("create temp table notes (id int)"), []string{"CREATE TABLE", "ready I"})
	same(t, w.ask("select count(*) from notes where id < 0"), []string{"ERROR 42501", "ready I"})
	same(t, w.ask("begin"), []string{"BEGIN", "ready T"})
	same(t, w.ask("commit"), []string{"COMMIT", "ready I"})
	same(t, g.wire(t).ask("select count(*) from notes where id < 0"), []string{"columns count", "row 0", "SELECT 1", "ready I"})

	g.setResource("orders", func(r *Resource) { r.Unwalled = true })
	g.policy.setMasks(access.Mask{Column: "public.customers.ssn"})
	g.policy.set(func(access.Request) access.Decision {
		d := allowed(access.Obligations{Masks: []access.Mask{{Column: "public.customers.ssn"}}})
		d.Revision = "r2"
		return d
	})
	w.send(&pgproto3.Query{String: "select ssn from customers where id = 7"})
	fault, ok := w.receive().(*pgproto3.ErrorResponse)
	if !ok || fault.Severity != "FATAL" || fault.Code != sqlstateKilled {
		t.Errorf("got %+v", fault)
	}
}

// Where nothing is hidden the client knows the target's process id, as programs
// compare it; the key is the gateway's own all the same.
func TestProcessID(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	w, listener := g.wire(t), g.connect(t, pgx.QueryExecModeSimpleProtocol)
	same(t, w.ask("select pg_backend_pid() as pid"), []string{"columns pid", fmt.Sprint("row ", w.pid), "SELECT 1", "ready I"})
	must(t, listener, "listen jobs")
	same(t, w.ask("notify jobs"), []string{"NOTIFY", "ready I"})
	if n, err := listener.WaitForNotification(t.Context()); err != nil || n.PID != w.pid {
		t.Errorf("%+v %v, want the process id %d", n, err, w.pid)
	}
	secret := binary.BigEndian.Uint32(w.secret)
	w.send(&pgproto3.Query{String: "select pg_sleep(60), 'pid-mark'"})
	eventually(t, "it runs", func() bool { return g.running(t, "pid-mark") == "1" })
	g.cancel(t, w.pid, secret+1)
	g.cancel(t, w.pid, secret)
	if got := w.until(1); !slices.Contains(got, "ERROR 57014") {
		t.Errorf("%q", got)
	}
}

// A long value goes through whole, and is decided about and recorded by its
// beginning and its digest; more of them than can be recorded are refused, and
// the session goes on.
func TestLongValues(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	conn := g.connect(t, pgx.QueryExecModeExec)
	long := strings.Repeat("é", 3<<20)
	var n int
	if err := conn.QueryRow(t.Context(), "select octet_length($1::text)", long).Scan(&n); err != nil || n != len(long) {
		t.Errorf("%d %v", n, err)
	}
	sum := sha256.Sum256([]byte(long))
	found := g.recorder.count(func(e access.Event) bool {
		return e.Executed != nil && len(e.Executed.Parameters) == 1 && e.Executed.Parameters[0].Size == int64(len(long)) &&
			e.Executed.Parameters[0].SHA256 == hex.EncodeToString(sum[:]) && e.Executed.Parameters[0].Value == strings.Repeat("é", 50)
	})
	if found != 1 {
		t.Errorf("recorded %d times", found)
	}
	values := make([]any, 60_000)
	places := make([]string, len(values))
	for i := range values {
		values[i], places[i] = "v", "$1"
	}
	places[0] = "$60000"
	_, err := conn.Exec(t.Context(), "select "+strings.Join(places[:100], ","), values...)
	if err == nil || !strings.Contains(err.Error(), "more than can be recorded") {
		t.Errorf("60,000 values: %v", err)
	}
	_, err = conn.Exec(t.Context(), "select '"+strings.Repeat("x", 600<<10)+"'")
	if err == nil || !strings.Contains(err.Error(), "the bound is") {
		t.Errorf("a long text: %v", err)
	}
	if err := conn.QueryRow(t.Context(), "select 7").Scan(&n); err != nil || n != 7 {
		t.Errorf("%d %v", n, err)
	}
}

// A mask that comes back within a long value is recognised.
func TestMaskInLongValue(t *testing.T) {
	t.Parallel()
	params, r := boundParameters(&pgproto3.Bind{Parameters: [][]byte{[]byte(strings.Repeat("x", 1<<20) + "***"), []byte(strings.Repeat("x", 1<<20))}}, nil)
	if r != nil || !params[0].HoldsMask || params[1].HoldsMask {
		t.Errorf("%v %v", params[0].HoldsMask, params[1].HoldsMask)
	}
}

// TestNamesThatMove: a function that nobody looked into moves the search path or
// makes a temporary table, and the statement behind it, of whatever kind, is not
// decided as a known one of the table that its name meant. Control: straight at
// the database it reads another table. Twin: a function that does neither.
func TestNamesThatMove(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := withJudge(t, version)
			g.exec(t, `CREATE SCHEMA other; CREATE TABLE other.moved (id int); INSERT INTO other.moved VALUES (2); CREATE TABLE moved (id int); INSERT INTO moved VALUES (1);
				CREATE FUNCTION mover() RETURNS text LANGUAGE sql AS $$ SELECT set_config('search_path', 'other, public', false) $$;
				CREATE FUNCTION maker() RETURNS int LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE moved AS SELECT 3 AS id; RETURN 1; END $$;
				CREATE FUNCTION idler() RETURNS int LANGUAGE sql AS 'SELECT 1';
				GRANT USAGE ON SCHEMA other TO app; GRANT SELECT ON other.moved, moved TO app; GRANT TEMPORARY ON DATABASE orders TO app`)
			for _, c := range []struct{ first, row string }{
				{"select mover()", "row 2"}, {"select maker()", "row 3"}, {"prepare p as select maker(); execute p", "row 3"}, {"copy (select mover()) to stdout", "row 2"},
				{"begin; declare c cursor for select maker(); fetch c", "row 3"}, {"explain analyze select mover()", "row 2"},
				{"insert into notes select 4000 + maker()", "row 3"}, {"select idler()", "row 1"},
			} {
				const query = "select id from moved"
				for name, w := range map[string]*wire{"control": g.straightWire(t), "gateway": g.wire(t), "in one message": g.wire(t)} {
					before := len(g.recorder.all())
					if name == "in one message" {
						w.ask(c.first + "; " + query)
					} else {
						w.ask(c.first)
						if got := w.ask(query); !slices.Contains(got, c.row) {
							t.Errorf("%s: %s: %q", name, c.first, got)
						}
					}
					w.ask("rollback")
					w.ask("delete from notes where id = 4001")
					for _, e := range g.recorder.all()[before:] {
						if e.Decided == nil || e.Decided.Request.Action.SQL.Text != query {
							continue
						}
						if known := len(e.Decided.Request.Action.SQL.Unknown) == 0; known != (c.first == "select idler()") {
							t.Errorf("%s: %s: decided as known: %v", name, c.first, known)
						}
					}
					w.conn.Close()
				}
			}
		})
	}
}
