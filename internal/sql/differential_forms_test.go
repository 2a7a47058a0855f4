package sql

import (
	"fmt"
	"regexp"
	"strings"
)

// change writes an INSERT, UPDATE, DELETE or MERGE.
func (w *writer) change() string {
	target := pick(w.generator, []string{"audit", "orders", "ruled", "audited", "clean", "diverted", "events", "typed", "public.audit"})
	returning := pick(w.generator, []string{"", " returning 1", " returning *", " returning old", " returning mystery(1)"})
	switch w.r.Intn(4) {
	case 0:
		return "insert into " + target + pick(w.generator, []string{" default values", " (id) values (901)", " (id) select 902", " (id) values (1) on conflict do nothing"}) + returning
	case 1:
		return "update " + target + " set id = id" + pick(w.generator, []string{"", " where id = 1", " from customers c where c.id = 3"}) + returning
	case 2:
		return "delete from " + target + pick(w.generator, []string{"", " where id = 1", " using customers c where c.id = 99"}) + returning
	}
	return "merge into " + target + " t using customers c on t.id = c.id when matched then " + pick(w.generator, []string{"do nothing", "delete", "update set id = 1"})
}

func (w *writer) explain() string {
	options := pick(w.generator, []string{"", " analyze", " verbose", " (analyze)", " (analyze off)", " (analyze, buffers)", " (analyze 0)", " (analyze false, analyze true)", " (verbose, costs off)",
		" (format json)", " (generic_plan)", " (settings, summary off)", " (buffers)", " (wal)", " (memory)", " (serialize text)", " (timing off)", " (analyze 'off')", " (analyze = true)", " (\"ANALYZE\")"})
	return "explain" + options + " " + pick(w.generator, []string{w.selects(1), w.selects(1), w.query(1), w.change(), w.other(), "execute prepared", "create table made as select 1", "declare c cursor for select 1"})
}

// other writes a statement that is neither a query nor EXPLAIN.
func (w *writer) other() string {
	w.depth++
	if w.depth > 3 {
		return "select 1"
	}
	query := func() string { return w.selects(1) }
	switch w.r.Intn(40) {
	case 0, 1, 2:
		return w.change()
	case 3:
		return "with w as (" + w.change() + ") " + pick(w.generator, []string{"select 1", w.change(), "select * from w"})
	case 4:
		return "copy " + pick(w.generator, []string{"audit", "orders", "guarded", "typed (id, tag)", "measured", "checked_1", "calls", "seq", "(" + query() + ")", "(" + query() + ")", "(" + w.change() + " returning 1)"}) + pick(w.generator, []string{" to stdout", " to stdout", " to stdout (format csv, header)", " to stdout (format binary)", " from stdin", " to program 'true'", " to '/nowhere/x'", " from '/etc/hostname'"})
	case 5:
		return "do $$ begin perform spy('do'); end $$"
	case 6, 7:
		name := pick(w.generator, append(w.of.settings[:len(w.of.settings):len(w.of.settings)], "app.tenant", "a.b", "role", "session authorization", "application_name", "statement_timeout", "time zone", "names", "datestyle", "client_encoding"))
		return pick(w.generator, []string{"set ", "set local ", "set session "}) + name + pick(w.generator, []string{" = ", " to "}) +
			pick(w.generator, []string{"default", "on", "off", "'x'", "1", "'1s'", "500", "'UTF8'", "iso, mdy", "iso", "'error'", "'postgres'", "warning"})
	case 8:
		return pick(w.generator, []string{"reset ", "show "}) + pick(w.generator, append(w.of.settings[:len(w.of.settings):len(w.of.settings)], "all", "role", "app.tenant", "transaction isolation level", "time zone", "statement_timeout"))
	case 9, 10:
		return pick(w.generator, []string{"begin", "begin read only", "start transaction isolation level serializable", "commit", "end", "rollback", "abort", "savepoint a", "release a", "rollback to a", "commit and chain",
			"prepare transaction 'x'", "commit prepared 'x'", "set transaction snapshot '00000003-0000001B-1'", "set transaction read only", "set session characteristics as transaction read only", "rollback and chain", "begin deferrable"})
	case 11:
		return pick(w.generator, []string{"lock orders", "lock table orders in access share mode", "lock orders nowait", "set constraints all deferred"})
	case 12:
		return pick(w.generator, []string{"declare c cursor for " + query(), "declare c cursor with hold for " + query(), "fetch c", "move all in c", "close c", "close all", "fetch all from \"\""})
	case 13:
		return pick(w.generator, []string{"prepare p as " + query(), "prepare p (int) as " + w.change(), "execute prepared", "execute p(1)", "deallocate prepared", "deallocate all", "discard all", "discard temp", "discard plans"})
	case 14:
		return pick(w.generator, []string{"listen x", "listen channel", "notify x", "notify channel, 'y'", "unlisten *"})
	case 15:
		return query() + pick(w.generator, []string{" into made", ""})
	case 16:
		return "select * into " + pick(w.generator, []string{"", "temp ", "unlogged "}) + "made from orders"
	case 17:
		return "create " + pick(w.generator, []string{"", "temp ", "or replace ", "unlogged "}) + pick(w.generator, []string{"table made (a int)", "view made as " + query(), "sequence made", "table made as " + query(), "schema made", "materialized view made as " + query(), "table if not exists made as execute prepared"})
	case 18:
		return pick(w.generator, []string{"drop table orders", "drop view over", "drop function spy", "truncate orders", "alter table orders add x int", "alter sequence seq restart", "comment on table orders is 'x'", "grant all on orders to public", "revoke all on orders from app",
			"analyze", "vacuum", "reindex table orders", "cluster", "checkpoint", "refresh materialized view kept", "alter system set jit = off", "create role made", "alter role app nologin", "alter table typed alter tag type text", "security label on table orders is 'x'",
			"import foreign schema x from server far into public", "create extension plpgsql", "load 'plpgsql'", "reassign owned by app to postgres", "create index on orders (total)", "alter default privileges grant all on tables to public", "drop owned by app", "call note()", "create policy x on orders"})
	case 19:
		return "values (" + w.value(1) + "), (" + w.value(1) + ")" + pick(w.generator, []string{"", " order by 1", " limit 1"})
	case 20:
		return "table " + pick(w.generator, sources).name
	case 21:
		return "create function made() returns int language sql begin atomic " + query() + "; " + w.change() + "; end"
	case 22, 23:
		return w.fromForms()
	case 24:
		return pick(w.generator, []string{"", ";", ";;", " -- nothing", "/* a /* b */ c */", "/* select 1; */;"})
	case 25:
		return "select " + pick(w.generator, writing) + pick(w.generator, []string{"", " from orders", " from generate_series(1, 2)"})
	case 26:
		return pick(w.generator, hostile)
	}
	return w.selects(2)
}

