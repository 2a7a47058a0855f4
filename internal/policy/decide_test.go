package policy

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types/ref"

	"chaperone.dev/chaperone/internal/access"
)

// files makes a file system of name, content pairs.
func files(pairs ...string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for i := 0; i+1 < len(pairs); i += 2 {
		fsys[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return fsys
}

func mustLoad(t testing.TB, pairs ...string) *Set {
	t.Helper()
	set, err := Load(files(pairs...))
	if err != nil {
		t.Fatalf("load:\n%v", err)
	}
	return set
}

const ordersPolicy = `
policy: orders-agents
principal: '"orders-agents" in principal.groups'
resource: 'resource.kind == "postgres" && resource.labels.env == "prod"'
rules:
  - name: read
    when: 'sql.read_only && sql.tables.all(t, t in ["public.orders", "public.customers"])'
    effect: allow
    mask: [{column: public.customers.ssn, with: redact}, {detect: [CREDIT_CARD, API_KEY], with: partial}]
  - name: fix-an-order
    when: 'sql.command == "UPDATE" && sql.writes == ["public.orders"] && sql.has_where'
    effect: approve
    approval: {groups: [senior-engineers], count: 1, expires: 15m}
    limits: {rows_changed: 10}
`

func monday() time.Time { return time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC) }

func agent() access.Principal {
	return access.Principal{Issuer: "dex", Subject: "s", User: "alice@example.com", Subagent: "agent", Workflow: "nightly", Groups: []string{"engineering", "orders-agents"}}
}

func orders() access.Resource {
	return access.Resource{Name: "orders", Kind: access.Postgres, Labels: map[string]string{"env": "prod", "sensitivity": "high"}}
}

func selects(tables ...string) access.Action {
	return access.Action{SQL: &access.SQL{Text: "select 1", Command: "SELECT", ReadOnly: true, Tables: tables, Reads: tables, Statements: 1}}
}

func sqlRequest(sql access.SQL) access.Request {
	return access.Request{Principal: agent(), Resource: orders(), Action: access.Action{SQL: &sql}}
}

func billing() access.Resource { return access.Resource{Name: "billing", Kind: access.HTTP} }

func httpRequest(call access.HTTPCall) access.Request {
	return access.Request{Principal: agent(), Resource: billing(), Action: access.Action{HTTP: &call}}
}

// everybody is a policy for everybody on everything, with the given rules.
func everybody(rules string) string {
	return "policy: p\nprincipal: 'true'\nresource: 'true'\nrules:\n" + rules
}

func TestDecideDesignExample(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "orders.yaml", ordersPolicy)
	update := access.SQL{Command: "UPDATE", Tables: []string{"public.orders"}, Writes: []string{"public.orders"}, HasWhere: true}
	unbounded := update
	unbounded.HasWhere = false
	stranger := sqlRequest(*selects("public.orders").SQL)
	stranger.Principal.Groups = []string{"engineering"}
	staging := sqlRequest(*selects("public.orders").SQL)
	staging.Resource.Labels = map[string]string{"env": "staging"}

	for _, tc := range []struct {
		name   string
		req    access.Request
		effect access.Effect
		rule   string
		reason access.Reason
		hint   string
	}{
		{"read", sqlRequest(*selects("public.orders", "public.customers").SQL), access.Allow, "orders-agents/read", "", ""},
		{"read of another table", sqlRequest(*selects("public.secrets").SQL), access.Deny, "default-deny", access.NoRule,
			`rule orders-agents/read would allow it if: sql.tables.all(t, t in ["public.orders", "public.customers"])`},
		{"update", sqlRequest(update), access.Approve, "orders-agents/fix-an-order", access.ApprovalRequired, ""},
		{"update of everything", sqlRequest(unbounded), access.Deny, "default-deny", access.NoRule,
			"rule orders-agents/fix-an-order would put it before reviewers if: sql.has_where"},
		{"another group", stranger, access.Deny, "default-deny", access.NoRule, "ask its owners for a policy that does; your groups are engineering"},
		{"another environment", staging, access.Deny, "default-deny", access.NoRule, "ask its owners for a policy that does; your groups are engineering, orders-agents"},
		{"http", httpRequest(access.HTTPCall{Method: "GET", Path: "/"}), access.Deny, "default-deny", access.NoRule, "ask its owners for a policy that does; your groups are engineering, orders-agents"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := set.Decide(tc.req, monday())
			if d.Effect != tc.effect || d.Rule() != tc.rule || d.Reason != tc.reason || d.Hint != tc.hint {
				t.Errorf("got %s by %s, reason %q, hint %q", d.Effect, d.Rule(), d.Reason, d.Hint)
			}
			if d.Revision != set.Revision() {
				t.Errorf("revision %q, want %q", d.Revision, set.Revision())
			}
		})
	}
}

