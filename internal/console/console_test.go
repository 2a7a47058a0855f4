package console

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unicode"

	"chaperone.dev/chaperone/internal/access"
)

// desk is everything behind the API, with what was done to it.
type desk struct {
	killed  []Selector
	granted []string
	events  []access.Event
	fail    error
	renewed []string
	people  map[string]access.Principal
}

func (d *desk) Verify(_ context.Context, token access.Secret) (access.Principal, error) {
	p, ok := d.people[token.Reveal()]
	if !ok {
		return p, errors.New("bad token: internal detail")
	}
	return p, nil
}

func (d *desk) Get(context.Context, string) (access.Approval, error) {
	return access.Approval{ID: "req_1"}, d.fail
}

type approvals struct{ *desk }

func (a approvals) List(context.Context) ([]access.Approval, error) {
	return []access.Approval{{ID: "req_1", State: access.Pending}, {ID: "req_2", State: access.Refused}}, a.fail
}

func (a approvals) Answer(_ context.Context, id string, _ access.Principal, grant bool, _ string) (access.Approval, error) {
	a.granted = append(a.granted, id)
	if !grant {
		return access.Approval{ID: id, State: access.Refused}, nil
	}
	a.desk.granted = a.granted
	return access.Approval{ID: id, State: access.Granted}, a.fail
}

func (a approvals) MayAnswer(context.Context, string, access.Principal) error { return a.fail }

func (d *desk) List(context.Context) ([]access.Session, error) {
	return []access.Session{{ID: "ses_live"}}, nil
}

func (d *desk) Kill(_ context.Context, s Selector, _ string, _ access.Principal) (int, error) {
	d.killed = append(d.killed, s)
	return 1, nil
}

func (d *desk) Renewable(_ context.Context, p access.Principal, client string) (int, error) {
	if client != "192.0.2.7" {
		return 0, nil
	}
	return 1, nil
}

func (d *desk) Renew(_ context.Context, p access.Principal, _ string) error {
	d.renewed = append(d.renewed, p.Subject)
	return nil
}

func (d *desk) Sessions(context.Context) ([]SessionSummary, error) {
	return []SessionSummary{{Session: access.Session{ID: "ses_live"}}, {Session: access.Session{ID: "ses_old"}, Cause: "client left"}}, nil
}

func (d *desk) Events(_ context.Context, id string) iter.Seq2[access.Event, error] {
	return func(yield func(access.Event, error) bool) {
		if id == "ses_old" {
			yield(access.Event{Seq: 1, Session: id, Closed: &access.SessionClosed{Cause: "client left"}}, nil)
		}
	}
}

func (d *desk) Append(_ context.Context, _ access.Durability, evs ...access.Event) error {
	if d.fail != nil {
		return d.fail
	}
	d.events = append(d.events, evs...)
	return nil
}

func newDesk() (*desk, http.Handler) {
	person := func(groups ...string) access.Principal { return access.Principal{Subagent: "console", Groups: groups} }
	d := &desk{people: map[string]access.Principal{
		"viewer": person("v"), "reviewer": person("r"), "operator": person("o"), "auditor": person("a"), "nobody": person("x"),
		"agent":     {Subagent: "agent", Groups: []string{"v", "r", "o", "a"}},
		"delegated": {Subagent: "console", Groups: []string{"v", "r", "o", "a"}, Chain: []access.Hop{{Subject: "x"}}},
	}}
	return d, New(Config{
		Clients: func() []string { return []string{"console"} },
		Roles: func() map[Role][]string {
			return map[Role][]string{Viewer: {"v"}, Reviewer: {"r"}, Operator: {"o"}, Auditor: {"a"}}
		},
		Verifier: d, Approvals: approvals{d}, Sessions: d, Recordings: d, Recorder: d,
		Status: func(context.Context) Status { return Status{Revision: "rev_1"} }, Logger: slog.New(slog.DiscardHandler),
	})
}

