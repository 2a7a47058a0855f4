package sql

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// A body is what binding found, for Mask.
type body struct {
	parsed    *parser.Result
	bound     *binder
	viewReads map[*catalog.Relation]viewFacts
	explained bool // under EXPLAIN
}

func newAnalyzer(c Config) (*Analyzer, error) {
	if c.Parser == nil {
		return nil, errors.New("sql: no parser")
	}
	for _, f := range c.CuratedFunctions {
		if !curatedName.MatchString(f) {
			return nil, fmt.Errorf("sql: curated function %q is not schema.name or schema.name(types)", f)
		}
	}
	return &Analyzer{
		parser: c.Parser, library: newLibrary(c.CuratedFunctions), grammar: newGrammar(),
		views: &viewCache{entries: map[viewKey]viewFacts{}},
	}, nil
}

func (a *Analyzer) analyze(ctx context.Context, text string, cat *catalog.Snapshot) (*Statement, error) {
	parsed, err := a.parser.Parse(ctx, text)
	var verdict *parser.Error
	if errors.As(err, &verdict) {
		return unparsed(text, cat, verdict), nil
	}
	if err != nil {
		return nil, fmt.Errorf("analyze: %w", err)
	}
	return a.judge(ctx, text, cat, parsed)
}

// unparsed is the statement for a text without a tree.
func unparsed(text string, cat *catalog.Snapshot, e *parser.Error) *Statement {
	hint := "Send one statement of PostgreSQL's grammar, version 17."
	if strings.HasPrefix(e.SQLState, "54") {
		hint = "Split it, or pass long lists as a parameter: = ANY ($1)."
	}
	return &Statement{
		Text: text,
		Action: access.SQL{
			Text: text, SearchPath: cat.SearchPath(), Unknown: []string{"the statement cannot be read: " + e.Message},
		},
		Straight: KindStraight,
		Refusal: &Refusal{
			Reason: access.Unreadable, SQLState: e.SQLState, Message: e.Message, Position: e.Position, Hint: hint,
		},
	}
}

// judge judges each statement of a message. The action of several is that of
// all together, with the first one's refusal.
func (a *Analyzer) judge(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result) (*Statement, error) {
	list := parsed.Tree.GetStmts()
	if len(list) == 0 {
		return &Statement{Text: text, Kind: KindEmpty, Action: access.SQL{Text: text, ReadOnly: true, SearchPath: cat.SearchPath()}}, nil
	}
	if len(list) == 1 {
		return a.judgeOne(ctx, text, cat, parsed, list[0].GetStmt())
	}
	all := &Statement{Text: text, Parts: partsOf(text, list), Refusal: &Refusal{
		Reason: access.Unsupported, SQLState: "42601",
		Message: fmt.Sprintf("cannot insert multiple commands into a prepared statement (there are %d)", len(list)),
		Hint:    "Prepare one statement at a time, or send them together in the simple protocol.",
	}}
	for _, raw := range list {
		st, err := a.judgeOne(ctx, text, cat, parsed, raw.GetStmt())
		if err != nil {
			return nil, err
		}
		all.Action = together(all.Action, st.Action)
	}
	all.Action.Text, all.Action.SearchPath, all.Action.Statements = text, cat.SearchPath(), len(list)
	all.Action.Command, all.Action.ReadOnly, all.Action.HasWhere = "", false, false
	all.Action.Unknown = append(all.Action.Unknown, "more than one statement")
	return all, nil
}

// partsOf cuts a message where the server does.
func partsOf(text string, list []*pg.RawStmt) []Part {
	parts := make([]Part, len(list))
	for i, raw := range list {
		start, end := int(raw.GetStmtLocation()), len(text)
		if n := int(raw.GetStmtLen()); n > 0 {
			end = start + n
		}
		whole := text[start:end]
		trimmed := strings.TrimLeft(whole, " \t\r\n\f\v")
		start += len(whole) - len(trimmed)
		parts[i] = Part{Text: trimmed, Offset: charPosition(text, int32(start)) - 1}
	}
	return parts
}

func together(a, b access.SQL) access.SQL {
	a.Tables, a.Reads, a.Writes = unite(a.Tables, b.Tables), unite(a.Reads, b.Reads), unite(a.Writes, b.Writes)
	a.Columns, a.Functions, a.Unknown = unite(a.Columns, b.Columns), unite(a.Functions, b.Functions), unite(a.Unknown, b.Unknown)
	a.Channels = unite(a.Channels, b.Channels)
	a.Locks, a.DDL, a.Session = a.Locks || b.Locks, a.DDL || b.DDL, a.Session || b.Session
	a.Privilege = a.Privilege || b.Privilege
	return a
}

