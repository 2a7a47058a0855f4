package policy

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

const sharedConditions = `
conditions:
  orders-agent: '"orders-agents" in principal.groups'
  office-hours: 'now.getHours("UTC") >= 9 && now.getHours("UTC") < 18'
  plain-read: 'sql.read_only && size(sql.unknown) == 0'
  orders: 'sql.tables.exists(t, t == "public.orders")'
`

const namedPolicy = `
policy: p
conditions:
  quiet-read: 'condition("plain-read") && !sql.locks'
principal: 'condition("orders-agent") && principal.user != ""'
resource: 'true'
rules:
  - name: read
    when: 'condition("quiet-read") && condition("office-hours") && condition("orders")'
    effect: allow
`

// writtenOut is namedPolicy without names.
const writtenOut = `
policy: p
principal: '"orders-agents" in principal.groups && principal.user != ""'
resource: 'true'
rules:
  - name: read
    when: >-
      sql.read_only && size(sql.unknown) == 0 && !sql.locks && now.getHours("UTC") >= 9 && now.getHours("UTC") < 18
      && sql.tables.exists(t, t == "public.orders")
    effect: allow
`

// A call stands for the condition itself: decisions, hints and the index are
// those of the condition written out.
func TestNamedConditionsMeanWhatTheySay(t *testing.T) {
	t.Parallel()
	named := mustLoad(t, "conditions.yaml", sharedConditions, "team/p.yaml", namedPolicy)
	plain := mustLoad(t, "p.yaml", writtenOut)
	if got, want := named.policies[0].needs, plain.policies[0].needs; !reflect.DeepEqual(got, want) || !got.known {
		t.Errorf("indexed by %+v, want %+v", got, want)
	}
	stranger := sqlRequest(*selects("public.orders").SQL)
	stranger.Principal.Groups = []string{"others"}
	locking := selects("public.orders").SQL
	locking.Locks = true
	effects := map[access.Effect]int{}
	for name, req := range map[string]access.Request{
		"allowed":     sqlRequest(*selects("public.orders").SQL),
		"other table": sqlRequest(*selects("public.secrets").SQL),
		"locks":       sqlRequest(*locking),
		"unknown":     sqlRequest(access.SQL{Command: "SELECT", Unknown: []string{"f is not known"}}),
		"http":        httpRequest(access.HTTPCall{Method: "GET", Path: "/"}),
		"stranger":    stranger,
	} {
		got, want := named.Decide(req, monday()), plain.Decide(req, monday())
		effects[got.Effect]++
		if got.Effect != want.Effect || got.Reason != want.Reason || got.Hint != want.Hint {
			t.Errorf("%s: got %s %s %q, want %s %s %q", name, got.Effect, got.Reason, got.Hint, want.Effect, want.Reason, want.Hint)
		}
		if x := named.Explain(req, monday()); x.Decision.Effect != got.Effect {
			t.Errorf("%s: explained as %s", name, x.Decision.Effect)
		}
	}
	if effects[access.Allow] != 1 || effects[access.Deny] != 5 {
		t.Errorf("got %v", effects)
	}
}

// A grant is bound to what the rule says, named conditions included.
func TestNamedConditionsAreHashed(t *testing.T) {
	t.Parallel()
	load := func(shared, policy string) *Set {
		return mustLoad(t, "conditions.yaml", shared, "p.yaml", policy, "q.yaml", `
policy: q
principal: 'true'
resource: 'true'
rules: [{name: r, when: sql.ddl, effect: deny}]
`)
	}
	base := load(sharedConditions, namedPolicy)
	for name, set := range map[string]*Set{
		"in when":      load(strings.Replace(sharedConditions, "< 18", "< 19", 1), namedPolicy),
		"in principal": load(strings.Replace(sharedConditions, `"orders-agents" in`, `"agents" in`, 1), namedPolicy),
		"indirectly":   load(strings.Replace(sharedConditions, "sql.read_only", "!sql.ddl", 1), namedPolicy),
		"local":        load(sharedConditions, strings.Replace(namedPolicy, "!sql.locks", "!sql.session", 1)),
	} {
		if set.Revision() == base.Revision() || set.Rules()[0].Hash == base.Rules()[0].Hash {
			t.Errorf("%s: the change does not show", name)
		}
		if set.Rules()[1] != base.Rules()[1] {
			t.Errorf("%s: a rule that does not call it changed", name)
		}
	}
	if again := load("# layout\n"+sharedConditions, namedPolicy); again.Revision() != base.Revision() {
		t.Error("layout shows")
	}
}

