package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/extauthz"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/console/login"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/issuer"
	"chaperone.dev/chaperone/internal/lookup"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/policy"
	streams "chaperone.dev/chaperone/internal/session/kube"
	"chaperone.dev/chaperone/internal/session/postgres"
	"chaperone.dev/chaperone/internal/session/ssh"
	"chaperone.dev/chaperone/internal/sql"
	"chaperone.dev/chaperone/internal/sql/parser"
	"chaperone.dev/chaperone/xds"
)

// A revision is one validated set of configuration and policies, as every
// service sees it: immutable, and replaced whole.
type revision struct {
	config   *config.Config
	policies *policy.Set
	postgres map[string]postgres.Resource
	ssh      map[string]ssh.Resource
	access   map[string]access.Resource
	literals map[string]*mask.Literals // of HTTP and Kubernetes resources with a credential

	kubernetes    map[string]streams.Resource
	impersonation map[string]*extauthz.Impersonation // of Kubernetes resources
	tls           *tls.Config                        // of the session services
	envoy         *xds.Snapshot
	logins        []login.Way // of the web console
	since         time.Time
}

// A builder makes revisions from files.
type builder struct {
	file   string
	parser sql.Parser
}

// build reads configuration and policies and makes everything that follows from
// them; any fault refuses the whole.
func (b *builder) build() (*revision, error) {
	cfg, err := config.Load(b.file)
	if err != nil {
		return nil, err
	}
	set, err := policy.LoadDir(cfg.Policies)
	if err != nil {
		return nil, err
	}
	r := &revision{config: cfg, policies: set, since: time.Now(), postgres: map[string]postgres.Resource{},
		ssh: map[string]ssh.Resource{}, access: map[string]access.Resource{},
		literals: map[string]*mask.Literals{}, kubernetes: map[string]streams.Resource{}, impersonation: map[string]*extauthz.Impersonation{}}
	cert, err := tls.X509KeyPair(cfg.Listen.TLS.Cert.Bytes(), cfg.Listen.TLS.Key.Bytes())
	if err != nil {
		return nil, fmt.Errorf("listen.tls: %w", err)
	}
	r.tls = sessionTLS(cfg, cert)
	for _, res := range cfg.Resources {
		r.access[res.Name] = res.Access()
		switch res.Kind {
		case access.HTTP:
			r.literals[res.Name] = mask.NewLiterals(credentialForms(res.HTTP.Credential.Value.Secret())...)
		case access.Kubernetes:
			r.literals[res.Name] = mask.NewLiterals(res.Kubernetes.Credential.Token.Secret().Reveal())
			if i := res.Kubernetes.Impersonate; i != nil {
				r.impersonation[res.Name] = &extauthz.Impersonation{Prefix: *i.Prefix, Groups: i.Groups}
			}
			r.kubernetes[res.Name], err = streamTarget(res, r.literals[res.Name])
		}
		switch res.Kind {
		case access.Postgres:
			r.postgres[res.Name], err = b.postgres(res)
		case access.SSH:
			r.ssh[res.Name], err = sshTarget(res)
		}
		if err != nil {
			return nil, fmt.Errorf("resource %s: %w", res.Name, err)
		}
	}
	r.logins = loginWays(cfg)
	if r.envoy, err = xds.Build(envoyConfig(cfg, set)); err != nil {
		return nil, err
	}
	return r, nil
}

// credentialForms are what of a credential no response may show: the header's
// value, what follows a scheme such as Bearer or Basic, and of Basic what is in
// it, for a target that has read it may tell the password as it is.
func credentialForms(value access.Secret) []string {
	whole := value.Reveal()
	forms := []string{whole}
	scheme, rest, ok := strings.Cut(whole, " ")
	if !ok {
		return forms
	}
	rest = strings.TrimSpace(rest)
	forms = append(forms, rest)
	if !strings.EqualFold(scheme, "Basic") {
		return forms
	}
	if pair, err := base64.StdEncoding.DecodeString(rest); err == nil {
		_, password, _ := strings.Cut(string(pair), ":")
		forms = append(forms, string(pair), password)
	}
	return forms
}

func (b *builder) postgres(res config.Resource) (postgres.Resource, error) {
	p := res.Postgres
	analyzer, err := sql.New(sql.Config{Parser: b.parser, CuratedFunctions: p.Functions})
	if err != nil {
		return postgres.Resource{}, err
	}
	out, err := postgresTarget(res)
	out.Analyzer = analyzer
	return out, err
}

