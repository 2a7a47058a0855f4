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

	"chaperone.dev/chaperone/internal/access"
)

// A condition is one compiled CEL expression. It is immutable: cheap,
// conjuncts and explain only put off work that few conditions need.
type condition struct {
	source    string
	site      site
	calls     []*namedCondition // directly
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
	readsEstimate
	readsSSH
	readsUnknown // ssh.unknown
	readsK8s
)

func (r reading) has(other reading) bool { return r&other != 0 }

// An actionKind is a kind of resource with the variable that stands for what is
// asked of it.
type actionKind struct {
	kind     access.Kind
	variable string
	reads    reading
	asked    func(access.Action) bool // whether the action is of this kind
}

func actionKinds() [4]actionKind {
	return [...]actionKind{
		{access.Postgres, "sql", readsSQL, func(a access.Action) bool { return a.SQL != nil }},
		{access.HTTP, "http", readsHTTP, func(a access.Action) bool { return a.HTTP != nil }},
		{access.SSH, "ssh", readsSSH, func(a access.Action) bool { return a.SSH != nil }},
		{access.Kubernetes, "k8s", readsK8s, func(a access.Action) bool { return a.K8s != nil }},
	}
}

// kinds are the kinds of action that are read.
func (r reading) kinds() (kinds []actionKind) {
	for _, k := range actionKinds() {
		if r.has(k.reads) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// kindsOf are the kinds that an action is of: one, unless it is malformed.
func kindsOf(a access.Action) (kinds []actionKind) {
	for _, k := range actionKinds() {
		if k.asked(a) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// A conditionFault is something wrong in a condition, at a line (from 1) and a
// column (from 0) of its text. Line 0 is the whole condition.
type conditionFault struct {
	line, column int
	message      string
}

// A compiled condition is what became of its text: a condition, or faults. It
// is neither when the condition calls one that has faults.
type compiled struct {
	condition *condition
	calls     []*namedCondition
	faults    []conditionFault
	unparsed  bool
}

// compile checks text for the site that it stands at; names are the conditions
// that it may call.
func (env *environment) compile(s site, text string, names *glossary) *compiled {
	parsed, source, found := env.sites[s].parse(text)
	if found != nil {
		return &compiled{unparsed: true, faults: issueFaults(found, nil, s, env.vocabulary, nil)}
	}
	var x expansion
	if strings.Contains(text, conditionCall) {
		x = *expand(parsed, names)
	}
	out := &compiled{calls: x.calls, faults: x.faults}
	if len(x.faults) > 0 || x.broken {
		return out
	}
	checked, check, faults := env.check(s, parsed, source, x.within)
	if out.faults = faults; len(faults) > 0 {
		return out
	}
	c := &condition{source: text, site: s, calls: x.calls, reads: check.reads, literals: check.literals, checked: checked}
	if err := c.plan(env.sites[s]); err != nil {
		out.faults = []conditionFault{{message: err.Error()}}
		return out
	}
	out.condition = c
	return out
}

// check finds the types of a parsed condition and what it reads. within names
// the nodes that stand for a named condition.
func (env *environment) check(s site, parsed *ast.AST, source common.Source, within map[int64]string) (*ast.AST, *checker, []conditionFault) {
	check := &checker{vocabulary: env.vocabulary, info: parsed.SourceInfo()}
	check.visit(parsed.Expr())
	if kinds := check.reads.kinds(); len(kinds) > 1 {
		check.whole("no request is both %s and %s; write two rules", kinds[0].variable, kinds[1].variable)
	}
	checked, found := env.sites[s].check(parsed, source)
	if found != nil {
		return nil, check, append(issueFaults(found, parsed, s, env.vocabulary, within), check.faults...)
	}
	if kind := checked.GetType(checked.Expr().ID()); !kind.IsExactType(cel.BoolType) {
		check.whole("must be true or false, not %s; compare it with something", kind)
	}
	return checked, check, check.faults
}

// plan makes the program of a checked condition, and puts off the rest.
func (c *condition) plan(language *language) error {
	c.always = c.checked.Expr().Kind() == ast.LiteralKind && c.checked.Expr().AsLiteral() == types.True
	program, err := language.env.PlanProgram(c.checked, cel.EvalOptions(cel.OptOptimize), cel.CustomDecoratorV2(loadZones))
	if err != nil {
		return err
	}
	if !c.always {
		c.program = program
	}
	c.conjuncts = sync.OnceValue(func() []conjunct { return conjunctsOf(c.checked) })
	c.explain = sync.OnceValues(func() (cel.Program, error) {
		return language.env.PlanProgram(c.checked, cel.EvalOptions(cel.OptExhaustiveEval), cel.CustomDecoratorV2(loadZones))
	})
	c.cheap = sync.OnceValue(func() bool {
		// A body has no bounded size, and the estimator follows a dynamic value
		// into every shape that it could have.
		return !c.reads.has(readsBody) && language.cheap(c.checked)
	})
	return nil
}

// unquotable stands for a term that cannot be written out again.
const unquotable = "its condition"

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
			text = unquotable
		}
		terms = append(terms, conjunct{e.ID(), e, strings.Join(strings.Fields(text), " ")})
	}
	split(tree.Expr())
	return terms
}

// issueFaults turns CEL's findings into faults that say what to write instead.
// within names the nodes that stand for a named condition.
func issueFaults(found []*common.Error, parsed *ast.AST, s site, v *vocabulary, within map[int64]string) []conditionFault {
	var faults []conditionFault
	for _, e := range found {
		message := reworded(strings.TrimSuffix(e.Message, " (in container '')"))
		if parsed != nil {
			message = clearer(message, e.ExprID, parsed, s, v)
		}
		if name, ok := within[e.ExprID]; ok {
			message = fmt.Sprintf("condition %q: %s", name, message)
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
	case strings.HasPrefix(message, "expression code point size exceeds limit"):
		return fmt.Sprintf("is longer than %d characters; split it into named conditions or rules", maxConditionSize)
	case strings.HasPrefix(message, "expression recursion limit exceeded"):
		return fmt.Sprintf("nests deeper than %d levels", maxConditionDepth)
	case message == "comprehension exceeds nesting limit":
		return fmt.Sprintf("all, exists, map and the like may stand at most %d deep in each other", maxNesting)
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
	case slices.Equal(path, []string{"sql", "text"}), slices.Equal(path, []string{"ssh", "command"}):
		return upTo(smallText)
	case element.Type().Kind() == types.ListKind, element.Type().Kind() == types.MapKind:
		return upTo(smallList)
	case element.Type().Kind() == types.StringKind:
		return upTo(smallName)
	}
	return nil
}
