package policy

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"

	"chaperone.dev/chaperone/internal/strictyaml"
)

// conditionsName is the file that holds named conditions for the policies of
// its folder and the folders inside it.
const conditionsName = "conditions.yaml"

const (
	conditionCall   = "condition" // as conditions name it: condition("working-hours")
	maxNamed        = 1000        // in one file
	maxNameDisplays = 20          // names listed in a message
)

// A namedCondition is a condition that others call by its name. A call stands
// for its syntax tree, so that what a condition reads, costs and needs does not
// depend on whether it was written out.
type namedCondition struct {
	name  string
	file  *loadedFile
	src   *source
	names *glossary // what it may call itself
	state nameState
	tree  *ast.AST          // parsed, calls replaced; nil when it has a fault
	calls []*namedCondition // directly
	used  bool
}

type nameState uint8

const (
	unresolved nameState = iota
	resolving
	resolved
)

func (n *namedCondition) path() string { return "conditions." + n.name }

func (n *namedCondition) at() strictyaml.Position { return n.file.doc.At(n.path()) }

// closure adds the texts of n and of all that it calls.
func (n *namedCondition) closure(texts map[string]string) {
	if _, known := texts[n.name]; known {
		return
	}
	texts[n.name] = n.src.text
	for _, callee := range n.calls {
		callee.closure(texts)
	}
}

// textsOf returns the texts of all the named conditions that conditions rest
// on, nil when there are none.
func textsOf(conditions ...*condition) map[string]string {
	var texts map[string]string
	for _, c := range conditions {
		for _, n := range c.calls {
			if texts == nil {
				texts = map[string]string{}
			}
			n.closure(texts)
		}
	}
	return texts
}

// A glossary is the named conditions that can be called from one place: its own
// and those of the glossary around it. A nil glossary is empty.
type glossary struct {
	own   map[string]*namedCondition
	outer *glossary
}

func (g *glossary) find(name string) *namedCondition {
	for ; g != nil; g = g.outer {
		if n, ok := g.own[name]; ok {
			return n
		}
	}
	return nil
}

// names lists what can be called, for messages.
func (g *glossary) names() string {
	var names []string
	for ; g != nil; g = g.outer {
		names = slices.AppendSeq(names, maps.Keys(g.own))
	}
	if len(names) == 0 {
		return "there are none here"
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > maxNameDisplays {
		names = append(names[:maxNameDisplays], "…")
	}
	return "known here: " + strings.Join(names, ", ")
}

// An expansion replaces calls of named conditions in one parsed condition.
type expansion struct {
	tree   *ast.AST
	names  *glossary
	nodes  int
	nextID int64
	calls  []*namedCondition // each once
	within map[int64]string  // nodes that stand for a named condition, by its name
	faults []conditionFault
	broken bool // it calls something that has a fault of its own
}

// expand replaces every call in tree. The condition cannot be used when the
// expansion has faults or is broken.
func expand(tree *ast.AST, names *glossary) *expansion {
	x := &expansion{tree: tree, names: names, within: map[int64]string{}}
	x.nodes, x.nextID = ast.NodeCount(tree), ast.MaxID(tree)+1
	for id := range tree.SourceInfo().MacroCalls() {
		x.nextID = max(x.nextID, id+1)
	}
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if callsCondition(e) {
			x.call(e)
		}
	}))
	return x
}

func callsCondition(e ast.Expr) bool {
	return e.Kind() == ast.CallKind && !e.AsCall().IsMemberFunction() && e.AsCall().FunctionName() == conditionCall
}

func (x *expansion) fault(e ast.Expr, format string, args ...any) {
	at := x.tree.SourceInfo().GetStartLocation(e.ID())
	x.faults = append(x.faults, conditionFault{at.Line(), at.Column(), fmt.Sprintf(format, args...)})
}

func (x *expansion) call(e ast.Expr) {
	args := e.AsCall().Args()
	if len(args) != 1 || literal(args[0]) == nil {
		x.fault(e, `condition takes one name, written out: condition("working-hours")`)
		return
	}
	name := *literal(args[0])
	n := x.names.find(name)
	if n == nil {
		x.fault(args[0], "there is no condition named %q; %s", name, x.names.names())
		return
	}
	if !slices.Contains(x.calls, n) {
		x.calls = append(x.calls, n)
	}
	if n.tree == nil {
		x.broken = true
		return
	}
	if x.nodes += ast.NodeCount(n.tree); x.nodes > maxConditionNodes {
		x.fault(e, "with what it calls, the condition is too large: it has more than %d parts", maxConditionNodes)
		return
	}
	x.replace(e, n)
}

