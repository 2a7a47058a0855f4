package console

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console/login"
	"chaperone.dev/chaperone/internal/record"
)

//go:embed web
var files embed.FS

// A page is one address of the web console.
type page struct {
	// op is the operation of the API that it does or shows: whoever may do that
	// may see this.
	op string
	// quiet is what a page asks for by itself: it does not keep a session from
	// idling.
	quiet bool
	// script is what only a script of ours asks for: another page may not even
	// have it sent.
	script bool
	serve  func(w http.ResponseWriter, r *http.Request, b *login.Session) error
}

// pages are all that needs a login. What changes something is a POST.
func (s *server) pages() map[string]page {
	const anything = "GET /api/v1/openapi.json"
	return map[string]page{
		"GET /console/{$}":                     {op: anything, serve: s.home},
		"POST /console/logout":                 {op: "", serve: s.logout},
		"GET /console/approvals":               {op: "GET /api/v1/approvals", serve: s.approvalsPage},
		"GET /console/approvals/rows":          {op: "GET /api/v1/approvals", quiet: true, script: true, serve: s.approvalRows},
		"GET /console/approvals/{id}":          {op: "GET /api/v1/approvals/{id}", serve: s.approvalPage},
		"GET /console/approvals/{id}/state":    {op: "GET /api/v1/approvals/{id}", quiet: true, script: true, serve: s.approvalState},
		"POST /console/approvals/{id}/approve": {op: "POST /api/v1/approvals/{id}/approve", serve: s.answerForm(true)},
		"POST /console/approvals/{id}/refuse":  {op: "POST /api/v1/approvals/{id}/refuse", serve: s.answerForm(false)},
		"GET /console/sessions":                {op: "GET /api/v1/sessions", serve: s.sessionsPage},
		"GET /console/sessions/{id}":           {op: "GET /api/v1/sessions", serve: s.sessionPage},
		"GET /console/sessions/{id}/cast":      {op: "GET /api/v1/sessions/{id}/events", script: true, serve: s.cast},
		"POST /console/sessions/{id}/kill":     {op: "POST /api/v1/kill", serve: s.killForm},
		"GET /console/status":                  {op: "GET /api/v1/status", serve: s.statusPage},
	}
}

// web adds the console to mux.
func (s *server) web(mux *http.ServeMux) {
	if s.Login == nil {
		return
	}
	c := *s.Login
	c.Admit = s.admit
	s.login, s.logins = login.New(c), newPace(loginEvery, loginBurst, loginCallers, s.Clock)
	mux.Handle("GET /console", http.RedirectHandler("/console/", http.StatusSeeOther))
	mux.Handle("GET /console/static/{file}", s.shield(s.static()))
	mux.Handle("GET "+login.Path, s.shield(s.loginPage))
	mux.Handle("GET "+login.Path+"/{way}", s.shield(s.paced(s.startLogin)))
	for _, pattern := range []string{"GET " + login.Path + "/{way}/callback", "POST " + login.Path + "/{way}/acs"} {
		mux.Handle(pattern, s.shield(s.paced(func(w http.ResponseWriter, r *http.Request) error {
			return s.login.Finish(w, r, r.PathValue("way"))
		})))
	}
	for pattern, p := range s.pages() {
		mux.Handle(pattern, s.shield(func(w http.ResponseWriter, r *http.Request) error { return s.enter(w, r, p) }))
	}
	mux.Handle("/console/", s.shield(func(_ http.ResponseWriter, r *http.Request) error {
		return &access.Denial{Reason: access.UnknownResource, Message: "there is no " + r.Method + " " + r.URL.Path, Hint: "begin at /console"}
	}))
}

// admit lets in whoever has a role, and writes down that they logged in.
func (s *server) admit(ctx context.Context, who access.Principal) error {
	if err := s.allowed(who, []Role{Viewer, Reviewer, Operator, Auditor}); err != nil {
		s.Logger.Info("somebody without a role logged in to the console", "user", who.User, "subject", who.Subject, "issuer", who.Issuer)
		return err
	}
	return s.act(ctx, who, "console.login", who.Issuer, nil)
}

// The content security policies: nothing but our own files, no inline script or
// style, no frames. Recordings of terminals are drawn by WebAssembly, which is
// part of the player's own file.
const (
	strict = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; " +
		"base-uri 'none'; frame-ancestors 'none'"
	strictest = strict + "; require-trusted-types-for 'script'; trusted-types 'none'"
	playing   = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; " +
		"base-uri 'none'; frame-ancestors 'none'"
)

// shield sets what every answer has, and turns errors into pages. A panic is an
// error.
func (s *server) shield(serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := access.NewRequestID()
		h := w.Header()
		h.Set("Content-Security-Policy", strictest)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		defer func() {
			if fault := recover(); fault == http.ErrAbortHandler {
				panic(fault) // cuts the connection
			} else if fault != nil {
				s.Logger.Error("the console panicked", "request", id, "path", r.URL.Path, "panic", fault)
				s.problem(w, r, &access.Denial{RequestID: id, Reason: access.Unavailable, Message: "the gateway failed; nothing was done"})
			}
		}()
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := serve(w, r); err != nil {
			denial := s.denial(err)
			denial.RequestID = id
			s.Logger.Info("console refused", "request", id, "path", r.URL.Path, "error", err)
			s.problem(w, r, denial)
		}
	})
}

