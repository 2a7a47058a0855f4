package policy

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/cel"

	"chaperone.dev/chaperone/internal/access"
)

// A block is one fenced code block of the page.
type block struct{ language, text string }

func blocksOf(page string) []block {
	var blocks []block
	for _, m := range regexp.MustCompile("(?ms)^```([a-z ]+)\n(.*?)^```$").FindAllStringSubmatch(page, -1) {
		blocks = append(blocks, block{strings.TrimSpace(m[1]), m[2]})
	}
	return blocks
}

// Every example of the page for policy authors is loaded; cases are run against
// the policies before them.
func TestDocumentationExamples(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	sites := map[string]site{"cel": whenSite, "cel principal": principalSite, "cel resource": resourceSite}
	var example []string // the files of the page so far
	policies, cases, conditions := 0, 0, 0
	for _, b := range blocksOf(string(page)) {
		s, isCondition := sites[b.language]
		switch {
		case isCondition:
			for text := range strings.SplitSeq(b.text, "\n\n") {
				conditions++
				if _, faults := compileText(env, s, text); len(faults) > 0 {
					t.Errorf("%s: %v", text, faults)
				}
			}
		case b.language == "yaml" && strings.HasPrefix(b.text, "policy:"):
			policies++
			example = append(example, fmt.Sprintf("%d.yaml", policies), b.text)
			mustLoad(t, example...)
		case b.language == "yaml" && strings.HasPrefix(b.text, "conditions:"):
			example = append(example, conditionsName, b.text) // for the policy after it
		case b.language == "yaml" && strings.HasPrefix(b.text, "principals:"):
			report, err := runTests(mustLoad(t, example...), files("tests.yaml", b.text), func(name string) string { return name })
			if err != nil {
				t.Fatal(err)
			}
			cases += len(report.Cases)
			for _, c := range report.Cases {
				if len(c.Wrong) > 0 {
					t.Errorf("%s: %v", c.Name, c.Wrong)
				}
			}
		default:
			t.Errorf("no test knows what to do with a block of %q", b.language)
		}
	}
	if policies < 2 || cases < 3 || conditions < 3 {
		t.Errorf("found %d policies, %d cases, %d conditions", policies, cases, conditions)
	}
}

// The policy of the page on Kubernetes passes the tests beside it.
func TestKubernetesPolicy(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	var set *Set
	ran := 0
	for _, b := range blocksOf(string(page)) {
		switch {
		case strings.HasPrefix(b.text, "policy:"):
			set = mustLoad(t, "shop.yaml", b.text)
		case strings.HasPrefix(b.text, "principals:"):
			report, err := runTests(set, files("tests.yaml", b.text), func(name string) string { return name })
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range report.Cases {
				ran++
				if len(c.Wrong) > 0 {
					t.Errorf("%s: %v", c.Name, c.Wrong)
				}
			}
		}
	}
	if ran < 8 {
		t.Errorf("%d cases", ran)
	}
}

// A page of the vocabulary shows a request, and says of every example what it
// comes to for that request. The tables list every attribute with its type.
func TestVocabularyPages(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: r, effect: allow}\n"))
	missing := map[string]string{"now": "timestamp"}
	for _, object := range set.env.vocabulary.objectTypes() {
		for _, f := range object.fields {
			if object != set.env.vocabulary.hop {
				missing[object.variable+"."+f.name] = typeName(f.kind)
			}
		}
	}
	examples := 0
	for name, s := range map[string]site{
		"principal": principalSite, "resource": resourceSite, "sql": whenSite, "http": whenSite, "ssh": whenSite, "k8s": whenSite, "request": whenSite, "now": whenSite,
	} {
		text, err := os.ReadFile("../../docs/policy/" + name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		page := vocabularyPage{set: set, site: s, text: string(text)}
		examples += page.check(t, name, missing)
	}
	for name := range missing {
		t.Errorf("no page has %s", name)
	}
	if examples < 50 {
		t.Errorf("%d examples", examples)
	}
}

type vocabularyPage struct {
	set  *Set
	site site
	text string
	req  access.Request
	at   time.Time
}

// check takes the attributes of the page off missing and returns how many
// examples it has.
func (p *vocabularyPage) check(t *testing.T, variable string, missing map[string]string) (examples int) {
	t.Helper()
	for _, b := range blocksOf(p.text) {
		switch {
		case strings.HasPrefix(b.text, "principals:"):
			cases, faults := decodeCases(variable+".md", []byte(b.text))
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			p.req, p.at = cases.request(0)
		case strings.HasPrefix(b.language, "cel"):
			for text := range strings.SplitSeq(strings.TrimSpace(b.text), "\n\n") {
				condition, outcome, _ := strings.Cut(text, " // ")
				examples++
				p.example(t, condition, outcome)
			}
		default:
			t.Errorf("%s: no test knows what to do with a block of %q", variable, b.language)
		}
	}
	row := regexp.MustCompile("(?m)^\\| `(" + variable + "(?:\\.[a-z_]+)*)` \\| ([^|]+) \\| [^|]+ \\| `(.+)` \\| ([a-z]+) \\|$")
	for _, m := range row.FindAllStringSubmatch(p.text, -1) {
		name, kind, example, outcome := m[1], m[2], m[3], m[4]
		if want, known := missing[name]; !known || want != kind {
			t.Errorf("%s is a %q here, and a %q in the vocabulary", name, kind, want)
		}
		delete(missing, name)
		if !strings.Contains(example, name) {
			t.Errorf("%s: its example is about something else: %s", name, example)
		}
		examples++
		p.example(t, example, outcome)
	}
	return examples
}

// example evaluates a condition for the page's request.
func (p *vocabularyPage) example(t *testing.T, text, want string) {
	t.Helper()
	c, faults := compileText(p.set.env, p.site, text)
	if len(faults) > 0 {
		t.Errorf("%s: %v", text, faults)
		return
	}
	e := p.set.begin()
	e.of(&p.req, p.set.newScope(&p.req.Principal, p.set.newTarget(&p.req.Resource)), p.at)
	out, _ := e.run(c)
	p.set.end(e)
	if out.String() != want {
		t.Errorf("%s is %s, the page says %q", text, out, want)
	}
}

// What masks and hops are made of is on the pages, too.
func TestDocumentationNames(t *testing.T) {
	t.Parallel()
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	for page, names := range map[string][]string{
		"policy.md": detectors(), "policy/principal.md": strings.Split(env.vocabulary.hop.names(), ", "),
	} {
		text, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("%s is not on %s", name, page)
			}
		}
	}
}

func typeName(t *cel.Type) string {
	name := strings.NewReplacer("chaperone.Hop", "hop", "chaperone.K8sObject", "object").Replace(t.String())
	return strings.ReplaceAll(name, "google.protobuf.Timestamp", "timestamp")
}
