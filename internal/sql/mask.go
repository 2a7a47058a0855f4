package sql

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// mask refuses, rewrites, and proves what it wrote. Secrecy rests on one thing
// alone: that every place where a masked relation is named was found and
// replaced. What the masked columns flow into only decides whether the answer
// would be honest.
func (a *Analyzer) mask(ctx context.Context, st *Statement, cat *catalog.Snapshot, o access.Obligations) (*Forward, error) {
	if st.Refusal != nil {
		return nil, st.Refusal
	}
	if st.Unbound != nil && len(o.Masks) > 0 {
		return nil, st.Unbound
	}
	same := &Forward{Text: st.Text, Action: st.Action, client: st.Text}
	m := newMasking(cat, a.library, o.Masks)
	if m == nil || st.body == nil {
		return same, nil
	}
	m.mayWrite(o.WriteMasked)
	m.views(st.body.viewReads)
	if r := m.check(st); r != nil {
		return nil, r
	}
	s := newSplicer(st.Text, st.body.parsed.Tokens)
	hidden := map[string]bool{}
	for _, ref := range st.body.bound.references {
		if !m.hidden(ref.relation) || ref.target {
			continue
		}
		if ref.copied != nil {
			s.copied(ref, m.copySubquery(ref))
		} else {
			s.relation(ref, m.subquery(ref, s.sample(ref)))
		}
		for _, c := range ref.usedColumns {
			if m.columns[ref.relation.OID][c] {
				hidden[ref.relation.Qualified()+"."+c] = true
			}
		}
	}
	for _, u := range st.body.bound.qualified {
		if m.hidden(u.ref.relation) && !u.ref.target {
			s.unqualify(u)
		}
	}
	for _, g := range st.body.bound.groupings {
		s.grouping(g, m.grouped(g))
	}
	if len(s.splices) == 0 && s.refusal == nil {
		same.NullMasks = m.nullMasks
		return same, nil
	}
	text := s.spliced()
	if s.refusal != nil {
		return nil, s.refusal
	}
	if err := a.prove(ctx, st, cat, m, text, s.splices); err != nil {
		return nil, err
	}
	f := &Forward{Text: text, Action: st.Action, Masked: sortedKeys(hidden), NullMasks: m.nullMasks, client: st.Text, splices: s.splices}
	f.Action.Forward = text
	return f, nil
}

// subquery reads a relation with masks in place of its hidden columns. Of the
// columns that the statement does not use, those are left out that the role
// cannot read, for the server would refuse, and those of the database's own
// types, which would cast doubt on it. sample is its TABLESAMPLE.
func (m *masking) subquery(ref *reference, sample string) string {
	r := ref.relation
	var columns []string
	for i := range r.Columns {
		c := &r.Columns[i]
		name, masked := catalog.QuoteIdentifier(c.Name), m.columns[r.OID][c.Name]
		needed := ref.used[c.Name] || ref.aliasNames
		switch {
		case !needed && (c.OwnType != "" || !masked && !c.CanSelect):
		case masked:
			columns = append(columns, m.constant(c)+" AS "+name)
		default:
			columns = append(columns, name)
		}
	}
	columns = append(columns, ref.systems...)
	only := ""
	if !ref.inherit {
		only = "ONLY "
	}
	return "(SELECT " + strings.Join(columns, ", ") + " FROM " + only +
		catalog.QuoteIdentifier(r.Schema) + "." + catalog.QuoteIdentifier(r.Name) + sample + ")"
}

// prove parses and judges the new text and accepts it only when it is the old
// statement with every hidden column gone.
func (a *Analyzer) prove(ctx context.Context, st *Statement, cat *catalog.Snapshot, m *masking, text string, splices []splice) error {
	again, err := a.analyze(ctx, text, cat)
	if err != nil {
		return err
	}
	if fault := m.fault(st, again, splices); fault != "" {
		return &Refusal{
			Reason: access.Unsupported, SQLState: "0A000",
			Message: "the statement reads masked columns in a form that cannot be rewritten: " + fault,
			Hint:    "Read the table with masked columns in a plain FROM, without unusual spelling.",
		}
	}
	return nil
}

// fault says in what the rewritten statement is not what it must be.
func (m *masking) fault(st, again *Statement, splices []splice) string {
	switch {
	case again.Refusal != nil:
		return again.Refusal.Message
	case again.Kind != st.Kind || again.Parameters != st.Parameters || again.ReturnsRows != st.ReturnsRows:
		return "its kind changed"
	case !sameEffect(st.Action, again.Action):
		return "its effect changed"
	case !sameTokens(st.Text, st.body.parsed.Tokens, again.Text, again.body.parsed.Tokens, splices):
		return "its text changed"
	}
	for _, u := range again.body.bound.uses {
		if name := m.first(u.columns); name != "" {
			return name + " is still read"
		}
	}
	replaced := map[int]bool{}
	for _, ref := range again.body.bound.references {
		if !m.hidden(ref.relation) || ref.target {
			continue
		}
		i := slices.IndexFunc(splices, func(p splice) bool {
			return p.relation && int(ref.location) >= p.at && int(ref.location) < p.until
		})
		if i < 0 || replaced[i] {
			return ref.relation.Qualified() + " is still named"
		}
		replaced[i] = true
		for column := range ref.used {
			if m.columns[ref.relation.OID][column] {
				return fmt.Sprintf("%s.%s is still read", ref.relation.Qualified(), column)
			}
		}
	}
	for i, p := range splices {
		if p.relation && !replaced[i] {
			return "a table was lost"
		}
	}
	return ""
}

func sameEffect(a, b access.SQL) bool {
	return a.Command == b.Command && a.ReadOnly == b.ReadOnly && a.HasWhere == b.HasWhere && a.Locks == b.Locks &&
		a.Statements == b.Statements && slices.Equal(a.Reads, b.Reads) && slices.Equal(a.Writes, b.Writes) &&
		slices.Equal(a.Functions, b.Functions) && slices.Equal(a.Unknown, b.Unknown)
}
