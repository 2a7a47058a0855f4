package sql

import (
	"maps"
	"slices"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// A columnKey is a column of a relation in the catalog.
type columnKey struct {
	relation uint32 // OID
	name     string
}

// A lineage is the set of base columns that a value is computed from. It is
// never changed once made; nil is the empty one.
type lineage map[columnKey]struct{}

func (l lineage) union(others ...lineage) lineage {
	all := l
	copied := false
	for _, o := range others {
		for key := range o {
			if _, ok := all[key]; ok {
				continue
			}
			if !copied {
				if all = maps.Clone(all); all == nil {
					all = lineage{}
				}
				copied = true
			}
			all[key] = struct{}{}
		}
	}
	return all
}

func (l lineage) equal(o lineage) bool { return maps.Equal(l, o) }

// An output is one column of a query's result or of something in FROM.
type output struct {
	name string
	from lineage
	// base is set when the output is a column of a relation, unchanged.
	base   *source
	column string
}

func (b *binder) lineageOf(outputs []output) lineage {
	parts := make([]lineage, len(outputs))
	for i, o := range outputs {
		parts[i] = o.from
	}
	return b.union(nil, parts...)
}

// row is the lineage of a source as a whole row, and notes its columns.
func (b *binder) row(src *source) lineage {
	if !src.rowKnown {
		b.whole(src)
		src.row, src.rowKnown = b.lineageOf(src.outputs), true
	}
	return src.row
}

// maxWork bounds what following columns may cost: whole rows of wide tables,
// named again and again, multiply. It is about half a second.
const maxWork = 2_000_000

// spend counts work and reports whether there is any left; without, the
// statement is refused.
func (b *binder) spend(n int) bool {
	b.work += n + 1
	if b.work <= maxWork {
		return true
	}
	b.refuse(&Refusal{
		Reason: access.Unreadable, SQLState: "54001", Message: "the statement is too complex to follow its columns",
		Hint: "Name fewer columns and whole rows, or split it.",
	})
	return false
}

// union is l with others; once the statement is refused for its size, l alone.
func (b *binder) union(l lineage, others ...lineage) lineage {
	for _, o := range others {
		if !b.spend(len(o)) {
			return l
		}
	}
	return l.union(others...)
}

// A source is one thing in FROM: a relation, a subquery, a CTE, a function, a
// join.
type source struct {
	alias   string
	outputs []output

	relation *catalog.Relation // when it is one
	aliased  bool              // the statement gave an alias
	ref      *reference        // when it is a relation

	row      lineage // of all outputs, once it was asked for
	rowKnown bool
	byName   map[string][]int // index of outputs, once it was asked for
}

// find lists the outputs of that name.
func (src *source) find(name string) []int {
	if src.byName == nil {
		src.byName = make(map[string][]int, len(src.outputs))
		for i, o := range src.outputs {
			src.byName[o.name] = append(src.byName[o.name], i)
		}
	}
	return src.byName[name]
}

// A reference is one place in the text where a relation is named.
type reference struct {
	relation    *catalog.Relation
	location    int32
	schema      string // as written; "" when unqualified
	catalog     string // as written
	inherit     bool   // without ONLY
	aliased     bool
	aliasNames  bool     // AS c (a, b)
	sample      int32    // where the method of TABLESAMPLE is named; 0 without one
	target      bool     // of INSERT, UPDATE, DELETE or COPY FROM
	copied      []string // the columns that COPY table TO takes
	systems     []string // its system columns that are used
	natural     bool     // beside NATURAL JOIN, which looks at every column
	everything  bool     // *, or the whole row
	used        map[string]bool
	usedColumns []string
}

func (r *reference) use(column string) {
	if !r.used[column] {
		if r.used == nil {
			r.used = map[string]bool{}
		}
		r.used[column] = true
		r.usedColumns = append(r.usedColumns, column)
	}
}

// A use is one place where columns take part in something. clause is "" where
// the value only flows into a result, and otherwise says what decides on it.
type use struct {
	columns  lineage
	clause   string
	location int32
}

// A qualified is a column reference with a schema, schema.table.column, whose
// schema must go when the table becomes a subquery.
type qualifiedUse struct {
	ref      *reference
	location int32
	schema   string
}

// A grouping is a query level with GROUP BY or aggregates, kept because a
// subquery has no primary key that ungrouped columns could depend on.
type grouping struct {
	keys map[bareColumn]bool
	bare map[bareColumn]int32 // where it is used first
	rows map[*source]bool     // used as whole rows
	sets bool                 // ROLLUP, CUBE or GROUPING SETS
	// location is where the first item is, -1 when that cannot be told.
	location int32
}

type bareColumn struct {
	source *source
	column string
}

// useSystem notes a system column.
func (r *reference) useSystem(column string) {
	if !slices.Contains(r.systems, column) {
		r.systems = append(r.systems, column)
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
