package sql

import (
	"context"
	"strconv"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// Options of DECLARE as the grammar gives them (CURSOR_OPT_… in the server).
const (
	cursorBinary = 0x0001
	cursorHold   = 0x0020
	cursorKnown  = 0x013f // those, SCROLL, NO SCROLL, INSENSITIVE, ASENSITIVE, and a hint to the planner
)

// judgeDeclare judges DECLARE as the query that its cursor will read.
func (a *Analyzer) judgeDeclare(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result, d *pg.DeclareCursorStmt) (*Statement, error) {
	st, err := a.judgeInner(ctx, text, cat, parsed, d.GetQuery(), "DECLARE CURSOR")
	if err != nil {
		return nil, err
	}
	st.Name, st.Hold, st.Binary = d.GetPortalname(), d.GetOptions()&cursorHold != 0, d.GetOptions()&cursorBinary != 0
	switch {
	case st.Refusal != nil:
	case d.GetOptions()&^cursorKnown != 0:
		st.refused(unsupported("DECLARE CURSOR with these options", "Use SCROLL, NO SCROLL, INSENSITIVE and WITH HOLD."))
	case st.Kind != KindQuery:
		st.refused(unsupported("DECLARE CURSOR of a statement that changes data", "Declare the cursor for a SELECT."))
	default:
		st.Kind, st.ReturnsRows = KindDeclare, false
	}
	if st.Refusal != nil {
		st.Straight, st.ReturnsRows = KindDeclare, false
	}
	return st, nil
}

// judgeInner judges the query inside another statement.
func (a *Analyzer) judgeInner(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result, query *pg.Node, command string) (*Statement, error) {
	switch query.GetNode().(type) {
	case *pg.Node_SelectStmt, *pg.Node_InsertStmt, *pg.Node_UpdateStmt, *pg.Node_DeleteStmt, *pg.Node_MergeStmt:
		return a.judgeQuery(ctx, text, cat, parsed, query)
	}
	st := a.judgeOther(text, cat, query)
	return st.refused(unsupported(command+" of this statement", "Use a SELECT, INSERT, UPDATE, DELETE or MERGE.")), nil
}

// judgeFetch judges FETCH and MOVE by themselves. What they read is known to
// the session alone, which has the cursor's query.
func judgeFetch(text string, cat *catalog.Snapshot, f *pg.FetchStmt) *Statement {
	st := sessionStatement(text, cat, KindFetch, "FETCH")
	st.Action.Session, st.Action.ReadOnly, st.Name, st.ReturnsRows = false, false, f.GetPortalname(), true
	if f.GetIsmove() {
		st.Action.Command, st.ReturnsRows = "MOVE", false
	}
	st.Action.Unknown = []string{"what the cursor reads is not known"}
	return st
}

// judgePrepare judges PREPARE as the statement that it prepares.
func (a *Analyzer) judgePrepare(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result, p *pg.PrepareStmt) (*Statement, error) {
	types := newBinder(text, cat, a.library)
	for _, n := range p.GetArgtypes() {
		types.typeName(n.GetTypeName())
		types.refuseOwnType(n.GetTypeName())
	}
	st, err := a.judgeInner(ctx, text, cat, parsed, p.GetQuery(), "PREPARE")
	if err != nil {
		return nil, err
	}
	st.Name, st.Parameters = p.GetName(), 0 // they are those of EXECUTE
	st.Action.Unknown = unite(st.Action.Unknown, sortedKeys(types.unknown))
	st.Action.ReadOnly = st.Action.ReadOnly && len(st.Action.Unknown) == 0
	if st.Refusal == nil && types.refusal != nil {
		st.refused(types.refusal)
	}
	if st.Refusal == nil {
		st.Kind = KindPrepare
	}
	st.Straight, st.ReturnsRows = KindPrepare, false
	return st, nil
}

// refuseOwnType refuses a parameter of a type outside pg_catalog: it would
// choose functions and operators that the judge has not seen.
func (b *binder) refuseOwnType(t *pg.TypeName) {
	if b.ownTypes {
		b.unhandled(t.GetLocation(), "a parameter of a type that is not one of PostgreSQL's own", "Leave the type to the database.")
	}
}

// judgeExecute judges EXECUTE by itself: what it runs is known to the session.
// Its arguments are constants, so that they can be judged and recorded as
// values.
func (a *Analyzer) judgeExecute(text string, cat *catalog.Snapshot, e *pg.ExecuteStmt) *Statement {
	st := sessionStatement(text, cat, KindExecute, "EXECUTE")
	st.Action.Session, st.Action.ReadOnly, st.Name, st.ReturnsRows = false, false, e.GetName(), true
	st.Action.Unknown = []string{"what the prepared statement does is not known"}
	b := newBinder(text, cat, a.library)
	for _, n := range e.GetParams() {
		value, ok := b.constantArgument(n)
		if !ok {
			b.unhandled(-1, "EXECUTE with an argument that is not a constant, or is cast to a type that may change it,", "Write the value itself.")
			break
		}
		st.Arguments = append(st.Arguments, value)
	}
	b.settle()
	for doubt := range b.unknown {
		b.unhandled(-1, "EXECUTE with an argument whose type is not known to be harmless", "Write a plain constant; "+doubt+".")
	}
	if b.refusal != nil {
		return st.refused(b.refusal)
	}
	return st
}

// constantArgument is a constant as a bound value. It may have a cast that says
// how it is read, but none that makes another value of it: '99'::char(1)::int
// would be decided as 99 and run as 9.
func (b *binder) constantArgument(n *pg.Node) (access.BoundParameter, bool) {
	if cast := n.GetTypeCast(); cast != nil {
		b.casts = true
		b.typeName(cast.GetTypeName())
		n = cast.GetArg()
		if !keepsValue(n.GetAConst(), cast.GetTypeName()) {
			return access.BoundParameter{}, false
		}
	}
	return constantValue(n.GetAConst())
}

// Types whose values are what a constant of each kind says. Of those that cut,
// such as "char" and name, or round, none is here.
const (
	typesOfInteger = " int4 int8 numeric text "
	typesOfDecimal = " numeric text "
	typesOfString  = " bool int2 int4 int8 numeric float8 text varchar bytea uuid date time timetz timestamp timestamptz interval json jsonb inet cidr oid "
)

// keepsValue reports whether a cast leaves a constant the value that it shows.
func keepsValue(c *pg.A_Const, t *pg.TypeName) bool {
	names, ok := stringsOf(t.GetNames())
	if c == nil || !ok || len(names) == 0 || len(t.GetTypmods()) > 0 || len(t.GetArrayBounds()) > 0 || t.GetSetof() || t.GetPctType() {
		return false
	}
	name := " " + names[len(names)-1] + " "
	switch {
	case c.GetIsnull():
		return true
	case c.GetBoolval() != nil:
		return name == " bool "
	case c.GetIval() != nil:
		return strings.Contains(typesOfInteger, name)
	case c.GetFval() != nil:
		return strings.Contains(typesOfDecimal, name)
	case c.GetSval() != nil:
		return strings.Contains(typesOfString, name)
	}
	return false
}

func constantValue(c *pg.A_Const) (access.BoundParameter, bool) {
	switch {
	case c == nil:
		return access.BoundParameter{}, false
	case c.GetIsnull():
		return access.BoundParameter{Null: true}, true
	case c.GetSval() != nil:
		return access.BoundParameter{Value: c.GetSval().GetSval()}, true
	case c.GetIval() != nil:
		return access.BoundParameter{Value: strconv.Itoa(int(c.GetIval().GetIval()))}, true
	case c.GetFval() != nil:
		return access.BoundParameter{Value: c.GetFval().GetFval()}, true
	case c.GetBoolval() != nil:
		return access.BoundParameter{Value: strconv.FormatBool(c.GetBoolval().GetBoolval())}, true
	case c.GetBsval() != nil:
		return access.BoundParameter{Value: c.GetBsval().GetBsval()}, true
	}
	return access.BoundParameter{}, false
}

// judgeClose judges CLOSE; judgeDeallocate DEALLOCATE. Both only let go.
func judgeClose(text string, cat *catalog.Snapshot, c *pg.ClosePortalStmt) *Statement {
	st := sessionStatement(text, cat, KindClose, "CLOSE")
	st.Name = c.GetPortalname()
	return st
}

func judgeDeallocate(text string, cat *catalog.Snapshot, d *pg.DeallocateStmt) *Statement {
	st := sessionStatement(text, cat, KindDeallocate, "DEALLOCATE")
	st.Name = d.GetName()
	return st
}
