package policy

import (
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/parser"
)

// This file proves that conditions cannot hold together. A condition becomes a
// disjunction of clauses, each a list of facts that are all true whenever the
// clause is: equalities and bounds of terms, and expressions that are true or
// false as a whole. A term is any expression, known by its text: conditions are
// pure, so the same text has the same value throughout one decision. Clauses
// contradict themselves or they do not; what is not understood is never taken
// for a contradiction.

const maxClauses = 256 // of one conjunction; with more, nothing is proved

// A fact is something that holds of a term.
type fact struct {
	term string
	kind factKind
	// values are what the term is one of, or none of.
	values []ref.Val
	bound  float64
	strict bool
	holds  bool                // for a truth
	test   func(s string) bool // that a string passes
}

type factKind uint8

const (
	oneOf factKind = iota
	noneOf
	atLeast
	atMost
	truth
	passes
)

// A clause is facts that hold together.
type clause []fact

// anything is what is known when nothing is: one clause without facts.
func anything() []clause { return []clause{{}} }

// clausesOf are the ways in which a condition can be true. With certain, only
// facts count that are neither an error nor unknown: what contradicts itself by
// them is false, and not unknown.
func clausesOf(c *condition, certain bool) []clause {
	if c.always {
		return anything()
	}
	r := &reasoner{tree: c.checked, certain: certain}
	return r.clauses(c.checked.Expr(), true)
}

// clausesAgainst are the ways in which a condition can be false.
func clausesAgainst(c *condition) []clause {
	if c.always {
		return nil
	}
	r := &reasoner{tree: c.checked}
	return r.clauses(c.checked.Expr(), false)
}

// both joins two disjunctions; too many clauses are taken for anything.
func both(a, b []clause) []clause {
	if len(a)*len(b) > maxClauses {
		return anything()
	}
	var joined []clause
	for _, x := range a {
		for _, y := range b {
			if c := slices.Concat(x, y); !contradicts(c) {
				joined = append(joined, c)
			}
		}
	}
	return joined
}

func oneOrOther(a, b []clause) []clause {
	if len(a)+len(b) > maxClauses {
		return anything()
	}
	return slices.Concat(a, b)
}

// A reasoner finds the clauses of one condition.
type reasoner struct {
	tree    *ast.AST
	certain bool
}

// clauses are the ways in which e is true, or false when holds is not set.
func (r *reasoner) clauses(e ast.Expr, holds bool) []clause {
	switch e.Kind() {
	case ast.LiteralKind:
		if e.AsLiteral() == types.Bool(holds) {
			return anything()
		}
		return nil
	case ast.CallKind:
		if known, ok := r.call(e, holds); ok {
			return known
		}
	}
	return r.fact(fact{term: r.text(e), kind: truth, holds: holds}, e)
}

// fact makes one clause of one fact on what is written in e.
func (r *reasoner) fact(f fact, e ast.Expr) []clause {
	if f.term == "" || r.certain && !isTotal(e) {
		return anything()
	}
	return []clause{{f}}
}

func (r *reasoner) call(e ast.Expr, holds bool) (known []clause, ok bool) {
	call := e.AsCall()
	args := call.Args()
	switch name := call.FunctionName(); name {
	case operators.LogicalNot:
		return r.clauses(args[0], !holds), true
	case operators.LogicalAnd, operators.LogicalOr:
		join := oneOrOther
		if (name == operators.LogicalAnd) == holds {
			join = both
		}
		known = r.clauses(args[0], holds)
		for _, arg := range args[1:] {
			known = join(known, r.clauses(arg, holds))
		}
		return known, true
	case operators.Equals:
		return r.equality(e, args, holds)
	case operators.NotEquals:
		return r.equality(e, args, !holds)
	case operators.In:
		if values := literalValues(args[1]); values != nil {
			if len(values) == 0 && holds {
				return nil, true
			}
			return r.fact(fact{term: r.text(args[0]), kind: membership(holds), values: values}, e), true
		}
	case operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals:
		return r.ordering(e, name, args, holds)
	case "startsWith", "endsWith", "contains":
		return r.prefix(e, call, holds)
	}
	return nil, false
}

func membership(holds bool) factKind {
	if holds {
		return oneOf
	}
	return noneOf
}

