package e2e

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/extauthz"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/policy"
	"chaperone.dev/chaperone/xds"
)

// The gateway decides nothing without recording it. What deciding alone costs
// is measured with the gateway's own authorizer, verifier and policies in a
// process of its own, which this test binary becomes when the variable names a
// configuration, and with a recorder that keeps nothing.
const authorizerVariable = "CHAPERONE_BENCH_AUTHORIZER"

func authorizerSocket(dir string) string { return filepath.Join(dir, "authorizer.sock") }

// startAuthorizer returns the process once it listens.
func startAuthorizer(b *testing.B, s *demo.Site) (pid int) {
	b.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), authorizerVariable+"="+filepath.Join(s.Dir, "chaperone.yaml"))
	c.Dir, c.Stderr = s.Dir, os.Stderr
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait() // killed
	})
	if err := demo.Eventually(b.Context(), 30*time.Second, func() error {
		conn, err := net.Dial("unix", authorizerSocket(s.Dir))
		if err == nil {
			err = conn.Close()
		}
		return err
	}); err != nil {
		b.Fatalf("the authorizer does not listen: %v", err)
	}
	return c.Process.Pid
}

// authorize serves until the process is killed.
func authorize(file string) error {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	set, err := policy.LoadDir(cfg.Policies)
	if err != nil {
		return err
	}
	issuers := make([]identity.Issuer, len(cfg.Identity.Issuers))
	for i, is := range cfg.Identity.Issuers {
		issuers[i] = identity.Issuer{Name: is.Name, URL: is.OIDC.Issuer, JWKSURL: is.OIDC.JWKS, Audiences: is.OIDC.Audiences,
			Algorithms: is.OIDC.Algorithms, Skew: *is.Skew, KeyAge: cfg.Identity.KeyAge, CA: is.OIDC.CA.Bytes(), Claims: identity.Claims(is.Claims)}
	}
	verifier, err := identity.New(identity.Config{Issuers: issuers})
	if err != nil {
		return err
	}
	var only decideOnly
	server, err := extauthz.New(extauthz.Config{Wait: time.Second, Metrics: prometheus.NewRegistry()}, extauthz.Dependencies{
		Verifier: verifier, Resources: resourcesOf(cfg), Decider: policy.NewEngine(set), Recorder: only, Approvals: only, Departures: only, Sessions: only})
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", authorizerSocket(filepath.Dir(file)))
	if err != nil {
		return err
	}
	services := grpc.NewServer(xds.ServerOptions()...)
	authv3.RegisterAuthorizationServer(services, server)
	ended := make(chan error, 2)
	go func() { ended <- verifier.Run(context.Background()) }()
	go func() { ended <- services.Serve(listener) }()
	return <-ended
}

type configResources map[string]access.Resource

func resourcesOf(cfg *config.Config) configResources {
	m := configResources{}
	for _, r := range cfg.Resources {
		m[r.Name] = r.Access()
	}
	return m
}

func (m configResources) Resource(name string) (access.Resource, bool) {
	r, ok := m[name]
	return r, ok
}

// decideOnly keeps nothing and asks nobody.
type decideOnly struct{}

var errDecideOnly = errors.New("this authorizer holds nothing")

func (decideOnly) Append(context.Context, access.Durability, ...access.Event) error { return nil }

func (decideOnly) Ask(context.Context, access.Ask) (access.Approval, error) {
	return access.Approval{}, errDecideOnly
}

func (decideOnly) Standing(context.Context, access.Ask) bool { return false }

func (decideOnly) Wait(context.Context, string) (access.Approval, error) {
	return access.Approval{}, errDecideOnly
}
func (decideOnly) Consume(context.Context, string, string) error { return errDecideOnly }
func (decideOnly) Detach(context.Context, string) error          { return errDecideOnly }
func (decideOnly) Abandon(context.Context, string) error         { return errDecideOnly }

func (decideOnly) For(context.Context, access.Principal, access.Resource, string) (string, context.Context, func(), error) {
	return "ses_bench", context.Background(), func() {}, nil
}