func call(h http.Handler, token, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestEveryOperationChecksItsRole asks every operation as everybody: the table
// of roles is the OpenAPI document's own.
func TestEveryOperationChecksItsRole(t *testing.T) {
	t.Parallel()
	var doc struct {
		Paths map[string]map[string]struct{ Description string }
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	operations := 0
	for path, methods := range doc.Paths {
		for method, op := range methods {
			operations++
			for _, who := range []string{"viewer", "reviewer", "operator", "auditor", "nobody", "agent", "delegated", "", "forged"} {
				_, h := newDesk()
				url := strings.Replace(path, "{id}", "ses_old", 1)
				got := call(h, who, strings.ToUpper(method), url, map[bool]string{true: `{"session": "ses_live"}`}[strings.HasSuffix(path, "kill")]).Code
				want := http.StatusForbidden
				switch {
				case who == "" || who == "forged":
					want = http.StatusUnauthorized
				case strings.HasPrefix(op.Description, "Anyone"), slices.Contains(strings.FieldsFunc(op.Description, func(r rune) bool { return !unicode.IsLetter(r) }), who):
					want = http.StatusOK
				}
				if got != want {
					t.Errorf("%s %s as %q answers %d, want %d", method, path, who, got, want)
				}
			}
		}
	}
	_, h := newDesk()
	if routes := len((&server{}).routes()); routes != operations {
		t.Errorf("%d routes, %d documented", routes, operations)
	}
	if got := call(h, "operator", "DELETE", "/api/v1/sessions", "").Code; got != http.StatusNotFound {
		t.Errorf("an unknown operation answers %d", got)
	}
}

// TestRenewIsRecordedFirst: for the caller's own sessions, from the address that
// Envoy saw; what cannot be recorded is not done.
func TestRenewIsRecordedFirst(t *testing.T) {
	t.Parallel()
	d, h := newDesk()
	renew := func(from string) int {
		r := httptest.NewRequest("POST", "/api/v1/sessions/renew", nil)
		r.Header.Set("Authorization", "Bearer agent")
		r.Header.Set(clientHeader, from)
		r.Header.Set("X-Forwarded-For", "192.0.2.7")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	if code := renew("10.0.0.9"); code != http.StatusOK || len(d.renewed)+len(d.events) != 0 {
		t.Errorf("another address: %d, %d renewed", code, len(d.renewed))
	}
	if code := renew("192.0.2.7"); code != http.StatusOK || len(d.renewed) != 1 || len(d.events) != 1 || d.events[0].Admin.Act != "session.renew" {
		t.Errorf("%d, %d renewed, events %v", code, len(d.renewed), d.events)
	}
	d.fail = errors.New("disk full")
	if code := renew("192.0.2.7"); code == http.StatusOK || len(d.renewed) != 1 {
		t.Errorf("without a record: %d, %d renewed", code, len(d.renewed))
	}
}

func TestRefusalsAreProblemsWithoutDetail(t *testing.T) {
	t.Parallel()
	_, h := newDesk()
	w := call(h, "forged", "GET", "/api/v1/sessions", "")
	if ct := w.Header().Get("Content-Type"); ct != access.ProblemType || w.Header().Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("headers %v", w.Header())
	}
	if strings.Contains(w.Body.String(), "internal detail") || !strings.Contains(w.Body.String(), `"request_id":"req_`) {
		t.Errorf("body %s", w.Body)
	}
}

func TestTwoAuthorizationHeadersAreRefused(t *testing.T) {
	t.Parallel()
	_, h := newDesk()
	r := httptest.NewRequest("GET", "/api/v1/sessions", nil)
	r.Header["Authorization"] = []string{"Bearer viewer", "Bearer viewer"}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized {
		t.Errorf("answers %d", w.Code)
	}
}

func TestActsAreRecordedFirst(t *testing.T) {
	t.Parallel()
	d, h := newDesk()
	if w := call(h, "operator", "POST", "/api/v1/kill", `{"user": "ada", "cause": "stolen"}`); w.Code != http.StatusOK {
		t.Fatalf("kill: %s", w.Body)
	}
	if len(d.events) != 1 || d.events[0].Admin.Act != "session.kill" || !slices.Equal(d.killed, []Selector{{User: "ada"}}) {
		t.Errorf("recorded %+v, killed %+v", d.events, d.killed)
	}
	d.fail = errors.New("disk full")
	if w := call(h, "operator", "POST", "/api/v1/kill", `{"user": "ada"}`); w.Code != http.StatusServiceUnavailable || len(d.killed) != 1 {
		t.Errorf("an act that could not be recorded: %d, killed %v", w.Code, d.killed)
	}
	if w := call(h, "auditor", "GET", "/api/v1/sessions/ses_old/events", ""); w.Code != http.StatusServiceUnavailable {
		t.Errorf("a reading that could not be recorded: %d", w.Code)
	}
}

func TestBadInputIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ path, body string }{
		"kill without a selector": {"/api/v1/kill", `{}`},
		"kill of an unknown kind": {"/api/v1/kill", `{"sesion": "x"}`},
		"kill that is no JSON":    {"/api/v1/kill", `x`},
		"two values":              {"/api/v1/kill", `{"all": true} {"all": true}`},
		"a body without end":      {"/api/v1/kill", `{"user": "` + strings.Repeat("a", maxBody) + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, h := newDesk()
			if w := call(h, "operator", "POST", c.path, c.body); w.Code != http.StatusForbidden || len(d.killed) > 0 {
				t.Errorf("answers %d %s, killed %v", w.Code, w.Body, d.killed)
			}
		})
	}
}

func TestListsJoinLiveAndRecorded(t *testing.T) {
	t.Parallel()
	_, h := newDesk()
	var list []SessionSummary
	if err := json.Unmarshal(call(h, "viewer", "GET", "/api/v1/sessions", "").Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || !list[0].Live || list[1].Live {
		t.Errorf("list %+v", list)
	}
	if err := json.Unmarshal(call(h, "viewer", "GET", "/api/v1/sessions?live=true", "").Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 {
		t.Errorf("live %+v", list)
	}
	var pending []ApprovalSummary
	if err := json.Unmarshal(call(h, "viewer", "GET", "/api/v1/approvals?state=pending", "").Body.Bytes(), &pending); err != nil {
		t.Fatal(err)
	}
	if len(pending) != 1 || pending[0].ID != "req_1" {
		t.Errorf("pending %+v", pending)
	}
}

func TestMissingRecordingIsNotFound(t *testing.T) {
	t.Parallel()
	_, h := newDesk()
	if w := call(h, "auditor", "GET", "/api/v1/sessions/ses_none/events", ""); w.Code != http.StatusNotFound {
		t.Errorf("answers %d %s", w.Code, w.Body)
	}
}
