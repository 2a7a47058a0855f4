package sql

import (
	"context"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// judgeCopy judges COPY: of a query as that query, of a table as a read or a
// write of its columns. Only the client's own connection is a place to copy to
// or from.
func (a *Analyzer) judgeCopy(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result, c *pg.CopyStmt) (*Statement, error) {
	st, err := a.judgeCopied(ctx, text, cat, parsed, c)
	if err != nil {
		return nil, err
	}
	kind := KindCopyOut
	if c.GetIsFrom() {
		kind = KindCopyIn
	}
	changes := st.Kind != KindQuery
	st.Action.Command, st.ReturnsRows = "COPY", false
	switch r := copyOptions(st, c); {
	case c.GetIsProgram() || c.GetFilename() != "":
		st.Refusal = nil // says more than any other
		st.never(unsupported("COPY to or from a file or a program of the database's server", `Use COPY … TO STDOUT or FROM STDIN, as psql's \copy does.`))
	case st.Refusal != nil:
	case r != nil:
		st.refused(r)
	case changes != c.GetIsFrom():
		st.refused(unsupported("COPY of a statement that changes data", "Run the statement itself, with RETURNING."))
	case st.Parameters > 0:
		st.refused(unsupported("COPY with parameters", "Write the values into the query."))
	default:
		st.Kind = kind
	}
	if st.Refusal != nil && st.Straight != KindRefused {
		st.Straight = kind
	}
	return st, nil
}

func (a *Analyzer) judgeCopied(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result, c *pg.CopyStmt) (*Statement, error) {
	if c.GetQuery() != nil {
		return a.judgeInner(ctx, text, cat, parsed, c.GetQuery(), "COPY")
	}
	b := newBinder(text, cat, a.library)
	if c.GetWhereClause() != nil {
		b.refusal = a.grammar.check(c.GetWhereClause())
	}
	st := &Statement{Text: text, Kind: KindQuery, Action: access.SQL{Text: text, SearchPath: cat.SearchPath(), Statements: 1}}
	names, ok := stringsOf(c.GetAttlist())
	if !ok {
		b.unhandled(-1, "COPY with a list of columns of this kind", "Name the columns.")
	}
	if c.GetIsFrom() {
		b.copyFrom(c, names)
	} else {
		b.copyTo(c.GetRelation(), names)
	}
	if b.unseen(c) != nil || b.lost() != nil {
		b.unhandled(-1, "a part of the statement that was not bound", "")
	}
	b.settle()
	if err := a.followUnnamed(ctx, cat, b); err != nil {
		return nil, err
	}
	st.body = &body{parsed: parsed, bound: b, viewReads: map[*catalog.Relation]viewFacts{}}
	b.describe(st)
	return st, nil
}

// copyTo binds COPY table TO, which reads the table's own rows and no child's.
func (b *binder) copyTo(v *pg.RangeVar, names []string) {
	r := b.relation(v)
	if r == nil {
		return
	}
	b.reads[r.Qualified()] = true
	if r.Kind != catalog.Table {
		b.unhandled(v.GetLocation(), "COPY of "+r.Qualified()+", which is not a plain table,", "Write COPY (SELECT … FROM "+r.Qualified()+") TO STDOUT.")
		return
	}
	src := b.sourceOf(v, r)
	src.ref.inherit, src.ref.copied = false, copied(r, names)
	for i, name := range src.ref.copied {
		switch {
		case r.Column(name) == nil:
			b.unreadable(-1, "42703", "column %q of relation %q does not exist", name, r.Name)
			continue
		case slices.Contains(src.ref.copied[:i], name):
			b.unreadable(-1, "42701", "column %q specified more than once", name)
		}
		b.touch(src, name)
	}
	b.use(b.lineageOf(slices.DeleteFunc(slices.Clone(src.outputs), func(o output) bool { return !slices.Contains(src.ref.copied, o.column) })), "", -1)
}

// copied are the columns that COPY takes: those named, or all that are not
// generated.
func copied(r *catalog.Relation, names []string) []string {
	if len(names) > 0 {
		return names
	}
	for _, c := range r.Columns {
		if !c.Generated {
			names = append(names, c.Name)
		}
	}
	return names
}

// copyFrom binds COPY table FROM, with its WHERE.
func (b *binder) copyFrom(c *pg.CopyStmt, names []string) {
	src, change := b.target("COPY", c.GetRelation())
	if src.relation != nil {
		change.everything = len(names) == 0
		for _, name := range copied(src.relation, names) {
			b.write(change, src, name, -1)
		}
	}
	change.where = b.where(c.GetWhereClause(), &scope{entries: visible(src)}, nil)
}

// copyOptions refuses options that are not known to be about the format alone.
func copyOptions(st *Statement, c *pg.CopyStmt) *Refusal {
	for _, n := range c.GetOptions() {
		d := n.GetDefElem()
		switch d.GetDefname() {
		case "format":
			format := d.GetArg().GetString_().GetSval()
			if format != "text" && format != "csv" && format != "binary" {
				return unsupported("COPY in the format "+format, "Use text, csv or binary.")
			}
			st.Binary = format == "binary"
		case "encoding":
			if e := strings.ToLower(d.GetArg().GetString_().GetSval()); e != "utf8" && e != "utf-8" {
				return unsupported("COPY in another encoding than UTF8", "Leave ENCODING out.")
			}
		case "delimiter", "null", "default", "header", "quote", "escape", "force_quote", "force_not_null", "force_null", "on_error",
			"log_verbosity", "reject_limit":
		default:
			return unsupported("COPY with "+strings.ToUpper(d.GetDefname()), "Use FORMAT, DELIMITER, NULL, HEADER, QUOTE and ESCAPE.")
		}
	}
	return nil
}

// copySubquery reads what COPY table TO copies, with masks in place of hidden
// columns.
func (m *masking) copySubquery(ref *reference) string {
	r := ref.relation
	columns := make([]string, len(ref.copied))
	for i, name := range ref.copied {
		columns[i] = catalog.QuoteIdentifier(name)
		if m.columns[r.OID][name] {
			columns[i] = m.constant(r.Column(name)) + " AS " + columns[i]
		}
	}
	return "(SELECT " + strings.Join(columns, ", ") + " FROM ONLY " + catalog.QuoteIdentifier(r.Schema) + "." + catalog.QuoteIdentifier(r.Name) + ")"
}

// copied replaces the table of COPY, and its list of columns, by a subquery.
func (s *splicer) copied(ref *reference, subquery string) {
	var parts []string
	for _, p := range []string{ref.catalog, ref.schema, ref.relation.Name} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	first, last, ok := s.names(ref.location, parts...)
	if !ok {
		s.fail(ref.location, "the name of a table with masked columns is spelled in a way that is not handled", spellHint)
		return
	}
	if s.kind(last+1) == pg.Token_ASCII_40 {
		for last++; s.kind(last) != pg.Token_ASCII_41; last++ {
			if last >= len(s.tokens) {
				s.fail(ref.location, "the columns of COPY are written in a way that is not handled", "Write COPY (SELECT …) TO STDOUT.")
				return
			}
		}
	}
	s.splices = append(s.splices, splice{
		start: int(s.tokens[first].Start), end: int(s.tokens[last].End), text: subquery, relation: true,
	})
}
