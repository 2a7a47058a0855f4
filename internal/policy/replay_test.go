package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// recorded is the event of a decision as it comes back from a recording.
func recorded(t testing.TB, req access.Request, d access.Decision) access.Event {
	t.Helper()
	b, err := json.Marshal(access.Event{Session: req.Session, Request: req.ID, Decided: &access.Decided{Request: req, Decision: d}})
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.UseNumber()
	var ev access.Event
	if err := decoder.Decode(&ev); err != nil {
		t.Fatal(err)
	}
	return ev
}

// An estimate is recorded with the decision, so that another threshold is tried
// on what was seen; 0 is an estimate, and none is none.
func TestReplayHasEstimates(t *testing.T) {
	t.Parallel()
	below := func(n int) *Set {
		return mustLoad(t, "p.yaml", everybody(fmt.Sprintf("  - {name: small, when: 'sql.estimated_rows < %d', effect: allow}\n", n)))
	}
	same, other := NewReplay(below(1000)), NewReplay(below(100))
	zero, some := int64(0), int64(500)
	for i, rows := range []*int64{&zero, &some, nil} {
		req := sqlRequest(access.SQL{Command: "SELECT", EstimatedRows: rows})
		req.ID = fmt.Sprint("req_", i)
		e := recorded(t, req, below(1000).Decide(req, monday()))
		same.Add(e)
		other.Add(e)
	}
	if r := same.Report(); r.Decisions != 3 || r.Flipped != 0 {
		t.Errorf("the same: %+v", r)
	}
	if r := other.Report(); r.Decisions != 3 || r.Flipped != 1 {
		t.Errorf("another threshold: %+v", r)
	}
}

// Whatever a set has decided, it decides again from what was recorded, at the
// time that it was decided.
func TestReplayOfTheSamePolicyFlipsNothing(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	effects := map[access.Effect]int{}
	for round := range 40 {
		set := mustLoad(t, randomPolicies(random)...)
		replay := NewReplay(set)
		decisions := 0
		for i, req := range sampleRequests() {
			req.ID, req.Time = fmt.Sprintf("req_%d", i), monday().Add(-time.Duration(i)*time.Second)
			if req.Action.HTTP != nil {
				req.Action.HTTP.BodyState, req.Action.HTTP.Body = access.BodyWhole, map[string]any{"amount": json.Number("1.50"), "n": json.Number("12345678901234567890")}
			}
			at := monday().Add(time.Duration(random.IntN(7200)-3600) * time.Second)
			d := set.Decide(req, at)
			effects[d.Effect]++
			replay.Add(recorded(t, req, d))
			decisions++
		}
		if r := replay.Report(); r.Flipped != 0 || r.OtherRule != 0 || r.Decisions != decisions || len(r.NotReplayed) > 0 {
			t.Fatalf("round %d: %+v", round, r)
		}
	}
	for _, e := range []access.Effect{access.Allow, access.Approve, access.Deny} {
		if effects[e] < 50 {
			t.Errorf("only %d were decided %s", effects[e], e)
		}
	}
}

// randomPolicies are policies with conditions of all sorts.
func randomPolicies(random *rand.Rand) (pairs []string) {
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	for i := range 1 + random.IntN(4) {
		text := fmt.Sprintf("policy: p%d\nprincipal: '%s'\nresource: '%s'\nrules:\n", i,
			pick("true", `"g1" in principal.groups`, `principal.user != ""`, "now.getMinutes() < 30"),
			pick("true", `resource.kind == "postgres"`, `has(resource.labels.env) && resource.labels.env == "prod"`))
		for j := range 1 + random.IntN(3) {
			when := pick("sql.read_only", "true", "http.body.amount < 2", "now.getHours() == 12", "request.time < now", `http.method == "GET"`, "sql.ddl", "resource.labels.env == \"prod\"")
			rule := pick("effect: allow", "effect: allow, mask: [{column: a.b.c}, {detect: [SSN], with: partial}]", "effect: allow, limits: {rows_read: 5, time: 3s}", "effect: allow, limits: {per_hour: {bytes: 9, time: 2m}, per_session: {statements: 3}}",
				"effect: approve, approval: {groups: [g]}", "effect: approve, approval: {groups: [h], count: 2}", "effect: deny")
			text += fmt.Sprintf("  - {name: r%d, when: '%s', %s}\n", j, when, rule)
		}
		pairs = append(pairs, fmt.Sprintf("p%d.yaml", i), text)
	}
	return pairs
}