// postgresTarget is how a database is reached.
func postgresTarget(res config.Resource) (postgres.Resource, error) {
	p := res.Postgres
	password := p.Credential.Password.Secret()
	out := postgres.Resource{
		Access: res.Access(), Address: res.Address, Database: p.Database, User: p.Credential.User, Unwalled: p.Unwalled,
		Profile: p.Credential.Profile, Claims: p.Settings,
	}
	if p.Credential.Password.Set() {
		out.Password = func(context.Context) (access.Secret, error) { return password, nil }
	}
	if p.TLS.Mode != "disable" {
		host, _, err := net.SplitHostPort(res.Address)
		if err != nil {
			return postgres.Resource{}, err
		}
		out.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
		if ca := p.TLS.CA.Bytes(); ca != nil {
			out.TLS.RootCAs = x509.NewCertPool()
			out.TLS.RootCAs.AppendCertsFromPEM(ca) // validated
		}
		if cert := p.Credential.Certificate.Bytes(); cert != nil {
			pair, err := tls.X509KeyPair(cert, p.Credential.Key.Bytes())
			if err != nil {
				return postgres.Resource{}, err
			}
			out.TLS.Certificates = []tls.Certificate{pair}
		}
	}
	return out, nil
}

// systemCAs are the usual places of the system's root certificates.
var systemCAs = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}

// socketNames are the unix sockets in the sockets folder.
const (
	adsSocket      = "ads.sock"
	servicesSocket = "services.sock"
	postgresSocket = "postgres.sock"
	sshSocket      = "ssh.sock"
	apiSocket      = "api.sock"

	kubernetesSocket = "kubernetes.sock"
)

// holdMargin is what Envoy grants the authorizer beyond the longest hold.
const holdMargin = 15 * time.Second

func envoyConfig(cfg *config.Config, set *policy.Set) xds.Config {
	socket := func(name string) string { return cfg.Sockets + "/" + name }
	out := xds.Config{
		Revision: set.Revision(),
		Listen: xds.Listen{HTTPS: cfg.Listen.HTTPS, Postgres: cfg.Listen.Postgres, SSH: cfg.Listen.SSH,
			Certificate: cfg.Listen.TLS.Cert.Bytes(), Key: cfg.Listen.TLS.Key.Secret(), ClientCAs: clientCAs(cfg)},
		Sockets: xds.Sockets{Services: socket(servicesSocket), Postgres: socket(postgresSocket), SSH: socket(sshSocket), API: socket(apiSocket),
			Kubernetes: socket(kubernetesSocket)},
		Hold: cfg.Approvals.Wait + holdMargin,
		OTLP: cfg.Telemetry.OTLP.Endpoint,
	}
	for _, file := range systemCAs {
		if _, err := os.Stat(file); err == nil {
			out.SystemCAs = file
			break
		}
	}
	rules := policy.NewEngine(set)
	for _, res := range cfg.Resources {
		if res.Kind == access.Kubernetes {
			out.HTTP = append(out.HTTP, apiServer(res))
		}
		if res.Kind != access.HTTP {
			continue
		}
		h := xds.HTTPResource{Name: res.Name, Address: strings.TrimSuffix(res.Address, "/"), CA: res.HTTP.CA.Bytes(),
			ReadBody: rules.ReadsBody(res.Access())}
		if c := res.HTTP.Credential; c.Header != "" {
			h.Credential = &xds.Credential{Header: c.Header, Value: c.Value.Secret()}
		}
		out.HTTP = append(out.HTTP, h)
	}
	return out
}

// apiServer is how a Kubernetes API server is reached.
func apiServer(res config.Resource) xds.HTTPResource {
	k := res.Kubernetes
	h := xds.HTTPResource{Name: res.Name, Address: strings.TrimSuffix(res.Address, "/"), CA: k.CA.Bytes(), Kubernetes: true}
	if token := k.Credential.Token.Secret(); !token.Empty() {
		h.Credential = &xds.Credential{Header: "authorization", Value: access.NewSecret("Bearer " + token.Reveal())}
	} else {
		h.Certificate = &xds.Certificate{Chain: k.Credential.Cert.Bytes(), Key: k.Credential.Key.Secret()}
	}
	return h
}

// impersonating says as whom an API server acts; nil: as the gateway's account.
func (c *current) impersonating(resource string) *extauthz.Impersonation {
	return c.revision.Load().impersonation[resource]
}

