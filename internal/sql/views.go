package sql

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// A viewFacts is what a view reads, directly and through others.
type viewFacts struct {
	reads   []uint32
	unknown []string
}

type viewKey struct {
	version string
	oid     uint32
}

// viewCache keeps the facts of views by snapshot. It is bounded: when full it
// starts again.
type viewCache struct {
	mu      sync.Mutex
	entries map[viewKey]viewFacts
}

const maxCachedViews = 2048

func (c *viewCache) get(k viewKey) (viewFacts, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.entries[k]
	return f, ok
}

func (c *viewCache) put(k viewKey, f viewFacts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxCachedViews {
		clear(c.entries)
	}
	c.entries[k] = f
}

// followViews adds what the views in a statement read and do.
func (a *Analyzer) followViews(ctx context.Context, cat *catalog.Snapshot, b *binder) (map[*catalog.Relation]viewFacts, error) {
	facts := map[*catalog.Relation]viewFacts{}
	for _, v := range b.views {
		f, err := a.viewFacts(ctx, cat, v, maxViews)
		if err != nil {
			return nil, err
		}
		facts[v] = f
		for _, oid := range f.reads {
			if r := cat.RelationByOID(oid); r != nil {
				b.reads[r.Qualified()] = true
			}
		}
		for _, u := range f.unknown {
			b.doubt("%s", u)
		}
	}
	return facts, nil
}

// viewFacts binds a view's definition, in which every name is qualified, and
// follows the views in it. What the server itself says it depends on is added.
func (a *Analyzer) viewFacts(ctx context.Context, cat *catalog.Snapshot, v *catalog.Relation, depth int) (viewFacts, error) {
	key := viewKey{cat.Version(), v.OID}
	if f, ok := a.views.get(key); ok {
		return f, nil
	}
	reads := map[uint32]bool{}
	for _, oid := range v.Sources {
		reads[oid] = true
	}
	var unknown []string
	b, err := a.bindView(ctx, cat, v, depth)
	if err != nil {
		return viewFacts{}, err
	}
	if b == nil {
		unknown = []string{"what view " + v.Qualified() + " does is not known"}
	} else {
		for doubt := range b.unknown {
			unknown = append(unknown, "view "+v.Qualified()+": "+doubt)
		}
		for _, ref := range b.references {
			reads[ref.relation.OID] = true
		}
	}
	for _, oid := range slices.Collect(maps.Keys(reads)) {
		inner := cat.RelationByOID(oid)
		if inner == nil || system(inner) {
			continue
		}
		if inner.Kind != catalog.View && inner.Kind != catalog.MaterializedView {
			more, err := a.unnamed(ctx, cat, inner, depth)
			if err != nil {
				return viewFacts{}, err
			}
			unknown = append(unknown, more...)
			continue
		}
		if depth == 0 {
			unknown = append(unknown, "view "+v.Qualified()+" is nested too deep")
			continue
		}
		f, err := a.viewFacts(ctx, cat, inner, depth-1)
		if err != nil {
			return viewFacts{}, err
		}
		for _, oid := range f.reads {
			reads[oid] = true
		}
		unknown = append(unknown, f.unknown...)
	}
	slices.Sort(unknown)
	facts := viewFacts{reads: slices.Sorted(maps.Keys(reads)), unknown: slices.Compact(unknown)}
	a.views.put(key, facts)
	return facts, nil
}

// bindView binds a definition, or returns nil when it cannot be.
func (a *Analyzer) bindView(ctx context.Context, cat *catalog.Snapshot, v *catalog.Relation, depth int) (*binder, error) {
	if v.Definition == "" || depth == 0 {
		return nil, nil
	}
	b, err := a.bindText(ctx, cat, v.Definition)
	if err != nil {
		return nil, fmt.Errorf("analyze view %s: %w", v.Qualified(), err)
	}
	return b, nil
}

// bindText binds a query in which every name outside pg_catalog is qualified, or
// returns nil when it cannot be.
func (a *Analyzer) bindText(ctx context.Context, cat *catalog.Snapshot, text string) (*binder, error) {
	parsed, err := a.parser.Parse(ctx, text)
	var verdict *parser.Error
	if errors.As(err, &verdict) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := parsed.Tree.GetStmts()
	if len(list) != 1 || list[0].GetStmt().GetSelectStmt() == nil || a.grammar.check(list[0].GetStmt().ProtoReflect()) != nil {
		return nil, nil
	}
	b := newBinder(text, cat, a.library)
	b.path = []string{"pg_catalog"}
	b.selectStmt(list[0].GetStmt().GetSelectStmt(), nil, nil)
	b.settle()
	if b.refusal != nil || b.unseen(list[0].GetStmt().ProtoReflect()) != nil || b.lost() != nil {
		return nil, nil
	}
	return b, nil
}
