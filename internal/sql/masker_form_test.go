package sql

import (
	"fmt"
	"strings"
)

// expr writes an expression; text says that it must be one of text.
func (a *asker) expr(depth int, text bool) string {
	e := a.anyExpr(depth)
	if text {
		return "(" + e + ")::text"
	}
	return e
}

func (a *asker) anyExpr(depth int) string {
	if depth == 0 || a.chance(35) {
		return a.column()
	}
	src := oneAsked(a, a.scope...).name
	c := a.column()
	switch a.r.Intn(30) {
	case 0:
		return src + "::text"
	case 1:
		return oneAsked(a, "row_to_json(", "to_jsonb(", "to_json(") + src + ")"
	case 2:
		return "(" + a.expr(depth-1, true) + ") || " + c + "::text"
	case 3:
		return oneAsked(a, "upper", "lower", "reverse", "md5", "initcap", "quote_literal", "ascii", "btrim", "to_hex(1) || ") + "(" + a.expr(depth-1, true) + ")"
	case 4:
		return "coalesce(" + c + "::text, 'none')"
	case 5:
		return a.scalar()
	case 6:
		return "array[" + c + "::text, " + a.column() + "::text]"
	case 7:
		return "case when " + a.condition(0) + " then " + c + "::text else " + a.column() + "::text end"
	case 8:
		return "to_jsonb(" + src + ") ->> '" + strings.ReplaceAll(bare(oneAsked(a, columnNames...)), "'", "''") + "'"
	case 9:
		return "encode(convert_to(" + c + "::text, 'UTF8'), '" + oneAsked(a, "base64", "hex", "escape") + "')"
	case 10:
		return "(" + src + ")." + oneAsked(a, a.scope[0].columns...).name
	case 11:
		return "format('%s-%s', " + c + ", " + a.expr(depth-1, false) + ")"
	case 12:
		return oneAsked(a, "length", "octet_length", "hashtext", "pg_column_size", "pg_typeof", "num_nulls", "ascii") + "(" + c + ")"
	case 13:
		return oneAsked(a, "substr", "left", "right", "repeat") + "(" + c + "::text, 3)"
	case 14:
		return "jsonb_build_object('k', " + c + ", 'r', " + src + ")"
	case 15:
		return "row(" + src + ".*, " + c + ")::text"
	case 16:
		return oneAsked(a, "lag", "lead", "first_value", "last_value") + "(" + c + ") over (" + oneAsked(a, "", "order by "+a.decisive(), "partition by "+a.decisive()) + ")"
	case 17:
		return oneAsked(a, "greatest", "nullif", "concat", "concat_ws") + "(" + c + "::text, " + a.column() + "::text)"
	case 18:
		return "array(select " + a.scalarItem() + ")"
	case 19:
		return "exists (select 1 from " + a.w.schema + ".people y where y.id = " + a.id() + ")"
	case 20:
		return "regexp_replace(" + c + "::text, '(.)(.)', '\\2\\1', 'g')"
	case 21:
		return c + " is " + oneAsked(a, "null", "not null", "not distinct from null")
	case 22:
		return "(" + c + ")::" + oneAsked(a, "text", "varchar(12)", "text", "jsonb::text", "bytea", "name")
	case 23:
		return "translate(" + c + "::text, 'ABCD', 'abcd')"
	case 24:
		return "json_build_array(" + src + ", " + c + ")"
	case 25:
		return oneAsked(a, "current_query()", "current_setting('search_path')", "version()", "obj_description(1)")
	case 26:
		return "array_to_string(array[" + c + "::text], '-')"
	case 27:
		return "(array[" + src + "])[1]"
	case 28:
		return "string_to_array(" + c + "::text, null)"
	}
	return "lpad(" + c + "::text, 20, '.')"
}

// scalar is a subquery with one value, of a table beside what is in sight.
func (a *asker) scalar() string { return "(select " + a.scalarItem() + " limit 1)" }

func (a *asker) scalarItem() string {
	t := oneAsked(a, a.w.tables...)
	c := oneAsked(a, t.columns...)
	return oneAsked(a, "y."+c.name+"::text", "y::text", "(y)."+c.name+"::text", "max(y."+c.name+"::text)") + " from " + a.tableName(t) + " y where y.id = " + a.id()
}

func (a *asker) condition(depth int) string {
	c := a.decisive()
	switch a.r.Intn(9) {
	case 0:
		return c + "::text like 't%'"
	case 1:
		return "exists (select 1 from " + a.w.schema + ".items y where y.id = " + a.id() + ")"
	case 2:
		return a.id() + " in (select id from " + a.tableName(oneAsked(a, a.w.tables...)) + ")"
	case 3:
		return c + " is not null"
	case 4:
		return "(" + c + ", 1) is distinct from (" + c + ", 2)"
	case 5:
		if depth > 0 {
			return a.id() + " = any (array(select id from (" + a.body(depth-1, 2) + ") s(id, x)))"
		}
	case 6:
		return c + "::text = any ('{1,2,t3}')"
	}
	return a.id() + " < " + fmt.Sprint(2+a.r.Intn(20))
}

