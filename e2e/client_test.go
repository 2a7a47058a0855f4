package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/directory"
)

// client runs the chaperone command with a cache of the test's own, and returns
// what it wrote to stdout.
func client(t testing.TB, s *demo.Site, cache string, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "CHAPERONE_GATEWAY="+s.URL(), "CHAPERONE_CA="+filepath.Join(s.Dir, "ca.crt"), "XDG_CACHE_HOME="+cache,
		"PATH="+s.Database.Bin+":"+os.Getenv("PATH"), "PGPASSWORD=", "PSQLRC=/dev/null")
	cmd.Env = append(cmd.Env, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return stdout.String(), err
}

// TestTokenCommand: from each source, kept for its owner alone, in each format.
func TestTokenCommand(t *testing.T) {
	t.Parallel()
	s, cache := site(t), t.TempDir()
	ada := token(t, s, demo.Ada)
	actions := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer request-token" || r.URL.Query().Get("audience") != "chaperone" || r.URL.Query().Get("x") != "1" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, `{"value":%q}`, ada)
	}))
	defer actions.Close()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(ada+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(env []string, args ...string) string {
		t.Helper()
		out, err := client(t, s, cache, env, append([]string{"token"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(out, "\n")
	}
	mine := []string{"CHAPERONE_TOKEN=" + ada}
	for name, got := range map[string]string{
		"environment": run(mine),
		"file":        run(nil, "--token-file", file),
		"actions":     run([]string{"ACTIONS_ID_TOKEN_REQUEST_URL=" + actions.URL + "/?x=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=request-token"}),
	} {
		if got != ada {
			t.Errorf("%s: %d characters", name, len(got))
		}
	}
	narrow := run(mine, "--resource", "orders", "--read-only")
	if narrow == ada || run(mine, "--resource", "orders", "--read-only") != narrow {
		t.Error("the exchanged token is not kept")
	}
	if run(mine, "--resource", "orders") == narrow || run(mine, "--resource", "orders", "--read-only", "--refresh") == narrow {
		t.Error("another wish gets the kept token")
	}
	if _, err := read(t.Context(), connect(t, s, narrow), "update orders set status = 'x' where id = 1"); err == nil || !strings.Contains(err.Error(), "reading only") {
		t.Errorf("the exchanged token: %v", err)
	}
	kept := 0
	err := filepath.WalkDir(filepath.Join(cache, "chaperone"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if kept++; info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %o", d.Name(), info.Mode().Perm())
		}
		return nil
	})
	if err != nil || kept < 3 {
		t.Errorf("%d kept, %v", kept, err)
	}
	var credential struct {
		Kind   string
		Status struct{ Token, ExpirationTimestamp string }
	}
	if err := json.Unmarshal([]byte(run(mine, "--format", "exec-credential")), &credential); err != nil || credential.Status.Token != ada || credential.Status.ExpirationTimestamp == "" {
		t.Errorf("%+v %v", credential.Kind, err)
	}
	if run(mine, "--format", "header") != "Authorization: Bearer "+ada || run(mine, "--format", "pgpassword") != "export PGPASSWORD='"+ada+"'" {
		t.Error("header or pgpassword is wrong")
	}
	for name, args := range map[string][]string{"a format": {"--format", "xml"}, "a table": {"--resource", "orders", "--table", "orders"}} {
		var exit *exec.ExitError
		if _, err := client(t, s, cache, mine, append([]string{"token"}, args...)...); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%s that is none: %v", name, err)
		}
	}
	if _, err := client(t, s, cache, mine, "token", "--resource", "nowhere"); err == nil || !strings.Contains(err.Error(), "invalid_target") || !strings.Contains(err.Error(), "req_") {
		t.Errorf("an unknown resource: %v", err)
	}
}

// TestDirectory: one document for one token, nothing without.
func TestDirectory(t *testing.T) {
	t.Parallel()
	s := site(t)
	ask := func(tok string) (int, directory.Document) {
		res := request(t, s, "GET", "/.well-known/chaperone", tok, "")
		body, err := io.ReadAll(res.Body)
		var d directory.Document
		if err == nil {
			err = json.Unmarshal(body, &d)
		}
		if err != nil {
			t.Fatalf("%s %v", body, err)
		}
		return res.StatusCode, d
	}
	ada := token(t, s, demo.Ada)
	status, d := ask(ada)
	if status != http.StatusOK || len(d.Resources) != 3 || d.Gateway != s.URL() || d.TokenEndpoint != s.URL()+"/oauth/token" || d.User != demo.Ada {
		t.Errorf("%d %+v", status, d)
	}
	if _, d := ask(exchanged(t, s, ada, "", "audience", "orders")); len(d.Resources) != 1 || d.Resources[0].Name != "orders" || d.Resources[0].Port != s.PGPort || d.Through[0].Only != "resources orders" {
		t.Errorf("a narrower token: %+v", d)
	}
	if status, d := ask(token(t, s, demo.Tom)); status != http.StatusOK || len(d.Resources) != 0 {
		t.Errorf("nobody in particular: %d %+v", status, d)
	}
	if status, d := ask(""); status != http.StatusUnauthorized || len(d.Resources) != 0 {
		t.Errorf("nobody: %d %+v", status, d)
	}
}

// TestExecAndEnv: psql and curl run unchanged, with what exec and env set.
func TestExecAndEnv(t *testing.T) {
	t.Parallel()
	s, cache := site(t), t.TempDir()
	ada := token(t, s, demo.Ada)
	mine := []string{"CHAPERONE_TOKEN=" + ada}
	run := func(args ...string) (string, error) { return client(t, s, cache, mine, args...) }
	// The psql in use may have been built without TLS, and is on loopback.
	if out, err := run("exec", "orders", "--", "psql", "sslmode=disable", "-Atc", "select count(*) from orders"); err != nil || out != "120\n" {
		t.Errorf("psql: %q %v", out, err)
	}
	if out, err := run("exec", "orders", "--read-only", "--", "psql", "sslmode=disable", "-Atc", "update orders set status = 'x' where id = 1"); err == nil || !strings.Contains(err.Error(), "delegation/hop-1") {
		t.Errorf("a write: %q %v", out, err)
	}
	curl := `curl -sS -H @"$CHAPERONE_HEADER_FILE" "${CHAPERONE_BILLING_URL}customers/1"`
	if out, err := run("exec", "billing", "--", "sh", "-c", curl); err != nil || !strings.Contains(out, `"ssn":"***"`) {
		t.Errorf("curl: %q %v", out, err)
	}
	out, err := run("exec", "orders", "billing", "--", "sh", "-c", `echo "token=$CHAPERONE_TOKEN"; ls -ld "$(dirname "$PGPASSFILE")"; ls -l "$PGPASSFILE"; cat "$CHAPERONE_TOKEN_FILE"; exit 7`)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(out, "token=\n") || !strings.Contains(out, "drwx------") || !strings.Contains(out, "-rw-------") || strings.Contains(out, ada) {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := run("exec", "orders", "--", "sh", "-c", "kill -9 $$"); !errors.As(err, &exit) || exit.ExitCode() != 137 {
		t.Errorf("a killed command: %v", err)
	}
	for _, args := range [][]string{{"exec", "orders"}, {"exec", "--", "true"}, {"exec", "orders", "--"}} {
		if _, err := run(args...); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := run("exec", "nowhere", "--", "true"); err == nil || !strings.Contains(err.Error(), "it reaches: suites, orders, billing") {
		t.Errorf("an unknown resource: %v", err)
	}
	var set map[string]string
	if out, err = run("env", "orders", "-o", "json"); err == nil {
		err = json.Unmarshal([]byte(out), &set)
	}
	if err != nil || set["PGPASSWORD"] == "" || set["PGPASSWORD"] == ada || set["PGDATABASE"] != "orders" || set["PGSSLMODE"] != "verify-full" {
		t.Errorf("%v %d variables", err, len(set))
	}
	script := `eval "$(` + program + ` env orders)" && PGSSLMODE=disable psql -Atc "select count(*) from orders"`
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Env = append(os.Environ(), "CHAPERONE_GATEWAY="+s.URL(), "CHAPERONE_CA="+filepath.Join(s.Dir, "ca.crt"), "XDG_CACHE_HOME="+cache, "CHAPERONE_TOKEN="+ada,
		"PATH="+s.Database.Bin+":"+os.Getenv("PATH"), "PSQLRC=/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "120\n" {
		t.Errorf("env: %v %s", err, out)
	}
	service, err := run("env", "orders", "-o", "pgservice")
	file := filepath.Join(t.TempDir(), "service.conf")
	if err := errors.Join(err, os.WriteFile(file, []byte(service), 0o600)); err != nil {
		t.Fatal(err)
	}
	psql := exec.CommandContext(t.Context(), filepath.Join(s.Database.Bin, "psql"), "-X", "service=orders sslmode=disable", "-Atc", "select count(*) from orders")
	psql.Env = append(os.Environ(), "PGSERVICEFILE="+file)
	if out, err := psql.CombinedOutput(); err != nil || string(out) != "120\n" || !strings.Contains(service, "sslmode=verify-full\nsslrootcert=/") {
		t.Errorf("a service file: %v %s", err, out)
	}
	if _, err := run("env", "billing", "-o", "pgservice"); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("a service file of what is no database: %v", err)
	}
	whole, err := run("env", "orders", "--whole-token")
	if err != nil || !strings.Contains(whole, "export PGPASSWORD='"+ada+"'") {
		t.Errorf("the whole token: %v", err)
	}
	if out, err := run("__complete", "env", ""); err != nil || !strings.Contains(out, "orders\nbilling\n") {
		t.Errorf("completion: %q %v", out, err)
	}
}