// writing are calls that change something and are not on the judge's list.
var writing = []string{"nextval('seq')", "setval('seq', 5)", "lo_create(0)", "lo_unlink(4242)", "lo_from_bytea(0, 'x')", "pg_advisory_lock(1)", "pg_try_advisory_lock(2)", "pg_notify('x', '')", "set_config('app.tenant', 'x', false)",
	"pg_terminate_backend(1)", "txid_current()", "pg_logical_emit_message(true, 'a', 'b')", "pg_stat_reset()", "pg_export_snapshot()", "spy('direct')", "mystery(1)", "query_to_xml('select spy(1)', true, true, '')", "tally(1)", "max('x'::place)", "setseed(0.5)"}

// hostile are queries that run what users made without looking like it.
var hostile = []string{"select id from orders for update", "select * from guarded", "select * from measured", "select * from calls", "select mood <> 'ok' from typed", "select 'ok'::mood <> 'sad'::mood", "select mood + 1 from typed", "select tag || tag from typed", "select concat(mood, mood) from typed", "select place::text from typed", "select abs(place) from typed",
	"select max(place) from typed", "select upper(1)", "select reverse(1)", "select hidden.lower('x')", "select sly(1)", "select 1 ~~~ 2", "select c <= 1 from customers c", "select c.initials from customers c", "select length(c) from customers c", "select null::tag", "select 'x'::label",
	"select row(1, 'x')::pair", "select '{x}'::tag[]", "select x.a from jsonb_to_recordset('[{\"a\": 1}]') as x(a tag)", "select '[1,2]'::span", "select overloaded('x')", "select overloaded(1)", "select array_agg(tag) from typed", "select (pair).t from typed order by pair"}

