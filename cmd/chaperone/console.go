package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/authcode"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/console"
	"chaperone.dev/chaperone/internal/console/login"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/issuer"
)

// api is the console and its API over what this server owns.
func (s *server) api(tracer trace.Tracer) http.Handler {
	cfg := func() *config.Config { return s.current.revision.Load().config }
	return console.New(console.Config{
		Clients: func() []string { return cfg().People.Clients },
		Roles: func() map[console.Role][]string {
			p := cfg().People
			return map[console.Role][]string{console.Reviewer: p.Reviewer, console.Operator: p.Operator, console.Auditor: p.Auditor, console.Viewer: p.Viewer}
		},
		Verifier: &s.current, Approvals: approvalsAPI{s.approvals}, Sessions: s.sessions, Recordings: recordings{s.recorder.Reader()},
		Recorder: s.recorder, Status: s.status, Logger: s.log, Tracer: tracer,
		Login: &login.Config{
			Public: func() string { return cfg().Listen.Public }, Ways: func() []login.Way { return s.current.revision.Load().logins },
			Key: s.sealing, Leases: s.store, Verifier: &s.current, Logger: s.log,
			Rejected: func(err error) bool { return errors.Is(err, identity.ErrTokenRejected) },
			Once:     s.once, Seen: func(err error) bool { return errors.Is(err, issuer.ErrSeen) },
		},
	})
}

// providerTimeout bounds what a provider is asked during a login.
const providerTimeout = 10 * time.Second

// loginWays are where people log in to the console.
func loginWays(cfg *config.Config) (ways []login.Way) {
	for _, l := range cfg.People.Logins {
		way := login.Way{Name: l.Issuer, Label: l.Label, Access: l.Token == "access"}
		for _, is := range cfg.Identity.Issuers {
			if is.Name == l.Issuer && is.OIDC != nil {
				way.OIDC = &authcode.Client{Issuer: is.OIDC.Issuer, ID: l.Client, Secret: l.Secret.Secret(), Scope: l.Scope, HTTP: providerClient(is.OIDC.CA.Bytes())}
			}
		}
		ways = append(ways, way)
	}
	return ways
}

// providerClient trusts the certificates of ca, or the system's when it is nil.
// It follows nobody anywhere else: what is sent is a secret.
func providerClient(ca []byte) *http.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != nil {
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(ca) // validated
	}
	return &http.Client{
		Timeout:       providerTimeout,
		Transport:     &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxConnsPerHost: 16, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