func TestNamedConditionsScope(t *testing.T) {
	t.Parallel()
	policy := func(name, when string) string {
		return fmt.Sprintf("policy: %s\nprincipal: 'true'\nresource: 'true'\nrules: [{name: r, when: '%s', effect: allow}]\n", name, when)
	}
	shared := func(name, text string) string { return fmt.Sprintf("conditions: {%s: '%s'}\n", name, text) }
	for name, tc := range map[string]struct {
		files []string
		want  []string // parts of faults; none when it loads
	}{
		"two folders may use one name": {files: []string{
			"a/conditions.yaml", shared("mine", "sql.ddl"), "a/p.yaml", policy("a", `condition("mine")`),
			"b/conditions.yaml", shared("mine", "sql.locks"), "b/p.yaml", policy("b", `condition("mine")`),
		}},
		"two policies may use one name": {files: []string{
			"a.yaml", policy("a", `condition("mine")`) + shared("mine", "sql.ddl"),
			"b.yaml", policy("b", `condition("mine")`) + shared("mine", "sql.locks"),
		}},
		"folders inside": {files: []string{
			"conditions.yaml", shared("outer", "sql.ddl"), "a/b/p.yaml", policy("a", `condition("inner")`),
			"a/conditions.yaml", shared("inner", `!condition("outer")`),
		}},
		"not from beside": {want: []string{`b/p.yaml:4:36: rules[0].when: there is no condition named "mine"; there are none here`}, files: []string{
			"a/conditions.yaml", shared("mine", "sql.ddl"), "a/p.yaml", policy("a", `condition("mine")`),
			"b/p.yaml", policy("b", `condition("mine")`),
		}},
		"not again inside": {want: []string{`a/conditions.yaml:1:20: conditions.mine: condition "mine" is already defined at conditions.yaml:1:20`}, files: []string{
			"conditions.yaml", shared("mine", "sql.ddl"), "a/conditions.yaml", shared("mine", "sql.ddl"),
			"a/p.yaml", policy("a", `condition("mine")`), "p.yaml", policy("b", `condition("mine")`),
		}},
		"unused": {want: []string{
			`conditions.yaml:1:20: conditions.mine: nothing calls condition("mine"); remove it, or use it`,
			`p.yaml:5:19: conditions.own`,
		}, files: []string{
			"conditions.yaml", shared("mine", "sql.ddl"), "p.yaml", policy("a", "true") + shared("own", "sql.ddl"),
		}},
		"empty": {want: []string{"conditions.yaml:1:13: conditions: there are no conditions"}, files: []string{
			"conditions.yaml", "conditions: {}\n", "p.yaml", policy("a", "true"),
		}},
		"too large together": {want: []string{`q.yaml:4:79: rules[0].when: with what it calls, the condition is too large`}, files: []string{
			"conditions.yaml", shared("large", strings.Repeat("sql.ddl || ", 500)+"sql.locks"),
			"q.yaml", policy("q", strings.Repeat(`condition("large") && `, 3)+"true"),
		}},
		"nested too deep": {want: []string{`q.yaml:4:52: rules[0].when: condition "pairs": all, exists`}, files: []string{
			"conditions.yaml", shared("pairs", "sql.tables.all(t, sql.columns.exists(c, c.startsWith(t)))"),
			"q.yaml", policy("q", `sql.reads.all(r, condition("pairs"))`),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set, err := Load(files(tc.files...))
			if len(tc.want) == 0 && err != nil || len(FaultsOf(err)) != len(tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			for i, want := range tc.want {
				if got := FaultsOf(err)[i].Error(); !strings.HasPrefix(got, want) {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			if len(tc.want) > 0 && set != nil {
				t.Error("a set was loaded in part")
			}
		})
	}
}
