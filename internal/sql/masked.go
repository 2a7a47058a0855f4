package sql

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// A masking is the set of columns that masks hide in one database: those named,
// those generated from them, and the same ones of partitions, children and
// parents, through which the value would be read too.
type masking struct {
	cat     *catalog.Snapshot
	library *library
	columns map[uint32]map[string]bool
	broken  map[uint32]string // relations of which a mask names a column that is not there
	// writable are hidden columns that may be written all the same, and nullMasks
	// the parameters that are, where NULL would be the mask.
	writable  map[uint32]map[string]bool
	nullMasks []int
}

// newMasking returns nil when no mask names a column.
func newMasking(cat *catalog.Snapshot, lib *library, masks []access.Mask) *masking {
	m := &masking{cat: cat, library: lib, columns: map[uint32]map[string]bool{}, broken: map[uint32]string{}}
	named := false
	for _, mask := range masks {
		if mask.Column != "" {
			named = true
			m.name(mask.Column)
		}
	}
	if !named {
		return nil
	}
	return m
}

// name hides the column that schema.table.column means. A part may itself hold
// dots, so every way to cut the name is tried.
func (m *masking) name(full string) {
	var missing []*catalog.Relation
	found := false
	for i := range full {
		for j := i + 1; j < len(full); j++ {
			if full[i] != '.' || full[j] != '.' {
				continue
			}
			r := m.cat.Relation(full[:i], full[i+1:j])
			if r == nil {
				continue
			}
			if r.Column(full[j+1:]) == nil {
				missing = append(missing, r)
				continue
			}
			found = true
			m.hide(r, full[j+1:])
		}
	}
	if !found {
		for _, r := range missing {
			m.broken[r.OID] = full
		}
	}
}

func (m *masking) hide(r *catalog.Relation, column string) {
	if r == nil || r.Column(column) == nil || m.columns[r.OID][column] {
		return
	}
	if m.columns[r.OID] == nil {
		m.columns[r.OID] = map[string]bool{}
	}
	m.columns[r.OID][column] = true
	for _, c := range r.Columns {
		for _, from := range c.From {
			if from == column {
				m.hide(r, c.Name)
			}
		}
	}
	for _, oid := range m.cat.Children(r.OID) {
		m.hide(m.cat.RelationByOID(oid), column)
	}
	for _, oid := range r.Parents {
		m.hide(m.cat.RelationByOID(oid), column)
	}
}

// mayWrite lets columns, schema.table.column, be written, with those of the
// table's partitions and children.
func (m *masking) mayWrite(columns []string) {
	for _, full := range columns {
		for i := range full {
			for j := i + 1; j < len(full); j++ {
				if full[i] != '.' || full[j] != '.' {
					continue
				}
				for _, r := range m.family(m.cat.Relation(full[:i], full[i+1:j])) {
					if m.writable == nil {
						m.writable = map[uint32]map[string]bool{}
					}
					if m.writable[r.OID] == nil {
						m.writable[r.OID] = map[string]bool{}
					}
					m.writable[r.OID][full[j+1:]] = true
				}
			}
		}
	}
}

// hidden reports whether anything of a relation is hidden.
func (m *masking) hidden(r *catalog.Relation) bool { return r != nil && len(m.columns[r.OID]) > 0 }

// first is the name of a hidden column in l, "" when there is none.
func (m *masking) first(l lineage) string {
	name := ""
	for key := range l {
		if !m.columns[key.relation][key.name] {
			continue
		}
		full := m.cat.RelationByOID(key.relation).Qualified() + "." + key.name
		if name == "" || full < name {
			name = full
		}
	}
	return name
}

const liftHint = "Leave the column out here; where the value itself is needed, ask for a rule that does not mask it."

// maskedField refuses an operation on a hidden column.
func maskedField(text string, location int32, hint, format string, args ...any) *Refusal {
	return &Refusal{
		Reason: access.MaskedField, SQLState: "42501", Message: fmt.Sprintf(format, args...),
		Position: charPosition(text, location), Hint: hint,
	}
}

