package sql

import (
	pg "github.com/pganalyze/pg_query_go/v6"

	"chaperone.dev/chaperone/internal/sql/catalog"
)

// A change is one INSERT, UPDATE, DELETE or MERGE, at the top or in WITH.
type change struct {
	command    string
	ref        *reference
	written    map[string]bool
	replaced   map[string]bool       // those of written that rows may have had before
	values     map[string][]*pg.Node // what is written to a column, where that stands in the statement
	everything bool                  // INSERT without a column list
	where      bool                  // a WHERE that looks at a column
	conflict   bool                  // ON CONFLICT
}

// target binds the relation that a change writes to. WITH queries never hide it.
func (b *binder) target(command string, v *pg.RangeVar) (*source, *change) {
	c := &change{command: command, written: map[string]bool{}, replaced: map[string]bool{}, values: map[string][]*pg.Node{}}
	b.changes = append(b.changes, c)
	r := b.relation(v)
	if r == nil {
		c.ref = &reference{location: v.GetLocation(), target: true}
		return &source{alias: aliasOr(v.GetAlias(), v.GetRelname())}, c
	}
	b.writes[r.Qualified()] = true
	switch {
	case r.Kind != catalog.Table && r.Kind != catalog.PartitionedTable:
		b.unhandled(v.GetLocation(), command+" on "+r.Qualified()+", which is not a base table,", "Write to the table itself.")
	case r.HasRules:
		b.unhandled(v.GetLocation(), command+" on "+r.Qualified()+", which has rewrite rules,", "Ask for the rules to become triggers.")
	}
	src := b.sourceOf(v, r)
	src.ref.target = true
	c.ref = src.ref
	return src, c
}

// write notes a column that a change assigns.
func (b *binder) write(c *change, src *source, column string, location int32) {
	c.written[column] = true
	if src.relation == nil {
		return
	}
	col := src.relation.Column(column)
	if col == nil {
		b.unreadable(location, "42703", "column %q of relation %q does not exist", column, src.relation.Name)
		return
	}
	b.columns[src.relation.Qualified()+"."+column] = true
	b.typeOf(col)
}

func (b *binder) insert(q *pg.InsertStmt, env *cteEnv) []output {
	env = b.with(q.GetWithClause(), nil, env)
	src, c := b.target("INSERT", q.GetRelation())
	for _, n := range q.GetCols() {
		t := n.GetResTarget()
		b.write(c, src, t.GetName(), t.GetLocation())
		b.subscripts(t.GetIndirection(), nil, env)
	}
	if len(q.GetCols()) == 0 && q.GetSelectStmt() != nil && src.relation != nil {
		c.everything = true
		for _, col := range src.relation.Columns {
			b.write(c, src, col.Name, -1)
		}
	}
	c.insertedValues(q, src)
	if q.GetSelectStmt() != nil {
		b.selectStmt(q.GetSelectStmt().GetSelectStmt(), nil, env)
	}
	s := &scope{entries: visible(src)}
	if on := q.GetOnConflictClause(); on != nil {
		b.onConflict(on, c, src, env)
	}
	return b.targets(q.GetReturningList(), s, env)
}

// insertedValues notes what INSERT … VALUES writes to which column.
func (c *change) insertedValues(q *pg.InsertStmt, src *source) {
	var names []string
	for _, n := range q.GetCols() {
		names = append(names, n.GetResTarget().GetName())
	}
	if c.everything {
		for _, col := range src.relation.Columns {
			names = append(names, col.Name)
		}
	}
	for _, row := range q.GetSelectStmt().GetSelectStmt().GetValuesLists() {
		for i, value := range row.GetList().GetItems() {
			if i < len(names) {
				c.values[names[i]] = append(c.values[names[i]], value)
			}
		}
	}
}