func unite(a, b []string) []string {
	all := append(slices.Clone(a), b...)
	slices.Sort(all)
	return slices.Compact(all)
}

func (a *Analyzer) judgeOne(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result, node *pg.Node) (*Statement, error) {
	if st := judgeUnlock(text, cat, node.GetSelectStmt()); st != nil {
		return st, nil
	}
	switch s := node.GetNode().(type) {
	case *pg.Node_SelectStmt, *pg.Node_InsertStmt, *pg.Node_UpdateStmt, *pg.Node_DeleteStmt, *pg.Node_MergeStmt:
		return a.judgeQuery(ctx, text, cat, parsed, node)
	case *pg.Node_ExplainStmt:
		return a.judgeExplain(ctx, text, cat, parsed, s.ExplainStmt)
	case *pg.Node_TransactionStmt:
		return judgeTransaction(text, cat, s.TransactionStmt), nil
	case *pg.Node_VariableSetStmt:
		return judgeSet(text, cat, s.VariableSetStmt), nil
	case *pg.Node_DeclareCursorStmt:
		return a.judgeDeclare(ctx, text, cat, parsed, s.DeclareCursorStmt)
	case *pg.Node_FetchStmt:
		return judgeFetch(text, cat, s.FetchStmt), nil
	case *pg.Node_ClosePortalStmt:
		return judgeClose(text, cat, s.ClosePortalStmt), nil
	case *pg.Node_PrepareStmt:
		return a.judgePrepare(ctx, text, cat, parsed, s.PrepareStmt)
	case *pg.Node_ExecuteStmt:
		return a.judgeExecute(text, cat, s.ExecuteStmt), nil
	case *pg.Node_DeallocateStmt:
		return judgeDeallocate(text, cat, s.DeallocateStmt), nil
	case *pg.Node_CopyStmt:
		return a.judgeCopy(ctx, text, cat, parsed, s.CopyStmt)
	case *pg.Node_DiscardStmt:
		return judgeDiscard(text, cat, s.DiscardStmt), nil
	case *pg.Node_UnlistenStmt:
		return sessionStatement(text, cat, KindReset, "UNLISTEN"), nil
	case *pg.Node_ListenStmt:
		return judgeChannel(text, cat, KindListen, "LISTEN", s.ListenStmt.GetConditionname()), nil
	case *pg.Node_NotifyStmt:
		return judgeChannel(text, cat, KindNotify, "NOTIFY", s.NotifyStmt.GetConditionname()), nil
	case *pg.Node_VariableShowStmt:
		return judgeShow(text, cat, s.VariableShowStmt), nil
	}
	return a.judgeOther(text, cat, node), nil
}

// judgeQuery binds a SELECT, INSERT, UPDATE, DELETE or MERGE.
func (a *Analyzer) judgeQuery(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result, node *pg.Node) (*Statement, error) {
	b := newBinder(text, cat, a.library)
	b.refusal = a.grammar.check(node)
	st := &Statement{Text: text, Kind: KindChange, Action: access.SQL{Text: text, SearchPath: cat.SearchPath(), Statements: 1}}
	switch s := node.GetNode().(type) {
	case *pg.Node_SelectStmt:
		b.selectStmt(s.SelectStmt, nil, nil)
		st.Kind, st.ReturnsRows, st.Action.Command = KindQuery, true, "SELECT"
		st.Action.HasWhere = s.SelectStmt.GetWhereClause() != nil
	case *pg.Node_InsertStmt:
		b.insert(s.InsertStmt, nil)
		st.ReturnsRows, st.Action.Command = len(s.InsertStmt.GetReturningList()) > 0, "INSERT"
	case *pg.Node_UpdateStmt:
		b.update(s.UpdateStmt, nil)
		st.ReturnsRows, st.Action.Command = len(s.UpdateStmt.GetReturningList()) > 0, "UPDATE"
	case *pg.Node_DeleteStmt:
		b.delete(s.DeleteStmt, nil)
		st.ReturnsRows, st.Action.Command = len(s.DeleteStmt.GetReturningList()) > 0, "DELETE"
	case *pg.Node_MergeStmt:
		b.merge(s.MergeStmt, nil)
		st.ReturnsRows, st.Action.Command = len(s.MergeStmt.GetReturningList()) > 0, "MERGE"
	}
	if b.unseen(node) != nil || b.lost() != nil {
		b.unhandled(-1, "a part of the statement that was not bound", "")
	}
	b.settle()
	views, err := a.followViews(ctx, cat, b)
	if err != nil {
		return nil, err
	}
	if err := a.followUnnamed(ctx, cat, b); err != nil {
		return nil, err
	}
	st.body = &body{parsed: parsed, bound: b, viewReads: views}
	b.describe(st)
	return st, nil
}

