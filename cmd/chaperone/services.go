package main

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/extauthz"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/issuer"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/quota"
	"chaperone.dev/chaperone/internal/session"
	streams "chaperone.dev/chaperone/internal/session/kube"
	"chaperone.dev/chaperone/internal/session/postgres"
	"chaperone.dev/chaperone/internal/session/ssh"
	"chaperone.dev/chaperone/tapsink"
)

// lifecycles makes what lives in the store: approvals and sessions.
func (s *server) lifecycles(cfg *config.Config, replica string) (err error) {
	hooks := make([]approval.Webhook, len(cfg.Approvals.Webhooks))
	for i, h := range cfg.Approvals.Webhooks {
		hooks[i] = approval.Webhook{URL: h.URL, Secret: h.Secret.Secret()}
	}
	s.approvals, err = approval.New(approval.Config{Store: s.store, Recorder: s.recorder, Replica: replica, Logger: s.log,
		Registerer: s.metrics, Webhooks: hooks})
	if err != nil {
		return err
	}
	s.sessions, err = session.New(session.Config{Store: s.store, Replica: replica, Logger: s.log, Registerer: s.metrics,
		TokenLife: cfg.Identity.Life + identity.MaxSkew})
	if err != nil {
		return err
	}
	if s.usage, err = quota.New(quota.Config{Store: s.store, Logger: s.log}); err != nil {
		return err
	}
	s.calls, err = session.NewHTTPSessions(s.sessions, session.HTTPConfig{Opened: s.opened, Closed: s.closed})
	if err != nil || cfg.Tokens == nil {
		return err
	}
	s.keys, err = issuer.OpenKeys(cfg.Tokens.Keys, cfg.Tokens.Rotate, cfg.Tokens.Life+identity.MaxSkew, time.Now)
	return err
}

// opened records that an HTTP session begins, before its first request.
func (s *server) opened(ctx context.Context, info access.Session) error {
	return s.recorder.Append(ctx, access.Synced, access.Event{Session: info.ID, Opened: &access.SessionOpened{Session: info}})
}

// closed records that it is over.
func (s *server) closed(ctx context.Context, info access.Session, cause string) {
	err := s.recorder.Append(ctx, access.Synced, access.Event{Session: info.ID, Closed: &access.SessionClosed{Cause: cause}})
	if err != nil {
		s.log.Warn("the end of a session is not recorded", "session", info.ID, "error", err)
	}
}

// postgres makes the session service of PostgreSQL.
func (s *server) postgres(cfg *config.Config, tracing trace.TracerProvider) (*postgres.Service, error) {
	return postgres.New(postgres.Config{PlaintextOnLoopback: true, ApprovalWait: cfg.Approvals.Wait, Replica: s.replica,
		MaxWaitingPerSource: *cfg.Listen.WaitingPerAddress}, postgres.Deps{
		Verifier: &s.current, Decider: s.engine, Recorder: s.recorder, Approvals: s.approvals, Sessions: s.sessions,
		Resource: s.current.postgresResource,
		TLS:      s.current.sessionTLS,
		Detector: detector, Usage: s.usage,
		Rejected: func(err error) bool { return errors.Is(err, identity.ErrTokenRejected) },
		Log:      s.log, Tracer: tracing.Tracer("postgres"), Metric: s.metrics,
	})
}

// detector makes what masks by detector do to a cell.
func detector(masks []access.Mask) (postgres.Detector, error) {
	masker, err := mask.Compile(masks)
	if err != nil {
		return nil, err
	}
	return masker.Text, nil
}

// http makes the two services behind Envoy's HTTP filters.
func (s *server) http(cfg *config.Config, carried *streams.Service, hosts *ssh.Service) (*extauthz.Server, *tapsink.Server, error) {
	deps := extauthz.Dependencies{
		Verifier: &s.current, Resources: &s.current, Decider: s.engine, Recorder: s.recorder,
		Approvals: s.approvals, Departures: s.approvals, Sessions: s.calls, Usage: s.usage,
		Streams: carried, Impersonation: s.current.impersonating,
		Previews: previews{&s.current, s.engine.MasksOf},
	}
	if hosts != nil {
		deps.Connections = hosts
	}
	authorizer, err := extauthz.New(extauthz.Config{Wait: cfg.Approvals.Wait, Logger: s.log, Metrics: s.metrics}, deps)
	if err != nil {
		return nil, nil, err
	}
	tap, err := tapsink.New(tapsink.Config{Recorder: s.recorder, Logger: s.log, Registerer: s.metrics, Literals: s.current.credential, Watch: s.calls.Watch,
		Usage: s.usage})
	return authorizer, tap, err
}
