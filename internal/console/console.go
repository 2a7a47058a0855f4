// Package console is how people see and steer the gateway, always behind Envoy:
// the API /api/v1, with a person's own token, and the web console /console, with
// a browser that they logged in with. Both do the same operations; it owns the
// roles that may, in one table, and refuses whatever a role does not name. It
// decides nothing about targets and holds no state: package login keeps the
// browsers' sessions.
package console

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console/login"
	"chaperone.dev/chaperone/internal/session"
)

// maxBody bounds a request body.
const maxBody = 64 << 10

// A Verifier turns a token into a principal; any error refuses.
type Verifier interface {
	Verify(ctx context.Context, token access.Secret) (access.Principal, error)
}

// Approvals is what the API needs of the approval service.
type Approvals interface {
	Get(ctx context.Context, id string) (access.Approval, error)
	List(ctx context.Context) ([]access.Approval, error)
	Answer(ctx context.Context, id string, reviewer access.Principal, grant bool, comment string) (access.Approval, error)
	// MayAnswer returns nil when Answer would be taken now, else why not.
	MayAnswer(ctx context.Context, id string, reviewer access.Principal) error
}

// Sessions is what the API needs of the session registry.
type Sessions interface {
	List(ctx context.Context) ([]access.Session, error)
	Kill(ctx context.Context, which Selector, cause string, by access.Principal) (int, error)
	Renewable(ctx context.Context, p access.Principal, client string) (int, error)
	Renew(ctx context.Context, p access.Principal, client string) error
}

// Recordings reads what was recorded.
type Recordings interface {
	Sessions(ctx context.Context) ([]SessionSummary, error)
	Events(ctx context.Context, session string) iter.Seq2[access.Event, error]
}

// Recorder writes down what people did.
type Recorder interface {
	Append(ctx context.Context, d access.Durability, evs ...access.Event) error
}

// A Status is what runs: revisions and what each Envoy made of them.
type Status struct {
	Revision string `json:"revision"`
	Since    string `json:"since"`
	Failed   string `json:"failed,omitempty"` // why the newest files were refused
	Envoys   any    `json:"envoys"`           // of the replica that answers
	Replicas any    `json:"replicas"`         // what each one runs
}

// A Selector names sessions to end.
type Selector = session.Selector

// A SessionSummary is one line of a list of sessions.
type SessionSummary struct {
	access.Session
	Closed   string `json:"closed,omitempty"` // time of the end; "" while it is live or was cut off
	Cause    string `json:"cause,omitempty"`
	Live     bool   `json:"live"`
	Requests int    `json:"requests"`
	Denied   int    `json:"denied"`
	Approved int    `json:"approved"`
}

// A Role is what a person may do.
type Role string

// The roles. Each is given by groups in the configuration; none implies another.
const (
	Viewer   Role = "viewer"   // list sessions and approvals
	Reviewer Role = "reviewer" // see approvals whole and answer them
	Operator Role = "operator" // end sessions, see revisions
	Auditor  Role = "auditor"  // read recordings
)

// Config wires the API.
type Config struct {
	Clients    func() []string // subagent names that stand for people
	Roles      func() map[Role][]string
	Verifier   Verifier
	Approvals  Approvals
	Sessions   Sessions
	Recordings Recordings
	Recorder   Recorder
	Status     func(context.Context) Status
	Logger     *slog.Logger
	Tracer     trace.Tracer     // nil: no spans
	Clock      func() time.Time // nil: the real one
	// Login is how browsers log in, but for Admit, which is the console's; nil:
	// there is the API only.
	Login *login.Config
}

//go:embed openapi.json
var openAPI []byte

// New returns the API's handler. It is safe for concurrent use.
func New(config Config) http.Handler {
	if config.Tracer == nil {
		config.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if config.Clock == nil {
		config.Clock = time.Now
	}
	s := &server{Config: config, renewals: newPace(renewEvery, renewBurst, renewCallers, config.Clock)}
	mux := http.NewServeMux()
	s.web(mux)
	for pattern, route := range s.routes() {
		mux.Handle(pattern, s.guard(route))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, &access.Denial{RequestID: access.NewRequestID(), Reason: access.UnknownResource,
			Message: "there is no " + r.Method + " " + r.URL.Path, Hint: "see /api/v1/openapi.json"})
	})
	return mux
}

type server struct {
	Config
	renewals *pace
	login    *login.Service // nil: the API only
	logins   *pace
	polls    polls
}

// A route is one operation and the roles that may use it; with none, whoever
// has a token may.
type route struct {
	roles []Role
	serve func(w http.ResponseWriter, r *http.Request, who access.Principal) error
}

