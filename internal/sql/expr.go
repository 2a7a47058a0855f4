package sql

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// exprs binds a list; see expr.
func (b *binder) exprs(nodes []*pg.Node, s *scope, env *cteEnv, clause string) lineage {
	parts := make([]lineage, len(nodes))
	for i, n := range nodes {
		parts[i] = b.expr(n, s, env, clause)
	}
	return b.union(nil, parts...)
}

// expr binds an expression and returns the columns that its value is computed
// from. clause says what the value decides on, "" when it only flows on; every
// column in it is noted as used there.
func (b *binder) expr(n *pg.Node, s *scope, env *cteEnv, clause string) lineage {
	switch e := n.GetNode().(type) {
	case nil:
		return nil
	case *pg.Node_ColumnRef:
		return b.columnRef(e.ColumnRef, s, clause)
	case *pg.Node_AConst, *pg.Node_SetToDefault:
		return nil
	case *pg.Node_ParamRef:
		b.parameters = max(b.parameters, e.ParamRef.GetNumber())
		return nil
	case *pg.Node_CurrentOfExpr:
		return nil // what the cursor reads was judged when it was declared
	case *pg.Node_SqlvalueFunction:
		b.functions["pg_catalog."+valueFunctionName(e.SqlvalueFunction.GetOp())] = true
		return nil
	case *pg.Node_AExpr:
		return b.operator(e.AExpr, s, env, clause)
	case *pg.Node_BoolExpr:
		return b.exprs(e.BoolExpr.GetArgs(), s, env, b.decides(clause, "a condition"))
	case *pg.Node_NullTest:
		return b.expr(e.NullTest.GetArg(), s, env, b.decides(clause, "IS NULL"))
	case *pg.Node_BooleanTest:
		return b.expr(e.BooleanTest.GetArg(), s, env, b.decides(clause, "a condition"))
	case *pg.Node_TypeCast:
		b.casts = true
		b.typeName(e.TypeCast.GetTypeName())
		return b.expr(e.TypeCast.GetArg(), s, env, clause)
	case *pg.Node_CollateClause:
		return b.expr(e.CollateClause.GetArg(), s, env, clause)
	case *pg.Node_CoalesceExpr:
		return b.exprs(e.CoalesceExpr.GetArgs(), s, env, clause)
	case *pg.Node_MinMaxExpr:
		return b.exprs(e.MinMaxExpr.GetArgs(), s, env, b.decides(clause, "GREATEST or LEAST"))
	case *pg.Node_NamedArgExpr:
		return b.expr(e.NamedArgExpr.GetArg(), s, env, clause)
	case *pg.Node_AArrayExpr:
		return b.exprs(e.AArrayExpr.GetElements(), s, env, clause)
	case *pg.Node_List:
		return b.exprs(e.List.GetItems(), s, env, clause)
	case *pg.Node_GroupingFunc:
		return b.exprs(e.GroupingFunc.GetArgs(), s.aggregated(), env, b.decides(clause, "GROUPING"))
	case *pg.Node_RowExpr:
		return b.exprs(e.RowExpr.GetArgs(), s, env, clause) // a.* in it is each column
	case *pg.Node_AIndirection:
		return b.indirection(e.AIndirection, s, env, clause)
	case *pg.Node_CaseExpr:
		return b.caseExpr(e.CaseExpr, s, env, clause)
	case *pg.Node_FuncCall:
		return b.call(e.FuncCall, s, env, clause)
	case *pg.Node_SubLink:
		return b.subLink(e.SubLink, s, env, clause)
	}
	b.unhandled(-1, "an expression of this kind", "")
	return nil
}

// decides is the clause of a part whose value decides on something by itself,
// unless something around it does already. What is around it and only computes,
// such as a comparison, does not show what decides on rows within it.
func (b *binder) decides(outer, own string) string {
	if outer != "" && (!b.library.computes(outer) || b.library.computes(own)) {
		return outer
	}
	return own
}

// columnRef binds a column, a whole row, or * inside an expression (count(*)
// has no node for it, but row(c.*) does).
func (b *binder) columnRef(c *pg.ColumnRef, s *scope, clause string) lineage {
	b.seen[c] = true
	if n := len(c.GetFields()); n > 0 && c.GetFields()[n-1].GetAStar() != nil {
		outputs := b.star(c, s)
		all := b.lineageOf(outputs)
		b.use(all, clause, c.GetLocation())
		return all
	}
	fields, ok := stringsOf(c.GetFields())
	if !ok {
		b.unhandled(c.GetLocation(), "a column reference of this kind", "")
		return nil
	}
	var from lineage
	switch len(fields) {
	case 1:
		from = b.simpleName(s, fields[0], c.GetLocation())
	case 2:
		at, src := b.byAlias(s, fields[0], c.GetLocation())
		from = b.columnOf(at, src, fields[0], fields[1], c.GetLocation())
	case 3:
		at, src := b.byRelation(s, fields[0], fields[1], c.GetLocation())
		if src != nil {
			b.qualified = append(b.qualified, qualifiedUse{src.ref, c.GetLocation(), fields[0]})
		}
		from = b.columnOf(at, src, fields[0]+"."+fields[1], fields[2], c.GetLocation())
	default:
		b.unhandled(c.GetLocation(), "a column qualified with its database", "Leave the database's name out.")
	}
	b.use(from, clause, c.GetLocation())
	return from
}

