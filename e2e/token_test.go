package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/console"
	"chaperone.dev/chaperone/internal/identity"
)

// oauth posts a form to the token service, through Envoy.
func oauth(t *testing.T, s *demo.Site, path string, form url.Values, headers ...string) (int, map[string]any) {
	t.Helper()
	res := request(t, s, "POST", path, "", form.Encode(), append(headers, "Content-Type", "application/x-www-form-urlencoded")...)
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(body, &out); err != nil {
		t.Fatalf("%s %s: %v", res.Status, body, err)
	}
	return res.StatusCode, out
}

// exchangeForm is an exchange of subject with actor ("" for none); pairs add to it.
func exchangeForm(subject, actor string, pairs ...string) url.Values {
	const jwt = "urn:ietf:params:oauth:token-type:jwt"
	f := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {subject}, "subject_token_type": {jwt}}
	if actor != "" {
		f.Set("actor_token", actor)
		f.Set("actor_token_type", jwt)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Add(pairs[i], pairs[i+1])
	}
	return f
}

// exchanged is the token that an exchange gives.
func exchanged(t *testing.T, s *demo.Site, subject, actor string, pairs ...string) string {
	t.Helper()
	status, out := oauth(t, s, "/oauth/token", exchangeForm(subject, actor, pairs...))
	token, ok := out["access_token"].(string)
	if status != http.StatusOK || !ok {
		t.Fatalf("exchange: %d %v", status, out)
	}
	return token
}

func tokenID(token string) string { return identity.TokenID(access.NewSecret(token)) }