// fromForms writes a SELECT whose FROM has the forms of functions and joins.
func (w *writer) fromForms() string {
	item := func() string {
		return pick(w.generator, []string{w.call(1, true), "rows from (" + w.call(0, true) + ", generate_series(1, 2)) with ordinality", "lateral " + w.call(1, true) + " as f(a, b)",
			"json_to_recordset('[{\"a\":\"x\"}]') as r(a " + w.typeName() + ")", "xmltable('/a' passing '<a/>' columns a int)", "json_table('[1]', '$[*]' columns (a int path '$'))", "(values (1, 2)) v(a, b)",
			"only orders", "orders as o (a, b, c)", "unnest(array[1], array['x'])", "(" + w.selects(1) + ") s", "(orders cross join customers)", "pg_get_keywords()", "generate_series(1, 2) g"})
	}
	return "select " + pick(w.generator, []string{"*", "1", "count(*)"}) + " from " + item() + pick(w.generator, []string{"", ", " + item(), " left join " + item() + " on true", " natural join " + item(), " full join " + item() + " using (id)"}) + " limit 5"
}

var word = regexp.MustCompile(`'(?:[^']|'')*'|"[^"]*"|\$[0-9]+|[A-Za-z_][A-Za-z_0-9]*|[0-9.]+|\s+|[-+*/<>=~!@#%^&|?]+|.`)

// mutated takes a real statement and swaps, drops, doubles or replaces some of
// its words by those of another.
func (w *writer) mutated() string {
	words := word.FindAllString(w.real(), -1)
	others := word.FindAllString(w.real(), -1)
	for range w.r.Intn(4) {
		if len(words) == 0 || len(others) == 0 {
			break
		}
		i, j := w.r.Intn(len(words)), w.r.Intn(len(words))
		switch w.r.Intn(5) {
		case 0:
			words[i], words[j] = words[j], words[i]
		case 1:
			words[i] = pick(w.generator, others)
		case 2:
			words[i] = ""
		case 3:
			words[i] += words[i]
		case 4:
			k := w.r.Intn(len(others))
			words[i] += " " + strings.Join(others[k:min(len(others), k+1+w.r.Intn(6))], "")
		}
	}
	return strings.Join(words, "")
}

// real is a statement that somebody wrote, without what would make the server
// wait.
func (w *writer) real() string {
	return strings.ReplaceAll(pick(w.generator, w.of.seeds), "pg_sleep(60)", "pg_sleep(0)")
}

// tricks are texts in which a statement's end is easily seen where there is
// none, or missed.
var tricks = []string{
	"select ';'", "select ''';'", "select e'\\';'", "select '\\'", "select e'\\\\'", "select U&'\\003b;'", "select U&'!003b;' uescape '!'", `select 1 as ";"`, `select 1 as """;"`, "select $$;$$", "select $a$ ; $$ ; $a$", "select $a$$b$;$a$",
	"select 1 -- ;", "select 1 --;\n", "select /* ; */ 1", "select /* /* ; */ ; */ 1", "select 1 /*;*/", "select 'a'\n';'", "select 'a' -- ;\n';b'", "select e'a\n;'", "select 1\n;", "", " ", "-- ;", "/* ; */", "select b'1', x'1f', n';'", "select 'x' as a$b",
	"select 1 as a$1$", "select e';\\'';'", "select '--', 1", "select '/*', 1", "select 1 - -1", "select 1 --\r;", "select 1 /* -- */", "select 1 -- /*\n", "select $é$;$é$", "select 'é;'", `select U&"\003b;" from (values (1)) v(";;")`, "select 1::text || $q$'$q$", "select 1 \\; select 2",
	"create or replace function made(a int) returns int language sql begin atomic select 1; select 2; end", "create or replace function made(a int) returns int language sql begin atomic end", "create or replace procedure done() language sql begin atomic select case when true then 1 end; select 2; end",
	"create or replace function made(a int) returns int language sql return 1", "create or replace function made(a int) returns int language sql as 'select 1; select 2'", "create or replace function made(a int) returns int language sql as $f$ select 1; select $$;$$::text; select 3 $f$",
	"create or replace rule also as on update to ruled do also (select 1; select 2)", "create schema if not exists parts", "do $$ begin perform 1; perform 2; end $$",
}

// several writes a message of any number of tricky statements.
func (w *writer) several() string {
	var b strings.Builder
	for i := range 1 + w.r.Intn(4) {
		if i > 0 {
			b.WriteString(pick(w.generator, []string{";", " ; ", ";\n", ";;", "; -- x\n", "; /* ; */ ", " ;--\n"}))
		}
		b.WriteString(pick(w.generator, tricks))
	}
	b.WriteString(pick(w.generator, []string{"", ";", " ;; ", "--", "/* */", fmt.Sprintf(" /*%s*/", pick(w.generator, []string{"/**/", "*", "/ ", "'"}))}))
	return b.String()
}
