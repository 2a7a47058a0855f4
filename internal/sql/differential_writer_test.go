package sql

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A writer writes random statements of every form over the database of
// testdata/differential.sql: mostly ones that might be judged read-only, since
// only those are run.
type writer struct {
	*generator
	of    *vocabulary
	depth int
}

// A vocabulary is what a server has to be named.
type vocabulary struct {
	known, unknown []routine // functions, by whether the judge has them on its list
	operators      []routine
	types          []string
	settings       []string
	seeds          []string
}

// A routine is a function or an operator with its arguments' types.
type routine struct {
	schema, name string
	arguments    []string
	kind         string // f, p, a, w; o for an operator
	set          bool
}

func (d *differential) vocabulary(t *testing.T) *vocabulary {
	t.Helper()
	v := &vocabulary{seeds: seeds(t)}
	library := newLibrary([]string{"public.vouched"})
	collect := func(query string, each func(pgx.CollectableRow) (routine, error), add func(routine)) {
		rows, err := d.watcher.Query(context.WithoutCancel(t.Context()), query)
		if err != nil {
			t.Fatal(err)
		}
		list, err := pgx.CollectRows(rows, each)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			add(s)
		}
	}
	whole := func(row pgx.CollectableRow) (s routine, err error) {
		return s, row.Scan(&s.schema, &s.name, &s.arguments, &s.kind, &s.set)
	}
	name := func(row pgx.CollectableRow) (s routine, err error) { return s, row.Scan(&s.name) }
	collect(`SELECT n.nspname::text, p.proname::text, ARRAY(SELECT format_type(u, NULL) FROM unnest(p.proargtypes) u), p.prokind::text, p.proretset
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname IN ('pg_catalog', 'public', 'hidden', 'information_schema')
		ORDER BY 1, 2, p.oid`, whole, func(s routine) {
		switch {
		case strings.HasPrefix(s.name, "pg_sleep"): // they take their time
		case library.functions[s.schema+"."+s.name]:
			v.known = append(v.known, s)
		default:
			v.unknown = append(v.unknown, s)
		}
	})
	collect(`SELECT n.nspname::text, o.oprname::text, ARRAY(SELECT format_type(u, NULL) FROM unnest(ARRAY[oprleft, oprright]) u WHERE u <> 0), 'o', false
		FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace ORDER BY 1, 2, o.oid`, whole,
		func(s routine) { v.operators = append(v.operators, s) })
	collect(`SELECT format_type(t.oid, NULL) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
		WHERE n.nspname = 'public' OR n.nspname = 'pg_catalog' AND t.typtype <> 'c' ORDER BY t.typname`, name,
		func(s routine) { v.types = append(v.types, s.name) })
	collect(`SELECT name FROM pg_settings WHERE context IN ('user', 'superuser') ORDER BY 1`, name,
		func(s routine) { v.settings = append(v.settings, s.name) })
	if len(v.known) < 500 || len(v.unknown) < 500 || len(v.operators) < 500 || len(v.types) < 100 {
		t.Fatalf("the server has only %d known functions, %d others, %d operators, %d types", len(v.known), len(v.unknown), len(v.operators), len(v.types))
	}
	return v
}

func newWriter(of *vocabulary, seed int64) *writer {
	return &writer{generator: &generator{r: rand.New(rand.NewSource(seed))}, of: of}
}

// statement writes the next statement.
func (w *writer) statement() string {
	w.scope, w.ctes, w.depth = nil, nil, 0
	switch n := w.r.Intn(100); {
	case n < 42:
		return w.selects(2)
	case n < 52:
		return w.query(2)
	case n < 64:
		return "select " + w.call(1, w.chance(85))
	case n < 68:
		return "select * from " + w.call(2, w.chance(85))
	case n < 72:
		return w.explain()
	case n < 82:
		return w.mutated()
	case n < 96:
		return w.other()
	}
	return w.several()
}

