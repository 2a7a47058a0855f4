package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console/login"
	"chaperone.dev/chaperone/internal/record"
)

// A view is what a template shows.
type view struct {
	Title   string
	Who     string // "" when nobody is logged in
	CSRF    string
	Nav     []link
	Scripts []string
	Content any
}

type link struct {
	Label, Href string
	Here        bool
}

// templates are parsed when they are first used; they are our own, and each is
// used by a test.
var templates = func() map[string]*template.Template {
	funcs := template.FuncMap{
		"marks": marks,
	}
	all := map[string]*template.Template{}
	for _, name := range []string{"login", "problem", "approvals", "approval", "sessions", "session", "status"} {
		all[name] = template.Must(template.New("layout.html").Funcs(funcs).ParseFS(files, "web/layout.html", "web/"+name+".html"))
	}
	return all
}()

// stamp is a moment for people.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// A mark is one line of a difference.
type mark struct{ Class, Text string }

func marks(difference string) (lines []mark) {
	for l := range strings.SplitSeq(difference, "\n") {
		class := map[byte]string{'-': "removed", '+': "added"}[(l + " ")[0]]
		lines = append(lines, mark{class, l})
	}
	return lines
}

// show writes a page: whole, or an error.
func show(w http.ResponseWriter, status int, name string, v view) error {
	var b bytes.Buffer
	if err := templates[name].Execute(&b, v); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the client may have left
	return nil
}

// view is the frame of a page for somebody.
func (s *server) view(b *login.Session, title, here string, content any, scripts ...string) view {
	v := view{Title: title, Who: record.Visible(nameOf(b.Principal)), CSRF: b.CSRF, Content: content, Scripts: scripts}
	for _, l := range []link{{Label: "Approvals", Href: "/console/approvals"}, {Label: "Sessions", Href: "/console/sessions"}, {Label: "Status", Href: "/console/status"}} {
		if l.Href == "/console/status" && !s.may(b, "GET /api/v1/status") {
			continue
		}
		l.Here = l.Href == here
		v.Nav = append(v.Nav, l)
	}
	return v
}

func nameOf(p access.Principal) string {
	if p.User != "" {
		return p.User
	}
	return p.Subject
}

// problem answers with a refusal: in JSON to scripts.
func (s *server) problem(w http.ResponseWriter, r *http.Request, d *access.Denial) {
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		refuse(w, d)
		return
	}
	copied := *d
	copied.Message, copied.Hint = record.Visible(d.Message), record.Visible(d.Hint)
	if err := show(w, d.Status(), "problem", view{Title: "Refused", Content: copied}); err != nil {
		s.Logger.Error("a refusal cannot be shown", "error", err)
		http.Error(w, "refused", d.Status())
	}
}

// data answers a script.
func data(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client may have left
	return nil
}
