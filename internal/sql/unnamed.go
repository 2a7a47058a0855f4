package sql

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"

	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// A read runs code that it does not name: the conditions of row security, and
// the constant parts of expressions in indexes, checks, partition keys and
// statistics, which the planner folds. Functions there that are not known are
// doubts like those of views.

// followUnnamed adds what reading the relations of a statement runs, its views'
// relations among them.
func (a *Analyzer) followUnnamed(ctx context.Context, cat *catalog.Snapshot, b *binder) error {
	for name := range b.reads {
		r := b.relationRead(name)
		if r == nil || r.Kind == catalog.View || r.Kind == catalog.MaterializedView {
			continue // views have their own facts
		}
		unknown, err := a.unnamed(ctx, cat, r, maxViews)
		if err != nil {
			return err
		}
		for _, u := range unknown {
			b.doubt("%s", u)
		}
	}
	for _, c := range b.changes { // a change plans too
		if r := c.ref.relation; r != nil {
			unknown, err := a.folded(ctx, cat, r)
			if err != nil {
				return err
			}
			for _, u := range unknown {
				b.doubt("%s", u)
			}
		}
	}
	return nil
}

// relationRead finds a relation by its qualified name.
func (b *binder) relationRead(name string) *catalog.Relation {
	for i := range name {
		if name[i] == '.' {
			if r := b.cat.Relation(name[:i], name[i+1:]); r != nil {
				return r
			}
		}
	}
	return nil
}

// unnamed returns what is not known of the code that reading table r runs.
func (a *Analyzer) unnamed(ctx context.Context, cat *catalog.Snapshot, r *catalog.Relation, depth int) ([]string, error) {
	unknown, err := a.folded(ctx, cat, r)
	if err != nil || len(r.Policies) == 0 {
		return unknown, err
	}
	key := viewKey{cat.Version(), r.OID}
	if f, ok := a.views.get(key); ok {
		return append(slices.Clone(unknown), f.unknown...), nil
	}
	var doubts []string
	for _, condition := range r.Policies {
		if depth == 0 {
			doubts = append(doubts, "row security of "+r.Qualified()+" is nested too deep")
			break
		}
		more, err := a.policyDoubts(ctx, cat, r, condition, depth)
		if err != nil {
			return nil, err
		}
		doubts = append(doubts, more...)
	}
	slices.Sort(doubts)
	doubts = slices.Compact(doubts)
	a.views.put(key, viewFacts{unknown: doubts})
	return append(slices.Clone(unknown), doubts...), nil
}

// policyDoubts binds one condition of row security as a query of its table.
func (a *Analyzer) policyDoubts(ctx context.Context, cat *catalog.Snapshot, r *catalog.Relation, condition string, depth int) ([]string, error) {
	text := "SELECT 1 FROM " + catalog.QuoteIdentifier(r.Schema) + "." + catalog.QuoteIdentifier(r.Name) + " WHERE " + condition
	b, _, err := a.bindText(ctx, cat, text)
	if err != nil {
		return nil, fmt.Errorf("analyze row security of %s: %w", r.Qualified(), err)
	}
	about := "row security of " + r.Qualified()
	if b == nil {
		return []string{"what " + about + " does is not known"}, nil
	}
	var doubts []string
	for doubt := range b.unknown {
		doubts = append(doubts, about+": "+doubt)
	}
	for _, ref := range b.references {
		inner := ref.relation
		var more []string
		switch {
		case inner.OID == r.OID || system(inner):
		case inner.Kind == catalog.View || inner.Kind == catalog.MaterializedView:
			facts, err := a.viewFacts(ctx, cat, inner, depth-1)
			if err != nil {
				return nil, err
			}
			more = facts.unknown
		default:
			if more, err = a.unnamed(ctx, cat, inner, depth-1); err != nil {
				return nil, err
			}
		}
		for _, doubt := range more {
			doubts = append(doubts, about+": "+doubt)
		}
	}
	return doubts, nil
}

// folded returns what is not known of the constants that planning a query of r
// and of what inherits from it computes.
func (a *Analyzer) folded(ctx context.Context, cat *catalog.Snapshot, r *catalog.Relation) ([]string, error) {
	var unknown []string
	seen := map[uint32]bool{}
	for queue := []uint32{r.OID}; len(queue) > 0; queue = queue[1:] {
		table := cat.RelationByOID(queue[0])
		if table == nil || seen[table.OID] {
			continue
		}
		seen[table.OID] = true
		queue = append(queue, cat.Children(table.OID)...)
		for _, expression := range table.Folded {
			doubts, err := a.constantDoubts(ctx, cat, expression)
			if err != nil {
				return nil, fmt.Errorf("analyze an expression of %s: %w", table.Qualified(), err)
			}
			for _, doubt := range doubts {
				unknown = append(unknown, "planning a query of "+table.Qualified()+": "+doubt)
			}
		}
	}
	return unknown, nil
}

// constantDoubts binds the calls and operators in an expression that depend on
// no column.
func (a *Analyzer) constantDoubts(ctx context.Context, cat *catalog.Snapshot, expression string) ([]string, error) {
	text := "SELECT " + expression
	parsed, err := a.parser.Parse(ctx, text)
	var verdict *parser.Error
	if err != nil && !errors.As(err, &verdict) {
		return nil, err
	}
	if err != nil || len(parsed.Tree.GetStmts()) != 1 {
		return []string{"an expression cannot be read"}, nil
	}
	b := newBinder(text, cat, a.library)
	b.path = []string{"pg_catalog"}
	b.constants(parsed.Tree.GetStmts()[0].GetStmt())
	if b.refusal != nil {
		b.doubt("%s", b.refusal.Message)
	}
	return sortedKeys(b.unknown), nil
}

// constants binds the calls, operators and casts below m that depend on no column, and
// reports whether m itself depends on none.
func (b *binder) constants(m proto.Message) bool {
	if _, ok := m.(*pg.ColumnRef); ok {
		return false
	}
	constant := true
	var calls []*pg.Node
	below(m, func(inner proto.Message) bool {
		if !b.constants(inner) {
			constant = false
		} else if n, ok := inner.(*pg.Node); ok && (n.GetFuncCall() != nil || n.GetAExpr() != nil || n.GetTypeCast() != nil) {
			calls = append(calls, n)
		}
		return true
	})
	for _, n := range calls {
		b.expr(n, nil, nil, "")
	}
	return constant
}