var sources = []generated{
	{"orders", []string{"id", "customer_id", "total", "at", "note"}}, {"customers", []string{"id", "name", "email", "ssn"}}, {"people", []string{"id", "name", "ssn"}},
	{"documents", []string{"id", "j", "v", "b", "a", "r", "u", "i", "p", "d", "n", "f"}}, {"documents", []string{"id", "j", "a", "d", "n", "f"}},
	{"customers", []string{"id", "name", "email", "ssn", "card", "last4"}}, {"orders", []string{"id", "customer_id", "total", "at", "note"}},
	{"events", []string{"id", "secret"}}, {"typed", []string{"id", "mood", "tag", "place", "pair", "span", "tags"}}, {"crm.customers", []string{"id", "ssn"}},
	{"documents", []string{"id", "j", "v", "b", "a", "r", "u", "i", "p", "d", "n", "f"}}, {"documents", []string{"id", "j", "v", "b", "a", "r", "u", "i", "p", "d", "n", "f"}},
	{"clean", []string{"id", "total"}}, {"dirty", []string{"id", "s"}}, {"calls", []string{"id", "m"}}, {"calls_below", []string{"id"}}, {"numbers", []string{"id", "n"}},
	{"kept", []string{"id", "total"}}, {"diverted", []string{"id", "note"}}, {"guarded", []string{"id", "note"}}, {"tenants", []string{"id", "tenant"}},
	{"counted", []string{"id"}}, {"indexed", []string{"id", "v"}}, {"checked", []string{"id", "v"}}, {"measured", []string{"id", "v"}}, {"seq", []string{"last_value"}},
	{"audited", []string{"id", "note"}}, {"ruled", []string{"id"}}, {"remote", []string{"id"}}, {"pg_class", []string{"oid", "relname"}}, {"pg_stat_activity", []string{"pid", "query"}},
	{"pg_locks", []string{"pid", "mode"}}, {"pg_settings", []string{"name", "setting"}}, {"information_schema.columns", []string{"table_name", "column_name"}},
}

// selects writes a SELECT of its own kind: what generator.query does not have.
func (w *writer) selects(depth int) string {
	saved := w.scope
	defer func() { w.scope = saved }()
	from := ""
	if w.chance(65) {
		src := pick(w.generator, sources)
		w.scope = append([]generated{{"t", src.columns}}, w.scope...)
		from = " from " + src.name + " t"
		if w.chance(10) {
			from += pick(w.generator, []string{" tablesample system (50)", " tablesample bernoulli (mystery(1))", " tablesample system (10) repeatable (mystery(2))"})
		}
		if w.chance(15) {
			from += " cross join lateral (select " + w.value(depth-1) + " as v) l"
		}
	}
	items := make([]string, 1+w.r.Intn(3))
	for i := range items {
		items[i] = w.value(depth) + pick(w.generator, []string{"", "", " as a", fmt.Sprintf(" c%d", i)})
	}
	text := "select " + pick(w.generator, []string{"", "", "", "", "distinct ", "all ", "distinct on (1) "}) + strings.Join(items, ", ") + from
	if w.chance(35) {
		text += " where " + w.truth(depth)
	}
	if w.chance(8) {
		text += " group by " + pick(w.generator, []string{"1", "rollup (1)", "cube (1)", "grouping sets ((1), ())", w.value(1)}) + pick(w.generator, []string{"", " having " + w.truth(1)})
	}
	if w.chance(6) {
		text += " window w as (partition by " + w.value(1) + " order by " + w.value(1) + pick(w.generator, []string{")", " rows mystery(1) preceding)", " range unbounded preceding)"})
	}
	if depth > 0 && w.chance(10) {
		text += pick(w.generator, []string{" union ", " union all ", " except ", " intersect "}) + w.selects(depth-1)
	}
	if w.chance(15) {
		text += " order by " + pick(w.generator, []string{"1", "1 desc nulls last", w.value(1), "1 using <", "1 using ~~~", "t.id using operator(public.~~~)"})
	}
	if w.chance(15) {
		text += " limit " + pick(w.generator, []string{"3", "all", "mystery(1)", "(select 2)", "1 offset 1"})
	}
	if w.chance(5) {
		text += " for " + pick(w.generator, []string{"update", "no key update", "share", "key share"}) + pick(w.generator, []string{"", " nowait", " skip locked", " of t"})
	}
	if depth > 0 && w.chance(12) {
		text = "with " + pick(w.generator, []string{"", "recursive "}) + "w as " + pick(w.generator, []string{"", "materialized ", "not materialized "}) + "(" + w.inner(depth-1) + ") " + text
	}
	return text
}

// inner writes what WITH can hold.
func (w *writer) inner(depth int) string {
	if w.chance(25) {
		return w.change()
	}
	return w.selects(depth)
}

func (w *writer) truth(depth int) string {
	if depth > 0 && w.chance(25) {
		return pick(w.generator, []string{"exists (" + w.selects(depth-1) + ")", w.truth(depth-1) + " and " + w.truth(depth-1), "not " + w.truth(depth-1),
			"(" + w.value(1) + ") is null", "(" + w.value(1) + ") is distinct from " + w.value(1), "(" + w.value(1) + ") in (" + w.selects(depth-1) + ")",
			"(" + w.value(1) + ") between " + w.value(1) + " and " + w.value(1), w.value(1) + " = any (" + w.selects(0) + ")"})
	}
	if len(w.scope) > 0 && w.chance(70) {
		return w.columnOf() + pick(w.generator, []string{" = ", " <> ", " < ", " >= ", " is distinct from "}) + pick(w.generator, []string{"1", "'1'", "'x'", "'ok'", "$1", w.columnOf()})
	}
	return pick(w.generator, []string{"true", "1 = 1", "'t'::bool", "$1", "current_user = 'app'"})
}

