// Package e2e tests the whole product as its users meet it: the real binary, a
// real Envoy, PostgreSQL, Redis, Dex and Keycloak, and the ordinary clients.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/examples/demo"
)

// program is the product, built once per run without the race detector.
var program string

func TestMain(m *testing.M) {
	if config := os.Getenv(authorizerVariable); config != "" {
		fmt.Fprintln(os.Stderr, "authorizer:", authorize(config))
		os.Exit(1)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "e2e")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o711); err != nil { // other users run what is in it
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		flag.Parse()
		if err := startKeycloak(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer closeKeycloak()
		program = filepath.Join(dir, "chaperone")
		build := exec.Command("go", "build", "-trimpath", "-o", program, "chaperone.dev/chaperone/cmd/chaperone")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		defer closeBrowser()
		defer func() {
			if shared.site != nil {
				shared.site.Close()
			}
			forgetCluster()
		}()
		return m.Run()
	}())
}

// shared is the Site on which the tests that break nothing run side by side.
var shared struct {
	once sync.Once
	site *demo.Site
	err  error
}

// extra are policies that the story does not need.
const extra = `
policy: e2e-delete
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "orders"'
rules:
  - name: delete-an-order
    when: 'sql.command == "DELETE" && sql.writes == ["public.orders"] && sql.has_where'
    effect: approve
    approval: {groups: [senior-engineers], count: 1, expires: 2s}
`

const echo = `
policy: e2e-echo
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "billing"'
rules:
  - name: echo
    when: 'http.method == "GET" && http.path in ["/echo", "/events"]'
    effect: allow
`

func site(t *testing.T) *demo.Site {
	t.Helper()
	shared.once.Do(func() {
		if shared.err = prepareCluster(); shared.err != nil {
			return
		}
		shared.site, shared.err = start(context.Background(), demo.Options{
			Config: func(text string) string { return withSuites(withForgery(withCluster(withKeycloak(withMesh(text))))) }})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.site
}

// start starts a Site in a folder with a short name: unix sockets need it.
func start(ctx context.Context, o demo.Options) (*demo.Site, error) {
	dir, err := os.MkdirTemp("", "site")
	if err != nil {
		return nil, err
	}
	if err := writeMesh(dir); err != nil {
		return nil, err
	}
	policies, err := demo.Policies()
	if err != nil {
		return nil, err
	}
	policies["e2e.yaml"], policies["e2e-echo.yaml"], policies["e2e-cluster.yaml"], policies["e2e-hosts.yaml"] = extra, echo, clusterPolicy, onHosts
	policies["e2e-suites.yaml"] = suitesPolicy
	if o.Policies == nil {
		o.Policies = policies
	}
	o.Dir, o.Binary = dir, program
	if o.PostgresVersion == "" {
		o.PostgresVersion = "18"
	}
	s, err := demo.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := prepareHost(s); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// own starts a Site of the test's own, for tests that break something.
func own(t testing.TB, o demo.Options) *demo.Site {
	t.Helper()
	s, err := start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if t.Failed() {
			t.Logf("the end of the gateway's log:\n%s", tail(s.Gateway.Log(), 40))
		}
		os.RemoveAll(s.Dir)
	})
	return s
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// token gets a fresh token of a subagent that acts for who.
func token(t testing.TB, s *demo.Site, who string) string {
	t.Helper()
	tok, err := s.Dex.Token(t.Context(), who)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// person gets a fresh token of somebody at a keyboard.
func person(t *testing.T, s *demo.Site, who string) string {
	t.Helper()
	tok, err := s.Dex.TokenForPerson(t.Context(), who)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// connect opens a pgx connection through the gateway.
func connect(t *testing.T, s *demo.Site, tok string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.DSN(tok))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// direct opens a connection straight to the database, as its owner.
func direct(t *testing.T, s *demo.Site) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.Database.DSN("postgres", s.Database.Password, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// value asks the database itself for one text.
func value(t *testing.T, s *demo.Site, query string) (v string) {
	t.Helper()
	if err := direct(t, s).QueryRow(t.Context(), query).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// eventually waits for something that has no event to wait for.
func eventually(t *testing.T, ask func() error) {
	t.Helper()
	if err := demo.Eventually(t.Context(), 60*time.Second, ask); err != nil {
		t.Fatal(err)
	}
}

// cli runs the chaperone command as who, and returns what it printed.
func cli(t *testing.T, s *demo.Site, tok string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "CHAPERONE_TOKEN="+tok, "CHAPERONE_GATEWAY="+s.URL(), "CHAPERONE_CA="+filepath.Join(s.Dir, "ca.crt"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// request sends an HTTP request through the gateway.
func request(t *testing.T, s *demo.Site, method, path, tok, body string, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if tok != "" {
		req.Header.Set("Authorization", "Bearer "+tok)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	client, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}
