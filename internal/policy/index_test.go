package policy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

func TestRequirement(t *testing.T) {
	t.Parallel()
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	for condition, want := range map[string]string{
		`"a" in principal.groups`:                                                      "groups=a exact",
		`principal.user == "u"`:                                                        "user=u exact",
		`"u" == principal.user`:                                                        "user=u exact",
		`principal.workflow in ["x", "y"]`:                                             "workflow=x workflow=y exact",
		`principal.groups.exists(g, g in ["a", "b"])`:                                  "groups=a groups=b exact",
		`principal.groups.exists(g, g == "a")`:                                         "groups=a exact",
		`sets.intersects(principal.groups, ["a", "b"])`:                                "groups=a groups=b exact",
		`"a" in principal.groups || principal.user == "u"`:                             "groups=a user=u exact",
		`"a" in principal.groups && principal.user.startsWith("u")`:                    "groups=a",
		`principal.user.startsWith("u") && "a" in principal.groups`:                    "groups=a",
		`principal.user in ["x", "y"] && "a" in principal.groups`:                      "groups=a",
		`("a" in principal.groups && principal.job == "1") || "b" in principal.groups`: "groups=a groups=b",
		`"a" in principal.groups || principal.user.startsWith("u")`:                    "",
		`!("a" in principal.groups)`:                                                   "",
		`principal.groups.all(g, g in ["a"])`:                                          "",
		`principal.groups.exists(g, g.startsWith("a"))`:                                "",
		`principal.groups.exists(g, "a" == principal.user)`:                            "",
		`principal.groups.exists(g, !(g in ["a"]))`:                                    "",
		`principal.user != "u"`:                                                        "",
		`principal.user in principal.groups`:                                           "",
		`principal.chain[0].user == "u"`:                                               "",
		`true`:                                                                         "",
		`("a" in principal.groups) == false`:                                           "",
		`"a" in principal.groups ? false : true`:                                       "",
		`principal.user in []`:                                                         "exact",
	} {
		c, faults := compileText(env, principalSite, condition)
		if len(faults) > 0 {
			t.Errorf("%s: %v", condition, faults)
			continue
		}
		r := requirementOf(c)
		var got []string
		for _, a := range r.atoms {
			got = append(got, a.field+"="+a.value)
		}
		if r.exact {
			got = append(got, "exact")
		}
		if strings.Join(got, " ") != want || r.known != (want != "") {
			t.Errorf("%s: got %v, want %s", condition, got, want)
		}
	}
}

// sampleRequests are requests of both kinds by different principals.
func sampleRequests() []access.Request {
	var requests []access.Request
	for _, groups := range [][]string{nil, {"g1"}, {"g2", "g3"}, {"g1", "g2", "orders-agents"}} {
		for _, user := range []string{"", "u1", "u2"} {
			for _, res := range []access.Resource{orders(), billing(), {Name: "r1", Kind: access.Postgres, Labels: map[string]string{"env": "dev"}}} {
				p := access.Principal{Issuer: "dex", User: user, Groups: groups}
				action := selects("public.orders")
				if res.Kind == access.HTTP {
					action = access.Action{HTTP: &access.HTTPCall{Method: "GET", Path: "/"}}
				}
				requests = append(requests, access.Request{Principal: p, Resource: res, Action: action})
			}
		}
	}
	return requests
}

