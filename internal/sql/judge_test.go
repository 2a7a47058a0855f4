package sql

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"

	"chaperone.dev/chaperone/internal/access"
)

// brief renders what the tests compare: command, flags, reads, writes.
func brief(st *Statement) string {
	a := st.Action
	var flags []string
	for _, f := range []struct {
		name string
		set  bool
	}{{"read-only", a.ReadOnly}, {"where", a.HasWhere}, {"locks", a.Locks}, {"ddl", a.DDL}, {"privilege", a.Privilege}, {"session", a.Session}} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	s := a.Command
	if len(flags) > 0 {
		s += " " + strings.Join(flags, ",")
	}
	if len(a.Reads) > 0 {
		s += " reads " + strings.Join(a.Reads, ",")
	}
	if len(a.Writes) > 0 {
		s += " writes " + strings.Join(a.Writes, ",")
	}
	return s
}

func TestJudge(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for _, c := range []struct{ name, text, want string }{
		{"constant", "select 1", "SELECT read-only"},
		{"table", "select id, name from customers where id = 7 order by 2 limit 10", "SELECT read-only,where reads public.customers"},
		{"schema", "select * from crm.customers", "SELECT read-only reads crm.customers"},
		{"alias", "select c.id, o.total from customers c join orders o on o.customer_id = c.id", "SELECT read-only reads public.customers,public.orders"},
		{"TABLE", "table orders", "SELECT read-only reads public.orders"},
		{"values", "values (1, 'a'), (2, 'b') order by column1", "SELECT read-only"},
		{"catalog", "select relname from pg_catalog.pg_class where relname operator(pg_catalog.~) '^c' collate pg_catalog.default", "SELECT read-only,where reads pg_catalog.pg_class"},
		{"catalog unqualified", "select c.relname from pg_class c", "SELECT read-only reads pg_catalog.pg_class"},
		{"cte", "with customers as (select 1 as id) select id from customers", "SELECT read-only"},
		{"cte and schema", "with customers as (select 1 as id) select id from public.customers", "SELECT read-only reads public.customers"},
		{"cte sees table in itself", "with customers as (select * from customers) select * from customers", "SELECT read-only reads public.customers"},
		{"recursive cte does not", "with recursive customers as (select 1 as id union all select id + 1 from customers where id < 3) select * from customers", "SELECT read-only"},
		{"later is a table", "with a as (select id from orders), orders as (select 1 as id) select a.id from a, orders", "SELECT read-only reads public.orders"},
		{"nested cte hides", "with orders as (select 1 as id) select * from (select (select max(id) from orders) as m) x", "SELECT read-only"},
		{"nested cte ends", "select * from (with orders as (select 1 as id) select * from orders) x, orders", "SELECT read-only reads public.orders"},
		{"cte of a union arm", "(with orders as (select 1 as id) select id from orders) union all select id from orders", "SELECT read-only reads public.orders"},
		{"set operations", "select id from orders union select id from customers except select 1", "SELECT read-only reads public.customers,public.orders"},
		{"merge", "merge into orders o using (select id, name from customers) c on o.id = c.id when matched and o.total > 3 then update set (total, at) = (1, default) when not matched then insert (id) values (c.id) returning o.id, c.name",
			"MERGE where reads public.customers,public.orders writes public.orders"},
		{"merge of all", "merge into orders using customers c on true when matched then delete", "MERGE reads public.customers writes public.orders"},
		{"merge of the rest", "merge into orders o using customers c on o.id = c.id when not matched by source then delete", "MERGE reads public.customers,public.orders writes public.orders"},
		{"merge of some of the rest", "merge into orders o using customers c on o.id = c.id when matched then do nothing when not matched by source and o.total = 1 then delete", "MERGE where reads public.customers,public.orders writes public.orders"},
		{"merge in with", "with m as (merge into orders o using customers c on o.id = c.id when matched then delete returning o.id) select id from m", "MERGE where reads public.customers,public.orders writes public.orders"},
		{"explain merge", "explain merge into orders o using customers c on o.id = c.id when not matched then insert default values", "EXPLAIN where reads public.customers,public.orders writes public.orders"},
		{"current of", "delete from orders where current of c", "DELETE where writes public.orders"},
		{"window", "select id, row_number() over w, sum(total) over (partition by customer_id) from orders window w as (order by at)", "SELECT read-only reads public.orders"},
		{"lateral", "select c.id, x.t from customers c, lateral (select sum(o.total) as t from orders o where o.customer_id = c.id) x", "SELECT read-only reads public.customers,public.orders"},
		{"functions in from", "select g, o.value, k.key from generate_series(1, 3) g, jsonb_array_elements('[1]') o, jsonb_each('{}') k", "SELECT read-only"},
		{"ordinality", "select x.a, x.n from unnest(array[1]) with ordinality as x(a, n)", "SELECT read-only"},
		{"record", "select x.a from json_to_record('{}') as x(a int, b text)", "SELECT read-only"},
		{"aggregates in values", "values (count(*), sum(1), grouping(1))", "SELECT read-only"},
		{"sleep", "select pg_sleep(60)", "SELECT read-only"},
		{"current", "select current_date, now(), current_user, version()", "SELECT read-only"},
		{"extract", "select extract(year from at), at at time zone 'utc', trim(both from ' x'), substring('abc' from 2) from orders", "SELECT read-only reads public.orders"},
		{"parameters", "select id from orders where id = any($1) and total > $3", "SELECT read-only,where reads public.orders"},
		{"casts", "select '1'::int, cast(id as text), '{a}'::text[], 'customers'::regclass, interval '1 day' from orders", "SELECT read-only reads public.orders"},
		{"enum", "select 'ok'::mood, mood from typed where mood = 'sad'", "SELECT read-only,where reads public.typed"},
		{"domain column", "select tag from typed", "SELECT read-only reads public.typed"},
		{"vouched", "select vouched(id), public.vouched(1) from orders", "SELECT read-only reads public.orders"},
		{"extension", "select similarity('a', 'b'), 'a' % 'b'", "SELECT read-only"},
		{"view", "select * from clean", "SELECT read-only reads public.clean,public.orders"},
		{"view over view", "select id from over", "SELECT read-only reads public.customers,public.dirty,public.over"},
		{"grouping", "select customer_id, count(*) filter (where total > 1) from orders group by rollup(customer_id) having count(*) > 1", "SELECT read-only reads public.orders"},
		{"using", "select id from customers join orders using (id)", "SELECT read-only reads public.customers,public.orders"},
		{"natural", "select * from customers natural join crm.customers as x", "SELECT read-only reads crm.customers,public.customers"},
		{"sample", "select id from orders tablesample system (10)", "SELECT read-only reads public.orders"},
		{"sequence", "select last_value from seq", "SELECT read-only reads public.seq"},
		{"database", "select id from shop.public.orders", "SELECT read-only reads public.orders"},
		{"declare", "declare c cursor for select id from orders where total > 3", "SELECT read-only,where reads public.orders"},
		{"declare for update", "declare c scroll cursor with hold for select id from orders for update", "SELECT locks reads public.orders"},
		{"fetch", "fetch 5 from c", "FETCH"},
		{"move", "move backward all in c", "MOVE"},
		{"close", "close c", "CLOSE read-only,session"},
		{"prepare", "prepare p (int, text) as select id from orders where id = $1", "SELECT read-only,where reads public.orders"},
		{"prepare delete", "prepare p as delete from orders", "DELETE writes public.orders"},
		{"execute", "execute p (1, 'x')", "EXECUTE"},
		{"deallocate", "deallocate prepare p", "DEALLOCATE read-only,session"},
		{"copy out", "copy orders to stdout", "COPY read-only reads public.orders"},
		{"copy columns", "copy public.orders (id, total) to stdout with csv header", "COPY read-only reads public.orders"},
		{"copy query", "copy (select c.name from customers c join orders o on o.customer_id = c.id) to stdout (format binary)", "COPY read-only reads public.customers,public.orders"},
		{"copy with an unknown function", "copy (select mystery(id) from orders) to stdout", "COPY reads public.orders"},
		{"copy in", "copy orders from stdin", "COPY writes public.orders"},
		{"copy in where", "copy orders (id, total) from stdin where total > 3", "COPY where reads public.orders writes public.orders"},
		{"explain analyze", "explain analyze select * from orders", "SELECT read-only reads public.orders"},
		{"explain analyze delete", "explain (analyze, buffers, wal) delete from orders where id = 1", "DELETE where reads public.orders writes public.orders"},
		{"characteristics", "set session characteristics as transaction read only", "SET SESSION CHARACTERISTICS read-only,session"},
		{"default isolation", "set default_transaction_isolation = 'repeatable read'", "SET read-only,session"},
		{"explain", "explain select * from orders", "EXPLAIN read-only reads public.orders"},
		{"explain options", "explain (verbose, costs off, analyze false) select 1", "EXPLAIN read-only"},
		{"select for update", "select id from orders for update", "SELECT locks reads public.orders"},
		{"inner for share", "select * from (select id from orders for share) x", "SELECT locks reads public.orders"},

		{"insert", "insert into orders (id, total) values (1, default)", "INSERT writes public.orders"},
		{"insert select", "insert into orders (id) select id from customers where id = 1", "INSERT reads public.customers writes public.orders"},
		{"insert all", "insert into orders values (1, 2, '', 3, now())", "INSERT writes public.orders"},
		{"upsert", "insert into orders (id) values (1) on conflict (id) do update set total = excluded.total where orders.total < 3 returning id", "INSERT reads public.orders writes public.orders"},
		{"update", "update orders set total = 1 where id = 7", "UPDATE where reads public.orders writes public.orders"},
		{"update all", "update orders set total = 1", "UPDATE writes public.orders"},
		{"update where true", "update orders set total = 1 where true", "UPDATE writes public.orders"},
		{"update from", "update orders o set (total, at) = (select 1, now()) from customers c where c.id = o.customer_id returning o.*", "UPDATE where reads public.customers,public.orders writes public.orders"},
		{"delete", "delete from orders where id in (select id from customers)", "DELETE where reads public.customers,public.orders writes public.orders"},
		{"delete exists", "delete from orders o where exists (select 1 from customers c where c.id = o.customer_id)", "DELETE where reads public.customers,public.orders writes public.orders"},
		{"delete using", "delete from orders using customers c where c.id = customer_id", "DELETE where reads public.customers,public.orders writes public.orders"},
		{"target is never a cte", "with orders as (select 1 as id) delete from orders", "DELETE writes public.orders"},
		{"writing cte", "with d as (delete from orders returning id) select * from d", "DELETE reads public.orders writes public.orders"},
		{"writing ctes", "with d as (delete from orders where id = 1), i as (insert into customers (id) values (1)) select 1", "WITH where reads public.orders writes public.customers,public.orders"},
		{"explain delete", "explain delete from orders", "EXPLAIN writes public.orders"},

		{"drop", "drop table orders", "DROP TABLE ddl writes public.orders"},
		{"drop several", "drop table if exists crm.customers, nothing cascade", "DROP TABLE ddl writes crm.customers,public.nothing"},
		{"create", "create table t (id int references orders)", "CREATE TABLE ddl writes public.orders,public.t"},
		{"create temp", "create temp table t ()", "CREATE TABLE ddl writes pg_temp.t"},
		{"alter", "alter table orders add column x int", "ALTER TABLE ddl writes public.orders"},
		{"rename", "alter table orders rename to o", "ALTER TABLE ddl writes public.orders"},
		{"rename column", "alter table orders rename column id to i", "ALTER TABLE ddl writes public.orders"},
		{"truncate", "truncate orders, customers", "TRUNCATE TABLE ddl writes public.customers,public.orders"},
		{"index", "create index on orders (id)", "CREATE INDEX ddl writes public.orders"},
		{"view definition", "create view v as select * from customers", "CREATE VIEW ddl writes public.customers,public.v"},
		{"grant", "grant select on orders to app", "GRANT ddl,privilege writes public.orders"},
		{"revoke", "revoke all on orders from app", "REVOKE ddl,privilege writes public.orders"},
		{"function", "create function f() returns int language sql as 'select 1'", "CREATE FUNCTION ddl"},
		{"drop trigger", "drop trigger t on orders", "DROP TRIGGER ddl writes public.orders"},
		{"owner", "alter table orders owner to app", "ALTER TABLE ddl,privilege writes public.orders"},
		{"owner among others", "alter table orders add column x int, owner to app", "ALTER TABLE ddl,privilege writes public.orders"},
		{"row security", "alter table orders disable row level security", "ALTER TABLE ddl,privilege writes public.orders"},
		{"policy", "create policy p on orders using (true)", "CREATE POLICY ddl,privilege writes public.orders"},
		{"drop policy", "drop policy p on orders", "DROP POLICY ddl,privilege writes public.orders"},
		{"create role", "create role r superuser", "CREATE ROLE ddl,privilege"},
		{"grant role", "grant app to r", "GRANT ddl,privilege"},
		{"default privileges", "alter default privileges grant select on tables to app", "ALTER DEFAULT PRIVILEGES ddl,privilege"},
		{"security definer", "create function f() returns int language sql security definer as 'select 1'", "CREATE FUNCTION ddl,privilege"},
		{"comment", "comment on column orders.id is 'x'", "COMMENT ddl writes public.orders"},
		{"role", "alter role app set search_path = x", "ALTER ROLE ddl,privilege"},

		{"begin", "begin isolation level serializable read only", "BEGIN read-only,session"},
		{"commit", "commit", "COMMIT read-only,session"},
		{"set", "set application_name = 'x'", "SET read-only,session"},
		{"show", "show timezone", "SHOW read-only,session"},
		{"nothing", " -- nothing", " read-only"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := judge(t, a, cat, c.text)
			if got := brief(st); got != c.want {
				t.Errorf("%s\n got %s\nwant %s\nunknown %q refusal %v", c.text, got, c.want, st.Action.Unknown, st.Refusal)
			}
			refused := st.Action.DDL
			if (st.Refusal != nil) != refused {
				t.Errorf("%s: refusal %v", c.text, st.Refusal)
			}
			if st.Action.ReadOnly && len(st.Action.Unknown) > 0 {
				t.Errorf("%s: read-only with unknowns %q", c.text, st.Action.Unknown)
			}
		})
	}
}

