package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// judge is the real analyzer with one pool of workers for all tests.
var judge struct {
	once     sync.Once
	pool     *parser.Pool
	analyzer *sql.Analyzer
	err      error
}

func realAnalyzer(t testing.TB) *sql.Analyzer {
	t.Helper()
	judge.once.Do(func() {
		worker := filepath.Join(targets.dir, "parserworker")
		build := exec.Command("go", "build", "-o", worker, "../../sql/parser/parserworker")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := build.CombinedOutput(); err != nil {
			judge.err = fmt.Errorf("build the worker: %w\n%s", err, out)
			return
		}
		if judge.pool, judge.err = parser.NewPool(parser.Config{Command: []string{worker}, Workers: 2, Spares: 1, Queue: 1000}); judge.err != nil {
			return
		}
		judge.analyzer, judge.err = sql.New(sql.Config{Parser: judge.pool})
	})
	if judge.err != nil {
		t.Fatal(judge.err)
	}
	return judge.analyzer
}

// masked is a gateway with the real judge, on whose database the SSN is masked.
func masked(t *testing.T, version string) *gateway {
	t.Helper()
	analyzer := realAnalyzer(t)
	ssn := access.Mask{Column: "public.customers.ssn"}
	return start(t, version, onLoopback, func(g *gateway, _ *Config, _ *Deps) {
		g.setResource("orders", func(r *Resource) { r.Analyzer = analyzer })
		g.policy.setMasks(ssn)
		g.policy.set(func(r access.Request) access.Decision {
			if !r.Action.SQL.ReadOnly {
				return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "nothing allows it", Revision: "r1"}
			}
			return allowed(access.Obligations{Masks: []access.Mask{ssn}})
		})
	})
}

// psql runs the real client and returns what it shows.
func (g *gateway) psql(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(g.pg.Bin, "psql"), append([]string{"-X", g.plainDSN(goodToken)}, args...)...)
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// The true value never shows, whatever the form of the question, and ordinary
// questions are answered.
func TestMaskedColumn(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := masked(t, version)
			if got := g.straight(t, "select ssn from customers where id = 7"); got != "123-45-6007" {
				t.Fatalf("control: %q", got)
			}
			for text, want := range map[string]string{
				"select id, ssn from customers where id = 7":                                            "7|***\n",
				"select ssn as x from customers where id = 7":                                           "***\n",
				"select * from customers c where id = 7":                                                "7|name-7|mail-7@example.com|***|4111111111111111\n",
				"select c::text from customers c where id = 7":                                          "(7,name-7,mail-7@example.com,***,4111111111111111)\n",
				"select ssn || '' from customers where id = 7":                                          "***\n",
				"select count(*) from customers":                                                        "20\n",
				"select row_to_json(c)->>'ssn' from customers c where id = 7":                           "***\n",
				"select o.id, c.ssn from orders o join customers c on c.id = o.customer where o.id = 6": "6|***\n",
				"with x as (select ssn from customers where id = 7) select ssn from x":                  "***\n",
			} {
				if got := g.psql(t, "-At", "-c", text); got != want {
					t.Errorf("%s: got %q, want %q", text, got, want)
				}
			}
			for _, text := range []string{
				"select id from customers where ssn like '123%'", "select id from customers order by ssn",
				"select query_to_xml('select ssn from customers', true, false, '')", "select ssn from customers group by ssn",
			} {
				got := g.psql(t, "-At", "-c", text)
				if !strings.HasPrefix(got, "ERROR:") || strings.Contains(got, "123-45") {
					t.Errorf("%s: got %q", text, got)
				}
			}
			script := filepath.Join(t.TempDir(), "x.sql")
			writeFile(t, script, "select ssn from customers where id = 7 \\gdesc\nselect ssn from customers where id = $1 \\bind 7 \\g\n")
			if got := g.psql(t, "-At", "-f", script); got != "ssn|text\n***\n" {
				t.Errorf("extended: got %q", got)
			}
			conn := g.connectPlain(t, pgx.QueryExecModeCacheStatement)
			var ssn string
			if err := conn.QueryRow(context.Background(), "select ssn from customers where id = $1", 7).Scan(&ssn); err != nil || ssn != "***" {
				t.Errorf("pgx: %q, %v", ssn, err)
			}
			if strings.Contains(fmt.Sprintf("%+v", g.recordedRows()), "123-45-") {
				t.Error("the recording holds true values")
			}
		})
	}
}