// The index and what the set remembers never change a decision: it is compared
// with an evaluation of everything.
func TestIndexAgreesWithFullEvaluation(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	var principal func(depth int) string
	principal = func(depth int) string {
		if depth > 0 && random.IntN(2) == 0 {
			return "(" + principal(depth-1) + pick(" && ", " || ") + principal(depth-1) + ")"
		}
		return pick(`"g1" in principal.groups`, `"g2" in principal.groups`, `principal.user == "u1"`, `principal.user in ["u1", "u2"]`,
			`principal.groups.exists(g, g == "g3")`, `principal.user.startsWith("u")`, `!("g1" in principal.groups)`, `principal.groups[1] == "g3"`,
			`now.getHours() == 12`, `now.getHours() == 13`, `true`, `sets.intersects(principal.groups, ["g3", "g1"])`, `principal.groups.exists(g, g in ["g2"])`)
	}
	resource := func() string {
		return pick(`true`, `resource.kind == "postgres"`, `resource.name == "r1"`, `resource.labels.env == "prod"`, `has(resource.labels.env) && resource.labels.env == "dev"`)
	}
	decided := map[string]int{}
	for round := range 60 {
		var pairs []string
		for i := range 1 + random.IntN(8) {
			text := fmt.Sprintf("policy: p%d\nprincipal: |\n  %s\nresource: '%s'\nrules:\n", i, principal(3), resource())
			for j := range 1 + random.IntN(2) {
				text += fmt.Sprintf("  - {name: r%d, effect: %s, when: '%s'}\n", j, pick("allow", "allow", "deny"), pick("sql.read_only", "true", `http.method == "GET"`, "sql.ddl"))
			}
			pairs = append(pairs, fmt.Sprintf("p%d.yaml", i), text)
		}
		set := mustLoad(t, pairs...)
		requests := sampleRequests()
		for range 2 { // the second time from what the set remembers
			random.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
			for _, req := range requests {
				d := set.Decide(req, monday())
				want := fullEvaluation(set.Explain(req, monday()))
				got := []string{}
				if d.Effect != access.Deny || d.Reason == access.DeniedByRule && len(d.Rules) > 0 && !strings.Contains(d.Message, "could not be evaluated") {
					for _, ref := range d.Rules {
						got = append(got, d.Effect.String()+" "+ref.String())
					}
				} else if strings.Contains(d.Message, "could not be evaluated") {
					got = append(got, "error")
				}
				if !slices.Equal(got, want) {
					t.Fatalf("round %d: decided %v (%s), full evaluation says %v\n%s", round, got, d.Message, want, set.Explain(req, monday()))
				}
				decided[d.Effect.String()+" "+string(d.Reason)]++
			}
		}
	}
	for _, kind := range []string{"allow ", "deny no-rule", "deny denied-by-rule"} {
		if decided[kind] < 100 {
			t.Errorf("only %d decisions were %q: the test shows little", decided[kind], kind)
		}
	}
}

// fullEvaluation decides again from the traces of every policy.
func fullEvaluation(x Explanation) []string {
	matched := map[access.Effect][]string{}
	failed := false
	for _, p := range x.Policies {
		failed = failed || p.Error != ""
		for _, r := range p.Rules {
			failed = failed || r.Error != ""
			if r.Matched {
				matched[r.Effect] = append(matched[r.Effect], r.Effect.String()+" "+r.Rule.String())
			}
		}
	}
	switch {
	case len(matched[access.Deny]) > 0:
		return matched[access.Deny]
	case failed:
		return []string{"error"}
	case len(matched[access.Approve]) > 0:
		return matched[access.Approve]
	case len(matched[access.Allow]) > 0:
		return matched[access.Allow]
	}
	return []string{}
}

