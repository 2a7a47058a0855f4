package console

import (
	"context"
	"net/http"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console/login"
	"chaperone.dev/chaperone/internal/record"
)

// A row is one line of a table, with its texts made inert.
type row struct {
	Href  string   `json:"href,omitempty"` // "" where the reader may not go
	Cells []string `json:"cells"`
}

func cells(texts ...string) []string {
	for i, t := range texts {
		texts[i] = record.Visible(t)
	}
	return texts
}

// polls has all open pages share one look at the approvals a second.
type polls struct {
	mu   sync.Mutex
	at   time.Time
	list []ApprovalSummary
}

func (s *server) polled(ctx context.Context) ([]ApprovalSummary, error) {
	s.polls.mu.Lock()
	defer s.polls.mu.Unlock()
	now := s.Clock()
	if age := now.Sub(s.polls.at); age >= 0 && age < time.Second {
		return s.polls.list, nil
	}
	list, err := s.approvals(ctx, "")
	if err != nil {
		return nil, err
	}
	s.polls.at, s.polls.list = now, list
	return list, nil
}

// maxRows bounds a table.
const maxRows = 200

func (s *server) approvalTable(ctx context.Context, b *login.Session, all bool, list func(context.Context) ([]ApprovalSummary, error)) ([]row, error) {
	rows := []row{}
	found, err := list(ctx)
	if err != nil {
		return nil, err
	}
	readable := s.may(b, "GET /api/v1/approvals/{id}")
	for _, a := range found {
		if !all && a.State != access.Pending {
			continue
		}
		if len(rows) == maxRows {
			break
		}
		line := row{Cells: cells(a.What, a.Resource, a.User, a.Subagent, a.Workflow, string(a.State), stamp(a.Expires))}
		if readable {
			line.Href = "/console/approvals/" + a.ID
		}
		rows = append(rows, line)
	}
	return rows, nil
}

func (s *server) approvalsPage(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	all := r.URL.Query().Get("state") == "all"
	rows, err := s.approvalTable(r.Context(), b, all, func(ctx context.Context) ([]ApprovalSummary, error) { return s.approvals(ctx, "") })
	if err != nil {
		return err
	}
	title := "Waiting for a reviewer"
	if all {
		title = "All approvals"
	}
	return show(w, http.StatusOK, "approvals", s.view(b, title, "/console/approvals", struct {
		All  bool
		Rows []row
	}{all, rows}, "live.js"))
}

// approvalRows is what the page above asks for again and again.
func (s *server) approvalRows(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	rows, err := s.approvalTable(r.Context(), b, r.URL.Query().Get("state") == "all", s.polled)
	if err != nil {
		return err
	}
	return data(w, map[string]any{"rows": rows})
}

func (s *server) approvalPage(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	a, err := s.Approvals.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	content := struct {
		ID, State, Why string
		Serves         string // how long a grant does
		Entries        []Entry
		Pending, May   bool
	}{ID: a.ID, State: string(a.State), Entries: CardOf(a, stamp), Pending: a.State == access.Pending, Serves: "once"}
	if terms := a.Ask.Decision.Obligations.Approval; terms != nil && terms.Window > 0 {
		content.Serves = "for " + terms.Window.String()
	}
	switch {
	case !content.Pending:
	case !s.may(b, "POST /api/v1/approvals/{id}/approve"):
		content.Why = "you are not a reviewer"
	default:
		why := s.Approvals.MayAnswer(r.Context(), a.ID, b.Principal)
		content.May = why == nil
		if why != nil {
			content.Why = s.denial(why).Message
		}
	}
	return show(w, http.StatusOK, "approval", s.view(b, "Approval", "", content, "live.js"))
}

func (s *server) approvalState(w http.ResponseWriter, r *http.Request, _ *login.Session) error {
	a, err := s.Approvals.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return data(w, map[string]any{"state": a.State})
}

func (s *server) answerForm(grant bool) func(http.ResponseWriter, *http.Request, *login.Session) error {
	return func(w http.ResponseWriter, r *http.Request, b *login.Session) error {
		a, err := s.take(r, r.PathValue("id"), b.Principal, grant, r.PostFormValue("comment"))
		if err != nil {
			return err
		}
		http.Redirect(w, r, "/console/approvals/"+a.ID, http.StatusSeeOther)
		return nil
	}
}
