package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// codes are the findings of a policy as "rule:code:severity".
func codes(findings []Finding) string {
	var out []string
	for _, f := range findings {
		out = append(out, fmt.Sprintf("%s:%s:%s", f.Rule.Rule, f.Code, f.Severity))
	}
	return strings.Join(out, " ")
}

func TestLintFindsContradictions(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]bool{
		`sql.command == "A" && sql.command == "B"`:                                       true,
		`sql.command == "A" && sql.command in ["B", "C"]`:                                true,
		`sql.command in ["A", "B"] && sql.command != "A" && sql.command != "B"`:          true,
		`sql.command in ["A", "B"] && !(sql.command in ["B", "A"])`:                      true,
		`sql.command == "DROP TABLE" && sql.command.startsWith("ALTER")`:                 true,
		`sql.read_only && !sql.read_only`:                                                true,
		`sql.read_only == false && sql.read_only`:                                        true,
		`sql.statements > 3 && sql.statements < 3`:                                       true,
		`sql.statements >= 3 && 3 > sql.statements`:                                      true,
		`sql.statements > 3 && sql.statements == 2`:                                      true,
		`sql.read_only && resource.kind == "http"`:                                       true,
		`resource.kind == "mysql"`:                                                       true,
		`false`:                                                                          true,
		`sql.command in []`:                                                              true,
		`!has(resource.labels.env) && resource.labels.env == "prod"`:                     true,
		`resource.labels.env == "prod" && resource.labels["env"] == "dev"`:               true,
		`(sql.command == "A" || sql.command == "B") && sql.command == "C"`:               true,
		`!(sql.command == "A" || sql.read_only) && sql.command == "A"`:                   true,
		`"g" in principal.groups && !("g" in principal.groups)`:                          true,
		`resource.labels.env == "x"`:                                                     true, // the policy says prod
		`principal.user == "bob"`:                                                        true, // the policy says ann
		`sql.tables.all(t, t == "x") && !sql.tables.all(t, t == "x")`:                    true,
		`sql.command == "A" && sql.command in ["A", "B"]`:                                false,
		`sql.command != "A" && sql.command != "B"`:                                       false,
		`sql.statements >= 3 && sql.statements <= 3`:                                     false,
		`sql.tables.all(t, t == "x") && !sql.tables.all(u, u == "x")`:                    false, // another text
		`sql.tables.exists(t, t == "x") && sql.tables.exists(t, t == "y")`:               false,
		`"g" in principal.groups && "h" in principal.groups`:                             false,
		`sql.command == "A" || sql.command == "B"`:                                       false,
		`http.body.x > 5 && http.body.x < 6`:                                             false,
		`http.body.x == 1 && http.body.x == 1.0`:                                         false,
		`http.body.x != 1 && !(http.body.x < 1) && !(http.body.x > 1)`:                   false, // unknown what it is
		`sql.command.startsWith("ALTER") && sql.command == "ALTER TABLE"`:                false,
		`(resource.labels.env == "dev" ? sql.read_only : !sql.read_only)`:                false,
		`!has(resource.labels.team)`:                                                     false,
		`http.path.matches("^/a") && http.path.matches("^/b")`:                           false, // true of nothing, but not proved
		`now.getHours() < 5 && now.getHours() > 3 && now.getHours("Europe/Berlin") == 9`: false,
	} {
		text := "policy: p\nprincipal: 'principal.user == \"ann\"'\nresource: 'resource.labels.env == \"prod\"'\nrules:\n  - name: r\n    effect: allow\n    when: |\n      " + when + "\n"
		set := mustLoad(t, "p.yaml", text)
		got := codes(set.Lint(nil))
		unreachable := got == "r:unreachable:error" || got == "r:other-kind:error"
		if unreachable != want || !want && got != "" {
			t.Errorf("%s: got %q, want unreachable %t", when, got, want)
		}
	}
}

