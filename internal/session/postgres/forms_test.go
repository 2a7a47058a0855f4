package postgres

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// judged is a gateway with the real judge that masks the SSN and lets
// everything through but DELETE.
func judged(t testing.TB, version string, options ...option) *gateway {
	t.Helper()
	analyzer := realAnalyzer(t)
	ssn := access.Mask{Column: "public.customers.ssn"}
	return start(t, version, append([]option{onLoopback, func(g *gateway, _ *Config, _ *Deps) {
		g.setResource("orders", func(r *Resource) { r.Analyzer = analyzer })
		g.policy.setMasks(ssn)
		g.policy.set(func(r access.Request) access.Decision {
			if d := denyWord("DELETE")(r); d.Effect == access.Deny {
				return d
			}
			return allowed(access.Obligations{Masks: []access.Mask{ssn}})
		})
	}}, options...)...)
}

// A scene is a list of messages, each with the answer that it gets.
type scene []sceneStep

type sceneStep struct {
	text string
	want []string
}

func (sc scene) play(t *testing.T, w *wire) {
	t.Helper()
	for _, c := range sc {
		if got := w.ask(c.text); !equal(got, c.want) {
			t.Errorf("%s\n got %q\nwant %q", c.text, got, c.want)
		}
	}
}

func ok(lines ...string) []string     { return append(lines, "ready I") }
func within(lines ...string) []string { return append(lines, "ready T") }
func failed(lines ...string) []string { return append(lines, "ready E") }

func TestCursors(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := judged(t, version)
			w := g.wire(t)
			scene{
				{"declare c cursor for select 1", ok("ERROR 25P01")},
				{"begin", within("BEGIN")},
				{"declare c scroll cursor for select id, ssn from customers where id < 5 order by id", within("DECLARE CURSOR")},
				{"fetch 2 from c", within("columns id,ssn", "row 1,***", "row 2,***", "FETCH 2")},
				{"move 1 in c", within("MOVE 1")},
				{"fetch backward 1 from c", within("columns id,ssn", "row 2,***", "FETCH 1")},
				{"fetch all in c; close c", within("columns id,ssn", "row 3,***", "row 4,***", "FETCH 2", "CLOSE CURSOR")},
				{"fetch c", failed("ERROR 34000")},
				{"fetch c", failed("ERROR 25P02")},
				{"rollback", ok("ROLLBACK")},
				// the cursor ends with its transaction, unless it is held
				{"begin; declare c cursor for select 7 as n; declare h cursor with hold for select ssn from customers order by id limit 2; commit",
					ok("BEGIN", "DECLARE CURSOR", "DECLARE CURSOR", "COMMIT")},
				{"fetch c", ok("ERROR 34000")},
				{"fetch h", ok("columns ssn", "row ***", "FETCH 1")},
				{"fetch h", ok("columns ssn", "row ***", "FETCH 1")},
				{"fetch h", ok("columns ssn", "FETCH 0")},
				{"close all", ok("CLOSE CURSOR ALL")},
				{"fetch h", ok("ERROR 34000")},
				// it can be declared anew, as something else
				{"begin; declare c cursor for select 7 as n; close c; declare c cursor for select 'x' as t; fetch c; commit",
					ok("BEGIN", "DECLARE CURSOR", "CLOSE CURSOR", "DECLARE CURSOR", "columns t", "row x", "FETCH 1", "COMMIT")},
				// attacks
				{"begin; declare c cursor for select id from customers order by ssn; commit", failed("BEGIN", "ERROR 42501")},
				{"rollback", ok("ROLLBACK")},
				{"fetch all from chaperone_p1", ok("ERROR 34000")},
				{"begin; declare chaperone_p1 cursor for select 1", failed("BEGIN", "ERROR 0A000")},
				{"rollback; close chaperone_own", ok("ROLLBACK", "ERROR 0A000")},
			}.play(t, w)
			if got := g.straight(t, "select ssn from customers where id = 1"); got != "123-45-6001" {
				t.Errorf("control: %q", got)
			}
		})
	}
}

