package sql

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"

	"chaperone.dev/chaperone/internal/sql/catalog"
)

// A binder binds one statement: it gives every name its meaning by PostgreSQL's
// rules and notes what the statement reads, writes, calls and compares. It
// never stops half-way: the first refusal is kept, and binding goes on with
// what is left, so that the action names as much as can be known.
type binder struct {
	text    string
	cat     *catalog.Snapshot
	path    []string // search path
	library *library
	refusal *Refusal

	references []*reference
	uses       []use
	qualified  []qualifiedUse
	groupings  []*grouping
	views      []*catalog.Relation // views and materialized views read
	work       int                 // see spend
	passes     int                 // over right arms of recursive queries

	reads, writes, columns, functions map[string]bool
	changes                           []*change
	unknown                           map[string]bool
	ownTypes                          bool     // a value of a type outside pg_catalog takes part
	ownCandidates                     []string // functions and operators that matter only then
	casts                             bool     // there is an explicit cast
	locks                             bool
	into                              *pg.RangeVar
	seen                              map[any]bool // the nodes that were bound; see unseen
	resolved                          map[*pg.RangeVar]*reference
	parameters                        int32
}

// maxViews bounds how deep views are followed.
const maxViews = 16

func newBinder(text string, cat *catalog.Snapshot, lib *library) *binder {
	return &binder{
		text: text, cat: cat, path: cat.SearchPath(), library: lib,
		reads: map[string]bool{}, writes: map[string]bool{}, columns: map[string]bool{}, functions: map[string]bool{},
		unknown: map[string]bool{}, seen: map[any]bool{}, resolved: map[*pg.RangeVar]*reference{},
	}
}

// lost returns a relation that was bound and is no longer noted, or nil: what is
// bound more than once must not forget.
func (b *binder) lost() *reference {
	noted := map[*reference]bool{}
	for _, ref := range b.references {
		noted[ref] = true
	}
	for _, ref := range b.resolved {
		if !noted[ref] {
			return ref
		}
	}
	return nil
}

// unseen returns a node that names something and that binding did not come by,
// or nil. It is the proof that no part of a tree was forgotten: every name of a
// relation, column, function, operator and type in it was given its meaning.
func (b *binder) unseen(m proto.Message) any {
	switch n := m.(type) {
	case *pg.RangeVar, *pg.ColumnRef, *pg.FuncCall, *pg.A_Expr, *pg.TypeName, *pg.SelectStmt:
		if !b.seen[n] {
			return n
		}
	case *pg.MultiAssignRef:
		if n.GetColno() > 1 {
			return nil // a copy of the first one's source
		}
	case *pg.IntoClause:
		return nil
	}
	var found any
	below(m, func(inner proto.Message) bool {
		found = b.unseen(inner)
		return found == nil
	})
	return found
}

// doubt notes why something is not known; the statement is then not read-only.
func (b *binder) doubt(format string, args ...any) {
	b.unknown[fmt.Sprintf(format, args...)] = true
}

// use notes that columns take part in clause at location.
func (b *binder) use(columns lineage, clause string, location int32) {
	if len(columns) > 0 && b.spend(len(columns)) {
		b.uses = append(b.uses, use{columns, clause, location})
	}
}

// A mark is a state of the binder to go back to, for a query that has to be
// bound twice.
type mark struct{ references, uses, qualified, groupings, changes, views int }

func (b *binder) mark() mark {
	return mark{len(b.references), len(b.uses), len(b.qualified), len(b.groupings), len(b.changes), len(b.views)}
}

func (b *binder) reset(m mark) {
	b.references, b.uses, b.qualified = b.references[:m.references], b.uses[:m.uses], b.qualified[:m.qualified]
	b.groupings, b.changes, b.views = b.groupings[:m.groupings], b.changes[:m.changes], b.views[:m.views]
}

// charPosition is the 1-based character at a byte offset, 0 for none.
func charPosition(text string, offset int32) int {
	if offset < 0 || int(offset) > len(text) {
		return 0
	}
	return utf8.RuneCountInString(text[:offset]) + 1
}