// replace makes e a copy of n's tree. Its nodes get ids of their own, and stand
// where the call stands.
func (x *expansion) replace(e ast.Expr, n *namedCondition) {
	info, theirs := x.tree.SourceInfo(), n.tree.SourceInfo()
	where, _ := info.GetOffsetRange(e.ID())
	ids := map[int64]int64{n.tree.Expr().ID(): e.ID()}
	renumber := func(id int64) int64 {
		if _, known := ids[id]; !known {
			ids[id] = x.nextID
			x.nextID++
		}
		info.SetOffsetRange(ids[id], where)
		x.within[ids[id]] = n.name
		return ids[id]
	}
	factory := ast.NewExprFactory()
	body := factory.CopyExpr(n.tree.Expr())
	body.RenumberIDs(renumber)
	for id, call := range theirs.MacroCalls() {
		written := factory.CopyExpr(call)
		written.RenumberIDs(renumber)
		info.SetMacroCall(renumber(id), written)
	}
	e.SetKindCase(body)
}

// glossaries finds the named conditions of every file and what each may call.
func (l *loader) glossaries() {
	folders := map[string]*glossary{}
	for _, f := range l.files { // a folder's file first gets its own, then they are chained
		if f.shared {
			folders[path.Dir(f.inFS)] = &glossary{own: map[string]*namedCondition{}}
		}
	}
	around := func(folder string) *glossary {
		for {
			if g, ok := folders[folder]; ok {
				return g
			}
			if folder == "." {
				return nil
			}
			folder = path.Dir(folder)
		}
	}
	for folder, g := range folders {
		if folder != "." {
			g.outer = around(path.Dir(folder))
		}
	}
	for _, f := range l.files {
		f.names = around(path.Dir(f.inFS))
		if !f.shared && len(f.policy.Conditions) > 0 {
			f.names = &glossary{own: map[string]*namedCondition{}, outer: f.names}
		}
		for _, name := range slices.Sorted(maps.Keys(f.conditions())) {
			src := f.conditions()[name]
			if !src.given() { // reported when it was decoded
				continue
			}
			n := &namedCondition{name: name, file: f, src: &src, names: f.names}
			f.names.own[name] = n
			l.named = append(l.named, n)
		}
	}
	for _, n := range l.named {
		if earlier := n.names.outer.find(n.name); earlier != nil {
			l.fault(n, conditionFault{message: fmt.Sprintf("condition %q is already defined at %s", n.name, earlier.at())})
		}
	}
}

func (l *loader) fault(n *namedCondition, f conditionFault) {
	l.faults = append(l.faults, strictyaml.Fault{
		Position: n.src.position(n.file.name, n.file.text(), f.line, f.column), Path: n.path(), Message: f.message,
	})
}

// resolveNames compiles all named conditions, callees first.
func (l *loader) resolveNames() {
	for _, n := range l.named {
		l.resolve(n, nil)
	}
}

// resolve compiles n; callers are the conditions whose resolving led here.
func (l *loader) resolve(n *namedCondition, callers []*namedCondition) {
	if n.state != unresolved {
		return
	}
	n.state = resolving
	defer func() {
		n.state = resolved
		if r := recover(); r != nil { // as in compile
			n.tree = nil
			l.fault(n, conditionFault{message: fmt.Sprintf("cannot be compiled: %v", r)})
		}
	}()
	language := l.env.sites[whenSite]
	parsed, source, found := language.parse(n.src.text)
	if found != nil {
		l.unparsed = true
		for _, f := range issueFaults(found, nil, whenSite, l.env.vocabulary, nil) {
			l.fault(n, f)
		}
		return
	}
	callers = append(slices.Clip(callers), n)
	for _, callee := range calledIn(parsed, n.names) {
		callee.used = true
		if callee.state == resolving {
			l.cycle(callers[slices.Index(callers, callee):])
			continue
		}
		l.resolve(callee, callers)
	}
	x := expand(parsed, n.names)
	n.calls = x.calls
	faults := x.faults
	if len(faults) == 0 && !x.broken {
		_, _, faults = l.env.check(whenSite, ast.Copy(parsed), source, x.within)
	}
	for _, f := range faults {
		l.fault(n, f)
	}
	if len(faults) == 0 && !x.broken {
		n.tree = parsed
	}
}

// calledIn lists the named conditions that a parsed condition calls and that
// exist.
func calledIn(tree *ast.AST, names *glossary) []*namedCondition {
	var called []*namedCondition
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if !callsCondition(e) || len(e.AsCall().Args()) != 1 {
			return
		}
		if name := literal(e.AsCall().Args()[0]); name != nil {
			if n := names.find(*name); n != nil && !slices.Contains(called, n) {
				called = append(called, n)
			}
		}
	}))
	return called
}

// cycle reports conditions that call each other in a circle, once.
func (l *loader) cycle(circle []*namedCondition) {
	steps := make([]string, 0, len(circle)+1)
	for _, n := range circle {
		steps = append(steps, fmt.Sprintf("%s (%s)", n.name, n.at()))
	}
	steps = append(steps, circle[0].name)
	l.fault(circle[0], conditionFault{message: "conditions call each other in a circle: " + strings.Join(steps, " → ")})
}

// unusedNames reports named conditions that nothing calls. When a condition
// could not be parsed, what it calls is not known.
func (l *loader) unusedNames() {
	if l.unparsed {
		return
	}
	for _, n := range l.named {
		if !n.used {
			l.fault(n, conditionFault{message: fmt.Sprintf("nothing calls condition(%q); remove it, or use it", n.name)})
		}
	}
}
