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
		Masked     []string
		Statements []string
	}
	if err != nil || json.Unmarshal(out, &found) != nil || len(found) != 1 || !found[0].Walled || len(found[0].Masked) == 0 || len(found[0].Statements) != 0 {
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
	err = exec.CommandContext(t.Context(), program, "doctor", "--config", filepath.Join(s.Dir, "chaperone.yaml"), "nothing").Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("an unknown resource: %v", err)
	}
}
