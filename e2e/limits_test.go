package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/access"
)

// limited are rules whose limits hold beyond one request.
const limited = `
policy: limited-orders
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "orders"'
rules:
  - name: read
    when: 'sql.read_only && sql.tables == ["public.orders"]'
    effect: allow
    limits: {per_hour: {rows_read: 30}}
  - name: ask
    when: 'sql.read_only && size(sql.tables) == 0'
    effect: allow
    limits: {per_session: {statements: 3}}
  - name: fix
    when: 'sql.command == "UPDATE" && sql.has_where'
    effect: allow
    limits: {per_hour: {rows_changed: 4}}
  - name: remove
    when: 'sql.command == "DELETE" && sql.has_where'
    effect: allow
    limits: {rows_changed: 10}
`

const limitedHTTP = `
policy: limited-billing
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "billing"'
rules:
  - name: few
    when: 'http.path == "/customers/1"'
    effect: allow
    limits: {per_hour: {statements: 5}}
  - name: short
    when: 'http.path == "/customers/2"'
    effect: allow
    limits: {per_hour: {bytes: 400}}
  - name: free
    when: 'http.path == "/customers/3"'
    effect: allow
`

// TestLimits: what a principal uses adds up over its sessions, and what would
// go over a limit is refused or undone. The control is the database itself.
func TestLimits(t *testing.T) {
	t.Parallel()
	if left := time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)); left < time.Minute {
		<-time.After(left) // what is counted by the hour must not begin anew under way
	}
	s := own(t, demo.Options{Policies: map[string]string{"orders.yaml": limited, "billing.yaml": limitedHTTP}})
	straight(t, s, "-c", `create table parents (id int primary key);
create table children (id int primary key, parent int references parents on delete cascade);
insert into parents values (1), (2), (3); insert into children select i, 1 from generate_series(1, 500) i;
insert into children select 500 + i, 2 from generate_series(1, 9) i; insert into children select 600 + i, 3 from generate_series(1, 10) i;
grant select, delete on parents, children to chaperone_app`)
	tok := token(t, s, demo.Ada)
	t.Run("rows read", func(t *testing.T) { rowsRead(t, s, tok) })
	t.Run("rows changed", func(t *testing.T) { rowsChanged(t, s, tok) })
	t.Run("rows changed by a cascade", func(t *testing.T) { rowsCascaded(t, s, tok) })
	t.Run("statements of a session", func(t *testing.T) { sessionStatements(t, s, tok) })
	t.Run("requests at once", func(t *testing.T) { requestsAtOnce(t, s, tok) })
	t.Run("bytes", func(t *testing.T) { bytesRead(t, s, tok) })
}

func rowsRead(t *testing.T, s *demo.Site, tok string) {
	if got := straight(t, s, "-c", "select count(*) from (select id from orders limit 40) o"); strings.TrimSpace(got) != "40" {
		t.Fatalf("the control: %s", got)
	}
	if got := psql(t, s, tok, "-c", "select id from orders limit 25"); strings.Count(got, "\n") != 25 {
		t.Fatalf("within the limit: %s", got)
	}
	got := psql(t, s, tok, "-c", "select id from orders limit 25")
	if !strings.Contains(got, "limit per_hour.rows_read of 30 an hour is used up") || strings.Count(got, "\n") > 10 {
		t.Errorf("over the limit: %s", got)
	}
	got = psql(t, s, tok, "-c", "select id from orders limit 1")
	if !strings.Contains(got, "free again at") || !strings.Contains(got, "rule limited-orders/read; reason limit-exceeded") {
		t.Errorf("in another session: %s", got)
	}
	if got := psql(t, s, tok, "-c", `\copy (select id from orders) to stdout`); !strings.Contains(got, "per_hour.rows_read") {
		t.Errorf("by COPY: %s", got)
	}
	if got := psql(t, s, tok, "-c", "select 1"); got != "1\n" {
		t.Errorf("another rule: %s", got)
	}
}