// onConflict binds ON CONFLICT. Its inference sees the table, its SET the table
// and the row that was refused.
func (b *binder) onConflict(on *pg.OnConflictClause, c *change, src *source, env *cteEnv) {
	c.conflict = true
	s := &scope{entries: visible(src)}
	for _, n := range on.GetInfer().GetIndexElems() {
		elem := n.GetIndexElem()
		if elem.GetName() != "" {
			if from := b.simpleName(s, elem.GetName(), -1); from != nil {
				b.use(from, "ON CONFLICT", on.GetLocation())
			}
		}
		b.expr(elem.GetExpr(), s, env, "ON CONFLICT")
	}
	b.expr(on.GetInfer().GetWhereClause(), s, env, "ON CONFLICT")
	if on.GetAction() != pg.OnConflictAction_ONCONFLICT_UPDATE {
		return
	}
	excluded := *src
	excluded.alias, excluded.aliased = "excluded", true
	both := &scope{entries: append(visible(src), entry{source: &excluded, byName: true, byColumns: true})}
	b.assignments(on.GetTargetList(), c, src, both, env)
	b.expr(on.GetWhereClause(), both, env, "WHERE")
}

func (b *binder) update(q *pg.UpdateStmt, env *cteEnv) []output {
	env = b.with(q.GetWithClause(), nil, env)
	src, c := b.target("UPDATE", q.GetRelation())
	s := &scope{entries: append(visible(src), b.from(q.GetFromClause(), nil, env)...)}
	b.assignments(q.GetTargetList(), c, src, s, env)
	c.where = b.where(q.GetWhereClause(), s, env)
	return b.targets(q.GetReturningList(), s, env)
}

func (b *binder) delete(q *pg.DeleteStmt, env *cteEnv) []output {
	env = b.with(q.GetWithClause(), nil, env)
	src, c := b.target("DELETE", q.GetRelation())
	s := &scope{entries: append(visible(src), b.from(q.GetUsingClause(), nil, env)...)}
	c.where = b.where(q.GetWhereClause(), s, env)
	return b.targets(q.GetReturningList(), s, env)
}

// where binds a WHERE and reports whether it looks at any column, or is that of
// one row: WHERE true is none.
func (b *binder) where(n *pg.Node, s *scope, env *cteEnv) bool {
	return b.condition(n, s, env, "WHERE")
}

func (b *binder) condition(n *pg.Node, s *scope, env *cteEnv, clause string) bool {
	before := len(b.uses)
	b.expr(n, s, env, clause)
	return len(b.uses) > before || n.GetCurrentOfExpr() != nil
}

// assignments binds SET a = …, (b, c) = (…).
func (b *binder) assignments(list []*pg.Node, c *change, src *source, s *scope, env *cteEnv) {
	for _, n := range list {
		t := n.GetResTarget()
		if t == nil {
			b.unhandled(-1, "SET of this kind", "")
			continue
		}
		b.write(c, src, t.GetName(), t.GetLocation())
		c.replaced[t.GetName()] = true
		b.subscripts(t.GetIndirection(), s, env)
		c.values[t.GetName()] = append(c.values[t.GetName()], assigned(t.GetVal()))
		if multi := t.GetVal().GetMultiAssignRef(); multi != nil {
			if multi.GetColno() == 1 { // the others share the source
				b.expr(multi.GetSource(), s, env, "SET")
			}
			continue
		}
		b.expr(t.GetVal(), s, env, "SET")
	}
}

// assigned is the value of one column in SET.
func assigned(n *pg.Node) *pg.Node {
	multi := n.GetMultiAssignRef()
	if multi == nil {
		return n
	}
	if row, i := multi.GetSource().GetRowExpr().GetArgs(), int(multi.GetColno())-1; i >= 0 && i < len(row) {
		return row[i]
	}
	return multi.GetSource()
}

// subscripts binds what follows an assigned column: .field or [1].
func (b *binder) subscripts(list []*pg.Node, s *scope, env *cteEnv) {
	for _, n := range list {
		if i := n.GetAIndices(); i != nil {
			b.expr(i.GetLidx(), s, env, "SET")
			b.expr(i.GetUidx(), s, env, "SET")
		} else if n.GetString_() == nil {
			b.unhandled(-1, "an assignment of this kind", "")
		}
	}
}