// TestDelegationNarrows: a token handed on does no more than was handed on. The
// control is that the parent does it; the twin that the child does the rest.
func TestDelegationNarrows(t *testing.T) {
	t.Parallel()
	s := site(t)
	ada, reporter := token(t, s, demo.Ada), token(t, s, demo.Reporter)
	child := exchanged(t, s, ada, reporter, "audience", "orders", "authorization_details",
		`[{"type":"chaperone","read_only":true,"tables":["public.orders"],"rows":2}]`)
	conn, parent := connect(t, s, child), connect(t, s, ada)
	if got, err := read(t.Context(), conn, "select count(*) from orders"); err != nil || got != "120|" {
		t.Errorf("the twin: %q %v", got, err)
	}
	for name, c := range map[string]struct{ statement, want string }{
		"another table": {"select count(*) from customers", "delegation/hop-1"},
		"more rows":     {"select id from orders", "more than 2 rows"},
		"a write":       {"update orders set status = 'x' where id = 1", "delegation/hop-1"},
	} {
		_, err := read(t.Context(), conn, c.statement)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || !strings.Contains(refused.Message+refused.Detail, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, statement := range []string{"select count(*) from customers", "select id from orders"} {
		if _, err := read(t.Context(), parent, statement); err != nil {
			t.Errorf("the control, %s: %v", statement, err)
		}
	}
	// Another resource does not even show; wider again is not to be had.
	if res := request(t, s, "GET", "/http/billing/customers/1", child, ""); res.StatusCode != http.StatusNotFound {
		t.Errorf("another resource: %s", res.Status)
	}
	if res := request(t, s, "GET", "/http/billing/customers/1", ada, ""); res.StatusCode != http.StatusOK {
		t.Errorf("the control: %s", res.Status)
	}
	if status, out := oauth(t, s, "/oauth/token", exchangeForm(child, "", "audience", "billing")); status != http.StatusBadRequest || out["error"] != "invalid_target" {
		t.Errorf("wider again: %d %v", status, out)
	}
	grandchild := exchanged(t, s, child, "", "authorization_details", `[{"type":"chaperone","expires_in":60}]`)
	if _, err := read(t.Context(), connect(t, s, grandchild), "select count(*) from customers"); err == nil || !strings.Contains(err.Error(), "hop 1 of 2") {
		t.Errorf("the grandchild: %v", err)
	}
	nobody := exchangeForm(token(t, s, demo.Tom), reporter, "audience", "orders")
	if status, out := oauth(t, s, "/oauth/token", nobody); status != http.StatusBadRequest || out["error"] != "invalid_target" || !strings.HasPrefix(out["request_id"].(string), "req_") {
		t.Errorf("somebody without rights: %d %v", status, out)
	}
}

// TestDelegationOverHTTP: methods and paths.
func TestDelegationOverHTTP(t *testing.T) {
	t.Parallel()
	s := site(t)
	child := exchanged(t, s, token(t, s, demo.Ada), token(t, s, demo.Reporter), "audience", "billing", "authorization_details",
		`[{"type":"chaperone","methods":["GET"],"paths":["/customers/1"]}]`)
	for path, want := range map[string]int{"/customers/1": 200, "/customers/2": 403, "/customers/10": 403, "/customers/1/../2": 403} {
		res := request(t, s, "GET", "/http/billing"+path, child, "")
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != want || want == 403 && !strings.Contains(string(body), "delegation/hop-1") {
			t.Errorf("%s: %s %s", path, res.Status, body)
		}
	}
	if res := request(t, s, "POST", "/http/billing/refunds", child, "{}", "Content-Type", "application/json"); res.StatusCode != http.StatusForbidden {
		t.Errorf("a refund: %s", res.Status)
	}
}

// TestChainIsSeen: in the recording, and on the reviewer's card.
func TestChainIsSeen(t *testing.T) {
	t.Parallel()
	s := site(t)
	ada, reporter := token(t, s, demo.Ada), token(t, s, demo.Reporter)
	child := exchanged(t, s, ada, reporter, "audience", "orders", "authorization_details", `[{"type":"chaperone","rows":7}]`)
	id, held, _ := hold(t, s, child, "update orders set status = 'seen' where id = 21")
	card, err := cli(t, s, person(t, s, demo.Grace), "approvals", "show", id)
	if err != nil || !strings.Contains(card, "through:") || !strings.Contains(card, tokenID(ada)) || !strings.Contains(card, "7 rows") || !strings.Contains(card, demo.Ada) {
		t.Errorf("the card: %v\n%s", err, card)
	}
	if out, err := cli(t, s, person(t, s, demo.Grace), "approvals", "refuse", id); err != nil {
		t.Errorf("%v %s", err, out)
	}
	if err := <-held; err == nil {
		t.Error("a refused statement ran")
	}
	var sessions []console.SessionSummary
	sofia := person(t, s, demo.Sofia)
	out, err := cli(t, s, sofia, "sessions", "list", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &sessions)
	}
	if err != nil {
		t.Fatal(err, out)
	}
	for _, one := range sessions {
		if one.Principal.Token.ID != tokenID(child) {
			continue
		}
		shown, err := cli(t, s, sofia, "sessions", "show", one.ID)
		if err != nil || !strings.Contains(shown, "hop 1: to agent") || !strings.Contains(shown, tokenID(ada)) || !strings.Contains(shown, "only: resources orders; 7 rows") {
			t.Errorf("%v\n%s", err, shown)
		}
		return
	}
	t.Error("the delegated session is not listed")
}

// TestRevokingParentCuts what was exchanged from it, live and new, everywhere;
// what is not below it goes on.
func TestRevokingParentCuts(t *testing.T) {
	t.Parallel()
	s := site(t)
	ada, reporter := token(t, s, demo.Ada), token(t, s, demo.Reporter)
	child := exchanged(t, s, ada, reporter, "audience", "orders", "audience", "billing")
	grandchild := exchanged(t, s, child, "")
	victim, bystander := connect(t, s, grandchild), connect(t, s, ada)
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--token", tokenID(child), "--cause", "stolen"); err != nil || !strings.Contains(out, "sessions ended: 1") {
		t.Fatalf("%v %s", err, out)
	}
	if _, err := read(t.Context(), victim, "select 1"); err == nil {
		t.Error("the live session goes on")
	}
	for name, tok := range map[string]string{"child": child, "grandchild": grandchild} {
		if _, err := pgx.Connect(t.Context(), s.DSN(tok)); err == nil {
			t.Errorf("the %s opens a session", name)
		}
		if res := request(t, s, "GET", "/http/billing/customers/1", tok, ""); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("the %s over HTTP: %s", name, res.Status)
		}
		if status, out := oauth(t, s, "/oauth/token", exchangeForm(tok, "")); status != http.StatusBadRequest {
			t.Errorf("the %s at the token service: %d %v", name, status, out)
		}
	}
	if got, err := read(t.Context(), bystander, "select count(*) from orders"); err != nil || got != "120|" {
		t.Errorf("the parent: %q %v", got, err)
	}
	again := exchanged(t, s, ada, reporter, "audience", "orders")
	if status, _ := oauth(t, s, "/oauth/revoke", url.Values{"token": {again}}); status != http.StatusOK {
		t.Errorf("revoke: %d", status)
	}
	if _, err := pgx.Connect(t.Context(), s.DSN(again)); err == nil {
		t.Error("a token that its holder revoked opens a session")
	}
}