func rowsChanged(t *testing.T, s *demo.Site, tok string) {
	const marked = "select count(*)::text from orders where status = 'limits'"
	for _, c := range []struct{ ids, want, count string }{
		{"1, 2, 3", "UPDATE 3\n", "3"},
		{"4, 5", "limit per_hour.rows_changed of 4 an hour is used up", "3"}, // undone
		{"6", "UPDATE 1\n", "4"},
		{"7", "limit per_hour.rows_changed of 4 an hour is used up", "4"},
	} {
		got := psql(t, s, tok, "-c", "update orders set status = 'limits' where id in ("+c.ids+")")
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s", c.ids, got)
		}
		if n := value(t, s, marked); n != c.count {
			t.Errorf("%s: %s rows are changed, want %s", c.ids, n, c.count)
		}
	}
}

// A DELETE of one row takes 500 with it: its tag says 1.
func rowsCascaded(t *testing.T, s *demo.Site, tok string) {
	if got := straight(t, s, "-c", "begin; delete from parents where id = 1; select count(*) from children; rollback"); !strings.Contains(got, "DELETE 1\n19\n") {
		t.Fatalf("the control: %s", got)
	}
	for _, c := range []struct{ id, want, left string }{
		{"1", "the statement changes 501 rows with those that follow from it, more than 10", "3 519"},
		{"3", "the statement changes 11 rows with those that follow from it, more than 10", "3 519"},
		{"2", "DELETE 1\n", "2 510"}, // ten rows in all
	} {
		got := psql(t, s, tok, "-c", "delete from parents where id = "+c.id)
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s", c.id, got)
		}
		if n := value(t, s, "select concat((select count(*) from parents), ' ', (select count(*) from children))"); n != c.left {
			t.Errorf("%s: %s are left, want %s", c.id, n, c.left)
		}
	}
}

func sessionStatements(t *testing.T, s *demo.Site, tok string) {
	conn := connect(t, s, tok)
	ask := func(conn *pgx.Conn) error {
		_, err := conn.Exec(t.Context(), "select 1", pgx.QueryExecModeSimpleProtocol)
		return err
	}
	for range 3 {
		if err := ask(conn); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(conn); err == nil || !strings.Contains(err.Error(), "limit per_session.statements of 3 a session is used up") {
		t.Errorf("the fourth: %v", err)
	}
	if err := ask(connect(t, s, tok)); err != nil {
		t.Errorf("in a new session: %v", err)
	}
}

// requestsAtOnce: of many requests at once, exactly as many pass as may.
func requestsAtOnce(t *testing.T, s *demo.Site, tok string) {
	var mu sync.Mutex
	passed := 0
	var clients sync.WaitGroup
	for range 12 {
		clients.Go(func() {
			res := request(t, s, http.MethodGet, "/http/billing/customers/1", tok, "")
			body, err := io.ReadAll(res.Body)
			mu.Lock()
			defer mu.Unlock()
			if res.StatusCode == http.StatusOK && err == nil {
				passed++
				return
			}
			var d access.Denial
			if json.Unmarshal(body, &d) != nil || res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" ||
				d.Reason != access.LimitExceeded || d.Limit != "per_hour.statements" || d.Frees.Before(time.Now()) || d.Rule != "limited-billing/few" {
				t.Errorf("%d %s %v", res.StatusCode, body, res.Header)
			}
		})
	}
	clients.Wait()
	if passed != 5 {
		t.Errorf("%d passed, 5 may", passed)
	}
	if res := request(t, s, http.MethodGet, "/http/billing/customers/3", tok, ""); res.StatusCode != http.StatusOK {
		t.Errorf("the twin: %d", res.StatusCode)
	}
}

func bytesRead(t *testing.T, s *demo.Site, tok string) {
	if res := request(t, s, http.MethodGet, "/http/billing/customers/2", tok, ""); res.StatusCode != http.StatusOK {
		t.Fatalf("within the limit: %d", res.StatusCode)
	}
	res := request(t, s, http.MethodGet, "/http/billing/customers/2", tok, "")
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode == http.StatusOK || !strings.Contains(string(body), `"limit":"per_hour.bytes"`) || strings.Contains(string(body), "ssn") {
		t.Errorf("over the limit: %d %s %v", res.StatusCode, body, err)
	}
}
