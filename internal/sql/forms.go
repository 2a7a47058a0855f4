package sql

import (
	"reflect"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A form says what the judge does with a node of the grammar. A node without a
// form is unknown.
type form uint8

const (
	formUnknown    form = iota
	formBound           // a query or a part of one: bound and judged, in the fields listed
	formStatement       // a statement that is judged by itself: settings, transactions, EXPLAIN
	formDefinition      // DDL and administration: named, its relations collected, never run
	formRefused         // a statement or an expression that is refused by name
	formPart            // occurs only inside definitions and refused forms
	formAnalyzed        // made by the server after parsing; the grammar never yields it
)

// bound lists the nodes that queries are made of, each with the fields that
// have a rule. A field that is set and not listed here refuses the statement.
var bound = map[protoreflect.Name]string{
	"A_ArrayExpr":      "elements location",
	"A_Const":          "ival fval boolval sval bsval isnull location",
	"A_Expr":           "kind name lexpr rexpr location",
	"A_Indices":        "is_slice lidx uidx",
	"A_Indirection":    "arg indirection",
	"A_Star":           "",
	"Alias":            "aliasname colnames",
	"BitString":        "bsval",
	"BoolExpr":         "boolop args location",
	"Boolean":          "boolval",
	"BooleanTest":      "arg booltesttype location",
	"CaseExpr":         "arg args defresult location",
	"CaseWhen":         "expr result location",
	"CoalesceExpr":     "args location",
	"CollateClause":    "arg collname location",
	"ColumnDef":        "colname type_name is_local location", // of a function in FROM
	"ColumnRef":        "fields location",
	"CommonTableExpr":  "ctename aliascolnames ctematerialized ctequery location",
	"CurrentOfExpr":    "cvarno cursor_name",
	"DefElem":          "defnamespace defname arg defaction location", // of EXPLAIN and BEGIN
	"DeleteStmt":       "relation using_clause where_clause returning_list with_clause",
	"Float":            "fval",
	"FuncCall":         "funcname args agg_order agg_filter over agg_within_group agg_star agg_distinct func_variadic funcformat location",
	"GroupingFunc":     "args location",
	"GroupingSet":      "kind content location",
	"IndexElem":        "name expr collation opclass ordering nulls_ordering", // of ON CONFLICT
	"InferClause":      "index_elems where_clause conname location",
	"InsertStmt":       "relation cols select_stmt on_conflict_clause returning_list with_clause override",
	"Integer":          "ival",
	"JoinExpr":         "jointype is_natural larg rarg using_clause join_using_alias quals alias",
	"List":             "items",
	"LockingClause":    "locked_rels strength wait_policy",
	"MergeStmt":        "relation source_relation join_condition merge_when_clauses returning_list with_clause",
	"MergeWhenClause":  "match_kind command_type override condition target_list values",
	"MinMaxExpr":       "op args location",
	"MultiAssignRef":   "source colno ncolumns",
	"NamedArgExpr":     "arg name argnumber location",
	"Node":             "*", // the union of all nodes: the one inside is looked at
	"NullTest":         "arg nulltesttype location",
	"OnConflictClause": "action infer target_list where_clause location",
	"ParamRef":         "number location",
	"RangeFunction":    "lateral ordinality is_rowsfrom functions alias coldeflist",
	"RangeSubselect":   "lateral subquery alias",
	"RangeTableSample": "relation method args repeatable location",
	"RangeVar":         "catalogname schemaname relname inh relpersistence alias location",
	"ResTarget":        "name indirection val location",
	"RowExpr":          "args row_format location",
	"SQLValueFunction": "op typmod location",
	"SelectStmt": "distinct_clause into_clause target_list from_clause where_clause group_clause group_distinct having_clause " +
		"window_clause values_lists sort_clause limit_offset limit_count limit_option locking_clause with_clause op all larg rarg",
	"SetToDefault": "location",
	"SortBy":       "node sortby_dir sortby_nulls use_op location",
	"String":       "sval",
	"SubLink":      "sub_link_type testexpr oper_name subselect location",
	"TypeCast":     "arg type_name location",
	"TypeName":     "names setof pct_type typmods typemod array_bounds location",
	"UpdateStmt":   "relation target_list where_clause from_clause returning_list with_clause",
	"WindowDef":    "name refname partition_clause order_clause frame_options start_offset end_offset location",
	"WithClause":   "ctes recursive location",
	// SELECT INTO is judged as the write that it is; its clause is not looked into.
	"IntoClause": "*",
}

// boundEnums lists the values that have a rule, for each enumeration in a bound
// node. The zero value of each is "undefined" and is never sent.
var boundEnums = map[protoreflect.Name]string{
	"A_Expr_Kind": "AEXPR_OP AEXPR_OP_ANY AEXPR_OP_ALL AEXPR_DISTINCT AEXPR_NOT_DISTINCT AEXPR_NULLIF AEXPR_IN AEXPR_LIKE " +
		"AEXPR_ILIKE AEXPR_SIMILAR AEXPR_BETWEEN AEXPR_NOT_BETWEEN AEXPR_BETWEEN_SYM AEXPR_NOT_BETWEEN_SYM",
	"BoolExprType":       "AND_EXPR OR_EXPR NOT_EXPR",
	"BoolTestType":       "IS_TRUE IS_NOT_TRUE IS_FALSE IS_NOT_FALSE IS_UNKNOWN IS_NOT_UNKNOWN",
	"CTEMaterialize":     "CTEMaterializeDefault CTEMaterializeAlways CTEMaterializeNever",
	"CmdType":            "CMD_UPDATE CMD_INSERT CMD_DELETE CMD_NOTHING", // of WHEN in MERGE
	"CoercionForm":       "COERCE_EXPLICIT_CALL COERCE_EXPLICIT_CAST COERCE_IMPLICIT_CAST COERCE_SQL_SYNTAX",
	"DefElemAction":      "DEFELEM_UNSPEC",
	"GroupingSetKind":    "GROUPING_SET_EMPTY GROUPING_SET_ROLLUP GROUPING_SET_CUBE GROUPING_SET_SETS",
	"JoinType":           "JOIN_INNER JOIN_LEFT JOIN_FULL JOIN_RIGHT",
	"LimitOption":        "LIMIT_OPTION_DEFAULT LIMIT_OPTION_COUNT LIMIT_OPTION_WITH_TIES",
	"LockClauseStrength": "LCS_FORKEYSHARE LCS_FORSHARE LCS_FORNOKEYUPDATE LCS_FORUPDATE",
	"LockWaitPolicy":     "LockWaitBlock LockWaitSkip LockWaitError",
	"MergeMatchKind":     "MERGE_WHEN_MATCHED MERGE_WHEN_NOT_MATCHED_BY_SOURCE MERGE_WHEN_NOT_MATCHED_BY_TARGET",
	"MinMaxOp":           "IS_GREATEST IS_LEAST",
	"NullTestType":       "IS_NULL IS_NOT_NULL",
	"OnCommitAction":     "ONCOMMIT_NOOP ONCOMMIT_PRESERVE_ROWS ONCOMMIT_DELETE_ROWS ONCOMMIT_DROP",
	"OnConflictAction":   "ONCONFLICT_NOTHING ONCONFLICT_UPDATE",
	"OverridingKind":     "OVERRIDING_NOT_SET OVERRIDING_USER_VALUE OVERRIDING_SYSTEM_VALUE",
	"SQLValueFunctionOp": "SVFOP_CURRENT_DATE SVFOP_CURRENT_TIME SVFOP_CURRENT_TIME_N SVFOP_CURRENT_TIMESTAMP SVFOP_CURRENT_TIMESTAMP_N " +
		"SVFOP_LOCALTIME SVFOP_LOCALTIME_N SVFOP_LOCALTIMESTAMP SVFOP_LOCALTIMESTAMP_N SVFOP_CURRENT_ROLE SVFOP_CURRENT_USER SVFOP_USER " +
		"SVFOP_SESSION_USER SVFOP_CURRENT_CATALOG SVFOP_CURRENT_SCHEMA",
	"SetOperation": "SETOP_NONE SETOP_UNION SETOP_INTERSECT SETOP_EXCEPT",
	"SortByDir":    "SORTBY_DEFAULT SORTBY_ASC SORTBY_DESC SORTBY_USING",
	"SortByNulls":  "SORTBY_NULLS_DEFAULT SORTBY_NULLS_FIRST SORTBY_NULLS_LAST",
	"SubLinkType":  "EXISTS_SUBLINK ALL_SUBLINK ANY_SUBLINK EXPR_SUBLINK ARRAY_SUBLINK",
}

// statements are judged by code of their own (setting.go, cursor.go, copy.go).
const statements = "ClosePortalStmt CopyStmt DeallocateStmt DeclareCursorStmt DiscardStmt ExecuteStmt ExplainStmt FetchStmt ListenStmt NotifyStmt PrepareStmt " +
	"TransactionStmt UnlistenStmt VariableSetStmt VariableShowStmt"

// refusedForms are refused by name; the text says how people call them.
var refusedForms = map[protoreflect.Name]string{
	// statements
	"CallStmt":           "CALL",
	"CreateTableAsStmt":  "CREATE TABLE AS",
	"DoStmt":             "DO",
	"LoadStmt":           "LOAD",
	"LockStmt":           "LOCK",
	"ConstraintsSetStmt": "SET CONSTRAINTS",
	"CheckPointStmt":     "CHECKPOINT",
	"VacuumStmt":         "VACUUM and ANALYZE",
	// expressions and table expressions
	"CTECycleClause":            "CYCLE in WITH",
	"CTESearchClause":           "SEARCH in WITH",
	"JsonAggConstructor":        "the SQL/JSON aggregates",
	"JsonArgument":              "PASSING in SQL/JSON",
	"JsonArrayAgg":              "JSON_ARRAYAGG",
	"JsonArrayConstructor":      "JSON_ARRAY",
	"JsonArrayQueryConstructor": "JSON_ARRAY over a query",
	"JsonBehavior":              "ON ERROR in SQL/JSON",
	"JsonFormat":                "FORMAT JSON",
	"JsonFuncExpr":              "JSON_VALUE, JSON_QUERY and JSON_EXISTS",
	"JsonIsPredicate":           "IS JSON",
	"JsonKeyValue":              "JSON_OBJECT",
	"JsonObjectAgg":             "JSON_OBJECTAGG",
	"JsonObjectConstructor":     "JSON_OBJECT",
	"JsonOutput":                "RETURNING in SQL/JSON",
	"JsonParseExpr":             "JSON()",
	"JsonReturning":             "RETURNING in SQL/JSON",
	"JsonScalarExpr":            "JSON_SCALAR",
	"JsonSerializeExpr":         "JSON_SERIALIZE",
	"JsonTable":                 "JSON_TABLE",
	"JsonTableColumn":           "JSON_TABLE",
	"JsonTablePathSpec":         "JSON_TABLE",
	"JsonValueExpr":             "SQL/JSON",
	"MergeSupportFunc":          "MERGE_ACTION",
	"RangeTableFunc":            "XMLTABLE",
	"RangeTableFuncCol":         "XMLTABLE",
	"XmlExpr":                   "the SQL/XML functions",
	"XmlSerialize":              "XMLSERIALIZE",
}

// definitions are DDL and administration: judged as a write of what they name.
const definitions = "AlterCollationStmt AlterDatabaseRefreshCollStmt AlterDatabaseSetStmt AlterDatabaseStmt " +
	"AlterDefaultPrivilegesStmt AlterDomainStmt AlterEnumStmt AlterEventTrigStmt AlterExtensionContentsStmt AlterExtensionStmt " +
	"AlterFdwStmt AlterForeignServerStmt AlterFunctionStmt AlterObjectDependsStmt AlterObjectSchemaStmt AlterOpFamilyStmt " +
	"AlterOperatorStmt AlterOwnerStmt AlterPolicyStmt AlterPublicationStmt AlterRoleSetStmt AlterRoleStmt AlterSeqStmt " +
	"AlterStatsStmt AlterSubscriptionStmt AlterSystemStmt AlterTSConfigurationStmt AlterTSDictionaryStmt AlterTableMoveAllStmt " +
	"AlterTableSpaceOptionsStmt AlterTableStmt AlterTypeStmt AlterUserMappingStmt ClusterStmt CommentStmt CompositeTypeStmt " +
	"CreateAmStmt CreateCastStmt CreateConversionStmt CreateDomainStmt CreateEnumStmt CreateEventTrigStmt CreateExtensionStmt " +
	"CreateFdwStmt CreateForeignServerStmt CreateForeignTableStmt CreateFunctionStmt CreateOpClassStmt CreateOpFamilyStmt " +
	"CreatePLangStmt CreatePolicyStmt CreatePublicationStmt CreateRangeStmt CreateRoleStmt CreateSchemaStmt CreateSeqStmt " +
	"CreateStatsStmt CreateStmt CreateSubscriptionStmt CreateTableSpaceStmt CreateTransformStmt CreateTrigStmt " +
	"CreateUserMappingStmt CreatedbStmt DefineStmt DropOwnedStmt DropRoleStmt DropStmt DropSubscriptionStmt DropTableSpaceStmt " +
	"DropUserMappingStmt DropdbStmt GrantRoleStmt GrantStmt ImportForeignSchemaStmt IndexStmt ReassignOwnedStmt " +
	"RefreshMatViewStmt ReindexStmt RenameStmt ReplicaIdentityStmt RuleStmt SecLabelStmt TruncateStmt ViewStmt"

// privileges are the definitions that change who may do what.
const privileges = "AlterDefaultPrivilegesStmt AlterOwnerStmt AlterPolicyStmt AlterRoleSetStmt AlterRoleStmt AlterUserMappingStmt " +
	"CreatePolicyStmt CreateRoleStmt CreateUserMappingStmt DropOwnedStmt DropRoleStmt DropUserMappingStmt GrantRoleStmt GrantStmt " +
	"ReassignOwnedStmt SecLabelStmt"

// parts occur inside definitions and refused forms only.
const parts = "AccessPriv AlterTableCmd Constraint CreateOpClassItem FunctionParameter IntList ObjectWithArgs " +
	"OidList PartitionBoundSpec PartitionCmd PartitionElem PartitionRangeDatum PartitionSpec PublicationObjSpec PublicationTable " +
	"RawStmt ReturnStmt RoleSpec SinglePartitionSpec StatsElem TableLikeClause TriggerTransition VacuumRelation PLAssignStmt"

// analyzed are made by the server's analysis, rewriter or planner, or by
// libpg_query itself: in a parse tree they are unknown.
const analyzed = "Aggref AlternativeSubPlan ArrayCoerceExpr ArrayExpr CallContext CaseTestExpr CoerceToDomain CoerceToDomainValue " +
	"CoerceViaIO CollateExpr ConvertRowtypeExpr DistinctExpr FieldSelect FieldStore FromExpr FuncExpr InferenceElem " +
	"InlineCodeBlock JsonConstructorExpr JsonExpr JsonTablePath JsonTablePathScan JsonTableSiblingJoin MergeAction NextValueExpr " +
	"NullIfExpr OnConflictExpr OpExpr Param Query RTEPermissionInfo RangeTblEntry RangeTblFunction RangeTblRef RelabelType " +
	"RowCompareExpr RowMarkClause ScalarArrayOpExpr SetOperationStmt SortGroupClause SubPlan SubscriptingRef TableFunc " +
	"TableSampleClause TargetEntry Var WindowClause WindowFunc WindowFuncRunCondition WithCheckOption " +
	"ParseResult ScanResult ScanToken SummaryResult"

// grammar is the forms and the bound fields, indexed.
type grammar struct {
	forms  map[protoreflect.Name]form
	fields map[protoreflect.Name]map[protoreflect.Name]bool // nil: every field
	enums  map[protoreflect.Name]map[protoreflect.Name]bool

	privileges map[protoreflect.Name]bool

	rules []rule // of the above, for check
}

func newGrammar() *grammar {
	g := &grammar{
		forms:  map[protoreflect.Name]form{},
		fields: map[protoreflect.Name]map[protoreflect.Name]bool{},
		enums:  map[protoreflect.Name]map[protoreflect.Name]bool{},

		privileges: names(privileges),
	}
	for name, fields := range bound {
		g.forms[name] = formBound
		if fields != "*" {
			g.fields[name] = names(fields)
		}
	}
	for name, values := range boundEnums {
		g.enums[name] = names(values)
	}
	for name := range refusedForms {
		g.forms[name] = formRefused
	}
	for class, list := range map[form]string{formStatement: statements, formDefinition: definitions, formPart: parts, formAnalyzed: analyzed} {
		for name := range names(list) {
			g.forms[name] = class
		}
	}
	g.makeRules()
	return g
}

func names(list string) map[protoreflect.Name]bool {
	set := map[protoreflect.Name]bool{}
	for name := range strings.FieldsSeq(list) {
		set[protoreflect.Name(name)] = true
	}
	return set
}

// A rule is what check knows of one shape.
type rule struct {
	refusal *Refusal // of the message itself
	open    bool     // nothing in it is looked at
	fields  []fieldRule
}

// A fieldRule is what check knows of one field, by its id.
type fieldRule struct {
	refusal *Refusal       // of the field, when it is set
	values  map[int32]bool // that an enumeration may have
}

// rules are made once for each shape, by its id.
func (g *grammar) makeRules() {
	g.rules = make([]rule, len(shapes()))
	for _, s := range shapes() {
		r := &g.rules[s.id]
		switch g.forms[s.name] {
		case formBound, formStatement:
		case formRefused:
			r.refusal = unsupported(refusedForms[s.name], formHints[s.name])
		default:
			r.refusal = unsupported("the form "+string(s.name), "")
		}
		fields, listed := g.fields[s.name]
		r.open = !listed && bound[s.name] == "*" && s.name != "Node"
		for f := range s.all() {
			for len(r.fields) <= f.id {
				r.fields = append(r.fields, fieldRule{})
			}
			of := &r.fields[f.id]
			if f.enum != nil {
				of.values = map[int32]bool{}
				for i := range f.enum.Values().Len() {
					v := f.enum.Values().Get(i)
					of.values[int32(v.Number())] = g.enums[f.enum.Name()][v.Name()]
				}
			}
			switch {
			case !listed || fields[f.name]:
			case f.of != nil && refusedForms[f.of.name] != "":
				of.refusal = unsupported(refusedForms[f.of.name], formHints[f.of.name])
			default:
				of.refusal = unsupported("the form "+string(s.name)+" with "+string(f.name), "")
			}
		}
	}
}

// check walks a query and returns what in it has no rule, nil when everything
// has one.
func (g *grammar) check(m proto.Message) *Refusal {
	v := reflect.ValueOf(m)
	s := shapes()[v.Type()]
	if s == nil {
		return unsupported("the form "+string(m.ProtoReflect().Descriptor().Name()), "")
	}
	refusal := g.checkShape(s, v)
	if refusal == nil {
		return nil
	}
	own := *refusal // the rules' is shared
	return &own
}

func (g *grammar) checkShape(s *shape, m reflect.Value) *Refusal {
	r := &g.rules[s.id]
	if r.refusal != nil || r.open {
		return r.refusal
	}
	var refusal *Refusal
	s.each(m, func(f *shapeField, v reflect.Value) bool {
		if refusal = r.fields[f.id].refusal; refusal == nil {
			refusal = g.checkField(f, r.fields[f.id].values, v)
		}
		return refusal == nil
	})
	return refusal
}

func (g *grammar) checkField(f *shapeField, values map[int32]bool, v reflect.Value) *Refusal {
	switch {
	case f.list && f.of != nil:
		for i := range v.Len() {
			if r := g.checkShape(f.of, v.Index(i)); r != nil {
				return r
			}
		}
	case f.of != nil:
		return g.checkShape(f.of, v)
	case f.enum != nil && !values[int32(v.Int())]:
		return unsupported("the form "+string(f.enum.Name())+" of a value that has no rule", "")
	}
	return nil
}
