package policy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

func TestDecideTime(t *testing.T) {
	t.Parallel()
	const rules = "  - {name: a, when: '%s', effect: allow}\n"
	for _, tc := range []struct {
		name, when string
		now        time.Time
		want       access.Effect
	}{
		{"weekday at noon in Berlin", `now.getDayOfWeek("Europe/Berlin") in [1, 2, 3, 4, 5] && now.getHours("Europe/Berlin") >= 9 && now.getHours("Europe/Berlin") < 18`, monday(), access.Allow},
		{"summer time counts", `now.getHours("Europe/Berlin") == 14`, time.Date(2026, 7, 6, 12, 0, 0, 0, time.UTC), access.Allow},
		{"evening", `now.getHours("Europe/Berlin") < 18`, monday().Add(6 * time.Hour), access.Deny},
		{"offset", `now.getHours("+02:30") == 14 && now.getMinutes("+02:30") == 30`, monday(), access.Allow},
		{"UTC by default", `now.getHours() == 12`, monday().In(time.FixedZone("x", 3600)), access.Allow},
		{"the request's time", `request.time < timestamp("2026-01-05T12:00:01Z") && request.time >= timestamp("2026-01-05T12:00:00Z")`, monday(), access.Allow},
		{"since then", `now - request.time < duration("1s")`, monday(), access.Allow},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			set := mustLoad(t, "p.yaml", everybody(strings.Replace(rules, "%s", tc.when, 1)))
			req := sqlRequest(*selects("a.b").SQL)
			req.Time = tc.now
			if d := set.Decide(req, tc.now); d.Effect != tc.want {
				t.Errorf("got %s: %s %s", d.Effect, d.Message, d.Hint)
			}
		})
	}
}

// Principal conditions that read the time are evaluated at each decision.
func TestDecideTimeIsNotRemembered(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", strings.Replace(everybody("  - {name: a, effect: allow}\n"), "principal: 'true'", "principal: 'now.getHours() < 18'", 1))
	for hour, want := range map[int]access.Effect{9: access.Allow, 17: access.Allow, 18: access.Deny, 23: access.Deny} {
		at := time.Date(2026, 1, 5, hour, 0, 0, 0, time.UTC)
		if d := set.Decide(sqlRequest(*selects("a.b").SQL), at); d.Effect != want {
			t.Errorf("%d h: got %s, want %s", hour, d.Effect, want)
		}
	}
}

func TestDecideHTTP(t *testing.T) {
	t.Parallel()
	call := access.HTTPCall{
		Method: "POST", Host: "billing.internal", Path: "/customers/1/refunds",
		Query:     map[string][]string{"dry": {"yes"}, "tag": {"a", "b"}},
		Headers:   map[string][]string{"content-type": {"application/json"}},
		BodyState: access.BodyWhole,
		Body: map[string]any{"amount": json.Number("99.5"), "big": json.Number("9007199254740993"), "huge": json.Number("1e400"), "customer": map[string]any{"id": "c1"},
			"items": []any{map[string]any{"sku": "x", "n": json.Number("2")}}, "none": nil, "ok": true},
	}
	for when, want := range map[string]access.Effect{
		`http.method == "POST" && http.host == "billing.internal"`:                          access.Allow,
		`http.path.matches("^/customers/[0-9]+/refunds$")`:                                  access.Allow,
		`http.path.split("/")[2] == "1"`:                                                    access.Allow,
		`http.query.dry == ["yes"]`:                                                         access.Allow,
		`"b" in http.query.tag && !("c" in http.query.tag)`:                                 access.Allow,
		`http.query[?"page"].orValue(["1"]) == ["1"]`:                                       access.Allow,
		`has(http.query.page)`:                                                              access.Deny,
		`http.headers["content-type"][0].startsWith("application/json")`:                    access.Allow,
		`"x-missing" in http.headers`:                                                       access.Deny,
		`http.body.amount < 100`:                                                            access.Allow,
		`http.body.amount < 99.4`:                                                           access.Deny,
		`http.body.big == 9007199254740993`:                                                 access.Allow,
		`http.body.big == 9007199254740992`:                                                 access.Deny,
		`http.body.customer.id == "c1" && http.body.items.all(i, i.n <= 2 && i.sku == "x")`: access.Allow,
		`http.body.none == null && http.body.ok == true`:                                    access.Allow,
		`has(http.body.customer) && !has(http.body.other)`:                                  access.Allow,
		`http.body.huge > 1.0 || http.body.huge <= 1.0`:                                     access.Deny, // not a number that can be held
		`http.body[?"other"].orValue(0) == 0`:                                               access.Allow,
		`cidr("10.0.0.0/8").containsIP(ip("10.1.2.3"))`:                                     access.Allow,
		`sets.contains(["dry", "tag"], http.query.map(k, k))`:                               access.Allow,
		`http.host.lowerAscii().endsWith(".internal")`:                                      access.Allow,
	} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			set := mustLoad(t, "p.yaml", everybody("  - name: a\n    effect: allow\n    when: |\n      "+when+"\n"))
			failed := strings.Contains(when, "huge")
			if d := set.Decide(httpRequest(call), monday()); d.Effect != want || d.Effect == access.Deny && (d.Reason == access.NoRule) == failed {
				t.Errorf("got %s: %s %s", d.Effect, d.Message, d.Hint)
			}
		})
	}
}

