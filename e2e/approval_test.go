package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/examples/demo"
)

var requestID = regexp.MustCompile(`req_[a-z0-9]+`)

// hold runs a statement that is held, and returns its request id and its end.
func hold(t *testing.T, s *demo.Site, tok, statement string, args ...any) (id string, done <-chan error, conn *pgx.Conn) {
	t.Helper()
	config, err := pgx.ParseConfig(s.DSN(tok))
	if err != nil {
		t.Fatal(err)
	}
	notices := make(chan string, 8)
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if id := requestID.FindString(n.Message); id != "" {
			select {
			case notices <- id:
			default: // a reminder nobody waits for
			}
		}
	}
	if conn, err = pgx.ConnectConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	ended := make(chan error, 1)
	go func() {
		tag, err := conn.Exec(context.Background(), statement, args...)
		if err == nil && tag.RowsAffected() != 1 {
			err = errors.New(tag.String())
		}
		ended <- err
	}()
	select {
	case id = <-notices:
		return id, ended, conn
	case err := <-ended:
		t.Fatalf("%s was not held: %v", statement, err)
		return "", nil, nil
	}
}

func status(t *testing.T, s *demo.Site, order string) string {
	t.Helper()
	return value(t, s, "select status from orders where id = "+order)
}

// TestHeldStatementRunsOnceAsGranted: with bound values, which the grant covers.
func TestHeldStatementRunsOnceAsGranted(t *testing.T) {
	t.Parallel()
	s := site(t)
	grace := person(t, s, demo.Grace)
	id, done, conn := hold(t, s, token(t, s, demo.Ada), "update orders set status = $1 where id = $2", "granted", 21)
	card, err := cli(t, s, grace, "approvals", "show", id)
	if err != nil || !strings.Contains(card, "granted") || !strings.Contains(card, "$2:") {
		t.Errorf("the card lacks the bound values: %v\n%s", err, card)
	}
	if got := status(t, s, "21"); got == "granted" {
		t.Fatal("it ran before anybody granted it")
	}
	if out, err := cli(t, s, grace, "approvals", "approve", id); err != nil {
		t.Fatalf("approve: %v\n%s", err, out)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := status(t, s, "21"); got != "granted" {
		t.Errorf("the order is %q", got)
	}
	if out, err := cli(t, s, grace, "approvals", "approve", id); err == nil {
		t.Errorf("a consumed approval was granted again: %s", out)
	}
	if got, err := read(t.Context(), conn, "select count(*) from orders"); got != "120|" {
		t.Errorf("the session goes on with %q %v", got, err)
	}
}

// TestOnlyAReviewerGrants: attacks on the answer, each with the same held
// statement; the twin is TestHeldStatementRunsOnceAsGranted.
func TestOnlyAReviewerGrants(t *testing.T) {
	t.Parallel()
	s := site(t)
	id, done, _ := hold(t, s, token(t, s, demo.Rhea), "update orders set status = 'stolen' where id = 22")
	for name, tok := range map[string]string{
		"the subagent itself":                     token(t, s, demo.Rhea),
		"a subagent of a senior engineer":         token(t, s, demo.Grace),
		"the user it acts for, a senior engineer": person(t, s, demo.Rhea),
		"a plain user":                            person(t, s, demo.Tom),
		"an operator":                             person(t, s, demo.Alan),
		"an auditor who is no reviewer":           person(t, s, demo.Sofia),
		"nobody":                                  "none",
	} {
		if out, err := cli(t, s, tok, "approvals", "approve", id); err == nil {
			t.Errorf("%s granted it: %s", name, out)
		}
	}
	if out, err := cli(t, s, person(t, s, demo.Grace), "approvals", "refuse", id); err != nil {
		t.Fatalf("refuse: %v\n%s", err, out)
	}
	var refused *pgconn.PgError
	if err := <-done; !errors.As(err, &refused) || !strings.Contains(refused.Detail, "approval-refused") {
		t.Errorf("refused: %v", err)
	}
	if got := status(t, s, "22"); got == "stolen" {
		t.Error("it ran")
	}
}

// TestHeldClientIsReminded: at once, and again every 15 seconds.
func TestHeldClientIsReminded(t *testing.T) {
	t.Parallel()
	s := site(t)
	config, err := pgx.ParseConfig(s.DSN(token(t, s, demo.Ada)))
	if err != nil {
		t.Fatal(err)
	}
	type notice struct {
		at time.Time
		id string
	}
	notices := make(chan notice, 8)
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		notices <- notice{time.Now(), requestID.FindString(n.Message)}
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	began, ended := time.Now(), make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "update orders set status = 'reminded' where id = 23")
		ended <- err
	}()
	first, second, third := <-notices, <-notices, <-notices
	if first.id == "" || second.id != first.id || third.id != first.id {
		t.Errorf("the notices name %q, %q and %q", first.id, second.id, third.id)
	}
	if at := first.at.Sub(began); at > 10*time.Second {
		t.Errorf("the first came after %s", at)
	}
	for _, gap := range []time.Duration{second.at.Sub(first.at), third.at.Sub(second.at)} {
		if gap < 13*time.Second || gap > 25*time.Second { // a busy machine brings one late, and then the next early
			t.Errorf("%s lay between two of them", gap)
		}
	}
	if out, err := cli(t, s, person(t, s, demo.Grace), "approvals", "refuse", first.id); err != nil {
		t.Fatalf("refuse: %v\n%s", err, out)
	}
	if err := <-ended; err == nil {
		t.Error("a refused statement ran")
	}
}

