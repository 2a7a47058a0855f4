package sql

import (
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// selectStmt binds a SELECT, VALUES, TABLE or set operation and returns its
// result columns. s is the level around it, env what WITH queries it sees.
func (b *binder) selectStmt(q *pg.SelectStmt, s *scope, env *cteEnv) []output {
	if q == nil {
		b.unhandled(-1, "a query of this kind", "")
		return nil
	}
	b.seen[q] = true
	env = b.with(q.GetWithClause(), s, env)
	if q.GetIntoClause() != nil {
		b.into = q.GetIntoClause().GetRel()
	}
	if len(q.GetLockingClause()) > 0 {
		b.lock(q.GetLockingClause())
	}
	var outputs []output
	switch {
	case q.GetOp() != pg.SetOperation_SETOP_NONE:
		left := b.selectStmt(q.GetLarg(), s, env)
		right := b.selectStmt(q.GetRarg(), s, env)
		outputs = b.setOperation(q, b.merged(left, right, q))
		b.sortedSet(q, outputs, s, env)
	case len(q.GetValuesLists()) > 0:
		outputs = b.values(q, s, env)
		b.sortedSet(q, outputs, s, env)
	default:
		outputs = b.simpleSelect(q, s, env)
	}
	b.expr(q.GetLimitCount(), s, env, "LIMIT")
	b.expr(q.GetLimitOffset(), s, env, "OFFSET")
	return outputs
}

// lock notes FOR UPDATE and its kin. What it lists are aliases of this level.
func (b *binder) lock(list []*pg.Node) {
	b.locks = true
	for _, n := range list {
		for _, r := range n.GetLockingClause().GetLockedRels() {
			b.seen[r.GetRangeVar()] = true
		}
	}
}

// merged combines the arms of a set operation, column by column.
func (b *binder) merged(left, right []output, q *pg.SelectStmt) []output {
	if len(left) != len(right) {
		b.unreadable(-1, "42601", "each %s query must have the same number of columns", setOperationName(q))
	}
	all := make([]output, len(left))
	for i, o := range left {
		all[i] = output{name: o.name, from: o.from}
		if i < len(right) {
			all[i].from = b.union(o.from, right[i].from)
		}
	}
	return all
}

// setOperation notes what every operation but UNION ALL does: it compares rows.
func (b *binder) setOperation(q *pg.SelectStmt, outputs []output) []output {
	if q.GetOp() != pg.SetOperation_SETOP_UNION || !q.GetAll() {
		b.use(b.lineageOf(outputs), setOperationName(q)+", which compares rows", -1)
	}
	return outputs
}

func setOperationName(q *pg.SelectStmt) string {
	switch q.GetOp() {
	case pg.SetOperation_SETOP_INTERSECT:
		return "INTERSECT"
	case pg.SetOperation_SETOP_EXCEPT:
		return "EXCEPT"
	}
	return "UNION"
}

// sortedSet binds the ORDER BY of a set operation or VALUES, which sees result
// columns only.
func (b *binder) sortedSet(q *pg.SelectStmt, outputs []output, s *scope, env *cteEnv) {
	result := &source{outputs: outputs}
	inner := &scope{outer: s, entries: []entry{{source: result, byColumns: true}}}
	b.orderBy(q.GetSortClause(), outputs, inner, env)
}

func (b *binder) values(q *pg.SelectStmt, s *scope, env *cteEnv) []output {
	var outputs []output
	for _, row := range q.GetValuesLists() {
		for i, item := range row.GetList().GetItems() {
			if i == len(outputs) {
				outputs = append(outputs, output{name: "column" + itoa(i+1)})
			}
			outputs[i].from = b.union(outputs[i].from, b.expr(item, s, env, ""))
		}
	}
	return outputs
}

// simpleSelect binds SELECT … FROM … WHERE … in the order in which names become
// visible.
func (b *binder) simpleSelect(q *pg.SelectStmt, s *scope, env *cteEnv) []output {
	level := &scope{outer: s, entries: b.from(q.GetFromClause(), s, env)}
	b.expr(q.GetWhereClause(), level, env, "WHERE")
	group := &grouping{keys: map[bareColumn]bool{}, bare: map[bareColumn]int32{}, rows: map[*source]bool{}, location: startOf(q.GetGroupClause())}
	grouped := *level
	grouped.level = group
	outputs := b.targets(q.GetTargetList(), &grouped, env)
	b.groupBy(q.GetGroupClause(), outputs, level, env, group)
	if len(q.GetGroupClause()) > 0 {
		b.groupings = append(b.groupings, group)
	}
	b.expr(q.GetHavingClause(), &grouped, env, "HAVING")
	for _, n := range q.GetWindowClause() {
		b.window(n.GetWindowDef(), &grouped, env, "")
	}
	b.distinct(q.GetDistinctClause(), outputs, &grouped, env)
	b.orderBy(q.GetSortClause(), outputs, &grouped, env)
	return outputs
}

// targets binds a target list.
func (b *binder) targets(list []*pg.Node, s *scope, env *cteEnv) []output {
	var outputs []output
	for _, n := range list {
		t := n.GetResTarget()
		if t == nil || len(t.GetIndirection()) > 0 {
			b.unhandled(-1, "a result column of this kind", "")
			continue
		}
		if c := t.GetVal().GetColumnRef(); c != nil && len(c.GetFields()) > 0 && c.GetFields()[len(c.GetFields())-1].GetAStar() != nil {
			expanded := b.star(c, s)
			b.use(b.lineageOf(expanded), "", c.GetLocation())
			if len(outputs)+len(expanded) > maxColumns {
				b.unreadable(c.GetLocation(), "54011", "target lists can have at most %d entries", maxColumns)
				return outputs
			}
			outputs = append(outputs, expanded...)
			continue
		}
		o := output{name: targetName(t), from: b.expr(t.GetVal(), s, env, "")}
		if s != nil {
			if c := b.plainColumn(t.GetVal(), s); c != nil {
				o.base, o.column = c.base, c.column
			}
		}
		outputs = append(outputs, o)
	}
	return outputs
}

// maxColumns is PostgreSQL's own bound. Without it a chain of WITH queries, each
// twice as wide as the last, would fill the memory.
const maxColumns = 1664

// star expands * and table.*.
func (b *binder) star(c *pg.ColumnRef, s *scope) []output {
	b.seen[c] = true
	fields, ok := stringsOf(c.GetFields()[:len(c.GetFields())-1])
	if !ok || s == nil {
		b.unhandled(c.GetLocation(), "* of this kind", "Name the columns.")
		return nil
	}
	var sources []*source
	at := s
	switch len(fields) {
	case 0:
		for _, e := range s.entries {
			if e.byColumns {
				sources = append(sources, e.source)
			}
		}
	case 1, 2:
		var src *source
		if len(fields) == 1 {
			at, src = b.byAlias(s, fields[0], c.GetLocation())
		} else if at, src = b.byRelation(s, fields[0], fields[1], c.GetLocation()); src != nil {
			b.qualified = append(b.qualified, qualifiedUse{src.ref, c.GetLocation(), fields[0]})
		}
		if src == nil {
			b.unreadable(c.GetLocation(), "42P01", "missing FROM-clause entry for table %q", fields[len(fields)-1])
			return nil
		}
		sources = append(sources, src)
	default:
		b.unhandled(c.GetLocation(), "a column qualified with its database", "Leave the database's name out.")
	}
	var outputs []output
	for _, src := range sources {
		b.row(src)
		if !b.spend(len(src.outputs)) {
			return outputs
		}
		for _, o := range src.outputs {
			at.ungrouped(o, c.GetLocation())
			outputs = append(outputs, o)
		}
	}
	return outputs
}

// groupBy binds GROUP BY. A bare name there is a column of FROM first and a
// result column second.
func (b *binder) groupBy(list []*pg.Node, outputs []output, s *scope, env *cteEnv, g *grouping) {
	for _, n := range list {
		if set := n.GetGroupingSet(); set != nil {
			g.sets = true
			b.groupBy(set.GetContent(), outputs, s, env, g)
			continue
		}
		if row := n.GetRowExpr(); row != nil {
			b.groupBy(row.GetArgs(), outputs, s, env, g)
			continue
		}
		if list := n.GetList(); list != nil {
			b.groupBy(list.GetItems(), outputs, s, env, g)
			continue
		}
		if from, location, ok := b.byPosition(n, outputs); ok {
			b.use(from, "GROUP BY", location)
			if i := int(n.GetAConst().GetIval().GetIval()); i > 0 && i <= len(outputs) {
				g.key(&outputs[i-1])
			}
			continue
		}
		if name, location, ok := bareName(n); ok {
			if found := b.localColumn(s, name); found == nil {
				if from, ok := b.namedOutput(outputs, name); ok {
					b.seen[n.GetColumnRef()] = true
					b.use(from, "GROUP BY", location)
					g.key(&outputs[slices.IndexFunc(outputs, func(o output) bool { return o.name == name })])
					continue
				}
			}
		}
		b.expr(n, s, env, "GROUP BY")
		g.key(b.plainColumn(n, s))
	}
}

// key notes a column that GROUP BY groups by, if that is what it is.
func (g *grouping) key(o *output) {
	if o != nil && o.base != nil {
		g.keys[bareColumn{o.base, o.column}] = true
	}
}

// startOf is where the first item of GROUP BY begins, -1 when its tree does not
// tell.
func startOf(list []*pg.Node) int32 {
	if len(list) == 0 {
		return -1
	}
	if c := list[0].GetColumnRef(); c != nil {
		return c.GetLocation()
	}
	if c := list[0].GetAConst(); c != nil {
		return c.GetLocation()
	}
	return -1
}

// localColumn finds a column of this level only, without noting anything.
func (b *binder) localColumn(s *scope, name string) *output {
	b.spend(len(s.entries))
	for _, e := range s.entries {
		if !e.byColumns {
			continue
		}
		if found := e.source.find(name); len(found) > 0 {
			return &e.source.outputs[found[0]]
		}
	}
	return nil
}

// plainColumn is the relation's column that an expression is, or nil.
func (b *binder) plainColumn(n *pg.Node, s *scope) *output {
	c := n.GetColumnRef()
	fields, ok := stringsOf(c.GetFields())
	if c == nil || !ok {
		return nil
	}
	var o *output
	switch len(fields) {
	case 1:
		o = b.localColumn(s, fields[0])
	case 2, 3:
		for _, e := range s.entries {
			src := e.source
			if !e.byName || len(fields) == 2 && src.alias != fields[0] ||
				len(fields) == 3 && (src.relation == nil || src.aliased || src.relation.Schema != fields[0] || src.relation.Name != fields[1]) {
				continue
			}
			if found := src.find(fields[len(fields)-1]); len(found) > 0 {
				o = &src.outputs[found[0]]
			}
		}
	}
	if o == nil || o.base == nil {
		return nil
	}
	return o
}

// bareName is the name when n is a column reference of one name.
func bareName(n *pg.Node) (name string, location int32, ok bool) {
	c := n.GetColumnRef()
	if len(c.GetFields()) != 1 || c.GetFields()[0].GetString_() == nil {
		return "", -1, false
	}
	return c.GetFields()[0].GetString_().GetSval(), c.GetLocation(), true
}

func (b *binder) namedOutput(outputs []output, name string) (from lineage, found bool) {
	b.spend(len(outputs))
	for _, o := range outputs {
		if o.name == name {
			from, found = b.union(from, o.from), true
		}
	}
	return from, found
}

// byPosition is the result column that an integer constant means in ORDER BY,
// GROUP BY and DISTINCT ON.
func (b *binder) byPosition(n *pg.Node, outputs []output) (lineage, int32, bool) {
	c := n.GetAConst()
	if c == nil || c.GetIval() == nil {
		return nil, -1, false
	}
	i := int(c.GetIval().GetIval())
	if i < 1 || i > len(outputs) {
		b.unreadable(c.GetLocation(), "42P10", "position %d is not in select list", i)
		return nil, -1, true
	}
	return outputs[i-1].from, c.GetLocation(), true
}

// outputItem binds an item of ORDER BY or DISTINCT ON: a result column by
// position or name first, an expression otherwise.
func (b *binder) outputItem(n *pg.Node, outputs []output, s *scope, env *cteEnv, clause string) {
	if from, location, ok := b.byPosition(n, outputs); ok {
		b.use(from, clause, location)
		return
	}
	if name, location, ok := bareName(n); ok {
		if from, ok := b.namedOutput(outputs, name); ok {
			b.seen[n.GetColumnRef()] = true
			b.use(from, clause, location)
			return
		}
	}
	b.expr(n, s, env, clause)
}

func (b *binder) orderBy(list []*pg.Node, outputs []output, s *scope, env *cteEnv) {
	for _, n := range list {
		o := n.GetSortBy()
		if o == nil {
			b.unhandled(-1, "an ORDER BY of this kind", "")
			continue
		}
		b.sortOperator(o)
		b.outputItem(o.GetNode(), outputs, s, env, "ORDER BY")
	}
}

// distinct binds DISTINCT, whose clause is one empty node, and DISTINCT ON.
func (b *binder) distinct(list []*pg.Node, outputs []output, s *scope, env *cteEnv) {
	for _, n := range list {
		if n.GetNode() == nil {
			b.use(b.lineageOf(outputs), "DISTINCT", -1)
			continue
		}
		b.outputItem(n, outputs, s, env, "DISTINCT ON")
	}
}
