package localserver

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// KeycloakPassword is every person's, and every client's secret.
const KeycloakPassword = "keycloak-for-tests"

// A Keycloak is a running Keycloak with one realm, for OpenID Connect and SAML.
type Keycloak struct {
	Issuer   string // of OpenID Connect, and the entity id of SAML
	Metadata string // where the SAML metadata is
	base     string
	port     int
	proc     *process
}

// KeycloakConfig is what the realm is made of.
type KeycloakConfig struct {
	People []Person
	// SAMLAudience is the gateway as a SAML service provider, and SAMLRecipient
	// where its assertions are delivered.
	SAMLAudience, SAMLRecipient string
	// Console is where people's browsers may be sent back to, by both.
	Console string
}

// NewKeycloak chooses where a Keycloak will be, so that its address can be
// configured before it is started.
func NewKeycloak() (*Keycloak, error) {
	port, err := quietPort()
	if err != nil {
		return nil, err
	}
	k := &Keycloak{port: port, base: "http://" + loopback(port)}
	k.Issuer = k.base + "/realms/main"
	k.Metadata = k.Issuer + "/protocol/saml/descriptor"
	return k, nil
}

// quietPort returns a free port that the system gives to nobody by itself: it
// stays free until a server that starts slowly gets there.
func quietPort() (int, error) {
	for range 50 {
		port := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp", loopback(port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("keycloak: no free port")
}

// Start starts the server, with its log in dir, and makes the realm. It takes
// ten seconds on an idle machine.
func (k *Keycloak) Start(ctx context.Context, dir string, config KeycloakConfig) error {
	path := filepath.Join(ToolsDir(), "keycloak", "bin", "kc.sh")
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("keycloak is not in the tools folder: run tools/install keycloak")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("keycloak: %w", err)
	}
	cmd := exec.Command(path, "start", "--optimized", "--cache=local", "--http-enabled=true", "--http-host=127.0.0.1", "--http-port="+strconv.Itoa(k.port), "--hostname-strict=false")
	cmd.Env = append(os.Environ(), "KC_BOOTSTRAP_ADMIN_USERNAME=admin", "KC_BOOTSTRAP_ADMIN_PASSWORD="+KeycloakPassword,
		"JAVA_OPTS_APPEND=-Xms64m -Xmx512m -XX:TieredStopAtLevel=1")
	var err error
	if k.proc, err = start(cmd, filepath.Join(dir, "keycloak.log")); err != nil {
		return err
	}
	if err := k.proc.readyWithin(ctx, 4*time.Minute, k.answers); err != nil {
		k.Close()
		return err
	}
	return k.realm(ctx, config)
}

func (k *Keycloak) answers(ctx context.Context) error {
	res, err := get(ctx, http.DefaultClient, k.base+"/realms/master/.well-known/openid-configuration")
	if err != nil {
		return err
	}
	return res.Body.Close()
}

func get(ctx context.Context, client *http.Client, address string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err == nil && res.StatusCode != http.StatusOK {
		res.Body.Close()
		err = fmt.Errorf("%s: %s", address, res.Status)
	}
	return res, err
}

// realm makes the realm as docs/identity/keycloak.md says.
func (k *Keycloak) realm(ctx context.Context, config KeycloakConfig) error {
	token, err := k.token(ctx, "master", url.Values{"grant_type": {"password"}, "client_id": {"admin-cli"}, "username": {"admin"}, "password": {KeycloakPassword}}, "access_token")
	if err != nil {
		return err
	}
	groups := map[string]bool{}
	users := []map[string]any{{"username": "service-account-agent", "serviceAccountClientId": "agent", "enabled": true}}
	for _, p := range config.People {
		var paths []string
		for _, g := range p.Groups {
			groups[g] = true
			paths = append(paths, "/"+g)
		}
		name, _, _ := strings.Cut(p.Email, "@")
		users = append(users, map[string]any{"username": name, "email": p.Email, "emailVerified": true, "enabled": true, "firstName": name, "lastName": name,
			"groups": paths, "credentials": []map[string]any{{"type": "password", "value": KeycloakPassword, "temporary": false}}})
	}
	var named []map[string]any
	for g := range groups {
		named = append(named, map[string]any{"name": g})
	}
	b, err := json.Marshal(map[string]any{"realm": "main", "enabled": true, "groups": named, "users": users, "clients": keycloakClients(config)})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.base+"/admin/realms", bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("keycloak realm: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 4096)) // for the message only
		return fmt.Errorf("keycloak realm: %s: %s", res.Status, body)
	}
	return nil
}

