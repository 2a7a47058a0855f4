package policy

import (
	"slices"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// CEL takes .sql for sql; what a condition reads must not depend on the
// spelling.
func TestReadings(t *testing.T) {
	t.Parallel()
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]reading{
		`sql.read_only`:                                  readsSQL,
		`.sql.read_only`:                                 readsSQL,
		`[1].all(i, .sql.statements == i)`:               readsSQL,
		`http.path == "/"`:                               readsHTTP,
		`http.body.x == 1`:                               readsHTTP | readsBody,
		`.http.body_state == ""`:                         readsHTTP | readsBody,
		`http.method == "GET" ? http.body.x == 1 : true`: readsHTTP | readsBody,
		`now > request.time`:                             readsTime,
		`.sql.estimated_rows < 9`:                        readsSQL | readsEstimate,
		`sql.ddl || sql.estimated_bytes < 9`:             readsSQL | readsEstimate,
		`.now.getHours() == 1`:                           readsTime,
		`.ssh.act == "exec"`:                             readsSSH,
		`size(.ssh.unknown) == 0`:                        readsSSH | readsUnknown,
		`principal.user == resource.name`:                0,
		`has(resource.labels.env)`:                       0,
	} {
		c, faults := compileText(env, whenSite, text)
		if len(faults) > 0 || c.reads != want {
			t.Errorf("%s: reads %b, want %b; %v", text, c.reads, want, faults)
		}
	}
	for _, text := range []string{`.sql == .sql`, `has(.http.body)`, `.http.headers["X-A"] == []`, `.sql.ddl || .http.path == "/"`, `sql["text"] == "x"`} {
		if c, _ := compileText(env, whenSite, text); c != nil {
			t.Errorf("%s: accepted", text)
		}
	}
}

func TestConjuncts(t *testing.T) {
	t.Parallel()
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	c, faults := compileText(env, whenSite, "sql.read_only\n&& (sql.ddl || sql.locks) && !(sql.session && sql.has_where)\n  && sql.tables.all(t,\n t == 'a')")
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	var got []string
	for _, term := range c.conjuncts() {
		got = append(got, term.text)
	}
	want := `sql.read_only; sql.ddl || sql.locks; !(sql.session && sql.has_where); sql.tables.all(t, t == "a")`
	if strings.Join(got, "; ") != want {
		t.Errorf("got %s", strings.Join(got, "; "))
	}
}

// largeRequests are as large as a request may be and still count as small.
func largeRequests() []access.Request {
	names := make([]string, smallList)
	for i := range names {
		names[i] = strings.Repeat("n", smallName)
	}
	lists := map[string][]string{}
	for i := range smallList {
		lists[strings.Repeat("k", smallName-1)+string(rune('0'+i))] = names
	}
	p := access.Principal{User: names[0], Groups: names}
	for range smallList {
		p.Chain = append(p.Chain, access.Hop{Issuer: names[0], Subject: names[0], User: names[0], Actor: names[0]})
	}
	r := access.Resource{Name: names[0], Kind: access.Postgres, Labels: map[string]string{"env": names[0]}}
	return []access.Request{
		{Principal: p, Resource: r, Action: access.Action{SQL: &access.SQL{Text: strings.Repeat("t", smallText), Command: "SELECT",
			Tables: names, Reads: names, Writes: names, Columns: names, Functions: names, ReadOnly: true}}},
		{Principal: p, Resource: r, Action: access.Action{HTTP: &access.HTTPCall{Method: "GET", Host: names[0], Path: names[0],
			Query: lists, Headers: lists, BodyState: access.BodyWhole, Body: map[string]any{"x": "y"}}}},
		{Principal: p, Resource: r, Action: access.Action{SSH: &access.SSHCall{Act: access.ActExec, User: names[0], Command: strings.Repeat("t", smallText),
			Commands: slices.Repeat([][]string{names}, smallList), Programs: names, Reads: names, Environment: map[string]string{names[0]: names[0]}}}},
	}
}

