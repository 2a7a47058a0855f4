package sql

import (
	"regexp"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"chaperone.dev/chaperone/internal/sql/catalog"
)

// call binds a function call: its name, its arguments, and the clauses of
// aggregates and windows.
func (b *binder) call(f *pg.FuncCall, s *scope, env *cteEnv, clause string) lineage {
	b.seen[f] = true
	name := b.functionNamed(f.GetFuncname(), f.GetLocation())
	bare := name[strings.LastIndexByte(name, '.')+1:]
	aggregate := f.GetOver() == nil && (b.library.aggregates[bare] || f.GetAggStar() || f.GetAggDistinct() ||
		len(f.GetAggOrder()) > 0 || f.GetAggFilter() != nil || f.GetAggWithinGroup())
	inner := s
	if aggregate && s != nil {
		inner = s.aggregated()
	}
	arguments := clause
	switch {
	case f.GetAggDistinct():
		arguments = b.decides(clause, "DISTINCT in an aggregate")
	case b.library.counting[bare]:
		arguments = b.decides(clause, bare+"()")
	case b.library.rows[bare] || b.returnsRows(name, bare):
		arguments = b.decides(clause, bare+"(), which returns rows")
	}
	from := b.exprs(f.GetArgs(), inner, env, arguments)
	order := b.decides(clause, "ORDER BY in an aggregate")
	for _, n := range f.GetAggOrder() {
		ordered := b.sortBy(n.GetSortBy(), inner, env, order)
		if f.GetAggWithinGroup() {
			from = b.union(from, ordered)
		}
	}
	b.expr(f.GetAggFilter(), inner, env, b.decides(clause, "FILTER"))
	if f.GetOver() != nil {
		b.window(f.GetOver(), s, env, clause)
	}
	return from
}

// returnsRows reports whether a function of the database's own that a name can
// mean returns rows.
func (b *binder) returnsRows(name, bare string) bool {
	schema, _, _ := strings.Cut(name, ".")
	return slices.ContainsFunc(b.cat.Routines(bare), func(r *catalog.Routine) bool { return r.Set && (r.Schema == schema || b.onPath(r.Schema)) })
}

// sortBy binds the expression of an ORDER BY item that names no output.
func (b *binder) sortBy(o *pg.SortBy, s *scope, env *cteEnv, clause string) lineage {
	if o == nil {
		b.unhandled(-1, "an ORDER BY of this kind", "")
		return nil
	}
	b.sortOperator(o)
	return b.expr(o.GetNode(), s, env, clause)
}

func (b *binder) sortOperator(o *pg.SortBy) {
	if len(o.GetUseOp()) == 0 {
		return
	}
	names, ok := stringsOf(o.GetUseOp())
	if !ok {
		b.unhandled(o.GetLocation(), "an operator of this kind", "")
		return
	}
	b.operatorNamed(names, o.GetLocation())
}

// window binds OVER (…) and the definitions in WINDOW.
func (b *binder) window(w *pg.WindowDef, s *scope, env *cteEnv, clause string) {
	part := b.decides(clause, "PARTITION BY or ORDER BY of a window")
	b.exprs(w.GetPartitionClause(), s, env, part)
	for _, n := range w.GetOrderClause() {
		b.sortBy(n.GetSortBy(), s, env, part)
	}
	b.expr(w.GetStartOffset(), s, env, part)
	b.expr(w.GetEndOffset(), s, env, part)
}

// functionNamed gives a function its schema.name, notes it, and notes a doubt
// unless every function that the name could mean is known to be harmless.
func (b *binder) functionNamed(nodes []*pg.Node, location int32) string {
	parts, ok := stringsOf(nodes)
	if !ok || len(parts) == 0 || len(parts) > 2 {
		b.unhandled(location, "a function name of this kind", "Write schema.function.")
		return ""
	}
	if len(parts) == 2 {
		name := parts[0] + "." + parts[1]
		b.functions[name] = true
		if parts[0] == "pg_catalog" && b.ofServer(parts[1], location) {
			return name
		}
		if !b.knownFunction(parts[0], parts[1]) {
			b.doubt("function %s is not known to be harmless", name)
		}
		return name
	}
	// Overloads of every schema on the path compete, so all of them must be known.
	name, found := "pg_catalog."+parts[0], false
	for _, r := range b.cat.Routines(parts[0]) {
		if !b.onPath(r.Schema) {
			continue
		}
		if b.knownFunction(r.Schema, r.Name) {
			found = found || !b.library.functions[name]
			continue
		}
		if r.OwnTypes && b.library.functions[name] {
			b.ownCandidates = append(b.ownCandidates, "function "+r.Schema+"."+r.Name)
			continue
		}
		name, found = r.Schema+"."+r.Name, true
		b.doubt("function %s is not known to be harmless", name)
		break
	}
	if !found && !b.ofServer(parts[0], location) && !b.library.functions[name] {
		b.doubt("function %s is not known to be harmless", name)
	}
	b.functions[name] = true
	return name
}

