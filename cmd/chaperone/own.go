package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/directory"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/issuer"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
	"chaperone.dev/chaperone/internal/store"
)

// own is all that chaperone itself answers behind Envoy: the API of people and
// the token service.
func (s *server) own(cfg *config.Config, api http.Handler) (http.Handler, error) {
	mux := http.NewServeMux()
	mux.Handle("/", api)
	mux.Handle(directory.Path, directory.Handler(s.directory(cfg)))
	if s.sshKeys != nil {
		mux.Handle(authority.Path, s.certificates())
	}
	if cfg.Tokens == nil {
		return shown(mux), nil
	}
	service, err := issuer.New(issuer.Config{Issuer: cfg.Tokens.Issuer, Life: cfg.Tokens.Life, Depth: cfg.Tokens.Depth, Clients: tokenClients(cfg.Tokens),
		Certificates: clientCAs(cfg) != nil},
		issuer.Deps{
			Keys: s.keys, Verifier: &s.current, Resource: s.current.Resource, MayConnect: s.engine.MayConnect, Recorder: s.recorder, Revoker: s.sessions,
			MayIntrospect: s.mayIntrospect, Once: s.once, Log: s.log, Metrics: s.metrics,
			Rejected: func(err error) bool { return errors.Is(err, identity.ErrTokenRejected) },
		})
	if err != nil {
		return nil, err
	}
	tokens := service.Handler()
	mux.Handle("/oauth/", tokens)
	mux.Handle(issuer.MetadataPath, tokens)
	return shown(mux), nil
}

// shown tells what the client showed to Envoy, which alone can reach next.
func shown(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := identity.Forwarded(r.Header.Values(identity.ForwardedHeader))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r.WithContext(identity.WithShown(r.Context(), s)))
	})
}

// newVerifier makes the verifier of a configuration as this server uses it.
func (s *server) newVerifier(cfg *config.Config, metrics prometheus.Registerer) (*identity.Verifier, error) {
	if s.keys == nil || cfg.Tokens == nil {
		return newVerifier(cfg, s.log, metrics, s.sessions, nil)
	}
	return newVerifier(cfg, s.log, metrics, s.sessions, s.keys.Published)
}

// directory says what the current revision has for whom.
func (s *server) directory(cfg *config.Config) directory.Config {
	c := directory.Config{
		Verify: s.current.Verify, MayConnect: s.engine.MayConnect, Log: s.log,
		Rejected: func(err error) bool { return errors.Is(err, identity.ErrTokenRejected) },
		Resources: func() (all []access.Resource) {
			for _, r := range s.current.revision.Load().config.Resources {
				all = append(all, r.Access())
			}
			return all
		},
		PublicURL: func() *url.URL {
			u, err := url.Parse(s.current.revision.Load().config.Listen.Public)
			if err != nil { // validated
				return &url.URL{}
			}
			return u
		},
		PostgresPort: func() int { return portOf(s.current.revision.Load().config.Listen.Postgres) },
		SSHPort:      func() int { return portOf(s.current.revision.Load().config.Listen.SSH) },
		Accounts:     s.current.accounts,
	}
	if s.sshKeys != nil {
		c.SSHAuthority = func() string { return authority.AuthorizedKey(s.sshKeys.CA()) }
	}
	if cfg.Tokens != nil {
		c.TokenEndpoint = cfg.Tokens.Issuer + issuer.TokenPath
	}
	return c
}

func tokenClients(t *config.Tokens) []issuer.Client {
	clients := make([]issuer.Client, len(t.Clients))
	for i, c := range t.Clients {
		clients[i] = issuer.Client{ID: c.ID, Keys: c.Keys.Bytes()}
	}
	return clients
}

// mayIntrospect lets in operators, logged in for themselves, and the resource
// servers of the configuration.
func (s *server) mayIntrospect(p access.Principal) bool {
	cfg := s.current.revision.Load().config
	if len(p.Chain) > 0 {
		return false
	}
	return slices.Contains(cfg.People.Clients, p.Subagent) && p.InGroup(cfg.People.Operator...) ||
		p.Subagent != "" && slices.Contains(cfg.Tokens.Introspect, p.Subagent)
}

// once takes a lease that nobody can take a second time until it has ended.
func (s *server) once(ctx context.Context, key string, ttl time.Duration) error {
	err := s.store.Acquire(ctx, "assertion/"+key, strings.ToLower(access.NewRequestID()), nil, max(ttl, time.Second))
	if errors.Is(err, store.ErrHeld) {
		return issuer.ErrSeen
	}
	return err
}
