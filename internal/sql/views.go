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
	// shown is what each column of the view is computed from, decided what its
	// rows are chosen, grouped or ordered by: columns of tables, and of the views
	// between them and this one. They mean something when unknown is empty.
	shown   map[string]lineage
	decided []use
	placed  []uint32 // the tables whose tableoid it uses
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
// follows the views in it. The server's own account of what it depends on must
// not hold more.
func (a *Analyzer) viewFacts(ctx context.Context, cat *catalog.Snapshot, v *catalog.Relation, depth int) (viewFacts, error) {
	key := viewKey{cat.Version(), v.OID}
	if f, ok := a.views.get(key); ok {
		return f, nil
	}
	reads := map[uint32]bool{}
	for _, source := range v.Sources {
		reads[source.Relation] = true
	}
	var facts viewFacts
	b, outputs, err := a.bindView(ctx, cat, v, depth)
	if err != nil {
		return viewFacts{}, err
	}
	if b == nil || !b.accountsFor(v, outputs) {
		facts.unknown = []string{"what view " + v.Qualified() + " does is not known"}
	} else {
		for doubt := range b.unknown {
			facts.unknown = append(facts.unknown, "view "+v.Qualified()+": "+doubt)
		}
		for _, ref := range b.references {
			reads[ref.relation.OID] = true
			if slices.Contains(ref.systems, "tableoid") {
				facts.placed = append(facts.placed, ref.relation.OID)
			}
		}
		facts.shown, facts.decided = shownBy(v, outputs), b.decided()
	}
	inner := map[uint32]viewFacts{}
	for _, oid := range slices.Sorted(maps.Keys(reads)) {
		r := cat.RelationByOID(oid)
		if r == nil || system(r) {
			continue
		}
		f, err := a.behind(ctx, cat, v, r, depth)
		if err != nil {
			return viewFacts{}, err
		}
		inner[oid] = f
		for _, oid := range f.reads {
			reads[oid] = true
		}
		facts.unknown = append(facts.unknown, f.unknown...)
		facts.placed = append(facts.placed, f.placed...)
	}
	facts.through(inner)
	slices.Sort(facts.unknown)
	facts.reads, facts.unknown = slices.Sorted(maps.Keys(reads)), slices.Compact(facts.unknown)
	a.views.put(key, facts)
	return facts, nil
}

// behind is what is known of a relation that view v reads.
func (a *Analyzer) behind(ctx context.Context, cat *catalog.Snapshot, v, r *catalog.Relation, depth int) (viewFacts, error) {
	if r.Kind != catalog.View && r.Kind != catalog.MaterializedView {
		unknown, err := a.unnamed(ctx, cat, r, depth)
		return viewFacts{unknown: unknown}, err
	}
	if depth == 0 {
		return viewFacts{unknown: []string{"view " + v.Qualified() + " is nested too deep"}}, nil
	}
	return a.viewFacts(ctx, cat, r, depth-1)
}

// accountsFor reports whether binding a view's definition found each column that
// the server says it depends on, and as many results as it has columns.
func (b *binder) accountsFor(v *catalog.Relation, outputs []output) bool {
	if len(outputs) != len(v.Columns) {
		return false
	}
	columns := map[columnKey]bool{}
	for _, ref := range b.references {
		for _, column := range ref.usedColumns {
			columns[columnKey{ref.relation.OID, column}] = true
		}
	}
	return !slices.ContainsFunc(v.Sources, func(source catalog.Source) bool {
		return source.Column != "" && !columns[columnKey{source.Relation, source.Column}]
	})
}

// shownBy gives a view's columns their lineage.
func shownBy(v *catalog.Relation, outputs []output) map[string]lineage {
	shown := map[string]lineage{}
	for i, o := range outputs {
		shown[v.Columns[i].Name] = o.from
	}
	return shown
}

// decided are the uses that decide on rows. Those that compute a value, such as
// a comparison, flow on into what it is shown as.
func (b *binder) decided() []use {
	var list []use
	for _, u := range b.uses {
		if u.clause != "" && !b.library.computes(u.clause) {
			list = append(list, u)
		}
	}
	return list
}

// through adds, to columns of views, what those are computed from, and what
// decides on the rows of those views.
func (f *viewFacts) through(inner map[uint32]viewFacts) {
	add := func(l lineage) lineage {
		for key := range l {
			l = l.union(inner[key.relation].shown[key.name])
		}
		return l
	}
	for name, l := range f.shown {
		f.shown[name] = add(l)
	}
	for i := range f.decided {
		f.decided[i].columns = add(f.decided[i].columns)
	}
	for _, oid := range slices.Sorted(maps.Keys(inner)) {
		f.decided = append(f.decided, inner[oid].decided...)
	}
}

// bindView binds a definition, or returns nil when it cannot be.
func (a *Analyzer) bindView(ctx context.Context, cat *catalog.Snapshot, v *catalog.Relation, depth int) (*binder, []output, error) {
	if v.Definition == "" || depth == 0 {
		return nil, nil, nil
	}
	b, outputs, err := a.bindText(ctx, cat, v.Definition)
	if err != nil {
		return nil, nil, fmt.Errorf("analyze view %s: %w", v.Qualified(), err)
	}
	return b, outputs, nil
}

// bindText binds a query in which every name outside pg_catalog is qualified, or
// returns nil when it cannot be.
func (a *Analyzer) bindText(ctx context.Context, cat *catalog.Snapshot, text string) (*binder, []output, error) {
	parsed, err := a.parser.Parse(ctx, text)
	var verdict *parser.Error
	if errors.As(err, &verdict) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	list := parsed.Tree.GetStmts()
	if len(list) != 1 || list[0].GetStmt().GetSelectStmt() == nil || a.grammar.check(list[0].GetStmt()) != nil {
		return nil, nil, nil
	}
	b := newBinder(text, cat, a.library)
	b.path = []string{"pg_catalog"}
	outputs := b.selectStmt(list[0].GetStmt().GetSelectStmt(), nil, nil)
	b.settle()
	if b.refusal != nil || b.unseen(list[0].GetStmt()) != nil || b.lost() != nil {
		return nil, nil, nil
	}
	return b, outputs, nil
}