// ofServer judges the server's own functions that have a word of their own: those
// that take advisory locks, and those of large objects, which no grant protects.
func (b *binder) ofServer(bare string, location int32) bool {
	for _, r := range b.cat.Routines(bare) {
		if r.Schema == "pg_catalog" {
			return false // somebody put one beside the server's
		}
	}
	switch {
	case b.library.locks[bare]:
		b.locks = true
		return true
	case largeObject.MatchString(bare) && !b.library.functions["pg_catalog."+bare]:
		b.unhandled(location, "the large object function "+bare, "Keep bytes in a column of type bytea.")
	}
	return false
}

// largeObject is the name of a function that works on large objects.
var largeObject = regexp.MustCompile(`^(lo_[a-z0-9_]+|loread|lowrite)$`)

// knownFunction reports whether every function of that name is vouched for: by
// the lists, by its signature, or because it belongs to an extension that is.
// In pg_catalog a name on the list means what came with the server alone.
func (b *binder) knownFunction(schema, name string) bool {
	qualified := schema + "." + name
	found := b.library.functions[qualified]
	if found && schema != "pg_catalog" {
		return true
	}
	for _, r := range b.cat.Routines(name) {
		if r.Schema != schema {
			continue
		}
		if !b.library.extensions[r.Extension] && !b.library.signatures[qualified+"("+r.Arguments+")"] {
			return false
		}
		found = true
	}
	return found
}

func (b *binder) onPath(schema string) bool {
	for _, s := range b.path {
		if s == schema {
			return true
		}
	}
	return false
}

// operatorNamed notes a doubt unless an operator can only be pg_catalog's.
func (b *binder) operatorNamed(parts []string, location int32) {
	op := parts[len(parts)-1]
	schema := ""
	if len(parts) > 1 {
		schema = parts[len(parts)-2]
	}
	known := (schema == "" || schema == "pg_catalog") && b.library.operators[op]
	for _, o := range b.cat.Operators(op) {
		if schema == "" && !b.onPath(o.Schema) || schema != "" && o.Schema != schema {
			continue
		}
		if b.library.extensions[o.Extension] {
			known = true
			continue
		}
		if o.OwnTypes && known {
			b.ownCandidates = append(b.ownCandidates, "operator "+o.Schema+"."+op)
			continue
		}
		known = false
		break
	}
	if !known {
		b.doubt("operator %s is not known to be harmless", strings.Join(parts, "."))
	}
}

// typeName notes a doubt unless a cast to the type runs nothing of a user's.
func (b *binder) typeName(t *pg.TypeName) {
	if t == nil {
		return
	}
	b.seen[t] = true
	parts, ok := stringsOf(t.GetNames())
	if !ok || len(parts) == 0 || len(parts) > 2 || t.GetSetof() || t.GetPctType() {
		b.unhandled(t.GetLocation(), "a type name of this kind", "Write schema.type.")
		return
	}
	for _, m := range t.GetTypmods() {
		if m.GetAConst() == nil {
			b.unhandled(t.GetLocation(), "a type modifier of this kind", "")
			return
		}
	}
	name := parts[len(parts)-1]
	if len(parts) == 2 {
		if strings.HasPrefix(parts[0], "pg_temp") {
			b.unhandled(t.GetLocation(), "the schema "+parts[0], "")
			return
		}
		b.typeIn(parts[0], name)
		return
	}
	for _, schema := range b.path {
		if schema == "pg_catalog" && b.library.types[name] || b.cat.Type(schema, name) != nil || b.cat.Relation(schema, name) != nil {
			b.typeIn(schema, name)
			return
		}
	}
	b.doubt("type %s is not known", name)
}

func (b *binder) typeIn(schema, name string) {
	if schema == "pg_catalog" {
		if !b.library.types[name] {
			b.doubt("type pg_catalog.%s is not known to be harmless", name)
		}
		return
	}
	b.ownTypes = true
	t := b.cat.Type(schema, name)
	if t != nil && (t.Kind == "e" || b.library.extensions[t.Extension]) {
		return
	}
	b.doubt("type %s.%s is not known to be harmless", schema, name)
}

// castsKnown notes a doubt when a cast of the database's own may take part.
func (b *binder) castsKnown() {
	for _, c := range b.cat.Casts() {
		if b.library.extensions[c.Extension] || c.OwnTypes && !b.ownTypes || !c.Implicit && !b.casts {
			continue
		}
		b.doubt("the cast from %s to %s runs a function of its own", c.Source, c.Target)
	}
}

// settle turns what matters only beside values of own types into doubts.
func (b *binder) settle() {
	b.castsKnown()
	if !b.ownTypes {
		return
	}
	for _, candidate := range b.ownCandidates {
		b.doubt("%s may be chosen for a value of a type outside pg_catalog", candidate)
	}
}

// outputsOf are the columns of a function in FROM; ok is false when they are
// not known.
func (b *binder) outputsOf(name string) (columns []string, ok bool) {
	schema, bare, _ := strings.Cut(name, ".")
	if schema != "pg_catalog" || !b.library.functions[name] {
		return nil, false
	}
	if columns := b.library.columns[bare]; columns != nil {
		return columns, true
	}
	return []string{bare}, true
}

// readable are the kinds of relation that FROM can name.
func readable(k catalog.RelationKind) bool {
	switch k {
	case catalog.Table, catalog.PartitionedTable, catalog.View, catalog.MaterializedView, catalog.ForeignTable, catalog.Sequence:
		return true
	}
	return false
}
