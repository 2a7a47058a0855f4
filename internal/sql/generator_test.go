package sql

import (
	"fmt"
	"math/rand"
	"slices"
	"strings"
)

// A generator writes random queries over the tables of e2eSchema. Names are
// reused on purpose: aliases and WITH queries hide tables.
type generator struct {
	r *rand.Rand
	// scope is what the query being written can name: alias → columns.
	scope []generated
	ctes  []generated
	n     int
}

type generated struct {
	name    string
	columns []string
}

func newGenerator(seed int64) *generator { return &generator{r: rand.New(rand.NewSource(seed))} }

func pick[T any](g *generator, list []T) T { return list[g.r.Intn(len(list))] }

func (g *generator) chance(percent int) bool { return g.r.Intn(100) < percent }

var tables = []generated{
	{"customers", []string{"id", "name", "email", "ssn", "card", "last4"}},
	{"customers", []string{"id", "name", "email", "ssn", "card", "last4"}},
	{"public.customers", []string{"id", "name", "email", "ssn", "card", "last4"}},
	{"orders", []string{"id", "customer_id", "total", "note"}},
	{"events", []string{"id", "secret"}},
	{"events_1", []string{"id", "secret"}},
	{"clean", []string{"id", "total"}},
}

// query writes a SELECT with at most depth levels of nesting.
func (g *generator) query(depth int) string {
	outerScope, outerCTEs := g.scope, g.ctes
	defer func() { g.scope, g.ctes = outerScope, outerCTEs }()
	with := ""
	if depth > 0 && g.chance(30) {
		with = g.with(depth)
	}
	text := with + g.body(depth)
	if depth > 0 && g.chance(8) { // the first arm's WITH ends with it
		text = "(with customers(id, v) as (select 1, 'x') select id, v from customers) union all " +
			pick(g, []string{"(", ""}) + "select id, name || ssn from customers"
		if strings.Count(text, "(") > strings.Count(text, ")") {
			text += ")"
		}
		return text
	}
	if depth > 0 && g.chance(15) {
		text = with + "select 1, 'x' from " + pick(g, tables).name + pick(g, []string{" union all ", " union ", " except ", " intersect all "}) +
			"select " + pick(g, []string{"1, ssn from customers", "id, name from customers", "2, ''"})
	}
	return text
}

func (g *generator) with(depth int) string {
	var parts []string
	recursive := g.chance(25)
	for range 1 + g.r.Intn(2) {
		name := pick(g, []string{"customers", "orders", "w", "x", "events"})
		for strings.Contains(strings.Join(parts, ""), name+"(") {
			name += "2"
		}
		columns := []string{"id", pick(g, []string{"a", "ssn", "name"})}
		inner := fmt.Sprintf("select id, %s from customers", pick(g, []string{"ssn", "name", "card", "ssn || name", "last4"}))
		if g.chance(40) {
			inner = g.twoColumns(depth - 1)
		}
		if recursive && g.chance(50) {
			inner += fmt.Sprintf(" union all select id + 100, %s::text from %s where id < 3", columns[1], name)
			inner = strings.Replace(inner, "select id, ", "select id, ''||", 1)
		}
		parts = append(parts, fmt.Sprintf("%s(%s) as (%s)", name, strings.Join(columns, ", "), inner))
		g.ctes = append(append([]generated{}, g.ctes...), generated{name, columns})
	}
	if recursive {
		return "with recursive " + strings.Join(parts, ", ") + " "
	}
	return "with " + strings.Join(parts, ", ") + " "
}

func (g *generator) twoColumns(depth int) string {
	saved := g.scope
	defer func() { g.scope = saved }()
	from := g.from(max(0, depth))
	return "select 1, " + g.expr(1) + from
}

func (g *generator) body(depth int) string {
	from := g.from(depth)
	var items []string
	for i := range 1 + g.r.Intn(3) {
		switch {
		case g.chance(12):
			items = append(items, "*")
		case g.chance(12):
			items = append(items, pick(g, g.scope).name+".*")
		default:
			items = append(items, fmt.Sprintf("%s as o%d", g.expr(2), i))
		}
	}
	text := "select " + strings.Join(items, ", ") + from
	if g.chance(40) {
		text += " where " + g.condition(depth)
	}
	switch {
	case g.chance(10):
		text += " order by " + g.column()
	case g.chance(8):
		key := pick(g, g.scope).name + ".id"
		text = "select " + key + ", " + pick(g, []string{"count(*)", "max(" + g.column() + "::text)", g.column(), "array_agg(" + g.column() + "::text)"}) +
			from + " group by " + key
	}
	return text + " limit 20"
}

