package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// TestDoctor runs the page on pointing chaperone at a database of one's own:
// with a role that may read too much no session opens, doctor says why, and
// after what it prints was run sessions open and still cannot see.
func TestDoctor(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	if err := s.Database.Exec(t.Context(), "orders", "grant select on customers to chaperone_app"); err != nil {
		t.Fatal(err)
	}
	tok, dir := token(t, s, demo.Ada), t.TempDir()
	if got := psql(t, s, tok, "-c", "select 1"); !strings.Contains(got, "chaperone doctor --grants") {
		t.Fatalf("control: %s", got)
	}
	here := strings.NewReplacer("--config chaperone.yaml", "--config "+filepath.Join(s.Dir, "chaperone.yaml"),
		"chaperone doctor", program+" doctor", `psql -f walls.sql "dbname=orders user=postgres"`, `psql -X -v ON_ERROR_STOP=1 -f walls.sql "$OWNER"`)
	ran := 0
	for _, line := range shown(t, "../docs/operating.md") {
		doctor := strings.HasPrefix(line, "chaperone doctor ")
		if !doctor && !strings.HasPrefix(line, "psql ") {
			continue
		}
		ran++
		cmd := exec.CommandContext(t.Context(), "sh", "-c", here.Replace(line))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "OWNER="+s.Database.DSN("postgres", s.Database.Password, "orders"), "PATH="+s.Database.Bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if doctor != (errors.As(err, &exit) && exit.ExitCode() == 1) || !doctor && err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	if ran != 3 {
		t.Fatalf("%d commands were run", ran)
	}
	walls, err := os.ReadFile(filepath.Join(dir, "walls.sql"))
	if err != nil || !strings.Contains(string(walls), "MISSING: the role may SELECT public.customers.ssn") || !strings.Contains(string(walls), "as chaperone_app, by password") {
		t.Errorf("%v %s", err, walls)
	}
	out, err := exec.CommandContext(t.Context(), program, "doctor", "-o", "json", "--grants", "--config", filepath.Join(s.Dir, "chaperone.yaml")).Output()
	var found []struct {
		Walled     bool
		Works      bool // of a host
		Masked     []string
		Statements []string
	}
	if err != nil || json.Unmarshal(out, &found) != nil || len(found) != 2 || !found[1].Works || !found[0].Walled || len(found[0].Masked) == 0 || len(found[0].Statements) != 0 {
		t.Errorf("after: %v %s", err, out)
	}
	eventually(t, func() error { // what the gateway knows of the catalog may be two seconds old
		if got := psql(t, s, tok, "-c", "select ssn from customers where id = 1"); got != "***\n" {
			return errors.New("after: " + got)
		}
		return nil
	})
	if got := straight(t, s, "-c", "set role chaperone_app; select ssn from customers"); !strings.Contains(got, "permission denied") {
		t.Errorf("the database's own wall: %s", got)
	}
	// What is printed for a database and for a host cannot be one file.
	for _, arg := range []string{"nothing", "--grants"} {
		err = exec.CommandContext(t.Context(), program, "doctor", "--config", filepath.Join(s.Dir, "chaperone.yaml"), arg).Run()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%s: %v", arg, err)
		}
	}
}

// TestDoctorKubernetes: doctor at a real API server, for the account of the page
// for operators, for one that may do everything, one that lacks something, and
// one whose credential is wrong. What it prints puts right what it finds.
func TestDoctorKubernetes(t *testing.T) {
	t.Parallel()
	s, direct, _ := kubernetes(t)
	whole, err := os.ReadFile(filepath.Join(s.Dir, "chaperone.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	doctor := func(old, new string, args ...string) (string, int) {
		t.Helper()
		f, err := os.CreateTemp(s.Dir, "doctor*.yaml") // relative paths hold
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(f.Name()) })
		if _, err := f.WriteString(strings.Replace(string(whole), old, new, 1)); err != nil || old != "" && !strings.Contains(string(whole), old) {
			t.Fatal(err, old)
		}
		out, err := exec.CommandContext(t.Context(), program, append([]string{"doctor", "--config", f.Name(), "cluster"}, args...)...).CombinedOutput()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return string(out), exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return string(out), 0
	}
	says := func(name, out string, code, want int, parts ...string) {
		t.Helper()
		if code != want {
			t.Errorf("%s: exit status %d", name, code)
		}
		for _, part := range parts {
			if !strings.Contains(out, part) {
				t.Errorf("%s: no %q in\n%s", name, part, out)
			}
		}
	}
	out, code := doctor("", "")
	says("the account of the page", out, code, 0, "Kubernetes v1.", "as chaperone-gateway", "narrow:", "anonymous access is on")
	out, code = doctor("", "", "-o", "json", "--grants")
	var found []struct {
		Resource, Account, Manifest string
		Narrow, Anonymous           bool
		Excess, Missing             []string
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil || code != 0 || len(found) != 1 || !found[0].Narrow || !found[0].Anonymous || found[0].Account != "chaperone-gateway" ||
		!strings.Contains(found[0].Manifest, `resourceNames: ["chaperone:callers", "chaperone:platform"]`) || len(found[0].Excess)+len(found[0].Missing) != 0 {
		t.Errorf("JSON: %v %d\n%s", err, code, out)
	}
	secrets := map[string]string{"admin": prepared.cluster.Admin, "wrong": "no-token-at-all"}
	for name, secret := range secrets {
		if err := os.WriteFile(filepath.Join(prepared.dir, name+"-token"), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, code = doctor("/gateway-token", "/admin-token")
	says("an administrator", out, code, 1, "EXCESS: it is in the group system:masters", "it may do everything in the namespace default", "EXCESS: it may impersonate any group", "as admin")
	out, code = doctor("/gateway-token", "/wrong-token")
	says("a wrong credential", out, code, 1, "NOT EXAMINED: the API server does not take the credential")
	out, code = doctor("groups: [platform]", "groups: [platform, night-shift]", "--grants")
	says("a group more", out, code, 1, "MISSING: it may not impersonate the group chaperone:night-shift")
	direct.must(t, out, "apply", "-f", "-")
	eventually(t, func() error { // RBAC is a cache
		if out, code = doctor("groups: [platform]", "groups: [platform, night-shift]"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
}