func TestLint(t *testing.T) {
	t.Parallel()
	around := &Surroundings{Resources: []access.Resource{orders(), billing()}, Reviewers: []string{"seniors"}}
	policy := func(principal, resource, rules string) string {
		return "policy: p\nprincipal: '" + principal + "'\nresource: '" + resource + "'\nrules:\n" + rules
	}
	db, web := `resource.kind == "postgres"`, `resource.kind == "http"`
	me := `principal.user == "me"`
	for _, tc := range []struct {
		name, text string
		around     *Surroundings
		want       string
	}{
		{"clean", policy(me, db, "  - {name: a, effect: allow, mask: [{column: a.b.c}]}\n"), around, ""},
		{"sql on http", policy(me, web, "  - {name: a, when: sql.read_only, effect: allow}\n"), nil, "a:other-kind:error"},
		{"http on postgres", policy(me, db, "  - {name: a, when: 'http.method == \"GET\"', effect: deny}\n"), nil, "a:other-kind:error"},
		{"a column of http", policy(me, web, "  - {name: a, effect: allow, mask: [{column: a.b.c}, {json: /x}, {detect: [SSN]}]}\n"), nil, "a:mask-never:error"},
		{"a column where http is read", policy(me, `resource.name == "x"`, "  - {name: a, when: 'http.method == \"GET\"', effect: allow, mask: [{column: a.b.c}]}\n"), nil, "a:mask-never:error"},
		{"a pointer of a database", policy(me, db, "  - {name: a, effect: allow, mask: [{json: /x}, {column: a.b.c}]}\n"), nil, "a:mask-never:error"},
		{"Secrets of http", policy(me, web, "  - {name: a, effect: allow, mask: [{secrets_except: [x]}]}\n"), nil, "a:mask-never:error"},
		{"Secrets of a cluster", policy(me, `resource.kind == "kubernetes"`, "  - {name: a, effect: allow, mask: [{secrets_except: [x]}]}\n"), nil, ""},
		{"either", policy(me, `resource.name == "x"`, "  - {name: a, effect: allow, mask: [{json: /x}, {column: a.b.c}]}\n"), nil, ""},
		{"any resource", policy(me, "true", "  - {name: a, when: sql.read_only, effect: allow}\n  - {name: d, when: sql.ddl, effect: deny}\n"), nil, "a:any-resource:warning"},
		{"a resource in when", policy(me, "true", "  - {name: a, when: 'resource.name == \"x\"', effect: allow}\n"), nil, ""},
		{"a resource in one half", policy(me, "true", "  - {name: a, when: 'resource.name == \"x\" || sql.read_only', effect: allow}\n"), nil, "a:any-resource:warning"},
		{"anybody", policy("true", db, "  - {name: a, effect: allow}\n"), nil, "a:anybody:warning"},
		{"no such resource", policy(me, `resource.name == "gone"`, "  - {name: a, effect: allow}\n"), around, "a:no-such-resource:warning"},
		{"no reviewer", policy(me, db, "  - {name: a, effect: approve, approval: {groups: [juniors]}}\n"), around, "a:no-reviewer:warning"},
		{"a reviewer", policy(me, db, "  - {name: a, effect: approve, approval: {groups: [juniors, seniors]}}\n"), around, ""},
		{"no reviewers at all", policy(me, db, "  - {name: a, effect: approve, approval: {groups: [juniors]}}\n"), &Surroundings{Reviewers: []string{}}, "a:no-reviewer:error"},
		{"reviewers not known", policy(me, db, "  - {name: a, effect: approve, approval: {groups: [juniors]}}\n"), nil, ""},
		{"after an unconditional deny", policy(me, db, "  - {name: d, effect: deny}\n  - {name: a, when: sql.read_only, effect: allow}\n"), nil, "a:shadowed:error"},
		{"before it, too", policy(me, db, "  - {name: a, when: sql.read_only, effect: allow}\n  - {name: d, effect: deny}\n"), nil, "a:shadowed:error"},
		{"by a wider deny", policy(me, db, "  - {name: a, when: 'sql.command == \"DROP TABLE\" && sql.has_where', effect: allow}\n  - {name: d, when: 'sql.command.startsWith(\"DROP\")', effect: deny}\n"), nil, "a:shadowed:error"},
		{"by a narrower one", policy(me, db, "  - {name: a, when: 'sql.has_where', effect: allow}\n  - {name: d, when: 'sql.has_where && sql.ddl', effect: deny}\n"), nil, ""},
		{"by the same words", policy(me, db, "  - {name: a, when: 'sql.ddl && sql.has_where', effect: approve, approval: {groups: [g]}}\n  - {name: d, when: 'sql.ddl', effect: deny}\n"), nil, "a:shadowed:error"},
		{"by approve", policy(me, db, "  - {name: a, when: sql.read_only, effect: allow}\n  - {name: d, effect: approve, approval: {groups: [g]}}\n"), nil, "a:shadowed:warning"},
		{"not by what may be unknown", policy(me, db, "  - {name: a, when: sql.has_where, effect: allow}\n  - {name: d, when: 'sql.ddl || !sql.ddl', effect: approve, approval: {groups: [g]}}\n"), nil, ""},
		{"not by the other kind", policy(me, `resource.name == "x"`, "  - {name: a, effect: allow}\n  - {name: d, when: 'sql.text == \"\" || sql.text != \"\"', effect: deny}\n"), nil, ""},
		{"a deny that may be unknown", policy(me, db, "  - {name: d, when: 'sql.ddl && !sql.ddl', effect: deny}\n"), nil, ""},
		{"a deny that fails rather than not matching", policy(me, db, "  - {name: d, when: 'resource.labels.x == \"a\" && resource.labels.x == \"b\" && sql.ddl', effect: deny}\n"), nil, ""},
		{"a deny that is false for sure", policy(me, db, "  - {name: d, when: 'sql.command == \"A\" && sql.command == \"B\" && sql.ddl', effect: deny}\n"), nil, "d:unreachable:error"},
		{"a policy about nothing", policy(me, `resource.kind == "http" && resource.kind == "postgres"`, "  - {name: a, effect: allow}\n  - {name: b, effect: deny}\n"), nil, "a:unreachable:error b:unreachable:error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			findings := mustLoad(t, "p.yaml", tc.text).Lint(tc.around)
			if got := codes(findings); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			for _, f := range findings {
				if f.Message == "" || f.Advice == "" || !strings.HasPrefix(f.At, "p.yaml:") || !strings.HasPrefix(f.String(), f.At+": "+string(f.Severity)) {
					t.Errorf("got %+v", f)
				}
			}
		})
	}
}