// simpleName binds a name by itself: a column, or else a source as a whole row.
func (b *binder) simpleName(s *scope, name string, location int32) lineage {
	if m, ok := b.unqualified(s, name, location); ok {
		return b.matched(m, location)
	}
	at, src := b.byAlias(s, name, location)
	if src == nil {
		b.unreadable(location, "42703", "column %q does not exist", name)
		return nil
	}
	return b.wholeRow(at, src, location)
}

// wholeRow binds a source's name used as a value.
func (b *binder) wholeRow(at *scope, src *source, location int32) lineage {
	b.ownTypes = true // its row type is the database's own
	if !b.spend(len(src.outputs)) {
		return nil
	}
	for _, o := range src.outputs {
		at.ungrouped(o, location)
	}
	if at.level != nil && !at.inside {
		at.level.rows[src] = true
	}
	return b.row(src)
}

func (b *binder) columnOf(at *scope, src *source, qualifier, name string, location int32) lineage {
	if src == nil {
		b.unreadable(location, "42P01", "missing FROM-clause entry for table %q", qualifier)
		return nil
	}
	found := columnsNamed(at, src, name)
	switch {
	case len(found) == 1:
		return b.matched(found[0], location)
	case len(found) > 1:
		b.unreadable(location, "42702", "column reference %q is ambiguous", name)
		return found[0].output.from
	case systemColumns[name] && src.relation != nil:
		src.ref.useSystem(name)
		b.reads[src.relation.Qualified()] = true
		return nil
	}
	b.unreadable(location, "42703", "column %q of %q does not exist", name, qualifier)
	return nil
}

// matched notes a bound column.
func (b *binder) matched(m match, location int32) lineage {
	if m.output.name == "" { // a system column
		b.reads[m.source.relation.Qualified()] = true
		return nil
	}
	if m.output.base != nil {
		b.touch(m.output.base, m.output.column)
	}
	m.scope.ungrouped(m.output, location)
	return m.output.from
}

// ungrouped notes a column used outside aggregates at a level where that may
// matter.
func (s *scope) ungrouped(o output, location int32) {
	if s.level != nil && !s.inside && o.base != nil {
		if _, ok := s.level.bare[bareColumn{o.base, o.column}]; !ok {
			s.level.bare[bareColumn{o.base, o.column}] = location
		}
	}
}

// operator binds an operator expression. Comparisons decide, the rest computes.
func (b *binder) operator(e *pg.A_Expr, s *scope, env *cteEnv, clause string) lineage {
	b.seen[e] = true
	names, ok := stringsOf(e.GetName())
	if !ok || len(names) == 0 {
		b.unhandled(e.GetLocation(), "an operator of this kind", "")
		return nil
	}
	switch e.GetKind() {
	case pg.A_Expr_Kind_AEXPR_OP:
		b.operatorNamed(names, e.GetLocation())
		if comparison(names[len(names)-1]) {
			clause = b.decides(clause, "a comparison")
		}
	case pg.A_Expr_Kind_AEXPR_BETWEEN, pg.A_Expr_Kind_AEXPR_NOT_BETWEEN,
		pg.A_Expr_Kind_AEXPR_BETWEEN_SYM, pg.A_Expr_Kind_AEXPR_NOT_BETWEEN_SYM:
		for _, op := range []string{"<", ">", "<=", ">="} { // its own name is no operator
			b.operatorNamed([]string{op}, e.GetLocation())
		}
		clause = b.decides(clause, "a comparison")
	default: // IN, LIKE, = ANY, IS DISTINCT FROM, NULLIF
		b.operatorNamed(names, e.GetLocation())
		clause = b.decides(clause, "a comparison")
	}
	return b.union(b.expr(e.GetLexpr(), s, env, clause), b.expr(e.GetRexpr(), s, env, clause))
}

// computing are the operators whose result shows the value that they were
// given: masked, it is seen to be. All others answer a question about it.
var computing = map[string]bool{
	"||": true, "+": true, "-": true, "*": true, "/": true, "%": true, "^": true, "&": true, "|": true, "#": true,
	"->": true, "->>": true, "#>": true, "#>>": true,
}

func comparison(op string) bool { return !computing[op] }

// indirection binds (x).field, x[1] and x[1:2].
func (b *binder) indirection(e *pg.A_Indirection, s *scope, env *cteEnv, clause string) lineage {
	steps := e.GetIndirection()
	all, ok := b.field(e.GetArg(), steps, s, clause)
	if ok {
		steps = steps[1:]
	} else {
		all = b.expr(e.GetArg(), s, env, clause)
	}
	for _, step := range steps {
		switch i := step.GetNode().(type) {
		case *pg.Node_AIndices:
			all = b.union(all, b.expr(i.AIndices.GetLidx(), s, env, clause), b.expr(i.AIndices.GetUidx(), s, env, clause))
		case *pg.Node_String_:
			b.ownTypes = true
		default: // (x).*
			b.unhandled(-1, "the expansion (…).*", "Name the fields, or write table.*.")
		}
	}
	return all
}