// A current gives every service the revision that serves now.
type current struct {
	revision atomic.Pointer[revision]
	verifier atomic.Pointer[identity.Verifier]
	swapped  chan struct{} // holds a token after the verifier was replaced
}

// run keeps the keys of the current verifier fresh, whichever it is, until ctx
// ends.
func (c *current) run(ctx context.Context) error {
	for ctx.Err() == nil {
		serving, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- c.verifier.Load().Run(serving) }()
		select {
		case <-ctx.Done():
		case <-c.swapped:
		}
		stop()
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

// replaceVerifier makes v the one that is asked from now on.
func (c *current) replaceVerifier(v *identity.Verifier) {
	old := c.verifier.Swap(v)
	if old == v {
		return
	}
	select {
	case c.swapped <- struct{}{}:
	default: // run has not looked since the last one
	}
	old.Close()
}

// NameOf and URLOf ask the verifier of the current revision.
func (c *current) NameOf(iss string) string { return c.verifier.Load().NameOf(iss) }

// URLOf gives the iss of a configured issuer.
func (c *current) URLOf(name string) string { return c.verifier.Load().URLOf(name) }

// Verify asks the verifier of the current revision.
func (c *current) Verify(ctx context.Context, token access.Secret) (access.Principal, error) {
	return c.verifier.Load().Verify(ctx, token)
}

// Examine asks it about a token that is somebody else's.
func (c *current) Examine(ctx context.Context, token access.Secret) (access.Principal, error) {
	return c.verifier.Load().Examine(ctx, token)
}

// Stands asks it whether what a SAML provider asserted still holds.
func (c *current) Stands(ctx context.Context, p access.Principal) error {
	return c.verifier.Load().Stands(ctx, p)
}

// SAMLRequest has it send a browser to a SAML provider.
func (c *current) SAMLRequest(ctx context.Context, provider, id, recipient string) (string, error) {
	return c.verifier.Load().SAMLRequest(ctx, provider, id, recipient)
}

// VerifyLogin asks it about what came back.
func (c *current) VerifyLogin(ctx context.Context, assertion access.Secret, provider, id, recipient string) (identity.Asserted, error) {
	return c.verifier.Load().VerifyLogin(ctx, assertion, provider, id, recipient)
}

// VerifyAssertion asks it about a SAML assertion.
func (c *current) VerifyAssertion(ctx context.Context, assertion access.Secret) (identity.Asserted, error) {
	return c.verifier.Load().VerifyAssertion(ctx, assertion)
}

// sessionTLS is that of the current revision.
func (c *current) sessionTLS() *tls.Config { return c.revision.Load().tls }

// postgresResource finds a database of the current revision.
func (c *current) postgresResource(name string) (postgres.Resource, bool) {
	r, ok := c.revision.Load().postgres[name]
	return r, ok
}

// Resource finds a resource of the current revision.
func (c *current) Resource(name string) (access.Resource, bool) {
	r, ok := c.revision.Load().access[name]
	return r, ok
}

// credential finds what no response of a resource may show.
func (c *current) credential(resource string) *mask.Literals {
	return c.revision.Load().literals[resource]
}

// sessionTLS is what the session services end TLS with: the gateway's current
// certificate. Clients are asked for theirs where a trust domain is configured;
// whether it is worth anything the verifier says.
func sessionTLS(cfg *config.Config, certificate tls.Certificate) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}}
	if pem := clientCAs(cfg); pem != nil {
		config.ClientAuth, config.ClientCAs = tls.RequestClientCert, x509.NewCertPool()
		config.ClientCAs.AppendCertsFromPEM(pem) // validated
	}
	return config
}

