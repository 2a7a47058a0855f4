// Package demo is chaperone's main job on one machine, with nothing simulated:
// a PostgreSQL, an HTTP service, an OpenID Connect provider, Envoy and the
// gateway, and a story that the ordinary psql, curl and ssh tell through them. The
// end-to-end tests run on the same Site.
package demo

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
)

//go:embed files
var files embed.FS

// The people of the demo. Each one's workflow is what their subagents run in.
const (
	Ada   = "ada@example.com"   // her agents work at the order desk
	Grace = "grace@example.com" // senior engineer: reviews
	Alan  = "alan@example.com"  // works on the platform: operates
	Sofia = "sofia@example.com" // security: reads recordings
	Tom   = "tom@example.com"   // nobody in particular
	Rhea  = "rhea@example.com"  // at the order desk, and a senior engineer too
	Omar  = "omar@example.com"  // his agents look after the host web

	Reporter = "reporter@example.com" // the account of a subagent that is nobody without a user
)

var people = []localserver.Person{
	{Email: Ada, Groups: []string{"orders-agents"}, Workflow: "nightly-report"},
	{Email: Grace, Groups: []string{"senior-engineers", "security"}},
	{Email: Alan, Groups: []string{"platform"}},
	{Email: Sofia, Groups: []string{"security"}},
	{Email: Tom, Groups: []string{"everyone"}, Workflow: "curiosity"},
	{Email: Reporter, Workflow: "weekly-report"},
	{Email: Omar, Groups: []string{"web-agents"}, Workflow: "log-watch"},
	{Email: Rhea, Groups: []string{"orders-agents", "senior-engineers"}, Workflow: "backlog"},
}

// Options say what to start and where. Zero values choose.
type Options struct {
	Dir             string        // everything lives here; a missing folder is made
	Binary          string        // the chaperone program
	HTTPS, Postgres int           // ports; 0 takes free ones
	SSH             int           // the same
	Kubernetes      bool          // with a cluster, which takes some seconds and 500 MB
	PostgresVersion string        // "" takes what is found
	ShortLifetime   time.Duration // of the second provider's tokens; 5s
	OTLP            string        // host:port of a trace collector, or none
	Progress        func(step string)
	// Config changes the configuration's text before it is written.
	Config func(text string) string
	// Policies replaces the policy files: name → text.
	Policies map[string]string
	// Wrap is a command that the gateway is run by, with it and its arguments
	// appended.
	Wrap []string
}

// A Site is everything running.
type Site struct {
	Dir         string
	HTTPSPort   int
	PGPort      int
	SSHPort     int
	MetricsPort int
	Dex, Short  *localserver.Dex
	Database    *localserver.Postgres
	Billing     *Billing
	Hook        *Hook
	Host        *localserver.SSHD       // nil: there is no sshd on this machine
	Cluster     *localserver.Kubernetes // nil: not asked for
	node        *localserver.Node
	Gateway     *Gateway
	DBPassword  string
	APIKey      string
	options     Options
	lock        *os.File
}