// hostile writes what goes round the tables themselves.
func (a *asker) hostile() string {
	t := oneAsked(a, a.w.tables...)
	name, c := a.w.schema+"."+t.name, oneAsked(a, t.columns...)
	quoted := strings.ReplaceAll(name, "'", "''")
	return oneAsked(a,
		"select histogram_bounds::text, most_common_vals::text from pg_stats where schemaname = '"+a.w.schema+"'",
		"select stavalues1::text from pg_statistic",
		"select query_to_xml('select * from "+quoted+"', true, false, '')",
		"select table_to_xml('"+quoted+"', true, false, '')",
		"select * from ts_stat('select to_tsvector(''simple'', "+strings.ReplaceAll(c.name, "'", "''")+"::text) from "+quoted+"') as x(word)",
		"select "+c.name+"::text from "+name+" where "+c.name+"::text ~ '^[A-M]'",
		"select 1 / (select count(*) from "+name+" where "+c.name+"::text < 'G')",
		"select ("+c.name+"::text)::int from "+name,
		"select cast("+c.name+"::text as date) from "+name,
		"select * from "+name+" order by "+c.name+"::text limit 1",
		"select width_bucket(ascii("+c.name+"::text), 0, 100, 10) from "+name,
		"select pg_catalog.set_config('app.x', "+c.name+"::text, false) from "+name,
		"select currval(pg_get_serial_sequence('"+quoted+"', 'id'))",
		"select pg_get_viewdef(oid) from pg_class where relnamespace = '"+a.w.schema+"'::regnamespace",
		"select x.* from "+name+" x, lateral (select x.*) y",
		"select ("+t.name+").* from "+name,
		"select id, "+c.name+", count(*) from "+name+" group by "+oneAsked(a, "1", "id", "id, ref", a.w.schema+"."+t.name+".id"),
		"select * from "+name+" order by 1 for update",
		"values ((select max("+c.name+"::text) from "+name+"))",
		"select * from json_to_record((select row_to_json(y) from "+name+" y limit 1)) as x("+c.name+" text)",
		"select string_agg("+c.name+"::text, '') within group (order by id) from "+name,
		"select percentile_disc(0.5) within group (order by "+c.name+") from "+name,
	)
}

func (a *asker) copy() string {
	t := oneAsked(a, a.w.tables...)
	options := oneAsked(a, "", " (format csv, header)", " csv")
	if a.chance(50) {
		return "copy (" + a.query(2) + ") to stdout" + options
	}
	columns := ""
	if a.chance(60) {
		var names []string
		for range 1 + a.r.Intn(3) {
			names = append(names, oneAsked(a, t.columns...).name)
		}
		columns = " (" + strings.Join(names, ", ") + ")"
	}
	return "copy " + a.tableName(t) + columns + " to stdout" + options
}

// change writes an INSERT, UPDATE, DELETE or MERGE.
func (a *asker) change() string {
	t := oneAsked(a, a.w.tables...)
	name := a.tableName(t)
	set := "ref"
	value := fmt.Sprint(1 + a.r.Intn(4))
	a.scope = []asked{{name: "x", columns: t.columns, table: true}}
	if c := oneAsked(a, t.columns...); (!c.masked || a.chance(25)) && c.name != "id" {
		set = c.name
		value = oneAsked(a, "default", "null", "x."+c.name, "'***'", "x."+oneAsked(a, t.columns...).name)
	}
	returning := ""
	if a.chance(60) {
		var items []string
		for range 1 + a.r.Intn(2) {
			items = append(items, oneAsked(a, a.decisive(), a.decisive(), a.decisive(), a.anyExpr(1), "*", "x"))
		}
		returning = " returning " + strings.Join(items, ", ")
	}
	where := ""
	if a.chance(80) {
		where = " where " + a.condition(1)
	}
	text := ""
	switch a.r.Intn(9) {
	case 0, 1:
		text = "update " + name + " x set " + set + " = " + value + where + returning
	case 2:
		text = "update " + name + " x set " + set + " = y.id from " + a.tableName(oneAsked(a, a.w.tables...)) + " y where y.id = x.id" + returning
	case 3:
		text = "delete from " + name + " x" + where + returning
	case 4:
		text = "delete from " + name + " x using " + a.tableName(oneAsked(a, a.w.tables...)) + " y where y.id = x.id and " + a.condition(0) + returning
	case 5:
		text = "insert into " + name + " as x (id, " + set + ") values (" + fmt.Sprint(5+a.r.Intn(4)) + ", " + oneAsked(a, "null", "default", "'t1'") + ")" +
			oneAsked(a, "", " on conflict do nothing", " on conflict (id) do update set ref = excluded.ref", " on conflict (id) do update set "+set+" = x."+set) + returning
	case 6:
		text = "insert into " + name + " as x (id, ref) " + a.body(1, 1) + oneAsked(a, "", " on conflict do nothing") + returning
		text = strings.Replace(text, "(id, ref)", "(id)", 1)
	case 7:
		text = "merge into " + name + " x using " + a.tableName(oneAsked(a, a.w.tables...)) + " y on x.id = y.id when matched then update set " + set + " = y.ref" +
			oneAsked(a, "", " when not matched then insert (id) values (y.id + 50)", " when matched and y.id > 3 then delete")
	default:
		text = "insert into " + name + " as x select * from " + a.tableName(oneAsked(a, a.w.tables...)) + returning
	}
	if returning != "" && a.chance(20) {
		return "with changed as (" + text + ") select * from changed"
	}
	return text
}
