package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/examples/demo"
)

// allowing lets everything through but schema changes, so that what differs is
// the gateway's doing.
const allowing = `
policy: drivers
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "orders"'
rules:
  - name: all
    when: '!sql.ddl'
    effect: allow
    mask: [{column: public.customers.ssn, with: redact}]
`

// python runs a script with the drivers and returns what it prints.
func python(t *testing.T, args []string, env ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(tools(t), "python", "bin", "python3"), args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestDrivers: a program sees the same through the gateway as straight at the
// database, whatever the driver.
func TestDrivers(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{Policies: map[string]string{"drivers.yaml": allowing}})
	if err := s.Database.Exec(t.Context(), "orders", `create table drivers (id int primary key, t text, n numeric, a int[]); grant all on drivers to public`); err != nil {
		t.Fatal(err)
	}
	owner := s.Database.DSN("postgres", s.Database.Password, "orders")
	tok := token(t, s, demo.Ada)
	for _, script := range []string{"psycopg2.py", "psycopg3.py", "asyncpg_.py"} {
		t.Run(script, func(t *testing.T) {
			path := []string{"-P", filepath.Join("testdata", "drivers", script)}
			want, err := python(t, path, "ORDERS="+owner, "ORDERS_URL="+owner)
			if err != nil {
				t.Fatalf("straight: %v\n%s", err, want)
			}
			url, _, _ := strings.Cut(s.DSN(tok), "?")
			got, err := python(t, path, "ORDERS="+s.ConnString(true), "PGPASSWORD="+tok, "ORDERS_URL="+url, "CA="+filepath.Join(s.Dir, "ca.crt"))
			if err != nil || got != want || !strings.Contains(want, "\n") {
				t.Errorf("%v\n got %s\nwant %s", err, got, want)
			}
		})
	}
	t.Run("negotiation", func(t *testing.T) {
		ask := `import os, sys, psycopg
with psycopg.connect(os.environ["ORDERS"] + " " + sys.argv[1]) as c:
    print(c.execute("select ssn from customers where id = 1").fetchone(), c.pgconn.ssl_in_use)
`
		for option, want := range map[string]string{
			"sslnegotiation=direct":                 "('***',) True",
			"sslnegotiation=direct sslmode=disable": "weak sslmode",
			"gssencmode=disable":                    "('***',) True",
			"channel_binding=require":               "channel binding required",
			"require_auth=scram-sha-256":            "scram",
		} {
			if got, _ := python(t, []string{"-c", ask, option}, "ORDERS="+s.ConnString(true), "PGPASSWORD="+tok); !strings.Contains(got, want) {
				t.Errorf("%s: got %q, want %q", option, got, want)
			}
		}
	})
}
