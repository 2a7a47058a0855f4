package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The ready-made packs load, pass their own cases, and every rule is decided by
// one of them.
func TestPacks(t *testing.T) {
	t.Parallel()
	const root = "../../policies"
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	packs := 0
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		packs++
		t.Run(entry.Name(), func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(root, entry.Name())
			set, err := LoadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			report, err := RunTests(set, dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range report.Cases {
				if len(c.Wrong) > 0 {
					t.Errorf("%s: %s: %v: %s", c.At, c.Name, c.Wrong, c.Decision.Message)
				}
			}
			for _, f := range set.Lint(nil) {
				t.Errorf("%s: %s", f, f.Advice)
			}
			if len(report.Cases) == 0 {
				t.Error("there are no cases")
			}
			for _, ref := range report.Untested {
				t.Errorf("no case is decided by %s", ref)
			}
			if _, err := os.Stat(filepath.Join(dir, "README.md")); err != nil {
				t.Error(err)
			}
		})
	}
	if packs < 5 {
		t.Errorf("%d packs", packs)
	}
}

const ordersCases = `
principals:
  agent: {issuer: dex, user: alice@example.com, groups: [orders-agents], chain: [{subject: boss, user: bob@example.com}]}
resources:
  orders: {kind: postgres, labels: {env: prod}}
  billing: {kind: http}
tests:
  - name: read
    who: agent
    on: orders
    sql: {command: SELECT, read_only: true, reads: [public.orders, public.customers]}
    expect:
      effect: allow
      rule: orders-agents/read
      masks: [{detect: [API_KEY, CREDIT_CARD], with: partial}, {column: public.customers.ssn}]
  - name: fix
    who: agent
    on: orders
    at: 2026-01-05T12:00:00Z
    sql: {command: UPDATE, writes: [public.orders], has_where: true}
    expect: {effect: approve, groups: [senior-engineers], count: 1, limits: {rows_changed: 10}}
  - name: http
    who: agent
    on: billing
    http: {method: POST, path: /x, body: {amount: 5, items: [1.5]}}
    expect: {effect: deny, reason: no-rule, rule: default-deny}
`

func TestRunTests(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "orders.yaml", ordersPolicy)
	shown := func(name string) string { return name }
	report, err := runTests(set, files("tests.yaml", ordersCases, "more/tests.yaml", ordersCases, "other.yaml", "x: ["), shown)
	if err != nil || !report.Passed() || len(report.Cases) != 6 || len(report.Untested) != 0 {
		t.Fatalf("got %+v, %v", report, err)
	}
	if at := report.Cases[0].At; at != "more/tests.yaml:8:5" {
		t.Errorf("at %s", at)
	}
	for edit, want := range map[[2]string]string{
		{"effect: allow", "effect: deny"}:                            "effect: want deny, got allow",
		{"rule: orders-agents/read", "rule: orders-agents/x"}:        "rule: want orders-agents/x, got orders-agents/read",
		{"with: partial", "with: redact"}:                            "masks: want",
		{", {column: public.customers.ssn}", ""}:                     "masks: want",
		{"rows_changed: 10", "rows_changed: 11"}:                     "limits: want",
		{"groups: [senior-engineers]", "groups: [juniors]"}:          "groups: want",
		{"count: 1", "count: 2"}:                                     "count: want 2, got 1",
		{"reason: no-rule", "reason: denied-by-rule"}:                "reason: want denied-by-rule, got no-rule",
		{"groups: [orders-agents], chain", "groups: [other], chain"}: "effect: want allow, got deny",
	} {
		changed := strings.Replace(ordersCases, edit[0], edit[1], 1)
		report, err := runTests(set, files("tests.yaml", changed), shown)
		if err != nil || report.Passed() {
			t.Errorf("%v: passed, %v", edit, err)
			continue
		}
		var wrong []string
		for _, c := range report.Cases {
			for _, d := range c.Wrong {
				wrong = append(wrong, d.String())
			}
		}
		if !strings.Contains(strings.Join(wrong, "\n"), want) {
			t.Errorf("%v: got %q, want %q", edit, wrong, want)
		}
	}
	only := strings.Split(ordersCases, "  - name: fix")[0]
	if report, err := runTests(set, files("tests.yaml", only), shown); err != nil || len(report.Untested) != 1 || report.Untested[0].Rule != "fix-an-order" {
		t.Errorf("untested rules: %+v, %v", report.Untested, err)
	}
}

