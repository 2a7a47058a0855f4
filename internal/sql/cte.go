package sql

import (
	pg "github.com/pganalyze/pg_query_go/v6"
)

// A cteEnv is the WITH queries that a place in the text can see, innermost
// first. An unqualified name in FROM means one of them before it means a table.
type cteEnv struct {
	outer   *cteEnv
	entries map[string]*cte
}

// A cte is one WITH query. Under RECURSIVE it is bound when it is first named,
// for it may be named before it is written.
type cte struct {
	node      *pg.CommonTableExpr
	scope     *scope
	env       *cteEnv // what its own text sees
	state     cteState
	recursive bool
	outputs   []output
}

type cteState uint8

const (
	cteWaiting cteState = iota
	cteFirst            // the non-recursive term is being bound
	cteAgain            // the recursive term is being bound: outputs are known so far
	cteBound
)

// find looks an unqualified name up, or returns nil.
func (e *cteEnv) find(name string) *cte {
	for ; e != nil; e = e.outer {
		if c := e.entries[name]; c != nil {
			return c
		}
	}
	return nil
}

// with binds a WITH clause and returns what the rest of its query sees.
func (b *binder) with(w *pg.WithClause, s *scope, env *cteEnv) *cteEnv {
	if w == nil {
		return env
	}
	seen := map[string]bool{}
	all := &cteEnv{outer: env, entries: map[string]*cte{}}
	var ctes []*cte
	for _, n := range w.GetCtes() {
		node := n.GetCommonTableExpr()
		if node == nil {
			b.unhandled(-1, "a WITH of this kind", "")
			continue
		}
		if seen[node.GetCtename()] {
			b.unreadable(node.GetLocation(), "42712", "WITH query name %q specified more than once", node.GetCtename())
			continue
		}
		seen[node.GetCtename()] = true
		c := &cte{node: node, scope: s, recursive: w.GetRecursive()}
		if w.GetRecursive() {
			c.env = all
			all.entries[node.GetCtename()] = c
		} else { // sees those before it only, not itself
			c.env = env
			env = &cteEnv{outer: env, entries: map[string]*cte{node.GetCtename(): c}}
		}
		ctes = append(ctes, c)
	}
	for _, c := range ctes {
		b.bindCTE(c)
	}
	if w.GetRecursive() {
		return all
	}
	return env
}

func (b *binder) bindCTE(c *cte) {
	if c.state != cteWaiting {
		return
	}
	query := c.node.GetCtequery()
	c.state = cteFirst
	switch q := query.GetNode().(type) {
	case *pg.Node_SelectStmt:
		if c.recursive && q.SelectStmt.GetOp() != pg.SetOperation_SETOP_NONE {
			b.recursiveCTE(c, q.SelectStmt)
		} else {
			c.outputs = b.selectStmt(q.SelectStmt, c.scope, c.env)
		}
	case *pg.Node_InsertStmt:
		c.outputs = b.insert(q.InsertStmt, c.env)
	case *pg.Node_UpdateStmt:
		c.outputs = b.update(q.UpdateStmt, c.env)
	case *pg.Node_DeleteStmt:
		c.outputs = b.delete(q.DeleteStmt, c.env)
	case *pg.Node_MergeStmt:
		c.outputs = b.merge(q.MergeStmt, c.env)
	default:
		b.unhandled(c.node.GetLocation(), "a WITH query of this kind", "")
	}
	c.outputs = b.renamed(c.outputs, c.node)
	c.state = cteBound
}

func (b *binder) renamed(outputs []output, node *pg.CommonTableExpr) []output {
	names, ok := stringsOf(node.GetAliascolnames())
	if !ok || len(names) > len(outputs) {
		b.unreadable(node.GetLocation(), "42P10", "WITH query %q has %d columns available but %d columns specified",
			node.GetCtename(), len(outputs), len(names))
		return outputs
	}
	renamed := make([]output, len(outputs))
	for i, o := range outputs {
		renamed[i] = output{name: o.name, from: o.from}
		if i < len(names) {
			renamed[i].name = names[i]
		}
	}
	return renamed
}

// maxPasses bounds how often the right arms of recursive queries are bound in
// one statement: nested ones multiply.
const maxPasses = 64

// recursiveCTE binds a UNION whose right arm may name the query itself. What the
// right arm yields flows back into it, so it is bound until nothing is added.
func (b *binder) recursiveCTE(c *cte, q *pg.SelectStmt) {
	b.seen[q] = true
	env := b.with(q.GetWithClause(), c.scope, c.env)
	left := b.selectStmt(q.GetLarg(), c.scope, env)
	c.outputs = b.renamed(left, c.node)
	c.state = cteAgain
	for range len(left) + 2 {
		if b.passes++; b.passes > maxPasses {
			b.unreadable(c.node.GetLocation(), "54001", "the recursive query %q cannot be followed: too much is nested in it", c.node.GetCtename())
			return
		}
		before := b.mark()
		right := b.selectStmt(q.GetRarg(), c.scope, env)
		merged := b.merged(c.outputs, right, q)
		same := true
		for i := range merged {
			same = same && merged[i].from.equal(c.outputs[i].from)
		}
		if same {
			c.outputs = b.setOperation(q, merged)
			b.sortedSet(q, c.outputs, c.scope, env)
			b.expr(q.GetLimitCount(), c.scope, env, "LIMIT")
			b.expr(q.GetLimitOffset(), c.scope, env, "OFFSET")
			return
		}
		c.outputs = merged
		b.reset(before)
	}
	b.unreadable(c.node.GetLocation(), "42P19", "the recursive query %q cannot be followed", c.node.GetCtename())
}

// namedCTE is the outputs of a WITH query where it is named in FROM.
func (b *binder) namedCTE(c *cte, v *pg.RangeVar) []output {
	switch c.state {
	case cteWaiting:
		// Bound here, inside the arm of a recursion that is bound several times,
		// what it reads and changes would be counted once and then forgotten.
		b.unhandled(v.GetLocation(), "a WITH query that is named before it is written",
			"Write WITH query "+v.GetRelname()+" before those that name it.")
		b.bindCTE(c)
	case cteFirst:
		b.unreadable(v.GetLocation(), "42P19", "recursive reference to query %q must not appear within its non-recursive term", v.GetRelname())
	}
	return c.outputs
}
