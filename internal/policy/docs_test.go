package policy

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"cel.dev/cel-go/cel"
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
	if policies < 2 || cases < 3 || conditions < 5 {
		t.Errorf("found %d policies, %d cases, %d conditions", policies, cases, conditions)
	}
}

// The tables of the page list every attribute with its type, and their examples
// can be written where the page says.
func TestDocumentationAttributes(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]string{"now": "timestamp"}
	for _, object := range env.vocabulary.objectTypes() {
		for _, f := range object.fields {
			if object != env.vocabulary.hop {
				missing[object.variable+"."+f.name] = typeName(f.kind)
			}
		}
	}
	row := regexp.MustCompile("(?m)^\\| `((?:principal|resource|sql|http|request)\\.[a-z_]+|now)` \\| ([^|]+) \\| [^|]+ \\| `(.+)` \\|$")
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		name, kind, example := m[1], m[2], m[3]
		if want, known := missing[name]; !known || want != kind {
			t.Errorf("%s is a %q here, and a %q in the vocabulary", name, kind, want)
		}
		delete(missing, name)
		s := whenSite
		switch {
		case strings.HasPrefix(name, "principal."):
			s = principalSite
		case strings.HasPrefix(name, "resource."):
			s = resourceSite
		}
		if _, faults := compileText(env, s, example); len(faults) > 0 || !strings.Contains(example, name) {
			t.Errorf("%s: example %s: %v", name, example, faults)
		}
	}
	for name := range missing {
		t.Errorf("%s is not on the page", name)
	}
	for _, f := range env.vocabulary.hop.fields {
		if !strings.Contains(string(page), "`"+f.name+"`") {
			t.Errorf("the field %s of a hop is not on the page", f.name)
		}
	}
	for _, d := range detectors() {
		if !strings.Contains(string(page), "`"+d+"`") {
			t.Errorf("the detector %s is not on the page", d)
		}
	}
}

func typeName(t *cel.Type) string {
	name := strings.ReplaceAll(t.String(), "chaperone.Hop", "hop")
	return strings.ReplaceAll(name, "google.protobuf.Timestamp", "timestamp")
}