func TestRunTestsFaultsGolden(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "orders.yaml", ordersPolicy)
	_, err := runTests(set, files("tests.yaml", `
principals: {a: {user: u}}
resources: {r: {kind: postgres}}
tests:
  - {name: x, who: nobody, on: nothing, expect: {effect: perhaps}}
  - {who: a, on: r, sql: {command: SELECT}, http: {method: GET, path: /}, expect: {effect: allow}}
  - {name: y, who: a, on: r, http: {method: GET, path: x}, expect: {effect: allow}}
  - {name: y, who: a, on: r, http: {method: GET, path: /, body_state: half}, expect: {effect: allow}}
  - {name: y, who: a, on: r, http: {method: GET, path: /, body_state: unread, body: 1}, expect: {effect: allow}}
`, "b/tests.yaml", "tests: []\nunknown: 1\n", "c/tests.yaml", "tests: []\n"), func(name string) string { return name })
	if FaultsOf(err) == nil {
		t.Fatalf("got %v", err)
	}
	golden(t, "testdata/cases.golden", err.Error()+"\n")
}

func TestRunTestsDir(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "orders.yaml", ordersPolicy)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tests.yaml"), []byte(ordersCases), 0o644); err != nil {
		t.Fatal(err)
	}
	report, err := RunTests(set, dir)
	if err != nil || !report.Passed() || !strings.HasPrefix(report.Cases[0].At, dir) {
		t.Errorf("got %+v, %v", report, err)
	}
	if _, err := RunTests(set, filepath.Join(dir, "missing")); err == nil {
		t.Error("a missing directory is no error")
	}
}

// A body in a case is what the gateway would have decoded.
func TestCaseBodies(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: small, when: 'http.body.amount <= 10 && http.body.items[0].n == 2', effect: allow}\n"))
	report, err := runTests(set, files("tests.yaml", `
principals: {a: {user: u}}
resources: {r: {kind: http}}
tests:
  - {name: whole, who: a, on: r, http: {method: POST, path: /, body: {amount: 9.5, items: [{n: 2}]}}, expect: {effect: allow}}
  - {name: large, who: a, on: r, http: {method: POST, path: /, body: {amount: 11, items: [{n: 2}]}}, expect: {effect: deny}}
  - {name: unread, who: a, on: r, http: {method: POST, path: /, body_state: unread}, expect: {effect: deny, reason: no-rule}}
  - {name: none, who: a, on: r, http: {method: POST, path: /}, expect: {effect: deny, reason: no-rule}}
`), func(name string) string { return name })
	if err != nil || !report.Passed() {
		t.Errorf("got %+v, %v", report, err)
	}
}

// Estimates of a case are what conditions read; left out, they are not known.
func TestCaseEstimates(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: small, when: 'sql.estimated_rows < 1000 && sql.estimated_bytes < 1000', effect: allow}\n"))
	const head = "principals: {a: {issuer: dex, subject: s}}\nresources: {r: {kind: postgres}}\ntests:\n"
	report, err := runTests(set, files("tests.yaml", head+`
  - {name: small, who: a, on: r, sql: {command: SELECT, estimated_rows: 0, estimated_bytes: 999}, expect: {effect: allow, rule: p/small}}
  - {name: large, who: a, on: r, sql: {command: SELECT, estimated_rows: 1000, estimated_bytes: 9}, expect: {effect: deny}}
  - {name: unknown, who: a, on: r, sql: {command: SELECT, estimated_rows: 1}, expect: {effect: deny}}
`), func(name string) string { return name })
	if err != nil || !report.Passed() || len(report.Cases) != 3 {
		t.Errorf("%+v %v", report, err)
	}
	_, err = runTests(set, files("tests.yaml", head+"  - {name: x, who: a, on: r, sql: {estimated_rows: -1}, expect: {effect: deny}}\n"), func(name string) string { return name })
	if err == nil || !strings.Contains(err.Error(), "cannot be below 0") {
		t.Errorf("negative: %v", err)
	}
}