func (w *writer) columnOf() string {
	if len(w.scope) == 0 {
		return "1"
	}
	src := pick(w.generator, w.scope)
	return src.name + "." + pick(w.generator, src.columns)
}

// value writes an expression.
func (w *writer) value(depth int) string {
	if depth <= 0 {
		return pick(w.generator, []string{w.columnOf(), w.columnOf(), "1", "'x'", "null", "$1", "current_date", "array[1, 2]", "row(1, 2)"})
	}
	switch w.r.Intn(22) {
	case 0, 1, 2, 3, 4, 5:
		return w.call(depth-1, w.chance(95))
	case 6, 7, 8:
		return w.operation(depth - 1)
	case 9, 10:
		return "(" + w.value(depth-1) + ")::" + w.typeName()
	case 11:
		return pick(w.generator, []string{"'1'", "'x'", "'{}'", "'(1,x)'", "null", "'[1,2)'"}) + "::" + w.typeName()
	case 12:
		return "cast(" + w.value(depth-1) + " as " + w.typeName() + ")"
	case 13:
		return "case " + pick(w.generator, []string{"when " + w.truth(depth-1), w.value(0) + " when " + w.value(0)}) + " then " + w.value(depth-1) + " else " + w.value(0) + " end"
	case 14:
		return pick(w.generator, []string{"(", "array(", "exists ("}) + w.selects(depth-1) + ")"
	case 15:
		return pick(w.generator, []string{"coalesce", "greatest", "least", "nullif", "row", "concat", "num_nulls"}) + "(" + w.value(depth-1) + ", " + w.value(0) + ")"
	case 16:
		return "(" + w.value(depth-1) + ")" + pick(w.generator, []string{"[1]", "[1:2]", ".id", ".a", ".t", ".initials", " collate \"C\"", " at time zone 'utc'", "['a']", "[mystery(1)]"})
	case 17:
		return pick(w.generator, []string{"t", "t.*", "t::text", "(t).id", "t.initials", "initials(t)", "length(t)", "t <= 1", "row_to_json(t)", "t.tableoid", "t.ctid"})
	case 18:
		return pick(w.generator, []string{"json_object('a': 1)", "json_array(1, 2)", "json_value('{}', '$.a')", "xmlelement(name a)", "extract(year from current_date)", "position('a' in 'ba')",
			"overlay('abc' placing 'x' from 2)", "trim(both 'x' from 'xax')", "substring('abc' similar 'a#\"b#\"c' escape '#')", "normalize('a', nfc)", "merge_action()", "grouping(t.id)",
			"'a' is json", "treat('a' as text)", "current_schema", "session_user", "localtimestamp(3)", "interval '1' day", "U&'\\0061'", "e'\\x41'", "b'101'", "x'1F'"})
	case 19:
		return w.windowed(depth)
	}
	return w.value(0)
}

func (w *writer) windowed(depth int) string {
	return w.call(0, true) + pick(w.generator, []string{" over ()", " over (order by " + w.value(0) + ")", " over w", " filter (where " + w.truth(0) + ")",
		" within group (order by " + w.value(depth-1) + ")", " over (partition by " + w.value(0) + " rows between 1 preceding and mystery(1) following)"})
}

func (w *writer) typeName() string {
	if w.chance(12) {
		return pick(w.generator, []string{"mood", "tag", "label", "pair", "place", "span", "tag[]", "public.tag", "customers", "regclass", "int", "text", "varchar(3)", "numeric(4, 1)",
			"pg_catalog.tag", "hidden.tag", "setof int", "customers.id%type", "spanmultirange", "pg_temp.x", "bit(3)", "timestamp(3) with time zone", "interval day"})
	}
	return pick(w.generator, w.of.types)
}

