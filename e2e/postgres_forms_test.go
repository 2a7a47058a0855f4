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

// TestCursorsPreparedAndCopy: the forms by which clients read much or often.
// Attack: each asks for a masked column in a way that would show or use it.
// Control: the same text straight at the database. Twin: what is not masked is
// the same on both ways.
func TestCursorsPreparedAndCopy(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := token(t, s, demo.Ada)
	ssn, card := secretsOf(t, s)
	for _, c := range []struct{ text, want string }{
		{"begin; declare c cursor for select id, ssn from customers order by id; fetch 1 from c; commit", "BEGIN\nDECLARE CURSOR\n1|***\nCOMMIT\n"},
		{"prepare p (int) as select card from customers where id = $1; execute p (1); deallocate p", "PREPARE\n***\nDEALLOCATE\n"},
		{"copy (select id, card from customers where id = 1) to stdout", "1\t***\n"},
		{"copy customers (id, ssn) to stdout with csv", "1,***\n"},
		{"explain (analyze, verbose, costs off, timing off, summary off, buffers off) select ssn from customers where id = 1", ""},
		{"begin; declare c cursor for select id from customers order by ssn", "BEGIN\nERROR:  public.customers.ssn is masked"},
		{"prepare p as select id from customers where ssn = $1", "ERROR:  public.customers.ssn is masked"},
		{"copy (select id from customers where card like '4%') to stdout", "ERROR:  public.customers.card is masked"},
		{"copy customers from stdin", "ERROR:"},
	} {
		got := psql(t, s, tok, "-c", c.text)
		if !strings.HasPrefix(got, c.want) || strings.Contains(got, ssn) || strings.Contains(got, card) {
			t.Errorf("%s\n got %.300q\nwant %q…", c.text, got, c.want)
		}
	}
	if got := straight(t, s, "-c", "copy customers (id, ssn) to stdout with csv"); !strings.HasPrefix(got, "1,"+ssn+"\n") {
		t.Errorf("control: %.100q", got)
	}
	for _, args := range [][]string{
		{"-c", "\\copy orders to stdout with csv header"},
		{"-c", "copy (select id, status from orders order by id) to stdout"},
		{"-v", "FETCH_COUNT=7", "-c", "select id, status from orders order by id"},
		{"-c", "begin; declare c scroll cursor for select id from orders order by id; move 100 in c; fetch backward 3 from c; rollback"},
		{"-c", "prepare p (int) as select status from orders where id = $1", "-c", "execute p (7)", "-c", "execute p (8)"},
	} {
		if got, want := psql(t, s, tok, args...), straight(t, s, args...); got != want || strings.Contains(got, "ERROR") {
			t.Errorf("%q\n got %.300q\nwant %.300q", args, got, want)
		}
	}
}
