package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console/login"
	"chaperone.dev/chaperone/internal/record"
)

// sessionRows are those that a search finds, of them perhaps only where something
// was denied, the newest first, and how many more there are.
func sessionRows(list []SessionSummary, search string, denied bool, from int) (rows []row, more int) {
	search = strings.ToLower(strings.TrimSpace(search))
	for _, sum := range slices.Backward(list) {
		p := sum.Principal
		if search != "" && !slices.ContainsFunc([]string{sum.ID, p.User, p.Subject, p.Subagent, p.Workflow, sum.Resource.Name},
			func(s string) bool { return strings.Contains(strings.ToLower(s), search) }) {
			continue
		}
		if denied && sum.Denied == 0 {
			continue
		}
		if from--; from >= 0 {
			continue
		}
		if len(rows) == maxRows {
			more++
			continue
		}
		end := sum.Cause
		if sum.Live {
			end = "live"
		}
		rows = append(rows, row{"/console/sessions/" + url.PathEscape(sum.ID), cells(stamp(sum.Opened), nameOf(p), p.Subagent, p.Workflow,
			sum.Resource.Name, strconv.Itoa(sum.Requests), strconv.Itoa(sum.Denied), strconv.Itoa(sum.Approved), end)})
	}
	return rows, more
}

func (s *server) sessionsPage(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	q := r.URL.Query()
	live, denied, search := q.Get("live") == "true", q.Get("denied") == "true", q.Get("q")
	list, err := s.sessions(r.Context(), live)
	if err != nil {
		return err
	}
	from, err := strconv.Atoi(q.Get("from"))
	if err != nil || from < 0 {
		from = 0
	}
	rows, more := sessionRows(list, search, denied, from)
	content := struct {
		Live   bool
		Denied bool
		Search string
		Rows   []row
		More   int
		Next   string
	}{live, denied, search, rows, more, "?" + url.Values{"q": {search}, "live": {strconv.FormatBool(live)}, "denied": {strconv.FormatBool(denied)}, "from": {strconv.Itoa(from + maxRows)}}.Encode()}
	return show(w, http.StatusOK, "sessions", s.view(b, "Sessions", "/console/sessions", content))
}

func (s *server) session(ctx context.Context, id string) (SessionSummary, error) {
	list, err := s.sessions(ctx, false)
	if err != nil {
		return SessionSummary{}, err
	}
	at := slices.IndexFunc(list, func(sum SessionSummary) bool { return sum.ID == id })
	if at < 0 {
		return SessionSummary{}, &access.Denial{Reason: access.UnknownResource, Message: "there is no session " + id, Hint: "see the list of sessions"}
	}
	return list[at], nil
}

