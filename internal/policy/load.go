package policy

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/common/types"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/strictyaml"
)

// Bounds on one set.
const (
	maxFiles      = 20_000
	maxTotalBytes = 64 << 20
)

// testsName is the file that holds cases beside policies; it is not a policy.
const testsName = "tests.yaml"

// LoadDir is Load of a directory. Faults name files by their path from the
// working directory. A Kubernetes ConfigMap or Secret mount, which is swapped
// by a symbolic link, is read as one version.
func LoadDir(dir string) (*Set, error) {
	root := dir
	if versioned, err := filepath.EvalSymlinks(filepath.Join(dir, "..data")); err == nil {
		root = versioned
	}
	return load(os.DirFS(root), func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) })
}

// Load compiles every policy in fsys: the files that end in .yaml or .yml, also
// in folders, except tests.yaml, conditions.yaml (which holds conditions that they
// call) and whatever begins with a dot. It returns
// either a whole Set or every fault found (strictyaml.Faults, each with file,
// line and column), or an error of reading. No policies at all are a valid set
// that denies everything.
func Load(fsys fs.FS) (*Set, error) {
	return load(fsys, func(name string) string { return name })
}

func load(fsys fs.FS, shown func(string) string) (*Set, error) {
	names, err := policyFiles(fsys)
	if err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	env, err := newEnvironment()
	if err != nil {
		return nil, err
	}
	l := &loader{env: env, conditions: map[conditionKey]*compiled{}}
	total := 0
	for _, name := range names {
		data, err := readFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read policy: %w", err)
		}
		if total += len(data); total > maxTotalBytes {
			return nil, fmt.Errorf("read policies: they are larger than %d bytes together", maxTotalBytes)
		}
		l.files = append(l.files, &loadedFile{name: shown(name), inFS: name, data: data, shared: path.Base(name) == conditionsName})
	}
	eachInParallel(l.files, (*loadedFile).decode)
	for _, f := range l.files {
		l.faults = append(l.faults, f.faults...)
	}
	l.uniqueNames()
	l.glossaries()
	l.resolveNames()
	l.compileAll()
	l.unusedNames()
	policies := l.build()
	if len(l.faults) > 0 {
		sortFaults(l.faults)
		return nil, l.faults
	}
	return newSet(env, policies), nil
}

func sortFaults(faults strictyaml.Faults) {
	slices.SortStableFunc(faults, func(a, b strictyaml.Fault) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// policyFiles lists the names of policy files in lexical order.
func policyFiles(fsys fs.FS) ([]string, error) {
	var names []string
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		switch base := path.Base(name); {
		case err != nil:
			return err
		case name != "." && strings.HasPrefix(base, "."):
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir() || base == testsName || !isYAML(base):
			return nil
		}
		if names = append(names, name); len(names) > maxFiles {
			return fmt.Errorf("there are more than %d", maxFiles)
		}
		return nil
	})
	return names, err
}

func isYAML(name string) bool {
	ext := strings.ToLower(path.Ext(name))
	return ext == ".yaml" || ext == ".yml"
}

// readFile reads at most a little more than strictyaml accepts.
func readFile(fsys fs.FS, name string) ([]byte, error) {
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	if info.Size() > strictyaml.MaxBytes {
		return nil, fmt.Errorf("%s is %d bytes; the limit is %d", name, info.Size(), strictyaml.MaxBytes)
	}
	return fs.ReadFile(fsys, name)
}

// A loader carries the files through decoding, compiling and building.
type loader struct {
	env        *environment
	files      []*loadedFile
	named      []*namedCondition
	conditions map[conditionKey]*compiled
	unparsed   bool // some condition could not be parsed
	faults     strictyaml.Faults
}

// A loadedFile is a policy, or a conditions.yaml when shared.
type loadedFile struct {
	name   string // as faults show it
	inFS   string
	shared bool
	policy policyFile
	common conditionsFile
	names  *glossary // what its conditions may call
	doc    *strictyaml.Document
	data   []byte
	faults strictyaml.Faults // of everything but conditions
	lines  [][]rune          // of data, once a position is asked for
}

// conditions are the named conditions that the file defines.
func (f *loadedFile) conditions() map[string]source {
	if f.shared {
		return f.common.Conditions
	}
	return f.policy.Conditions
}

// text is the file by lines.
func (f *loadedFile) text() [][]rune {
	if f.lines == nil {
		f.lines = splitLines(f.data)
	}
	return f.lines
}

// The same condition text is compiled once, however many policies hold it.
// names tells apart what texts that call conditions mean in different places;
// it is nil for others.
type conditionKey struct {
	site  site
	text  string
	names *glossary
}

func (f *loadedFile) key(s site, src *source) conditionKey {
	if strings.Contains(src.text, conditionCall) {
		return conditionKey{s, src.text, f.names}
	}
	return conditionKey{s, src.text, nil}
}

// decode reads the file, but does not compile what it holds.
func (f *loadedFile) decode() {
	var faults strictyaml.Faults
	if f.shared {
		f.doc, faults = strictyaml.Decode(f.name, f.data, &f.common)
	} else {
		f.doc, faults = strictyaml.Decode(f.name, f.data, &f.policy)
	}
	f.faults = append(f.faults, faults...)
	undecoded := map[string]bool{}
	for _, fault := range faults {
		undecoded[fault.Path] = true
	}
	if undecoded[""] { // there is no document to speak of
		return
	}
	v := newValidator(f.doc)
	if f.shared {
		v.shared(&f.common)
	} else {
		v.policy(&f.policy)
	}
	f.faults = append(f.faults, slices.DeleteFunc(v.faults, func(fault strictyaml.Fault) bool { return undecoded[fault.Path] })...)
}

