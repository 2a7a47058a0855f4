package sql

import (
	"slices"
	"strconv"

	pg "github.com/pganalyze/pg_query_go/v6"

	"chaperone.dev/chaperone/internal/sql/catalog"
)

func itoa(i int) string { return strconv.Itoa(i) }

// from binds a FROM list and returns what it makes visible. outer is the level
// around the query; items of the list see those before them only when they are
// LATERAL.
func (b *binder) from(list []*pg.Node, outer *scope, env *cteEnv) []entry {
	var entries []entry
	for _, n := range list {
		entries = append(entries, b.fromItem(n, outer, entries, env)...)
	}
	return entries
}

// fromItem binds one item of FROM. before is what LATERAL sees beside outer.
func (b *binder) fromItem(n *pg.Node, outer *scope, before []entry, env *cteEnv) []entry {
	switch item := n.GetNode().(type) {
	case *pg.Node_RangeVar:
		return visible(b.rangeVar(item.RangeVar, env))
	case *pg.Node_RangeSubselect:
		return b.rangeSubselect(item.RangeSubselect, outer, before, env)
	case *pg.Node_RangeFunction:
		return b.rangeFunction(item.RangeFunction, outer, before, env)
	case *pg.Node_RangeTableSample:
		return b.rangeSample(item.RangeTableSample, outer, before, env)
	case *pg.Node_JoinExpr:
		return b.join(item.JoinExpr, outer, before, env)
	}
	b.unhandled(-1, "an item of FROM of this kind", "")
	return nil
}

func visible(src *source) []entry {
	if src == nil {
		return nil
	}
	return []entry{{source: src, byName: true, byColumns: true}}
}

// rangeVar binds a name in FROM: a WITH query when it is unqualified and one is
// in sight, a relation otherwise.
func (b *binder) rangeVar(v *pg.RangeVar, env *cteEnv) *source {
	if v.GetSchemaname() == "" && v.GetCatalogname() == "" {
		if c := env.find(v.GetRelname()); c != nil {
			b.seen[v] = true
			src := &source{alias: v.GetRelname(), outputs: b.namedCTE(c, v)}
			b.alias(src, v.GetAlias())
			return src
		}
	}
	r := b.relation(v)
	if r == nil {
		return &source{alias: aliasOr(v.GetAlias(), v.GetRelname())}
	}
	if !readable(r.Kind) {
		b.unreadable(v.GetLocation(), "42809", "cannot open relation %q", r.Qualified())
	}
	b.reads[r.Qualified()] = true
	if r.Kind == catalog.ForeignTable {
		b.doubt("what foreign table %s does where its rows come from is not known", r.Qualified())
	}
	if r.Definition != "" || !system(r) && (r.Kind == "v" || r.Kind == "m") {
		if !slices.Contains(b.views, r) {
			b.views = append(b.views, r)
		}
	}
	return b.sourceOf(v, r)
}

func aliasOr(a *pg.Alias, name string) string {
	if a != nil {
		return a.GetAliasname()
	}
	return name
}

func (b *binder) rangeSubselect(item *pg.RangeSubselect, outer *scope, before []entry, env *cteEnv) []entry {
	s := outer
	if item.GetLateral() {
		s = &scope{outer: outer, entries: before}
	}
	query := item.GetSubquery().GetSelectStmt()
	if query == nil {
		b.unhandled(-1, "a subquery of this kind", "")
		return nil
	}
	src := &source{outputs: plain(b.selectStmt(query, s, env))}
	b.alias(src, item.GetAlias())
	return []entry{{source: src, byName: item.GetAlias() != nil, byColumns: true}}
}

// plain forgets which columns are a relation's own: outside its level a
// subquery's columns are its results.
func plain(outputs []output) []output {
	cut := make([]output, len(outputs))
	for i, o := range outputs {
		cut[i] = output{name: o.name, from: o.from}
	}
	return cut
}

