package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/policy"
)

// The command starts its own binary as the parser worker: the test binary then
// becomes one that is built without the race detector, under which compiling
// the grammar takes ten seconds.
func TestMain(m *testing.M) {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	worker := self + ".worker"
	if len(os.Args) > 1 && os.Args[1] == parserWorker {
		panic(syscall.Exec(worker, append([]string{worker}, os.Args[2:]...), os.Environ()))
	}
	build := exec.Command("go", "build", "-o", worker, "../../internal/sql/parser/parserworker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("build the worker: %v\n%s", err, out))
	}
	code := m.Run()
	_ = os.Remove(worker)
	os.Exit(code)
}

const ordersCatalog = `{"server_version": 180000, "database": "orders", "user": "app", "search_path": ["pg_catalog", "public"], "relations": [
  {"oid": 20001, "schema": "public", "name": "orders", "kind": "r", "columns": [
    {"number": 1, "name": "id", "type_oid": 23, "type_schema": "pg_catalog", "type_name": "int4", "typmod": -1, "type_kind": "b", "can_select": true}]}]}`

func TestPolicyExplainRecorded(t *testing.T) {
	t.Parallel()
	dir := folder(t, "desk.yaml", deskPolicy)
	recording := recordedAs(t, dir)
	want(t, 0, []string{"allow by desk/read", "masks public.customers.ssn", "rule read (allow) matches and decides", "true    sql.read_only",
		"rule fix (approve) does not match", `false   sql.command == "UPDATE"`, "rule calls (allow) is passed over"},
		"policy", "explain", dir, "--request", "req_read", "--recordings", recording)
	// The same by somebody else, and at another time.
	want(t, 0, []string{"deny by default-deny", "policy desk (", "does not apply", `principal false   "agents" in principal.groups`},
		"policy", "explain", dir, "--request", "req_read", "--recordings", recording, "--group", "others")
	want(t, 0, []string{"deny by default-deny", "false   now.getHours() < 18"},
		"policy", "explain", dir, "--request", "req_read", "--recordings", recording, "--at", "2026-01-05T19:00:00Z")
	want(t, 0, []string{"approve by desk/fix", "approval {groups: [seniors], count: 1, expires: 15m0s}"},
		"policy", "explain", dir, "--request", "req_fix", "--recordings", recording)
	want(t, 1, []string{"no decision on request req_none"}, "policy", "explain", dir, "--request", "req_none", "--recordings", recording)
	want(t, 2, []string{"--at is a time"}, "policy", "explain", dir, "--request", "req_fix", "--recordings", recording, "--at", "noon")
	var x struct {
		Request access.Request `json:"request"`
		policy.Explanation
	}
	out := want(t, 0, nil, "policy", "explain", dir, "--request", "req_fix", "--recordings", recording, "-o", "json")
	if err := json.Unmarshal([]byte(out), &x); err != nil || x.Request.ID != "req_fix" || x.Decision.Effect != access.Approve || len(x.Policies) != 1 || len(x.Policies[0].Rules) != 3 {
		t.Errorf("got %+v, %v", x, err)
	}
}

