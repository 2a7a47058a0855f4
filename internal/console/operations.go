package console

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/telemetry"
)

func (s *server) openAPI(w http.ResponseWriter, _ *http.Request, _ access.Principal) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI) // the client may have left
	return nil
}

// An ApprovalSummary is one line of a list of approvals: without the text.
type ApprovalSummary struct {
	ID       string               `json:"id"`
	State    access.ApprovalState `json:"state"`
	User     string               `json:"user"`
	Subagent string               `json:"subagent"`
	Workflow string               `json:"workflow,omitempty"`
	Resource string               `json:"resource"`
	What     string               `json:"what"`
	Rule     string               `json:"rule"`
	Opened   time.Time            `json:"opened"`
	Expires  time.Time            `json:"expires"`
}

func (s *server) listApprovals(w http.ResponseWriter, r *http.Request, _ access.Principal) error {
	list, err := s.approvals(r.Context(), access.ApprovalState(r.URL.Query().Get("state")))
	if err != nil {
		return err
	}
	return reply(w, list)
}

// approvals lists those in a state; "" is all of them.
func (s *server) approvals(ctx context.Context, state access.ApprovalState) ([]ApprovalSummary, error) {
	all, err := s.Approvals.List(ctx)
	if err != nil {
		return nil, err
	}
	list := []ApprovalSummary{}
	for _, a := range all {
		if state != "" && a.State != state {
			continue
		}
		p := a.Ask.Request.Principal
		list = append(list, ApprovalSummary{ID: a.ID, State: a.State, User: p.User, Subagent: p.Subagent, Workflow: p.Workflow,
			Resource: a.Ask.Request.Resource.Name, What: what(a.Ask.Request.Action), Rule: a.Ask.Decision.Rule(), Opened: a.Opened, Expires: a.Expires})
	}
	return list, nil
}

// what names an action in a few words, without its values.
func what(a access.Action) string {
	switch {
	case a.SQL != nil:
		text := a.SQL.Command
		for i, t := range a.SQL.Writes {
			if i == 0 {
				text += " "
			} else {
				text += ", "
			}
			text += t
		}
		return text
	case a.HTTP != nil:
		return a.HTTP.Method + " " + a.HTTP.Path
	case a.K8s != nil:
		return a.K8s.String()
	case a.SSH != nil:
		return a.SSH.Shape()
	}
	return ""
}

func (s *server) showApproval(w http.ResponseWriter, r *http.Request, _ access.Principal) error {
	a, err := s.Approvals.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return reply(w, a)
}

func (s *server) answer(grant bool) func(http.ResponseWriter, *http.Request, access.Principal) error {
	return func(w http.ResponseWriter, r *http.Request, who access.Principal) error {
		var in struct {
			Comment string `json:"comment"`
		}
		if err := input(r, &in); err != nil {
			return err
		}
		a, err := s.take(r, r.PathValue("id"), who, grant, in.Comment)
		if err != nil {
			return err
		}
		return reply(w, a)
	}
}

// take takes a reviewer's word.
func (s *server) take(r *http.Request, id string, who access.Principal, grant bool, comment string) (access.Approval, error) {
	ctx, end, err := s.linked(r, id, who)
	if err != nil {
		return access.Approval{}, err
	}
	defer end()
	return s.Approvals.Answer(ctx, id, who, grant, comment)
}

// linked starts the span of an answer: below Envoy's own, and linked to the
// trace of the request that waits for it.
func (s *server) linked(r *http.Request, id string, who access.Principal) (context.Context, func(), error) {
	a, err := s.Approvals.Get(r.Context(), id)
	if err != nil {
		return nil, nil, err
	}
	ctx, span := s.Tracer.Start(telemetry.ParentOf(r.Context(), r.Header.Get("Traceparent")), "approval answer",
		trace.WithLinks(telemetry.Links(a.Ask.Trace)...),
		trace.WithAttributes(attribute.String("chaperone.request", id), attribute.String("chaperone.reviewer", who.User)))
	return ctx, func() { span.End() }, nil
}

// input decodes a JSON body strictly; an empty body leaves v as it is.
func input(r *http.Request, v any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(v)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil && decoder.More() {
		err = errors.New("more than one value")
	}
	if err != nil {
		return &access.Denial{Reason: access.Unreadable, Message: "the body is not the JSON that this operation takes", Hint: "see /api/v1/openapi.json"}
	}
	return nil
}

func (s *server) listSessions(w http.ResponseWriter, r *http.Request, _ access.Principal) error {
	list, err := s.sessions(r.Context(), r.URL.Query().Get("live") == "true")
	if err != nil {
		return err
	}
	return reply(w, list)
}