func (r *reasoner) equality(e ast.Expr, args []ast.Expr, holds bool) ([]clause, bool) {
	for i, other := range []ast.Expr{args[1], args[0]} {
		if other.Kind() != ast.LiteralKind || args[i].Kind() == ast.LiteralKind {
			continue
		}
		value := other.AsLiteral()
		if b, isBool := value.(types.Bool); isBool && r.tree.GetType(args[i].ID()).IsExactType(types.BoolType) {
			return r.clauses(args[i], bool(b) == holds), true
		}
		return r.fact(fact{term: r.text(args[i]), kind: membership(holds), values: []ref.Val{value}}, e), true
	}
	return nil, false
}

// ordering reads comparisons with a number. What is not an int could be a NaN,
// of which neither x < 1 nor its opposite is true: there only what is said is
// taken, not its opposite.
func (r *reasoner) ordering(e ast.Expr, name string, args []ast.Expr, holds bool) ([]clause, bool) {
	term, limit, turned := args[0], args[1], false
	if term.Kind() == ast.LiteralKind {
		term, limit, turned = limit, term, true
	}
	if limit.Kind() != ast.LiteralKind || term.Kind() == ast.LiteralKind {
		return nil, false
	}
	n, ok := limit.AsLiteral().(types.Int)
	if !ok || n > 1<<52 || n < -1<<52 || !holds && !r.tree.GetType(term.ID()).IsExactType(types.IntType) {
		return nil, false
	}
	f := fact{term: r.text(term), kind: atMost, bound: float64(n), strict: name == operators.Less || name == operators.Greater}
	if up := name == operators.Greater || name == operators.GreaterEquals; up != turned {
		f.kind = atLeast
	}
	if !holds {
		f.kind, f.strict = map[factKind]factKind{atMost: atLeast, atLeast: atMost}[f.kind], !f.strict
	}
	return r.fact(f, e), true
}

func (r *reasoner) prefix(e ast.Expr, call ast.CallExpr, holds bool) ([]clause, bool) {
	if !call.IsMemberFunction() || len(call.Args()) != 1 || literal(call.Args()[0]) == nil {
		return nil, false
	}
	part := *literal(call.Args()[0])
	test := map[string]func(s, part string) bool{"startsWith": strings.HasPrefix, "endsWith": strings.HasSuffix, "contains": strings.Contains}[call.FunctionName()]
	known := r.fact(fact{term: r.text(call.Target()), kind: passes, test: func(s string) bool { return test(s, part) == holds }}, e)
	return both(known, r.fact(fact{term: r.text(e), kind: truth, holds: holds}, e)), true
}

// text is what an expression is known by; "" when it cannot be told. A label
// is the same in both spellings.
func (r *reasoner) text(e ast.Expr) string {
	if e.Kind() == ast.CallKind && e.AsCall().FunctionName() == operators.Index {
		if key := literal(e.AsCall().Args()[1]); key != nil && isIdentifier(*key) {
			if of := r.text(e.AsCall().Args()[0]); of != "" {
				return of + "." + *key
			}
		}
	}
	text, err := parser.Unparse(e, r.tree.SourceInfo())
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(text), " ")
}

func isIdentifier(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9')
	}) && (s[0] < '0' || s[0] > '9')
}

// literalValues returns the values of a list that is written out, else nil.
func literalValues(e ast.Expr) []ref.Val {
	if e.Kind() != ast.ListKind || len(e.AsList().OptionalIndices()) > 0 {
		return nil
	}
	values := []ref.Val{}
	for _, element := range e.AsList().Elements() {
		if element.Kind() != ast.LiteralKind {
			return nil
		}
		values = append(values, element.AsLiteral())
	}
	return values
}

// isTotal reports whether e reads nothing but fields that are always there and
// known, by means that cannot fail.
func isTotal(e ast.Expr) bool {
	switch e.Kind() {
	case ast.LiteralKind:
		return true
	case ast.ListKind:
		return !slices.ContainsFunc(e.AsList().Elements(), func(x ast.Expr) bool { return !isTotal(x) })
	case ast.SelectKind:
		s := e.AsSelect()
		return !s.IsTestOnly() && s.Operand().Kind() == ast.IdentKind && isKnownField(s.Operand().AsIdent(), s.FieldName())
	case ast.CallKind:
		call := e.AsCall()
		if !slices.Contains([]string{operators.Equals, operators.NotEquals, operators.In, operators.Less, operators.LessEquals, operators.Greater,
			operators.GreaterEquals, "startsWith", "endsWith", "contains"}, call.FunctionName()) {
			return false
		}
		return (!call.IsMemberFunction() || isTotal(call.Target())) && !slices.ContainsFunc(call.Args(), func(x ast.Expr) bool { return !isTotal(x) })
	}
	return false
}

