package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/policy"
	"chaperone.dev/chaperone/internal/record"
)

// command runs one command line and returns what it printed and its exit
// status.
func command(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	err := run(t.Context(), args, &out, &errs)
	status = exitCode(&errs, err)
	return out.String(), errs.String(), status
}

// want fails unless a command line ends so and prints all of that.
func want(t *testing.T, status int, printed []string, args ...string) string {
	t.Helper()
	out, errs, got := command(t, args...)
	if got != status {
		t.Fatalf("%s: exit status %d, want %d\n%s%s", strings.Join(args, " "), got, status, out, errs)
	}
	for _, p := range printed {
		if !strings.Contains(out+errs, p) {
			t.Errorf("%s: %q is not in\n%s%s", strings.Join(args, " "), p, out, errs)
		}
	}
	return out
}

// folder is a new folder with files: name, content, name, content, …
func folder(t *testing.T, pairs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(pairs); i += 2 {
		path := filepath.Join(dir, pairs[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(pairs[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const deskPolicy = `policy: desk
principal: '"agents" in principal.groups'
resource: 'resource.kind == "postgres"'
rules:
  - name: read
    when: 'sql.read_only && now.getHours() < 18'
    effect: allow
    mask: [{column: public.customers.ssn}]
  - name: fix
    when: 'sql.command == "UPDATE"'
    effect: approve
    approval: {groups: [seniors]}
  - name: calls
    when: 'http.method == "GET"'
    effect: allow
`

// asked are requests of several kinds, at noon of a Monday.
func asked() []access.Request {
	noon := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	who := access.Principal{Issuer: "dex", Subject: "s1", User: "ada@example.com", Subagent: "agent", Groups: []string{"agents"}}
	db := access.Resource{Name: "orders", Kind: access.Postgres, Labels: map[string]string{"env": "prod"}}
	return []access.Request{
		{ID: "req_read", Session: "ses_1", Time: noon, Principal: who, Resource: db,
			Action: access.Action{SQL: &access.SQL{Text: "select 1 from orders", Command: "SELECT", ReadOnly: true,
				Tables: []string{"public.orders"}, Reads: []string{"public.orders"}, Statements: 1}}},
		{ID: "req_fix", Session: "ses_1", Time: noon, Principal: who, Resource: db,
			Action: access.Action{SQL: &access.SQL{Text: "update orders set a = 1", Command: "UPDATE",
				Tables: []string{"public.orders"}, Writes: []string{"public.orders"}, Statements: 1}}},
		{ID: "req_call", Session: "ses_2", Time: noon, Principal: who, Resource: access.Resource{Name: "billing", Kind: access.HTTP},
			Action: access.Action{HTTP: &access.HTTPCall{Method: "POST", Path: "/refunds", BodyState: access.BodyWhole,
				Body: map[string]any{"amount": json.Number("1.0"), "to": "x: y #z"}}}},
	}
}

// recordedAs is a recording of the asked requests as a policy folder decides
// them.
func recordedAs(t *testing.T, policies string) string {
	t.Helper()
	set, err := policy.LoadDir(policies)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "recordings")
	r, err := record.Open(record.Config{Dir: dir, Replica: "test"})
	if err != nil {
		t.Fatal(err)
	}
	var events []access.Event
	for _, req := range asked() {
		d := set.Decide(req, req.Time.Add(time.Millisecond))
		events = append(events, access.Event{Session: req.Session, Request: req.ID, Decided: &access.Decided{Request: req, Decision: d}})
	}
	events = append(events, access.Event{Request: "req_bad", Denied: &access.Denied{Denial: access.Denial{RequestID: "req_bad", Reason: access.Unauthenticated}}})
	if err := errors.Join(r.Append(context.Background(), access.Synced, events...), r.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPolicyReplay(t *testing.T) {
	t.Parallel()
	same := folder(t, "desk.yaml", deskPolicy)
	recording := recordedAs(t, same)
	noInput := "not replayed: 1, recorded without the input of a decision: unauthenticated"
	want(t, 0, []string{"3 decisions replayed by rev_", " 0 flip", noInput}, "policy", "replay", "--policies", same, "--recordings", recording)

	changed := folder(t, "desk.yaml", strings.NewReplacer("effect: approve\n    approval: {groups: [seniors]}", "effect: allow",
		"    mask: [{column: public.customers.ssn}]\n", "").Replace(deskPolicy))
	want(t, 1, []string{
		"ada@example.com by agent on orders: 1 × allow by desk/read -> allow by desk/read", "no longer masked: public.customers.ssn",
		"1 × approve by desk/fix -> allow by desk/fix", "approve becomes allow", "for example req_fix at 2026-01-05T12:00:00Z", " 2 flip", noInput,
	}, "policy", "replay", "--policies", changed, "--recordings", recording)

	var report policy.ReplayReport
	out := want(t, 1, nil, "policy", "replay", "--policies", changed, "--recordings", recording, "-o", "json")
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Flipped != 2 || len(report.Flips) != 2 || report.Flips[0].To.Effect != access.Allow {
		t.Errorf("got %+v, %v", report, err)
	}
	want(t, 0, []string{"0 decisions replayed"}, "policy", "replay", "--policies", changed, "--recordings", recording, "--since", "2999-01-01")
	want(t, 1, []string{" 2 flip"}, "policy", "replay", "--policies", changed, "--recordings", recording, "--since", "1d")
	want(t, 1, []string{" 4 flip"}, "policy", "replay", "--policies", changed, "--recordings", recording, "--recordings", recording)
}

func TestPolicyReplayRefuses(t *testing.T) {
	t.Parallel()
	dir := folder(t, "desk.yaml", deskPolicy)
	recording := recordedAs(t, dir)
	want(t, 2, []string{"--policies is needed"}, "policy", "replay", "--recordings", recording)
	want(t, 2, []string{"--since is a time"}, "policy", "replay", "--policies", dir, "--recordings", recording, "--since", "yesterday")
	want(t, 2, []string{"--output is table or json"}, "policy", "replay", "--policies", dir, "--recordings", recording, "-o", "xml")
	want(t, 1, []string{"desk.yaml:"}, "policy", "replay", "--policies", folder(t, "desk.yaml", "policy: x"), "--recordings", recording)
	segment := filepath.Join(recording, "segment-000000000001.ndjson")
	b, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(segment, bytes.Replace(b, []byte("update orders"), []byte("delete orders"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	out := want(t, 1, []string{"was changed"}, "policy", "replay", "--policies", dir, "--recordings", recording)
	if strings.Contains(out, "replayed") {
		t.Errorf("a recording that is not whole was reported on: %s", out)
	}
}

func TestSinceFlag(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 10, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"": "0001-01-01T00:00:00Z", "36h": "2026-01-09T00:00:00Z", "7d": "2026-01-03T12:00:00Z",
		"2026-01-05": "2026-01-05T00:00:00Z", "2026-01-05T12:00:00Z": "2026-01-05T12:00:00Z",
	} {
		if got, err := sinceFlag(text, now); err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("%s: got %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "-3h", "-1d", "1d2h", "12"} {
		if _, err := sinceFlag(text, now); !errors.Is(err, errUsage) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

// What was recorded passes as a case beside the policies that decided it, and
// not beside others.
func TestPolicyExport(t *testing.T) {
	t.Parallel()
	dir := folder(t, "desk.yaml", deskPolicy)
	recording := recordedAs(t, dir)
	cases := want(t, 0, []string{"UPDATE on orders (req_fix)", "amount"}, "policy", "export", "req_read", "req_fix", "req_call", "--recordings", recording)
	if err := os.WriteFile(filepath.Join(dir, "tests.yaml"), []byte(cases), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, 0, []string{"3 passed, 0 failed"}, "policy", "test", dir)
	other := folder(t, "desk.yaml", strings.Replace(deskPolicy, "sql.read_only &&", "!sql.read_only &&", 1), "tests.yaml", cases)
	want(t, 1, []string{"SELECT on orders (req_read)"}, "policy", "test", other)
	want(t, 1, []string{"no decision on request req_bad is recorded there"}, "policy", "export", "req_bad", "--recordings", recording)
	want(t, 2, nil, "policy", "export", "--recordings", recording)
}

func TestPolicyLint(t *testing.T) {
	t.Parallel()
	clean := strings.Split(deskPolicy, "  - name: calls")[0]
	want(t, 0, []string{": 2 rules, 0 errors, 0 warnings"}, "policy", "lint", folder(t, "desk.yaml", clean))
	warned := strings.Replace(clean, "resource: 'resource.kind == \"postgres\"'", "resource: 'true'", 1)
	want(t, 0, []string{"any-resource", "0 errors, 2 warnings"}, "policy", "lint", folder(t, "desk.yaml", warned))
	dir := folder(t, "desk.yaml", deskPolicy)
	want(t, 1, []string{dir + "/desk.yaml:13:5: error: desk/calls: it reads http, and the policy is never about a resource of kind http (other-kind)",
		"  read what such a resource has", ": 3 rules, 1 errors, 0 warnings"}, "policy", "lint", dir)
	var linted []lintedFolder
	out := want(t, 1, nil, "policy", "lint", "-o", "json", dir)
	if err := json.Unmarshal([]byte(out), &linted); err != nil || len(linted) != 1 || len(linted[0].Findings) != 1 || linted[0].Findings[0].Code != "other-kind" {
		t.Errorf("got %+v, %v", linted, err)
	}
	want(t, 2, nil, "policy", "lint")
	want(t, 2, nil, "policy", "lint", dir, "-o", "xml")
	want(t, 1, []string{"no such file"}, "policy", "lint", dir, "--config", filepath.Join(dir, "none.yaml"))
}