func TestDecidePrincipal(t *testing.T) {
	t.Parallel()
	p := access.Principal{
		Issuer: "dex", Subject: "s1", User: "alice@example.com", Subagent: "ci", Instance: "i-1", Workflow: "nightly", Job: "42",
		Groups: []string{"a", "b"},
		Chain:  []access.Hop{{Issuer: "dex", Subject: "boss", User: "bob@example.com", Actor: "ci"}},
	}
	for condition, want := range map[string]bool{
		`principal.issuer == "dex" && principal.subject == "s1"`:                        true,
		`principal.user.endsWith("@example.com")`:                                       true,
		`principal.subagent in ["ci", "cd"] && principal.instance == "i-1"`:             true,
		`principal.workflow == "nightly" && principal.job == "42"`:                      true,
		`principal.workflow == "daily"`:                                                 false,
		`principal.groups.exists(g, g in ["x", "b"])`:                                   true,
		`principal.groups.exists(g, g == "x")`:                                          false,
		`sets.intersects(principal.groups, ["x", "a"])`:                                 true,
		`"x" in principal.groups || "b" in principal.groups`:                            true,
		`"x" in principal.groups && "b" in principal.groups`:                            false,
		`!("x" in principal.groups)`:                                                    true,
		`principal.chain.all(h, h.user == "bob@example.com" && h.actor == "ci")`:        true,
		`size(principal.chain) <= 1 && principal.chain[0].subject == "boss"`:            true,
		`principal.chain.exists(h, h.issuer != "dex")`:                                  false,
		`principal.user == "" || principal.user == "alice@example.com"`:                 true,
		`now.getHours() == 12 && "a" in principal.groups`:                               true,
		`now.getHours() == 13 && "a" in principal.groups`:                               false,
		`principal.groups.map(g, g + "!").exists(g, g == "a!") && principal.user != ""`: true,
	} {
		t.Run(condition, func(t *testing.T) {
			t.Parallel()
			set := mustLoad(t, "p.yaml", strings.Replace(everybody("  - {name: a, effect: allow}\n"), "principal: 'true'", "principal: |\n  "+condition, 1))
			req := sqlRequest(*selects("a.b").SQL)
			req.Principal = p
			for range 2 {
				if d := set.Decide(req, monday()); (d.Effect == access.Allow) != want {
					t.Errorf("got %s: %s", d.Effect, d.Message)
				}
			}
		})
	}
}