// check refuses what cannot be computed on masks, nil when nothing is in the
// way of rewriting.
func (m *masking) check(st *Statement) *Refusal {
	b := st.body.bound
	for _, ref := range b.references {
		if r := m.checkReference(st, ref); r != nil {
			return r
		}
	}
	if len(st.Action.Unknown) > 0 {
		return &Refusal{
			Reason: access.Unsupported, SQLState: "0A000",
			Message: "columns are masked here, and " + st.Action.Unknown[0],
			Hint:    "Use PostgreSQL's own functions and types, or ask the operator to vouch for this one (curated functions).",
		}
	}
	for _, u := range b.uses {
		if r := m.checkUse(st, u); r != nil {
			return r
		}
	}
	for _, c := range b.changes {
		if r := m.checkChange(st, c); r != nil {
			return r
		}
	}
	for _, g := range b.groupings {
		if r := m.checkGrouping(st, g); r != nil {
			return r
		}
	}
	return nil
}

// checkReference refuses relations through which a hidden value might be read,
// and forms of naming a relation that a subquery cannot take over.
func (m *masking) checkReference(st *Statement, ref *reference) *Refusal {
	r, text := ref.relation, st.Text
	if full, ok := m.broken[r.OID]; ok {
		return maskedField(text, ref.location, "Tell the operator: the policy and the table no longer agree.",
			"%s is to be masked, but %s has no such column", full, r.Qualified())
	}
	if hint := m.unclean(r); hint != "" {
		return maskedField(text, ref.location, hint, "%s may hold masked values", r.Qualified())
	}
	if facts, ok := st.body.viewReads[r]; ok {
		if refusal := m.checkView(text, ref, facts); refusal != nil {
			return refusal
		}
	}
	if refusal := m.checkPartition(st, ref); refusal != nil {
		return refusal
	}
	if !m.hidden(r) || ref.target {
		return nil
	}
	if len(ref.systems) > 0 && (ref.everything || ref.natural) { // they would be columns like others
		return maskedField(text, ref.location, "Name the columns, "+ref.systems[0]+" among them.",
			"%s has masked columns, and its system column %s cannot be read beside * or the whole row", r.Qualified(), ref.systems[0])
	}
	return nil
}

// unclean says what to do instead when a relation may hold values of others.
func (m *masking) unclean(r *catalog.Relation) string {
	switch {
	case r.Kind == catalog.ForeignTable && !m.hidden(r):
		return "Foreign tables are not read where columns are masked: what is behind them is not known."
	case r.Schema == "pg_catalog" && !m.library.catalogs[r.Name]:
		return "Use the catalogs that hold definitions only, such as pg_class and pg_attribute."
	case r.Schema == "information_schema" && m.library.information[r.Name]:
		return "Use the views that hold definitions only, such as information_schema.columns."
	}
	return ""
}

// checkView refuses a view that reads what may hold masked values, or whose rows
// a hidden column decides on: which rows it has would tell of the value.
func (m *masking) checkView(text string, ref *reference, f viewFacts) *Refusal {
	name := ref.relation.Qualified()
	for _, oid := range f.reads {
		source := "a relation that is not known"
		if r := m.cat.RelationByOID(oid); r != nil {
			source = r.Qualified()
			if m.broken[oid] == "" && m.unclean(r) == "" {
				continue
			}
		}
		return maskedField(text, ref.location, "Read the tables behind it that have no masked columns.",
			"%s reads %s, which may hold masked values", name, source)
	}
	for _, oid := range f.reads {
		if column := m.partitionKey(m.cat.RelationByOID(oid)); column != "" {
			return maskedField(text, ref.location, "Read the table that is partitioned.",
				"%s reads a partition chosen by %s, which is masked: its rows would tell of the value", name, column)
		}
	}
	for _, oid := range f.placed {
		if column := m.splits(m.cat.RelationByOID(oid)); column != "" {
			return maskedField(text, ref.location, "Read the table that is partitioned.",
				"%s shows the partitions of rows, which %s chooses, and that is masked", name, column)
		}
	}
	for _, u := range f.decided {
		if column := m.first(u.columns); column != "" {
			return maskedField(text, ref.location, "Read the tables behind it: their masked columns are masked there.",
				"%s uses %s, which is masked, in %s: its rows would tell of the value", name, column, u.clause)
		}
	}
	return nil
}

// views hides the columns of views that are computed from hidden ones.
func (m *masking) views(facts map[*catalog.Relation]viewFacts) {
	for v, f := range facts {
		for column, from := range f.shown {
			if m.first(from) != "" {
				m.hide(v, column)
			}
		}
	}
}