func TestLintAcrossPolicies(t *testing.T) {
	t.Parallel()
	named := func(name, principal, resource, rules string) string {
		return "policy: " + name + "\nprincipal: '" + principal + "'\nresource: '" + resource + "'\nrules:\n" + rules
	}
	closed := named("closed", "true", `resource.labels.env == "prod"`, "  - {name: d, effect: deny}\n")
	allow := "  - {name: r, when: sql.read_only, effect: allow}\n"
	a := named("a", `principal.user == "me"`, `resource.kind == "postgres" && resource.labels.env == "prod"`, allow)
	b := named("b", `principal.user == "me"`, `resource.labels.env in ["prod", "dev"]`, allow)
	findings := mustLoad(t, "a.yaml", a, "b.yaml", b, "closed.yaml", closed).Lint(nil)
	if got := codes(findings); got != "r:shadowed:warning" || findings[0].Rule.Policy != "a" || !strings.Contains(findings[0].Message, "closed/d (closed.yaml:") {
		t.Errorf("got %q: %v", got, findings)
	}
	others := named("others", `principal.user == "you"`, "true", "  - {name: d, effect: deny}\n")
	if findings := mustLoad(t, "a.yaml", a, "others.yaml", others).Lint(nil); len(findings) > 0 {
		t.Errorf("got %v", findings)
	}
}

// What lint says is true of every decision: a rule that it calls unreachable
// never matches, and one that it calls shadowed never lets anything through.
func TestLintAgreesWithDecisions(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 8))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	atoms := []string{`resource.labels.env == "prod"`, `resource.labels.env != "prod"`, `has(resource.labels.env)`, `resource.kind == "postgres"`, `resource.kind == "http"`,
		`resource.name in ["orders", "r1"]`, `principal.user == "u1"`, `principal.user in ["u1", "u2"]`, `"g1" in principal.groups`, `principal.groups[0] == "g1"`}
	sqlAtoms := append([]string{`sql.read_only`, `sql.ddl`, `sql.locks`, `sql.command == "SELECT"`, `sql.command in ["SELECT", "DROP TABLE"]`, `sql.command.startsWith("DROP")`,
		`size(sql.writes) > 0`, `size(sql.writes) < 1`, `sql.statements > 1`, `sql.statements <= 1`, `sql.tables[0] == "public.orders"`, `"public.orders" in sql.tables`}, atoms...)
	httpAtoms := append([]string{`http.method == "GET"`, `http.body.x == 1`, `http.body.x > 1`, `has(http.body.x)`, `http.body_state == "whole"`, `http.headers["x"][0] == "a"`}, atoms...)
	var condition func(from []string, depth int) string
	condition = func(from []string, depth int) string {
		switch n := random.IntN(8); {
		case depth > 0 && n < 4:
			return "(" + condition(from, depth-1) + " && " + condition(from, depth-1) + ")"
		case depth > 0 && n < 6:
			return "(" + condition(from, depth-1) + " || " + condition(from, depth-1) + ")"
		case n == 6:
			return "!(" + pick(from...) + ")"
		}
		return pick(from...)
	}
	requests := lintRequests()
	said := map[string]int{}
	for range 90 {
		var pairs []string
		for i := range 1 + random.IntN(3) {
			text := fmt.Sprintf("policy: p%d\nprincipal: |\n  %s\nresource: |\n  %s\nrules:\n", i,
				pick("true", atoms[6], atoms[7], atoms[8], atoms[9]), pick("true", "("+atoms[0]+" || "+atoms[3]+")", atoms[2], atoms[3], atoms[4], atoms[5]))
			for j := range 1 + random.IntN(4) {
				from := sqlAtoms
				if random.IntN(3) == 0 {
					from = httpAtoms
				}
				effect := pick("effect: allow", "effect: deny", "effect: approve, approval: {groups: [g]}")
				text += fmt.Sprintf("  - {name: r%d, when: '%s', %s}\n", j, pick(condition(from, 3), condition(from, 2), "true"), effect)
			}
			pairs = append(pairs, fmt.Sprintf("p%d.yaml", i), text)
		}
		set := mustLoad(t, pairs...)
		findings := set.Lint(nil)
		for _, f := range findings {
			said[f.Code]++
		}
		for _, req := range requests {
			x := set.Explain(req, monday())
			for _, f := range findings {
				checkFinding(t, f, req, x, pairs)
			}
		}
		if t.Failed() {
			return
		}
	}
	if said["unreachable"] < 10 || said["other-kind"] < 10 || said["shadowed"] < 10 {
		t.Errorf("too little was said to show anything: %v", said)
	}
}