// rangeSample binds TABLESAMPLE: its relation is noted as sampled.
func (b *binder) rangeSample(item *pg.RangeTableSample, outer *scope, before []entry, env *cteEnv) []entry {
	v := item.GetRelation().GetRangeVar()
	if v == nil {
		b.unhandled(item.GetLocation(), "TABLESAMPLE of this kind", "")
		return nil
	}
	src := b.rangeVar(v, env)
	if src.ref != nil {
		src.ref.sample = item.GetLocation()
	}
	method, ok := stringsOf(item.GetMethod())
	if !ok || len(method) == 0 || method[len(method)-1] != "bernoulli" && method[len(method)-1] != "system" ||
		len(method) > 1 && method[0] != "pg_catalog" {
		b.doubt("the sampling method is not known to be harmless")
	}
	s := &scope{outer: outer, entries: before}
	b.exprs(item.GetArgs(), s, env, "TABLESAMPLE")
	b.expr(item.GetRepeatable(), s, env, "TABLESAMPLE")
	return visible(src)
}

// rangeFunction binds functions in FROM, which see what is before them.
func (b *binder) rangeFunction(item *pg.RangeFunction, outer *scope, before []entry, env *cteEnv) []entry {
	s := &scope{outer: outer, entries: before}
	src := &source{}
	for _, n := range item.GetFunctions() {
		pair := n.GetList().GetItems()
		if len(pair) == 0 {
			b.unhandled(-1, "a function in FROM of this kind", "")
			continue
		}
		var definitions []*pg.Node
		if len(pair) > 1 {
			definitions = pair[1].GetList().GetItems()
		}
		if len(item.GetFunctions()) == 1 && len(definitions) == 0 {
			definitions = item.GetColdeflist()
		}
		alias := ""
		if len(item.GetFunctions()) == 1 {
			alias = item.GetAlias().GetAliasname()
		}
		src.outputs = append(src.outputs, b.functionOutputs(pair[0], definitions, alias, s, env)...)
		if src.alias == "" {
			src.alias, _ = columnName(pair[0])
		}
	}
	if item.GetOrdinality() {
		src.outputs = append(src.outputs, output{name: "ordinality"})
	}
	b.alias(src, item.GetAlias())
	return visible(src)
}

// functionOutputs are the columns of one function in FROM.
func (b *binder) functionOutputs(n *pg.Node, definitions []*pg.Node, alias string, s *scope, env *cteEnv) []output {
	// The number of rows may depend on the arguments.
	from := b.expr(n, s, env, "a function in FROM")
	if len(definitions) > 0 {
		var outputs []output
		for _, d := range definitions {
			def := d.GetColumnDef()
			b.typeName(def.GetTypeName())
			outputs = append(outputs, output{name: def.GetColname(), from: from})
		}
		return outputs
	}
	call := n.GetFuncCall()
	if call == nil { // CURRENT_DATE and the like
		name, _ := columnName(n)
		if alias != "" {
			name = alias
		}
		return []output{{name: name, from: from}}
	}
	name := b.functionNamed(call.GetFuncname(), call.GetLocation())
	if name == "pg_catalog.unnest" { // unnest(a, b) is one column each
		return unnested(call, alias, from)
	}
	columns, ok := b.outputsOf(name)
	if !ok {
		b.unreadable(call.GetLocation(), "0A000", "the columns of function %s in FROM are not known to the gateway", name)
		return nil
	}
	outputs := make([]output, len(columns))
	for i, c := range columns {
		outputs[i] = output{name: c, from: from}
	}
	if len(columns) == 1 && alias != "" && b.library.columns[name[len("pg_catalog."):]] == nil {
		outputs[0].name = alias
	}
	return outputs
}

func unnested(call *pg.FuncCall, alias string, from lineage) []output {
	outputs := make([]output, len(call.GetArgs()))
	for i := range outputs {
		outputs[i] = output{name: "unnest", from: from}
	}
	if len(outputs) == 1 && alias != "" {
		outputs[0].name = alias
	}
	return outputs
}