// Each FETCH is decided as the query that its cursor was declared with, under
// the rules of now.
func TestCursorsAreDecided(t *testing.T) {
	t.Parallel()
	g := judged(t, "18")
	w := g.wire(t)
	ssn := access.Mask{Column: "public.customers.ssn"}
	name := access.Mask{Column: "public.customers.name"}
	scene{
		{"begin; declare c cursor for select id, name from customers order by id; fetch 1 from c",
			within("BEGIN", "DECLARE CURSOR", "columns id,name", "row 1,name-1", "FETCH 1")},
	}.play(t, w)
	var decided, executed []string
	for _, e := range g.recorder.all() {
		if e.Decided != nil {
			a := e.Decided.Request.Action.SQL
			decided = append(decided, a.Command+" "+strings.Join(a.Reads, ","))
		}
		if e.Executed != nil {
			executed = append(executed, e.Executed.SQL)
		}
	}
	same(t, decided, []string{"BEGIN ", "SELECT public.customers", "SELECT public.customers"})
	if len(executed) != 3 || !strings.HasPrefix(executed[1], "declare c cursor for select id, name from (SELECT") || executed[2] != "fetch 1 from c" {
		t.Errorf("executed %q", executed)
	}

	g.policy.set(func(r access.Request) access.Decision {
		return allowed(access.Obligations{Masks: []access.Mask{ssn, name}})
	})
	scene{{"fetch 1 from c", failed("ERROR 40001")}, {"rollback", ok("ROLLBACK")}}.play(t, w)

	g.policy.set(func(r access.Request) access.Decision {
		return allowed(access.Obligations{Limits: access.Limits{RowsRead: 3}, Masks: []access.Mask{ssn}})
	})
	scene{
		{"begin; declare c cursor for select id from orders order by id; fetch 2 from c", within("BEGIN", "DECLARE CURSOR", "columns id", "row 1", "row 2", "FETCH 2")},
		// the limit is that of the whole cursor
		{"fetch 5 from c", failed("columns id", "row 3", "ERROR 53400")},
		{"rollback", ok("ROLLBACK")},
		{"begin; declare c cursor for select id from orders order by id", within("BEGIN", "DECLARE CURSOR")},
	}.play(t, w)
	g.policy.set(denyWord("SELECT"))
	scene{{"fetch 1 from c", failed("ERROR 42501")}, {"rollback", ok("ROLLBACK")}}.play(t, w)
}

// A reviewer who grants DECLARE grants what is fetched.
func TestCursorIsHeldOnce(t *testing.T) {
	t.Parallel()
	g := judged(t, "18")
	g.policy.set(func(r access.Request) access.Decision {
		if slices.Contains(r.Action.SQL.Reads, "public.orders") {
			return access.Decision{Effect: access.Approve, Rules: []access.RuleRef{{Policy: "test", Rule: "look", Hash: "h"}}, Revision: "r1",
				Obligations: access.Obligations{Approval: &access.ApprovalTerms{Groups: []string{"g"}, Count: 1}}}
		}
		return allowed(access.Obligations{})
	})
	w := g.wire(t)
	w.send(&pgproto3.Query{String: "declare h cursor with hold for select id from orders order by id"})
	g.approvals.answer(w.notice(), access.Granted, access.Pending)
	same(t, w.until(1), ok("DECLARE CURSOR"))
	same(t, w.ask("fetch 2 from h"), ok("columns id", "row 1", "row 2", "FETCH 2"))
	same(t, w.ask("begin; fetch 1 from h; commit"), ok("BEGIN", "columns id", "row 3", "FETCH 1", "COMMIT"))
	// PREPARE runs nothing and is not held; EXECUTE is.
	same(t, w.ask("prepare p (int) as select id from orders where id = $1"), ok("PREPARE"))
	w.send(&pgproto3.Query{String: "execute p (5)"})
	id := w.notice()
	g.approvals.mu.Lock()
	asked := g.approvals.byID[id].Ask.Request.Action.SQL
	g.approvals.mu.Unlock()
	if asked.Text != "prepare p (int) as select id from orders where id = $1" || len(asked.Parameters) != 1 || asked.Parameters[0].Value != "5" {
		t.Errorf("the reviewer sees %+v", asked)
	}
	g.approvals.answer(id, access.Granted, access.Pending)
	same(t, w.until(1), ok("columns id", "row 5", "SELECT 1"))
}