// Advisory locks are known for what they are: locks, and nothing else.
func TestAdvisoryLocks(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for text, known := range map[string]bool{
		"select pg_advisory_lock(1)": true, "select pg_catalog.pg_try_advisory_xact_lock_shared(1, 2)": true, "select id from orders where pg_try_advisory_lock(id)": true,
		"select pg_advisory_unlock_all(), 1": true, "select public.pg_advisory_lock(1)": false, "select pg_advisory_lock(mystery(1))": false,
	} {
		st := judge(t, a, cat, text)
		if st.Action.ReadOnly || known && (!st.Action.Locks || len(st.Action.Unknown) > 0 || st.Refusal != nil) || !known && len(st.Action.Unknown) == 0 {
			t.Errorf("%s: %+v %v", text, st.Action, st.Refusal)
		}
	}
}

// LISTEN and NOTIFY name their channel, and are neither reads nor about the
// session alone.
func TestChannels(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for text, want := range map[string]string{"listen jobs": "LISTEN jobs", `listen "Odd one"`: "LISTEN Odd one", "notify JOBS, 'x'": "NOTIFY jobs"} {
		st := judge(t, a, cat, text)
		if got := st.Action.Command + " " + strings.Join(st.Action.Channels, ","); got != want || st.Name != st.Action.Channels[0] || st.Action.ReadOnly || st.Action.Session ||
			len(st.Action.Unknown) > 0 || st.Refusal != nil {
			t.Errorf("%s: %q %+v", text, got, st.Action)
		}
	}
	hop := &access.Attenuation{Tables: []string{"public.orders"}}
	if why := hop.Refuses(access.Resource{}, access.Action{SQL: &judge(t, a, cat, "notify jobs").Action}); why == "" {
		t.Error("a hop for tables alone notifies")
	}
}

