package sql

import (
	"fmt"
	"math/rand"
	"strings"
)

// An asker writes random statements over a world: what people ask, what hides
// names behind others, and what tries to get at a masked column.
type asker struct {
	r     *rand.Rand
	w     *world
	scope []asked // what the query being written can name
	ctes  []asked
	n     int
}

// An asked is something in FROM.
type asked struct {
	name    string // as columns of it are qualified
	columns []worldColumn
	table   bool // FOR UPDATE can name it
}

func newAsker(w *world, seed int64) *asker { return &asker{r: rand.New(rand.NewSource(seed)), w: w} }

func (a *asker) chance(percent int) bool { return a.r.Intn(100) < percent }

func oneAsked[T any](a *asker, list ...T) T { return list[a.r.Intn(len(list))] }

// statement writes any statement.
func (a *asker) statement() string {
	a.scope, a.ctes, a.n = nil, nil, 0
	switch n := a.r.Intn(100); {
	case n < 62:
		return a.query(3)
	case n < 66:
		return "explain (" + oneAsked(a, "verbose, costs off", "costs off", "analyze, costs off, timing off, summary off, buffers off", "format json, costs off, verbose") + ") " + a.query(2)
	case n < 72:
		return a.copy()
	case n < 76:
		return a.hostile()
	}
	return a.change()
}

// query writes a SELECT with at most depth levels of nesting.
func (a *asker) query(depth int) string {
	scope, ctes := a.scope, a.ctes
	defer func() { a.scope, a.ctes = scope, ctes }()
	with := ""
	if depth > 0 && a.chance(25) {
		with = a.with(depth)
	}
	if a.chance(3) {
		return with + "table " + a.tableName(oneAsked(a, a.w.tables...))
	}
	text := with + a.body(depth, 0)
	if depth > 0 && a.chance(8) {
		n := 1 + a.r.Intn(2)
		text = with + a.body(depth-1, n) + oneAsked(a, " union all ", " union all ", " union ", " except ", " intersect all ") + a.body(depth-1, n)
	}
	return text
}

// with writes a WITH; its names hide tables now and then.
func (a *asker) with(depth int) string {
	var parts []string
	recursive := a.chance(25)
	for i := range 1 + a.r.Intn(2) {
		name := fmt.Sprintf("%s%d", oneAsked(a, "q", "people", "items"), i)
		if a.chance(40) && i == 0 {
			name = oneAsked(a, "people", "items", "events", "places")
		}
		materialized := oneAsked(a, "", "", " materialized", " not materialized")
		inner := a.body(depth-1, 2)
		names := "(id, x)"
		if recursive && a.chance(60) {
			inner = "select id, " + a.textOf("people") + " from " + a.w.schema + ".people where id < 3 union all select r.id + 1, r.x from " + name + " r where r.id < 4"
		}
		parts = append(parts, name+names+" as"+materialized+" ("+inner+")")
		a.ctes = append(append([]asked{}, a.ctes...), asked{name: name, columns: []worldColumn{{name: "id", typ: "int"}, {name: "x", typ: "text"}}})
	}
	if recursive {
		return "with recursive " + strings.Join(parts, ", ") + " "
	}
	return "with " + strings.Join(parts, ", ") + " "
}

// textOf is a random column of a table as text.
func (a *asker) textOf(table string) string {
	for _, t := range a.w.tables {
		if t.name == table {
			return "(" + oneAsked(a, t.columns...).name + ")::text"
		}
	}
	return "''"
}

// body writes SELECT … FROM …, of n columns, or of any number for 0.
func (a *asker) body(depth, n int) string {
	saved := a.scope
	defer func() { a.scope = saved }()
	from := a.from(max(0, depth))
	exact := n > 0
	if !exact {
		n = 1 + a.r.Intn(3)
	}
	if !exact && a.chance(12) {
		return a.grouped(from)
	}
	var items []string
	for i := range n {
		switch {
		case !exact && a.chance(10):
			items = append(items, "*")
		case !exact && a.chance(10):
			items = append(items, oneAsked(a, a.scope...).name+".*")
		case exact && i == 0:
			items = append(items, a.id())
		default:
			items = append(items, fmt.Sprintf("%s as o%d", a.expr(2, exact), i))
		}
	}
	text := "select " + strings.Join(items, ", ") + from
	if a.chance(35) {
		text += " where " + a.condition(depth)
	}
	if exact {
		return text
	}
	switch {
	case a.chance(12):
		text += " order by " + a.decisive() + oneAsked(a, "", " desc nulls last", ", 1")
	case a.chance(3):
		text = strings.Replace(text, "select ", "select distinct ", 1)
	case a.chance(3):
		text = strings.Replace(text, "select ", "select distinct on ("+a.decisive()+") ", 1)
	}
	if a.chance(6) {
		text += oneAsked(a, " for update", " for share", " for no key update skip locked", " for key share", " for update of "+oneAsked(a, a.scope...).name)
	}
	return text
}