func TestPreparedByName(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := judged(t, version)
			w := g.wire(t)
			scene{
				{"prepare p (int, text) as select id, ssn, $2 as t from customers where id = $1", ok("PREPARE")},
				{"execute p (7, 'x')", ok("columns id,ssn,t", "row 7,***,x", "SELECT 1")},
				{"execute p (-8, null)", ok("columns id,ssn,t", "SELECT 0")},
				{"prepare p as select 1", ok("ERROR 42P05")},
				{"execute p (7, (select ssn from customers where id = 7))", ok("ERROR 0A000")},
				{"execute p (7, pg_read_file('x'))", ok("ERROR 0A000")},
				{"deallocate p", ok("DEALLOCATE")},
				{"execute p (7, 'x')", ok("ERROR 26000")},
				{"prepare w as update orders set status = $1 where id = 160", ok("PREPARE")},
				{"execute w ('via execute'); select status from orders where id = 160", ok("UPDATE 1", "columns status", "row via execute", "SELECT 1")},
				{"prepare d as delete from orders where id = 160", ok("ERROR 42501")},
				{"execute d", ok("ERROR 26000")},
				{"prepare s as select id from customers where ssn = $1", ok("ERROR 42501")},
				{"prepare m as update customers set name = $1 where id = 1", ok("PREPARE")},
				{"execute m ('***')", ok("ERROR 42501")},
				{"deallocate all; execute w ('x')", ok("DEALLOCATE ALL", "ERROR 26000")},
				{"prepare chaperone_s1 as select 1", ok("ERROR 0A000")},
				{"execute chaperone_s1", ok("ERROR 26000")},
			}.play(t, w)
			// A statement prepared by the protocol, let go in SQL, as drivers do.
			w.send(parse("driver", "select 5 as five"), syncMessage)
			same(t, w.until(1), ok("ParseComplete"))
			same(t, w.ask("prepare driver as select 1"), ok("ERROR 42P05"))
			same(t, w.ask("deallocate driver"), ok("DEALLOCATE"))
			w.send(bind("", "driver"), syncMessage)
			same(t, w.until(1), ok("ERROR 26000"))
		})
	}
}