// What is not known is never read-only, and says why.
func TestUnknownIsNotReadOnly(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for _, c := range []struct{ name, text, why string }{
		{"function", "select mystery(1)", "function public.mystery"},
		{"no function", "select pg_read_file('/etc/passwd')", "function pg_catalog.pg_read_file"},
		{"file", "select pg_catalog.pg_ls_dir('/')", "function pg_catalog.pg_ls_dir"},
		{"sequence", "select nextval('seq')", "function pg_catalog.nextval"},
		{"set_config", "select set_config('role', 'postgres', false)", "function pg_catalog.set_config"},
		{"query", "select query_to_xml('select * from customers', true, false, '')", "query_to_xml"},
		{"ts_stat", "select * from ts_stat('select ssn from customers') as x(a)", "ts_stat"},
		{"large object", "select lo_unlink(1)", "lo_unlink"},
		{"unlock by another", "select x.pg_advisory_unlock_all()", "x.pg_advisory_unlock_all"},
		{"kill", "select pg_terminate_backend(1)", "pg_terminate_backend"},
		{"shadowed function", "select upper('x')", "function public.upper"},
		{"hidden schema", "select hidden.lower('x')", "function hidden.lower"},
		{"own argument types", "select length(c) from customers c", "public.length"},
		{"operator", "select 1 ~~~ 2", "operator ~~~"},
		{"operator schema", "select 1 operator(public.~~~) 2", "operator public.~~~"},
		{"own operator types", "select place from typed where id <= 3", "public.place"},
		{"domain", "select 'x'::tag", "type public.tag"},
		{"row type", "select null::customers", "type public.customers"},
		{"unknown type", "select 'x'::nothing", "type nothing"},
		{"pseudo type", "select 'x'::pg_catalog.internal", "type pg_catalog.internal"},
		{"own type", "select place from typed", "type public.place"},
		{"view", "select * from calls", "view public.calls: function public.mystery"},
		{"order using", "select id from orders order by id using ~~~", "operator ~~~"},
		{"sampling", "select id from orders tablesample mystery (1)", "sampling"},
		{"in a filter", "select count(*) filter (where mystery(1)) from orders", "public.mystery"},
		{"in a frame", "select sum(id) over (rows mystery(1) preceding) from orders", "public.mystery"},
		{"in a limit", "select 1 limit mystery(1)", "public.mystery"},
		{"in values", "values (mystery(1))", "public.mystery"},
		{"in a subquery", "select (select mystery(1))", "public.mystery"},
		{"in an array", "select array[mystery(1)], (array[1])[mystery(1)]", "public.mystery"},
		{"in explain", "explain select mystery(1)", "public.mystery"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := judge(t, a, cat, c.text)
			if st.Action.ReadOnly || !strings.Contains(strings.Join(st.Action.Unknown, "; "), c.why) {
				t.Errorf("%s\nread-only %v, unknown %q, not %q", c.text, st.Action.ReadOnly, st.Action.Unknown, c.why)
			}
		})
	}
	casting := testCatalog(t, func(c *catalogContents) {
		c.Casts = append(c.Casts, catalogCast{Source: "text", Target: "integer"})
	})
	if st := judge(t, a, casting, "select '1'::int"); st.Action.ReadOnly {
		t.Error("a cast of the database's own is not noticed")
	}
	if st := judge(t, a, casting, "select 1"); !st.Action.ReadOnly {
		t.Errorf("an explicit cast matters without a cast: %q", st.Action.Unknown)
	}
	implicit := testCatalog(t, func(c *catalogContents) {
		c.Casts = append(c.Casts, catalogCast{Source: "text", Target: "integer", Implicit: true})
	})
	if st := judge(t, a, implicit, "select id from orders"); st.Action.ReadOnly {
		t.Error("an implicit cast of the database's own is not noticed")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for _, c := range []struct {
		name, text string
		reason     access.Reason
		state      string
		message    string
		position   int
	}{
		{"syntax", "selec 1", access.Unreadable, "42601", "syntax error", 1},
		{"no table", "select é from nothing", access.Unreadable, "42P01", `relation "nothing" does not exist`, 15},
		{"no column", "select 'é', nothing from orders", access.Unreadable, "42703", `column "nothing" does not exist`, 13},
		{"no qualified column", "select o.nothing from orders o", access.Unreadable, "42703", `column "nothing" of "o" does not exist`, 8},
		{"no alias", "select x.id from orders o", access.Unreadable, "42P01", `missing FROM-clause entry for table "x"`, 8},
		{"hidden by alias", "select orders.id from orders o", access.Unreadable, "42P01", "missing FROM-clause", 8},
		{"old and new", "update orders set total = 1 returning old.total", access.Unreadable, "42P01", `missing FROM-clause entry for table "old"`, 39},
		{"old row", "update orders set total = 1 returning old", access.Unreadable, "42703", `column "old" does not exist`, 39},
		{"ambiguous", "select id from orders, customers", access.Unreadable, "42702", "ambiguous", 8},
		{"function as column", "select o.row_to_json from orders o", access.Unreadable, "42703", "row_to_json", 8},
		{"not lateral", "select * from orders o, (select o.id) x", access.Unreadable, "42P01", `"o"`, 33},
		{"on sees its sides only", "select 1 from orders o, customers c join crm.customers d on o.id = d.id", access.Unreadable, "42P01", `"o"`, 61},
		{"other database", "select * from other.public.orders", access.Unreadable, "0A000", "cross-database", 15},
		{"temporary", "select * from pg_temp.orders", access.Unsupported, "0A000", "pg_temp", 15},
		{"toast", "select * from pg_toast.pg_toast_1", access.Unsupported, "0A000", "pg_toast", 15},
		{"forward cte", "with a as (select * from b), b as (select 1) select 1 from a", access.Unreadable, "42P01", `"b"`, 26},
		{"recursive later", "with recursive a as (select * from b), b as (select id from orders) select * from a", access.Unsupported, "0A000", "named before it is written", 36},
		{"self cte", "with recursive a as (select * from a) select 1 from a", access.Unreadable, "42P19", "recursive", 36},
		{"two statements", "select 1; drop table orders", access.Unsupported, "42601", "multiple commands", 0},
		{"copy to a file", "copy orders to '/tmp/x'", access.Unsupported, "0A000", "a file or a program", 0},
		{"copy from a file", "copy orders from '/etc/passwd'", access.Unsupported, "0A000", "a file or a program", 0},
		{"copy to a program", "copy (select 1) to program 'sh'", access.Unsupported, "0A000", "a file or a program", 0},
		{"copy from a program", "copy orders from program 'id'", access.Unsupported, "0A000", "a file or a program", 0},
		{"copy a view", "copy clean to stdout", access.Unsupported, "0A000", "not a plain table", 6},
		{"copy partitions", "copy events to stdout", access.Unsupported, "0A000", "not a plain table", 6},
		{"copy no table", "copy nothing to stdout", access.Unreadable, "42P01", "nothing", 6},
		{"copy no column", "copy orders (nope) to stdout", access.Unreadable, "42703", `"nope"`, 0},
		{"copy into no column", "copy orders (nope) from stdin", access.Unreadable, "42703", `"nope"`, 0},
		{"copy into a view", "copy clean from stdin", access.Unsupported, "0A000", "not a base table", 6},
		{"copy a change", "copy (delete from orders returning id) to stdout", access.Unsupported, "0A000", "changes data", 0},
		{"copy with a deleting query", "copy (with d as (delete from orders returning id) select id from d) to stdout", access.Unsupported, "0A000", "changes data", 0},
		{"copy freeze", "copy orders from stdin (freeze)", access.Unsupported, "0A000", "FREEZE", 0},
		{"copy latin1", "copy orders to stdout (encoding 'latin1')", access.Unsupported, "0A000", "encoding", 0},
		{"copy parameter", "copy (select $1) to stdout", access.Unsupported, "0A000", "parameters", 0},
		{"copy where", "copy orders from stdin where xmlelement(name a) is null", access.Unsupported, "0A000", "SQL/XML", 0},
		{"prepare unknown", "prepare p as select nothing", access.Unreadable, "42703", "nothing", 21},
		{"prepare own type", "prepare p (mood) as select $1", access.Unsupported, "0A000", "not one of PostgreSQL's own", 12},
		{"execute expression", "execute p (1 + 1)", access.Unsupported, "0A000", "not a constant", 0},
		{"execute function", "execute p (now())", access.Unsupported, "0A000", "not a constant", 0},
		{"execute own type", "execute p ('x'::place)", access.Unsupported, "0A000", "type", 0},
		{"declare a change", "declare c cursor for with d as (delete from orders returning id) select id from d", access.Unsupported, "0A000", "changes data", 0},
		{"declare unknown", "declare c cursor for select nothing", access.Unreadable, "42703", "nothing", 29},
		{"do", "do 'begin end'", access.Unsupported, "0A000", "DO", 0},
		{"call", "call p()", access.Unsupported, "0A000", "CALL", 0},
		{"lock", "lock orders", access.Unsupported, "0A000", "LOCK", 0},
		{"merge_action", "merge into orders o using customers c on o.id = c.id when matched then delete returning merge_action()", access.Unsupported, "0A000", "MERGE_ACTION", 0},
		{"merge sees no target", "merge into orders o using customers c on o.id = c.id when not matched then insert (id) values (o.id)", access.Unreadable, "42P01", "\"o\"", 96},
		{"merge sees no source", "merge into orders o using customers c on o.id = c.id when not matched by source and c.id = 1 then delete", access.Unreadable, "42P01", "\"c\"", 85},
		{"merge into a view", "merge into clean v using customers c on v.id = c.id when matched then delete", access.Unsupported, "0A000", "not a base table", 12},
		{"create as", "create table t as select 1", access.Unsupported, "0A000", "CREATE TABLE AS", 0},
		{"into", "select * into t from orders", access.Unsupported, "0A000", "SELECT INTO", 0},
		{"explain execute", "explain execute p", access.Unsupported, "0A000", "EXPLAIN of this", 0},
		{"explain create", "explain create table t as select 1", access.Unsupported, "0A000", "EXPLAIN of this", 0},
		{"json_table", "select * from json_table('[]', '$' columns (a int)) x", access.Unsupported, "0A000", "JSON_TABLE", 0},
		{"xml", "select xmlelement(name a)", access.Unsupported, "0A000", "SQL/XML", 0},
		{"cycle", "with recursive a as (select 1 as id union all select id from a) cycle id set c using p select 1 from a", access.Unsupported, "0A000", "CYCLE", 0},
		{"vacuum", "vacuum", access.Unsupported, "0A000", "VACUUM", 0},
		{"two-phase", "prepare transaction 'x'", access.Unsupported, "0A000", "two-phase", 0},
		{"set role", "set role postgres", access.Unsupported, "0A000", "SET role", 0},
		{"set session authorization", "set session authorization x", access.Unsupported, "0A000", "session_authorization", 0},
		{"set search_path", "set search_path = x", access.Unsupported, "0A000", "search_path", 0},
		{"set custom", "set app.tenant = 1", access.Unsupported, "0A000", "app.tenant", 0},
		{"set strings", "set standard_conforming_strings = off", access.Unsupported, "0A000", "one of on", 0},
		{"set encoding", "set client_encoding = 'latin1'", access.Unsupported, "0A000", "one of utf8", 0},
		{"set names", "set names 'sjis'", access.Unsupported, "0A000", "one of utf8", 0},
		{"set no timeout", "set statement_timeout = 0", access.Unsupported, "0A000", "more than 0", 0},
		{"set datestyle", "set datestyle = 'german'", access.Unsupported, "0A000", "ISO", 0},
		{"show all", "show all", access.Unsupported, "0A000", "SHOW", 0},
		{"import snapshot", "set transaction snapshot 'x'", access.Unsupported, "0A000", "TRANSACTION SNAPSHOT", 0},
		{"change a view", "update clean set id = 1", access.Unsupported, "0A000", "not a base table", 8},
		{"change with rules", "delete from ruled", access.Unsupported, "0A000", "rewrite rules", 13},
		{"unknown function in from", "select * from mystery(1) m", access.Unreadable, "0A000", "columns of function", 15},
		{"row expansion", "select (c).* from customers c", access.Unsupported, "0A000", "expansion", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := judge(t, a, cat, c.text)
			r := st.Refusal
			if r == nil || r.Reason != c.reason || r.SQLState != c.state || !strings.Contains(r.Message, c.message) || r.Position != c.position || r.Hint == "" {
				t.Fatalf("%s\n got %+v\naction %+v", c.text, r, st.Action)
			}
			if st.Action.ReadOnly || st.Kind != KindRefused || len(st.Action.Unknown) == 0 {
				t.Errorf("%s: kind %d, action %+v", c.text, st.Kind, st.Action)
			}
		})
	}
}

