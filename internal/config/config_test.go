package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/strictyaml"
)

const whole = `
listen: {https: 127.0.0.1:8443, postgres: 127.0.0.1:5432, tls: {cert: {file: gw.crt}, key: {file: gw.key}}}
identity:
  issuers:
    - name: dex
      oidc: {issuer: https://dex.internal, audiences: [chaperone]}
      claims: {workflow: preferred_username}
resources:
  - name: orders
    kind: postgres
    address: db.internal:5432
    labels: {env: prod}
    postgres: {credential: {user: app, password: {file: secret}}}
  - name: billing
    kind: http
    address: https://billing.internal
    http: {credential: {header: x-api-key, value: {file: secret}}}
  - name: web
    kind: ssh
    address: web.internal:22
    ssh: {users: [deploy], host_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJSywjwTzJbULPSTiWNBrI49vOK1VGH1pOBzuZNbsgz7 web"]}
policies: ./policies
people: {clients: [console], reviewer: [seniors]}
approvals: {webhooks: [{url: https://chat.internal/hook, secret: {file: secret}}]}
telemetry: {metrics: 127.0.0.1:9464}
`

// folder writes text as a config beside a certificate, its key and a secret.
func folder(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"gw.internal"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"gw.crt":         pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		"gw.key":         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		"secret":         []byte("hunter2\n"),
		"empty":          nil,
		"chaperone.yaml": []byte(text),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "chaperone.yaml")
}

func TestLoadCompletesTheConfig(t *testing.T) {
	t.Parallel()
	path := folder(t, whole)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	for what, pair := range map[string][2]string{
		"policies":     {c.Policies, filepath.Join(dir, "policies")},
		"recordings":   {c.Recording.Dir, filepath.Join(dir, "data", "recordings")},
		"store":        {c.Store.Embedded.Dir, filepath.Join(dir, "data")},
		"store key":    {c.Store.Key, filepath.Join(dir, "data", "store.key")},
		"sockets":      {c.Sockets, filepath.Join(dir, "run")},
		"database":     {c.Resources[0].Postgres.Database, "orders"},
		"target TLS":   {c.Resources[0].Postgres.TLS.Mode, "verify-full"},
		"user claim":   {c.Identity.Issuers[0].Claims.User, "email"},
		"public URL":   {c.Listen.Public, "https://gw.internal:8443"},
		"token life":   {c.Identity.Life.String(), "24h0m0s"},
		"skew":         {c.Identity.Issuers[0].Skew.String(), "30s"},
		"wait":         {c.Approvals.Wait.String(), "5m0s"},
		"secret":       {c.Resources[0].Postgres.Credential.Password.Secret().Reveal(), "hunter2"},
		"algorithms":   {strings.Join(c.Identity.Issuers[0].OIDC.Algorithms, " "), "RS256 ES256"},
		"SSH keys":     {c.SSH.Keys, filepath.Join(dir, "data", "ssh")},
		"SSH life":     {c.SSH.Life.String(), "5m0s"},
		"billing host": {c.Resources[1].Address, "https://billing.internal"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %q, want %q", what, pair[0], pair[1])
		}
	}
	if printed := fmt.Sprintf("%v %+v %#v", c, *c, c.Resources[0].Postgres); strings.Contains(printed, "hunter2") {
		t.Error("a secret prints")
	}
}

