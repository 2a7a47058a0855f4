package sql

import (
	"maps"
	"slices"

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

func lineageOf(outputs []output) lineage {
	var all lineage
	for _, o := range outputs {
		all = all.union(o.from)
	}
	return all
}

// A source is one thing in FROM: a relation, a subquery, a CTE, a function, a
// join.
type source struct {
	alias   string
	outputs []output

	relation *catalog.Relation // when it is one
	aliased  bool              // the statement gave an alias
	ref      *reference        // when it is a relation
}

// A reference is one place in the text where a relation is named.
type reference struct {
	relation    *catalog.Relation
	location    int32
	schema      string // as written; "" when unqualified
	catalog     string // as written
	inherit     bool   // without ONLY
	aliased     bool
	aliasNames  bool // AS c (a, b)
	sampled     bool
	target      bool   // of INSERT, UPDATE or DELETE
	system      string // a system column of it that is used
	everything  bool   // *, or the whole row
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
	bare []bareUse
}

type bareColumn struct {
	source *source
	column string
}

type bareUse struct {
	bareColumn
	location int32
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