// isKnownField lists the fields that no request leaves unknown.
func isKnownField(variable, name string) bool {
	switch variable {
	case "principal":
		return name != "chain"
	case "resource":
		return name == "name" || name == "kind"
	case "sql":
		return slices.Contains([]string{"text", "command", "read_only", "has_where", "statements", "in_transaction"}, name)
	case "http":
		return slices.Contains([]string{"method", "host", "path", bodyStateField}, name)
	case "ssh":
		return !slices.Contains(sshUnknowable(), "ssh."+name)
	case "k8s":
		return name != bodyField && name != objectField
	}
	return false
}

// A termState is everything that a clause says of one term.
type termState struct {
	allowed        []ref.Val // nil: anything
	excluded       []ref.Val
	low, high      *fact
	isTrue, isNot  bool
	tests          []func(string) bool
	mentionedValue bool
}

const kindTerm = "resource.kind"

// contradicts reports whether the facts cannot all be true. False says nothing.
func contradicts(c clause) bool {
	states := map[string]*termState{}
	of := func(term string) *termState {
		if states[term] == nil {
			states[term] = &termState{}
		}
		return states[term]
	}
	for _, k := range actionKinds() {
		of(kindTerm).allowed = append(of(kindTerm).allowed, types.String(k.kind))
	}
	for i := range c {
		if !of(c[i].term).add(&c[i]) {
			return true
		}
	}
	for term, s := range states {
		if s.impossible() {
			return true
		}
		// What is compared is there.
		if absent := states["has("+term+")"]; absent != nil && absent.isNot && s.mentionedValue {
			return true
		}
	}
	return false
}

// add notes a fact; false means that it cannot be.
func (s *termState) add(f *fact) bool {
	s.mentionedValue = s.mentionedValue || f.kind != truth
	switch f.kind {
	case oneOf:
		if s.allowed == nil {
			s.allowed = slices.Clone(f.values)
		} else {
			s.allowed = slices.DeleteFunc(slices.Clone(s.allowed), func(v ref.Val) bool { return !holdsValue(f.values, v) })
		}
		return len(s.allowed) > 0
	case noneOf:
		s.excluded = append(s.excluded, f.values...)
	case atLeast:
		if s.low == nil || f.bound > s.low.bound || f.bound == s.low.bound && f.strict {
			s.low = f
		}
	case atMost:
		if s.high == nil || f.bound < s.high.bound || f.bound == s.high.bound && f.strict {
			s.high = f
		}
	case truth:
		s.isTrue, s.isNot = s.isTrue || f.holds, s.isNot || !f.holds
		return !(s.isTrue && s.isNot)
	case passes:
		s.tests = append(s.tests, f.test)
	}
	return true
}

// impossible reports whether no value fits.
func (s *termState) impossible() bool {
	if s.low != nil && s.high != nil && (s.low.bound > s.high.bound || s.low.bound == s.high.bound && (s.low.strict || s.high.strict)) {
		return true
	}
	return s.allowed != nil && !slices.ContainsFunc(s.allowed, s.fits)
}

// fits reports whether the term may have one of its allowed values.
func (s *termState) fits(v ref.Val) bool {
	if holdsValue(s.excluded, v) {
		return false
	}
	if text, ok := v.(types.String); ok && slices.ContainsFunc(s.tests, func(test func(string) bool) bool { return !test(string(text)) }) {
		return false
	}
	n, ok := v.(types.Int)
	if !ok || n > 1<<52 || n < -1<<52 {
		return true
	}
	below := s.low != nil && (float64(n) < s.low.bound || s.low.strict && float64(n) == s.low.bound)
	above := s.high != nil && (float64(n) > s.high.bound || s.high.strict && float64(n) == s.high.bound)
	return !below && !above
}

// holdsValue compares as CEL does: 1 is 1.0.
func holdsValue(values []ref.Val, v ref.Val) bool {
	return slices.ContainsFunc(values, func(other ref.Val) bool { return other.Equal(v) == types.True || v.Equal(other) == types.True })
}

// mentions reports whether every way says something of a variable.
func mentions(clauses []clause, variable string) bool {
	return !slices.ContainsFunc(clauses, func(c clause) bool {
		return !slices.ContainsFunc(c, func(f fact) bool { return strings.Contains(f.term, variable+".") })
	})
}