// Conditions that are not counted on small requests cannot exceed the limit.
func TestCheapConditionsAreCheap(t *testing.T) {
	t.Parallel()
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	expensive := 0
	for _, text := range conditionSeeds() {
		c, faults := compileText(env, whenSite, text)
		if len(faults) > 0 {
			t.Errorf("%s: %v", text, faults)
			continue
		}
		if !c.cheap() {
			expensive++
		}
		checkCheap(t, env, c)
	}
	if expensive == 0 || expensive == len(conditionSeeds()) {
		t.Errorf("%d of %d conditions are counted: the test shows little", expensive, len(conditionSeeds()))
	}
}

func checkCheap(t *testing.T, env *environment, c *condition) {
	t.Helper()
	set := newSet(env, nil)
	for _, req := range append(largeRequests(), sampleRequests()[:4]...) {
		sc := set.newScope(&req.Principal, set.newTarget(&req.Resource))
		e := set.begin()
		e.of(&req, sc, monday())
		if !e.small {
			t.Fatal("the request does not count as small")
		}
		fits := (&rule{when: c}).passedOver(req.Action) == ""
		if fits && c.cheap() {
			e.count(true)
			_, _, err := c.program.Eval(e.frame)
			if _, err := outcomeOf(nil, err); err != nil && strings.Contains(err.Error(), "costs too much") {
				t.Fatalf("%s: costs too much on a small request, and would not be counted", c.source)
			}
		}
		if fits {
			counted, _ := e.run(c)
			e.small = false
			if uncounted, _ := e.run(c); uncounted != counted {
				t.Fatalf("%s: %s when counted, %s otherwise", c.source, counted, uncounted)
			}
		}
		set.end(e)
	}
}

func conditionSeeds() []string {
	return []string{
		`sql.read_only && sql.tables.all(t, t in ["public.orders", "public.customers"])`,
		`sql.command == "UPDATE" && sql.writes == ["public.orders"] && sql.has_where`,
		`sql.tables.all(t, sql.columns.exists(c, c.startsWith(t)))`,
		`sql.tables.all(t, sql.columns.all(c, c.contains(t)))`,
		`sql.text.matches("^(a|b)*select.*from.*where$")`,
		`sql.text.lowerAscii().contains("drop") || sql.text.indexOf("x") > 3`,
		`sets.contains(["a", "b"], sql.tables) && sets.intersects(sql.reads, sql.writes)`,
		`http.path.split("/")[2] == "1" && http.path.endsWith("/x")`,
		`ssh.commands.all(c, c[0] in ["ls", "cat"]) && ssh.paths.all(p, p.startsWith("/srv/"))`,
		`ssh.commands.all(c, c.exists(w, w.contains(ssh.user))) || ssh.command.matches("^(a|b)*$")`,
		`http.query[?"page"].orValue(["1"]) == ["1"]`,
		`http.headers.all(k, http.headers[k].all(v, v != "x"))`,
		`http.body.amount < 100 && http.body.items.all(i, i.n <= 2)`,
		`principal.chain.all(h, h.user in principal.groups || h.actor == "ci")`,
		`now.getHours("Europe/Berlin") >= 9 && now - request.time < duration("5m")`,
		`isIP(http.host) && cidr("10.0.0.0/8").containsIP(ip(http.host))`,
		`sql.tables.map(t, t + "x").filter(t, t.size() > 3).size() > 1`,
		`(sql.statements > 1 ? sql.locks : sql.ddl) || -sql.statements < 0 && sql.statements % 2 == 1`,
		`timestamp("2026-01-01T00:00:00Z") < now && string(now).startsWith("2026")`,
		`{"a": 1, "b": 2}["a"] == 1 && [1, 2, 3][0] == 1 && type(1) == int`,
	}
}

func FuzzCondition(f *testing.F) {
	for _, seed := range conditionSeeds() {
		f.Add(seed)
	}
	env, err := newEnvironment()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for s := range env.sites {
			c, faults := compileText(env, site(s), text)
			if (c == nil) != (len(faults) > 0) {
				t.Fatalf("condition %v with faults %v", c, faults)
			}
			if c != nil && !c.always && site(s) == whenSite {
				checkCheap(t, env, c)
			}
		}
	})
}