func TestPolicyExplainByHand(t *testing.T) {
	t.Parallel()
	dir := folder(t, "desk.yaml", strings.Replace(deskPolicy, `'resource.kind == "postgres"'`, `'resource.labels.env == "prod"'`, 1),
		"more/catalog.json", ordersCatalog, "more/body.json", `{"amount": 1.5}`)
	ask := func(more ...string) []string {
		return append([]string{"policy", "explain", dir, "--user", "ada", "--group", "agents", "--resource", "it", "--label", "env=prod", "--at", "2026-01-05T12:00:00Z"}, more...)
	}
	names := filepath.Join(dir, "more", "catalog.json")
	want(t, 0, []string{"allow by desk/read"}, ask("--sql", "select id from orders", "--catalog", names)...)
	want(t, 0, []string{"note: the statement was judged without a catalog", "note: whatever policy says, the gateway refuses it", "false   sql.read_only"}, ask("--sql", "select id from orders")...)
	want(t, 0, []string{"allow by desk/calls"}, ask("--http", "get /customers/1?x=y", "--header", "Accept=text/html", "--body", filepath.Join(dir, "more", "body.json"))...)
	want(t, 0, []string{"deny by default-deny", `false   http.method == "GET"`}, ask("--http", "DELETE /customers/1")...)
	want(t, 2, []string{"--resource is needed"}, "policy", "explain", dir, "--http", "GET /")
	want(t, 2, []string{"--http is"}, ask("--http", "GET")...)
	want(t, 2, []string{"--kind is"}, ask("--http", "GET /", "--kind", "ftp")...)
	want(t, 1, []string{"catalog:"}, ask("--sql", "select 1", "--catalog", filepath.Join(dir, "desk.yaml"))...)

	sized := folder(t, "sized.yaml", strings.Replace(deskPolicy, "sql.read_only", "sql.estimated_rows < 10 && sql.estimated_bytes < 100", 1))
	size := func(more ...string) []string {
		return append([]string{"policy", "explain", sized, "--user", "ada", "--group", "agents", "--resource", "it", "--kind", "postgres", "--sql", "select id from orders", "--catalog", names}, more...)
	}
	want(t, 0, []string{"allow by desk/read"}, size("--estimated-rows", "0", "--estimated-bytes", "40")...)
	want(t, 0, []string{"false   sql.estimated_rows < 10", "true    sql.estimated_bytes < 100"}, size("--estimated-rows", "10", "--estimated-bytes", "40")...)
	want(t, 0, []string{"unknown sql.estimated_rows < 10"}, size()...)
}

// A command line is judged as the gateway judges it.
func TestPolicyExplainSSH(t *testing.T) {
	t.Parallel()
	dir := folder(t, "hosts.yaml", `policy: hosts
principal: '"agents" in principal.groups'
resource: 'resource.kind == "ssh"'
rules:
  - name: look
    when: 'ssh.user == "deploy" && ssh.read_only && ssh.paths.all(p, p.startsWith("/var/log/"))'
    effect: allow
  - name: rest
    when: 'size(ssh.unknown) > 0'
    effect: approve
    approval: {groups: [sre]}
`)
	ask := func(line string, more ...string) []string {
		return append([]string{"policy", "explain", dir, "--user", "ada", "--group", "agents", "--resource", "build-1", "--ssh", line}, more...)
	}
	want(t, 0, []string{"allow by hosts/look"}, ask("tail -n 5 /var/log/app | grep x", "--account", "deploy")...)
	want(t, 0, []string{"deny by default-deny", `false   ssh.user == "deploy"`}, ask("tail /var/log/app", "--account", "root")...)
	want(t, 0, []string{"approve by hosts/rest", "passed over: what the command runs is not known"}, ask("tail /var/log/$x", "--account", "deploy")...)
	want(t, 0, []string{"deny by default-deny", "unknown ssh.paths.all"}, ask("make", "--account", "deploy")...)
}

// Without a configuration a token's claims are taken as they stand, and that is
// said.
func TestPolicyExplainToken(t *testing.T) {
	t.Parallel()
	claims := base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://dex","sub":"s","email":"ada@example.com","azp":"agent","groups":["agents"]}`))
	dir := folder(t, "desk.yaml", deskPolicy, "more/token", "e30."+claims+".x\n", "more/bad", "secret-words", "more/who.json", `{"issuer":"dex","subject":"s","groups":["agents"],"token":{"id":"","expires_at":"2026-01-01T00:00:00Z"}}`)
	ask := func(more ...string) []string {
		return append([]string{"policy", "explain", dir, "--resource", "orders", "--kind", "postgres", "--http", "GET /"}, more...)
	}
	want(t, 0, []string{"the token was NOT verified", "allow by desk/calls"}, ask("--principal-token", filepath.Join(dir, "more", "token"))...)
	want(t, 0, []string{"deny by default-deny"}, ask("--principal-token", filepath.Join(dir, "more", "token"), "--group", "others")...)
	out := want(t, 0, []string{"allow by desk/calls"}, ask("--principal", filepath.Join(dir, "more", "who.json"))...)
	if strings.Contains(out, "note:") {
		t.Errorf("got %s", out)
	}
	_, errs, status := command(t, ask("--principal-token", filepath.Join(dir, "more", "bad"))...)
	if status != 1 || !strings.Contains(errs, "not a JSON web token") || strings.Contains(errs, "secret-words") {
		t.Errorf("%d: %s", status, errs)
	}
}