func TestDecideObligations(t *testing.T) {
	t.Parallel()
	d := mustLoad(t, "orders.yaml", ordersPolicy).Decide(sqlRequest(access.SQL{Command: "UPDATE", Writes: []string{"public.orders"}, HasWhere: true}), monday())
	want := access.Obligations{
		Limits:   access.Limits{RowsChanged: 10},
		Approval: &access.ApprovalTerms{Groups: []string{"senior-engineers"}, Count: 1, Expires: 15 * time.Minute},
	}
	if !reflect.DeepEqual(d.Obligations, want) {
		t.Errorf("got %+v, want %+v", d.Obligations, want)
	}
}

func TestDecidePrecedence(t *testing.T) {
	t.Parallel()
	const (
		allow   = "  - {name: a, effect: allow, limits: {rows_read: 100, time: 1s}, mask: [{column: a.b.c, with: partial}, {detect: [SSN], with: partial}]}\n"
		approve = "  - {name: b, effect: approve, approval: {groups: [x]}, limits: {rows_read: 50}, mask: [{column: a.b.c}, {json: /x}]}\n"
		deny    = "  - {name: c, effect: deny, message: not today}\n"
		never   = "  - {name: n, effect: deny, when: 'sql.ddl'}\n"
	)
	for _, tc := range []struct {
		name, rules, want string
		reason            access.Reason
	}{
		{"allow", allow, "allow p/a", ""},
		{"approve beats allow", allow + approve, "approve p/b", access.ApprovalRequired},
		{"deny beats both", allow + approve + deny, "deny p/c", access.DeniedByRule},
		{"order does not matter", deny + approve + allow, "deny p/c", access.DeniedByRule},
		{"a deny that does not match", allow + never, "allow p/a", ""},
		{"only a deny that does not match", never, "deny default-deny", access.NoRule},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := mustLoad(t, "p.yaml", everybody(tc.rules)).Decide(sqlRequest(*selects("a.b").SQL), monday())
			if got := d.Effect.String() + " " + d.Rule(); got != tc.want || d.Reason != tc.reason {
				t.Errorf("got %s (%s), want %s (%s)", got, d.Reason, tc.want, tc.reason)
			}
			if d.Effect == access.Deny && !reflect.DeepEqual(d.Obligations, access.Obligations{}) {
				t.Errorf("a denial has obligations: %+v", d.Obligations)
			}
		})
	}
	d := mustLoad(t, "p.yaml", everybody(allow+approve)).Decide(sqlRequest(*selects("a.b").SQL), monday())
	want := access.Obligations{
		Masks:    []access.Mask{{Column: "a.b.c", With: access.Redact}, {JSON: "/x", With: access.Redact}, {Detect: []string{"SSN"}, With: access.Partial}},
		Limits:   access.Limits{RowsRead: 50, Time: time.Second},
		Approval: &access.ApprovalTerms{Groups: []string{"x"}, Count: 1, Expires: 15 * time.Minute},
	}
	if !reflect.DeepEqual(d.Obligations, want) {
		t.Errorf("masks and limits of all matching rules add up: got %+v, want %+v", d.Obligations, want)
	}
	if d := mustLoad(t, "p.yaml", everybody(deny)).Decide(sqlRequest(*selects("a.b").SQL), monday()); d.Message != "not today" {
		t.Errorf("message %q", d.Message)
	}
}