// maxForm bounds a form: an assertion, encoded twice.
const maxForm = 160 << 10

var errForged = &access.Denial{Reason: access.DeniedByRule, Message: "this did not come from a page of the console",
	Hint: "go back to the console, load the page again and repeat it there"}

// enter opens a page to whoever is logged in and may.
func (s *server) enter(w http.ResponseWriter, r *http.Request, p page) error {
	changes := r.Method != http.MethodGet && r.Method != http.MethodHead
	if changes && !s.sameOrigin(r) || p.script && len(r.Header.Values("Sec-Fetch-Site")) > 0 && !s.sameOrigin(r) {
		return errForged
	}
	b, err := s.login.Session(r, !p.quiet)
	if errors.Is(err, login.ErrNone) && !changes && !p.quiet {
		http.Redirect(w, r, login.Path+"?"+url.Values{"then": {r.URL.RequestURI()}}.Encode(), http.StatusSeeOther)
		return nil
	}
	if errors.Is(err, login.ErrNone) {
		return &access.Denial{Reason: access.Unauthenticated, Message: "you are not logged in (any more); nothing was done", Hint: "log in at /console"}
	}
	if err != nil {
		return err
	}
	if changes && !b.Fits(r.PostFormValue("csrf")) {
		return errForged
	}
	if p.op != "" {
		if err := s.allowed(b.Principal, s.routes()[p.op].roles); err != nil {
			return err
		}
	}
	return p.serve(w, r, b)
}

// sameOrigin reports whether a page of ours sent the request, as browsers say
// and pages cannot.
func (s *server) sameOrigin(r *http.Request) bool {
	site := r.Header.Values("Sec-Fetch-Site")
	if len(site) == 0 { // an older browser
		return r.Header.Get("Origin") == s.Login.Public()
	}
	return len(site) == 1 && site[0] == "same-origin"
}

// may reports whether somebody may do an operation of the API.
func (s *server) may(b *login.Session, op string) bool {
	return s.allowed(b.Principal, s.routes()[op].roles) == nil
}

// static serves our own files, whatever they are called anew with each content.
func (s *server) static() func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		content, err := fs.ReadFile(files, path.Join("web/static", path.Base(r.PathValue("file"))))
		if err != nil {
			return &access.Denial{Reason: access.UnknownResource, Message: "there is no such file"}
		}
		types := map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
		kind, ok := types[path.Ext(r.PathValue("file"))]
		if !ok {
			kind = "text/plain; charset=utf-8"
		}
		sum := sha256.Sum256(content)
		tag := `"` + hex.EncodeToString(sum[:16]) + `"`
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "no-cache") // but it may be kept, and asked for again
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		_, _ = w.Write(content) // the client may have left
		return nil
	}
}

func (s *server) loginPage(w http.ResponseWriter, r *http.Request) error {
	type way struct{ Label, Href string }
	var ways []way
	for _, one := range s.Login.Ways() {
		ways = append(ways, way{record.Visible(one.Label), login.Path + "/" + one.Name + "?" + url.Values{"then": {r.URL.Query().Get("then")}}.Encode()})
	}
	return show(w, http.StatusOK, "login", view{Title: "Log in", Content: ways})
}

// Steps of logins that one address may take: loginBurst at once, then one every
// loginEvery. Nobody is known yet.
const (
	loginEvery   = time.Second
	loginBurst   = 30
	loginCallers = 4096
)

func (s *server) paced(serve func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if free, ok := s.logins.take(r.Header.Get(clientHeader)); !ok {
			return &access.Denial{Reason: access.LimitExceeded, Limit: "logins", Frees: free, Message: "too many logins from your address", Hint: "try again in a moment"}
		}
		return serve(w, r)
	}
}

func (s *server) startLogin(w http.ResponseWriter, r *http.Request) error {
	public, err := url.Parse(s.Login.Public())
	if err != nil {
		return err
	}
	if r.Host != public.Host { // the answer would go to another host than the cookie
		return &access.Denial{Reason: access.Unsupported, Message: "the console is at " + s.Login.Public() + "/console", Hint: "log in there"}
	}
	return s.login.Start(w, r, r.PathValue("way"), r.URL.Query().Get("then"))
}

func (s *server) home(w http.ResponseWriter, r *http.Request, _ *login.Session) error {
	http.Redirect(w, r, "/console/approvals", http.StatusSeeOther)
	return nil
}

func (s *server) logout(w http.ResponseWriter, r *http.Request, b *login.Session) error {
	if err := s.act(r.Context(), b.Principal, "console.logout", b.Principal.Issuer, nil); err != nil {
		return err
	}
	if err := s.login.End(w, r, b); err != nil {
		return err
	}
	http.Redirect(w, r, login.Path, http.StatusSeeOther)
	return nil
}
