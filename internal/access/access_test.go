package access

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestSecretNeverPrints(t *testing.T) {
	t.Parallel()
	type hidden struct{ inner Secret }
	s := NewSecret("hunter2")
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "hidden", hidden{s})
	encoded, err := json.Marshal(map[string]any{"s": s, "p": &s})
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %s %q %x", s, s, s, s, s, s) + fmt.Sprintf("%v %+v %#v", hidden{s}, hidden{s}, &hidden{s}) +
		fmt.Sprint(&s, []Secret{s}, map[string]Secret{"k": s}) + fmt.Errorf("failed: %v", s).Error() + log.String() + string(encoded)
	for _, form := range []string{"hunter2", fmt.Sprintf("%x", "hunter2")} {
		if strings.Contains(all, form) {
			t.Errorf("the secret prints as %s in %s", form, all)
		}
	}
	if s.Reveal() != "hunter2" || s.Empty() || !(Secret{}).Empty() || (Secret{}).Reveal() != "" {
		t.Error("Reveal or Empty is wrong")
	}
}

func TestZeroEffectDenies(t *testing.T) {
	t.Parallel()
	var zero Effect
	if zero != Deny || Effect(200).String() != "deny" {
		t.Error("an unset or unknown effect must deny")
	}
	var e Effect
	if err := e.UnmarshalText([]byte("Allow")); err == nil {
		t.Error("an unknown name was accepted")
	}
}

func TestPrincipalKeyCannotBeForgedByClaims(t *testing.T) {
	t.Parallel()
	a := Principal{Issuer: "dex", Subject: "a", User: "b"}
	b := Principal{Issuer: "dex", Subject: "a1:b", User: ""}
	c := Principal{Issuer: "dex", Subject: "a", User: "b", Token: TokenRef{ID: "other"}}
	if a.Key() == b.Key() || a.Key() != c.Key() {
		t.Error("keys must differ by claim and not by token")
	}
}

func TestAskDigestBindsWhatRuns(t *testing.T) {
	t.Parallel()
	base := func() Ask {
		return Ask{
			Request: Request{ID: "req_1", Session: "ses_1", Time: time.Unix(1, 0),
				Principal: Principal{Issuer: "dex", Subject: "a", Groups: []string{"g"}, Token: TokenRef{ID: "t1"}, Chain: []Hop{{Subject: "b", Parent: "tok_1"}}},
				Resource:  Resource{Name: "orders", Kind: Postgres},
				Action:    Action{SQL: &SQL{Text: "update t set a = $1", Parameters: []BoundParameter{{Type: 23, Value: "1"}}}}},
			Decision: Decision{Rules: []RuleRef{{Policy: "p", Rule: "r", Hash: "h"}}, Revision: "rev_1"},
			Settings: map[string]string{"search_path": "public"},
		}
	}
	want := AskDigest(base())
	for name, c := range map[string]struct {
		change func(*Ask)
		same   bool
	}{
		"another request id":  {func(a *Ask) { a.Request.ID = "req_2" }, true},
		"another session":     {func(a *Ask) { a.Request.Session = "ses_2" }, true},
		"another time":        {func(a *Ask) { a.Request.Time = time.Unix(2, 0) }, true},
		"another token":       {func(a *Ask) { a.Request.Principal.Token.ID = "t2" }, true},
		"another trace":       {func(a *Ask) { a.Trace = "00-1-2-01" }, true},
		"another revision":    {func(a *Ask) { a.Decision.Revision = "rev_2" }, true},
		"another text":        {func(a *Ask) { a.Request.Action.SQL.Text = "update t set a = $1 " }, false},
		"another forward":     {func(a *Ask) { a.Request.Action.SQL.Forward = "x" }, false},
		"another value":       {func(a *Ask) { a.Request.Action.SQL.Parameters[0].Value = "2" }, false},
		"another type":        {func(a *Ask) { a.Request.Action.SQL.Parameters[0].Type = 20 }, false},
		"another setting":     {func(a *Ask) { a.Settings["search_path"] = "evil" }, false},
		"another resource":    {func(a *Ask) { a.Request.Resource.Name = "other" }, false},
		"another subject":     {func(a *Ask) { a.Request.Principal.Subject = "b" }, false},
		"another chain":       {func(a *Ask) { a.Request.Principal.Chain = []Hop{{Subject: "x"}} }, false},
		"another parent":      {func(a *Ask) { a.Request.Principal.Chain[0].Parent = "tok_2" }, true},
		"another actor token": {func(a *Ask) { a.Request.Principal.Chain[0].ActorToken = "tok_2" }, true},
		"another attenuation": {func(a *Ask) { a.Request.Principal.Chain[0].Attenuation = &Attenuation{ReadOnly: true} }, false},
		"another rule text":   {func(a *Ask) { a.Decision.Rules[0].Hash = "h2" }, false},
		"another estimate": {func(a *Ask) {
			rows := int64(7)
			a.Request.Action.SQL.EstimatedRows, a.Request.Action.SQL.EstimatedBytes, a.Request.Action.SQL.Plan = &rows, &rows, "p2"
		}, true},
		"another preview": {func(a *Ask) { a.Preview = &Preview{None: "x"} }, true},
		"another http body": {func(a *Ask) {
			a.Request.Action = Action{HTTP: &HTTPCall{BodyDigest: "sha256:1"}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ask := base()
			c.change(&ask)
			if got := AskDigest(ask) == want; got != c.same {
				t.Errorf("same digest: %v, want %v", got, c.same)
			}
		})
	}
}

func TestDenialRendersOneSchema(t *testing.T) {
	t.Parallel()
	d := DenialOf(Request{ID: "req_1", Resource: Resource{Name: "orders"}},
		Decision{Rules: []RuleRef{{Policy: "p", Rule: "no-ddl"}}, Reason: DeniedByRule, Message: "schema changes are not allowed", Hint: "ask", Revision: "rev_1"})
	var problem map[string]any
	if err := json.Unmarshal(d.Problem(d.Status()), &problem); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"type": "urn:chaperone:denial:denied-by-rule", "title": "Forbidden", "status": 403.0,
		"request_id": "req_1", "reason": "denied-by-rule", "rule": "p/no-ddl", "requestable": false, "hint": "ask",
		"detail": "schema changes are not allowed", "resource": "orders", "revision": "rev_1"} {
		if problem[key] != want {
			t.Errorf("%s is %v, want %v", key, problem[key], want)
		}
	}
	for _, part := range []string{"rule p/no-ddl", "reason denied-by-rule", "requestable no", "request req_1"} {
		if !strings.Contains(d.Detail(), part) || !strings.Contains(d.Text(), part) {
			t.Errorf("%q lacks %q", d.Text(), part)
		}
	}
}

