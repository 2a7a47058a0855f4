package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// psql runs the real client through the gateway and returns what it shows.
func psql(t *testing.T, s *demo.Site, tok string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(s.Database.Bin, "psql"), append([]string{"-X", "-At", s.ConnString(false)}, args...)...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+tok)
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// straight runs psql at the database itself, as its owner.
func straight(t *testing.T, s *demo.Site, args ...string) string {
	t.Helper()
	dsn := s.Database.DSN("postgres", s.Database.Password, "orders")
	out, _ := exec.CommandContext(t.Context(), filepath.Join(s.Database.Bin, "psql"), append([]string{"-X", "-At", dsn}, args...)...).CombinedOutput()
	return string(out)
}

// TestSeveralStatements: psql sends -c as one message. Attack: a denied
// statement behind, before and between allowed ones. Control: the same message
// straight at the database. Twin: allowed ones together.
func TestSeveralStatements(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := token(t, s, demo.Ada)
	ssn, _ := secretsOf(t, s)
	for _, c := range []struct{ text, want string }{
		{"select 1; drop table orders; select 2", "1\nERROR:  agents do not change the schema"},
		{"drop table orders; select 2", "ERROR:  agents do not change the schema"},
		{"begin; select 1; commit; drop table orders", "BEGIN\n1\nCOMMIT\nERROR:  agents do not change the schema"},
		{"select 3; select ssn from customers where id = 1; select id from customers where ssn like '1%'", "3\n***\nERROR:  public.customers.ssn is masked"},
		{"select 4; select count(*) from orders; begin; select 5; rollback; select 6", "4\n120\nBEGIN\n5\nROLLBACK\n6\n"},
	} {
		if got := psql(t, s, tok, "-c", c.text); !strings.HasPrefix(got, c.want) || strings.Contains(got, ssn) {
			t.Errorf("%s\n got %q\nwant %q…", c.text, got, c.want)
		}
	}
	if got := straight(t, s, "-c", "select 3; begin; drop table orders; rollback; select ssn from customers where id = 1"); got != "3\nBEGIN\nDROP TABLE\nROLLBACK\n"+ssn+"\n" {
		t.Errorf("control: %q", got)
	}
}