// checkFinding holds one finding against one decision.
func checkFinding(t *testing.T, f Finding, req access.Request, x Explanation, pairs []string) {
	t.Helper()
	switch f.Code {
	case "unreachable", "other-kind":
		for _, p := range x.Policies {
			for _, r := range p.Rules {
				if r.Rule == f.Rule && r.Matched {
					t.Errorf("%s matches %+v %+v\n%s", f, req.Resource, asJSON(req.Action), strings.Join(pairs, "\n"))
				}
			}
		}
	case "shadowed":
		allowed := x.Decision.Effect == access.Allow || x.Decision.Effect == access.Approve && strings.Contains(f.Message, "denies")
		if allowed && slices.Contains(x.Decision.Rules, f.Rule) {
			t.Errorf("%s decides %s on %+v %s\n%s", f, x.Decision.Effect, req.Resource, asJSON(req.Action), strings.Join(pairs, "\n"))
		}
	}
}

// lintRequests are all combinations of what the conditions above can tell apart,
// what is not known and what is not there included.
func lintRequests() []access.Request {
	var requests []access.Request
	var actions []access.Action
	for _, command := range []string{"SELECT", "DROP TABLE", "UPDATE"} {
		for _, bits := range []int{0, 1, 2, 3, 4, 5} {
			sql := access.SQL{Command: command, ReadOnly: bits&1 != 0, DDL: bits&2 != 0, Locks: bits&1 == 0, Statements: 1 + bits%2}
			switch bits {
			case 2:
				sql.Tables = []string{"public.orders"}
			case 3:
				sql.Unknown = []string{"x"}
			case 4:
				sql.Writes = []string{"public.orders"}
			}
			actions = append(actions, access.Action{SQL: &sql})
		}
	}
	for _, body := range []any{nil, map[string]any{}, map[string]any{"x": int64(1)}, map[string]any{"x": 1.5}, map[string]any{"x": "s"}} {
		for _, state := range []access.BodyState{access.BodyWhole, access.BodyUnread} {
			call := access.HTTPCall{Method: "GET", Path: "/", BodyState: state}
			if state == access.BodyWhole {
				call.Body = body
			}
			actions = append(actions, access.Action{HTTP: &call}, access.Action{HTTP: &access.HTTPCall{Method: "PUT", Path: "/", BodyState: state, Body: call.Body, Headers: map[string][]string{"x": {"a"}}}})
		}
	}
	for _, action := range actions {
		kind := access.Postgres
		if action.HTTP != nil {
			kind = access.HTTP
		}
		for _, labels := range []map[string]string{nil, {"env": "prod"}, {"env": "dev"}} {
			for _, p := range []access.Principal{{User: "u1"}, {User: "u2", Groups: []string{"g1"}}, {User: "x", Groups: []string{"g2"}}} {
				for _, name := range []string{"orders", "other"} {
					requests = append(requests, access.Request{Principal: p, Resource: access.Resource{Name: name, Kind: kind, Labels: labels}, Action: action})
				}
			}
		}
	}
	return requests
}
