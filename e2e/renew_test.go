package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/examples/demo"
)

// renewed is how many sessions a token renews, wherever its holder claims to be.
func renewed(t *testing.T, s *demo.Site, token string) (status, sessions int) {
	t.Helper()
	res := request(t, s, "POST", "/api/v1/sessions/renew", token, "", "X-Chaperone-Client", "192.0.2.9")
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out struct{ Renewed int }
	if err := json.Unmarshal(body, &out); err != nil {
		t.Fatalf("%s %s", res.Status, body)
	}
	return res.StatusCode, out.Renewed
}

// short is a token of a few seconds, handed on as narrowed.
func short(t *testing.T, s *demo.Site, subject, actor, more string, seconds int) string {
	return exchanged(t, s, subject, actor, "audience", "orders", "authorization_details",
		fmt.Sprintf(`[{"type":"chaperone","tables":["public.orders"],"expires_in":%d%s}]`, seconds, more))
}

// TestRenewal: a statement outlives the token that its session was opened with
// when a fresh one comes in time, and nobody else's token is that. The control
// is a session that nobody renews; a fresh token of the same chain is the twin.
func TestRenewal(t *testing.T) {
	t.Parallel()
	s := site(t)
	tom, reporter := token(t, s, demo.Tom), token(t, s, demo.Reporter)
	// An address of its own would do; so does a chain that no other test has.
	subject := short(t, s, token(t, s, demo.Ada), "", `,"rows":77`, 60)
	first := short(t, s, subject, reporter, "", 6)
	conn, err := pgx.Connect(t.Context(), s.DSN(first))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	control, err := pgx.Connect(t.Context(), s.DSN(short(t, s, subject, reporter, `,"rows":5`, 4)))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close(t.Context())
	statement, alone := make(chan error, 1), make(chan error, 1)
	for conn, done := range map[*pgx.Conn]chan error{conn: statement, control: alone} {
		go func() {
			_, err := conn.Exec(t.Context(), "select pg_sleep(8)")
			done <- err
		}()
	}
	revoked := short(t, s, subject, reporter, "", 50)
	if status, _ := oauth(t, s, "/oauth/revoke", url.Values{"token": {revoked}}); status != http.StatusOK {
		t.Fatalf("revoke: %d", status)
	}
	for name, attack := range map[string]struct {
		token  string
		status int
	}{
		"another principal's":    {tom, http.StatusOK},
		"another chain's":        {short(t, s, subject, tom, "", 50), http.StatusOK},
		"the subject's own":      {subject, http.StatusOK},
		"one narrowed more":      {short(t, s, subject, reporter, `,"rows":3`, 50), http.StatusOK},
		"the session's own":      {first, http.StatusOK},
		"one that was revoked":   {revoked, http.StatusUnauthorized},
		"one that nobody signed": {"x.y.z", http.StatusUnauthorized},
	} {
		if status, n := renewed(t, s, attack.token); status != attack.status || n != 0 {
			t.Errorf("%s: %d, %d sessions", name, status, n)
		}
	}
	if status, n := renewed(t, s, short(t, s, subject, reporter, "", 50)); status != http.StatusOK || n != 1 {
		t.Errorf("a fresh token: %d, %d sessions", status, n)
	}
	if err := <-alone; err == nil {
		t.Error("the control: a session that nobody renewed goes on")
	}
	if err := <-statement; err != nil {
		t.Errorf("the statement of the renewed session: %v", err)
	}
	if got, err := read(t.Context(), conn, "select count(*) from orders"); err != nil || got != "120|" {
		t.Errorf("the renewed session: %q %v", got, err)
	}
	// Taking back the first token, expired by now, ends it still.
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--token", tokenID(first)); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	eventually(t, func() error {
		if _, err := read(t.Context(), conn, "select 1"); err == nil {
			return fmt.Errorf("it goes on")
		}
		return nil
	})
}

// TestExecRenews: a command runs longer than any of its tokens, in one session.
func TestExecRenews(t *testing.T) {
	t.Parallel()
	s := site(t)
	begun := time.Now()
	out, err := client(t, s, t.TempDir(), []string{"CHAPERONE_TOKEN=" + token(t, s, demo.Ada)}, "exec", "orders", "--rows", "78", "--expires-in", "9s", "--",
		"psql", "sslmode=disable", "-Atc", "select pg_sleep(11)", "-c", "select count(*) from orders")
	if err != nil || out != "\n120\n" {
		t.Errorf("after %s: %q %v", time.Since(begun), out, err)
	}
	if out, err := client(t, s, t.TempDir(), []string{"CHAPERONE_TOKEN=" + token(t, s, demo.Ada)}, "token", "--renew", "--resource", "orders", "--rows", "79"); err != nil || len(out) < 100 {
		t.Errorf("token --renew: %v", err)
	}
}