// keycloakClients are a subagent with an account of its own, people at a
// keyboard, and the gateway as a SAML service provider.
func keycloakClients(config KeycloakConfig) []map[string]any {
	mapper := func(name, protocol, kind string, settings map[string]string) map[string]any {
		return map[string]any{"name": name, "protocol": protocol, "protocolMapper": kind, "config": settings}
	}
	claims := []map[string]any{
		mapper("audience", "openid-connect", "oidc-audience-mapper", map[string]string{"included.custom.audience": "chaperone", "access.token.claim": "true", "id.token.claim": "true"}),
		mapper("groups", "openid-connect", "oidc-group-membership-mapper", map[string]string{"claim.name": "groups", "full.path": "false", "access.token.claim": "true", "id.token.claim": "true"}),
	}
	return []map[string]any{
		{"clientId": "agent", "secret": KeycloakPassword, "serviceAccountsEnabled": true, "directAccessGrantsEnabled": true, "standardFlowEnabled": false, "protocolMappers": claims},
		{"clientId": "console", "publicClient": true, "standardFlowEnabled": true, "redirectUris": []string{"http://127.0.0.1/*", config.Console}, "protocolMappers": claims,
			"attributes": map[string]string{"pkce.code.challenge.method": "S256"}},
		{"clientId": config.SAMLAudience, "protocol": "saml", "redirectUris": []string{config.SAMLRecipient, config.Console}, "fullScopeAllowed": false,
			"attributes": map[string]string{
				"saml.assertion.signature": "true", "saml.server.signature": "false", "saml.client.signature": "false", "saml.signature.algorithm": "RSA_SHA256",
				"saml_force_name_id_format": "true", "saml_name_id_format": "email", "saml.authnstatement": "true",
				"saml_assertion_consumer_url_post": config.SAMLRecipient, "saml_idp_initiated_sso_url_name": "chaperone",
			},
			"protocolMappers": []map[string]any{
				mapper("email", "saml", "saml-user-property-mapper", map[string]string{"user.attribute": "email", "attribute.name": "email", "attribute.nameformat": "Basic"}),
				mapper("groups", "saml", "saml-group-membership-mapper", map[string]string{"attribute.name": "groups", "attribute.nameformat": "Basic", "single": "true", "full.path": "false"}),
			}},
	}
}

func (k *Keycloak) token(ctx context.Context, realm string, form url.Values, kind string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.base+"/realms/"+realm+"/protocol/openid-connect/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("keycloak token: %w", err)
	}
	defer res.Body.Close()
	var answer map[string]any
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil {
		return "", fmt.Errorf("keycloak token: %s: %w", res.Status, err)
	}
	token, ok := answer[kind].(string)
	if !ok {
		return "", fmt.Errorf("keycloak token: %s: %v", res.Status, answer)
	}
	return token, nil
}

// AgentToken is what the program agent gets for itself (client credentials).
func (k *Keycloak) AgentToken(ctx context.Context) (string, error) {
	return k.token(ctx, "main", url.Values{"grant_type": {"client_credentials"}, "client_id": {"agent"}, "client_secret": {KeycloakPassword}}, "access_token")
}

// Token is what the program agent gets for a person.
func (k *Keycloak) Token(ctx context.Context, email string) (string, error) {
	return k.token(ctx, "main", url.Values{"grant_type": {"password"}, "client_id": {"agent"}, "client_secret": {KeycloakPassword},
		"username": {email}, "password": {KeycloakPassword}, "scope": {"openid"}}, "access_token")
}

// SAMLResponse logs a person in as a browser does and returns what it would
// deliver to the gateway, in base64.
func (k *Keycloak) SAMLResponse(ctx context.Context, email string) (string, error) {
	page, err := LogIn(ctx, k.Issuer+"/protocol/saml/clients/chaperone", url.Values{"username": {email}, "password": {KeycloakPassword}}, nil)
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`(?i)name="SAMLResponse"\s+value="([^"]+)"`).FindStringSubmatch(page)
	if found == nil {
		return "", fmt.Errorf("keycloak: no SAMLResponse in %.2000s", page)
	}
	response := html.UnescapeString(found[1])
	_, err = base64.StdEncoding.DecodeString(response)
	return response, err
}

// Close stops the server.
func (k *Keycloak) Close() error {
	if k.proc != nil {
		k.proc.stop(syscall.SIGKILL) // there is nothing to save
	}
	return nil
}

// LogIn opens a login page as a browser does, fills its form in and returns the
// page that follows. follow, when it is not nil, sees every address on the way
// and ends it by returning false; the page is then empty.
func LogIn(ctx context.Context, address string, fields url.Values, follow func(*url.URL) bool) (string, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	stopped := false
	client := &http.Client{Jar: jar, Timeout: time.Minute, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if follow != nil && !follow(r.URL) {
			stopped = true
			return http.ErrUseLastResponse
		}
		return nil
	}}
	res, err := get(ctx, client, address)
	if err != nil {
		return "", fmt.Errorf("log in: %w", err)
	}
	page, err := text(res)
	if err != nil {
		return "", fmt.Errorf("log in: %w", err)
	}
	action := regexp.MustCompile(`(?is)<form[^>]*\saction="([^"]+)"`).FindStringSubmatch(page)
	if action == nil {
		return "", fmt.Errorf("log in: no form in %.2000s", page)
	}
	to, err := res.Request.URL.Parse(html.UnescapeString(action[1]))
	if err != nil {
		return "", fmt.Errorf("log in: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), strings.NewReader(fields.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if res, err = client.Do(req); err != nil {
		return "", fmt.Errorf("log in: %w", err)
	}
	if page, err = text(res); err != nil || stopped {
		return "", err
	}
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("log in: %s: %.2000s", res.Status, page)
	}
	return page, nil
}

func text(res *http.Response) (string, error) {
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return string(b), err
}