func (s *server) routes() map[string]route {
	anyone := []Role{Viewer, Reviewer, Operator, Auditor}
	return map[string]route{
		"GET /api/v1/openapi.json":            {anyone, s.openAPI},
		"GET /api/v1/approvals":               {[]Role{Viewer, Reviewer, Operator, Auditor}, s.listApprovals},
		"GET /api/v1/approvals/{id}":          {[]Role{Reviewer, Auditor}, s.showApproval},
		"POST /api/v1/approvals/{id}/approve": {[]Role{Reviewer}, s.answer(true)},
		"POST /api/v1/approvals/{id}/refuse":  {[]Role{Reviewer}, s.answer(false)},
		"GET /api/v1/sessions":                {anyone, s.listSessions},
		"GET /api/v1/sessions/{id}/events":    {[]Role{Auditor}, s.events},
		"POST /api/v1/sessions/renew":         {nil, s.renew},
		"POST /api/v1/kill":                   {[]Role{Operator}, s.kill},
		"GET /api/v1/status":                  {[]Role{Operator}, s.status},
	}
}

// guard authenticates the person, checks the role and turns errors into
// problem documents. A panic is an error.
func (s *server) guard(route route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := access.NewRequestID()
		defer func() {
			if fault := recover(); fault == http.ErrAbortHandler {
				panic(fault) // cuts the connection
			} else if fault != nil {
				s.Logger.Error("the API panicked", "request", id, "path", r.URL.Path, "panic", fault)
				refuse(w, &access.Denial{RequestID: id, Reason: access.Unavailable, Message: "the gateway failed; nothing was done"})
			}
		}()
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		who, err := s.authenticate(r, route.roles)
		if err == nil {
			err = route.serve(w, r, who)
		}
		if err != nil {
			denial := s.denial(err)
			denial.RequestID = id
			s.Logger.Info("API refused", "request", id, "path", r.URL.Path, "user", who.User, "subject", who.Subject, "error", err)
			refuse(w, denial)
		}
	})
}

var errUnauthenticated = errors.New("no valid token")

func (s *server) authenticate(r *http.Request, roles []Role) (access.Principal, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return access.Principal{}, errUnauthenticated
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || token == "" || !strings.EqualFold(scheme, "Bearer") {
		return access.Principal{}, errUnauthenticated
	}
	who, err := s.Verifier.Verify(r.Context(), access.NewSecret(token))
	if err != nil {
		return access.Principal{}, errors.Join(errUnauthenticated, err)
	}
	return who, s.allowed(who, roles)
}

// allowed is where it is decided who may do what, in the API and in the web
// console alike.
func (s *server) allowed(who access.Principal, roles []Role) error {
	if roles != nil && !s.has(who, roles) {
		return errForbidden(roles)
	}
	return nil
}

// has reports whether who has any of the roles. A token that was got through a
// client for subagents, or that carries a delegation, never has one.
func (s *server) has(who access.Principal, roles []Role) bool {
	if !slices.Contains(s.Clients(), who.Subagent) || len(who.Chain) > 0 {
		return false
	}
	groups := s.Roles()
	return slices.ContainsFunc(roles, func(r Role) bool { return who.InGroup(groups[r]...) })
}

type errForbidden []Role

func (e errForbidden) Error() string {
	names := make([]string, len(e))
	for i, r := range e {
		names[i] = string(r)
	}
	return "this needs a person with the role " + strings.Join(names, " or ") + ", logged in for themselves"
}

// denial chooses what the caller sees of an error.
func (s *server) denial(err error) *access.Denial {
	var denial *access.Denial
	var forbidden errForbidden
	switch {
	case errors.As(err, &denial):
		copied := *denial
		return &copied
	case errors.Is(err, errUnauthenticated):
		return &access.Denial{Reason: access.Unauthenticated, Message: "a valid token is needed",
			Hint: "send one header Authorization: Bearer TOKEN with a fresh token for this gateway"}
	case errors.As(err, &forbidden):
		return &access.Denial{Reason: access.DeniedByRule, Message: forbidden.Error(),
			Hint: "log in through a client for people, as a member of one of the role's groups"}
	default:
		return &access.Denial{Reason: access.Unavailable, Message: "the gateway cannot do this now; nothing was done", Hint: "try again; operators find the reason in the log"}
	}
}

func refuse(w http.ResponseWriter, d *access.Denial) {
	w.Header().Set("Content-Type", access.ProblemType)
	w.Header().Set("Cache-Control", "no-store")
	if d.Reason == access.Unauthenticated {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(d.Status())
	_, _ = w.Write(d.Problem(d.Status())) // the client may have left
}

func reply(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(b, '\n')) // the client may have left
	return nil
}