// What is not handled is refused by name, and the connection goes on.
func TestRefusedByName(t *testing.T) {
	t.Parallel()
	g := masked(t, "18")
	w := g.wire(t)
	mark := len(g.pg.Log())
	for _, text := range []string{
		"copy orders to '/tmp/x'", "copy orders from program 'id'", "create table t as select 1", "do $$ begin end $$",
		"listen x", "set role postgres", "set search_path = evil", "drop table orders", "create table t (id int)", "lock table orders",
		"select pg_read_file('/etc/passwd')", "set session_replication_role = replica", "merge into orders using notes on false when not matched then do nothing", "set session authorization app", "load 'x'",
	} {
		w.send(&pgproto3.Query{String: text})
		e, ok := w.receive().(*pgproto3.ErrorResponse)
		if !ok || e.Severity != "ERROR" || e.Message == "" || !strings.Contains(e.Detail, "request req_") {
			t.Errorf("%s: got %+v", text, e)
		}
		same(t, w.until(1), []string{"ready I"})
	}
	if log := g.pg.Log()[mark:]; strings.Contains(log, "drop table") || strings.Contains(log, "pg_read_file") {
		t.Error("something refused reached the target")
	}
	same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
}

// Positions point into the client's own text, though the target sees another.
func TestErrorPositions(t *testing.T) {
	t.Parallel()
	g := masked(t, "18")
	w := g.wire(t)
	text := "select ssn, 1/(id-id), 'x'::int4 from customers where id = 7"
	w.send(&pgproto3.Query{String: text})
	for {
		msg := w.receive()
		if e, ok := msg.(*pgproto3.ErrorResponse); ok {
			if want := strings.Index(text, "'x'") + 1; e.Code != "22P02" || int(e.Position) != want {
				t.Errorf("got %s %q at %d, want %d", e.Code, e.Message, e.Position, want)
			}
			break
		}
	}
	w.until(1)
	w.send(&pgproto3.Query{String: "select nope from customers"})
	if e, ok := w.receive().(*pgproto3.ErrorResponse); !ok || e.Code != "42703" || e.Position != 8 {
		t.Errorf("got %+v", e)
	}
	w.until(1)
	w.send(&pgproto3.Query{String: "selec 1"})
	if e, ok := w.receive().(*pgproto3.ErrorResponse); !ok || e.Code != "42601" || e.Position != 1 {
		t.Errorf("got %+v", e)
	}
	w.until(1)
}

// A change of the catalog is noticed, and a prepared statement follows it.
func TestCatalogChanges(t *testing.T) {
	t.Parallel()
	g := masked(t, "16")
	w := g.wire(t)
	w.send(parse("s", "select body from later"), syncMessage)
	same(t, w.until(1), []string{"ERROR 42P01", "ready I"})
	if err := g.pg.Exec(context.Background(), "orders", "create table later (id int, body text); insert into later values (1, 'there'); grant select on later to app"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the table is known", func() bool { return w.ask("select body from later")[0] == "columns body" })
}

func (g *gateway) recordedRows() []string {
	var cells []string
	for _, e := range g.recorder.all() {
		if e.Rows == nil {
			continue
		}
		for _, row := range e.Rows.Rows {
			for _, cell := range row {
				if cell != nil {
					cells = append(cells, *cell)
				}
			}
		}
	}
	return cells
}
