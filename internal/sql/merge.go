package sql

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// merge binds MERGE. Each WHEN sees the sides whose row it has: both, the source
// where the target has none, the target where the source has none.
func (b *binder) merge(q *pg.MergeStmt, env *cteEnv) []output {
	env = b.with(q.GetWithClause(), nil, env)
	src, c := b.target("MERGE", q.GetRelation())
	target, source := visible(src), b.fromItem(q.GetSourceRelation(), nil, nil, env)
	both := &scope{entries: append(append([]entry{}, source...), target...)}
	c.where = b.condition(q.GetJoinCondition(), both, env, "MERGE … ON")
	for _, n := range q.GetMergeWhenClauses() {
		when := n.GetMergeWhenClause()
		if when == nil {
			b.unhandled(-1, "a WHEN of this kind", "")
			continue
		}
		s := both
		switch when.GetMatchKind() {
		case pg.MergeMatchKind_MERGE_WHEN_NOT_MATCHED_BY_TARGET:
			s = &scope{entries: source}
		case pg.MergeMatchKind_MERGE_WHEN_NOT_MATCHED_BY_SOURCE:
			s = &scope{entries: target}
		}
		restricted := b.condition(when.GetCondition(), s, env, "WHEN")
		if when.GetMatchKind() == pg.MergeMatchKind_MERGE_WHEN_NOT_MATCHED_BY_SOURCE && when.GetCommandType() != pg.CmdType_CMD_NOTHING {
			c.where = c.where && restricted // every other row of the table
		}
		b.mergeAction(when, c, src, s, env)
	}
	return b.targets(q.GetReturningList(), both, env)
}

// mergeAction binds what a WHEN does.
func (b *binder) mergeAction(when *pg.MergeWhenClause, c *change, src *source, s *scope, env *cteEnv) {
	switch when.GetCommandType() {
	case pg.CmdType_CMD_UPDATE:
		b.assignments(when.GetTargetList(), c, src, s, env)
	case pg.CmdType_CMD_INSERT:
		var names []string
		for _, n := range when.GetTargetList() {
			t := n.GetResTarget()
			names = append(names, t.GetName())
			b.write(c, src, t.GetName(), t.GetLocation())
			b.subscripts(t.GetIndirection(), s, env)
		}
		if len(names) == 0 && len(when.GetValues()) > 0 && src.relation != nil {
			for _, col := range src.relation.Columns {
				names = append(names, col.Name)
				b.write(c, src, col.Name, -1)
			}
		}
		for i, value := range when.GetValues() {
			b.expr(value, s, env, "INSERT")
			if i < len(names) {
				c.values[names[i]] = append(c.values[names[i]], value)
			}
		}
	case pg.CmdType_CMD_DELETE, pg.CmdType_CMD_NOTHING:
	default:
		b.unhandled(-1, "a WHEN of this kind", "")
	}
}
