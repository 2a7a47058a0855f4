package sql

import (
	"strings"
	"unicode"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// judgeOther judges what is neither a query nor about the session: definitions,
// by what they name, and forms that are refused by name. None of it is run, and
// none of it is ever read-only.
func (a *Analyzer) judgeOther(text string, cat *catalog.Snapshot, node *pg.Node) *Statement {
	st := &Statement{Text: text, Straight: KindStraight, Action: access.SQL{Text: text, SearchPath: cat.SearchPath(), Statements: 1}}
	inner := contained(node.ProtoReflect())
	if !inner.IsValid() {
		st.Refusal = unsupported("this statement", "")
		st.Action.Unknown = []string{"the statement is not known"}
		return st
	}
	name := inner.Descriptor().Name()
	st.Action.Command = commandOf(node, name)
	b := newBinder(text, cat, a.library)
	collect(inner.Interface(), func(v *pg.RangeVar) { b.writes[b.named(v)] = true })
	switch a.grammar.forms[name] {
	case formDefinition:
		st.Kind, st.Action.DDL, st.Action.Privilege = KindDefinition, true, a.grammar.privileges[name] || changesPrivilege(node)
		b.dropped(node)
		st.Refusal = unsupported(st.Action.Command, "Definitions run only where no rule masks anything: ask the owner of the database.")
		st.Action.Unknown = []string{"what " + st.Action.Command + " runs, and what goes with it, is not looked into"}
	case formRefused:
		st.Refusal = unsupported(refusedForms[name], formHints[name])
		st.Action.Unknown = []string{refusedForms[name] + " is not looked into"}
	default:
		st.Refusal = unsupported("the statement "+st.Action.Command, "")
		st.Action.Unknown = []string{"the statement " + string(name) + " is not known"}
	}
	st.Action.Session = name == "LoadStmt" || name == "ConstraintsSetStmt"
	st.Action.Reads, st.Action.Writes = sortedKeys(b.reads), sortedKeys(b.writes)
	st.Action.Tables = unite(st.Action.Reads, st.Action.Writes)
	return st
}

// changesPrivilege reports whether a definition that is not about privileges by
// its nature changes who may do what all the same.
func changesPrivilege(node *pg.Node) bool {
	for _, n := range node.GetAlterTableStmt().GetCmds() {
		switch n.GetAlterTableCmd().GetSubtype() {
		case pg.AlterTableType_AT_ChangeOwner, pg.AlterTableType_AT_EnableRowSecurity, pg.AlterTableType_AT_DisableRowSecurity,
			pg.AlterTableType_AT_ForceRowSecurity, pg.AlterTableType_AT_NoForceRowSecurity:
			return true
		}
	}
	for _, n := range node.GetCreateFunctionStmt().GetOptions() {
		if n.GetDefElem().GetDefname() == "security" {
			return true
		}
	}
	for _, n := range node.GetAlterFunctionStmt().GetActions() {
		if n.GetDefElem().GetDefname() == "security" {
			return true
		}
	}
	switch {
	case node.GetDropStmt() != nil:
		return node.GetDropStmt().GetRemoveType() == pg.ObjectType_OBJECT_POLICY
	case node.GetRenameStmt() != nil:
		kind := node.GetRenameStmt().GetRenameType()
		return kind == pg.ObjectType_OBJECT_ROLE || kind == pg.ObjectType_OBJECT_POLICY
	case node.GetCreateSchemaStmt() != nil:
		return node.GetCreateSchemaStmt().GetAuthrole() != nil
	}
	return false
}

// contained is the message inside a Node.
func contained(m protoreflect.Message) protoreflect.Message {
	f := m.WhichOneof(m.Descriptor().Oneofs().Get(0))
	if f == nil {
		return (*pg.Node)(nil).ProtoReflect()
	}
	return m.Get(f).Message()
}

// collect visits every relation that a tree names.
func collect(m proto.Message, visit func(*pg.RangeVar)) {
	if v, ok := m.(*pg.RangeVar); ok {
		visit(v)
		return
	}
	below(m, func(inner proto.Message) bool {
		collect(inner, visit)
		return true
	})
}

// named is schema.name of a relation, existing or not.
func (b *binder) named(v *pg.RangeVar) string {
	if v.GetSchemaname() == "" {
		for _, s := range b.path {
			if r := b.cat.Relation(s, v.GetRelname()); r != nil {
				return r.Qualified()
			}
		}
	}
	return b.newName(v)
}

// dropped adds the relations that DROP names as plain lists of names.
func (b *binder) dropped(node *pg.Node) {
	var objects []*pg.Node
	kind := pg.ObjectType_OBJECT_TYPE_UNDEFINED
	switch s := node.GetNode().(type) {
	case *pg.Node_DropStmt:
		objects, kind = s.DropStmt.GetObjects(), s.DropStmt.GetRemoveType()
	case *pg.Node_CommentStmt:
		objects, kind = []*pg.Node{s.CommentStmt.GetObject()}, s.CommentStmt.GetObjtype()
	case *pg.Node_SecLabelStmt:
		objects, kind = []*pg.Node{s.SecLabelStmt.GetObject()}, s.SecLabelStmt.GetObjtype()
	}
	cut := 0 // names after the relation's own
	switch kind {
	case pg.ObjectType_OBJECT_TABLE, pg.ObjectType_OBJECT_VIEW, pg.ObjectType_OBJECT_MATVIEW, pg.ObjectType_OBJECT_SEQUENCE,
		pg.ObjectType_OBJECT_INDEX, pg.ObjectType_OBJECT_FOREIGN_TABLE:
	case pg.ObjectType_OBJECT_TRIGGER, pg.ObjectType_OBJECT_RULE, pg.ObjectType_OBJECT_POLICY, pg.ObjectType_OBJECT_COLUMN,
		pg.ObjectType_OBJECT_TABCONSTRAINT:
		cut = 1
	default:
		return
	}
	for _, o := range objects {
		parts, ok := stringsOf(o.GetList().GetItems())
		if !ok || len(parts) <= cut {
			continue
		}
		parts = parts[:len(parts)-cut]
		v := &pg.RangeVar{Relname: parts[len(parts)-1]}
		if len(parts) > 1 {
			v.Schemaname = parts[len(parts)-2]
		}
		b.writes[b.named(v)] = true
	}
}

// commandOf is the command as PostgreSQL's tags have it.
func commandOf(node *pg.Node, name protoreflect.Name) string {
	switch s := node.GetNode().(type) {
	case *pg.Node_DropStmt:
		return "DROP " + objectName(s.DropStmt.GetRemoveType())
	case *pg.Node_AlterTableStmt:
		return "ALTER " + objectName(s.AlterTableStmt.GetObjtype())
	case *pg.Node_RenameStmt:
		if t := s.RenameStmt.GetRenameType(); t == pg.ObjectType_OBJECT_COLUMN || t == pg.ObjectType_OBJECT_TABCONSTRAINT {
			return "ALTER " + objectName(s.RenameStmt.GetRelationType())
		}
		return "ALTER " + objectName(s.RenameStmt.GetRenameType())
	case *pg.Node_AlterObjectSchemaStmt:
		return "ALTER " + objectName(s.AlterObjectSchemaStmt.GetObjectType())
	case *pg.Node_AlterOwnerStmt:
		return "ALTER " + objectName(s.AlterOwnerStmt.GetObjectType())
	case *pg.Node_DefineStmt:
		return "CREATE " + objectName(s.DefineStmt.GetKind())
	case *pg.Node_GrantStmt:
		return grantName(s.GrantStmt.GetIsGrant())
	case *pg.Node_GrantRoleStmt:
		return grantName(s.GrantRoleStmt.GetIsGrant())
	case *pg.Node_CreateFunctionStmt:
		if s.CreateFunctionStmt.GetIsProcedure() {
			return "CREATE PROCEDURE"
		}
	case *pg.Node_VacuumStmt:
		if !s.VacuumStmt.GetIsVacuumcmd() {
			return "ANALYZE"
		}
	case *pg.Node_CreateTableAsStmt:
		if s.CreateTableAsStmt.GetObjtype() == pg.ObjectType_OBJECT_MATVIEW {
			return "CREATE MATERIALIZED VIEW"
		}
	}
	if command := commands[name]; command != "" {
		return command
	}
	return spelled(strings.TrimSuffix(string(name), "Stmt"))
}

func grantName(grant bool) string {
	if grant {
		return "GRANT"
	}
	return "REVOKE"
}

// commands are the names that spelling the node does not give.
var commands = map[protoreflect.Name]string{
	"AlterDatabaseRefreshCollStmt": "ALTER DATABASE",
	"AlterDatabaseSetStmt":         "ALTER DATABASE",
	"AlterEventTrigStmt":           "ALTER EVENT TRIGGER",
	"AlterExtensionContentsStmt":   "ALTER EXTENSION",
	"AlterFdwStmt":                 "ALTER FOREIGN DATA WRAPPER",
	"AlterObjectDependsStmt":       "ALTER FUNCTION",
	"AlterRoleSetStmt":             "ALTER ROLE",
	"AlterSeqStmt":                 "ALTER SEQUENCE",
	"AlterStatsStmt":               "ALTER STATISTICS",
	"AlterEnumStmt":                "ALTER TYPE",
	"AlterTableMoveAllStmt":        "ALTER TABLE",
	"AlterTableSpaceOptionsStmt":   "ALTER TABLESPACE",
	"AlterTSConfigurationStmt":     "ALTER TEXT SEARCH CONFIGURATION",
	"AlterTSDictionaryStmt":        "ALTER TEXT SEARCH DICTIONARY",
	"CheckPointStmt":               "CHECKPOINT",
	"CompositeTypeStmt":            "CREATE TYPE",
	"ConstraintsSetStmt":           "SET CONSTRAINTS",
	"CreateAmStmt":                 "CREATE ACCESS METHOD",
	"CreateEnumStmt":               "CREATE TYPE",
	"CreateEventTrigStmt":          "CREATE EVENT TRIGGER",
	"CreateFdwStmt":                "CREATE FOREIGN DATA WRAPPER",
	"CreateOpClassStmt":            "CREATE OPERATOR CLASS",
	"CreateOpFamilyStmt":           "CREATE OPERATOR FAMILY",
	"CreatePLangStmt":              "CREATE LANGUAGE",
	"CreateRangeStmt":              "CREATE TYPE",
	"CreateSeqStmt":                "CREATE SEQUENCE",
	"CreateStatsStmt":              "CREATE STATISTICS",
	"CreateStmt":                   "CREATE TABLE",
	"CreateTableSpaceStmt":         "CREATE TABLESPACE",
	"CreateTrigStmt":               "CREATE TRIGGER",
	"CreatedbStmt":                 "CREATE DATABASE",
	"DropTableSpaceStmt":           "DROP TABLESPACE",
	"DropdbStmt":                   "DROP DATABASE",
	"IndexStmt":                    "CREATE INDEX",
	"RefreshMatViewStmt":           "REFRESH MATERIALIZED VIEW",
	"RuleStmt":                     "CREATE RULE",
	"SecLabelStmt":                 "SECURITY LABEL",
	"TruncateStmt":                 "TRUNCATE TABLE",
	"ViewStmt":                     "CREATE VIEW",
}

// objectName spells an object type: OBJECT_FOREIGN_TABLE is FOREIGN TABLE.
func objectName(t pg.ObjectType) string {
	switch t {
	case pg.ObjectType_OBJECT_MATVIEW:
		return "MATERIALIZED VIEW"
	case pg.ObjectType_OBJECT_TSCONFIGURATION:
		return "TEXT SEARCH CONFIGURATION"
	case pg.ObjectType_OBJECT_TSDICTIONARY:
		return "TEXT SEARCH DICTIONARY"
	case pg.ObjectType_OBJECT_TSPARSER:
		return "TEXT SEARCH PARSER"
	case pg.ObjectType_OBJECT_TSTEMPLATE:
		return "TEXT SEARCH TEMPLATE"
	case pg.ObjectType_OBJECT_STATISTIC_EXT:
		return "STATISTICS"
	}
	return strings.ReplaceAll(strings.TrimPrefix(t.String(), "OBJECT_"), "_", " ")
}

// spelled turns CreateSchema into CREATE SCHEMA.
func spelled(name string) string {
	var out strings.Builder
	for i, r := range name {
		if i > 0 && unicode.IsUpper(r) {
			out.WriteByte(' ')
		}
		out.WriteRune(unicode.ToUpper(r))
	}
	return out.String()
}