func TestDecideStrictestApproval(t *testing.T) {
	t.Parallel()
	set := mustLoad(t,
		"a.yaml", strings.Replace(everybody("  - {name: r, effect: approve, approval: {groups: [first], count: 1, expires: 1h, window: 1h, in_transaction: true}}\n"), "policy: p", "policy: z", 1),
		"b.yaml", everybody("  - {name: r, effect: approve, approval: {groups: [second], count: 3, expires: 5m, window: 10m}}\n"))
	d := set.Decide(sqlRequest(*selects("a.b").SQL), monday())
	want := access.ApprovalTerms{Groups: []string{"first"}, Count: 3, Expires: 5 * time.Minute, Window: 10 * time.Minute}
	if d.Obligations.Approval == nil || !reflect.DeepEqual(*d.Obligations.Approval, want) {
		t.Errorf("got %+v, want %+v", d.Obligations.Approval, want)
	}
	if len(d.Rules) != 2 || d.Rule() != "z/r" {
		t.Errorf("rules %v: the first in file order decides", d.Rules)
	}
	again := set.Decide(sqlRequest(*selects("a.b").SQL), monday())
	if !reflect.DeepEqual(d, again) {
		t.Errorf("the same request is decided otherwise: %+v", again)
	}
}

// What could not be established about a request neither allows it nor keeps a
// deny rule from matching.
func TestDecideUnknown(t *testing.T) {
	t.Parallel()
	whole := access.HTTPCall{Method: "POST", Path: "/refunds", BodyState: access.BodyWhole, Body: map[string]any{"amount": json.Number("5"), "note": "x"}}
	unread := whole
	unread.BodyState, unread.Body = access.BodyUndecodable, map[string]any{"amount": json.Number("5")}
	none := access.HTTPCall{Method: "POST", Path: "/refunds"}
	known := sqlRequest(access.SQL{Command: "UPDATE", Writes: []string{"public.orders"}, Tables: []string{"public.orders"}})
	vague := sqlRequest(access.SQL{Command: "UPDATE", Writes: []string{"public.orders"}, Tables: []string{"public.orders"}, Unknown: []string{"function f is not known"}, ReadOnly: true})

	for _, tc := range []struct {
		name, when string
		req        access.Request
		allow      string // what an allow rule with the condition comes to
		deny       string // what a deny rule beside an unconditional allow comes to
	}{
		{"body whole, true", "http.body.amount < 10", httpRequest(whole), "allow", "deny"},
		{"body whole, false", "http.body.amount > 10", httpRequest(whole), "deny", "allow"},
		{"body not decoded", "http.body.amount < 10", httpRequest(unread), "deny", "deny"},
		{"body absent", "http.body.amount < 10", httpRequest(none), "deny", "deny"},
		{"presence in an unknown body", "has(http.body.amount)", httpRequest(unread), "deny", "deny"},
		{"absence in an unknown body", "!has(http.body.amount)", httpRequest(unread), "deny", "deny"},
		{"optional in an unknown body", "http.body[?'amount'].orValue(0) < 10", httpRequest(unread), "deny", "deny"},
		{"unknown body in a comprehension", "http.body.items.all(i, i.ok)", httpRequest(unread), "deny", "deny"},
		{"unknown body, negated", "!(http.body.amount > 10)", httpRequest(unread), "deny", "deny"},
		{"unknown body, irrelevant for or", "http.path == '/refunds' || http.body.amount < 10", httpRequest(unread), "allow", "deny"},
		{"unknown body, irrelevant for and", "http.path == '/other' && http.body.amount < 10", httpRequest(unread), "deny", "allow"},
		{"unknown body as ternary", "http.body.amount < 10 ? true : true", httpRequest(unread), "deny", "deny"},
		{"body state is known", "http.body_state == 'undecodable'", httpRequest(unread), "allow", "deny"},
		{"tables known", "sql.writes == ['public.orders']", known, "allow", "deny"},
		{"tables not known", "sql.writes == ['public.orders']", vague, "deny", "deny"},
		{"no tables known", "sql.tables.all(t, t == 'public.orders')", vague, "deny", "deny"},
		{"another table, known", "'public.secrets' in sql.tables", known, "deny", "allow"},
		{"another table, not known", "'public.secrets' in sql.tables", vague, "deny", "deny"},
		{"size of what is not known", "size(sql.tables) == 1", vague, "deny", "deny"},
		{"sets of what is not known", "sets.contains(['public.orders'], sql.tables)", vague, "deny", "deny"},
		{"ddl known", "!sql.ddl", known, "allow", "deny"},
		{"ddl not known", "!sql.ddl", vague, "deny", "deny"},
		{"unknown is not read-only", "sql.read_only", vague, "deny", "allow"},
		{"the command is known", "sql.command == 'UPDATE'", vague, "allow", "deny"},
		{"that something is unknown is known", "size(sql.unknown) > 0", vague, "allow", "deny"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			rule := "  - name: r\n    when: \"" + tc.when + "\"\n    effect: "
			allowing := mustLoad(t, "p.yaml", everybody(rule+"allow\n"))
			if d := allowing.Decide(tc.req, monday()); d.Effect.String() != tc.allow {
				t.Errorf("an allow rule comes to %s (%s), want %s", d.Effect, d.Message, tc.allow)
			} else if d.Effect == access.Deny && d.Reason != access.NoRule {
				t.Errorf("reason %s (%s), want no-rule", d.Reason, d.Message)
			}
			approving := mustLoad(t, "p.yaml", everybody(rule+"approve\n    approval: {groups: [g]}\n"))
			if d := approving.Decide(tc.req, monday()); (d.Effect == access.Approve) != (tc.allow == "allow") {
				t.Errorf("an approve rule comes to %s (%s)", d.Effect, d.Message)
			}
			denying := mustLoad(t, "p.yaml", everybody("  - {name: a, effect: allow}\n"+rule+"deny\n"))
			if d := denying.Decide(tc.req, monday()); d.Effect.String() != tc.deny {
				t.Errorf("a deny rule comes to %s (%s), want %s", d.Effect, d.Message, tc.deny)
			} else if d.Effect == access.Deny && (d.Reason == access.DeniedByRule) != (tc.allow == "allow") || d.Effect == access.Deny && d.Rule() != "p/r" {
				t.Errorf("by %s, reason %s (%s)", d.Rule(), d.Reason, d.Message)
			}
		})
	}
}

