package e2e

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// bySize lets small reads pass and asks about large ones.
const bySize = `
policy: orders-by-size
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "orders"'
rules:
  - name: small
    when: 'sql.read_only && sql.estimated_rows < 1000'
    effect: allow
    mask: [{column: public.customers.ssn, with: redact}, {column: public.customers.card, with: redact}]
  - name: large
    when: 'sql.read_only && sql.estimated_rows >= 1000 && sql.estimated_bytes < 1000000'
    effect: approve
    approval: {groups: [senior-engineers], count: 1, expires: 5m}
    mask: [{column: public.customers.ssn, with: redact}, {column: public.customers.card, with: redact}]
`

// TestSizeDecides: psql through Envoy. A small read passes, a large one waits
// for a reviewer who sees how large, one that is too large is denied, and so is
// what has no estimate. The control is the same read at the database.
func TestSizeDecides(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{Policies: map[string]string{"orders.yaml": bySize}})
	tok := token(t, s, demo.Ada)
	if err := s.Database.Exec(t.Context(), "orders", `create table readings (id int primary key, note text not null);
		grant select on readings to chaperone_app;
		insert into readings select i, 'n' from generate_series(1, 5000) i; analyze readings`); err != nil {
		t.Fatal(err)
	}
	if got := straight(t, s, "-c", "select count(*) from (select id from readings) r"); got != "5000\n" {
		t.Fatalf("the control: %s", got)
	}
	if got := psql(t, s, tok, "-c", "select id from readings where id = 7"); got != "7\n" {
		t.Errorf("a small read: %s", got)
	}
	if got := psql(t, s, tok, "-c", "select id from readings limit 999"); strings.Count(got, "\n") != 999 {
		t.Errorf("just below: %s", got)
	}
	if got := psql(t, s, tok, "-c", "select ssn from customers where id = 1"); got != "***\n" {
		t.Errorf("a masked read: %s", got)
	}
	if got := psql(t, s, tok, "-c", "select r.id, repeat('x', 100) || r.note, q.id from readings r, readings q"); !strings.Contains(got, "no rule allows SELECT") {
		t.Errorf("too large: %.300s", got)
	}
	if got := psql(t, s, tok, "-c", "copy readings to stdout"); !strings.Contains(got, "the database did not estimate its size") {
		t.Errorf("without an estimate: %.300s", got)
	}
	heldBySize(t, s, tok)
}

func heldBySize(t *testing.T, s *demo.Site, tok string) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.Database.Bin, "psql"), "-X", "-At", s.ConnString(false),
		"-c", "select r.id, c.ssn from readings r left join customers c on c.id = r.id")
	cmd.Env = append(os.Environ(), "PGPASSWORD="+tok)
	notices, told := io.Pipe()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, told
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		told.Close()
		ended <- err
	}()
	id := ""
	text := make([]byte, 4096)
	for said := ""; id == ""; id = requestID.FindString(said) {
		n, err := notices.Read(text)
		if said += string(text[:n]); err != nil {
			t.Fatalf("a large read was not held: %s%.300s", said, out.String())
		}
	}
	go io.Copy(io.Discard, notices)
	grace := person(t, s, demo.Grace)
	card, err := cli(t, s, grace, "approvals", "show", id)
	for _, want := range []string{"orders-by-size/large", "5000 rows, ", " bytes", "as forwarded:", "difference:", "public.customers"} {
		if err != nil || !strings.Contains(card, want) {
			t.Errorf("the card lacks %q: %v\n%s", want, err, card)
		}
	}
	if answer, err := cli(t, s, grace, "approvals", "approve", id); err != nil {
		t.Fatalf("approve: %v\n%s", err, answer)
	}
	if err := <-ended; err != nil || strings.Count(out.String(), "\n") != 5000 || !strings.Contains(out.String(), "1|***\n") {
		t.Errorf("granted: %v %.300s", err, out.String())
	}
}
