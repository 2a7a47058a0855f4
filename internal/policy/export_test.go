package policy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// passCases runs exported cases against the set that decided them.
func passCases(t *testing.T, s *Set, text []byte, cases int) {
	t.Helper()
	report, err := runTests(s, files("tests.yaml", string(text)), func(name string) string { return name })
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, c := range report.Cases {
		if len(c.Wrong) > 0 {
			t.Errorf("%s: %v\n%s", c.Name, c.Wrong, text)
		}
	}
	if len(report.Cases) != cases {
		t.Errorf("%d cases, want %d", len(report.Cases), cases)
	}
}

// awkwardRequests have everything that could be lost on the way through YAML.
func awkwardRequests() []access.Request {
	requests := sampleRequests()
	for i, text := range []string{"select 1", "yes", "2026-01-01", "a: b # c", "- x\n  y\t\n", "\x1b[2J\u2028\ufeff", "null", "0x10", "'\"", "  ", "é", ">-", "{}", "!!str x"} {
		req := sqlRequest(access.SQL{Text: text, Command: text, Tables: []string{text}, Columns: []string{text, ""}, Statements: i + 1, Unknown: []string{text}, Locks: true})
		if rows, bytes := int64(i), int64(i)<<40; i > 0 {
			req.Action.SQL.EstimatedRows, req.Action.SQL.EstimatedBytes, req.Action.SQL.Plan = &rows, &bytes, "p"
		}
		req.Principal = access.Principal{Issuer: text, Subject: text, User: text, Subagent: text, Instance: text, Workflow: text, Job: text, Groups: []string{text},
			Chain: []access.Hop{{Issuer: text, Subject: text, User: text, Actor: text, Parent: "sha256:1", ActorToken: "tok_2",
				Attenuation: &access.Attenuation{Paths: []string{"/a"}, Rows: 3, Depth: new(int)}}}, Token: access.TokenRef{ID: "tok_1"}}
		req.Resource.Name, req.Resource.Labels = fmt.Sprint("r", i, text), map[string]string{text: text}
		requests = append(requests, req)
		for _, body := range []string{`{"a":1.50,"b":[1,2.0,"` + "x" + `"],"c":12345678901234567890123}`, `[]`, `null`, `{"n":null}`, `"text"`, `{"yes":"no","d":"2026-01-01"}`, `1e3`} {
			var decoded any
			decoder := json.NewDecoder(strings.NewReader(body))
			decoder.UseNumber()
			if decoder.Decode(&decoded) != nil {
				panic(body)
			}
			requests = append(requests, access.Request{Principal: agent(), Resource: billing(), Action: access.Action{HTTP: &access.HTTPCall{Method: "POST", Host: text,
				Path: "/" + text, Query: map[string][]string{text: {text, ""}}, Headers: map[string][]string{"x": {text}}, BodyState: access.BodyWhole, Body: decoded, BodyDigest: "d", BodyBytes: 3}}})
		}
		requests = append(requests, httpRequest(access.HTTPCall{Method: "GET", Path: "/", BodyState: access.BodyUnread}))
	}
	return requests
}

// Whatever was recorded passes as a case beside the policies that decided it.
func TestExportedCasesPass(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 6))
	for range 6 {
		set := mustLoad(t, randomPolicies(random)...)
		var all []*access.Decided
		names := map[string]bool{}
		for i, req := range awkwardRequests() {
			req.ID, req.Time = fmt.Sprint("req_", i), monday()
			ev := recorded(t, req, set.Decide(req, monday()))
			text, err := ExportCases([]*access.Decided{ev.Decided})
			if err != nil {
				t.Fatal(err)
			}
			passCases(t, set, text, 1)
			if labels := asJSON(req.Resource.Labels); !names[req.Resource.Name] || req.Resource.Name == "r1" && labels != "null" {
				names[req.Resource.Name] = true
				all = append(all, ev.Decided)
			}
		}
		text, err := ExportCases(all)
		if err != nil {
			t.Fatal(err)
		}
		passCases(t, set, text, len(all))
	}
}

func TestExportRefuses(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: r, effect: allow}\n"))
	decided := func(change func(*access.Request)) *access.Decided {
		req := sqlRequest(*selects("a.b").SQL)
		req.ID, req.Time = "req_1", monday()
		change(&req)
		return &access.Decided{Request: req, Decision: set.Decide(req, monday())}
	}
	same := decided(func(*access.Request) {})
	for want, list := range map[string][]*access.Decided{
		"had other labels": {same, decided(func(r *access.Request) { r.Resource.Labels = map[string]string{"env": "dev"} })},
		"a path that begins with /": {decided(func(r *access.Request) {
			r.Action = access.Action{HTTP: &access.HTTPCall{Method: "GET", Path: "*"}}
		})},
		"cannot be said as a case": {decided(func(r *access.Request) { r.Action.SQL.Tables, r.Action.SQL.Reads = nil, []string{"x.y"} })},
		"exactly one of sql":       {decided(func(r *access.Request) { r.Action = access.Action{} })},
	} {
		if text, err := ExportCases(list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v\n%s", want, err, text)
		}
	}
}
