// Package login makes browsers people's: it takes a browser to a provider and
// back (OpenID Connect's authorization code flow, or SAML's Web Browser SSO) and
// keeps the session that follows, behind one cookie. It owns the cookies, what
// is remembered between the two halves of a login, and sessions with their
// deadlines. It knows neither roles nor pages, and believes nobody itself: the
// gateway's verifier does, on every request anew.
//
//	browser          gateway                       provider
//	  │  Start ────────►│                              │
//	  │◄─ 303, state in a sealed cookie ──────────────►│ the person logs in
//	  │  Finish (code, or assertion posted) ◄──────────│
//	  │───────────────► state fits? ─ code ───────────►│
//	  │                 verify ◄──────────── token ────│
//	  │◄─ 303, session cookie; token in the store, sealed with the cookie
package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/authcode"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/store"
)

// Path is below what logins are: Path/NAME begins one, Path/NAME/callback and
// Path/NAME/acs end it.
const Path = "/console/login"

const (
	// within is how long a person has to log in.
	within = 10 * time.Minute
	// atOnce bounds logins that the providers are being asked about.
	atOnce = 16
)

// A Way is one provider at which people log in.
type Way struct {
	Name  string // of the issuer in the configuration
	Label string
	// OIDC is the gateway's client at an OpenID Connect provider; nil: it is a
	// SAML provider. It must be the same from one call to the next.
	OIDC *authcode.Client
	// Access takes the access token for who the person is, not the ID token.
	Access bool
}

// A Verifier says who somebody is; identity.Verifier is one.
type Verifier interface {
	Verify(ctx context.Context, token access.Secret) (access.Principal, error)
	SAMLRequest(ctx context.Context, provider, id, recipient string) (string, error)
	VerifyLogin(ctx context.Context, assertion access.Secret, provider, id, recipient string) (identity.Asserted, error)
	Stands(ctx context.Context, p access.Principal) error
}

// Config is what a Service needs. All but Clock and the durations is required.
type Config struct {
	Public   func() string // origin of the gateway: https://host[:port]
	Ways     func() []Way
	Key      [32]byte // seals what browsers keep during a login; the same at every replica
	Leases   store.Leases
	Verifier Verifier
	// Rejected tells a fault of a token from a verdict that was not reached.
	Rejected func(error) bool
	// Once fails with an error that Seen knows when key was given before, within
	// ttl.
	Once func(ctx context.Context, key string, ttl time.Duration) error
	Seen func(error) bool
	// Admit is asked who may have a session, and writes down that one begins.
	Admit  func(ctx context.Context, who access.Principal) error
	Logger *slog.Logger

	Clock func() time.Time // time.Now
	Idle  time.Duration    // a session ends when nobody does anything for so long: 30m
	Life  time.Duration    // and at the latest: 12h; its token may end earlier
}

// A Service logs people in. It is safe for concurrent use.
type Service struct {
	Config
	asking chan struct{}
}

// New returns a Service.
func New(c Config) *Service {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Idle == 0 {
		c.Idle = 30 * time.Minute
	}
	if c.Life == 0 {
		c.Life = 12 * time.Hour
	}
	return &Service{Config: c, asking: make(chan struct{}, atOnce)}
}

// A pending is a login under way, as the browser keeps it, sealed.
type pending struct {
	Way     string            `json:"way"`
	Code    *authcode.Attempt `json:"code,omitempty"`
	Request string            `json:"request,omitempty"` // ID of a SAML request
	Then    string            `json:"then"`              // page to go to
	Until   time.Time         `json:"until"`
}

// refused is what a person sees of a login that came to nothing. The reason
// goes to the log.
func refused(message string) *access.Denial {
	return &access.Denial{Reason: access.Unauthenticated, Message: message, Hint: "log in again"}
}

var errBusy = &access.Denial{Reason: access.Unavailable, Message: "the provider cannot be asked now", Hint: "try again in a moment"}

// way finds a provider by its name.
func (s *Service) way(name string) (Way, error) {
	for _, w := range s.Ways() {
		if w.Name == name {
			return w, nil
		}
	}
	return Way{}, &access.Denial{Reason: access.UnknownResource, Message: "nobody logs in at a provider of that name", Hint: "begin at /console"}
}

// ask takes one of the places of those who wait for a provider.
func (s *Service) ask() (release func(), err error) {
	select {
	case s.asking <- struct{}{}:
		return func() { <-s.asking }, nil
	default:
		return nil, errBusy
	}
}