// A rule about another kind of request does not match, and does not deny.
func TestDecideOtherKind(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody(`
  - {name: sql-reads, when: sql.read_only, effect: allow}
  - {name: no-ddl, when: sql.ddl, effect: deny}
  - {name: gets, when: 'http.method == "GET"', effect: allow}
  - {name: no-deletes, when: 'http.method == "DELETE"', effect: deny}
`))
	for _, tc := range []struct {
		name string
		req  access.Request
		want string
	}{
		{"read", sqlRequest(*selects("a.b").SQL), "allow p/sql-reads"},
		{"drop", sqlRequest(access.SQL{Command: "DROP TABLE", DDL: true}), "deny p/no-ddl"},
		{"get", httpRequest(access.HTTPCall{Method: "GET", Path: "/"}), "allow p/gets"},
		{"delete", httpRequest(access.HTTPCall{Method: "DELETE", Path: "/"}), "deny p/no-deletes"},
		{"put", httpRequest(access.HTTPCall{Method: "PUT", Path: "/"}), "deny default-deny"},
		{"neither", access.Request{Principal: agent(), Resource: orders()}, "deny default-deny"},
		{"both", access.Request{Principal: agent(), Resource: orders(), Action: access.Action{SQL: selects("a.b").SQL, HTTP: &access.HTTPCall{Method: "GET"}}}, "deny default-deny"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := set.Decide(tc.req, monday())
			if got := d.Effect.String() + " " + d.Rule(); got != tc.want {
				t.Errorf("got %s (%s), want %s", got, d.Message, tc.want)
			}
		})
	}
}