func (s *server) sessionPage(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	sum, err := s.session(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	from, err := strconv.ParseUint(r.URL.Query().Get("from"), 10, 64)
	if err != nil {
		from = 0
	}
	content := struct {
		ID       string
		Fields   []Entry
		Live     bool
		MayKill  bool
		MayRead  bool
		Acts     []act
		Next     string
		Terminal bool
	}{ID: sum.ID, Fields: sessionCard(sum), Live: sum.Live, MayKill: sum.Live && s.may(b, "POST /api/v1/kill"), MayRead: s.may(b, "GET /api/v1/sessions/{id}/events")}
	if content.MayRead {
		events, err := s.read(r.Context(), b.Principal, sum.ID)
		if err != nil {
			return err
		}
		var next uint64
		if content.Acts, next, err = actsOf(r.Context(), sum.ID, events, from); err != nil {
			return err
		}
		if next > 0 {
			content.Next = "?from=" + strconv.FormatUint(next, 10)
		}
	}
	scripts := []string{}
	if content.Terminal = slices.ContainsFunc(content.Acts, func(a act) bool { return a.Cast != "" }); content.Terminal {
		w.Header().Set("Content-Security-Policy", playing)
		scripts = append(scripts, "asciinema-player.min.js", "player.js")
	}
	return show(w, http.StatusOK, "session", s.view(b, "Session", "", content, scripts...))
}

// sessionCard is what a session was, in short.
func sessionCard(sum SessionSummary) []Entry {
	p := sum.Principal
	fields := &card{}
	fields.field("session", "%s", sum.ID)
	fields.field("for whom", "%s (%s/%s)", p.User, p.Issuer, p.Subject)
	fields.field("who", "subagent %s, workflow %s", p.Subagent, p.Workflow)
	for _, hop := range p.Chain {
		fields.field("through", "%s (subject %s of %s)", hop.Actor, hop.Subject, hop.Issuer)
	}
	fields.field("resource", "%s (%s)", sum.Resource.Name, string(sum.Resource.Kind))
	fields.field("from", "%s", sum.Client)
	fields.field("opened", "%s", stamp(sum.Opened))
	switch {
	case sum.Live:
		fields.field("state", "live")
	case sum.Cause != "":
		fields.field("ended", "%s", sum.Cause)
	}
	fields.field("requests", "%d, of which %d denied; %d grants", sum.Requests, sum.Denied, sum.Approved)
	return fields.entries
}

// An act is one request of a session with all that followed, up to the next.
type act struct {
	Class string // allow, deny or approve; "" for none of them
	Title string
	Text  string // as `chaperone sessions show` prints it: inert
	Cast  string // where its terminal's recording is; "" without one
	Cut   bool
}

const (
	maxActs    = 100      // on one page
	maxActText = 64 << 10 // of one
)

// actsOf groups events by their request. next is where the following page
// begins, 0 for none.
func actsOf(ctx context.Context, session string, events iter.Seq2[access.Event, error], from uint64) (acts []act, next uint64, err error) {
	var group []access.Event
	text, cut := 0, false
	flush := func() error {
		if len(group) == 0 {
			return nil
		}
		a, err := actOf(ctx, session, group)
		a.Cut = a.Cut || cut
		acts = append(acts, a)
		group, text, cut = nil, 0, false
		return err
	}
	for ev, err := range events {
		if err != nil {
			return nil, 0, err
		}
		if ev.Seq < from {
			continue
		}
		if len(group) > 0 && group[0].Request != ev.Request {
			if err := flush(); err != nil {
				return nil, 0, err
			}
			if len(acts) == maxActs {
				return acts, ev.Seq, nil
			}
		}
		if text += sizeOf(ev); text > maxActText && (ev.Stream != nil || ev.Rows != nil || ev.Body != nil) {
			cut = true
			continue
		}
		group = append(group, ev)
	}
	return acts, 0, flush()
}

// sizeOf is about how much there is to show of what a target sent.
func sizeOf(ev access.Event) (n int) {
	switch {
	case ev.Stream != nil:
		n = len(ev.Stream.Text) + len(ev.Stream.Bytes)
	case ev.Body != nil:
		n = len(ev.Body.Text)
	case ev.Rows != nil:
		for _, r := range ev.Rows.Rows {
			for _, cell := range r {
				if n++; cell != nil {
					n += len(*cell)
				}
			}
		}
	}
	return n
}

// actOf shows the events of one request as the command line does, in the same
// words and as inert.
func actOf(ctx context.Context, session string, group []access.Event) (a act, err error) {
	first := group[0]
	a.Title = strings.TrimSpace(first.Time.UTC().Format("15:04:05.000") + " " + record.Visible(first.Request))
	for _, ev := range group {
		switch {
		case ev.Decided != nil:
			a.Class = ev.Decided.Decision.Effect.String()
		case ev.Denied != nil:
			a.Class = "deny"
		case ev.Stream != nil && ev.Stream.IsSize():
			a.Cast = "/console/sessions/" + url.PathEscape(session) + "/cast?" + url.Values{"request": {ev.Request}}.Encode()
		}
	}
	var text strings.Builder
	err = record.RenderEvents(ctx, &text, func(yield func(access.Event, error) bool) {
		for _, ev := range group {
			if !yield(ev, nil) {
				return
			}
		}
	}, record.RenderOptions{})
	a.Text = strings.TrimPrefix(text.String(), "\n")
	if first.Request != "" { // the title says it
		_, a.Text, _ = strings.Cut(a.Text, "\n")
	}
	return a, err
}

// maxCast bounds what the browser plays of one terminal.
const maxCast = 16 << 20

// cast writes what a terminal showed, for the player.
func (s *server) cast(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	id := r.PathValue("id")
	events, err := s.read(r.Context(), b.Principal, id)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-asciicast")
	begun := &begun{ResponseWriter: w}
	err = record.Asciicast{Version: 3, Request: r.URL.Query().Get("request"), Inert: true, Most: maxCast}.Write(begun, events)
	switch {
	case errors.Is(err, record.ErrNoTerminal):
		return noRecording(id)
	case err != nil && begun.yes:
		s.Logger.Error("reading a recording failed half-way", "session", id, "error", err)
		panic(http.ErrAbortHandler) // the player must not take half for the whole
	}
	return err
}

// begun knows whether anything was written.
type begun struct {
	http.ResponseWriter
	yes bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.yes = true
	return b.ResponseWriter.Write(p)
}

func (s *server) killForm(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	id := r.PathValue("id")
	if _, err := s.end(r.Context(), b.Principal, Selector{Session: id}, r.PostFormValue("cause")); err != nil {
		return err
	}
	http.Redirect(w, r, "/console/sessions/"+url.PathEscape(id), http.StatusSeeOther)
	return nil
}

func (s *server) statusPage(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	status := s.Status(r.Context())
	details, err := json.MarshalIndent(struct {
		Envoys   any `json:"envoys"`
		Replicas any `json:"replicas"`
	}{status.Envoys, status.Replicas}, "", "  ")
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	content := struct{ Revision, Since, Failed, Details string }{record.Visible(status.Revision), record.Visible(status.Since),
		visibleLines(status.Failed), visibleLines(string(details))}
	return show(w, http.StatusOK, "status", s.view(b, "Status", "/console/status", content))
}