// TestApprovalsExpire: an answer after the expiry runs nothing.
func TestApprovalsExpire(t *testing.T) {
	t.Parallel()
	s := site(t)
	id, done, _ := hold(t, s, token(t, s, demo.Ada), "delete from orders where id = -1")
	var refused *pgconn.PgError
	if err := <-done; !errors.As(err, &refused) || !strings.Contains(refused.Detail, "approval-expired") {
		t.Errorf("expired: %v", err)
	}
	if out, err := cli(t, s, person(t, s, demo.Grace), "approvals", "approve", id); err == nil || !strings.Contains(out, "expired") {
		t.Errorf("an expired approval: %v %s", err, out)
	}
}

// TestLeavingAbandons: a closed socket, and a later approval runs nothing.
func TestLeavingAbandons(t *testing.T) {
	t.Parallel()
	s := site(t)
	id, _, conn := hold(t, s, token(t, s, demo.Ada), "update orders set status = 'ghost' where id = 23")
	if err := conn.PgConn().Conn().Close(); err != nil {
		t.Fatal(err)
	}
	grace := person(t, s, demo.Grace)
	eventually(t, func() error {
		out, err := cli(t, s, grace, "approvals", "show", id)
		if err == nil && !strings.Contains(out, "abandoned") {
			err = errors.New(out)
		}
		return err
	})
	if out, err := cli(t, s, grace, "approvals", "approve", id); err == nil {
		t.Errorf("an abandoned approval was granted: %s", out)
	}
	if got := status(t, s, "23"); got == "ghost" {
		t.Error("it ran")
	}
}

// TestHTTPAsync: 202 with the id at once, one pass after the grant, bound to
// the body and to the caller.
func TestHTTPAsync(t *testing.T) {
	t.Parallel()
	s := site(t)
	ada := token(t, s, demo.Ada)
	post := func(tok, body string) (int, string) {
		res := request(t, s, "POST", "/http/billing/refunds", tok, body, "Prefer", "respond-async", "Content-Type", "application/json")
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	code, body := post(ada, `{"order": 31}`)
	id := requestID.FindString(body)
	if code != http.StatusAccepted || id == "" {
		t.Fatalf("answered %d %s", code, body)
	}
	if out, err := cli(t, s, person(t, s, demo.Grace), "approvals", "approve", id); err != nil {
		t.Fatalf("approve: %v\n%s", err, out)
	}
	if code, body := post(ada, `{"order": 32}`); code != http.StatusAccepted {
		t.Errorf("another body: %d %s", code, body)
	}
	if code, body := post(token(t, s, demo.Rhea), `{"order": 31}`); code != http.StatusAccepted {
		t.Errorf("another caller: %d %s", code, body)
	}
	if code, body := post(ada, `{"order": 31}`); code != http.StatusOK || !strings.Contains(body, "POST /refunds") {
		t.Errorf("the granted request: %d %s", code, body)
	}
	if code, body := post(ada, `{"order": 31}`); code != http.StatusAccepted {
		t.Errorf("once more: %d %s", code, body)
	}
	if code, _ := post(ada, strings.Repeat("x", 1<<20+1)); code != http.StatusRequestEntityTooLarge {
		t.Errorf("a body above 1 MiB: %d", code)
	}
}

// TestBodyTooLargeToJudge: 413 over HTTP/1.1 and HTTP/2, whether the length was
// announced or not, and nothing is held; a body of the largest size is held like
// any other.
func TestBodyTooLargeToJudge(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := token(t, s, demo.Ada)
	for proto, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		client, err := s.Client()
		if err != nil {
			t.Fatal(err)
		}
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
		for size, want := range map[int]int{1<<20 + 1: http.StatusRequestEntityTooLarge, 1<<20 + 100: http.StatusRequestEntityTooLarge,
			2 << 20: http.StatusRequestEntityTooLarge, 1 << 20: http.StatusAccepted} {
			for _, announced := range []bool{true, false} {
				var body io.Reader = strings.NewReader(`"` + strings.Repeat("x", size-2) + `"`)
				if !announced {
					body = io.MultiReader(body)
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/http/billing/refunds", body)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+tok)
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Prefer", "respond-async")
				res, err := client.Do(req)
				if err != nil {
					t.Fatalf("%s, %d bytes, announced %v: %v", proto, size, announced, err)
				}
				text, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != want || res.Proto != proto || !strings.Contains(string(text), "request_id") {
					t.Errorf("%s, %d bytes, announced %v: %s %s\n%s", proto, size, announced, res.Proto, res.Status, text)
				}
			}
		}
	}
}