// Drivers send these by the extended protocol too.
func TestFormsExtended(t *testing.T) {
	t.Parallel()
	g := judged(t, "18")
	w := g.wire(t)
	run := func(text string, values ...string) []pgproto3.FrontendMessage {
		return []pgproto3.FrontendMessage{parse("", text), &pgproto3.Describe{ObjectType: 'S'}, bind("", "", values...), execute("")}
	}
	all := slices.Concat(
		run("begin"), run("declare c cursor for select id, ssn from customers where id >= $1 order by id", "19"),
		run("fetch 1 from c"), run("fetch all from c"), run("close c"),
		run("prepare p as select ssn from customers where id = $1"), run("execute p (3)"), run("deallocate p"), run("commit"))
	w.send(append(all, syncMessage)...)
	var got []string
	for _, l := range w.until(1) {
		if l != "ParseComplete" && l != "BindComplete" && l != "ParameterDescription" && l != "NoData" {
			got = append(got, l)
		}
	}
	same(t, got, ok("BEGIN", "DECLARE CURSOR", "columns id,ssn", "row 19,***", "FETCH 1", "columns id,ssn", "row 20,***", "FETCH 1", "CLOSE CURSOR",
		"PREPARE", "columns ssn", "row ***", "SELECT 1", "DEALLOCATE", "COMMIT"))
	// A prepared FETCH follows the cursor that has the name when it runs.
	w.send(parse("f", "fetch 1 from c"), syncMessage)
	same(t, w.until(1), ok("ParseComplete"))
	w.send(bind("", "f"), execute(""), syncMessage)
	same(t, w.until(1), ok("ERROR 34000"))
	for _, query := range []string{"select 'one' as a", "select 2 as b"} {
		same(t, w.ask("begin; declare c cursor for "+query), within("BEGIN", "DECLARE CURSOR"))
		w.send(bind("", "f"), execute(""), syncMessage)
		same(t, w.until(1), within("BindComplete", "row "+strings.Trim(strings.Fields(query)[1], "'"), "FETCH 1"))
		same(t, w.ask("commit"), ok("COMMIT"))
	}
	// An SQL cursor is described and closed as the portal that it is.
	same(t, w.ask("begin; declare c cursor for select ssn from customers"), within("BEGIN", "DECLARE CURSOR"))
	w.send(&pgproto3.Describe{ObjectType: 'P', Name: "c"}, &pgproto3.Close{ObjectType: 'P', Name: "c"}, &pgproto3.Describe{ObjectType: 'P', Name: "c"}, syncMessage)
	same(t, w.until(1), failed("columns ssn", "CloseComplete", "ERROR 34000"))
	same(t, w.ask("rollback"), ok("ROLLBACK"))
	if rows := g.recordedRows(); !slices.Contains(rows, "one") || !slices.Contains(rows, "2") {
		t.Errorf("recorded %q", rows)
	}
}

// copyOut collects the data of a COPY.
func (w *wire) copyOut(msgs ...pgproto3.FrontendMessage) (data []byte, lines []string) {
	w.t.Helper()
	w.send(msgs...)
	for {
		switch m := w.receive().(type) {
		case *pgproto3.CopyData:
			data = append(data, m.Data...)
		case *pgproto3.CopyOutResponse, *pgproto3.CopyDone, *pgproto3.ParameterStatus:
		default:
			lines = append(lines, line(m))
			if _, ready := m.(*pgproto3.ReadyForQuery); ready {
				return data, lines
			}
		}
	}
}

func TestCopyOut(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := judged(t, version)
			w, straight := g.wire(t), g.straightWire(t)
			for _, c := range []struct {
				text, want string
				lines      []string
			}{
				{"copy (select id, ssn from customers where id < 3 order by id) to stdout", "1\t***\n2\t***\n", ok("COPY 2")},
				{"copy customers (id, ssn) to stdout with csv header", "", ok("COPY 20")},
				{"copy customers to stdout", "", ok("COPY 20")},
				{"copy (select id from customers order by ssn) to stdout", "", ok("ERROR 42501")},
				{"copy customers to '/tmp/x'", "", ok("ERROR 0A000")},
				{"copy customers to program 'id'", "", ok("ERROR 0A000")},
				{"copy (select 1/0) to stdout", "", ok("ERROR 22012")},
				{"begin; copy (select 1) to stdout; select 2 as two; commit", "1\n", ok("BEGIN", "COPY 1", "columns two", "row 2", "SELECT 1", "COMMIT")},
			} {
				data, lines := w.copyOut(&pgproto3.Query{String: c.text})
				if !equal(lines, c.lines) || c.want != "" && string(data) != c.want || bytes.Contains(data, []byte("123-45")) {
					t.Errorf("%s\n got %q %q", c.text, data, lines)
				}
			}
			// What nothing is masked in is the same, byte by byte.
			for _, text := range []string{
				"copy orders to stdout", "copy orders (id, amount) to stdout csv header delimiter ';'", "copy orders to stdout (format binary)",
				"copy (select id, status, null from orders where id < 9) to stdout with (format csv, force_quote *, null 'none')",
			} {
				got, lines := w.copyOut(&pgproto3.Query{String: text})
				want, _ := straight.copyOut(&pgproto3.Query{String: text})
				if !bytes.Equal(got, want) || len(got) == 0 || lines[len(lines)-1] != "ready I" {
					t.Errorf("%s: %d bytes, want %d; %q", text, len(got), len(want), lines)
				}
			}
			data, lines := w.copyOut(parse("", "copy (select 3) to stdout"), bind("", ""), &pgproto3.Describe{ObjectType: 'P'}, execute(""), syncMessage)
			if string(data) != "3\n" || !equal(lines, ok("ParseComplete", "BindComplete", "NoData", "COPY 1")) {
				t.Errorf("extended: %q %q", data, lines)
			}
			if control, _ := g.psqlStraight(t, "copy customers to stdout"); !strings.Contains(control, "123-45-6007") {
				t.Errorf("control: %q", control)
			}
			if rows := strings.Join(g.recordedRows(), "\n"); strings.Contains(rows, "123-45") || !strings.Contains(rows, "1\t***") {
				t.Errorf("recorded %.200q", rows)
			}
		})
	}
}