// describe writes what was bound into the statement's action.
func (b *binder) describe(st *Statement) {
	act := &st.Action
	if b.into != nil {
		act.Command = "SELECT INTO"
		b.writes[b.newName(b.into)] = true
		b.refuse(unsupported("SELECT INTO", "Run the SELECT and keep its result on your side."))
	}
	if len(b.changes) > 0 {
		b.describeChanges(st)
	}
	act.Reads, act.Writes = sortedKeys(b.reads), sortedKeys(b.writes)
	act.Tables = unite(act.Reads, act.Writes)
	act.Columns, act.Functions = sortedKeys(b.columns), sortedKeys(b.functions)
	act.Locks = b.locks
	st.Parameters = int(b.parameters)
	if b.refusal != nil {
		st.Refusal, st.Straight, st.Kind = b.refusal, st.Kind, KindRefused
		b.doubt("%s", b.refusal.Message)
	}
	act.Unknown = sortedKeys(b.unknown)
	act.ReadOnly = st.Kind == KindQuery && len(act.Writes) == 0 && !act.Locks && len(act.Unknown) == 0
}

// describeChanges names what a statement changes. A SELECT whose WITH deletes
// is a DELETE: nothing that asks for SELECT by name lets it through.
func (b *binder) describeChanges(st *Statement) {
	commands, where := map[string]bool{}, true
	for _, c := range b.changes {
		commands[c.command] = true
		where = where && (c.where || c.command == "INSERT")
	}
	if only := slices.Collect(maps.Keys(commands)); len(only) == 1 {
		st.Action.Command = only[0]
	} else {
		st.Action.Command = "WITH"
	}
	st.Kind = KindChange
	st.Action.HasWhere = where && !(len(commands) == 1 && commands["INSERT"])
}

// newName is schema.name of a relation that a statement makes.
func (b *binder) newName(v *pg.RangeVar) string {
	if v.GetSchemaname() != "" {
		return v.GetSchemaname() + "." + v.GetRelname()
	}
	if v.GetRelpersistence() == "t" {
		return "pg_temp." + v.GetRelname()
	}
	for _, s := range b.path {
		if s != "pg_catalog" && !strings.HasPrefix(s, "pg_temp") {
			return s + "." + v.GetRelname()
		}
	}
	return v.GetRelname()
}

// judgeExplain judges EXPLAIN: with ANALYZE as the statement itself, for it
// runs it.
func (a *Analyzer) judgeExplain(ctx context.Context, text string, cat *catalog.Snapshot, parsed *parser.Result, e *pg.ExplainStmt) (*Statement, error) {
	switch e.GetQuery().GetNode().(type) {
	case *pg.Node_SelectStmt, *pg.Node_InsertStmt, *pg.Node_UpdateStmt, *pg.Node_DeleteStmt, *pg.Node_MergeStmt:
	default:
		st := a.judgeOther(text, cat, e.GetQuery())
		return st.refused(unsupported("EXPLAIN of this statement", "Explain a SELECT, INSERT, UPDATE, DELETE or MERGE.")), nil
	}
	st, err := a.judgeQuery(ctx, text, cat, parsed, e.GetQuery())
	if err != nil {
		return nil, err
	}
	st.body.explained = true
	st.ReturnsRows = true
	if !analyzes(e) { // otherwise it is the statement itself: it runs
		st.Action.Command = "EXPLAIN"
	}
	if r := explainOptions(e); r != nil && st.Refusal == nil {
		st.refused(r)
	}
	return st, nil
}

func analyzes(e *pg.ExplainStmt) bool {
	for _, n := range e.GetOptions() {
		if n.GetDefElem().GetDefname() == "analyze" && !isOff(n.GetDefElem().GetArg()) {
			return true
		}
	}
	return false
}

// isOff reports whether an option's value is plainly false.
func isOff(n *pg.Node) bool {
	if b := n.GetBoolean(); b != nil {
		return !b.GetBoolval()
	}
	if i := n.GetInteger(); i != nil {
		return i.GetIval() == 0
	}
	switch strings.ToLower(n.GetString_().GetSval()) {
	case "off", "false":
		return true
	}
	return false
}

// explainOptions refuses options that are not known to change the plan's
// rendering only.
func explainOptions(e *pg.ExplainStmt) *Refusal {
	for _, n := range e.GetOptions() {
		switch name := n.GetDefElem().GetDefname(); name {
		case "analyze", "verbose", "costs", "settings", "generic_plan", "summary", "format", "memory", "buffers",
			"wal", "timing", "serialize":
		default:
			return unsupported("EXPLAIN with "+strings.ToUpper(name), "Use ANALYZE, VERBOSE, COSTS, SETTINGS, BUFFERS, WAL, TIMING, SUMMARY or FORMAT.")
		}
	}
	return nil
}
