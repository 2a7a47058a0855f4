package policy

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	celchecker "cel.dev/cel-go/checker"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	celenv "cel.dev/cel-go/common/env"
	"cel.dev/cel-go/parser"
)

// A language is CEL as conditions at one site may use it. It does what the
// library's own environment does, with the library's hand-written parser
// instead of the generated one, which takes several times as long and which
// the environment cannot be told to replace. It is safe for concurrent use.
type language struct {
	env        *cel.Env
	parser     *parser.Parser
	checker    *celchecker.Env
	validators []validation
	config     validatorConfig
}

// A validation is one of the library's checks beyond types. Each walks the
// whole tree, so it is left out where text holds nothing that it looks for.
type validation struct {
	cel.ASTValidator
	about string // what the text of a condition must hold; "" for any text
}

// about names what each of the library's checks looks for. One that is not
// listed is always made.
func about(validator string) string {
	name := strings.TrimPrefix(strings.TrimPrefix(validator, "cel.validator."), "network.")
	switch name {
	case "duration", "timestamp", "matches", "ip", "cidr":
		return name
	case "regex_program_size_limit":
		return "matches"
	case "string_format":
		return "format"
	}
	return ""
}

func newLanguage(env *cel.Env) (*language, error) {
	l := &language{env: env, config: validatorConfig{
		cel.HomogeneousAggregateLiteralExemptFunctions: []string{},
	}}
	var err error
	l.parser, err = parser.NewParser(
		parser.EnablePrattParser(true),
		parser.Macros(env.Macros()...),
		parser.PopulateMacroCalls(true), // hints quote conditions as they were written
		parser.EnableOptionalSyntax(true),
		parser.ErrorRecoveryLimit(5),
		parser.ExpressionSizeCodePointLimit(maxConditionSize),
		parser.MaxRecursionDepth(maxConditionDepth),
		parser.MaxExpressionNodeCount(maxConditionNodes),
	)
	if err != nil {
		return nil, fmt.Errorf("parser: %w", err)
	}
	if l.checker, err = celchecker.NewEnv(env.Container, env.CELTypeProvider(),
		celchecker.CrossTypeNumericComparisons(true), celchecker.Catalog(func() *celenv.Catalog { return catalogOf(env) })); err != nil {
		return nil, fmt.Errorf("checker: %w", err)
	}
	if err := l.checker.AddIdents(env.Variables()...); err != nil {
		return nil, fmt.Errorf("checker: %w", err)
	}
	for _, f := range env.Functions() {
		if f.IsDeclarationDisabled() {
			continue
		}
		if err := l.checker.AddFunctions(f); err != nil {
			return nil, fmt.Errorf("checker: %w", err)
		}
	}
	// The checker builds it when it first needs it, and reads it unguarded
	// elsewhere; loading checks in parallel.
	l.checker.Catalog()
	for _, v := range env.Validators() {
		l.validators = append(l.validators, validation{v, about(v.Name())})
		if c, ok := v.(cel.ASTValidatorConfigurer); ok {
			if err := c.Configure(l.config); err != nil {
				return nil, fmt.Errorf("validator %s: %w", v.Name(), err)
			}
		}
	}
	return l, nil
}

// catalogOf is what the checker may suggest for a misspelt name.
func catalogOf(env *cel.Env) *celenv.Catalog {
	known := celenv.NewCatalog()
	for _, v := range env.Variables() {
		known.Add(&celenv.CatalogSymbol{Name: v.Name(), Kind: celenv.VariableKind})
	}
	for name := range env.Functions() {
		known.Add(&celenv.CatalogSymbol{Name: name, Kind: celenv.FunctionKind})
	}
	return known
}

// parse returns the syntax tree of text and its source, for check.
func (l *language) parse(text string) (*ast.AST, common.Source, []*common.Error) {
	source, err := common.NewTextSourceWithLimit(text, maxConditionSize)
	if err != nil {
		return nil, nil, []*common.Error{{Location: common.NoLocation, Message: err.Error()}}
	}
	tree, errs := l.parser.Parse(source)
	if found := errs.GetErrors(); len(found) > 0 {
		return nil, nil, found
	}
	return tree, source, nil
}

// check finds the types of a parsed condition.
func (l *language) check(parsed *ast.AST, source common.Source) (*ast.AST, []*common.Error) {
	if n := ast.NodeCount(parsed); n > maxConditionNodes {
		return nil, []*common.Error{{
			Location: common.NoLocation,
			Message:  fmt.Sprintf("is too large: it has %d parts, and the limit is %d", n, maxConditionNodes),
		}}
	}
	checked, errs := celchecker.Check(parsed, source, l.checker)
	if found := errs.GetErrors(); len(found) > 0 {
		return nil, found
	}
	issues := cel.NewIssuesWithSourceInfo(errs, checked.SourceInfo())
	for _, v := range l.validators {
		if strings.Contains(source.Content(), v.about) {
			v.Validate(l.env, l.config, checked, issues)
		}
	}
	if found := issues.Errors(); len(found) > 0 {
		return nil, found
	}
	return checked, nil
}

// cheap reports whether a condition cannot exceed maxCost on a small request.
func (l *language) cheap(checked *ast.AST) bool {
	// The estimator's options are the environment's own, which takes the tree in
	// this form only.
	message, err := ast.ToProto(checked)
	if err != nil {
		return false
	}
	tree, err := cel.CheckedExprToAstWithSource(message, nil)
	if err != nil {
		return false
	}
	estimate, err := l.env.EstimateCost(tree, smallRequest{})
	return err == nil && estimate.Max <= maxCost
}

// A validatorConfig is what validators tell each other before they are used.
type validatorConfig map[string]any

// GetOrDefault implements cel.ValidatorConfig.
func (c validatorConfig) GetOrDefault(name string, value any) any {
	if v, ok := c[name]; ok {
		return v
	}
	return value
}

// Set implements cel.MutableValidatorConfig.
func (c validatorConfig) Set(name string, value any) error {
	c[name] = value
	return nil
}