// field binds (c).name where c is something in FROM as a whole row: that is its
// column. ok is false when it is anything else.
func (b *binder) field(arg *pg.Node, steps []*pg.Node, s *scope, clause string) (from lineage, ok bool) {
	alias, location, bare := bareName(arg)
	if !bare || len(steps) == 0 || steps[0].GetString_() == nil || b.columnInSight(s, alias) {
		return nil, false
	}
	at, src := b.byAlias(s, alias, location)
	if src == nil {
		return nil, false
	}
	b.seen[arg.GetColumnRef()] = true
	from = b.columnOf(at, src, alias, steps[0].GetString_().GetSval(), location)
	b.use(from, clause, location)
	return from, true
}

// columnInSight reports whether a name alone is a column; it notes nothing.
func (b *binder) columnInSight(s *scope, name string) bool {
	for ; s != nil; s = s.outer {
		if b.localColumn(s, name) != nil {
			return true
		}
	}
	return false
}

func (b *binder) caseExpr(e *pg.CaseExpr, s *scope, env *cteEnv, clause string) lineage {
	if e.GetArg() != nil {
		b.operatorNamed([]string{"="}, e.GetLocation())
	}
	all := b.expr(e.GetArg(), s, env, b.decides(clause, "CASE"))
	for _, n := range e.GetArgs() {
		when := n.GetCaseWhen()
		if when == nil {
			b.unhandled(e.GetLocation(), "a CASE of this kind", "")
			continue
		}
		all = b.union(all, b.expr(when.GetExpr(), s, env, b.decides(clause, "CASE WHEN")), b.expr(when.GetResult(), s, env, clause))
	}
	return b.union(all, b.expr(e.GetDefresult(), s, env, clause))
}

// subLink binds a subquery in an expression.
func (b *binder) subLink(e *pg.SubLink, s *scope, env *cteEnv, clause string) lineage {
	query := e.GetSubselect().GetSelectStmt()
	if query == nil {
		b.unhandled(e.GetLocation(), "a subquery of this kind", "")
		return nil
	}
	inner := b.selectStmt(query, s, env)
	switch e.GetSubLinkType() {
	case pg.SubLinkType_EXISTS_SUBLINK:
		return nil // whether there are rows was decided by what the subquery itself notes
	case pg.SubLinkType_EXPR_SUBLINK, pg.SubLinkType_ARRAY_SUBLINK:
		from := b.lineageOf(inner)
		b.use(from, clause, e.GetLocation())
		return from
	case pg.SubLinkType_ANY_SUBLINK, pg.SubLinkType_ALL_SUBLINK:
		op, ok := stringsOf(e.GetOperName())
		if len(op) == 0 {
			op = []string{"="}
		}
		if !ok {
			b.unhandled(e.GetLocation(), "an operator of this kind", "")
		}
		b.operatorNamed(op, e.GetLocation())
		clause = b.decides(clause, "a comparison")
		from := b.lineageOf(inner)
		b.use(from, clause, e.GetLocation())
		return b.union(from, b.expr(e.GetTestexpr(), s, env, clause))
	}
	b.unhandled(e.GetLocation(), "a subquery of this kind", "")
	return nil
}

func valueFunctionName(op pg.SQLValueFunctionOp) string {
	switch op {
	case pg.SQLValueFunctionOp_SVFOP_CURRENT_DATE:
		return "current_date"
	case pg.SQLValueFunctionOp_SVFOP_CURRENT_TIME, pg.SQLValueFunctionOp_SVFOP_CURRENT_TIME_N:
		return "current_time"
	case pg.SQLValueFunctionOp_SVFOP_CURRENT_TIMESTAMP, pg.SQLValueFunctionOp_SVFOP_CURRENT_TIMESTAMP_N:
		return "current_timestamp"
	case pg.SQLValueFunctionOp_SVFOP_LOCALTIME, pg.SQLValueFunctionOp_SVFOP_LOCALTIME_N:
		return "localtime"
	case pg.SQLValueFunctionOp_SVFOP_LOCALTIMESTAMP, pg.SQLValueFunctionOp_SVFOP_LOCALTIMESTAMP_N:
		return "localtimestamp"
	case pg.SQLValueFunctionOp_SVFOP_CURRENT_ROLE:
		return "current_role"
	case pg.SQLValueFunctionOp_SVFOP_CURRENT_USER:
		return "current_user"
	case pg.SQLValueFunctionOp_SVFOP_USER:
		return "user"
	case pg.SQLValueFunctionOp_SVFOP_SESSION_USER:
		return "session_user"
	case pg.SQLValueFunctionOp_SVFOP_CURRENT_CATALOG:
		return "current_catalog"
	}
	return "current_schema"
}
