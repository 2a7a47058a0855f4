package console

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/console/login"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/store"
)

const public = "https://gateway.test:8443"

// hostile is what a subagent would write to have a browser act, or a reader
// misled.
const hostile = "<script>alert(1)</script>\" onload=\"x' \x1b[2J\u202e{{.}}</pre>javascript:alert(1)"

// A front is the console over a desk, with people who log in as whom a SAML
// provider names: there the assertion is a name.
type front struct {
	*desk
	http.Handler
	events []access.Event
}

func (f *front) SAMLRequest(_ context.Context, _, id, _ string) (string, error) {
	return "https://idp.test/?id=" + id, nil
}

func (f *front) VerifyLogin(_ context.Context, assertion access.Secret, _, id, _ string) (identity.Asserted, error) {
	p, ok := f.people[assertion.Reveal()]
	if !ok {
		return identity.Asserted{}, errRejected
	}
	p.User = assertion.Reveal() + hostile
	p.Token.ExpiresAt = time.Now().Add(time.Hour)
	return identity.Asserted{Principal: p, Once: id, Until: time.Now().Add(time.Minute)}, nil
}

var errRejected = errors.New("rejected")

func (f *front) Stands(context.Context, access.Principal) error { return nil }

func (f *front) Get(_ context.Context, id string) (access.Approval, error) {
	p := access.Principal{User: hostile, Subagent: hostile, Workflow: hostile, Chain: []access.Hop{{Actor: hostile}}}
	sql := &access.SQL{Text: hostile, Forward: hostile + "x", Command: hostile, Writes: []string{hostile}, Parameters: []access.BoundParameter{{Value: hostile}}}
	return access.Approval{ID: "req_1", State: access.Pending, Answers: []access.Answer{{Comment: hostile}},
		Ask: access.Ask{Decision: access.Decision{Obligations: access.Obligations{Approval: &access.ApprovalTerms{Groups: []string{hostile}, Count: 2, Window: 10 * time.Minute}}}, Request: access.Request{Principal: p, Resource: access.Resource{Name: hostile}, Action: access.Action{SQL: sql}}}}, f.fail
}

func (f *front) MayAnswer(_ context.Context, _ string, who access.Principal) error {
	if slices.Contains(who.Groups, "own") {
		return &access.Denial{Reason: access.DeniedByRule, Message: "nobody reviews their own request"}
	}
	return nil
}

type frontApprovals struct{ *front }

func (a frontApprovals) List(context.Context) ([]access.Approval, error) {
	one, err := a.Get(context.Background(), "")
	return []access.Approval{one}, err
}

func (a frontApprovals) Answer(ctx context.Context, id string, who access.Principal, grant bool, comment string) (access.Approval, error) {
	return approvals{a.desk}.Answer(ctx, id, who, grant, comment)
}

func (f *front) Sessions(context.Context) ([]SessionSummary, error) {
	p := access.Principal{User: hostile, Subagent: hostile}
	return []SessionSummary{{Session: access.Session{ID: "ses_live", Principal: p}}, {Session: access.Session{ID: "ses_old", Principal: p, Client: hostile}, Cause: hostile}}, nil
}

func (f *front) Events(_ context.Context, id string) iter.Seq2[access.Event, error] {
	return func(yield func(access.Event, error) bool) {
		for i, ev := range f.events {
			ev.Seq, ev.Session, ev.Time = uint64(i+1), id, time.Unix(int64(i), 0)
			if !yield(ev, nil) {
				return
			}
		}
	}
}

