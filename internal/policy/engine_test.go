package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chaperone.dev/chaperone/internal/access"
)

func TestEngineSwap(t *testing.T) {
	t.Parallel()
	engine := NewEngine(nil, WithClock(monday))
	req := sqlRequest(*selects("a.b").SQL)
	if d := engine.Decide(context.Background(), req); d.Effect != access.Deny || d.Reason != access.Unavailable {
		t.Errorf("without a set: %+v", d)
	}
	if engine.MayConnect(context.Background(), agent(), orders()) || engine.Masks(context.Background(), agent(), orders()) != nil || engine.ReadsBody(billing()) {
		t.Error("without a set: something is allowed")
	}
	open := mustLoad(t, "p.yaml", everybody("  - {name: a, effect: allow}\n"))
	engine.Swap(open)
	if d := engine.Decide(context.Background(), req); d.Effect != access.Allow || d.Revision != open.Revision() || engine.Current() != open {
		t.Errorf("after the swap: %+v", d)
	}
	shut := mustLoad(t, "p.yaml", everybody("  - {name: a, effect: deny}\n"))
	engine.Swap(shut)
	if d := engine.Decide(context.Background(), req); d.Effect != access.Deny || d.Revision != shut.Revision() {
		t.Errorf("after the second swap: %+v", d)
	}
}

func TestEngineClock(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: a, when: 'now.getHours() == 12', effect: allow}\n"))
	if d := NewEngine(set, WithClock(monday)).Decide(context.Background(), sqlRequest(*selects("a.b").SQL)); d.Effect != access.Allow {
		t.Errorf("the injected clock is not used: %s", d.Message)
	}
	set = mustLoad(t, "p.yaml", everybody("  - {name: a, when: 'now > timestamp(\"2026-01-06T00:00:00Z\")', effect: allow}\n"))
	if d := NewEngine(set).Decide(context.Background(), sqlRequest(*selects("a.b").SQL)); d.Effect != access.Allow {
		t.Errorf("without a clock the time is not now: %s", d.Message)
	}
}

func TestMasks(t *testing.T) {
	t.Parallel()
	named := func(name, principal, resource, rules string) string {
		return "policy: " + name + "\nprincipal: '" + principal + "'\nresource: '" + resource + "'\nrules:\n" + rules
	}
	set := mustLoad(t,
		"a.yaml", named("a", `"engineering" in principal.groups`, "true", "  - {name: r, when: sql.ddl, effect: allow, mask: [{column: a.b.c, with: partial}]}\n"),
		"b.yaml", named("b", "true", `resource.kind == "postgres"`, "  - {name: r, effect: approve, approval: {groups: [g]}, mask: [{column: a.b.c}, {detect: [SSN, IBAN]}]}\n"),
		"c.yaml", named("c", `"others" in principal.groups`, "true", "  - {name: r, effect: allow, mask: [{column: x.y.z}]}\n"),
		"d.yaml", named("d", "now.getHours() == 3", "true", "  - {name: r, effect: allow, mask: [{column: at.night.only}]}\n"),
		"e.yaml", named("e", "true", `resource.name == "other"`, "  - {name: r, effect: allow, mask: [{column: o.o.o}]}\n"),
		"f.yaml", named("f", "principal.groups[9] == \"x\"", "true", "  - {name: r, effect: allow, mask: [{column: could.not.tell}]}\n"),
	)
	want := []access.Mask{
		{Column: "a.b.c", With: access.Redact},
		{Column: "at.night.only", With: access.Redact},
		{Column: "could.not.tell", With: access.Redact},
		{Detect: []string{"IBAN", "SSN"}, With: access.Redact},
	}
	got := NewEngine(set, WithClock(monday)).Masks(context.Background(), agent(), orders())
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestMayConnect(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, principal, resource, rules string
		want                             bool
	}{
		{"allow", `"engineering" in principal.groups`, `resource.name == "orders"`, "  - {name: r, when: sql.ddl, effect: allow}\n", true},
		{"approve", "true", "true", "  - {name: r, effect: approve, approval: {groups: [g]}}\n", true},
		{"deny only", "true", "true", "  - {name: r, when: sql.ddl, effect: deny}\n", false},
		{"another principal", `"others" in principal.groups`, "true", "  - {name: r, effect: allow}\n", false},
		{"another resource", "true", `resource.name == "other"`, "  - {name: r, effect: allow}\n", false},
		{"now", "now.getHours() == 12", "true", "  - {name: r, effect: allow}\n", true},
		{"not now", "now.getHours() == 13", "true", "  - {name: r, effect: allow}\n", false},
		{"principal fails", `principal.groups[9] == "x"`, "true", "  - {name: r, effect: allow}\n", false},
		{"resource fails", "true", `resource.labels.missing == "x"`, "  - {name: r, effect: allow}\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			set := mustLoad(t, "p.yaml", "policy: p\nprincipal: '"+tc.principal+"'\nresource: '"+tc.resource+"'\nrules:\n"+tc.rules)
			if got := NewEngine(set, WithClock(monday)).MayConnect(context.Background(), agent(), orders()); got != tc.want {
				t.Errorf("got %t", got)
			}
		})
	}
}

