package policy

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/parser"
)

// A condition is one compiled CEL expression. It is immutable: cheap,
// conjuncts and explain only put off work that few conditions need.
type condition struct {
	source    string
	site      site
	reads     reading
	always    bool        // the literal true
	cheap     func() bool // whether it cannot exceed maxCost on a small request
	program   cel.Program // nil when always
	conjuncts func() []conjunct
	literals  []string // string constants in it
	checked   *ast.AST
	explain   func() (cel.Program, error)
}

// A conjunct is one of the terms that a condition joins by &&.
type conjunct struct {
	id   int64
	expr ast.Expr
	text string // as written, on one line
}

// A reading is the set of things that a condition reads.
type reading uint8

const (
	readsSQL reading = 1 << iota
	readsHTTP
	readsBody
	readsTime
)

func (r reading) has(other reading) bool { return r&other != 0 }

// A conditionFault is something wrong in a condition, at a line (from 1) and a
// column (from 0) of its text. Line 0 is the whole condition.
type conditionFault struct {
	line, column int
	message      string
}

// compile checks text for the site that it stands at. On faults the condition
// is nil.
func (env *environment) compile(s site, text string) (*condition, []conditionFault) {
	language := env.sites[s]
	parsed, source, found := language.parse(text)
	if found != nil {
		return nil, issueFaults(found, nil, s, env.vocabulary)
	}
	check := &checker{vocabulary: env.vocabulary, info: parsed.SourceInfo()}
	check.visit(parsed.Expr())
	if check.reads.has(readsSQL) && check.reads.has(readsHTTP) {
		check.whole("no request is both sql and http; write two rules")
	}
	checked, found := language.check(parsed, source)
	if found != nil {
		return nil, append(issueFaults(found, parsed, s, env.vocabulary), check.faults...)
	}
	if kind := checked.GetType(checked.Expr().ID()); !kind.IsExactType(cel.BoolType) {
		check.whole("must be true or false, not %s; compare it with something", kind)
	}
	if len(check.faults) > 0 {
		return nil, check.faults
	}
	c := &condition{source: text, site: s, reads: check.reads, literals: check.literals, checked: checked}
	c.conjuncts = sync.OnceValue(func() []conjunct { return conjunctsOf(checked) })
	c.always = checked.Expr().Kind() == ast.LiteralKind && checked.Expr().AsLiteral() == types.True
	program, err := language.env.PlanProgram(checked, cel.EvalOptions(cel.OptOptimize), cel.CustomDecoratorV2(loadZones))
	if err != nil {
		return nil, []conditionFault{{message: err.Error()}}
	}
	if !c.always {
		c.program = program
	}
	c.explain = sync.OnceValues(func() (cel.Program, error) {
		return language.env.PlanProgram(checked, cel.EvalOptions(cel.OptExhaustiveEval), cel.CustomDecoratorV2(loadZones))
	})
	c.cheap = sync.OnceValue(func() bool {
		// A body has no bounded size, and the estimator follows a dynamic value
		// into every shape that it could have.
		return !c.reads.has(readsBody) && language.cheap(checked)
	})
	return c, nil
}

// conjunctsOf splits the expression at its outermost &&.
func conjunctsOf(tree *ast.AST) []conjunct {
	var terms []conjunct
	var split func(e ast.Expr)
	split = func(e ast.Expr) {
		if e.Kind() == ast.CallKind && e.AsCall().FunctionName() == operators.LogicalAnd {
			for _, arg := range e.AsCall().Args() {
				split(arg)
			}
			return
		}
		text, err := parser.Unparse(e, tree.SourceInfo())
		if err != nil {
			text = "its condition"
		}
		terms = append(terms, conjunct{e.ID(), e, strings.Join(strings.Fields(text), " ")})
	}
	split(tree.Expr())
	return terms
}

// issueFaults turns CEL's findings into faults that say what to write instead.
func issueFaults(found []*common.Error, parsed *ast.AST, s site, v *vocabulary) []conditionFault {
	var faults []conditionFault
	for _, e := range found {
		message := reworded(strings.TrimSuffix(e.Message, " (in container '')"))
		if parsed != nil {
			message = clearer(message, e.ExprID, parsed, s, v)
		}
		line, column := 0, 0
		if e.Location.Line() > 0 {
			line, column = e.Location.Line(), e.Location.Column()
		}
		f := conditionFault{line, column, message}
		if !slices.Contains(faults, f) {
			faults = append(faults, f)
		}
	}
	return faults
}

// reworded replaces findings that speak of the parser rather than of the text.
func reworded(message string) string {
	syntax, isSyntax := strings.CutPrefix(message, "Syntax error: ")
	switch {
	case isSyntax && strings.Contains(syntax, "'<EOF>'"):
		return "the condition ends too early"
	case isSyntax:
		what, _, _ := strings.Cut(syntax, " expecting ")
		return "syntax error: " + what
	case message == "invalid matches argument":
		return "this is not a regular expression (RE2)"
	}
	return message
}

// clearer rewords the two findings that authors meet most: a field that does
// not exist, and a variable that may not be read here.
func clearer(message string, id int64, parsed *ast.AST, s site, v *vocabulary) string {
	for _, e := range ast.MatchDescendants(ast.NavigateAST(parsed), func(e ast.NavigableExpr) bool { return e.ID() == id }) {
		switch {
		case e.Kind() == ast.SelectKind && strings.HasPrefix(message, "undefined field"):
			operand := e.AsSelect().Operand()
			if operand.Kind() != ast.IdentKind {
				return message
			}
			if t := v.variableType(variableName(operand)); t != nil {
				return fmt.Sprintf("%s has no field %s; it has %s", t.variable, e.AsSelect().FieldName(), t.names())
			}
		case e.Kind() == ast.IdentKind && (v.variableType(variableName(e)) != nil || variableName(e) == "now"):
			return fmt.Sprintf("a %s condition cannot read %s; it can read %s", s, variableName(e), strings.Join(s.readable(), ", "))
		}
	}
	return message
}

// smallRequest are the sizes up to which a request counts as small (see
// evaluation.begin). A condition that cannot exceed maxCost on any small
// request is evaluated on them without counting.
type smallRequest struct{}

const (
	smallText = 8192 // bytes of the statement
	smallList = 64   // elements of a list or a map
	smallName = 256  // bytes of any other string
)

// EstimateCallCost implements cost.Estimator: the library's own costs hold.
func (smallRequest) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// EstimateSize implements cost.Estimator.
func (smallRequest) EstimateSize(element cost.AstNode) *cost.SizeEstimate {
	path := element.Path()
	if len(path) == 0 {
		return nil
	}
	upTo := func(n uint64) *cost.SizeEstimate { return &cost.SizeEstimate{Min: 0, Max: n} }
	switch {
	case slices.Equal(path, []string{"sql", "text"}):
		return upTo(smallText)
	case element.Type().Kind() == types.ListKind, element.Type().Kind() == types.MapKind:
		return upTo(smallList)
	case element.Type().Kind() == types.StringKind:
		return upTo(smallName)
	}
	return nil
}