func TestDenialSaysHowToAsk(t *testing.T) {
	t.Parallel()
	until := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	terms := &ApprovalTerms{Groups: []string{"senior-engineers"}, Count: 2}
	d := Denial{RequestID: "req_1", Reason: ApprovalRequired, Requestable: true, Message: "a reviewer has to grant this",
		Recourse: RecourseOf(terms, &Approval{ID: "req_1", State: Pending, Expires: until})}
	want := `{"approval":"req_1","reviewers":["senior-engineers"],"count":2,"until":"2026-05-01T12:00:00Z"}`
	var problem, status, mcp struct {
		Recourse json.RawMessage `json:"recourse"`
		Kind     string          `json:"kind"`
		Code     int             `json:"code"`
		Reason   string          `json:"reason"`
		ID       int             `json:"id"`
		Details  struct {
			Causes []struct {
				Message string `json:"message"`
			} `json:"causes"`
		} `json:"details"`
		Error struct {
			Code int    `json:"code"`
			Data Denial `json:"data"`
		} `json:"error"`
	}
	for to, text := range map[any][]byte{&problem: d.Problem(403), &status: d.KubernetesStatus(403), &mcp: d.MCPError(json.RawMessage("7"))} {
		if err := json.Unmarshal(text, to); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	if string(problem.Recourse) != want {
		t.Errorf("problem document: %s", problem.Recourse)
	}
	if status.Kind != "Status" || status.Code != 403 || status.Reason != "Forbidden" || len(status.Details.Causes) != 1 ||
		!strings.Contains(status.Details.Causes[0].Message, want) {
		t.Errorf("Kubernetes status: %+v", status)
	}
	if mcp.ID != 7 || mcp.Error.Code != MCPCode || mcp.Error.Data.Recourse == nil || mcp.Error.Data.Recourse.Approval != "req_1" {
		t.Errorf("MCP error: %+v", mcp)
	}
	if !strings.Contains(d.Detail(), "requestable yes; reviewers senior-engineers; request req_1") {
		t.Errorf("detail: %s", d.Detail())
	}
	if r := RecourseOf(terms, &Approval{ID: "req_1", State: Expired}); r.Approval != "" || !r.Until.IsZero() {
		t.Errorf("a closed question: %+v", r)
	}
}

// TestAskDigestOfStreams: exec by GET and by POST is one act; another command, or
// anything else by another method, is another.
func TestAskDigestOfStreams(t *testing.T) {
	t.Parallel()
	ask := func(verb, method, power string, command ...string) string {
		return AskDigest(Ask{Request: Request{Action: Action{K8s: &K8s{Verb: verb, Method: method, Powers: []string{power}, Command: command}}}})
	}
	one := ask("get", "GET", PowerExec, "id")
	if one != ask("create", "POST", PowerExec, "id") {
		t.Error("the method matters to exec")
	}
	if one == ask("get", "GET", PowerExec, "id", "-u") || one == ask("get", "GET", PowerAttach, "id") || ask("create", "POST", PowerToken) == ask("update", "PUT", PowerToken) {
		t.Error("two acts have one digest")
	}
}
