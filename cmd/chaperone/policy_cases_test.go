package main

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/policy"
)

const deskCases = `principals: {agent: {user: ada, groups: [agents]}}
resources: {orders: {kind: postgres}}
tests:
  - name: reads <are> masked
    who: agent
    on: orders
    sql: {command: SELECT, read_only: true}
    expect: {effect: allow, masks: [{column: public.customers.ssn}]}
  - name: fixes wait
    who: agent
    on: orders
    sql: {command: UPDATE}
    expect: {effect: approve, rule: desk/fix}
`

func TestPolicyTest(t *testing.T) {
	t.Parallel()
	wrong := strings.Replace(deskCases, "effect: approve, rule: desk/fix", "effect: allow, rule: desk/read", 1)
	dir := folder(t, "a/desk.yaml", deskPolicy, "a/tests.yaml", deskCases, "b/c/desk.yaml", deskPolicy, "b/c/deeper/tests.yaml", wrong, "empty/README.md", "")
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b", "c")
	want(t, 0, []string{a + ": 2 passed, 0 failed, 66% of 3 rules covered", "note: no case is decided by desk/calls (" + a + "/desk.yaml:"}, "policy", "test", a)
	want(t, 1, []string{
		a + ": 2 passed, 0 failed", b + ": 1 passed, 1 failed", "FAIL " + b + "/deeper/tests.yaml:9:5: fixes wait",
		"  effect\n  - want allow\n  + got  approve\n  rule\n  - want desk/read\n  + got  desk/fix\n  it says: rule desk/fix holds",
	}, "policy", "test", dir+"/...")
	want(t, 0, []string{"    1  desk/read (", "    1  desk/fix (", "    0  desk/calls ("}, "policy", "test", "--coverage", a)
	want(t, 1, []string{"66% of 3 rules covered; 67% are asked for"}, "policy", "test", "--min-coverage", "67", a)
	want(t, 0, nil, "policy", "test", "--min-coverage", "66", a, a)
	want(t, 1, []string{"no folder there holds policies"}, "policy", "test", filepath.Join(dir, "empty")+"/...")
	want(t, 1, []string{"is not a folder"}, "policy", "test", filepath.Join(dir, "empty", "README.md"))
	want(t, 1, []string{"no such file"}, "policy", "test", filepath.Join(dir, "missing"))
	want(t, 2, nil, "policy", "test")
	want(t, 2, nil, "policy", "test", a, "--min-coverage", "101")
	want(t, 2, nil, "policy", "test", a, "-o", "xml")

	var run testRun
	out := want(t, 1, nil, "policy", "test", "-o", "json", dir+"/...")
	if err := json.Unmarshal([]byte(out), &run); err != nil || run.Passed || len(run.Folders) != 2 || !run.Folders[0].Passed || run.Folders[1].Passed ||
		run.Folders[1].Cases[1].Wrong[0] != (policy.Difference{What: "effect", Want: "allow", Got: "approve"}) || len(run.Folders[0].Coverage) != 3 {
		t.Errorf("got %+v, %v", run, err)
	}
}

func TestPolicyTestJUnit(t *testing.T) {
	t.Parallel()
	wrong := strings.Replace(deskCases, "effect: approve, rule: desk/fix", "effect: allow", 1)
	dir := folder(t, "desk.yaml", deskPolicy, "tests.yaml", wrong)
	file := filepath.Join(t.TempDir(), "report.xml")
	want(t, 1, nil, "policy", "test", "--junit", file, "--min-coverage", "100", dir)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var report junitReport
	if err := xml.Unmarshal(b, &report); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if report.Tests != 3 || report.Failures != 2 || len(report.Suites) != 1 || report.Suites[0].Name != dir {
		t.Fatalf("got %+v", report)
	}
	cases := report.Suites[0].Cases
	if cases[0].Name != "reads <are> masked" || cases[0].Failure != nil || cases[1].Failure == nil ||
		cases[1].Failure.Message != "effect: want allow, got approve" || !strings.Contains(cases[1].Failure.Text, "tests.yaml:9:5") ||
		cases[2].Failure == nil || !strings.Contains(cases[2].Failure.Text, "desk/calls") {
		t.Errorf("got %s", b)
	}
	want(t, 1, []string{"junit:"}, "policy", "test", "--junit", filepath.Join(dir, "missing", "report.xml"), dir)
	left, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".junit-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// Colours are for terminals only, and there only on what differs.
func TestFailureColours(t *testing.T) {
	t.Parallel()
	result := policy.CaseResult{At: "f:1:2", Name: "n\x1b[2J", Wrong: []policy.Difference{{What: "effect", Want: "allow", Got: "deny"}}}
	var plain, painted strings.Builder
	writeFailure(&plain, painter(false), result)
	writeFailure(&painted, painter(true), result)
	if strings.Contains(plain.String(), "\x1b") || !strings.Contains(painted.String(), "\x1b[32m- want allow\x1b[0m") ||
		!strings.Contains(painted.String(), "\x1b[31m+ got  deny\x1b[0m") || strings.Contains(painted.String(), "\x1b[2J") {
		t.Errorf("got %q and %q", plain.String(), painted.String())
	}
}