// grouped writes a query with GROUP BY, aggregates and windows.
func (a *asker) grouped(from string) string {
	src := oneAsked(a, a.scope...)
	key := oneAsked(a, src.name+"."+src.columns[0].name, a.decisive(), src.name+"."+src.columns[0].name+", "+a.decisive())
	first, _, _ := strings.Cut(key, ",")
	show := oneAsked(a, "count(*)", "max("+a.column()+"::text)", "string_agg("+a.column()+"::text, ',' order by "+a.decisive()+")", "array_agg("+a.column()+")",
		"jsonb_agg("+src.name+")", a.column(), "count("+a.column()+")", "min("+a.column()+"::text) filter (where "+a.condition(0)+")",
		"first_value(max("+a.column()+"::text)) over (order by "+first+")", "json_object_agg("+first+"::text, "+a.column()+"::text)")
	grouping := oneAsked(a, key, key, key, "rollup ("+key+")", "grouping sets ((), ("+key+"))")
	text := "select " + first + ", " + show + " as o" + from + " group by " + grouping
	if a.chance(20) {
		text += " having " + oneAsked(a, "count(*) > 0", "max("+a.decisive()+"::text) <> ''")
	}
	return text
}

// from writes FROM and sets the scope.
func (a *asker) from(depth int) string {
	a.scope = nil
	items := []string{a.item(depth)}
	if a.chance(40) {
		items = append(items, a.item(depth))
	}
	if len(items) == 2 && a.chance(65) {
		return " from " + a.join(items)
	}
	return " from " + strings.Join(items, ", ")
}

func (a *asker) join(items []string) string {
	joined := items[0] + oneAsked(a, " join ", " left join ", " full join ", " right join ") + items[1]
	left, right := a.scope[0], a.scope[1]
	using := left.columns[0].name
	both := using == right.columns[0].name
	switch n := a.r.Intn(8); {
	case n == 0 && both:
		return joined + " using (" + using + ")"
	case n == 1 && both:
		return joined + " using (" + using + ") as u"
	case n == 2:
		return items[0] + " natural join " + items[1]
	case n == 3 && both: // hides both sides
		a.n++
		alias := fmt.Sprintf("j%d", a.n)
		a.scope = []asked{{name: alias, columns: append(append([]worldColumn{}, left.columns...), right.columns[1:]...)}}
		return "(" + joined + " using (" + using + ")) as " + alias
	case n == 4 && both:
		a.n++
		alias := fmt.Sprintf("j%d", a.n)
		a.scope = []asked{{name: alias, columns: []worldColumn{left.columns[0], {name: "c1", typ: "x"}}}}
		return "(" + joined + " using (" + using + ")) as " + alias + "(" + using + ", c1)"
	case n == 5 && !strings.HasPrefix(items[1], "lateral"):
		return items[0] + " cross join " + items[1]
	}
	return joined + " on " + left.name + "." + using + " = " + right.name + "." + right.columns[0].name
}

// tableName writes a table's name, with its schema or without.
func (a *asker) tableName(t *worldTable) string {
	return oneAsked(a, t.name, t.name, a.w.schema+"."+t.name, a.w.schema+". /* x */ "+t.name, `"`+a.w.schema+`".`+t.name)
}

