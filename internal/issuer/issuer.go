// Package issuer is the gateway's own token service (an OAuth 2.0 authorization
// server, RFC 6749). It exchanges a token that the gateway believes for one that
// lives shorter and reaches less far (RFC 8693), and owns the keys that sign
// those. It publishes what it is (RFC 8414) and its keys (RFC 7517), and takes
// back (RFC 7009) and explains (RFC 7662) tokens.
//
//	form → subject token → actor → may act? → depth → attenuation → resources
//	     → minted → recorded → answered
//
// It grants nothing: a token of its own is never good for more, or for longer,
// than the one that was exchanged, and what it names is judged by policy anew
// with each use. It refuses whatever it does not understand in one way only.
package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
)

// Name is how principals and configuration call the gateway's own issuer.
const Name = "chaperone"

// Defaults and bounds of Config.
const (
	DefaultLife  = 5 * time.Minute
	MaxLife      = time.Hour
	DefaultDepth = 4
	MaxDepth     = 8 // what internal/identity reads
)

// Paths of the service below its issuer.
const (
	TokenPath      = "/oauth/token"
	RevokePath     = "/oauth/revoke"
	IntrospectPath = "/oauth/introspect"
	KeysPath       = "/oauth/jwks"
	MetadataPath   = "/.well-known/oauth-authorization-server"
)

// A Verifier turns a token into its principal and knows the issuers. An error of
// Verify that Rejected does not recognise means that no verdict was reached.
type Verifier interface {
	Verify(ctx context.Context, token access.Secret) (access.Principal, error)
	// Examine is for a token that is asked about, not used: whoever asks does
	// not hold the certificate that it is bound to.
	Examine(ctx context.Context, token access.Secret) (access.Principal, error)
	// VerifyAssertion verifies a SAML assertion, which is good once.
	VerifyAssertion(ctx context.Context, assertion access.Secret) (identity.Asserted, error)
	// NameOf and URLOf translate between an issuer's iss and its configured
	// name; "" is unknown.
	NameOf(iss string) string
	URLOf(name string) string
}

// A Recorder keeps events. After an error the token must not leave.
type Recorder interface {
	Append(ctx context.Context, d access.Durability, evs ...access.Event) error
}

// A Revoker refuses a token, and all that was exchanged from it, everywhere.
type Revoker interface {
	RevokeToken(ctx context.Context, token access.Principal, cause string) error
}

// Config is how the service behaves.
type Config struct {
	Issuer string        // the exact iss: https://host[:port]
	Life   time.Duration // of a token; 0 is DefaultLife
	Depth  int           // hops in a chain; 0 is DefaultDepth
	// Certificates says that clients may show certificates (RFC 8705): tokens
	// are then bound to them.
	Certificates bool
	// Clients authenticate by an assertion (RFC 7523, section 2.2). With any,
	// every exchange needs one.
	Clients []Client
}

// Deps are what the service works with. All but Log, Clock and Metrics are
// required.
type Deps struct {
	Keys     *Keys
	Verifier Verifier
	// Resource finds a target by name; MayConnect is policy's word on it.
	Resource   func(name string) (access.Resource, bool)
	MayConnect func(ctx context.Context, p access.Principal, r access.Resource) bool
	Recorder   Recorder
	Revoker    Revoker
	// MayIntrospect says who may ask about tokens.
	MayIntrospect func(p access.Principal) bool
	// Once returns nil the first time that it is asked about key within ttl, at
	// whatever replica.
	Once func(ctx context.Context, key string, ttl time.Duration) error
	// Rejected tells a verdict of the Verifier from the lack of one.
	Rejected func(error) bool

	Log     *slog.Logger
	Clock   func() time.Time
	Metrics prometheus.Registerer
}

func (d Deps) complete() bool {
	return d.Keys != nil && d.Verifier != nil && d.Resource != nil && d.MayConnect != nil && d.Recorder != nil &&
		d.Revoker != nil && d.MayIntrospect != nil && d.Once != nil && d.Rejected != nil
}

