package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // conditions name time zones, and the host may have none

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
)

// Bounds on one condition. A cost unit is about one comparison, or ten
// characters looked at.
const (
	maxConditionSize  = 8192 // characters
	maxConditionNodes = 4096 // syntax nodes, macros expanded
	maxConditionDepth = 64
	maxRegexProgram   = 500
	maxNesting        = 2         // comprehensions inside comprehensions
	maxCost           = 200_000   // of one evaluation
	maxDecisionCost   = 4_000_000 // of all the evaluations of one decision
)

// A site is where a condition stands in a policy; it decides what the
// condition may read.
type site int

const (
	principalSite site = iota
	resourceSite
	whenSite
)

// readable lists the variables that conditions at each site may name.
func (s site) readable() []string {
	switch s {
	case principalSite:
		return []string{"principal", "request", "now"}
	case resourceSite:
		return []string{"resource"}
	}
	return []string{"principal", "resource", "sql", "http", "ssh", "k8s", "request", "now"}
}

func (s site) String() string {
	return [...]string{"principal", "resource", "when"}[s]
}

// An environment compiles conditions and evaluates them.
type environment struct {
	vocabulary *vocabulary
	box        boxer
	sites      [3]*language
	tracker    *cost.Tracker
}

func newEnvironment() (*environment, error) {
	v := newVocabulary()
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, fmt.Errorf("condition types: %w", err)
	}
	base, err := cel.NewCustomEnv(
		cel.CustomTypeAdapter(registry),
		cel.CustomTypeProvider(registry),
		cel.StdLib(),
		cel.OptionalTypes(),
		ext.Strings(),
		ext.Sets(),
		ext.Network(),
		cel.CustomTypeProvider(newProvider(registry, v)), // after the libraries, which add their types to registry
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.CostModelVersion(1),
		cel.RegexProgramSizeLimit(maxRegexProgram),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateRegexLiterals(),
			cel.ValidateHomogeneousAggregateLiterals(),
			cel.ValidateComprehensionNestingLimit(maxNesting),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("condition language: %w", err)
	}
	env := &environment{vocabulary: v, box: newBoxer(base.CELTypeAdapter(), v)}
	for s := range env.sites {
		extended, err := base.Extend(v.declarations(site(s))...)
		if err != nil {
			return nil, fmt.Errorf("condition language: %w", err)
		}
		if env.sites[s], err = newLanguage(extended); err != nil {
			return nil, fmt.Errorf("condition language: %w", err)
		}
	}
	if env.tracker, err = newTracker(base); err != nil {
		return nil, fmt.Errorf("condition cost: %w", err)
	}
	return env, nil
}

// newTracker returns the cost tracker that programs of base would make for
// themselves, with the costs of all its functions. Evaluations copy it.
func newTracker(base *cel.Env) (*cost.Tracker, error) {
	always, issues := base.Compile("true")
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	program, err := base.Program(always, cel.CostLimit(maxCost))
	if err != nil {
		return nil, err
	}
	frame, err := interpreter.NewExecutionFrame(cel.NoVars())
	if err != nil {
		return nil, err
	}
	defer frame.Close()
	if _, _, err = program.Eval(frame); err != nil {
		return nil, err
	}
	return frame.CostTracker().Clone()
}

func (v *vocabulary) declarations(s site) []cel.EnvOption {
	var options []cel.EnvOption
	for _, name := range s.readable() {
		if name == "now" {
			options = append(options, cel.Variable(name, cel.TimestampType))
			continue
		}
		i := slices.IndexFunc(v.objectTypes(), func(t *objectType) bool { return t.variable == name })
		options = append(options, cel.Variable(name, v.objectTypes()[i].celType))
	}
	return options
}

// variableType returns the object type of a variable, nil when it is none.
func (v *vocabulary) variableType(name string) *objectType {
	for _, t := range v.objectTypes() {
		if t.variable == name && t != v.hop && t != v.k8sObject {
			return t
		}
	}
	return nil
}

// zoned evaluates timestamp.getX(zone) for a zone that is known when the
// condition is planned, so that no evaluation reads the zone's rules again.
type zoned struct {
	interpreter.InterpretableV2 // the call it replaces: for its id
	call                        interpreter.InterpretableCall
	zone                        *time.Location
}

// loadZones replaces calls that name a time zone by calls that hold it.
func loadZones(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	call, ok := i.(interpreter.InterpretableCall)
	if !ok || !takesZone(call.Function()) || len(call.Args()) != 2 {
		return i, nil
	}
	name, ok := call.Args()[1].(interpreter.InterpretableConst)
	if !ok {
		return i, nil
	}
	zone, err := loadZone(name.Value())
	if err != nil {
		return nil, err
	}
	return &zoned{InterpretableV2: i, call: call, zone: zone}, nil
}

func loadZone(v ref.Val) (*time.Location, error) {
	name, ok := v.Value().(string)
	if !ok || name == "" || strings.EqualFold(name, "local") {
		return nil, errors.New("a time zone is a name such as Europe/Berlin or UTC")
	}
	if offset, err := time.Parse("-07:00", name); err == nil {
		_, seconds := offset.Zone()
		return time.FixedZone("", seconds), nil
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("there is no time zone %q", name)
	}
	return zone, nil
}

// Exec implements interpreter.InterpretableV2.
func (z *zoned) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := z.call.Args()[0].Exec(frame)
	t, ok := v.(types.Timestamp)
	if !ok {
		return types.MaybeNoSuchOverloadErr(v)
	}
	if costs := frame.CostTracker(); costs != nil {
		costs.EvalUnary(frame, z.ID(), z.call, v, v)
	}
	local := types.Timestamp{Time: t.In(z.zone)}
	return local.Receive(z.call.Function(), z.call.OverloadID(), nil)
}

// Eval implements interpreter.Interpretable.
func (z *zoned) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, z.Exec)
}

func takesZone(function string) bool {
	return strings.HasPrefix(function, "get") && slices.Contains([]string{
		"getFullYear", "getMonth", "getDayOfYear", "getDate", "getDayOfMonth",
		"getDayOfWeek", "getHours", "getMinutes", "getSeconds", "getMilliseconds",
	}, function)
}
