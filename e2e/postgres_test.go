package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/examples/demo"
)

// secretsOf are the true values of a masked column.
func secretsOf(t *testing.T, s *demo.Site) (ssn, card string) {
	t.Helper()
	if err := direct(t, s).QueryRow(t.Context(), "select ssn, card from customers where id = 1").Scan(&ssn, &card); err != nil {
		t.Fatal(err)
	}
	return ssn, card
}

// read runs a query by the simple protocol and returns every cell as text.
func read(ctx context.Context, conn *pgx.Conn, query string) (string, error) {
	results, err := conn.PgConn().Exec(ctx, query).ReadAll()
	var b strings.Builder
	for _, r := range results {
		for _, row := range r.Rows {
			for _, cell := range row {
				fmt.Fprintf(&b, "%s|", cell)
			}
		}
	}
	return b.String(), err
}

// TestMaskedColumnsNeverLeave: each query shows a secret straight at the
// database (control), and never through the gateway, as an answer or in an
// error. Those marked ok also answer something (twin).
func TestMaskedColumnsNeverLeave(t *testing.T) {
	t.Parallel()
	s := site(t)
	ssn, card := secretsOf(t, s)
	owner, agent := direct(t, s), connect(t, s, token(t, s, demo.Ada))
	for _, c := range []struct {
		query string
		ok    bool
	}{
		{"select * from customers where id = 1", true},
		{"select ssn as x from customers where id = 1", true},
		{"select c.* from customers c where c.id = 1", true},
		{"select c::text from customers c where id = 1", true},
		{"select row_to_json(c) from customers c where id = 1", true},
		{"select ssn || '' from customers where id = 1", true},
		{"select upper(card) from public.customers where id = 1", true},
		{"select (select ssn from customers i where i.id = o.id) from customers o where o.id = 1", true},
		{"with c as (select ssn from customers where id = 1) select * from c", true},
		{"select ssn from customers where id = 1 union all select name from customers where id = 1", true},
		{"select array_agg(ssn) from customers", true},
		{"select string_agg(card, ',') from customers", true},
		{"select max(ssn), min(ssn), max(card) from customers where id = 1", true},
		{"select x.ssn from (select * from customers) x where x.id = 1", true},
		{"select c.ssn from orders o join customers c on c.id = o.customer_id", true},
		{"select encode(ssn::bytea, 'escape') from customers where id = 1", true},
		{"select substr(ssn, 1, 11) from customers where id = 1", true},
		{"select format('%s', ssn) from customers where id = 1", true},
		{"table customers", true},
		{`select "ssn" from "public"."customers" where "id" = 1`, true},
		{"select/**/ssn/**/from/**/customers where id=1", true},
		{"select ssn from only customers where id = 1", false},
		{"select ssn from customers order by ssn limit 40", false},
		{"select ssn from customers group by ssn", false},
		{"select distinct ssn from customers", false},
		{"copy customers to stdout", false},
		{"copy (select ssn from customers) to stdout", false},
		{"delete from customers where id = -1 returning ssn; select ssn from customers where id = 1", false},
	} {
		control, err := read(t.Context(), owner, c.query)
		if c.query[:4] != "copy" && (err != nil || !strings.Contains(control, ssn) && !strings.Contains(control, card)) {
			t.Errorf("control: %s straight at the database answers %q, %v", c.query, control, err)
		}
		got, err := read(t.Context(), agent, c.query)
		if all := got + fmt.Sprintf("%v %+v", err, err); strings.Contains(all, ssn) || strings.Contains(all, card) || strings.Contains(all, ssn[:7]) {
			t.Errorf("%s leaks: %s", c.query, all)
		}
		if c.ok && (err != nil || !strings.Contains(got, "***")) {
			t.Errorf("%s should answer with a mask: %q, %v", c.query, got, err)
		}
		if agent.IsClosed() {
			t.Fatalf("%s ended the session", c.query)
		}
	}
}