// checkUse refuses a hidden column where its value would decide on something,
// and anywhere in a statement that changes data.
func (m *masking) checkUse(st *Statement, u use) *Refusal {
	name := m.first(u.columns)
	switch {
	case name == "":
		return nil
	case len(st.body.bound.changes) > 0:
		return maskedField(st.Text, u.location, "Name the columns that are not masked. "+liftHint,
			"%s is masked and cannot take part in %s: masks would be stored or rows chosen by them", name, st.body.bound.changes[0].command)
	case u.clause != "":
		return maskedField(st.Text, u.location, liftHint,
			"%s is masked and cannot be used in %s: the answer would be computed on the mask", name, u.clause)
	}
	return nil
}

// checkChange refuses writes to hidden columns, and writes whose constraints or
// triggers would answer questions about them.
func (m *masking) checkChange(st *Statement, c *change) *Refusal {
	for _, r := range m.family(c.ref.relation) {
		for _, t := range r.Triggers {
			if t.SecurityDefiner || m.hidden(r) {
				return maskedField(st.Text, c.ref.location, "Ask for a rule that does not mask the column.",
					"the trigger %s of %s may show masked values", t.Name, r.Qualified())
			}
		}
		for column := range c.written {
			if !m.columns[r.OID][column] {
				continue
			}
			if !m.writable[r.OID][column] {
				return maskedField(st.Text, c.ref.location, "Name the columns to write, without the masked ones, or ask for a rule with write_masked.",
					"%s.%s is masked and cannot be written", r.Qualified(), column)
			}
			if refusal := m.checkWritten(st, c, r, column); refusal != nil {
				return refusal
			}
		}
		for _, k := range r.Constraints {
			if name := m.answers(r, k, c.written); name != "" {
				return maskedField(st.Text, c.ref.location, "Ask for a rule that does not mask the column.",
					"a constraint of %s would tell whether a value of %s exists", r.Qualified(), name)
			}
		}
	}
	return m.checkCascades(st, c)
}

// checkWritten looks at what is written to a hidden column that a rule lets be
// written. A mask that comes back would destroy the value: the session knows
// those of text by their mark; where the mask is NULL, NULL is refused here.
func (m *masking) checkWritten(st *Statement, c *change, r *catalog.Relation, column string) *Refusal {
	if c.command == "COPY" {
		return maskedField(st.Text, c.ref.location, "Use INSERT.", "%s.%s is masked and cannot be written by COPY: what comes is not looked at", r.Qualified(), column)
	}
	if !strings.HasPrefix(m.constant(r.Column(column)), "NULL") {
		return nil
	}
	for _, value := range c.values[column] {
		for value.GetTypeCast() != nil {
			value = value.GetTypeCast().GetArg()
		}
		if value.GetAConst().GetIsnull() {
			return maskedField(st.Text, value.GetAConst().GetLocation(), "Leave the column out.",
				"%s.%s is masked by NULL, so that NULL cannot be written to it", r.Qualified(), column)
		}
		if p := value.GetParamRef(); p != nil && !slices.Contains(m.nullMasks, int(p.GetNumber())) {
			m.nullMasks = append(m.nullMasks, int(p.GetNumber()))
		}
	}
	return nil
}

// family is a relation with everything that inherits from it.
func (m *masking) family(r *catalog.Relation) []*catalog.Relation {
	if r == nil {
		return nil
	}
	all, seen := []*catalog.Relation{r}, map[uint32]bool{r.OID: true}
	for i := 0; i < len(all); i++ {
		for _, oid := range m.cat.Children(all[i].OID) {
			if child := m.cat.RelationByOID(oid); child != nil && !seen[oid] {
				seen[oid] = true
				all = append(all, child)
			}
		}
	}
	return all
}

// answers is the hidden column that a constraint compares written ones with. One
// that a rule lets be written is known to its writer.
func (m *masking) answers(r *catalog.Relation, k catalog.Constraint, written map[string]bool) string {
	takesPart := false
	for _, column := range k.Columns {
		takesPart = takesPart || written[column]
	}
	if !takesPart {
		return ""
	}
	for _, column := range k.Columns {
		if m.columns[r.OID][column] && !(written[column] && m.writable[r.OID][column]) {
			return r.Qualified() + "." + column
		}
	}
	if other := m.cat.RelationByOID(k.References); other != nil {
		for _, column := range k.Referenced {
			if m.columns[other.OID][column] {
				return other.Qualified() + "." + column
			}
		}
	}
	return ""
}