// TestRevokedPersonHasNoRole: the API refuses a revoked token too.
func TestRevokedPersonHasNoRole(t *testing.T) {
	t.Parallel()
	s := site(t)
	sofia, alan := person(t, s, demo.Sofia), person(t, s, demo.Alan)
	if out, err := cli(t, s, sofia, "sessions", "list"); err != nil {
		t.Fatalf("the control: %v %s", err, out)
	}
	if out, err := cli(t, s, alan, "sessions", "kill", "--token", tokenID(sofia)); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out, err := cli(t, s, sofia, "sessions", "list"); err == nil || !strings.Contains(out, "unauthenticated") {
		t.Errorf("a revoked token lists sessions: %s", out)
	}
}

// TestIntrospectionThroughEnvoy: operators learn of a token, agents do not.
func TestIntrospectionThroughEnvoy(t *testing.T) {
	t.Parallel()
	s := site(t)
	ada := token(t, s, demo.Ada)
	form := url.Values{"token": {exchanged(t, s, ada, "", "audience", "orders")}}
	if status, out := oauth(t, s, "/oauth/introspect", form, "Authorization", "Bearer "+person(t, s, demo.Alan)); status != http.StatusOK || out["active"] != true || out["act"] == nil {
		t.Errorf("an operator: %d %v", status, out)
	}
	if status, out := oauth(t, s, "/oauth/introspect", form, "Authorization", "Bearer "+ada); status != http.StatusForbidden || out["active"] != nil {
		t.Errorf("an agent: %d %v", status, out)
	}
	for path, want := range map[string]string{"/.well-known/oauth-authorization-server": s.URL() + "/oauth/token", "/oauth/jwks": `"kid"`} {
		res := request(t, s, "GET", path, "", "")
		if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s %s", path, res.Status, body)
		}
	}
}

// TestAbsoluteDeadline: what is opened one second before the token expires ends
// when it does, in the middle of a statement.
func TestAbsoluteDeadline(t *testing.T) {
	t.Parallel()
	s := site(t)
	late := exchanged(t, s, token(t, s, demo.Ada), "", "audience", "orders", "authorization_details", `[{"type":"chaperone","expires_in":5}]`)
	expires := expiry(t, late)
	eventually(t, func() error {
		if left := time.Until(expires); left > time.Second {
			return fmt.Errorf("%s are left", left)
		}
		return nil
	})
	conn, err := pgx.Connect(t.Context(), s.DSN(late))
	if err != nil {
		t.Fatalf("a token with a second to live: %v", err)
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "select pg_sleep(60)")
	var refused *pgconn.PgError
	if after := time.Since(expires); err == nil || after < 0 || after > 3*time.Second {
		t.Errorf("it ended %s after the token: %v", after, err)
	}
	if !errors.As(err, &refused) || !strings.Contains(refused.Message, "token has expired") {
		t.Errorf("it ended with %v", err)
	}
	if _, err := pgx.Connect(t.Context(), s.DSN(late)); err == nil {
		t.Error("an expired token opens a session")
	}
}

func expiry(t *testing.T, tok string) time.Time {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(tok, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct{ Exp int64 }
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return time.Unix(claims.Exp, 0)
}

// TestProviderEvent: the documented hook, as a provider's listener calls it.
func TestProviderEvent(t *testing.T) {
	t.Parallel()
	s := site(t)
	hedy := mesh().issue(t, "spiffe://mesh.test/person/hedy")
	conn, err := connectCertified(t, s, "certificate", hedy)
	if err != nil {
		t.Fatal(err)
	}
	hook := func(tok string) *http.Response {
		return request(t, s, "POST", "/api/v1/kill", tok, `{"user": "hedy", "cause": "suspended at the provider"}`, "Content-Type", "application/json")
	}
	// The control: whoever is no operator ends nothing.
	if res := hook(token(t, s, demo.Ada)); res.StatusCode != http.StatusForbidden {
		t.Errorf("a subagent calls the hook: %s", res.Status)
	}
	if _, err := read(t.Context(), conn, "select 1"); err != nil {
		t.Fatal(err)
	}
	if res := hook(person(t, s, demo.Alan)); res.StatusCode != http.StatusOK {
		t.Errorf("the hook: %s", res.Status)
	}
	if _, err := read(t.Context(), conn, "select 1"); err == nil {
		t.Error("the session goes on")
	}
	if err := open(t, s, "certificate", hedy); !unauthenticated(err) {
		t.Errorf("the certificate still opens a session: %v", err)
	}
}
