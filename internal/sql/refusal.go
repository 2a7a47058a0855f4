package sql

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"

	"chaperone.dev/chaperone/internal/access"
)

// unsupported refuses a form by name.
func unsupported(what, hint string) *Refusal {
	if hint == "" {
		hint = "Write it as a plain SELECT, INSERT, UPDATE, DELETE or MERGE."
	}
	return &Refusal{
		Reason: access.Unsupported, SQLState: "0A000",
		Message: what + " is not handled by the gateway", Hint: hint,
	}
}

// formHints say what to write instead of a refused form.
var formHints = map[protoreflect.Name]string{
	"CallStmt":                  "Send the statements of the procedure one by one.",
	"CreateTableAsStmt":         "Run the SELECT and keep its result on your side.",
	"DoStmt":                    "Send the statements of the block one by one.",
	"LockStmt":                  "Lock rows with SELECT … FOR UPDATE.",
	"MergeSupportFunc":          "Return columns of the table.",
	"CTECycleClause":            "Track the path in a column of the recursive query.",
	"CTESearchClause":           "Order by a path column of the recursive query.",
	"CheckPointStmt":            "Ask the owner of the database.",
	"ConstraintsSetStmt":        "Order the statements so that constraints hold after each.",
	"LoadStmt":                  "Ask the owner of the database.",
	"VacuumStmt":                "Ask the owner of the database.",
	"JsonFuncExpr":              "Use jsonb_path_query_first, jsonb_path_exists or the operators -> and ->>.",
	"JsonTable":                 "Use jsonb_to_recordset.",
	"RangeTableFunc":            "Use xpath.",
	"XmlExpr":                   "Put the document together on your side.",
	"XmlSerialize":              "Cast it to text.",
	"JsonIsPredicate":           "Cast it to jsonb, which fails where it is no JSON.",
	"JsonParseExpr":             "Cast it to jsonb.",
	"JsonScalarExpr":            "Use to_jsonb.",
	"JsonSerializeExpr":         "Cast it to text.",
	"JsonArrayQueryConstructor": "Use jsonb_agg in a subquery.",
	"JsonArrayConstructor":      "Use jsonb_build_array.",
	"JsonObjectConstructor":     "Use jsonb_build_object.",
	"JsonObjectAgg":             "Use jsonb_object_agg.",
	"JsonArrayAgg":              "Use jsonb_agg.",
	"JsonAggConstructor":        "Use jsonb_agg or jsonb_object_agg.",
}

// unreadable refuses a name that cannot be bound, in PostgreSQL's words.
func (b *binder) unreadable(location int32, state, format string, args ...any) {
	b.refuse(&Refusal{
		Reason: access.Unreadable, SQLState: state, Message: fmt.Sprintf(format, args...),
		Position: charPosition(b.text, location),
		Hint:     "The gateway binds every name itself: check the spelling, and qualify names with their table.",
	})
}

// unhandled refuses a form that the binder meets.
func (b *binder) unhandled(location int32, what, hint string) {
	r := unsupported(what, hint)
	r.Position = charPosition(b.text, location)
	b.refuse(r)
}

// refuse keeps the first refusal; binding goes on, so that the action names as
// much as can be known.
func (b *binder) refuse(r *Refusal) {
	if b.refusal == nil {
		b.refusal = r
	}
}