// eachInParallel calls do for every item, on all processors.
func eachInParallel[T any](items []T, do func(T)) {
	var workers sync.WaitGroup
	size := max(1, (len(items)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	for part := range slices.Chunk(items, size) {
		workers.Go(func() {
			for _, item := range part {
				do(item)
			}
		})
	}
	workers.Wait()
}

func (l *loader) uniqueNames() {
	first := map[string]strictyaml.Position{}
	for _, f := range l.files {
		if f.policy.Policy == "" {
			continue
		}
		at := f.doc.At("policy")
		if earlier, ok := first[f.policy.Policy]; ok {
			l.faults = append(l.faults, f.doc.Fault("policy", "policy %q is already defined at %s", f.policy.Policy, earlier))
			continue
		}
		first[f.policy.Policy] = at
	}
}

// eachCondition calls visit for every condition of f that is there.
func (f *loadedFile) eachCondition(visit func(s site, src *source, path string)) {
	call := func(s site, src *source, path string) {
		if src.given() {
			visit(s, src, path)
		}
	}
	call(principalSite, &f.policy.Principal, "principal")
	call(resourceSite, &f.policy.Resource, "resource")
	for i := range f.policy.Rules {
		call(whenSite, &f.policy.Rules[i].When, fmt.Sprintf("rules[%d].when", i))
	}
}

// compileAll compiles every distinct condition, on all processors.
func (l *loader) compileAll() {
	var keys []conditionKey
	for _, f := range l.files {
		f.eachCondition(func(s site, src *source, _ string) {
			key := f.key(s, src)
			if _, known := l.conditions[key]; !known {
				l.conditions[key] = nil
				keys = append(keys, key)
			}
		})
	}
	results := make([]*compiled, len(keys))
	indexes := make([]int, len(keys))
	for i := range keys {
		indexes[i] = i
	}
	eachInParallel(indexes, func(i int) { results[i] = l.compile(keys[i]) })
	for i, c := range results {
		l.conditions[keys[i]] = c
		l.unparsed = l.unparsed || c.unparsed
		for _, n := range c.calls {
			n.used = true
		}
	}
	for _, f := range l.files {
		f.eachCondition(func(s site, src *source, path string) {
			for _, fault := range l.conditions[f.key(s, src)].faults {
				at := src.position(f.name, f.text(), fault.line, fault.column)
				l.faults = append(l.faults, strictyaml.Fault{Position: at, Path: path, Message: fault.message})
			}
		})
	}
}

// compile turns a panic of the compiler into a fault: a policy file must not
// end the process that still serves the last good set.
func (l *loader) compile(key conditionKey) (c *compiled) {
	defer func() {
		if r := recover(); r != nil {
			c = &compiled{unparsed: true, faults: []conditionFault{{message: fmt.Sprintf("cannot be compiled: %v", r)}}}
		}
	}()
	return l.env.compile(key.site, key.text, key.names)
}

// build makes the compiled policies, when there are no faults.
func (l *loader) build() []*policy {
	if len(l.faults) > 0 {
		return nil
	}
	for _, c := range l.conditions {
		for _, text := range c.condition.literals {
			l.env.box.literals[text] = types.String(text)
		}
	}
	always := &condition{source: "true", site: whenSite, always: true}
	var policies []*policy
	for _, f := range l.files {
		if f.shared {
			continue
		}
		condition := func(s site, src *source) *condition { return l.conditions[f.key(s, src)].condition }
		p := &policy{
			name: f.policy.Policy, file: f.name, description: f.policy.Description,
			principal: condition(principalSite, &f.policy.Principal),
			resource:  condition(resourceSite, &f.policy.Resource),
		}
		p.needs = requirementOf(p.principal)
		for j := range f.policy.Rules {
			when := always
			if src := f.policy.Rules[j].When; src.given() {
				when = condition(whenSite, &src)
			}
			p.rules = append(p.rules, f.rule(p, j, when))
		}
		policies = append(policies, p)
	}
	return policies
}

// rule builds rule j of f, which has been validated.
func (f *loadedFile) rule(p *policy, j int, when *condition) *rule {
	in := &f.policy.Rules[j]
	effect, err := parseEffect(in.Effect)
	if err != nil { // validated before
		panic("policy: " + err.Error())
	}
	r := &rule{
		policy: p, effect: effect, when: when, message: strings.TrimSpace(in.Message),
		masks: mergeMasks(in.Mask), limits: in.Limits.limits(), session: in.Session.max(), writeMasked: in.WriteMasked, at: f.doc.At(fmt.Sprintf("rules[%d]", j)),
	}
	if in.Approval != nil {
		terms := in.Approval.terms()
		r.approval = &terms
	}
	r.refs = []access.RuleRef{{Policy: f.policy.Policy, Rule: in.Name, Hash: ruleHash(&f.policy, in, r, textsOf(p.principal, p.resource, when))}}
	return r
}

// FaultsOf returns the faults that err holds, nil when it is another error.
func FaultsOf(err error) strictyaml.Faults {
	faults, _ := errors.AsType[strictyaml.Faults](err)
	return faults
}