// item writes one item of FROM and adds it to the scope.
func (a *asker) item(depth int) string {
	a.n++
	alias := fmt.Sprintf("t%d", a.n)
	if depth > 0 && a.chance(18) {
		return a.subquery(alias, depth)
	}
	if a.chance(4) && len(a.scope) > 0 {
		c := a.column()
		a.scope = append(append([]asked{}, a.scope...), asked{name: alias, columns: []worldColumn{{name: "x", typ: "text"}}})
		return "lateral " + oneAsked(a, "unnest(array["+c+"::text])", "string_to_table("+c+"::text, ',')", "jsonb_array_elements_text(jsonb_build_array("+c+"))",
			"regexp_split_to_table("+c+"::text, '')") + " as " + alias + "(x)"
	}
	if a.chance(3) {
		a.scope = append(append([]asked{}, a.scope...), asked{name: alias, columns: []worldColumn{{name: "id", typ: "int"}, {name: "x", typ: "text"}}})
		return "(values (1, 'x'), (2, 'y')) as " + alias + "(id, x)"
	}
	if len(a.ctes) > 0 && a.chance(50) {
		c := oneAsked(a, a.ctes...)
		a.scope = append(append([]asked{}, a.scope...), asked{name: alias, columns: c.columns})
		return c.name + " " + alias
	}
	if len(a.w.views) > 0 && a.chance(22) {
		v := oneAsked(a, a.w.views...)
		a.scope = append(append([]asked{}, a.scope...), asked{name: alias, columns: v.columns})
		return oneAsked(a, "", a.w.schema+".") + v.name + " as " + alias
	}
	return a.table(alias)
}

func (a *asker) table(alias string) string {
	t := oneAsked(a, a.w.tables...)
	columns := t.columns
	text := oneAsked(a, "", "", "", "", "", "", "only ") + a.tableName(t)
	switch {
	case a.chance(4) && !strings.HasPrefix(text, "only"):
		text = "only (" + text + ")"
	case a.chance(3) && !strings.HasPrefix(text, "only"):
		text += " *"
	}
	if a.chance(70) {
		text += oneAsked(a, " ", " as ") + alias
		if a.chance(20) {
			n := 1 + a.r.Intn(len(columns))
			renamed := append([]worldColumn{}, columns...)
			var names []string
			for i := range n {
				renamed[i].name = fmt.Sprintf("r%d", i)
				names = append(names, renamed[i].name)
			}
			columns = renamed
			text += "(" + strings.Join(names, ", ") + ")"
		}
	} else {
		alias = t.name
	}
	if a.chance(4) {
		text += " tablesample bernoulli (100) repeatable (1)"
	}
	a.scope = append(append([]asked{}, a.scope...), asked{name: alias, columns: columns, table: true})
	return text
}

// subquery writes a subquery in FROM, LATERAL when it names what is before it.
func (a *asker) subquery(alias string, depth int) string {
	seen := a.scope
	defer func() {
		a.scope = append(append([]asked{}, seen...), asked{name: alias, columns: []worldColumn{{name: "id", typ: "int"}, {name: "x", typ: "text"}}})
	}()
	if len(seen) > 0 && a.chance(40) {
		src := oneAsked(a, seen...)
		return "lateral (select " + src.name + "." + src.columns[0].name + ", " + oneAsked(a, a.column(), src.name+"::text", "to_jsonb("+src.name+")") + ") as " + alias + "(id, x)"
	}
	return "(" + a.body(depth-1, 2) + ") as " + alias + "(id, x)"
}

// id is the first column of something in sight: never masked.
func (a *asker) id() string {
	src := oneAsked(a, a.scope...)
	return src.name + "." + src.columns[0].name
}

func (a *asker) columnOf(src asked, c worldColumn) string {
	switch {
	case a.chance(8):
		return c.name
	case a.chance(8):
		return "(" + src.name + ")." + c.name
	case a.chance(6) && src.table && !strings.HasPrefix(src.name, "t"):
		return a.w.schema + "." + src.name + "." + c.name
	case a.chance(3) && src.table:
		return src.name + "." + oneAsked(a, "ctid", "tableoid", "tableoid::regclass")
	}
	return src.name + "." + c.name
}

// column is any column in sight.
func (a *asker) column() string {
	src := oneAsked(a, a.scope...)
	return a.columnOf(src, oneAsked(a, src.columns...))
}

// decisive is a column to compare, sort and group by: mostly one that is not
// masked, or else nearly every statement would be refused.
func (a *asker) decisive() string {
	src := oneAsked(a, a.scope...)
	c := src.columns[0]
	for range 6 {
		if other := oneAsked(a, src.columns...); !other.masked || a.chance(4) {
			c = other
			break
		}
	}
	return src.name + "." + c.name
}
