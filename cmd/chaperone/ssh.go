package main

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/trace"
	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/bearer"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/issuer"
	"chaperone.dev/chaperone/internal/session/ssh"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
)

// sshTarget is how a host is reached.
func sshTarget(res config.Resource) (ssh.Resource, error) {
	out := ssh.Resource{Access: res.Access(), Address: res.Address, Users: res.SSH.Users, Environment: res.SSH.Environment}
	for _, pinned := range []struct {
		lines []string
		to    *[]gossh.PublicKey
	}{{res.SSH.HostKeys, &out.HostKeys}, {res.SSH.HostCAs, &out.HostCAs}} {
		for _, line := range pinned.lines {
			key, err := config.PublicKey(line)
			if err != nil {
				return out, err
			}
			*pinned.to = append(*pinned.to, key)
		}
	}
	return out, nil
}

// sshResource finds a host of the current revision.
func (c *current) sshResource(name string) (ssh.Resource, bool) {
	r, ok := c.revision.Load().ssh[name]
	return r, ok
}

// knowsIssuer reports whether an issuer of that name is configured.
func (c *current) knowsIssuer(name string) bool {
	cfg := c.revision.Load().config
	return name == issuer.Name && cfg.Tokens != nil || slices.ContainsFunc(cfg.Identity.Issuers, func(is config.Issuer) bool { return is.Name == name })
}

// names are those of the gateway's current certificate: how clients reach it.
func (c *current) names() (names []string) {
	leaf := c.revision.Load().tls.Certificates[0].Leaf
	names = append(names, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// ssh makes the session service of SSH; without a listener there is none.
func (s *server) ssh(cfg *config.Config, tracing trace.TracerProvider) (*ssh.Service, error) {
	if cfg.Listen.SSH == "" {
		return nil, nil
	}
	keys, err := authority.Open(cfg.SSH.Keys)
	if err != nil {
		return nil, err
	}
	s.sshKeys = keys
	return ssh.New(ssh.Config{ApprovalWait: cfg.Approvals.Wait, MaxWaitingPerSource: *cfg.Listen.WaitingPerAddress}, ssh.Deps{
		Keys: keys, Verifier: &s.current, Decider: s.engine, Recorder: s.recorder, Approvals: s.approvals, Sessions: s.sessions, Usage: s.usage,
		Resource: s.current.sshResource, HostNames: s.current.names,
		KnownIssuer: s.current.knowsIssuer,
		Rejected:    func(err error) bool { return errors.Is(err, identity.ErrTokenRejected) },
		Log:         s.log, Tracer: tracing.Tracer("ssh"), Metric: s.metrics,
	})
}

// certificates certifies the keys of SSH clients.
func (s *server) certificates() http.Handler {
	return authority.Issuer{Keys: s.sshKeys, Resource: s.current.Resource, MayConnect: s.engine.MayConnect, Record: s.recorder.Append,
		Gate: bearer.Gate{Name: "ssh certificate", Verify: s.current.Verify, Log: s.log,
			Rejected: func(err error) bool { return errors.Is(err, identity.ErrTokenRejected) }},
		Life:  func() time.Duration { return s.current.revision.Load().config.SSH.Life },
		Clock: time.Now, Log: s.log}
}

// accounts are those of a host of the current revision.
func (c *current) accounts(resource string) []string { return c.revision.Load().ssh[resource].Users }

// portOf is the port of a listen address, which is validated; 0 for none.
func portOf(address string) int {
	_, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port)
	return n
}