// psqlStraight runs the real client at the target itself, as its owner.
func (g *gateway) psqlStraight(t *testing.T, text string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(g.pg.Bin, "psql"), "-X", "-At", g.pg.DSN("postgres", g.pg.Password, "orders"), "-c", text).CombinedOutput()
	return string(out), err
}

func TestCopyIsLimited(t *testing.T) {
	t.Parallel()
	g := judged(t, "18")
	w := g.wire(t)
	limits := func(l access.Limits, detect ...string) {
		g.policy.set(func(access.Request) access.Decision {
			o := access.Obligations{Limits: l}
			if len(detect) > 0 {
				o.Masks = []access.Mask{{Detect: detect}}
			}
			return allowed(o)
		})
	}
	limits(access.Limits{RowsRead: 2})
	data, lines := w.copyOut(&pgproto3.Query{String: "copy (select id from orders order by id) to stdout"})
	if string(data) != "1\n2\n" || !equal(lines, ok("ERROR 53400")) {
		t.Errorf("rows: %q %q", data, lines)
	}
	limits(access.Limits{Bytes: 1000})
	if data, lines = w.copyOut(&pgproto3.Query{String: "copy (select generate_series(1, 100000)) to stdout"}); len(data) > 1000 || !equal(lines, ok("ERROR 53400")) {
		t.Errorf("bytes: %d %q", len(data), lines)
	}
	limits(access.Limits{RowsChanged: 2})
	for i, want := range [][]string{ok("COPY 2"), ok("ERROR 53400")} {
		rows := "9001\tlimited a\n9002\tlimited b\n"
		if i == 1 {
			rows = "9003\tlimited c\n9004\tlimited d\n9005\tlimited e\n"
		}
		if got := w.copyIn("copy notes from stdin", rows); !equal(got, want) {
			t.Errorf("changes: %q, want %q", got, want)
		}
	}
	limits(access.Limits{})
	same(t, w.ask("select count(*) from notes where id between 9000 and 9010"), ok("columns count", "row 2", "SELECT 1"))
	limits(access.Limits{}, "CREDIT_CARD")
	if _, lines = w.copyOut(&pgproto3.Query{String: "copy orders to stdout"}); !strings.HasPrefix(lines[0], "ERROR") {
		t.Errorf("a rule with detectors: %q", lines)
	}
}

// copyIn sends data for a COPY, in pieces, and returns the rendered answers.
func (w *wire) copyIn(text string, pieces ...string) []string {
	w.t.Helper()
	w.send(&pgproto3.Query{String: text})
	if msg := w.receive(); msg != nil {
		if _, ok := msg.(*pgproto3.CopyInResponse); !ok {
			return append([]string{line(msg)}, w.until(1)...)
		}
	}
	for _, p := range pieces {
		w.Send(&pgproto3.CopyData{Data: []byte(p)})
	}
	w.send(&pgproto3.CopyDone{})
	return w.until(1)
}

