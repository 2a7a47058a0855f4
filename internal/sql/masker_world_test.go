package sql

import (
	"fmt"
	"math/rand"
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// A world is a schema of random tables, some of whose columns are masked. The
// same world is built twice, with other secrets and all else alike.
type world struct {
	schema  string
	version string
	seed    int64
	tables  []*worldTable // in the order in which they are made
	views   []*worldView
	ddl     []string
	masks   []access.Mask
}

// A worldTable is a table, partition or child. Identifiers are written as in
// SQL.
type worldTable struct {
	name    string
	columns []worldColumn
	rows    int  // that are put into it by its own name
	first   int  // id of the first row
	leaf    bool // holds rows
	base    bool // masks and rows come from it, not from a parent
}

type worldColumn struct {
	name      string
	typ       string
	masked    bool
	generated bool
	kind      *kind
}

// A worldView shows columns of a table.
type worldView struct {
	name    string
	columns []worldColumn
}

// A kind is a type with values that can be told apart: secret makes a literal
// with 8 or more characters that occur nowhere else, where the type has room.
type kind struct {
	typ    string
	secret func(r *rand.Rand) (literal string, marks []string)
	clean  func(row int) string
}

func token(r *rand.Rand) string {
	const letters = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
	b := make([]byte, 12)
	for i := range b {
		b[i] = letters[r.Intn(len(letters))]
	}
	return string(b)
}

// marked writes a token into a literal.
func marked(format string) func(*rand.Rand) (string, []string) {
	return func(r *rand.Rand) (string, []string) {
		t := token(r)
		return "'" + strings.ReplaceAll(format, "%", t) + "'", []string{t}
	}
}

// numbered writes n random digits, the first not 0, into a literal.
func numbered(format string, n int) func(*rand.Rand) (string, []string) {
	return func(r *rand.Rand) (string, []string) {
		d := []byte{byte('5' + r.Intn(4))}
		for len(d) < n {
			d = append(d, byte('0'+r.Intn(10)))
		}
		value := strings.ReplaceAll(format, "%", string(d))
		if n < 8 {
			return "'" + value + "'", []string{value}
		}
		return "'" + value + "'", []string{string(d)}
	}
}

// unmarked picks one of few values: only that two answers differ tells it.
func unmarked(values ...string) func(*rand.Rand) (string, []string) {
	return func(r *rand.Rand) (string, []string) { return "'" + values[r.Intn(len(values))] + "'", nil }
}

func plainValue(format string) func(int) string {
	return func(row int) string { return "'" + strings.ReplaceAll(format, "%", fmt.Sprint(row)) + "'" }
}

func cycled(values ...string) func(int) string {
	return func(row int) string { return "'" + values[row%len(values)] + "'" }
}

// kinds are the types of columns. S stands for the world's schema.
var kinds = []kind{
	{"text", marked("%"), plainValue("plain%")},
	{"text", marked("left % right"), plainValue("t%")},
	{"text COLLATE \"C\"", marked("%"), plainValue("c%")},
	{"varchar(20)", marked("%"), plainValue("v%")},
	{"varchar", marked("%@mail"), plainValue("v%@mail")},
	{"char(14)", marked("%"), plainValue("h%")},
	{"varchar(2)", unmarked("ab", "cd", "ef"), cycled("x", "yz")},
	{"name", marked("%"), plainValue("n%")},
	{"bytea", marked("%"), plainValue("b%")},
	{"json", marked(`{"k": "%", "n": [1, 2]}`), plainValue(`{"k": "j%"}`)},
	{"jsonb", marked(`{"k": "%", "%": 1}`), plainValue(`{"k": "j%", "l": [1]}`)},
	{"text[]", marked("{%,x}"), plainValue("{a%,b}")},
	{"int[]", numbered("{%,1}", 9), plainValue("{%,2}")},
	{"int", numbered("%", 9), plainValue("%")},
	{"bigint", numbered("%", 16), plainValue("%")},
	{"smallint", unmarked("111", "222", "333"), plainValue("%")},
	{"numeric", numbered("%.25", 14), plainValue("%.5")},
	{"numeric(16,2)", numbered("%.25", 12), plainValue("%.50")},
	{"float8", numbered("%", 12), plainValue("%.5")},
	{"money", numbered("%", 9), plainValue("%")},
	{"boolean", unmarked("t", "f"), cycled("t", "f", "t")},
	{"date", numbered("%-11-23", 4), plainValue("2001-01-0%")},
	{"timestamptz", numbered("%-11-23 10:11:12+00", 4), plainValue("2001-01-0% 00:00:00+00")},
	{"time", unmarked("11:22:33.445566", "10:20:30.405060"), plainValue("01:0%:00")},
	{"interval", numbered("% days", 8), plainValue("% days")},
	{"uuid", numbered("%-1234-1234-1234-123412341234", 8), plainValue("00000000-0000-0000-0000-00000000000%")},
	{"inet", unmarked("10.211.47.133", "10.212.48.144", "10.213.49.155"), plainValue("10.0.0.%")},
	{"macaddr8", unmarked("a1:b2:c3:d4:e5:f6:a7:b8", "a2:b2:c3:d4:e5:f6:a7:b9"), plainValue("00:00:00:00:00:00:00:0%")},
	{"int8range", numbered("[%,9223372036854775807)", 14), plainValue("[%,9)")},
	{"tstzrange", numbered("[%-11-23 10:11:12+00,infinity)", 4), plainValue("[2001-01-0% 00:00:00+00,)")},
	{"bit(64)", unmarked(strings.Repeat("1101", 16), strings.Repeat("1001", 16)), cycled(strings.Repeat("0", 64))},
	{"tsvector", marked("%"), plainValue("w%")},
	{"point", numbered("(%,1)", 10), plainValue("(%,2)")},
	{"oid", numbered("%", 9), plainValue("%")},
	{"S.mood", unmarked("sad", "ok", "glad"), cycled("sad", "ok")},
	{"S.mood[]", unmarked("{sad}", "{ok,glad}"), cycled("{sad}", "{}")},
	{"S.label", marked("t%"), plainValue("t%")},
	{"S.label[]", marked("{t%}"), plainValue("{t%}")},
	{"S.amount", numbered("%", 9), plainValue("%")},
	{"S.pair", marked("(1,%)"), plainValue("(%,p)")},
	{"S.pair[]", marked(`{"(1,%)"}`), plainValue(`{"(%,p)"}`)},
}

// columnNames recur between tables, so that joins merge them and names are
// ambiguous; some have to be quoted.
var columnNames = []string{"a", "b", "c", "d", "ssn", "v", `"Mixed Case"`, `"sel""ect"`, "été", `"order"`, "name", "note"}

// newWorld makes up a schema.
func newWorld(n int, seed int64, version string) *world {
	r := rand.New(rand.NewSource(seed))
	w := &world{schema: fmt.Sprintf("w%d", n), version: version, seed: seed}
	w.add("CREATE SCHEMA "+w.schema, "CREATE TYPE S.mood AS ENUM ('sad', 'ok', 'glad')", "CREATE DOMAIN S.label AS text CHECK (value ~ '^t')",
		"CREATE DOMAIN S.amount AS int", "CREATE TYPE S.pair AS (n int, s text)")
	people := w.table(r, "people", 6, ", PRIMARY KEY (id)")
	w.table(r, `"Odd Name"`, 4, ", PRIMARY KEY (id)")
	w.table(r, "items", 5, "")
	w.add("ALTER TABLE S.items ADD FOREIGN KEY (ref) REFERENCES S.people (id) ON DELETE CASCADE")
	if c := people.columns[2]; c.kind.typ == "text" || c.kind.typ == "bigint" || c.kind.typ == "uuid" {
		w.add("CREATE UNIQUE INDEX ON S.people (" + c.name + ")")
	}
	w.partitioned(r)
	w.inherited(r)
	for _, t := range slices.Clone(w.tables) {
		if t.base && r.Intn(2) == 0 {
			w.view(r, t)
		}
	}
	w.view(r, w.tables[0])
	w.view(r, w.tables[1])
	return w
}

func (w *world) add(ddl ...string) {
	for _, text := range ddl {
		w.ddl = append(w.ddl, w.in(text))
	}
}

// in puts the schema's name in place of S.
func (w *world) in(text string) string { return strings.ReplaceAll(text, "S.", w.schema+".") }

func (w *world) columns(r *rand.Rand, n int) []worldColumn {
	names := slices.Clone(columnNames)
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	var columns []worldColumn
	for i := range n {
		k := &kinds[r.Intn(len(kinds))]
		if i < 2 { // some of every table can be cut up as text
			k = &kinds[r.Intn(6)]
		}
		columns = append(columns, worldColumn{name: names[i], typ: w.in(k.typ), masked: i%2 == 0, kind: k})
	}
	return columns
}

func (w *world) define(columns []worldColumn) string {
	parts := []string{"id int NOT NULL", "ref int"}
	for _, c := range columns {
		if c.kind == nil {
			continue
		}
		parts = append(parts, c.name+" "+c.typ)
	}
	return strings.Join(parts, ", ")
}

// generated is a column computed from a masked one, and its definition.
func (w *world) generated(r *rand.Rand, columns []worldColumn) (worldColumn, string) {
	how := " STORED"
	if w.version == "18" && r.Intn(2) == 0 {
		how = " VIRTUAL"
	}
	c := columns[0]
	return worldColumn{name: "made", typ: "text", masked: c.masked, generated: true},
		", made text GENERATED ALWAYS AS (upper(right((" + c.name + ")::text, 10)))" + how
}

var idColumns = []worldColumn{{name: "id", typ: "int"}, {name: "ref", typ: "int"}}

func (w *world) table(r *rand.Rand, name string, n int, constraints string) *worldTable {
	columns := w.columns(r, n)
	t := &worldTable{name: name, rows: 8, first: 1, leaf: true, base: true}
	made := ""
	if name == "people" || r.Intn(2) == 0 {
		var g worldColumn
		g, made = w.generated(r, columns)
		columns = append(columns, g)
	}
	t.columns = append(slices.Clone(idColumns), columns...)
	w.tables = append(w.tables, t)
	w.add("CREATE TABLE S." + name + " (" + w.define(columns) + made + constraints + ")")
	w.mask(t)
	return t
}

// mask names the masked columns of a table, but for generated ones.
func (w *world) mask(t *worldTable) {
	for _, c := range t.columns {
		if c.masked && !c.generated {
			w.masks = append(w.masks, access.Mask{Column: w.schema + "." + bare(t.name) + "." + bare(c.name)})
		}
	}
}

// bare is an identifier without its quotes.
func bare(identifier string) string {
	if quoted, ok := strings.CutPrefix(identifier, `"`); ok {
		return strings.ReplaceAll(strings.TrimSuffix(quoted, `"`), `""`, `"`)
	}
	return identifier
}

// partitioned is a table with a partition made of it, one attached to it whose
// columns have another order, and one within a partition.
func (w *world) partitioned(r *rand.Rand) {
	columns := w.columns(r, 4)
	all := append(slices.Clone(idColumns), columns...)
	root := &worldTable{name: "events", columns: all, base: true}
	first := &worldTable{name: "events_1", columns: all, rows: 4, first: 1, leaf: true}
	other := &worldTable{name: "events_2", columns: all, rows: 4, first: 11, leaf: true}
	deep := &worldTable{name: "events_3", columns: all}
	leaf := &worldTable{name: "events_3_1", columns: all, rows: 3, first: 21, leaf: true}
	w.tables = append(w.tables, root, first, other, deep, leaf)
	shuffled := slices.Clone(columns)
	slices.Reverse(shuffled)
	parts := []string{"gone text"}
	for _, c := range shuffled {
		parts = append(parts, c.name+" "+c.typ)
	}
	w.add("CREATE TABLE S.events ("+w.define(columns)+") PARTITION BY RANGE (id)",
		"CREATE TABLE S.events_1 PARTITION OF S.events FOR VALUES FROM (0) TO (10)",
		"CREATE TABLE S.events_2 ("+strings.Join(parts, ", ")+", ref int, id int NOT NULL)",
		"ALTER TABLE S.events_2 DROP COLUMN gone",
		"ALTER TABLE S.events ATTACH PARTITION S.events_2 FOR VALUES FROM (10) TO (20)",
		"CREATE TABLE S.events_3 PARTITION OF S.events FOR VALUES FROM (20) TO (40) PARTITION BY RANGE (id)",
		"CREATE TABLE S.events_3_1 PARTITION OF S.events_3 FOR VALUES FROM (20) TO (30)")
	named := root
	if r.Intn(3) == 0 { // a mask on a partition hides the column everywhere
		named = other
	}
	w.mask(named)
}

// inherited is a table with a child that has a column of its own.
func (w *world) inherited(r *rand.Rand) {
	columns := w.columns(r, 4)
	own := worldColumn{name: "extra", typ: "text", masked: true, kind: &kinds[0]}
	parent := &worldTable{name: "places", columns: append(slices.Clone(idColumns), columns...), rows: 4, first: 1, leaf: true, base: true}
	child := &worldTable{name: "cities", columns: append(slices.Clone(parent.columns), own), rows: 4, first: 11, leaf: true}
	w.tables = append(w.tables, parent, child)
	w.add("CREATE TABLE S.places ("+w.define(columns)+")", "CREATE TABLE S.cities (extra text) INHERITS (S.places)")
	w.mask(parent)
	w.masks = append(w.masks, access.Mask{Column: w.schema + ".cities.extra"})
}

// view is a view or materialized view of a table: of some columns, of all, of
// rows as text, of what a masked column decides, or of another view.
func (w *world) view(r *rand.Rand, t *worldTable) {
	name := fmt.Sprintf("view%d", len(w.views))
	create := []string{"CREATE VIEW", "CREATE VIEW", "CREATE VIEW", "CREATE MATERIALIZED VIEW"}[r.Intn(4)]
	options := ""
	if create == "CREATE VIEW" {
		options = []string{"", "", " WITH (security_barrier)", " WITH (security_invoker)"}[r.Intn(4)]
	}
	v := &worldView{name: name}
	text := ""
	switch r.Intn(8) {
	case 0: // the columns that are not masked
		text = w.viewOf(v, t, func(c worldColumn) bool { return !c.masked })
	case 1:
		text = w.viewOf(v, t, func(c worldColumn) bool { return true })
	case 2:
		v.columns = []worldColumn{{name: "id", typ: "int"}, {name: "r", typ: "text", masked: true}}
		text = "SELECT id, x::text AS r FROM S." + t.name + " x"
	case 3:
		v.columns = []worldColumn{{name: "id", typ: "int"}}
		text = "SELECT x.id FROM S." + t.name + " x WHERE x." + t.columns[2].name + "::text < 'G'"
	case 4:
		v.columns = []worldColumn{{name: "ref", typ: "int"}, {name: "n", typ: "int"}, {name: "most", typ: "text", masked: true}}
		text = "SELECT ref, count(*) AS n, max(" + t.columns[2].name + "::text) AS most FROM S." + t.name + " GROUP BY ref"
	case 5:
		v.columns = []worldColumn{{name: "id", typ: "int"}, {name: "s", typ: "text", masked: true}, {name: "plain", typ: "text"}}
		text = "SELECT p.id, q." + t.columns[2].name + "::text || '' AS s, p." + t.columns[3].name + "::text AS plain FROM S." + t.name + " p JOIN S." + t.name + " q USING (id)"
	case 6:
		v.columns = []worldColumn{{name: "id", typ: "int"}, {name: "s", typ: "text", masked: true}}
		text = "WITH w AS (SELECT id, " + t.columns[2].name + "::text AS s FROM S." + t.name + ") SELECT id, s FROM w UNION ALL SELECT id, 'x' FROM S." + t.name
	case 7: // how many rows there are tells
		v.columns = []worldColumn{{name: "id", typ: "int"}, {name: "n", typ: "int", masked: true}}
		text = "SELECT id, generate_series(1, ascii(" + t.columns[2].name + "::text) % 7) AS n FROM S." + t.name
	}
	if len(w.views) > 0 && r.Intn(3) == 0 {
		inner := w.views[r.Intn(len(w.views))]
		v.columns, text = inner.columns, "SELECT * FROM S."+inner.name
	}
	w.views = append(w.views, v)
	w.add(create + " S." + name + options + " AS " + text + map[bool]string{true: " WITH NO DATA"}[create == "CREATE MATERIALIZED VIEW"])
}

func (w *world) viewOf(v *worldView, t *worldTable, take func(worldColumn) bool) string {
	var names []string
	for _, c := range t.columns {
		if take(c) {
			v.columns = append(v.columns, c)
			names = append(names, c.name)
		}
	}
	return "SELECT " + strings.Join(names, ", ") + " FROM S." + t.name
}

// fill writes the rows: what is masked by the secrets of seed, all else always
// alike. It returns the marks of the secrets.
func (w *world) fill(secrets int64) (statements []string, marks []string) {
	r := rand.New(rand.NewSource(w.seed ^ secrets<<20))
	for _, t := range w.tables {
		if !t.leaf {
			continue
		}
		for row := range t.rows {
			id := t.first + row
			names, values := []string{"id", "ref"}, []string{fmt.Sprint(id), fmt.Sprint(1 + row%4)}
			for _, c := range t.columns[2:] {
				if c.generated {
					continue
				}
				value := c.kind.clean(1 + row%9)
				if c.masked {
					var found []string
					value, found = c.kind.secret(r)
					marks = append(marks, found...)
				}
				names, values = append(names, c.name), append(values, value)
			}
			statements = append(statements, fmt.Sprintf("INSERT INTO %s.%s (%s) VALUES (%s)", w.schema, t.name, strings.Join(names, ", "), strings.Join(values, ", ")))
		}
	}
	for _, text := range w.ddl {
		if view, ok := strings.CutPrefix(text, "CREATE MATERIALIZED VIEW "); ok {
			statements = append(statements, "REFRESH MATERIALIZED VIEW "+strings.Fields(view)[0])
		}
	}
	return statements, marks
}