// arguments are values of a type, written as text.
var arguments = map[string][]string{
	"integer": {"1", "0", "-1", "2", "7", "null", "$1"}, "bigint": {"1", "0", "-1", "4242", "99"}, "smallint": {"1::int2"}, "text": {"'abc'", "''", "'a.b'", "'x'", "'public.audit'", "'select spy(''x'')'", "$1"},
	"name": {"'x'", "'audit'"}, "boolean": {"true", "false"}, "oid": {"1259", "4242", "'orders'::regclass::oid", "'mystery'::regproc::oid"}, "regclass": {"'orders'", "'seq'", "'calls'::regclass"},
	"double precision": {"1.5", "0", "0.01"}, "real": {"1.5::real"}, "numeric": {"1.5", "10", "0"}, "bytea": {"'\\x0102'", "'x'::bytea"}, "json": {"'{\"a\":[1,{\"b\":2}]}'::json", "'[1,2]'"},
	"jsonb": {"'{\"a\":[1,{\"b\":2}]}'::jsonb", "'[{\"a\":1}]'"}, "jsonpath": {"'$.a'", "'$[*] ? (@ > 1)'"}, "timestamp with time zone": {"now()", "'2025-01-01'"},
	"timestamp without time zone": {"'2025-01-01'::timestamp"}, "date": {"'2025-01-01'::date"}, "interval": {"'1 day'::interval", "'1 ms'"}, "time without time zone": {"'10:00'::time"},
	"anyelement": {"1", "'x'::text", "'ok'::mood", "row(1, 2)"}, "anyarray": {"array[1, 2]", "array['a', 'b']"}, "anynonarray": {"1"}, "anyenum": {"'ok'::mood"}, "anyrange": {"int4range(1, 3)", "'[1,3)'::span"},
	"anymultirange": {"'{[1,3)}'::int4multirange"}, "anycompatible": {"1"}, "anycompatiblearray": {"array[1, 2]"}, "anycompatiblerange": {"int4range(1, 3)"}, "anycompatiblenonarray": {"1"},
	"record": {"row(1, 2)", "(select c from customers c limit 1)"}, "\"any\"": {"1", "'x'", "row(1, 2)", "'ok'::mood"}, "cstring": {"'x'"}, "text[]": {"array['a', 'b']", "'{}'"}, "integer[]": {"array[1, 2]"},
	"regtype": {"'int4'", "'tag'"}, "regproc": {"'now'"}, "regprocedure": {"'mystery(int)'"}, "regrole": {"'app'"}, "regnamespace": {"'public'"}, "tsvector": {"'fat cat'::tsvector"}, "tsquery": {"'fat & cat'"},
	"inet": {"'10.0.0.1/24'"}, "uuid": {"gen_random_uuid()"}, "xml": {"'<a/>'"}, "point": {"'(1,2)'"}, "character": {"'x'"}, "\"char\"": {"'r'::\"char\""}, "refcursor": {"'c'::refcursor"}, "pg_lsn": {"'0/1'"}, "xid": {"'1'"},
	"place": {"'here'::place"}, "mood": {"'ok'::mood"}, "tag": {"'x'::tag"}, "customers": {"(select c from customers c limit 1)"}, "bit": {"b'101'"}, "int4range": {"'[1,3)'"},
}

func (w *writer) argument(typ string, depth int) string {
	if depth > 0 && w.chance(20) {
		return w.value(depth)
	}
	if len(w.scope) > 0 && w.chance(15) {
		return w.columnOf()
	}
	if list := arguments[typ]; list != nil && w.chance(95) {
		return pick(w.generator, list)
	}
	return pick(w.generator, []string{"'1'::", "null::", "'x'::"}) + typ
}

// call writes a call of one of the server's functions.
func (w *writer) call(depth int, known bool) string {
	list := w.of.unknown
	if known {
		list = w.of.known
	}
	f := pick(w.generator, list)
	args := make([]string, len(f.arguments))
	for i, typ := range f.arguments {
		args[i] = w.argument(typ, depth)
	}
	name := f.name
	if !plainName(name) {
		name = `"` + name + `"`
	}
	switch {
	case w.chance(12) || f.schema != "pg_catalog":
		name = f.schema + "." + name
	case w.chance(3):
		name = pick(w.generator, []string{"public.", "hidden."}) + name
	}
	if len(args) > 0 && w.chance(3) {
		args[len(args)-1] = "variadic " + args[len(args)-1]
	}
	inside := strings.Join(args, ", ")
	if f.kind == "a" {
		inside = pick(w.generator, []string{"", "", "distinct "}) + inside + pick(w.generator, []string{"", "", " order by 1", " order by mystery(1)"})
		if len(args) == 0 {
			inside = pick(w.generator, []string{"*", ""})
		}
	}
	text := name + "(" + inside + ")"
	if f.kind == "w" {
		text += " over (order by 1)"
	}
	return text
}

func plainName(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }) &&
		!slices.Contains([]string{"char", "interval", "numeric", "time", "timestamp", "bit", "position", "overlay", "substring", "normalize", "any_value"}, name)
}

// operation writes an expression with one of the server's operators.
func (w *writer) operation(depth int) string {
	o := pick(w.generator, w.of.operators)
	name := o.name
	if w.chance(15) {
		name = "operator(" + pick(w.generator, []string{o.schema, "public", "pg_catalog"}) + "." + o.name + ")"
	}
	if len(o.arguments) == 1 {
		return "(" + name + " " + w.argument(o.arguments[0], depth) + ")"
	}
	right := w.argument(o.arguments[1], depth)
	if w.chance(10) {
		right = pick(w.generator, []string{"any", "all"}) + " (array[" + right + "])"
	}
	return "(" + w.argument(o.arguments[0], depth) + " " + name + " " + right + ")"
}