func TestLoadRefusesWithTheReason(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ old, new, want string }{
		"secret in the file":      {"{file: secret}}}\n  - name: billing", "hunter2}}\n  - name: billing", "a secret itself never stands in this file"},
		"missing secret file":     {"password: {file: secret}", "password: {file: nowhere}", "postgres.credential.password: cannot be read"},
		"empty secret file":       {"password: {file: secret}", "password: {file: empty}", "is empty"},
		"unset environment":       {"password: {file: secret}", "password: {env: CHAPERONE_TEST_UNSET}", "CHAPERONE_TEST_UNSET is not set"},
		"no issuer":               {"    - name: dex\n      oidc: {issuer: https://dex.internal, audiences: [chaperone]}\n      claims: {workflow: preferred_username}\n", "    []\n", "at least one issuer"},
		"plain http issuer":       {"issuer: https://dex.internal", "issuer: http://dex.internal", "must be https"},
		"no audience":             {"audiences: [chaperone]", "audiences: []", "at least one audience"},
		"symmetric algorithm":     {"audiences: [chaperone]", "audiences: [chaperone], algorithms: [HS256]", "algorithms[0]: must be one of RS256"},
		"algorithm none":          {"audiences: [chaperone]", "audiences: [chaperone], algorithms: [none]", "algorithms[0]"},
		"skew above a minute":     {"identity:\n", "identity:\n  skew: 61s\n", "60s at most"},
		"same resource twice":     {"name: billing", "name: orders", "resources[1].name: is used twice"},
		"resource name":           {"name: billing", "name: ../billing", "resources[1].name: must be"},
		"unknown kind":            {"kind: http", "kind: ftp", "must be postgres, http, ssh or kubernetes"},
		"kind and settings":       {"kind: http", "kind: postgres", "does not belong to a resource of kind postgres"},
		"no account":              {"users: [deploy]", "users: []", "resources[2].ssh.users: at least one"},
		"odd account":             {"users: [deploy]", "users: [deploy, \"a@b\"]", "users[1]: must be the name of an account"},
		"no host key":             {"host_keys: [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJSywjwTzJbULPSTiWNBrI49vOK1VGH1pOBzuZNbsgz7 web\"]", "host_keys: []", "no host is trusted because it answers"},
		"broken host key":         {"ssh-ed25519 AAAAC3", "ssh-ed25519 BBBBC3", "host_keys[0]: must be one public key"},
		"options on a host key":   {"\"ssh-ed25519", "\"no-pty ssh-ed25519", "host_keys[0]: must be one public key"},
		"variable of the loader":  {"users: [deploy]", "users: [deploy], environment: [LD_PRELOAD]", "environment[0]: \"LD_PRELOAD\" is not a variable that a client may set"},
		"SSH life of a day":       {"policies:", "ssh: {life: 1d}\npolicies:", "ssh.life: is 24h0m0s"},
		"no TLS off loopback":     {"postgres: {credential", "postgres: {tls: {mode: disable}, credential", "loopback only"},
		"certificate without key": {"{credential: {user: app, password: {file: secret}}}", "{credential: {user: app, certificate: {file: gw.crt}}}", "credential.key: is needed"},
		"certificate and secret":  {"{credential: {user: app, ", "{credential: {user: app, certificate: {file: gw.crt}, key: {file: gw.key}, ", "credential.password: stands beside a certificate"},
		"unused certificate": {"db.internal:5432\n    labels: {env: prod}\n    postgres: {credential: {user: app, password: {file: secret}}}",
			"127.0.0.1:5432\n    postgres: {tls: {mode: disable}, credential: {user: app, certificate: {file: gw.crt}, key: {file: gw.key}}}", "needs TLS to the target"},
		"a profile of its own":   {"{user: app,", "{user: app, profile: app,", "must be another role"},
		"a server's setting":     {"postgres: {credential", "postgres: {settings: {search_path: user}, credential", "must be a setting of your own"},
		"a claim that is none":   {"postgres: {credential", "postgres: {settings: {app.tenant: tenant}, credential", "must be one of issuer, subject"},
		"SPIFFE and OIDC":        {"      claims: {workflow", "      spiffe: {trust_domain: a.test}\n      claims: {workflow", "exactly one of oidc, saml and spiffe"},
		"SPIFFE without paths":   {"oidc: {issuer: https://dex.internal, audiences: [chaperone]}", "spiffe: {trust_domain: a.test, bundle: {file: gw.crt}}", "at least one path is needed"},
		"a long-lived SVID":      {"oidc: {issuer: https://dex.internal, audiences: [chaperone]}", "spiffe: {trust_domain: a.test, bundle: {file: gw.crt}, max_life: 25h, ids: [{path: /a}]}", "from 1m to identity.token_life"},
		"SAML without tokens":    {"oidc: {issuer: https://dex.internal, audiences: [chaperone]}", "saml: {entity_id: https://idp.test, metadata: {file: secret}}", "needs tokens"},
		"public URL with a path": {"{https: 127.0.0.1:8443,", "{public_url: https://gw.internal/x, https: 127.0.0.1:8443,", "without a path"},
		"tokens for ever":        {"identity:\n", "identity:\n  token_life: 200h\n", "from 1m to 168h"},
		"half TLS":               {"postgres: {credential", "postgres: {tls: {mode: require}, credential", "must be verify-full or disable"},
		"port":                   {"db.internal:5432", "db.internal:0", "host:port"},
		"listening on a name":    {"https: 127.0.0.1:8443", "https: gw.internal:8443", "IP address"},
		"host header":            {"header: x-api-key", "header: Host", "cannot carry a credential"},
		"path in http address":   {"address: https://billing.internal", "address: https://billing.internal/v1", "must not have a path"},
		"user in http address":   {"address: https://billing.internal", "address: https://a:b@billing.internal", "without a user"},
		"roles without clients":  {"clients: [console], ", "", "people.clients: is needed with reviewer"},
		"login at nobody":        {"clients: [console], ", "clients: [console], logins: [{issuer: okta, client: console}], ", "people.logins[0].issuer: must be the name"},
		"login of no client":     {"clients: [console], ", "clients: [console], logins: [{issuer: dex, client: agent}], ", "people.logins[0].client: must be one of people.clients"},
		"two logins of one":      {"clients: [console], ", "clients: [console], logins: [{issuer: dex, client: console}, {issuer: dex, client: console}], ", "people.logins[1].issuer: is used twice"},
		"login without openid":   {"clients: [console], ", "clients: [console], logins: [{issuer: dex, client: console, scope: email}], ", "must have openid"},
		"login with no token":    {"clients: [console], ", "clients: [console], logins: [{issuer: dex, client: console, token: refresh}], ", "must be id or access"},
		"login with a secret":    {"clients: [console], ", "clients: [console], logins: [{issuer: dex, client: console, secret: hunter2}], ", "a secret itself never stands"},
		"two stores":             {"telemetry:", "store: {embedded: {dir: d}, redis: {url: {file: secret}}}\ntelemetry:", "exclude each other"},
		"certificate is no pair": {"key: {file: gw.key}", "key: {file: gw.crt}", "do not make a pair"},
		"not a certificate":      {"postgres: {credential", "postgres: {tls: {ca: {file: secret}}, credential", "no certificate in PEM"},
		"webhook on plain http":  {"https://chat.internal", "http://chat.internal", "must be https"},
		"parsers":                {"policies: ./policies", "policies: ./policies\nparsers: 65", "must be from 1 to 64"},
		"metrics":                {"127.0.0.1:9464", "':9464000'", "telemetry.metrics: must be host:port"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(whole, c.old) {
				t.Fatalf("the config has no %q to spoil", c.old)
			}
			_, err := Load(folder(t, strings.Replace(whole, c.old, c.new, 1)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error repeats a secret: %v", err)
			}
		})
	}
}

func TestLoadReportsEveryFault(t *testing.T) {
	t.Parallel()
	text := strings.NewReplacer("kind: http", "kind: ftp", "db.internal:5432", "db.internal", "{file: secret}", "{file: nowhere}").Replace(whole)
	_, err := Load(folder(t, text))
	var faults strictyaml.Faults
	if !errors.As(err, &faults) || len(faults) < 4 {
		t.Errorf("want at least four faults, got %v", err)
	}
}

func TestSchemaKnowsEveryKeyOfTheExample(t *testing.T) {
	t.Parallel()
	var schema struct{ Properties map[string]any }
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"listen", "identity", "resources", "policies", "people", "approvals", "store", "recording", "telemetry", "sockets", "parsers"} {
		if schema.Properties[key] == nil {
			t.Errorf("the schema lacks %s", key)
		}
	}
}