// TestOraclesAreRefused: what would answer a question about a hidden value.
func TestOraclesAreRefused(t *testing.T) {
	t.Parallel()
	s := site(t)
	ssn, _ := secretsOf(t, s)
	agent := connect(t, s, token(t, s, demo.Ada))
	for _, query := range []string{
		"select id from customers where ssn like '1%'",
		"select id from customers where ssn = '" + ssn + "'",
		"select id from customers c where c::text like '%" + ssn + "%'",
		"select 1 from customers group by id having max(ssn) > '5'",
		"select id from customers order by ssn",
		"select id from customers order by (select ssn)",
		"select count(*) filter (where ssn > '5') from customers",
		"select a.id from customers a join customers b on a.ssn = b.ssn",
		"select a.id from customers a join customers b using (ssn)",
		"select id from customers natural join (select ssn from customers) x",
		"select id from (select id, ssn as x from customers) c where x like '1%'",
		"with c as (select id, ssn as x from customers) select id from c where x like '1%'",
		"select row_number() over (order by ssn) from customers",
		"select case when ssn > '5' then 1 else 0 end from customers",
		"select id from customers where exists (select 1 where ssn > '5')",
		"explain select id from customers where ssn like '1%'",
	} {
		got, err := read(t.Context(), agent, query)
		var refused *pgconn.PgError
		if errors.As(err, &refused) {
			continue
		}
		// What is not refused must compute on the mask: the same answer whatever the value.
		if err != nil || strings.Contains(got, ssn) {
			t.Errorf("%s: %q, %v", query, got, err)
		}
		if !strings.Contains(query, "case when") {
			t.Errorf("%s was answered: %q", query, got)
		}
	}
}

// TestForbiddenStatementsNeverArrive: refused by name or by rule, the
// connection stays usable, and the database's own log does not know of them.
func TestForbiddenStatementsNeverArrive(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	agent := connect(t, s, token(t, s, demo.Ada))
	for _, c := range []struct{ query, want, mark string }{
		{"drop table orders", "schema", "drop table"},
		{"truncate orders", "", "truncate"},
		{"create table evil (id int)", "schema", "create table evil"},
		{"alter table orders add evil int", "schema", "add evil"},
		{"create role evil superuser", "", "role evil"},
		{"grant all on customers to public", "", "grant all"},
		{"drop table orders; select 1 as evil1", "", "evil1"},
		{"prepare evil2 as delete from orders", "", "evil2"},
		{"copy orders to '/tmp/evil'", "file", "copy orders"},
		{"copy orders from program 'echo evil3'", "program", "evil3"},
		{"copy orders from stdin", "", "copy orders from stdin"},
		{"declare evil4 cursor with hold for select id from customers order by ssn", "masked", "evil4"},
		{"do $$ begin perform 'evil5'; end $$", "DO", "evil5"},
		{"set role postgres", "", "set role"},
		{"set session authorization postgres", "", "session authorization"},
		{"set search_path = evil6", "", "evil6"},
		{"set standard_conforming_strings = off", "", "standard_conforming_strings = off"},
		{"listen evil7", "LISTEN", "evil7"},
		{"lock table orders", "LOCK", "lock table orders"},
		{"explain analyze delete from orders", "", "explain analyze"},
		{"select pg_read_file('/etc/passwd')", "", "pg_read_file"},
		{"select pg_terminate_backend(1)", "", "pg_terminate_backend(1)"},
		{"select query_to_xml('select ssn from customers', true, false, '')", "", "query_to_xml"},
		{"select table_to_xml('customers', true, false, '')", "", "table_to_xml"},
		{"select database_to_xml(true, false, '')", "", "database_to_xml"},
		{"select * from ts_stat('select to_tsvector(ssn) from customers')", "", "ts_stat"},
		{"select set_config('search_path', 'evil8', false)", "", "evil8"},
		{"select nextval('evil9')", "", "evil9"},
		{"with x as (delete from orders returning id) select 'evil10' from x", "", "evil10"},
		{"select * into evil11 from orders", "", "evil11"},
		{"vacuum orders", "", "vacuum orders"},
		{"merge into orders using customers on false when not matched then do nothing", "", "merge into"},
		{"call evil12()", "CALL", "evil12"},
		{"update orders set status = 'evil13'", "", "evil13"},
	} {
		_, err := read(t.Context(), agent, c.query)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || !strings.Contains(refused.Message+refused.Detail+refused.Hint, c.want) || !strings.Contains(refused.Detail, "request req_") {
			t.Errorf("%s: %v", c.query, err)
		}
		if got, err := read(t.Context(), agent, "select count(*) from orders"); got != "120|" {
			t.Fatalf("after %s the connection answers %q, %v", c.query, got, err)
		}
		if strings.Contains(strings.ToLower(s.Database.Log()), c.mark) {
			t.Errorf("%s reached the database", c.query)
		}
	}
	// Control: the log would show it.
	if err := s.Database.Exec(t.Context(), "orders", "select 'evil-control'"); err != nil || !strings.Contains(s.Database.Log(), "evil-control") {
		t.Errorf("control: the database's log shows nothing: %v", err)
	}
}