// A condition that errors denies the whole request and names the rule.
func TestDecideErrors(t *testing.T) {
	t.Parallel()
	const allow = "  - {name: a, effect: allow}\n"
	for _, tc := range []struct {
		name, policy, rule, message string
	}{
		{"allow rule", everybody(allow + "  - {name: bad, when: 'resource.labels.missing == \"x\"', effect: allow}\n"), "p/bad",
			"the condition of rule p/bad could not be evaluated: no such key: missing"},
		{"approve rule", everybody(allow + "  - {name: bad, when: 'principal.chain[3].user == \"x\"', effect: approve, approval: {groups: [g]}}\n"), "p/bad",
			"the condition of rule p/bad could not be evaluated: index out of bounds: 3"},
		{"deny rule", everybody(allow + "  - {name: bad, when: 'int(principal.user) > 1', effect: deny}\n"), "p/bad",
			"the condition of rule p/bad could not be evaluated: type conversion error from 'string' to 'int'"},
		{"resource", strings.Replace(everybody(allow), "resource: 'true'", "resource: 'resource.labels.missing == \"x\"'", 1), "default-deny",
			"the conditions of policy p could not be evaluated: no such key: missing"},
		{"principal", strings.Replace(everybody(allow), "principal: 'true'", "principal: 'principal.groups[7] == \"x\"'", 1), "default-deny",
			"the conditions of policy p could not be evaluated: index out of bounds: 7"},
		{"principal, by time", strings.Replace(everybody(allow), "principal: 'true'", "principal: 'now.getHours() >= 0 && principal.groups[7] == \"x\"'", 1), "default-deny",
			"the conditions of policy p could not be evaluated: index out of bounds: 7"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			other := strings.Replace(everybody(allow), "policy: p", "policy: other", 1)
			set := mustLoad(t, "p.yaml", tc.policy, "other.yaml", other)
			for range 2 { // the second answer comes from what the set remembers
				d := set.Decide(sqlRequest(*selects("a.b").SQL), monday())
				if d.Effect != access.Deny || d.Rule() != tc.rule || d.Message != tc.message || d.Reason != access.DeniedByRule {
					t.Errorf("got %s by %s, %s: %q", d.Effect, d.Rule(), d.Reason, d.Message)
				}
			}
		})
	}
	t.Run("twin: a false term hides the error", func(t *testing.T) {
		t.Parallel()
		set := mustLoad(t, "p.yaml", everybody(allow+"  - {name: ok, when: 'sql.ddl && resource.labels.missing == \"x\"', effect: deny}\n"))
		if d := set.Decide(sqlRequest(*selects("a.b").SQL), monday()); d.Effect != access.Allow {
			t.Errorf("got %s: %s", d.Effect, d.Message)
		}
	})
	t.Run("twin: the policy is about others", func(t *testing.T) {
		t.Parallel()
		broken := strings.Replace(everybody(allow), "resource: 'true'", "resource: 'resource.labels.missing == \"x\"'", 1)
		for _, principal := range []string{`'"nobody" in principal.groups'`, `'principal.user.startsWith("bob")'`, `'now.getHours() > 24'`} {
			set := mustLoad(t, "p.yaml", strings.Replace(broken, "principal: 'true'", "principal: "+principal, 1),
				"other.yaml", strings.Replace(everybody(allow), "policy: p", "policy: other", 1))
			if d := set.Decide(sqlRequest(*selects("a.b").SQL), monday()); d.Effect != access.Allow {
				t.Errorf("%s: got %s: %s", principal, d.Effect, d.Message)
			}
		}
	})
}

// A rule that denies for sure is the better reason than one that might.
func TestDecideDenyBeatsSuspicion(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: might, when: sql.ddl, effect: deny}\n  - {name: no, when: 'sql.command == \"DO\"', effect: deny}\n  - {name: a, effect: allow}\n"))
	for command, want := range map[string]string{"DO": "p/no denied-by-rule", "COPY": "p/might unreadable"} {
		d := set.Decide(sqlRequest(access.SQL{Command: command, Unknown: []string{command + " is not looked into"}}), monday())
		if got := d.Rule() + " " + string(d.Reason); got != want || d.Effect != access.Deny {
			t.Errorf("%s: got %s by %s", command, d.Effect, got)
		}
	}
}

// A deny rule that matches is the better reason, whatever else fails.
func TestDecideDenyBeatsError(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: bad, when: 'resource.labels.missing == \"x\"', effect: allow}\n  - {name: no, effect: deny}\n"))
	if d := set.Decide(sqlRequest(*selects("a.b").SQL), monday()); d.Rule() != "p/no" {
		t.Errorf("got %s by %s", d.Effect, d.Rule())
	}
}