// sessions lists recorded sessions and those that live elsewhere or have not
// been recorded yet, the oldest first.
func (s *server) sessions(ctx context.Context, onlyLive bool) ([]SessionSummary, error) {
	live, err := s.Sessions.List(ctx)
	if err != nil {
		return nil, err
	}
	recorded, err := s.Recordings.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	list := []SessionSummary{}
	for _, sum := range recorded {
		at := slices.IndexFunc(live, func(l access.Session) bool { return l.ID == sum.ID })
		if at >= 0 {
			sum.Live = true
			live = slices.Delete(live, at, at+1)
		}
		list = append(list, sum)
	}
	for _, l := range live {
		list = append(list, SessionSummary{Session: l, Live: true})
	}
	slices.SortStableFunc(list, func(a, b SessionSummary) int { return a.Opened.Compare(b.Opened) })
	if onlyLive {
		list = slices.DeleteFunc(list, func(sum SessionSummary) bool { return !sum.Live })
	}
	return list, nil
}

// events streams one session's recording as NDJSON. Reading one is itself
// recorded, before the first byte.
func (s *server) events(w http.ResponseWriter, r *http.Request, who access.Principal) error {
	id := r.PathValue("id")
	events, err := s.read(r.Context(), who, id)
	if err != nil {
		return err
	}
	started := false
	for ev, err := range events {
		if err != nil && !started {
			return err
		}
		if err != nil {
			s.Logger.Error("reading a recording failed half-way", "session", id, "error", err)
			panic(http.ErrAbortHandler) // the client must not take half for the whole
		}
		if !started {
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.Header().Set("Cache-Control", "no-store")
			started = true
		}
		line, err := json.Marshal(ev)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return nil // the client left
		}
	}
	if !started {
		return noRecording(id)
	}
	return nil
}

// read gives the events of a session to somebody, which is written down first.
func (s *server) read(ctx context.Context, who access.Principal, id string) (iter.Seq2[access.Event, error], error) {
	if err := s.act(ctx, who, "session.read", id, nil); err != nil {
		return nil, err
	}
	return s.Recordings.Events(ctx, id), nil
}

func noRecording(id string) error {
	return &access.Denial{Reason: access.UnknownResource, Message: "there is no recording of session " + id, Hint: "chaperone sessions list"}
}

func (s *server) kill(w http.ResponseWriter, r *http.Request, who access.Principal) error {
	var in struct {
		Selector
		Cause string `json:"cause"`
	}
	if err := input(r, &in); err != nil {
		return err
	}
	n, err := s.end(r.Context(), who, in.Selector, in.Cause)
	if err != nil {
		return err
	}
	return reply(w, map[string]int{"ended": n})
}

// end ends sessions; with all of them, those of the console too.
func (s *server) end(ctx context.Context, who access.Principal, which Selector, cause string) (int, error) {
	if which == (Selector{}) {
		return 0, &access.Denial{Reason: access.Unreadable, Message: "a kill must say which sessions", Hint: `for example {"session": "ses_…"}, or {"all": true}`}
	}
	record, err := json.Marshal(struct {
		Selector
		Cause string `json:"cause"`
	}{which, cause})
	if err != nil {
		return 0, err
	}
	if err := s.act(ctx, who, "session.kill", which.Session, record); err != nil {
		return 0, err
	}
	n, err := s.Sessions.Kill(ctx, which, cause, who)
	if which.All && s.login != nil {
		err = errors.Join(err, s.login.EndAll(ctx))
	}
	return n, err
}

func (s *server) status(w http.ResponseWriter, r *http.Request, _ access.Principal) error {
	return reply(w, s.Status(r.Context()))
}

// act writes down what a person is about to do.
func (s *server) act(ctx context.Context, who access.Principal, what, on string, in json.RawMessage) error {
	return s.Recorder.Append(ctx, access.Synced, access.Event{Session: on,
		Admin: &access.Administrative{Actor: who, Act: what, On: on, Input: in}})
}

// clientHeader holds the client's address, written by Envoy whatever a client
// sends.
const clientHeader = "X-Chaperone-Client"

// Renewals of one principal, for each of which the live sessions are listed:
// renewBurst at once, then one every renewEvery.
const (
	renewEvery   = 500 * time.Millisecond
	renewBurst   = 60
	renewCallers = 10_000
)

// renew gives the caller's own sessions the token that it came with. That is
// recorded before it holds; what the sessions do afterwards names the token.
func (s *server) renew(w http.ResponseWriter, r *http.Request, who access.Principal) error {
	if err := input(r, &struct{}{}); err != nil {
		return err
	}
	if free, ok := s.renewals.take(who.Key()); !ok {
		return &access.Denial{Reason: access.LimitExceeded, Limit: "renewals", Frees: free,
			Message: "sessions are renewed too often", Hint: "renew once for each fresh token"}
	}
	client := r.Header.Get(clientHeader)
	n, err := s.Sessions.Renewable(r.Context(), who, client)
	if err != nil {
		return err
	}
	if n > 0 {
		event := access.Event{Admin: &access.Administrative{Actor: who, Act: "session.renew", On: who.Token.ID}}
		if err := s.Recorder.Append(r.Context(), access.Synced, event); err != nil {
			return err
		}
		if err := s.Sessions.Renew(r.Context(), who, client); err != nil {
			return err
		}
	}
	return reply(w, map[string]any{"renewed": n, "until": who.Token.ExpiresAt})
}