func TestReplayFlips(t *testing.T) {
	t.Parallel()
	rule := func(text string) *Set { return mustLoad(t, "p.yaml", everybody("  - {name: r, "+text+"}\n")) }
	for _, tc := range []struct {
		name, before, after string
		changed             string // "" flips nothing
		detail              string
	}{
		{"allow to deny", "effect: allow", "effect: deny", "effect", "allow becomes deny"},
		{"deny to allow", "effect: deny", "effect: allow", "effect", "deny becomes allow"},
		{"approve to allow", "effect: approve, approval: {groups: [g]}", "effect: allow", "effect", "approve becomes allow"},
		{"a mask goes", "effect: allow, mask: [{column: a.b.c}]", "effect: allow", "masks", "no longer masked: a.b.c"},
		{"a mask comes", "effect: allow", "effect: allow, mask: [{detect: [SSN, IBAN]}]", "masks", "now masked: IBAN, SSN"},
		{"a mask weakens", "effect: allow, mask: [{column: a.b.c}]", "effect: allow, mask: [{column: a.b.c, with: partial}]", "masks", "now masked: a.b.c (all but the end)"},
		{"limits", "effect: allow, limits: {rows_read: 5}", "effect: allow, limits: {rows_read: 6}", "limits", "limits {rows_read: 5} become {rows_read: 6}"},
		{"reviewers", "effect: approve, approval: {groups: [g]}", "effect: approve, approval: {groups: [g], count: 2}", "approval", "approval {groups: [g], count: 1, expires: 15m0s} becomes {groups: [g], count: 2, expires: 15m0s}"},
		{"effect and masks", "effect: approve, approval: {groups: [g]}, mask: [{column: a.b.c}]", "effect: allow", "effect masks", "no longer masked"},
		{"another message", "effect: deny, message: no", "effect: deny, message: never", "", ""},
		{"masks of what is denied", "effect: deny", "effect: deny, when: 'sql.ddl || true'", "", ""},
		{"the same masks in another order", "effect: allow, mask: [{column: a.b.c}, {column: a.b.d}]", "effect: allow, mask: [{column: a.b.d}, {column: a.b.c}]", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			req := sqlRequest(*selects("public.orders").SQL)
			req.ID = "req_1"
			replay := NewReplay(rule(tc.after))
			replay.Add(recorded(t, req, rule(tc.before).Decide(req, monday())))
			r := replay.Report()
			if tc.changed == "" {
				if r.Flipped != 0 || len(r.Flips) != 0 {
					t.Errorf("flips %+v", r.Flips)
				}
				return
			}
			if r.Flipped != 1 || len(r.Flips) != 1 {
				t.Fatalf("got %+v", r)
			}
			f := r.Flips[0]
			if strings.Join(f.Changed, " ") != tc.changed || !strings.Contains(strings.Join(f.Detail, "\n"), tc.detail) || f.Example != "req_1" || !f.First.Equal(monday()) {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// Flips are grouped by principal, resource and rule; what has no input is
// counted, once, and what was decided without policies is not compared.
func TestReplayGroupsAndCounts(t *testing.T) {
	t.Parallel()
	before := mustLoad(t, "p.yaml", everybody("  - {name: read, when: sql.read_only, effect: allow}\n  - {name: rest, when: '!sql.read_only', effect: deny}\n"))
	after := mustLoad(t, "p.yaml", everybody("  - {name: read, when: sql.read_only, effect: approve, approval: {groups: [g]}}\n  - {name: other, when: '!sql.read_only', effect: deny}\n"))
	replay := NewReplay(after)
	add := func(user, id string, readOnly bool) {
		req := sqlRequest(access.SQL{Command: "X", ReadOnly: readOnly, Statements: 1})
		req.ID, req.Principal.User = id, user
		replay.Add(recorded(t, req, before.Decide(req, monday())))
	}
	add("bob", "req_1", true)
	add("ada", "req_2", true)
	add("ada", "req_3", true)
	add("ada", "req_4", false)
	denied := func(id string, reason access.Reason) {
		replay.Add(access.Event{Request: id, Denied: &access.Denied{Denial: access.Denial{RequestID: id, Reason: reason}}})
	}
	denied("req_2", access.MaskedField) // policy was asked
	denied("req_9", access.Unauthenticated)
	denied("req_10", access.Unauthenticated)
	req := sqlRequest(*selects("a.b").SQL)
	replay.Add(recorded(t, req, (*Set)(nil).Decide(req, monday())))
	replay.Add(access.Event{Ended: &access.Ended{}})

	r := replay.Report()
	if r.Decisions != 4 || r.Flipped != 3 || r.OtherRule != 1 || r.Omitted != 0 || len(r.Flips) != 2 {
		t.Fatalf("got %+v", r)
	}
	if f := r.Flips[0]; f.Principal.User != "ada" || f.Count != 2 || f.Example != "req_2" || f.Resource != "orders" ||
		f.From != (Outcome{access.Allow, "p/read"}) || f.To != (Outcome{access.Approve, "p/read"}) {
		t.Errorf("got %+v", f)
	}
	want := []NotReplayed{{"recorded without the input of a decision: unauthenticated", 2}, {"the gateway could not decide then: no policies are loaded", 1}}
	if !slices.Equal(r.NotReplayed, want) || !slices.Equal(r.Recorded, []string{before.Revision()}) || r.Revision != after.Revision() {
		t.Errorf("got %+v", r)
	}
}

func TestReplayIsBounded(t *testing.T) {
	t.Parallel()
	replay := NewReplay(mustLoad(t, "p.yaml", everybody("  - {name: r, effect: deny}\n")))
	const more = 5
	for i := range maxFlipGroups + more {
		req := access.Request{ID: fmt.Sprint(i), Principal: access.Principal{User: fmt.Sprint(i)}, Action: access.Action{SQL: &access.SQL{}}}
		replay.Add(access.Event{Request: req.ID, Decided: &access.Decided{Request: req, Decision: access.Decision{Effect: access.Allow, Revision: fmt.Sprint(i)}}})
	}
	for i := range 2 * maxDecidedIDs {
		replay.Add(access.Event{Request: fmt.Sprint(i), Denied: &access.Denied{Denial: access.Denial{Reason: access.Reason(fmt.Sprint(i))}}})
		replay.remember(fmt.Sprint("later", i))
	}
	r := replay.Report()
	if len(r.Flips) != maxFlipGroups || r.Omitted != more || r.Flipped != maxFlipGroups+more || len(r.Recorded) != maxRevisions ||
		len(r.NotReplayed) != maxReasons+1 || len(replay.decided)+len(replay.before) > 2*maxDecidedIDs {
		t.Errorf("%d groups, %d omitted, %d flipped, %d revisions, %d reasons, %d ids", len(r.Flips), r.Omitted, r.Flipped,
			len(r.Recorded), len(r.NotReplayed), len(replay.decided)+len(replay.before))
	}
}
