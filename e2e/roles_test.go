package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// TestSessionRoles: with a profile each session has a role of its own, with what
// the token says as settings; doctor says what is missing, and what it prints
// puts it right.
func TestSessionRoles(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{Config: func(text string) string {
		return strings.Replace(text, "credential: {user: chaperone_app,", "settings: {app.tenant: workflow}\n      credential: {profile: chaperone_app, user: chaperone_maker,", 1)
	}})
	owner := func(statements string) {
		t.Helper()
		if err := s.Database.Exec(t.Context(), "orders", statements); err != nil {
			t.Fatalf("%s: %v", statements, err)
		}
	}
	owner("create role chaperone_maker login; do $$ begin execute format('alter role chaperone_maker password %L', (select rolpassword from pg_authid where rolname = 'chaperone_app')); end $$")
	doctor := func() (string, error) {
		out, err := exec.CommandContext(t.Context(), program, "doctor", "--grants", "--config", filepath.Join(s.Dir, "chaperone.yaml"), "orders").Output()
		return string(out), err
	}
	tok := token(t, s, demo.Ada)
	if got := psql(t, s, tok, "-c", "select 1"); got == "1\n" {
		t.Fatal("a session opens without a role to open it with")
	}
	said, err := doctor()
	if err == nil || !strings.Contains(said, "MISSING: chaperone_maker may not make roles") {
		t.Fatalf("%v %s", err, said)
	}
	owner(said)
	if said, err = doctor(); err != nil || !strings.Contains(said, "each session has a role of its own in chaperone_app") {
		t.Errorf("afterwards: %v %s", err, said)
	}
	got := psql(t, s, tok, "-c", "select current_user || ' ' || current_setting('app.tenant') || ' ' || ssn from customers where id = 1", "-c", "select session_user")
	if lines := strings.Split(got, "\n"); len(lines) < 2 || lines[0] != "chaperone_app nightly-report ***" || !strings.HasPrefix(lines[1], "chaperone_") || lines[1] == "chaperone_app" {
		t.Errorf("the session is %s", got)
	}
	if got := psql(t, s, tok, "-c", "set app.tenant = 'other'"); !strings.Contains(got, "ERROR") {
		t.Errorf("the setting is changed: %s", got)
	}
}
