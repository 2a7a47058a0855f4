package sql

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// columnName is the name that PostgreSQL gives to a result column without AS
// (FigureColname in its sources). strength is 0 when there is none, 1 for a
// type's name, 2 for a real one.
func columnName(n *pg.Node) (name string, strength int) {
	switch e := n.GetNode().(type) {
	case *pg.Node_ColumnRef:
		return lastString(e.ColumnRef.GetFields(), 2)
	case *pg.Node_AIndirection:
		if name, strength := lastString(e.AIndirection.GetIndirection(), 2); strength > 0 {
			return name, strength
		}
		return columnName(e.AIndirection.GetArg())
	case *pg.Node_FuncCall:
		return lastString(e.FuncCall.GetFuncname(), 2)
	case *pg.Node_AExpr:
		if e.AExpr.GetKind() == pg.A_Expr_Kind_AEXPR_NULLIF {
			return "nullif", 2
		}
	case *pg.Node_TypeCast:
		if name, strength := columnName(e.TypeCast.GetArg()); strength > 1 {
			return name, strength
		}
		return lastString(e.TypeCast.GetTypeName().GetNames(), 1)
	case *pg.Node_CollateClause:
		return columnName(e.CollateClause.GetArg())
	case *pg.Node_GroupingFunc:
		return "grouping", 2
	case *pg.Node_SubLink:
		return subLinkName(e.SubLink)
	case *pg.Node_CaseExpr:
		if name, strength := columnName(e.CaseExpr.GetDefresult()); strength > 1 {
			return name, strength
		}
		return "case", 1
	case *pg.Node_AArrayExpr:
		return "array", 2
	case *pg.Node_RowExpr:
		return "row", 2
	case *pg.Node_CoalesceExpr:
		return "coalesce", 2
	case *pg.Node_MinMaxExpr:
		if e.MinMaxExpr.GetOp() == pg.MinMaxOp_IS_GREATEST {
			return "greatest", 2
		}
		return "least", 2
	case *pg.Node_SqlvalueFunction:
		return valueFunctionName(e.SqlvalueFunction.GetOp()), 2
	}
	return "", 0
}

// lastString is the last name in a list that may hold * and subscripts too.
func lastString(nodes []*pg.Node, strength int) (string, int) {
	for i := len(nodes) - 1; i >= 0; i-- {
		if s := nodes[i].GetString_(); s != nil {
			return s.GetSval(), strength
		}
	}
	return "", 0
}

func subLinkName(e *pg.SubLink) (string, int) {
	switch e.GetSubLinkType() {
	case pg.SubLinkType_EXISTS_SUBLINK:
		return "exists", 2
	case pg.SubLinkType_ARRAY_SUBLINK:
		return "array", 2
	case pg.SubLinkType_EXPR_SUBLINK:
		query := e.GetSubselect().GetSelectStmt()
		for query.GetLarg() != nil {
			query = query.GetLarg()
		}
		if targets := query.GetTargetList(); len(targets) > 0 {
			target := targets[0].GetResTarget()
			if target.GetName() != "" {
				return target.GetName(), 2
			}
			return columnName(target.GetVal())
		}
		if len(query.GetValuesLists()) > 0 {
			return "column1", 2
		}
	}
	return "", 0
}

// targetName is the name of a result column.
func targetName(t *pg.ResTarget) string {
	if t.GetName() != "" {
		return t.GetName()
	}
	if name, strength := columnName(t.GetVal()); strength > 0 {
		return name
	}
	return "?column?"
}