func TestCopyIn(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := judged(t, version)
			w := g.wire(t)
			base := 20000
			if version == "16" {
				base = 30000
			}
			row := func(n int, body string) string { return fmt.Sprintf("%d\t%s of %s\n", base+n, body, version) }
			count := func(n string) {
				t.Helper()
				same(t, w.ask(fmt.Sprintf("select count(*) from notes where id > %d and id < %d", base, base+9999)), ok("columns count", "row "+n, "SELECT 1"))
			}
			same(t, w.copyIn("copy notes from stdin", row(1, "a")+row(2, "b")[:3], row(2, "b")[3:]), ok("COPY 2"))
			count("2")
			// errors of the data, and of the client
			same(t, w.copyIn("copy notes from stdin", row(3, "c"), "not a number\tx\n", row(4, "d")), ok("ERROR 22P02"))
			w.send(&pgproto3.Query{String: "copy notes from stdin"})
			if _, ok := w.receive().(*pgproto3.CopyInResponse); !ok {
				t.Fatal("no CopyInResponse")
			}
			w.send(&pgproto3.CopyData{Data: []byte(row(5, "e"))}, &pgproto3.CopyFail{Message: "changed my mind"})
			same(t, w.until(1), ok("ERROR 57014"))
			count("2")
			// denied and refused
			same(t, w.copyIn("copy customers from stdin", "1\tx\n"), ok("ERROR 42501"))
			same(t, w.copyIn("copy notes from '/etc/passwd'"), ok("ERROR 0A000"))
			same(t, w.copyIn("copy notes from program 'id'"), ok("ERROR 0A000"))
			// a mask that comes back, split anywhere
			same(t, w.copyIn("copy notes from stdin", row(6, "f"), "7\t*", "**\n"), ok("ERROR 42501"))
			count("2")
			same(t, w.copyIn("copy notes (id, body) from stdin csv", fmt.Sprintf("%d,\"x,y\"\n", base+8)), ok("COPY 1"))
			count("3")
			// several in one message, and a transaction that is rolled back
			w.send(&pgproto3.Query{String: "begin; copy notes from stdin; copy notes from stdin; rollback"},
				&pgproto3.CopyData{Data: []byte(row(10, "j"))}, &pgproto3.CopyDone{}, &pgproto3.CopyData{Data: []byte(row(11, "k"))}, &pgproto3.CopyDone{})
			same(t, w.until(1), ok("BEGIN", "CopyInResponse", "COPY 1", "CopyInResponse", "COPY 1", "ROLLBACK"))
			count("3")
			// by the extended protocol, whose Sync right after Execute has no effect
			w.send(parse("", "copy notes from stdin"), bind("", ""), execute(""), syncMessage)
			for range 2 {
				w.receive()
			}
			if _, ok := w.receive().(*pgproto3.CopyInResponse); !ok {
				t.Fatal("no CopyInResponse")
			}
			w.send(&pgproto3.CopyData{Data: []byte(row(12, "l"))}, &pgproto3.CopyDone{}, syncMessage)
			same(t, w.until(1), ok("COPY 1"))
			count("4")
			if rows := g.recordedRows(); !slices.Contains(rows, strings.TrimSuffix(row(12, "l"), "\n")) {
				t.Errorf("the data is not recorded: %q", rows)
			}
			t.Run("much", func(t *testing.T) {
				var rows []string
				for i := range 3000 {
					rows = append(rows, row(1000+i, strings.Repeat("x", 500)+fmt.Sprint(i)))
				}
				same(t, w.copyIn("copy notes from stdin", rows...), ok("COPY 3000"))
				count("3004")
			})
			t.Run("another message", func(t *testing.T) {
				w := g.wire(t)
				w.send(&pgproto3.Query{String: "copy notes from stdin"}, &pgproto3.Query{String: "select 1"})
				var last pgproto3.BackendMessage
				for {
					msg, err := w.Receive()
					if err != nil {
						break
					}
					last = msg
				}
				if e, ok := last.(*pgproto3.ErrorResponse); !ok || e.Severity != "FATAL" || e.Code != sqlstateProtocol {
					t.Errorf("got %+v", last)
				}
			})
			t.Run("kill", func(t *testing.T) {
				w := g.wire(t)
				w.send(&pgproto3.Query{String: "copy notes from stdin"})
				w.receive()
				w.send(&pgproto3.CopyData{Data: []byte(row(13, "m"))})
				g.registry.kill()
				if e, ok := w.receive().(*pgproto3.ErrorResponse); !ok || e.Code != sqlstateKilled {
					t.Errorf("got %+v", e)
				}
			})
		})
	}
}