// TestPgxModes: the ordinary Go driver in each of its ways to send a query.
func TestPgxModes(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := token(t, s, demo.Ada)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			conn := connect(t, s, tok)
			for id := range 3 {
				var name, ssn string
				var total float64
				err := conn.QueryRow(t.Context(), `select c.name, c.ssn, sum(o.total)::float8 from customers c join orders o on o.customer_id = c.id
					where c.id = $1 group by c.id, c.name, c.ssn`, mode, id+1).Scan(&name, &ssn, &total)
				if err == nil {
					t.Errorf("grouping by a hidden column was answered: %s %s %f", name, ssn, total)
				}
				err = conn.QueryRow(t.Context(), "select name, ssn from customers where id = $1", mode, id+1).Scan(&name, &ssn)
				if err != nil || name == "" || ssn != "***" {
					t.Errorf("customer %d: %q %q %v", id+1, name, ssn, err)
				}
			}
		})
	}
	t.Run("batch", func(t *testing.T) {
		t.Parallel()
		conn := connect(t, s, tok)
		batch := &pgx.Batch{}
		batch.Queue("select count(*)::text from orders")
		batch.Queue("select ssn from customers where id = $1", 1)
		results := conn.SendBatch(t.Context(), batch)
		var count, ssn string
		if err := errors.Join(results.QueryRow().Scan(&count), results.QueryRow().Scan(&ssn), results.Close()); err != nil || count != "120" || ssn != "***" {
			t.Errorf("batch: %q %q %v", count, ssn, err)
		}
	})
	t.Run("transaction", func(t *testing.T) {
		t.Parallel()
		conn := connect(t, s, tok)
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "drop table orders"); err == nil {
			t.Error("a DROP inside a transaction passed")
		}
		var failed *pgconn.PgError
		if _, err := tx.Exec(t.Context(), "select 1"); !errors.As(err, &failed) || failed.Code != "25P02" {
			t.Errorf("a denial must fail the transaction as the server would: %v", err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
		if got, err := read(t.Context(), conn, "select count(*) from orders"); got != "120|" {
			t.Errorf("after the rollback: %q %v", got, err)
		}
	})
}

// TestPsycopg2: the ordinary Python driver.
func TestPsycopg2(t *testing.T) {
	t.Parallel()
	s := site(t)
	script := `
import os, psycopg2
c = psycopg2.connect(os.environ["ORDERS"])
k = c.cursor()
k.execute("select name, ssn, card from customers where id = %s", (1,))
print(k.fetchone())
try:
    k.execute("drop table orders")
except psycopg2.Error as e:
    print(type(e).__name__, e.pgcode, e.diag.message_detail)
c.rollback()
k.execute("select count(*) from orders")
print(k.fetchone())
c.commit()
`
	cmd := exec.CommandContext(t.Context(), filepath.Join(tools(t), "python", "bin", "python3"), "-c", script)
	cmd.Env = append(os.Environ(), "ORDERS="+s.ConnString(true), "PGPASSWORD="+token(t, s, demo.Ada))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"'***', '***')", "InsufficientPrivilege 42501", "orders-agents/no-schema-changes", "(120,)"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the script's output lacks %q:\n%s", want, out)
		}
	}
}

// TestCancelReachesOnlyOnesOwn: attack with a guessed key, control with the
// right one.
func TestCancelReachesOnlyOnesOwn(t *testing.T) {
	t.Parallel()
	s := site(t)
	victim := connect(t, s, token(t, s, demo.Ada))
	done := make(chan error, 1)
	go func() {
		_, err := victim.Exec(context.Background(), "select pg_sleep(30)")
		done <- err
	}()
	const sleeping = "select count(*)::text from pg_stat_activity where state = 'active' and query like '%pg_sleep(30)%' and pid <> pg_backend_pid()"
	eventually(t, func() error {
		if got := value(t, s, sleeping); got != "1" {
			return fmt.Errorf("%s statements sleep", got)
		}
		return nil
	})
	other := connect(t, s, token(t, s, demo.Ada))
	if err := other.PgConn().CancelRequest(t.Context()); err != nil {
		t.Error(err)
	}
	if got := value(t, s, sleeping); got != "1" {
		t.Error("a cancel request of another session ended the statement")
	}
	if err := victim.PgConn().CancelRequest(t.Context()); err != nil {
		t.Error(err)
	}
	var cancelled *pgconn.PgError
	if err := <-done; !errors.As(err, &cancelled) || cancelled.Code != "57014" {
		t.Errorf("the session's own cancel: %v", err)
	}
}

func tools(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../tools/install", "--dir").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