// A message is cut into its statements where the server cuts it.
func TestParts(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for text, want := range map[string][]Part{
		"select 1":                      nil,
		"select 1;":                     nil,
		";; select 1 ;;":                nil,
		"select 1; select 2":            {{"select 1", 0}, {"select 2", 10}},
		"select 'é;';\n\t select 2 ;  ": {{"select 'é;'", 0}, {"select 2 ", 15}},
		"/* ; */ select 1; -- ;\nbegin": {{"/* ; */ select 1", 0}, {"-- ;\nbegin", 18}},
	} {
		st := judge(t, a, cat, text)
		if !slices.Equal(st.Parts, want) {
			t.Errorf("%q\n got %+v\nwant %+v", text, st.Parts, want)
		}
		for _, part := range st.Parts {
			if alone := judge(t, a, cat, part.Text); alone.Refusal != nil || len(alone.Parts) != 0 {
				t.Errorf("%q: %+v", part.Text, alone)
			}
		}
	}
}

// A refusal does not hide what the statement is: policy is asked first.
func TestRefusedActionsStayNamed(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for text, want := range map[string]string{
		"select 1; drop table orders; select * from customers": " ddl reads public.customers writes public.orders",
		"copy customers to '/tmp/x'":                           "COPY reads public.customers",
		"copy orders from program 'id'":                        "COPY writes public.orders",
		"lock orders":                                          "LOCK writes public.orders",
		"create table t as select * from customers":            "CREATE TABLE AS writes public.customers,public.t",
		"select nothing from customers, orders":                "SELECT reads public.customers,public.orders",
	} {
		if got := brief(judge(t, a, cat, text)); got != want {
			t.Errorf("%s\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestColumnsAndFunctions(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for text, want := range map[string]string{
		"select c.name, lower(email) from customers c where id = $2": "public.customers.email public.customers.id public.customers.name | pg_catalog.lower | 2",
		"select * from crm.customers":                                "crm.customers.id crm.customers.ssn |  | 0",
		"select count(*) from orders":                                " | pg_catalog.count | 0",
		"select x.b from (select id as b, total from orders) x":      "public.orders.id public.orders.total |  | 0",
		"select row_to_json(c) from crm.customers c":                 "crm.customers.id crm.customers.ssn | pg_catalog.row_to_json | 0",
		"select id from customers join crm.customers x using (id)":   "crm.customers.id public.customers.id |  | 0",
		"insert into orders (id) values ($1) returning total":        "public.orders.id public.orders.total |  | 1",
		"select public.vouched(current_date)":                        " | pg_catalog.current_date public.vouched | 0",
	} {
		st := judge(t, a, cat, text)
		got := fmt.Sprintf("%s | %s | %d", strings.Join(st.Action.Columns, " "), strings.Join(st.Action.Functions, " "), st.Parameters)
		if got != want || st.Refusal != nil {
			t.Errorf("%s\n got %s\nwant %s (%v)", text, got, want, st.Refusal)
		}
	}
}

func TestStatementKinds(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for text, want := range map[string]string{
		"select 1":                        "2 0 <nil> true",
		"":                                "1 0 <nil> false",
		"delete from orders":              "3 0 <nil> false",
		"delete from orders returning id": "3 0 <nil> true",
		"begin":                           "4 1 <nil> false",
		"start transaction read only":     "4 1 <nil> false",
		"end":                             "4 2 <nil> false",
		"abort":                           "4 3 <nil> false",
		"savepoint a":                     "4 4 <nil> false",
		"release a":                       "4 5 <nil> false",
		"rollback to a":                   "4 6 <nil> false",
		"set transaction isolation level serializable": "4 7 <nil> false",
		"set local statement_timeout = '5 s'":          "5 0 &{statement_timeout 5 s 5s true false false} false",
		"set statement_timeout = 250":                  "5 0 &{statement_timeout 250 250ms false false false} false",
		"set time zone 'UTC'":                          "5 0 &{timezone UTC 0s false false false} false",
		"set time zone default":                        "5 0 &{timezone  0s false false true} false",
		"set datestyle to iso, mdy":                    "5 0 &{datestyle iso, mdy 0s false false false} false",
		"set extra_float_digits = 3":                   "5 0 &{extra_float_digits 3 0s false false false} false",
		"reset application_name":                       "5 0 &{application_name  0s false false true} false",
		"show server_version":                          "5 0 &{server_version  0s false true false} true",
		"drop table orders":                            "6 0 <nil> false",
		"explain select 1":                             "2 0 <nil> true",
		"explain analyze delete from orders":           "3 0 <nil> true",
		"declare c cursor for select 1":                "7 0 <nil> false",
		"fetch c":                                      "8 0 <nil> true",
		"move c":                                       "8 0 <nil> false",
		"close all":                                    "9 0 <nil> false",
		"prepare p as select $1":                       "10 0 <nil> false",
		"execute p":                                    "11 0 <nil> true",
		"deallocate all":                               "12 0 <nil> false",
		"copy orders to stdout":                        "13 0 <nil> false",
		"copy orders from stdin":                       "14 0 <nil> false",
		"reset all":                                    "15 0 <nil> false",
		"set session authorization default":            "15 0 <nil> false",
		"unlisten *":                                   "15 0 <nil> false",
		"discard plans":                                "15 0 <nil> false",
		"select pg_advisory_unlock_all()":              "15 0 <nil> true",
		"select pg_catalog.pg_advisory_unlock_all()":   "15 0 <nil> true",
		"discard all":                                  "16 0 <nil> false",
	} {
		st := judge(t, a, cat, text)
		if got := fmt.Sprintf("%d %d %v %v", st.Kind, st.Transaction, st.Setting, st.ReturnsRows); got != want {
			t.Errorf("%s\n got %s\nwant %s (%v)", text, got, want, st.Refusal)
		}
	}
}

// Every node of the grammar has a form; every field and value that has a rule
// exists. The others refuse a statement, as TestUnlistedFields shows.
func TestEveryNodeHasAForm(t *testing.T) {
	t.Parallel()
	g := newGrammar()
	messages := pg.File_pg_query_proto.Messages()
	known := map[string]bool{}
	enums := map[string]bool{}
	for i := range messages.Len() {
		m := messages.Get(i)
		known[string(m.Name())] = true
		if g.forms[m.Name()] == formUnknown {
			t.Errorf("node %s has no form", m.Name())
		}
		for f := range g.fields[m.Name()] {
			d := m.Fields().ByName(f)
			if d == nil {
				t.Errorf("bound field %s.%s is not in the grammar", m.Name(), f)
				continue
			}
			if d.Enum() != nil {
				enums[string(d.Enum().Name())] = true
				if g.enums[d.Enum().Name()] == nil {
					t.Errorf("the values of %s.%s have no rule", m.Name(), f)
				}
			}
		}
	}
	for name := range g.forms {
		if !known[string(name)] {
			t.Errorf("form %s is not in the grammar", name)
		}
	}
	for name, values := range g.enums {
		e := pg.File_pg_query_proto.Enums().ByName(name)
		if e == nil || !enums[string(name)] && name != "OnCommitAction" {
			t.Errorf("enumeration %s is not in a bound node", name)
			continue
		}
		for v := range values {
			if e.Values().ByName(v) == nil {
				t.Errorf("value %s is not in %s", v, name)
			}
		}
	}
}

// A field, a value or a node without a rule refuses the query, whatever it is.
func TestUnlistedFields(t *testing.T) {
	t.Parallel()
	g := newGrammar()
	for name, m := range map[string]*pg.Node{
		"field":       {Node: &pg.Node_NullTest{NullTest: &pg.NullTest{Nulltesttype: pg.NullTestType_IS_NULL, Argisrow: true}}},
		"value":       {Node: &pg.Node_JoinExpr{JoinExpr: &pg.JoinExpr{Jointype: pg.JoinType_JOIN_ANTI}}},
		"new value":   {Node: &pg.Node_JoinExpr{JoinExpr: &pg.JoinExpr{Jointype: 99}}},
		"analyzed":    {Node: &pg.Node_Var{Var: &pg.Var{}}},
		"definition":  {Node: &pg.Node_List{List: &pg.List{Items: []*pg.Node{{Node: &pg.Node_DropStmt{DropStmt: &pg.DropStmt{}}}}}}},
		"refused":     {Node: &pg.Node_List{List: &pg.List{Items: []*pg.Node{{Node: &pg.Node_XmlExpr{XmlExpr: &pg.XmlExpr{}}}}}}},
		"nested":      {Node: &pg.Node_SelectStmt{SelectStmt: &pg.SelectStmt{Larg: &pg.SelectStmt{WhereClause: &pg.Node{Node: &pg.Node_Param{Param: &pg.Param{}}}}}}},
		"part":        {Node: &pg.Node_RoleSpec{RoleSpec: &pg.RoleSpec{}}},
		"nested enum": {Node: &pg.Node_SelectStmt{SelectStmt: &pg.SelectStmt{Op: 77}}},
	} {
		if g.check(m) == nil {
			t.Errorf("%s passes", name)
		}
	}
	plain := &pg.Node{Node: &pg.Node_NullTest{NullTest: &pg.NullTest{Nulltesttype: pg.NullTestType_IS_NULL}}}
	if r := g.check(plain); r != nil {
		t.Errorf("a plain test is refused: %v", r)
	}
}