func TestReadsBody(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, resource, when string
		want                 bool
	}{
		{"body", "true", "http.body.x == 1", true},
		{"body of this resource", `resource.name == "billing"`, "http.method == \"POST\" && http.body.x == 1", true},
		{"state", "true", `http.body_state == "whole"`, true},
		{"through a leading dot", "true", "[1].all(i, .http.body.x == i)", true},
		{"another resource", `resource.name == "other"`, "http.body.x == 1", false},
		{"path", "true", `http.path == "/body"`, false},
		{"sql", "true", "sql.read_only", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			set := mustLoad(t, "p.yaml", "policy: p\nprincipal: '\"others\" in principal.groups'\nresource: '"+tc.resource+"'\nrules:\n  - name: r\n    effect: allow\n    when: |\n      "+tc.when+"\n")
			if got := NewEngine(set).ReadsBody(billing()); got != tc.want {
				t.Errorf("got %t", got)
			}
		})
	}
}

// An estimate is asked for only when a rule waits for it, and what waits for one
// that does not come neither allows nor lets a denial pass.
func TestReadsEstimate(t *testing.T) {
	t.Parallel()
	const rules = `
  - {name: small, when: 'sql.command == "SELECT" && sql.estimated_rows < 1000', effect: allow}
  - {name: large, when: 'sql.command == "UPDATE" && sql.estimated_bytes > 1000', effect: deny}
  - {name: change, when: 'sql.command in ["UPDATE", "DELETE"]', effect: allow}
  - {name: either, when: 'sql.command == "COPY" && (sql.read_only || sql.estimated_rows < 9)', effect: allow}
  - {name: web, when: 'http.path == "/"', effect: allow}
`
	engine := NewEngine(mustLoad(t, "p.yaml", everybody(rules)), WithClock(monday))
	few, many := int64(999), int64(1001)
	for _, tc := range []struct {
		name                       string
		sql                        access.SQL
		reads                      bool
		without, withFew, withMany string
	}{
		{"allow", access.SQL{Command: "SELECT"}, true, "default-deny", "p/small", "default-deny"},
		{"deny", access.SQL{Command: "UPDATE"}, true, "p/large", "p/change", "p/large"},
		{"another command", access.SQL{Command: "DELETE"}, false, "p/change", "p/change", "p/change"},
		{"known without it", access.SQL{Command: "COPY", ReadOnly: true}, false, "p/either", "p/either", "p/either"},
		{"nothing is known", access.SQL{Command: "SELECT", Unknown: []string{"x"}}, false, "default-deny", "default-deny", "default-deny"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			req := sqlRequest(tc.sql)
			if got := engine.ReadsEstimate(t.Context(), req); got != tc.reads {
				t.Errorf("reads %t", got)
			}
			for estimate, want := range map[*int64]string{nil: tc.without, &few: tc.withFew, &many: tc.withMany} {
				statement := tc.sql
				statement.EstimatedRows, statement.EstimatedBytes = estimate, estimate
				if d := engine.Decide(t.Context(), sqlRequest(statement)); d.Rule() != want {
					t.Errorf("with %v: %s, want %s", estimate, d.Rule(), want)
				}
			}
		})
	}
	if engine.ReadsEstimate(t.Context(), httpRequest(access.HTTPCall{Path: "/"})) || NewEngine(nil).ReadsEstimate(t.Context(), sqlRequest(access.SQL{})) {
		t.Error("reads an estimate of no statement, or without policies")
	}
	d := engine.Decide(t.Context(), sqlRequest(access.SQL{Command: "SELECT"}))
	if !strings.Contains(d.Hint, "did not estimate its size") {
		t.Errorf("hint %q", d.Hint)
	}
	elsewhere := mustLoad(t, "p.yaml", "policy: p\nprincipal: '\"others\" in principal.groups'\nresource: 'true'\nrules:\n  - {name: r, when: 'sql.estimated_rows < 9', effect: allow}\n")
	if NewEngine(elsewhere).ReadsEstimate(t.Context(), sqlRequest(access.SQL{Command: "SELECT"})) {
		t.Error("reads it for a policy about others")
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	const rules = `
  - {name: one, when: 'sql.ddl', effect: allow}
  - {name: half, when: 'sql.command == "SELECT" && sql.tables == ["a.a"]', effect: allow}
  - {name: most, when: 'sql.command == "SELECT" && sql.read_only && "a.b" in sql.tables && size(sql.tables) == 1 && "x" in sql.columns', effect: approve, approval: {groups: [g]}}
  - {name: never, when: 'sql.command == "SELECT" && sql.ddl', effect: deny}
  - {name: http, when: 'http.method == "GET" && http.path == "/"', effect: allow}
`
	set := mustLoad(t, "p.yaml", everybody(rules))
	for _, tc := range []struct {
		name, nearest, hint string
		req                 access.Request
	}{
		{"the largest share is true", "p/most", `rule p/most would put it before reviewers if: "x" in sql.columns`, sqlRequest(*selects("a.b").SQL)},
		{"two terms fail", "p/half", `rule p/half would allow it if: sql.tables == ["a.a"]`,
			sqlRequest(access.SQL{Command: "SELECT", Tables: []string{"a.c"}})},
		{"none is true", "p/one", "rule p/one would allow it if: sql.ddl", sqlRequest(access.SQL{Command: "UPDATE"})},
		{"another kind", "p/http", `rule p/http would allow it if: http.method == "GET"`, httpRequest(access.HTTPCall{Method: "POST", Path: "/"})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			check(t, set.Decide(tc.req, monday()), tc.nearest, tc.hint)
		})
	}
	t.Run("no rule of this kind", func(t *testing.T) {
		t.Parallel()
		only := mustLoad(t, "p.yaml", everybody("  - {name: http, when: 'http.method == \"GET\"', effect: allow}\n"))
		d := only.Decide(sqlRequest(*selects("a.b").SQL), monday())
		if d.Nearest != nil || d.Hint != "no rule of the policies that cover you here is about requests of this kind" {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("what is not known", func(t *testing.T) {
		t.Parallel()
		only := mustLoad(t, "p.yaml", everybody("  - {name: half, when: 'sql.command == \"SELECT\" && sql.tables == [\"a.a\"]', effect: allow}\n"))
		d := only.Decide(sqlRequest(access.SQL{Command: "SELECT", Unknown: []string{"function f is not known"}}), monday())
		check(t, d, "p/half", `rule p/half would allow it if: sql.tables == ["a.a"] (not known here: function f is not known)`)
	})
	t.Run("the body", func(t *testing.T) {
		t.Parallel()
		only := mustLoad(t, "p.yaml", everybody("  - {name: http, when: 'http.body.x == 1', effect: allow}\n"))
		d := only.Decide(httpRequest(access.HTTPCall{Method: "POST", Path: "/", BodyState: access.BodyUndecodable}), monday())
		check(t, d, "p/http", "rule p/http would allow it if: http.body.x == 1 (not known here: the body is undecodable)")
	})
	t.Run("long conditions are cut", func(t *testing.T) {
		t.Parallel()
		long := mustLoad(t, "p.yaml", everybody("  - {name: r, when: 'sql.command in [\""+strings.Repeat("x", 1000)+"\"]', effect: allow}\n"))
		if d := long.Decide(sqlRequest(*selects("a.b").SQL), monday()); len(d.Hint) > 400 {
			t.Errorf("hint of %d bytes", len(d.Hint))
		}
	})
}

func check(t *testing.T, d access.Decision, nearest, hint string) {
	t.Helper()
	if d.Effect != access.Deny || d.Reason != access.NoRule || d.Nearest == nil {
		t.Fatalf("got %+v", d)
	}
	if d.Nearest.String() != nearest || d.Nearest.Hash == "" || d.Hint != hint {
		t.Errorf("got %s, %s", d.Nearest, d.Hint)
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, rules, want string
		req               access.Request
	}{
		{"deny", "  - {name: r, effect: deny}\n", "rule p/r forbids SELECT on orders", sqlRequest(*selects("a.b").SQL)},
		{"deny, own words", "  - {name: r, effect: deny, message: ' ask the DBAs '}\n", "ask the DBAs", sqlRequest(*selects("a.b").SQL)},
		{"deny, for it may apply", "  - {name: r, when: sql.ddl, effect: deny}\n", "it cannot be ruled out that rule p/r forbids SELECT on orders: function f is not known",
			sqlRequest(access.SQL{Command: "SELECT", Unknown: []string{"function f is not known"}})},
		{"approve", "  - {name: r, effect: approve, approval: {groups: [a, b]}}\n", "rule p/r holds SELECT on orders until a member of a or b grants it", sqlRequest(*selects("a.b").SQL)},
		{"approve by two", "  - {name: r, effect: approve, approval: {groups: [a], count: 2}}\n", "rule p/r holds GET /x on billing until 2 members of a grant it", httpRequest(access.HTTPCall{Method: "GET", Path: "/x"})},
		{"nothing", "  - {name: r, when: sql.ddl, effect: allow}\n", "no rule allows SELECT on orders", sqlRequest(*selects("a.b").SQL)},
		{"nothing, unparsed", "  - {name: r, when: sql.ddl, effect: allow}\n", "no rule allows this statement on orders", sqlRequest(access.SQL{})},
		{"allow", "  - {name: r, effect: allow, message: be gentle}\n", "be gentle", sqlRequest(*selects("a.b").SQL)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := mustLoad(t, "p.yaml", everybody(tc.rules)).Decide(tc.req, monday())
			if d.Message != tc.want {
				t.Errorf("got %q, want %q", d.Message, tc.want)
			}
		})
	}
}

func TestExplainGolden(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "orders.yaml", ordersPolicy, "p.yaml", everybody(`
  - {name: no-ddl, when: sql.ddl, effect: deny}
  - {name: gets, when: 'http.method == "GET"', effect: allow}
  - {name: broken, when: 'sql.command == "COPY" && resource.labels.missing == "x"', effect: allow}
  - {name: open, effect: allow}
`))
	for name, req := range map[string]access.Request{
		"read":    sqlRequest(*selects("public.orders").SQL),
		"unknown": sqlRequest(access.SQL{Command: "SELECT", Unknown: []string{"function f is not known"}}),
		"error":   sqlRequest(access.SQL{Command: "COPY"}),
		"http":    httpRequest(access.HTTPCall{Method: "GET", Path: "/"}),
	} {
		x := set.Explain(req, monday())
		if d := set.Decide(req, monday()); !reflect.DeepEqual(d, x.Decision) {
			t.Errorf("%s: explained %+v, decided %+v", name, x.Decision, d)
		}
		golden(t, "testdata/explain/"+name+".golden", x.String())
		if _, err := json.Marshal(x); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var none *Set
	if x := none.Explain(sqlRequest(access.SQL{}), monday()); x.Decision.Effect != access.Deny || x.String() == "" {
		t.Errorf("without a set: %+v", x)
	}
}

func TestSchemaGolden(t *testing.T) {
	t.Parallel()
	golden(t, "testdata/policy.schema.json", string(Schema()))
	golden(t, "testdata/tests.schema.json", string(TestsSchema()))
	golden(t, "testdata/conditions.schema.json", string(ConditionsSchema()))
}

// A decision on a statement that was judged before takes less than 3 µs of
// processor time and at most 10 allocations. A denial that says what the nearest
// rule lacks may take more.
func BenchmarkDecide(b *testing.B) {
	for _, bc := range []struct {
		name string
		req  access.Request
		want access.Effect
	}{
		{"allow", sqlRequest(*selects("public.orders").SQL), access.Allow},
		{"approve", sqlRequest(access.SQL{Command: "UPDATE", Tables: []string{"public.orders"}, Writes: []string{"public.orders"}, HasWhere: true}), access.Approve},
		{"no-rule", sqlRequest(*selects("public.secrets").SQL), access.Deny},
	} {
		b.Run(bc.name, func(b *testing.B) {
			benchmark(b, mustLoad(b, "orders.yaml", ordersPolicy), bc.req, bc.want)
		})
	}
}

func benchmark(b *testing.B, set *Set, req access.Request, want access.Effect) {
	b.Helper()
	now := monday()
	if d := set.Decide(req, now); d.Effect != want {
		b.Fatalf("got %s: %s", d.Effect, d.Message)
	}
	b.ReportAllocs()
	before, n := processorTime(b), 0
	for b.Loop() {
		set.Decide(req, now)
		n++
	}
	b.ReportMetric(float64(processorTime(b)-before)/float64(n), "cpu-ns/op")
}

// processorTime is what the process has used: on a busy machine it says more
// than the time that has passed.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// manyPolicies are n policies, 3 of which are about the agent on orders.
func manyPolicies(n int) []string {
	var pairs []string
	for i := range n {
		name, group := fmt.Sprintf("p%05d", i), fmt.Sprintf("team-%d", i)
		if i%(n/3) == 0 && i/(n/3) < 3 {
			group = "orders-agents"
		}
		text := strings.Replace(ordersPolicy, "policy: orders-agents", "policy: "+name, 1)
		text = strings.Replace(text, `"orders-agents" in`, fmt.Sprintf("%q in", group), 1)
		text = strings.Replace(text, "public.customers\"])", fmt.Sprintf("public.t%d\"])", i), 1) // no two conditions alike
		text = strings.Replace(text, `"UPDATE"`, fmt.Sprintf(`"UPDATE" && !("public.t%d" in sql.writes)`, i), 1)
		pairs = append(pairs, name+".yaml", text)
	}
	return pairs
}

// Policies that cannot match cost nothing: 10,000 of which 3 can match must
// cost at most 1.5 times as much as the 3 alone.
func BenchmarkDecideManyPolicies(b *testing.B) {
	req := sqlRequest(*selects("public.orders").SQL)
	for _, n := range []int{3, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			benchmark(b, mustLoad(b, manyPolicies(n)...), req, access.Allow)
		})
	}
	// A principal that the set has not seen yet.
	for _, n := range []int{3, 10_000} {
		b.Run(fmt.Sprint("first-seen/", n), func(b *testing.B) {
			set := mustLoad(b, manyPolicies(n)...)
			set.Decide(req, monday())
			b.ReportAllocs()
			fresh := req
			before, i := processorTime(b), 0
			for ; b.Loop(); i++ {
				fresh.Principal.Job = fmt.Sprint(i)
				set.Decide(fresh, monday())
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(i), "cpu-ns/op")
		})
	}
}

// 10,000 rules are loaded in less than 2 s with 2 processors: 4 s of processor
// time.
func BenchmarkLoad(b *testing.B) {
	fsys := files(manyPolicies(5_000)...) // 10,000 rules
	b.ReportAllocs()
	before, n := processorTime(b), 0
	for b.Loop() {
		n++
		if _, err := Load(fsys); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(processorTime(b)-before)/float64(n), "cpu-ns/op")
}
