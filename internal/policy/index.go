package policy

import (
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"chaperone.dev/chaperone/internal/access"
)

// An atom is one plain fact about a principal: that it is a member of a group
// (field groups), or that a field has a value.
type atom struct{ field, value string }

// A requirement is what a principal condition plainly needs: unless one of its
// atoms holds, the condition is false. It is what policies are indexed by.
type requirement struct {
	known bool   // false: nothing is plainly needed
	atoms []atom // any of them
	exact bool   // the condition is true when any of them holds
}

// factsOf lists every atom that holds for p and that a requirement may name.
func factsOf(p *access.Principal) []atom {
	facts := []atom{
		{"issuer", p.Issuer}, {"subject", p.Subject}, {"user", p.User}, {"subagent", p.Subagent},
		{"instance", p.Instance}, {"workflow", p.Workflow}, {"job", p.Job},
	}
	for _, g := range p.Groups {
		facts = append(facts, atom{"groups", g})
	}
	return facts
}

func requirementOf(c *condition) requirement {
	if c.always {
		return requirement{}
	}
	return requirementIn(c.checked.Expr(), c.checked.SourceInfo())
}

// requirementIn follows CEL's logic: a false term makes && false even when the
// other errs, and || is false only when both are.
func requirementIn(e ast.Expr, info *ast.SourceInfo) requirement {
	if e.Kind() == ast.ComprehensionKind {
		return membershipMacro(e, info)
	}
	if e.Kind() != ast.CallKind {
		return requirement{}
	}
	call := e.AsCall()
	switch args := call.Args(); call.FunctionName() {
	case operators.LogicalAnd:
		return narrower(args, info)
	case operators.LogicalOr:
		return either(args, info)
	case operators.Equals:
		return anyOf(principalField(args[0]), literals(args[1])).or(anyOf(principalField(args[1]), literals(args[0])))
	case operators.In:
		if name := principalField(args[1]); name == "groups" {
			return anyOf(name, literals(args[0]))
		}
		return anyOf(principalField(args[0]), literalList(args[1]))
	case "sets.intersects":
		if name := principalField(args[0]); name == "groups" {
			return anyOf(name, literalList(args[1]))
		}
	}
	return requirement{}
}

// narrower takes the term of && that needs the fewest atoms.
func narrower(args []ast.Expr, info *ast.SourceInfo) requirement {
	var best requirement
	for _, arg := range args {
		r := requirementIn(arg, info)
		if r.known && (!best.known || len(r.atoms) < len(best.atoms)) {
			best = r
		}
	}
	best.exact = false
	return best
}

func either(args []ast.Expr, info *ast.SourceInfo) requirement {
	all := requirement{known: true, exact: true}
	for _, arg := range args {
		r := requirementIn(arg, info)
		if !r.known {
			return requirement{}
		}
		all.atoms, all.exact = append(all.atoms, r.atoms...), all.exact && r.exact
	}
	return all
}

// membershipMacro recognises principal.groups.exists(g, g in ["a", "b"]) and
// principal.groups.exists(g, g == "a").
func membershipMacro(e ast.Expr, info *ast.SourceInfo) requirement {
	macro, ok := info.GetMacroCall(e.ID())
	if !ok || macro.Kind() != ast.CallKind {
		return requirement{}
	}
	call := macro.AsCall()
	if call.FunctionName() != operators.Exists || !call.IsMemberFunction() || len(call.Args()) != 2 || principalField(call.Target()) != "groups" {
		return requirement{}
	}
	element, test := call.Args()[0], call.Args()[1]
	if element.Kind() != ast.IdentKind || test.Kind() != ast.CallKind || len(test.AsCall().Args()) != 2 {
		return requirement{}
	}
	left, right := test.AsCall().Args()[0], test.AsCall().Args()[1]
	if left.Kind() != ast.IdentKind || left.AsIdent() != element.AsIdent() {
		return requirement{}
	}
	switch test.AsCall().FunctionName() {
	case operators.In:
		return anyOf("groups", literalList(right))
	case operators.Equals:
		return anyOf("groups", literals(right))
	}
	return requirement{}
}

// anyOf is the exact requirement that field has one of values; none is known
// when either is missing.
func anyOf(field string, values []string) requirement {
	if field == "" || values == nil || field == "chain" {
		return requirement{}
	}
	r := requirement{known: true, exact: true}
	for _, v := range values {
		r.atoms = append(r.atoms, atom{field, v})
	}
	return r
}

func (r requirement) or(other requirement) requirement {
	if r.known {
		return r
	}
	return other
}

// principalField returns the field of principal that e reads, "" when it is
// anything else.
func principalField(e ast.Expr) string {
	if e.Kind() != ast.SelectKind || e.AsSelect().IsTestOnly() {
		return ""
	}
	if operand := e.AsSelect().Operand(); operand.Kind() != ast.IdentKind || operand.AsIdent() != "principal" {
		return ""
	}
	return e.AsSelect().FieldName()
}

func literals(e ast.Expr) []string {
	if s := literal(e); s != nil {
		return []string{*s}
	}
	return nil
}

// literalList returns the strings of a list that holds nothing else.
func literalList(e ast.Expr) []string {
	if e.Kind() != ast.ListKind || len(e.AsList().OptionalIndices()) > 0 {
		return nil
	}
	values := []string{}
	for _, element := range e.AsList().Elements() {
		if element.Kind() != ast.LiteralKind {
			return nil
		}
		s, ok := element.AsLiteral().(types.String)
		if !ok {
			return nil
		}
		values = append(values, string(s))
	}
	return values
}