func (g *generator) from(depth int) string {
	g.scope = nil
	var items []string
	for range 1 + g.r.Intn(2) {
		items = append(items, g.item(depth))
	}
	if len(items) == 2 && g.chance(60) {
		joined := items[0] + pick(g, []string{" join ", " left join ", " full join "}) + items[1]
		switch g.r.Intn(6) {
		case 0:
			return " from " + joined + " using (id)"
		case 1:
			return " from " + items[0] + " natural join " + items[1]
		case 2: // hides both sides
			g.n++
			alias := fmt.Sprintf("j%d", g.n)
			columns := []string{"id"}
			for _, src := range g.scope {
				columns = append(columns, src.columns[1:]...)
			}
			g.scope = []generated{{alias, columns}}
			return " from (" + joined + " using (id)) as " + alias
		case 3:
			g.n++
			alias := fmt.Sprintf("j%d", g.n)
			g.scope = []generated{{alias, []string{"id", "c1", "c2"}}}
			return " from (" + joined + " using (id)) as " + alias + "(id, c1, c2)"
		}
		return " from " + joined + " on " + g.join()
	}
	return " from " + strings.Join(items, ", ")
}

func (g *generator) join() string {
	return fmt.Sprintf("%s.id = %s.id", g.scope[0].name, g.scope[len(g.scope)-1].name)
}

func (g *generator) item(depth int) string {
	g.n++
	alias := fmt.Sprintf("t%d", g.n)
	if depth > 0 && g.chance(25) {
		lateral := ""
		seen := g.scope
		if len(seen) > 0 && g.chance(50) {
			lateral = "lateral "
		}
		sub := "select id, " + pick(g, []string{"ssn", "name", "ssn || 'x' as ssn", "row_to_json(customers) as j"}) + " from customers"
		columns := []string{"id", "v"}
		if lateral != "" {
			src := pick(g, seen)
			sub = fmt.Sprintf("select %s.id, %s.%s", src.name, src.name, pick(g, src.columns))
		} else if g.chance(40) {
			sub = g.twoColumns(depth - 1)
			g.scope = seen
		}
		g.scope = append(append([]generated{}, seen...), generated{alias, columns})
		return lateral + "(" + sub + ") as " + alias + "(id, v)"
	}
	src := pick(g, tables)
	if len(g.ctes) > 0 && g.chance(50) {
		src = pick(g, g.ctes)
	}
	columns := src.columns
	text := pick(g, []string{"", "", "", "only "}) + src.name
	if strings.HasPrefix(text, "only ") && len(g.ctes) > 0 {
		text = src.name
	}
	switch {
	case g.chance(70):
		text += pick(g, []string{" ", " as "}) + alias
		if g.chance(20) {
			renamed := []string{"id"}
			for i := range columns[1:] {
				renamed = append(renamed, fmt.Sprintf("r%d", i))
			}
			if len(columns) > 4 {
				renamed = renamed[:4]
			}
			text += "(" + strings.Join(renamed, ", ") + ")"
			columns = renamed
		}
	default:
		alias = src.name[strings.LastIndexByte(src.name, '.')+1:]
	}
	g.scope = append(append([]generated{}, g.scope...), generated{alias, columns})
	return text
}

func (g *generator) column() string {
	src := pick(g, g.scope)
	if g.chance(5) && slices.Contains([]string{"customers", "orders", "events"}, src.name) {
		return "public." + src.name + "." + pick(g, src.columns)
	}
	c := pick(g, src.columns)
	if g.chance(15) {
		return c
	}
	return src.name + "." + c
}

func (g *generator) expr(depth int) string {
	if depth == 0 || g.chance(40) {
		return g.column()
	}
	switch g.r.Intn(12) {
	case 0:
		return pick(g, g.scope).name + "::text"
	case 1:
		return "row_to_json(" + pick(g, g.scope).name + ")::text"
	case 2:
		return "(" + g.expr(depth-1) + ")::text || " + g.column()
	case 3:
		return "upper(" + g.expr(depth-1) + "::text)"
	case 4:
		return "coalesce(" + g.column() + "::text, 'none')"
	case 5:
		return "(select " + pick(g, []string{"ssn", "card", "name", "c::text"}) + " from customers c where c.id = " + g.column() + "::text::int limit 1)"
	case 6:
		return "array[" + g.column() + "::text, " + g.column() + "::text]"
	case 7:
		return "case when " + g.column() + "::text = 'x' then " + g.column() + "::text else " + g.column() + "::text end"
	case 8:
		return "to_jsonb(" + pick(g, g.scope).name + ") ->> 'ssn'"
	case 9:
		return "encode(" + g.column() + "::text::bytea, 'base64')"
	case 10:
		return "(" + pick(g, g.scope).name + ")." + pick(g, []string{"id", "ssn", "name", "v"})
	}
	return "format('%s-%s', " + g.column() + ", " + g.expr(depth-1) + ")"
}

func (g *generator) condition(depth int) string {
	switch g.r.Intn(6) {
	case 0:
		return g.column() + "::text like 'SEC%'"
	case 1:
		return "exists (select 1 from customers c where c.id = " + pick(g, g.scope).name + ".id)"
	case 2:
		return pick(g, g.scope).name + ".id in (select id from " + pick(g, []string{"customers", "orders", "events"}) + ")"
	}
	return pick(g, g.scope).name + ".id < " + fmt.Sprint(g.r.Intn(20))
}
