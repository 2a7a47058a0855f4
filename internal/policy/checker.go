package policy

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// A checker walks a parsed condition, notes what it reads and finds what CEL
// would accept but a policy may not hold.
type checker struct {
	vocabulary *vocabulary
	info       *ast.SourceInfo
	reads      reading
	literals   []string
	faults     []conditionFault
}

// whole reports a fault of the condition as such.
func (c *checker) whole(format string, args ...any) {
	c.faults = append(c.faults, conditionFault{message: fmt.Sprintf(format, args...)})
}

func (c *checker) fault(e ast.Expr, format string, args ...any) {
	at := c.info.GetStartLocation(e.ID())
	f := conditionFault{at.Line(), at.Column(), fmt.Sprintf(format, args...)}
	if !slices.Contains(c.faults, f) {
		c.faults = append(c.faults, f)
	}
}

func (c *checker) visit(e ast.Expr) {
	switch e.Kind() {
	case ast.IdentKind:
		c.ident(e)
	case ast.SelectKind:
		c.selection(e)
	case ast.CallKind:
		c.call(e)
	case ast.ListKind:
		for _, element := range e.AsList().Elements() {
			c.visit(element)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			c.visit(entry.AsMapEntry().Key())
			c.visit(entry.AsMapEntry().Value())
		}
	case ast.StructKind:
		c.fault(e, "conditions cannot build objects")
	case ast.ComprehensionKind:
		c.comprehension(e)
	case ast.LiteralKind:
		if s, ok := e.AsLiteral().(types.String); ok {
			c.literals = append(c.literals, string(s))
		}
	}
}

// variableName is the name that an identifier stands for: CEL takes .sql for
// sql.
func variableName(e ast.Expr) string { return strings.TrimPrefix(e.AsIdent(), ".") }

// ident sees variables that are read whole; selection has taken the others.
func (c *checker) ident(e ast.Expr) {
	if variableName(e) == "now" {
		c.reads |= readsTime
		return
	}
	if t := c.vocabulary.variableType(variableName(e)); t != nil {
		c.fault(e, "%s is not a value of its own; read one of its fields: %s", t.variable, t.names())
	}
}

func (c *checker) selection(e ast.Expr) {
	s := e.AsSelect()
	operand := s.Operand()
	var t *objectType
	if operand.Kind() == ast.IdentKind {
		t = c.vocabulary.variableType(variableName(operand))
	}
	if t == nil {
		c.headerName(operand, s.FieldName(), e)
		c.visit(operand)
		return
	}
	switch t.variable {
	case "sql":
		c.reads |= readsSQL
		if s.FieldName() == rowsField || s.FieldName() == bytesField {
			c.reads |= readsEstimate
		}
	case "http":
		c.reads |= readsHTTP
		if s.FieldName() == bodyField || s.FieldName() == bodyStateField {
			c.reads |= readsBody
		}
	case "ssh":
		c.reads |= readsSSH
		if s.FieldName() == unknownField {
			c.reads |= readsUnknown
		}
	case "k8s":
		c.reads |= readsK8s
		if s.FieldName() == bodyField || s.FieldName() == objectField {
			c.reads |= readsBody
		}
	case "request":
		c.reads |= readsTime
	}
	if !s.IsTestOnly() {
		return
	}
	if t.variable == "http" && s.FieldName() == bodyField {
		c.fault(e, `has(http.body) is never known; compare http.body_state with "whole"`)
	} else {
		c.fault(e, "%s.%s is always there; compare it with a value instead of has()", t.variable, s.FieldName())
	}
}

// barred are functions whose results can be far larger than what they are
// given.
func barred() []string { return []string{"replace", "join", "format", "strings.quote", "reverse"} }

func (c *checker) call(e ast.Expr) {
	call := e.AsCall()
	name := call.FunctionName()
	args := call.Args()
	switch {
	case slices.Contains(barred(), name):
		c.fault(e, "%s is not available in conditions", name)
	case name == "matches" && len(args) > 0 && literal(args[len(args)-1]) == nil:
		c.fault(args[len(args)-1], "the pattern of matches must be written out")
	case takesZone(name) && len(args) == 1:
		c.zone(args[0])
	case (name == operators.Index || name == operators.OptIndex || name == operators.OptSelect) && literal(args[1]) != nil:
		c.headerName(args[0], *literal(args[1]), args[1])
	case name == operators.In && literal(args[0]) != nil:
		c.headerName(args[1], *literal(args[0]), args[0])
	}
	if call.IsMemberFunction() {
		c.visit(call.Target())
	}
	for _, arg := range args {
		c.visit(arg)
	}
}

func (c *checker) zone(arg ast.Expr) {
	name := literal(arg)
	if name == nil {
		c.fault(arg, "the time zone must be written out, for example \"Europe/Berlin\"")
		return
	}
	if _, err := loadZone(types.String(*name)); err != nil {
		c.fault(arg, "%s", err)
	}
}

// headerName finds names that http.headers can never hold.
func (c *checker) headerName(of ast.Expr, name string, at ast.Expr) {
	if of.Kind() != ast.SelectKind || of.AsSelect().FieldName() != "headers" {
		return
	}
	if root := of.AsSelect().Operand(); root.Kind() == ast.IdentKind && variableName(root) == "http" && strings.ToLower(name) != name {
		c.fault(at, "header names are lower case: %q", strings.ToLower(name))
	}
}

func (c *checker) comprehension(e ast.Expr) {
	f := e.AsComprehension()
	for _, name := range []string{f.IterVar(), f.IterVar2()} {
		if c.vocabulary.variableType(name) != nil || name == "now" {
			c.fault(e, "%s already has a meaning; name the variable otherwise", name)
			return
		}
	}
	for _, part := range []ast.Expr{f.IterRange(), f.AccuInit(), f.LoopCondition(), f.LoopStep(), f.Result()} {
		c.visit(part)
	}
}

// literal returns the string that e is written as, nil when it is anything else.
func literal(e ast.Expr) *string {
	if e.Kind() != ast.LiteralKind {
		return nil
	}
	if s, ok := e.AsLiteral().(types.String); ok {
		text := string(s)
		return &text
	}
	return nil
}