// Everything that a condition can read tells principals and resources apart,
// also after another one has been remembered.
func TestRememberedScopeIsTheRightOne(t *testing.T) {
	t.Parallel()
	base := access.Principal{Issuer: "i", Subject: "s", User: "u", Subagent: "a", Instance: "n", Workflow: "w", Job: "j",
		Groups: []string{"g"}, Chain: []access.Hop{{Issuer: "i", Subject: "s", User: "u", Actor: "a"}}}
	set := mustLoad(t, "p.yaml", strings.Replace(everybody("  - {name: a, effect: allow}\n"), "principal: 'true'\nresource: 'true'", `principal: |
  principal.issuer.startsWith("i") && principal.subject.startsWith("s") && principal.user.startsWith("u") &&
  principal.subagent.startsWith("a") && principal.instance.startsWith("n") && principal.workflow.startsWith("w") &&
  principal.job.startsWith("j") && principal.groups.all(g, g.startsWith("g")) &&
  principal.chain.all(h, h.issuer.startsWith("i") && h.subject.startsWith("s") && h.user.startsWith("u") && h.actor.startsWith("a"))
resource: 'resource.name == "orders" && resource.kind == "postgres" && resource.labels.env == "prod"'`, 1))
	ask := func(p access.Principal, r access.Resource) access.Effect {
		return set.Decide(access.Request{Principal: p, Resource: r, Action: selects("a.b")}, monday()).Effect
	}
	if ask(base, orders()) != access.Allow {
		t.Fatal("control: the base principal is denied")
	}
	for name, change := range map[string]func(*access.Principal, *access.Resource){
		"issuer":   func(p *access.Principal, _ *access.Resource) { p.Issuer = "x" },
		"subject":  func(p *access.Principal, _ *access.Resource) { p.Subject = "x" },
		"user":     func(p *access.Principal, _ *access.Resource) { p.User = "x" },
		"subagent": func(p *access.Principal, _ *access.Resource) { p.Subagent = "x" },
		"instance": func(p *access.Principal, _ *access.Resource) { p.Instance = "x" },
		"workflow": func(p *access.Principal, _ *access.Resource) { p.Workflow = "x" },
		"job":      func(p *access.Principal, _ *access.Resource) { p.Job = "x" },
		"groups":   func(p *access.Principal, _ *access.Resource) { p.Groups = []string{"x"} },
		"chain issuer": func(p *access.Principal, _ *access.Resource) {
			p.Chain = []access.Hop{{Issuer: "x", Subject: "s", User: "u", Actor: "a"}}
		},
		"chain subject": func(p *access.Principal, _ *access.Resource) {
			p.Chain = []access.Hop{{Issuer: "i", Subject: "x", User: "u", Actor: "a"}}
		},
		"chain user": func(p *access.Principal, _ *access.Resource) {
			p.Chain = []access.Hop{{Issuer: "i", Subject: "s", User: "x", Actor: "a"}}
		},
		"chain actor": func(p *access.Principal, _ *access.Resource) {
			p.Chain = []access.Hop{{Issuer: "i", Subject: "s", User: "u", Actor: "x"}}
		},
		"resource name": func(_ *access.Principal, r *access.Resource) { r.Name = "x" },
		"resource kind": func(_ *access.Principal, r *access.Resource) { r.Kind = "x" },
		"labels":        func(_ *access.Principal, r *access.Resource) { r.Labels = map[string]string{"env": "x"} },
	} {
		p, r := base, orders()
		change(&p, &r)
		// The worst case: the changed principal hashes like the remembered one.
		key := set.scopeKey(&p, &r)
		remembered, _, _ := set.scopes.get(set.scopeKey(&base, new(orders())))
		set.scopes.put(key, remembered, 1)
		if got := ask(p, r); got != access.Deny {
			t.Errorf("%s: another one gets the remembered answer %s", name, got)
		}
	}
	if ask(base, orders()) != access.Allow {
		t.Error("the base principal is denied afterwards")
	}
}

// A caller may change what it passed in, and what the set remembers stays.
func TestRememberedScopeIsACopy(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "orders.yaml", ordersPolicy)
	p, r := agent(), orders()
	req := access.Request{Principal: p, Resource: r, Action: selects("public.orders")}
	if d := set.Decide(req, monday()); d.Effect != access.Allow {
		t.Fatalf("control: %s", d.Message)
	}
	p.Groups[1], r.Labels["env"] = "none", "dev"
	if d := set.Decide(req, monday()); d.Effect != access.Deny {
		t.Error("the changed principal gets the old answer")
	}
	if d := set.Decide(access.Request{Principal: agent(), Resource: orders(), Action: selects("public.orders")}, monday()); d.Effect != access.Allow {
		t.Errorf("the old principal is denied: %s", d.Message)
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := newCache[int](100)
	for i := range uint64(10_000) {
		c.put(i, int(i), 3)
		if held := len(c.current) + len(c.previous); held > 70 {
			t.Fatalf("%d entries of weight 3 are held; the limit is 100", held)
		}
	}
	if _, _, ok := c.get(9_999); !ok {
		t.Error("the newest entry is gone")
	}
	if _, _, ok := c.get(0); ok {
		t.Error("the oldest entry is still there")
	}
	c.put(1, 1, 60)
	if _, _, ok := c.get(1); ok {
		t.Error("an entry of more than half the limit is kept")
	}
}

func TestDecideConcurrently(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "orders.yaml", ordersPolicy, "p.yaml", everybody("  - {name: h, when: 'http.method == \"GET\"', effect: allow}\n"))
	requests := append(sampleRequests(), sqlRequest(*selects("public.orders").SQL))
	want := make([]access.Decision, len(requests))
	for i, req := range requests {
		want[i] = set.Decide(req, monday())
	}
	fresh := mustLoad(t, "orders.yaml", ordersPolicy, "p.yaml", everybody("  - {name: h, when: 'http.method == \"GET\"', effect: allow}\n"))
	done := make(chan error)
	for range 8 {
		go func() {
			for range 20 {
				for i, req := range requests {
					if d := fresh.Decide(req, monday()); !reflect.DeepEqual(d, want[i]) {
						done <- fmt.Errorf("request %d: got %+v, want %+v", i, d, want[i])
						return
					}
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