// join binds a JOIN. Without an alias its sides keep their names, but their
// columns are found through the join, which merges those in USING.
func (b *binder) join(j *pg.JoinExpr, outer *scope, before []entry, env *cteEnv) []entry {
	left := b.fromItem(j.GetLarg(), outer, before, env)
	right := b.fromItem(j.GetRarg(), outer, append(slices.Clone(before), left...), env)
	leftColumns, rightColumns := columnsOf(left), columnsOf(right)
	if len(leftColumns)+len(rightColumns) > maxColumns {
		b.unreadable(-1, "54011", "joins can have at most %d columns here", maxColumns)
		return left
	}
	using, ok := stringsOf(j.GetUsingClause())
	if !ok {
		b.unhandled(-1, "USING of this kind", "")
	}
	if j.GetIsNatural() {
		for _, e := range append(slices.Clone(left), right...) {
			if e.source.ref != nil {
				e.source.ref.natural = true
			}
		}
		for _, o := range leftColumns {
			if b.work > maxWork {
				break
			}
			if _, found := b.namedOutput(rightColumns, o.name); found {
				using = append(using, o.name)
			}
		}
	}
	merged := b.usingColumns(using, leftColumns, rightColumns, j)
	sides := append(slices.Clone(left), right...)
	b.expr(j.GetQuals(), &scope{outer: outer, entries: sides}, env, "JOIN … ON")
	joined := &source{outputs: slices.Clone(merged)}
	gone := map[string]bool{}
	for _, name := range using {
		gone[name] = true
	}
	b.spend(4 * (len(leftColumns) + len(rightColumns))) // they take room
	for _, o := range append(slices.Clone(leftColumns), rightColumns...) {
		if !gone[o.name] {
			joined.outputs = append(joined.outputs, o)
		}
	}
	if j.GetAlias() != nil {
		if len(j.GetAlias().GetColnames()) > 0 { // by position: every column counts
			for _, e := range sides {
				if e.source.ref != nil {
					e.source.ref.aliasNames = true
				}
			}
		}
		b.alias(joined, j.GetAlias())
		return visible(joined)
	}
	for i := range sides {
		sides[i].byColumns = false
	}
	sides = append(sides, entry{source: joined, byColumns: true})
	if a := j.GetJoinUsingAlias(); a != nil {
		sides = append(sides, entry{source: &source{alias: a.GetAliasname(), outputs: merged}, byName: true})
	}
	return sides
}

// usingColumns merges the columns of USING, which compares them. The merged one
// is that of the side whose rows all stay, if there is one.
func (b *binder) usingColumns(using []string, left, right []output, j *pg.JoinExpr) []output {
	clause := "JOIN … USING"
	if j.GetIsNatural() {
		clause = "NATURAL JOIN"
	}
	var merged []output
	for _, name := range using {
		b.operatorNamed([]string{"="}, -1)
		result := output{name: name}
		for i, side := range [][]output{left, right} {
			b.spend(len(side))
			found := slices.IndexFunc(side, func(o output) bool { return o.name == name })
			if found < 0 {
				b.unreadable(-1, "42703", "column %q specified in USING clause does not exist in both tables", name)
				continue
			}
			if o := side[found]; o.base != nil {
				b.touch(o.base, o.column)
			}
			if slices.ContainsFunc(side[found+1:], func(o output) bool { return o.name == name }) {
				b.unreadable(-1, "42702", "common column name %q appears more than once", name)
			}
			result.from = b.union(result.from, side[found].from)
			if j.GetJointype() == pg.JoinType_JOIN_RIGHT && i == 1 ||
				(j.GetJointype() == pg.JoinType_JOIN_INNER || j.GetJointype() == pg.JoinType_JOIN_LEFT) && i == 0 {
				result.base, result.column = side[found].base, side[found].column
			}
		}
		b.use(result.from, clause, -1)
		merged = append(merged, result)
	}
	return merged
}

func columnsOf(entries []entry) []output {
	var outputs []output
	for _, e := range entries {
		if e.byColumns {
			outputs = append(outputs, e.source.outputs...)
		}
	}
	return outputs
}