// A scope is one query level: what FROM brought in, and the level around it.
type scope struct {
	outer   *scope
	entries []entry
	level   *grouping // set where ungrouped columns matter
	inside  bool      // an aggregate's arguments: nothing there has to be grouped
}

// An entry makes a source visible by its alias, its columns unqualified, or
// both.
type entry struct {
	source    *source
	byName    bool
	byColumns bool
}

// aggregated is s as the arguments of an aggregate see it. The rows of a VALUES
// at the top see nothing.
func (s *scope) aggregated() *scope {
	if s == nil {
		return nil
	}
	inner := *s
	inner.inside = true
	return &inner
}

// systemColumns are the columns that every table has besides its own.
var systemColumns = map[string]bool{"ctid": true, "xmin": true, "cmin": true, "xmax": true, "cmax": true, "tableoid": true}

// A match is what a column name was bound to.
type match struct {
	scope  *scope
	output output
	source *source // where it was found
}

// unqualified finds a column by its name alone: the innermost level that has
// one, where it must be the only one.
func (b *binder) unqualified(s *scope, name string, location int32) (match, bool) {
	for ; s != nil && b.spend(len(s.entries)); s = s.outer {
		var found []match
		for _, e := range s.entries {
			if e.byColumns {
				found = append(found, columnsNamed(s, e.source, name)...)
			}
		}
		if len(found) > 1 {
			b.unreadable(location, "42702", "column reference %q is ambiguous", name)
			return found[0], true
		}
		if len(found) == 1 {
			return found[0], true
		}
		if systemColumns[name] {
			if src := b.systemSource(s, name, location); src != nil {
				return match{scope: s, source: src}, true
			}
		}
	}
	return match{}, false
}

// systemSource finds the relation of this level whose system column a name is.
func (b *binder) systemSource(s *scope, name string, location int32) *source {
	var found *source
	for _, e := range s.entries {
		if !e.byColumns || e.source.relation == nil {
			continue
		}
		if found != nil {
			b.unreadable(location, "42702", "column reference %q is ambiguous", name)
			return found
		}
		found = e.source
	}
	if found != nil {
		found.ref.useSystem(name)
	}
	return found
}

func columnsNamed(s *scope, src *source, name string) []match {
	var found []match
	for _, i := range src.find(name) {
		found = append(found, match{s, src.outputs[i], src})
	}
	return found
}

// byAlias finds a source by the name it has in this query: the innermost level
// that has one.
func (b *binder) byAlias(s *scope, alias string, location int32) (*scope, *source) {
	for ; s != nil && b.spend(len(s.entries)); s = s.outer {
		var found *source
		for _, e := range s.entries {
			if !e.byName || e.source.alias != alias {
				continue
			}
			if found != nil {
				b.unreadable(location, "42P09", "table reference %q is ambiguous", alias)
				return s, found
			}
			found = e.source
		}
		if found != nil {
			return s, found
		}
	}
	return nil, nil
}

// byRelation finds a source by schema.table: only a relation without an alias
// has such a name.
func (b *binder) byRelation(s *scope, schema, table string, location int32) (*scope, *source) {
	for ; s != nil && b.spend(len(s.entries)); s = s.outer {
		var found *source
		for _, e := range s.entries {
			src := e.source
			if !e.byName || src.relation == nil || src.aliased || src.relation.Schema != schema || src.relation.Name != table {
				continue
			}
			if found != nil {
				b.unreadable(location, "42P09", "table reference %q is ambiguous", schema+"."+table)
				return s, found
			}
			found = src
		}
		if found != nil {
			return s, found
		}
	}
	return nil, nil
}

// relation finds the relation that a name in FROM, or the target of a change,
// means. It notes nothing.
func (b *binder) relation(v *pg.RangeVar) *catalog.Relation {
	b.seen[v] = true
	schema, name := v.GetSchemaname(), v.GetRelname()
	if v.GetCatalogname() != "" && v.GetCatalogname() != b.cat.Database() {
		b.unreadable(v.GetLocation(), "0A000", "cross-database references are not implemented: %q", v.GetCatalogname()+"."+schema+"."+name)
		return nil
	}
	if strings.HasPrefix(schema, "pg_temp") || strings.HasPrefix(schema, "pg_toast") {
		b.unhandled(v.GetLocation(), "the schema "+schema, "Use a table of another schema.")
		return nil
	}
	if schema != "" {
		if r := b.cat.Relation(schema, name); r != nil {
			return r
		}
		b.unreadable(v.GetLocation(), "42P01", "relation %q does not exist", schema+"."+name)
		return nil
	}
	for _, s := range b.path {
		if r := b.cat.Relation(s, name); r != nil {
			return r
		}
	}
	b.unreadable(v.GetLocation(), "42P01", "relation %q does not exist", name)
	return nil
}