// Pools clean a connection before they hand it on. What the gateway owns, and a
// role that the login brings with it, stays.
func TestPoolResets(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			login := "pooled"
			if err := server(t, version).Exec(t.Context(), "orders", "create role "+login+" login in role app password '"+rolePassword+"'; alter role "+login+" set role = app"); err != nil {
				t.Fatal(err)
			}
			g := judged(t, version)
			g.setResource("orders", func(r *Resource) { r.User = login })
			w := g.wire(t)
			owned := []sceneStep{
				{"show role", ok("columns role", "row app", "SHOW")},
				{"show search_path", ok("columns search_path", `row "public"`, "SHOW")},
				{"select ssn from customers where id = 1", ok("columns ssn", "row ***", "SELECT 1")},
			}
			dirt := []sceneStep{
				{"set application_name = 'dirty'", ok("SET")},
				{"prepare p as select 1 as one", ok("PREPARE")},
				{"begin; declare c cursor with hold for select 1 as one; commit", ok("BEGIN", "DECLARE CURSOR", "COMMIT")},
			}
			clean := []sceneStep{
				{"show application_name", ok("columns application_name", "row ", "SHOW")},
				{"execute p", ok("ERROR 26000")},
				{"fetch c", ok("ERROR 34000")},
			}
			for _, reset := range []scene{
				{{"discard all", ok("DISCARD ALL")}},
				{{"select pg_advisory_unlock_all(); close all; unlisten *; reset all; deallocate all",
					ok("columns pg_advisory_unlock_all", "row ", "SELECT 1", "CLOSE CURSOR ALL", "UNLISTEN", "RESET", "DEALLOCATE ALL")}},
				{{"set session authorization default", ok("SET")}, {"reset session authorization", ok("RESET")}, {"reset all", ok("RESET")},
					{"close all", ok("CLOSE CURSOR ALL")}, {"deallocate all", ok("DEALLOCATE ALL")}, {"discard plans", ok("DISCARD PLANS")},
					{"discard sequences", ok("DISCARD SEQUENCES")}, {"discard temp", ok("DISCARD TEMP")}},
			} {
				slices.Concat(scene(dirt), reset, scene(clean), scene(owned)).play(t, w)
			}
			scene{
				{"select 1 as one; discard all", ok("columns one", "row 1", "SELECT 1", "ERROR 25001")},
				{"reset role", ok("ERROR 0A000")},
				{"set session authorization postgres", ok("ERROR 0A000")},
			}.play(t, w)
			w.ask("begin")
			same(t, w.ask("discard all"), []string{"ERROR 25001", "ready E"})
			w.ask("rollback")
			// By the extended protocol, prepared in a round trip of its own.
			w.send(parse("clean", "discard all"), syncMessage)
			same(t, w.until(1), ok("ParseComplete"))
			w.send(bind("", "clean"), execute(""), syncMessage)
			same(t, w.until(1), ok("BindComplete", "DISCARD ALL"))
			w.send(bind("", "clean"), syncMessage)
			same(t, w.until(1), ok("ERROR 26000"))
			slices.Concat(scene(clean), scene(owned)).play(t, w)
		})
	}
}