// newVerifier makes the verifier of a configuration. own gives the keys of the
// gateway's token service, nil for none; revoked may be nil.
func newVerifier(cfg *config.Config, log *slog.Logger, metrics prometheus.Registerer, revoked identity.Revocations, own func() ([]byte, error)) (*identity.Verifier, error) {
	c := identity.Config{Log: log, Registerer: metrics, Revocations: revoked}
	if own != nil {
		c.Issuers = append(c.Issuers, identity.Issuer{Name: issuer.Name, URL: cfg.Tokens.Issuer, Audiences: []string{cfg.Tokens.Issuer},
			Algorithms: []string{"ES256"}, Skew: *cfg.Identity.Skew, KeyAge: cfg.Identity.KeyAge, MaxLife: issuer.MaxLife, Own: own})
	}
	for _, is := range cfg.Identity.Issuers {
		if is.SPIFFE != nil {
			c.Domains = append(c.Domains, trustDomain(is))
			continue
		}
		if is.SAML != nil {
			c.SAML = append(c.SAML, samlProvider(cfg, is))
			continue
		}
		directory, err := groupsDirectory(is.LookUp)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: look_up: %w", is.Name, err)
		}
		one := identity.Issuer{
			Name: is.Name, URL: is.OIDC.Issuer, JWKSURL: is.OIDC.JWKS, Audiences: is.OIDC.Audiences, Algorithms: is.OIDC.Algorithms,
			Skew: *is.Skew, KeyAge: cfg.Identity.KeyAge, CA: is.OIDC.CA.Bytes(), MaxLife: cfg.Identity.Life,
			Claims: identity.Claims(is.Claims),
		}
		if directory != nil {
			one.LookUp, one.LookUpBy = groupsOf{directory}, is.LookUp.By
		}
		c.Issuers = append(c.Issuers, one)
	}
	return identity.New(c)
}

// groupsDirectory is where the groups of an issuer's users are looked up; nil is
// nowhere.
func groupsDirectory(l *config.LookUp) (*lookup.Directory, error) {
	if l == nil {
		return nil, nil
	}
	var roots *x509.CertPool
	if pem := l.CA.Bytes(); pem != nil {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(pem) // validated
	}
	c := lookup.Config{Fresh: l.Fresh}
	if g := l.Google; g != nil {
		return lookup.NewGoogle(c, lookup.Google{ServiceAccount: g.Account.Secret(), Admin: g.Admin, API: strings.TrimSuffix(g.API, "/"), Roots: roots})
	}
	return lookup.NewEntra(c, lookup.Entra{Tenant: l.Entra.Tenant, Client: l.Entra.Client, Secret: l.Entra.Secret.Secret(),
		Login: strings.TrimSuffix(l.Entra.Login, "/"), API: strings.TrimSuffix(l.Entra.API, "/"), Roots: roots})
}

// groupsOf tells a user that the directory does not know from a directory that
// does not answer.
type groupsOf struct{ *lookup.Directory }

// Groups asks the directory.
func (g groupsOf) Groups(ctx context.Context, who string) ([]string, error) {
	groups, err := g.Directory.Groups(ctx, who)
	if errors.Is(err, lookup.ErrUnknownUser) {
		err = fmt.Errorf("%w: %w", identity.ErrTokenRejected, err)
	}
	return groups, err
}

func trustDomain(is config.Issuer) identity.TrustDomain {
	d := identity.TrustDomain{Name: is.Name, Domain: is.SPIFFE.TrustDomain, Bundle: is.SPIFFE.Bundle.Bytes(), MaxLife: is.SPIFFE.MaxLife, Skew: *is.Skew}
	for _, id := range is.SPIFFE.IDs {
		d.Paths = append(d.Paths, identity.SPIFFEPath(id))
	}
	return d
}

func samlProvider(cfg *config.Config, is config.Issuer) identity.SAMLProvider {
	s := is.SAML
	return identity.SAMLProvider{Name: is.Name, EntityID: s.EntityID, Metadata: s.Metadata.Bytes(), MetadataURL: s.MetadataURL, CA: s.CA.Bytes(),
		Audience: s.Audience, Recipient: s.Recipient, Algorithms: s.Algorithms, Skew: *is.Skew, KeyAge: cfg.Identity.KeyAge,
		Claims: identity.Claims(is.Claims), Subagent: s.Subagent}
}

// clientCAs are the bundles of all trust domains; nil means that clients are
// not asked for certificates.
func clientCAs(cfg *config.Config) (pem []byte) {
	for _, is := range cfg.Identity.Issuers {
		if is.SPIFFE != nil {
			pem = append(append(pem, is.SPIFFE.Bundle.Bytes()...), '\n')
		}
	}
	return pem
}

// workerCommand is this same binary as a parser worker.
func workerCommand() ([]string, error) {
	self, err := os.Executable()
	return []string{self, parserWorker}, err
}

// newParser starts a pool of parser workers, or takes those that run keeps in
// the folder nursery.
func newParser(nursery string, workers int, log *slog.Logger, metrics prometheus.Registerer) (*parser.Pool, error) {
	c := parser.Config{Nursery: nursery, Workers: workers, Logger: log, Registerer: metrics}
	if nursery == "" {
		var err error
		if c.Command, err = workerCommand(); err != nil {
			return nil, err
		}
	}
	return parser.NewPool(c)
}