// Start takes the browser to the provider, and after the login to the page then
// of the console.
func (s *Service) Start(w http.ResponseWriter, r *http.Request, name, then string) error {
	way, err := s.way(name)
	if err != nil {
		return err
	}
	release, err := s.ask()
	if err != nil {
		return err
	}
	defer release()
	p := pending{Way: name, Then: local(then), Until: s.Clock().Add(within)}
	var to string
	if way.OIDC != nil {
		attempt := authcode.NewAttempt(s.Public() + Path + "/" + name + "/callback")
		p.Code = &attempt
		to, err = way.OIDC.Address(r.Context(), attempt)
	} else {
		p.Request = "_" + strings.ToLower(rand.Text())
		to, err = s.Verifier.SAMLRequest(r.Context(), name, p.Request, s.recipient(name))
	}
	if err != nil {
		s.Logger.Warn("a login cannot begin", "issuer", name, "error", err)
		return errBusy
	}
	if err := s.remember(w, p, way); err != nil {
		return err
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
	return nil
}

// recipient is where assertions are delivered.
func (s *Service) recipient(name string) string { return s.Public() + Path + "/" + name + "/acs" }

// local keeps a login from ending anywhere but on a page of the console.
func local(then string) string {
	u, err := url.Parse(then)
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/console/") || strings.HasPrefix(u.Path, Path) ||
		strings.Contains(u.Path, "..") || strings.ContainsAny(then, "\\\r\n\t") || len(then) > 512 {
		return "/console/"
	}
	return then
}

// Finish ends a login with the provider's answer: a code in the address, or an
// assertion that the provider had the browser post, from its own site. Then the
// browser has a session.
func (s *Service) Finish(w http.ResponseWriter, r *http.Request, name string) error {
	p, err := s.recall(r)
	forget(w)
	if err != nil || p.Way != name {
		return refused("this is not a login that was begun here, or it took too long")
	}
	way, err := s.way(name)
	if err != nil {
		return err
	}
	release, err := s.ask()
	if err != nil {
		return err
	}
	defer release()
	var who access.Principal
	var token access.Secret
	switch {
	case way.OIDC != nil && p.Code != nil && r.Method == http.MethodGet:
		who, token, err = s.redeem(r, way, *p.Code)
	case way.OIDC == nil && p.Request != "" && r.Method == http.MethodPost:
		who, err = s.asserted(r, way, p.Request)
	default:
		err = errors.New("the answer is not of the kind that was asked for")
	}
	if err != nil {
		return s.failed(name, err)
	}
	if err := s.Admit(r.Context(), who); err != nil {
		return err
	}
	if err := s.open(w, r, who, token); err != nil {
		return err
	}
	http.Redirect(w, r, p.Then, http.StatusSeeOther)
	return nil
}

// failed says no more than that: the reason is for operators.
func (s *Service) failed(name string, err error) error {
	s.Logger.Warn("a login failed", "issuer", name, "error", err)
	var denial *access.Denial
	switch {
	case errors.As(err, &denial):
		return denial
	case s.Rejected(err) || s.Seen(err):
		return refused("what the provider says of you is not good here")
	}
	return errBusy
}

// redeem exchanges the code that is in the address.
func (s *Service) redeem(r *http.Request, way Way, attempt authcode.Attempt) (who access.Principal, token access.Secret, err error) {
	q := r.URL.Query()
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(attempt.State)) != 1 {
		return who, token, refused("this is not the login that was begun here")
	}
	if iss := q.Get("iss"); iss != "" && iss != way.OIDC.Issuer { // RFC 9207
		return who, token, refused("another provider answers than was asked")
	}
	code := q.Get("code")
	if code == "" {
		return who, token, refused("the provider refuses: " + access.Printable(q.Get("error")+" "+q.Get("error_description"), 200))
	}
	tokens, err := way.OIDC.Redeem(r.Context(), attempt, code)
	if err != nil {
		return who, token, err
	}
	token = tokens.ID
	if way.Access {
		token = tokens.Access
	}
	if who, err = s.Verifier.Verify(r.Context(), token); err != nil {
		return who, token, err
	}
	if who.Issuer != way.Name {
		return who, token, fmt.Errorf("the token is of %s", who.Issuer)
	}
	return who, token, nil
}

// asserted takes the assertion that answers the request.
func (s *Service) asserted(r *http.Request, way Way, request string) (access.Principal, error) {
	if err := r.ParseForm(); err != nil {
		return access.Principal{}, refused("the provider's answer cannot be read")
	}
	response := r.PostForm["SAMLResponse"]
	if len(response) != 1 {
		return access.Principal{}, refused("the provider's answer holds no assertion")
	}
	a, err := s.Verifier.VerifyLogin(r.Context(), access.NewSecret(response[0]), way.Name, request, s.recipient(way.Name))
	if err != nil {
		return access.Principal{}, err
	}
	return a.Principal, s.Once(r.Context(), a.Once, a.Until.Sub(s.Clock()))
}

// A marshalled pending, sealed, fits into a cookie with room to spare.
const maxCookie = 3 << 10

func (s *Service) remember(w http.ResponseWriter, p pending, way Way) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	c := cookie(pendingCookie, encode(seal(s.Key, b)), within)
	if len(c.Value) > maxCookie {
		return fmt.Errorf("a login under way takes %d bytes", len(c.Value))
	}
	if way.OIDC == nil {
		// The provider's page posts the answer, from another site.
		c.SameSite = http.SameSiteNoneMode
	}
	http.SetCookie(w, c)
	return nil
}

func (s *Service) recall(r *http.Request) (p pending, err error) {
	value, err := only(r, pendingCookie)
	if err != nil {
		return p, err
	}
	b, err := decode(value)
	if err == nil {
		b, err = unseal(s.Key, b)
	}
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err == nil && !s.Clock().Before(p.Until) {
		err = errors.New("it took too long")
	}
	return p, err
}