// checkGrouping refuses columns that only a primary key makes single-valued,
// for a subquery has none, where they cannot be added to GROUP BY.
func (m *masking) checkGrouping(st *Statement, g *grouping) *Refusal {
	for _, u := range m.dependent(g) {
		r, c := u.source.relation, u.source.relation.Column(u.column)
		if !g.sets && g.location >= 0 && !g.rows[u.source] && groupable(c) {
			continue
		}
		return maskedField(st.Text, g.bare[u], "Add "+u.column+" to GROUP BY, or use min("+u.column+") or array_agg("+u.column+").",
			"%s has masked columns, so that %s.%s must appear in GROUP BY itself", r.Qualified(), r.Qualified(), u.column)
	}
	return nil
}

// dependent are the columns of hidden relations that are used ungrouped and that
// the relation's primary key in GROUP BY makes single-valued.
func (m *masking) dependent(g *grouping) []bareColumn {
	var list []bareColumn
	for u := range g.bare {
		if m.hidden(u.source.relation) && !g.keys[u] && groupedByKey(g, u.source, u.source.relation) {
			list = append(list, u)
		}
	}
	slices.SortFunc(list, func(a, b bareColumn) int {
		return cmp.Or(cmp.Compare(g.bare[a], g.bare[b]), cmp.Compare(a.column, b.column))
	})
	return list
}

// grouped is what GROUP BY needs besides, "" for nothing: columns that are the
// same within each group, so that the groups stay.
func (m *masking) grouped(g *grouping) string {
	var text strings.Builder
	for _, u := range m.dependent(g) {
		i := slices.IndexFunc(u.source.outputs, func(o output) bool { return o.column == u.column })
		text.WriteString(catalog.QuoteIdentifier(u.source.alias) + "." + catalog.QuoteIdentifier(u.source.outputs[i].name) + ", ")
	}
	return text.String()
}

// groupable reports whether values of a column can be compared for equality.
func groupable(c *catalog.Column) bool {
	if c.TypeSchema != "pg_catalog" {
		return c.TypeKind == "e"
	}
	switch c.TypeName {
	case "text", "varchar", "bpchar", "name", "int2", "int4", "int8", "numeric", "float4", "float8", "bool", "date", "time", "timetz",
		"timestamp", "timestamptz", "interval", "uuid", "jsonb", "bytea", "oid", "inet", "cidr", "money":
		return true
	}
	return false
}

func groupedByKey(g *grouping, src *source, r *catalog.Relation) bool {
	key := r.PrimaryKey()
	for _, column := range key {
		if !g.keys[bareColumn{src, column}] {
			return false
		}
	}
	return len(key) > 0
}

// constant is the SQL text of a column's mask: of its exact type, every name
// qualified, "***" where the type has room for it and NULL elsewhere.
func (m *masking) constant(c *catalog.Column) string {
	schema := catalog.QuoteIdentifier(c.TypeSchema) + "."
	if c.TypeSchema != "pg_catalog" {
		if c.TypeKind != "e" && !m.library.extensions[c.Extension] {
			return "NULL::pg_catalog.text" // the type's own functions are not known
		}
	}
	if element, ok := strings.CutPrefix(c.TypeName, "_"); ok {
		return "NULL::" + schema + catalog.QuoteIdentifier(element) + modifier(element, c) + "[]"
	}
	typ := schema + catalog.QuoteIdentifier(c.TypeName) + modifier(c.TypeName, c)
	switch c.TypeName {
	case "text", "varchar", "bpchar":
		if c.TypeSchema == "pg_catalog" {
			if c.Typmod >= 0 && c.Typmod-4 < 3 { // characters; typmods count the length word
				return "NULL::" + typ + collate(c)
			}
			return "'***'::" + typ + collate(c)
		}
	}
	return "NULL::" + typ
}

// modifier is what follows a type's name in parentheses, "" for none.
func modifier(typ string, c *catalog.Column) string {
	if c.Typmod < 0 || c.TypeSchema != "pg_catalog" {
		return ""
	}
	switch typ {
	case "varchar", "bpchar":
		return fmt.Sprintf("(%d)", c.Typmod-4)
	case "numeric":
		n := c.Typmod - 4 // 16 bits of precision over 11 of scale, which has a sign
		return fmt.Sprintf("(%d,%d)", n>>16&0xffff, (n&0x7ff^1024)-1024)
	case "bit", "varbit", "time", "timetz", "timestamp", "timestamptz":
		return fmt.Sprintf("(%d)", c.Typmod)
	}
	return ""
}

func collate(c *catalog.Column) string {
	if c.Collation == "" {
		return ""
	}
	return " COLLATE " + c.Collation
}