func newFront(t *testing.T) *front {
	t.Helper()
	d, _ := newDesk()
	f := &front{desk: d}
	own := d.people["reviewer"]
	own.Groups = []string{"r", "own"}
	d.people["own"] = own
	text := hostile
	sql := access.Action{SQL: &access.SQL{Text: hostile}}
	shell := access.Action{SSH: &access.SSHCall{Act: "shell", Terminal: true}}
	f.events = []access.Event{
		{Opened: &access.SessionOpened{Session: access.Session{ID: "ses_old", Principal: access.Principal{User: hostile}}}},
		{Request: "req_1", Decided: &access.Decided{Request: access.Request{Action: sql}, Decision: access.Decision{Effect: access.Allow}}},
		{Request: "req_1", Rows: &access.Rows{Columns: []string{hostile}, Rows: [][]*string{{&text}}}},
		{Request: "req_2", Decided: &access.Decided{Request: access.Request{Action: shell}, Decision: access.Decision{Effect: access.Allow}}},
		{Request: "req_2", Stream: &access.StreamChunk{Name: access.Stdout, Columns: 80, Rows: 24}},
		{Request: "req_2", Stream: &access.StreamChunk{Name: access.Stdout, Text: "\x1b]0;title\x07\x1b[31mred\x1b[0m " + hostile}},
		{Request: "req_3", Denied: &access.Denied{Denial: access.Denial{Message: hostile}, Text: hostile}},
	}
	leases, err := store.OpenEmbedded(store.EmbeddedConfig{Path: filepath.Join(t.TempDir(), "db"), Key: store.NewKey()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { leases.Close() })
	f.Handler = New(Config{
		Clients: func() []string { return []string{"console"} },
		Roles: func() map[Role][]string {
			return map[Role][]string{Viewer: {"v"}, Reviewer: {"r"}, Operator: {"o"}, Auditor: {"a"}}
		},
		Verifier: d, Approvals: frontApprovals{f}, Sessions: d, Recordings: f, Recorder: d, Clock: clocktest.New(time.Now()).Now,
		Status: func(context.Context) Status { return Status{Revision: "rev_1", Failed: hostile} }, Logger: slog.New(slog.DiscardHandler),
		Login: &login.Config{Public: func() string { return public }, Ways: func() []login.Way { return []login.Way{{Name: "idp", Label: hostile}} },
			Leases: leases, Verifier: f, Rejected: func(err error) bool { return errors.Is(err, errRejected) },
			Once: func(context.Context, string, time.Duration) error { return nil }, Seen: func(error) bool { return false }, Logger: slog.New(slog.DiscardHandler)},
	})
	return f
}

// A visitor is a browser.
type visitor struct {
	*front
	cookies map[string]string
	csrf    string
}

func (v *visitor) do(method, path string, form url.Values, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, public+path, strings.NewReader(form.Encode()))
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if r.Header.Del(headers[i]); headers[i+1] != "" {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	for name, value := range v.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	w := httptest.NewRecorder()
	v.ServeHTTP(w, r)
	for _, c := range w.Result().Cookies() {
		if v.cookies[c.Name] = c.Value; c.MaxAge < 0 {
			delete(v.cookies, c.Name)
		}
	}
	return w
}

var formToken = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// visit logs who in.
func (f *front) visit(t *testing.T, who string) *visitor {
	t.Helper()
	v := &visitor{front: f, cookies: map[string]string{}}
	if w := v.do("GET", "/console/login/idp", nil); w.Code != http.StatusSeeOther {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	v.do("POST", "/console/login/idp/acs", url.Values{"SAMLResponse": {who}}, "Sec-Fetch-Site", "cross-site")
	if found := formToken.FindStringSubmatch(v.do("GET", "/console/approvals", nil).Body.String()); found != nil {
		v.csrf = found[1]
	}
	return v
}

// TestEveryPageChecksItsRole asks every page as everybody: the table of roles is
// the API's.
func TestEveryPageChecksItsRole(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	s := &server{Config: Config{}}
	for _, who := range []string{"viewer", "reviewer", "operator", "auditor", "nobody", "agent", "delegated", "forged"} {
		v := f.visit(t, who)
		roleless := slices.Contains([]string{"nobody", "agent", "delegated", "forged"}, who)
		if _, in := v.cookies["__Host-chaperone-session"]; in == roleless {
			t.Errorf("%s has a session: %t", who, in)
		}
		for _, pattern := range slices.Sorted(maps.Keys(s.pages())) {
			p := s.pages()[pattern]
			method, path, _ := strings.Cut(pattern, " ")
			path = strings.NewReplacer("{id}", "ses_live", "{$}", "").Replace(path)
			if path == "/console/logout" {
				continue
			}
			got := v.do(method, path, url.Values{"csrf": {v.csrf}}, "Accept", "application/json").Code
			allowed := slices.Contains(s.routes()[p.op].roles, Role(who))
			switch {
			case roleless && method == http.MethodGet && !p.quiet:
				if got != http.StatusSeeOther {
					t.Errorf("%s as %s: %d", pattern, who, got)
				}
			case roleless:
				if got != http.StatusUnauthorized && got != http.StatusForbidden {
					t.Errorf("%s as %s: %d", pattern, who, got)
				}
			case allowed != (got == http.StatusOK || got == http.StatusSeeOther) || !allowed && got != http.StatusForbidden:
				t.Errorf("%s as %s: %d", pattern, who, got)
			}
		}
	}
}

// TestForgedForms: only a page of this session changes anything.
func TestForgedForms(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	v, other := f.visit(t, "operator"), f.visit(t, "operator")
	const kill = "/console/sessions/ses_live/kill"
	good := url.Values{"csrf": {v.csrf}, "cause": {"enough"}}
	for name, w := range map[string]*httptest.ResponseRecorder{
		"of another site":               v.do("POST", kill, good, "Sec-Fetch-Site", "cross-site"),
		"of another port":               v.do("POST", kill, good, "Sec-Fetch-Site", "same-site"),
		"typed by hand":                 v.do("POST", kill, good, "Sec-Fetch-Site", "none"),
		"of an old browser elsewhere":   v.do("POST", kill, good, "Sec-Fetch-Site", "", "Origin", "https://evil.test"),
		"of nowhere":                    v.do("POST", kill, good, "Sec-Fetch-Site", ""),
		"without the token":             v.do("POST", kill, nil),
		"with another's token":          v.do("POST", kill, url.Values{"csrf": {other.csrf}}),
		"with the token in the address": v.do("POST", kill+"?csrf="+v.csrf, nil),
		"with a method of its own":      v.do("PUT", kill, good, "Sec-Fetch-Site", "same-origin"),
	} {
		if w.Code != http.StatusForbidden && w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	if len(f.killed) > 0 {
		t.Fatalf("killed %v", f.killed)
	}
	if w := v.do("POST", kill, good); w.Code != http.StatusSeeOther || len(f.killed) != 1 || f.killed[0].Session != "ses_live" {
		t.Errorf("%d %v", w.Code, f.killed)
	}
	if w := v.do("POST", kill, good, "Sec-Fetch-Site", "", "Origin", public); w.Code != http.StatusSeeOther {
		t.Errorf("of an old browser here: %d", w.Code)
	}
	if w := v.do("POST", "/console/logout", good); w.Code != http.StatusSeeOther || len(v.cookies) > 0 {
		t.Errorf("logging out: %d %v", w.Code, v.cookies)
	}
	if w := v.do("POST", kill, good); w.Code != http.StatusUnauthorized {
		t.Errorf("afterwards: %d", w.Code)
	}
}

// TestCookieIsNothingToTheAPI: it takes a bearer token, and nothing that a
// browser sends by itself.
func TestCookieIsNothingToTheAPI(t *testing.T) {
	t.Parallel()
	v := newFront(t).visit(t, "operator")
	if w := v.do("GET", "/api/v1/sessions", nil); w.Code != http.StatusUnauthorized {
		t.Errorf("%d", w.Code)
	}
}

// TestKillOfEverythingIsOfTheConsoleToo, which no token is revoked by.
func TestKillOfEverythingIsOfTheConsoleToo(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	v := f.visit(t, "viewer")
	if w := call(f, "operator", "POST", "/api/v1/kill", `{"user": "somebody"}`); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := v.do("GET", "/console/sessions", nil); w.Code != http.StatusOK {
		t.Errorf("after another kill: %d", w.Code)
	}
	if w := call(f, "operator", "POST", "/api/v1/kill", `{"all": true}`); w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := v.do("GET", "/console/sessions", nil); w.Code != http.StatusSeeOther || !strings.HasPrefix(w.Header().Get("Location"), login.Path) {
		t.Errorf("after it: %d", w.Code)
	}
}

func TestAnswersFromThePage(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	v := f.visit(t, "reviewer")
	if w := v.do("POST", "/console/approvals/req_1/approve", url.Values{"csrf": {v.csrf}, "comment": {"fine"}}); w.Code != http.StatusSeeOther || len(f.granted) != 1 {
		t.Errorf("%d %v", w.Code, f.granted)
	}
	if w := v.do("POST", "/console/approvals/req_1/refuse", url.Values{"csrf": {v.csrf}}); w.Code != http.StatusSeeOther {
		t.Errorf("refuse: %d", w.Code)
	}
	if card := v.do("GET", "/console/approvals/req_1", nil).Body.String(); !strings.Contains(card, "Grant, for 10m0s") || !strings.Contains(card, "takes 2 of ") {
		t.Errorf("the card does not tell what a grant is:\n%s", card)
	}
	page := f.visit(t, "own").do("GET", "/console/approvals/req_1", nil).Body.String()
	if strings.Contains(page, "/approve") || !strings.Contains(page, "nobody reviews their own request") {
		t.Errorf("the requester may answer:\n%s", page)
	}
}

// TestPagesAreInert: whatever came from others is text, and all of it is seen.
func TestPagesAreInert(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	d, _ := newDesk()
	everything := d.people["viewer"]
	everything.Groups = []string{"v", "r", "o", "a"}
	f.people["everything"] = everything
	v := f.visit(t, "everything")
	for path, least := range map[string]int{
		"/console/login": 1, "/console/approvals?state=all": 4, "/console/approvals/req_1": 10, "/console/sessions?q=" + url.QueryEscape(`"><script>`): 1,
		"/console/sessions": 4, "/console/sessions/ses_old": 8, "/console/status": 2, "/console/nothing/" + url.PathEscape(hostile): 1,
	} {
		w := v.do("GET", path, nil)
		page := w.Body.String()
		for _, bad := range []string{"<script>alert", `" onload`, "\x1b", "\u202e", `href="javascript`, "<pre></pre>"} {
			if strings.Contains(page, bad) {
				t.Errorf("%s has %q", path, bad)
			}
		}
		if n := strings.Count(page, "&lt;script&gt;"); n < least {
			t.Errorf("%s shows %d of the texts, %d at least:\n%s", path, n, least, page)
		}
		h := w.Header()
		policy := h.Get("Content-Security-Policy")
		if strings.Contains(policy, "unsafe-inline") || strings.Contains(policy, "'unsafe-eval'") || !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") ||
			strings.Contains(policy, "wasm") != (path == "/console/sessions/ses_old") || h.Get("X-Content-Type-Options") != "nosniff" ||
			h.Get("Cache-Control") != "no-store" || h.Get("Referrer-Policy") == "" {
			t.Errorf("%s is sent with %v", path, h)
		}
		if regexp.MustCompile(`<script[^>]*>[^<]|<[^>]*\s(style|on\w+)=`).MatchString(page) {
			t.Errorf("%s has script or style of its own:\n%s", path, page)
		}
	}
}

// TestTerminalForThePlayer: what draws, and nothing else.
func TestTerminalForThePlayer(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	v := f.visit(t, "auditor")
	page := v.do("GET", "/console/sessions/ses_old", nil).Body.String()
	if !strings.Contains(page, `data-cast="/console/sessions/ses_old/cast?request=req_2"`) {
		t.Errorf("no terminal:\n%s", page)
	}
	read := len(f.desk.events)
	w := v.do("GET", "/console/sessions/ses_old/cast?request=req_2", nil)
	cast := w.Body.String()
	if w.Code != http.StatusOK || !strings.HasPrefix(cast, `{"version":3,"term":{"cols":80,"rows":24}`) || !strings.Contains(cast, `\u001b[31mred`) || strings.Contains(cast, "0;title") || strings.Contains(cast, `\u001b[2J\u202e{{.}}</pre>javascript:alert(1) on`) {
		t.Errorf("%d %s", w.Code, cast)
	}
	if len(f.desk.events) != read+1 || f.desk.events[read].Admin.Act != "session.read" {
		t.Errorf("reading it is not written down: %v", f.desk.events[read:])
	}
	if w := v.do("GET", "/console/sessions/ses_old/cast?request=req_1", nil); w.Code != http.StatusNotFound {
		t.Errorf("what had none: %d", w.Code)
	}
	f.fail = errors.New("the disk is full")
	if w := v.do("GET", "/console/sessions/ses_old/cast?request=req_2", nil); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "version") {
		t.Errorf("a reading that could not be recorded: %d", w.Code)
	}
}

// TestLongSessionsComeInPages: bounded, and nothing is lost between two.
func TestLongSessionsComeInPages(t *testing.T) {
	t.Parallel()
	var events []access.Event
	for i := range 250 {
		events = append(events, access.Event{Seq: uint64(2*i + 1), Request: fmt.Sprint("req_", i)}, access.Event{Seq: uint64(2*i + 2), Request: fmt.Sprint("req_", i),
			Notice: &access.Notice{Severity: "NOTICE", Text: fmt.Sprintf("number %d.", i)}})
	}
	big := strings.Repeat("x", maxActText)
	for range 3 {
		events = append(events, access.Event{Seq: 501, Request: "req_big", Body: &access.BodyChunk{Text: big}})
	}
	var all strings.Builder
	from, pages := uint64(0), 0
	for {
		acts, next, err := actsOf(t.Context(), "ses_1", func(yield func(access.Event, error) bool) {
			for _, ev := range events {
				if !yield(ev, nil) {
					return
				}
			}
		}, from)
		if err != nil || len(acts) > maxActs {
			t.Fatal(len(acts), err)
		}
		for _, a := range acts {
			all.WriteString(a.Text)
			if a.Cut != strings.Contains(a.Title, "req_big") || len(a.Text) > 2*maxActText {
				t.Errorf("%s is cut: %t", a.Title, a.Cut)
			}
		}
		if pages++; next == 0 {
			break
		}
		from = next
	}
	for i := range 250 {
		if strings.Count(all.String(), fmt.Sprintf("number %d.", i)) != 1 {
			t.Errorf("number %d is there another number of times than once", i)
		}
	}
	if pages != 3 {
		t.Errorf("%d pages", pages)
	}
}

func TestSessionsAreFound(t *testing.T) {
	t.Parallel()
	var list []SessionSummary
	for i := range maxRows + 10 {
		sum := SessionSummary{Session: access.Session{ID: fmt.Sprint("ses_", i), Principal: access.Principal{User: "Ada"}, Resource: access.Resource{Name: "orders"}}, Live: i%2 == 0}
		if i%10 == 3 {
			sum.Denied, sum.Resource.Name = 1, "billing"
		}
		list = append(list, sum)
	}
	for _, c := range []struct {
		search     string
		denied     bool
		from       int
		rows, more int
		first      string
	}{
		{"", false, 0, maxRows, 10, "ses_209"}, {"", false, maxRows, 10, 0, "ses_9"}, {" ADA ", false, 0, maxRows, 10, "ses_209"}, {"nobody", false, 0, 0, 0, ""},
		{"bill", false, 0, 21, 0, "ses_203"}, {"", true, 0, 21, 0, "ses_203"}, {"ses_20", false, 0, 11, 0, "ses_209"},
	} {
		rows, more := sessionRows(list, c.search, c.denied, c.from)
		if len(rows) != c.rows || more != c.more || len(rows) > 0 && !strings.HasSuffix(rows[0].Href, "/"+c.first) {
			t.Errorf("%+v: %d rows and %d more, first %v", c, len(rows), more, rows[:min(1, len(rows))])
		}
	}
}

// Rows of one look serve everybody who polls within the second.
func TestPollsShareALook(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	v := f.visit(t, "viewer")
	first := v.do("GET", "/console/approvals/rows", nil, "Accept", "application/json")
	if first.Code != http.StatusOK || !strings.Contains(first.Body.String(), `\u003cscript`) || strings.Contains(first.Body.String(), `href`) {
		t.Errorf("%d %s", first.Code, first.Body)
	}
	f.fail = errors.New("the store is gone")
	if again := v.do("GET", "/console/approvals/rows", nil, "Accept", "application/json"); again.Code != http.StatusOK {
		t.Errorf("within the second: %d", again.Code)
	}
	if page := v.do("GET", "/console/approvals", nil); page.Code != http.StatusServiceUnavailable {
		t.Errorf("the page itself: %d", page.Code)
	}
}

// What scripts ask for is not sent because another page wants it read.
func TestOtherPagesReadNothing(t *testing.T) {
	t.Parallel()
	f := newFront(t)
	v := f.visit(t, "auditor")
	read := len(f.desk.events)
	if w := v.do("GET", "/console/sessions/ses_old/cast?request=req_2", nil, "Sec-Fetch-Site", "same-site"); w.Code != http.StatusForbidden || len(f.desk.events) != read {
		t.Errorf("%d, written down: %d", w.Code, len(f.desk.events)-read)
	}
	if w := v.do("GET", "/console/sessions/ses_old/cast?request=req_2", nil, "Sec-Fetch-Site", "same-origin"); w.Code != http.StatusOK {
		t.Errorf("our own: %d", w.Code)
	}
}

func TestLoginsArePaced(t *testing.T) {
	t.Parallel()
	v := &visitor{front: newFront(t), cookies: map[string]string{}}
	for i := range loginBurst + 1 {
		if got := v.do("GET", "/console/login/idp", nil, "X-Chaperone-Client", "192.0.2.7").Code; (got == http.StatusSeeOther) != (i < loginBurst) {
			t.Errorf("login %d: %d", i, got)
		}
	}
	if got := v.do("GET", "/console/login/idp", nil, "X-Chaperone-Client", "192.0.2.8").Code; got != http.StatusSeeOther {
		t.Errorf("from another address: %d", got)
	}
}

// TestPlayerIsAsPublished: byte for byte what docs/design/console.md says.
func TestPlayerIsAsPublished(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/design/console.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"asciinema-player.min.js", "asciinema-player.css"} {
		content, err := files.ReadFile("web/static/" + name)
		if sum := fmt.Sprintf("%x", sha256.Sum256(content)); err != nil || !strings.Contains(string(doc), sum) {
			t.Errorf("%s has %s, which is not in the document (%v)", name, sum, err)
		}
	}
}

func TestStaticFiles(t *testing.T) {
	t.Parallel()
	v := &visitor{front: newFront(t), cookies: map[string]string{}}
	w := v.do("GET", "/console/static/live.js", nil)
	if w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/javascript") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if again := v.do("GET", "/console/static/live.js", nil, "If-None-Match", w.Header().Get("ETag")); again.Code != http.StatusNotModified {
		t.Errorf("%d", again.Code)
	}
	for _, path := range []string{"/console/static/..%2flayout.html", "/console/static/nothing.js"} {
		if w := v.do("GET", path, nil); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}