// panicking is a condition whose evaluation panics outside CEL's own guard.
type panicking struct{ cel.Program }

func (panicking) Eval(any) (ref.Val, *cel.EvalDetails, error) { panic("a bug") }

func TestDecidePanicDenies(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: a, effect: allow}\n  - {name: b, when: 'sql.read_only', effect: allow}\n"))
	if d := set.Decide(sqlRequest(*selects("a.b").SQL), monday()); d.Effect != access.Allow {
		t.Fatalf("control: got %s: %s", d.Effect, d.Message)
	}
	set.policies[0].rules[1].when.program = panicking{}
	d := set.Decide(sqlRequest(*selects("a.b").SQL), monday())
	if d.Effect != access.Deny || d.Reason != access.Unavailable || d.Revision != set.Revision() {
		t.Errorf("got %s, %s, %s", d.Effect, d.Reason, d.Revision)
	}
	if strings.Contains(d.Message, "a bug") {
		t.Errorf("the caller sees the panic: %q", d.Message)
	}
}

// A condition that costs too much denies; the same condition on a small request
// is evaluated.
func TestDecideCostLimit(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: a, when: 'sql.tables.all(t, sql.columns.all(c, c.startsWith(t)))', effect: allow}\n"))
	request := func(n int) access.Request {
		sql := selects("a.b").SQL
		sql.Tables, sql.Columns = nil, nil
		for range n {
			sql.Tables, sql.Columns = append(sql.Tables, "a.b"), append(sql.Columns, "a.b.c")
		}
		return sqlRequest(*sql)
	}
	if d := set.Decide(request(3), monday()); d.Effect != access.Allow {
		t.Errorf("small: got %s: %s", d.Effect, d.Message)
	}
	d := set.Decide(request(2000), monday())
	if d.Effect != access.Deny || d.Message != "the condition of rule p/a could not be evaluated: it costs too much to evaluate on this request" {
		t.Errorf("large: got %s: %s", d.Effect, d.Message)
	}
	if d := set.Decide(request(3), monday()); d.Effect != access.Allow {
		t.Errorf("small again: got %s: %s", d.Effect, d.Message)
	}
}

// Many rules that are each within bounds are not so together.
func TestDecideTotalCostLimit(t *testing.T) {
	t.Parallel()
	var rules strings.Builder
	for i := range 100 {
		rules.WriteString("  - {name: r" + strings.Repeat("x", i) + ", when: 'sql.text.contains(\"a\") && sql.text.contains(\"needle\")', effect: deny}\n")
	}
	set := mustLoad(t, "p.yaml", everybody(rules.String()+"  - {name: a, effect: allow}\n"))
	sql := selects("a.b").SQL
	sql.Text = strings.Repeat("a", 900_000)
	if d := set.Decide(sqlRequest(*sql), monday()); d.Effect != access.Deny || !strings.Contains(d.Message, "the policies that apply cost too much") {
		t.Errorf("got %s: %s", d.Effect, d.Message)
	}
	sql.Text = "short a"
	if d := set.Decide(sqlRequest(*sql), monday()); d.Effect != access.Allow {
		t.Errorf("twin: got %s: %s", d.Effect, d.Message)
	}
}

func TestDecideWithoutPolicies(t *testing.T) {
	t.Parallel()
	var none *Set
	for name, set := range map[string]*Set{"nil": none, "zero": {}, "empty": mustLoad(t)} {
		d := set.Decide(sqlRequest(*selects("a.b").SQL), monday())
		if d.Effect != access.Deny || d.Revision == "" || d.Message == "" {
			t.Errorf("%s: got %+v", name, d)
		}
	}
}

func TestFaultsOf(t *testing.T) {
	t.Parallel()
	_, err := Load(files("p.yaml", "policy: p"))
	if len(FaultsOf(err)) == 0 || FaultsOf(errors.New("x")) != nil {
		t.Errorf("faults of %v", err)
	}
}

// compileText compiles a condition that calls no other.
func compileText(env *environment, s site, text string) (*condition, []conditionFault) {
	c := env.compile(s, text, nil)
	return c.condition, c.faults
}