// system reports whether r is one of the server's own relations.
func system(r *catalog.Relation) bool {
	return r.Schema == "pg_catalog" || r.Schema == "information_schema"
}

// sourceOf makes the source of a relation that is read.
func (b *binder) sourceOf(v *pg.RangeVar, r *catalog.Relation) *source {
	ref := &reference{
		relation: r, location: v.GetLocation(), schema: v.GetSchemaname(), catalog: v.GetCatalogname(), inherit: v.GetInh(),
		aliased: v.GetAlias() != nil, aliasNames: len(v.GetAlias().GetColnames()) > 0,
	}
	b.references = append(b.references, ref)
	b.resolved[v] = ref
	src := &source{alias: r.Name, relation: r, aliased: ref.aliased, ref: ref}
	if !b.spend(4 * len(r.Columns)) { // its columns take room
		return src
	}
	for _, c := range r.Columns {
		key := columnKey{r.OID, c.Name}
		src.outputs = append(src.outputs, output{name: c.Name, from: lineage{key: {}}, base: src, column: c.Name})
	}
	b.alias(src, v.GetAlias())
	return src
}

// alias renames src and its first columns.
func (b *binder) alias(src *source, a *pg.Alias) {
	if a == nil {
		return
	}
	src.alias = a.GetAliasname()
	if len(a.GetColnames()) > len(src.outputs) {
		b.unreadable(-1, "42P10", "table %q has %d columns available but %d columns specified", src.alias, len(src.outputs), len(a.GetColnames()))
		return
	}
	src.outputs, src.byName = slices.Clone(src.outputs), nil
	for i, n := range a.GetColnames() {
		src.outputs[i].name = n.GetString_().GetSval()
	}
}

// touch notes that a column of a relation takes part, and what its type means
// for what is known.
func (b *binder) touch(src *source, column string) {
	r := src.relation
	src.ref.use(column)
	b.reads[r.Qualified()] = true
	b.columns[r.Qualified()+"."+column] = true
	if c := r.Column(column); c != nil {
		b.typeOf(c)
	}
}

// typeOf notes when a column's type may bring code of its own.
func (b *binder) typeOf(c *catalog.Column) {
	if c.OwnType == "" {
		if c.TypeKind == "p" { // anyarray, of the planner's statistics
			b.anyValue(c)
		}
		return
	}
	b.ownTypes = true
	switch c.TypeKind {
	case "e", "c", "d":
		return // enums and rows are the server's own; reading a domain checks nothing
	}
	if c.TypeSchema != "pg_catalog" && !b.library.extensions[c.Extension] {
		b.doubt("type %s has functions of its own", c.OwnType)
	}
}

// anyValue notes a doubt when a column that holds values of any type may hold
// one whose functions are not known.
func (b *binder) anyValue(c *catalog.Column) {
	for _, t := range b.cat.Bases() {
		if !b.library.extensions[t.Extension] {
			b.doubt("column %s may hold values of type %s.%s, which has functions of its own", c.Name, t.Schema, t.Name)
			return
		}
	}
}

// whole notes that every column of a source takes part, as in * and whole rows.
func (b *binder) whole(src *source) {
	if !b.spend(len(src.outputs)) {
		return
	}
	for _, o := range src.outputs {
		if o.base != nil {
			b.touch(o.base, o.column)
		}
	}
	if src.ref != nil {
		src.ref.everything = true
	}
}

// stringsOf reads a list of names; ok is false when something else is in it.
func stringsOf(nodes []*pg.Node) (list []string, ok bool) {
	for _, n := range nodes {
		s := n.GetString_()
		if s == nil {
			return list, false
		}
		list = append(list, s.GetSval())
	}
	return list, true
}