// A Service is the token service. It is safe for concurrent use.
type Service struct {
	Deps
	config  Config
	clients map[string]*client
	gate    *gate
	answers *prometheus.CounterVec
}

// New checks its arguments; it opens nothing.
func New(config Config, deps Deps) (*Service, error) {
	if !deps.complete() {
		return nil, errors.New("token service: a dependency is missing")
	}
	if config.Life == 0 {
		config.Life = DefaultLife
	}
	if config.Depth == 0 {
		config.Depth = DefaultDepth
	}
	if config.Life < time.Second || config.Life > MaxLife || config.Depth < 1 || config.Depth > MaxDepth {
		return nil, fmt.Errorf("token service: tokens of %s and %d hops are out of bounds", config.Life, config.Depth)
	}
	if deps.Clock == nil {
		deps.Clock = time.Now
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{Deps: deps, config: config, clients: map[string]*client{}, gate: newGate(deps.Clock),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "chaperone_token_service_answers_total",
			Help: "Answers of the token service: ok, or the error."}, []string{"endpoint", "answer"})}
	for _, c := range config.Clients {
		one, err := newClient(c)
		if err != nil {
			return nil, fmt.Errorf("token service: client %s: %w", c.ID, err)
		}
		if s.clients[c.ID] != nil {
			return nil, fmt.Errorf("token service: client %s: twice", c.ID)
		}
		s.clients[c.ID] = one
	}
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(s.answers); err != nil {
			return nil, fmt.Errorf("token service: %w", err)
		}
	}
	return s, nil
}

// Handler serves the paths of the service.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+TokenPath, s.endpoint("token", s.exchange))
	mux.Handle("POST "+RevokePath, s.endpoint("revoke", s.revoke))
	mux.Handle("POST "+IntrospectPath, s.endpoint("introspect", s.introspect))
	mux.Handle("GET "+KeysPath, http.HandlerFunc(s.serveKeys))
	mux.Handle("GET "+MetadataPath, http.HandlerFunc(s.serveMetadata))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f := invalidRequest("there is no " + r.Method + " here; see " + MetadataPath)
		f.status = http.StatusNotFound
		writeFault(w, access.NewRequestID(), f)
	})
	return mux
}

// serveKeys may be cached for less long than a key is published before it signs.
func (s *Service) serveKeys(w http.ResponseWriter, _ *http.Request) {
	b, err := s.Keys.Published()
	if err != nil {
		s.Log.Error("signing keys cannot be read", "error", err)
		writeFault(w, access.NewRequestID(), unavailable("no keys can be shown now", err))
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age=300")
	_, _ = w.Write(b) // the client may have left
}

// serveMetadata is RFC 8414, section 3.
func (s *Service) serveMetadata(w http.ResponseWriter, _ *http.Request) {
	methods := []string{"none"}
	if len(s.clients) > 0 {
		methods = []string{"private_key_jwt"}
	}
	w.Header().Set("Cache-Control", "public, max-age=300")
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer": s.config.Issuer, "token_endpoint": s.config.Issuer + TokenPath, "jwks_uri": s.config.Issuer + KeysPath,
		"revocation_endpoint": s.config.Issuer + RevokePath, "introspection_endpoint": s.config.Issuer + IntrospectPath,
		"response_types_supported": []string{}, "grant_types_supported": []string{grantExchange},
		"token_endpoint_auth_methods_supported":            methods,
		"token_endpoint_auth_signing_alg_values_supported": assertionAlgorithms,
		"revocation_endpoint_auth_methods_supported":       []string{"none"},
		"authorization_details_types_supported":            []string{detailsType},
		"tls_client_certificate_bound_access_tokens":       s.config.Certificates,
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // maps, texts and numbers always encode
		panic("issuer: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client may have left
}