// Start starts everything and returns when the gateway serves. On an error,
// what had started is stopped.
func Start(ctx context.Context, o Options) (site *Site, err error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.ShortLifetime == 0 {
		o.ShortLifetime = 5 * time.Second
	}
	s := &Site{options: o}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := s.folder(); err != nil {
		return nil, err
	}
	if err := s.ports(); err != nil {
		return nil, err
	}
	s.DBPassword, s.APIKey = rand.Text(), "bk_live_"+rand.Text()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"a certificate authority and the gateway's certificate", s.certificates},
		{"two OpenID Connect providers (Dex), the second with short-lived tokens", s.providers},
		{"PostgreSQL with the database orders", s.database},
		{"the HTTP service billing and a webhook listener", s.services},
		{"an OpenSSH server, the host web", s.host},
		{"a Kubernetes API server with its etcd, if it is asked for", s.cluster},
		{"configuration and policies", s.configure},
		{"chaperone and Envoy", s.gateway},
	} {
		o.Progress("starting " + step.name)
		if err := step.do(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// folder takes the folder for this process alone and clears what an earlier run
// left in it.
func (s *Site) folder() error {
	dir, err := filepath.Abs(s.options.Dir)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	s.Dir = dir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return fmt.Errorf("demo: another demo runs in %s; stop it, or choose another folder", dir)
	}
	s.lock = lock
	// Only what a demo makes is removed: the folder may have been a mistake.
	for _, name := range []string{"pg", "dex", "short", "sshd", "ssh", "cluster", "kubeconfig", "data", "run", "secrets", "policies", "proposed", "cases", "chaperone.yaml", "gateway.crt", "gateway.key", "ca.crt", "tokens", "gateway.log"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	return nil
}

func (s *Site) path(parts ...string) string {
	return filepath.Join(append([]string{s.Dir}, parts...)...)
}

// ports chooses those that are not given.
func (s *Site) ports() (err error) {
	for _, port := range []struct{ want, got *int }{{&s.options.HTTPS, &s.HTTPSPort}, {&s.options.Postgres, &s.PGPort}, {&s.options.SSH, &s.SSHPort}, {new(int), &s.MetricsPort}} {
		if *port.got = *port.want; *port.got == 0 {
			if *port.got, err = localserver.FreePort(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Site) providers(ctx context.Context) (err error) {
	if s.Dex, err = localserver.StartDex(ctx, s.path("dex"), localserver.DexConfig{People: people, Console: s.URL() + "/console/login/dex/callback"}); err != nil {
		return err
	}
	s.Short, err = localserver.StartDex(ctx, s.path("short"), localserver.DexConfig{People: people, Lifetime: s.options.ShortLifetime})
	return err
}

func (s *Site) database(ctx context.Context) (err error) {
	if s.Database, err = localserver.StartPostgres(ctx, s.path("pg"), s.options.PostgresVersion); err != nil {
		return err
	}
	if err := s.Database.Exec(ctx, "postgres", "create database orders"); err != nil {
		return err
	}
	return s.Database.Exec(ctx, "orders", schemaSQL(customers(40), s.DBPassword))
}

func (s *Site) services(context.Context) (err error) {
	if s.Billing, err = startBilling(customers(40), s.APIKey); err != nil {
		return err
	}
	s.Hook, err = startHook("hook-secret-" + rand.Text())
	return err
}

// host starts sshd, which trusts the authority that the gateway will have. It is
// the one server that the demo does without where it is missing.
func (s *Site) host(ctx context.Context) error {
	if _, err := localserver.SSHDPath(); err != nil {
		s.options.Progress(err.Error() + "; the chapter on hosts is left out")
		return nil
	}
	if _, err := authority.Open(s.path("data", "ssh")); err != nil {
		return err
	}
	host, err := localserver.StartSSHD(ctx, s.path("sshd"), s.path("data", "ssh", "target_ca.pub"))
	if err != nil {
		return err
	}
	s.Host = host
	return write(s.path("sshd", "home", "app.log"), "09:30 started\n09:31 card 4111 1111 1111 1111 refused\n", 0o644)
}

// configure writes configuration, policies and secrets.
func (s *Site) configure(context.Context) (err error) {
	for name, secret := range map[string]string{"orders": s.DBPassword, "billing": s.APIKey, "hook": s.Hook.secret, "console": localserver.DexSecret} {
		if err := write(s.path("secrets", name), secret, 0o600); err != nil {
			return err
		}
	}
	text, err := s.config()
	if err != nil {
		return err
	}
	if err := write(s.path("chaperone.yaml"), text, 0o600); err != nil {
		return err
	}
	policies := s.options.Policies
	if policies == nil {
		if policies, err = Policies(); err != nil {
			return err
		}
	}
	if s.Cluster != nil && policies[clusterPolicy] == "" {
		text, err := files.ReadFile("files/cluster/" + clusterPolicy)
		if err != nil {
			return err
		}
		policies[clusterPolicy] = string(text)
	}
	for name, text := range policies {
		if err := write(s.path("policies", name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Policies are the demo's policy files: name → text.
func Policies() (map[string]string, error) {
	entries, err := files.ReadDir("files/policies")
	if err != nil {
		return nil, err
	}
	policies := map[string]string{}
	for _, e := range entries {
		text, err := files.ReadFile("files/policies/" + e.Name())
		if err != nil {
			return nil, err
		}
		policies[e.Name()] = string(text)
	}
	return policies, nil
}

func (s *Site) config() (string, error) {
	t, err := template.ParseFS(files, "files/chaperone.yaml.tmpl")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, map[string]any{
		"HTTPSPort": s.HTTPSPort, "PostgresPort": s.PGPort, "MetricsPort": s.MetricsPort, "SSHPort": s.SSHPort, "Host": s.Host,
		"Issuer": s.Dex.Issuer, "ShortIssuer": s.Short.Issuer,
		"Cluster": s.Cluster, "PostgresTarget": s.Database.Addr, "BillingTarget": s.Billing.URL, "Hook": s.Hook.URL, "OTLP": s.options.OTLP,
	})
	if err != nil {
		return "", err
	}
	if s.options.Config != nil {
		return s.options.Config(b.String()), nil
	}
	return b.String(), nil
}

func (s *Site) gateway(ctx context.Context) (err error) {
	s.Gateway, err = startGateway(ctx, append(s.options.Wrap, s.options.Binary), s.Dir, s.Ready)
	return err
}

// URL is where HTTPS clients reach the gateway.
func (s *Site) URL() string { return "https://localhost:" + strconv.Itoa(s.HTTPSPort) }

// Ready asks until the gateway answers on both of its listeners.
func (s *Site) Ready(ctx context.Context) error {
	client, err := s.Client()
	if err != nil {
		return err
	}
	res, err := client.Get(s.URL() + "/http/billing/ready")
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != 401 {
		return fmt.Errorf("the gateway answers %s", res.Status)
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(s.PGPort))
	if err != nil {
		return err
	}
	defer c.Close()
	return sslRequest(c)
}

// sslRequest asks for TLS as psql does: only the session service answers.
func sslRequest(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}); err != nil {
		return err
	}
	answer := make([]byte, 1)
	if _, err := c.Read(answer); err != nil {
		return err
	}
	if answer[0] != 'S' {
		return errors.New("the gateway does not offer TLS")
	}
	return nil
}

// psqlOf finds psql: the first that was built with TLS, of the PostgreSQL in use
// and of PATH; without any, the one of the PostgreSQL in use.
func (s *Site) psqlOf(ctx context.Context) (path string, tls bool) {
	own := filepath.Join(s.Database.Bin, "psql")
	for _, candidate := range []string{own, "psql"} {
		found, err := exec.LookPath(candidate)
		if err == nil && speaksTLS(ctx, found) {
			return found, true
		}
	}
	return own, false
}

// speaksTLS asks psql to connect where nobody listens: one without TLS
// complains of that first.
func speaksTLS(ctx context.Context, psql string) bool {
	cmd := exec.CommandContext(ctx, psql, "host=127.0.0.1 port=1 sslmode=require", "-c", "")
	out, _ := cmd.CombinedOutput() // it fails either way
	return strings.Contains(string(out), "connection") && !strings.Contains(string(out), "not compiled in")
}

// ConnString is what psql and drivers connect with, the token aside. Without
// TLS only clients on loopback are let in.
func (s *Site) ConnString(tls bool) string {
	at := fmt.Sprintf("host=localhost port=%d dbname=orders user=agent ", s.PGPort)
	if !tls {
		return at + "sslmode=disable"
	}
	return at + "sslmode=verify-full sslrootcert=" + s.path("ca.crt")
}

// DSN is the same as a URL, with the token in it.
func (s *Site) DSN(token string) string {
	q := url.Values{"sslmode": {"verify-full"}, "sslrootcert": {s.path("ca.crt")}}
	return (&url.URL{Scheme: "postgres", User: url.UserPassword("agent", token), Host: "localhost:" + strconv.Itoa(s.PGPort), Path: "orders", RawQuery: q.Encode()}).String()
}

// Close stops everything, in the order in which it matters.
func (s *Site) Close() {
	if s.Gateway != nil {
		s.Gateway.Close()
	}
	if s.Hook != nil {
		s.Hook.Close()
	}
	if s.Billing != nil {
		s.Billing.Close()
	}
	if s.Host != nil {
		_ = s.Host.Close() // it only waits
	}
	if s.node != nil {
		_ = s.node.Close()
	}
	if s.Cluster != nil {
		_ = s.Cluster.Close() // it only waits
	}
	if s.Database != nil {
		_ = s.Database.Close() // it only waits
	}
	for _, d := range []*localserver.Dex{s.Dex, s.Short} {
		if d != nil {
			_ = d.Close() // it only waits
		}
	}
	if s.lock != nil {
		_ = s.lock.Close() // the lock goes with it
	}
}

// write creates a file with its folder.
func write(path, text string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), mode)
}
