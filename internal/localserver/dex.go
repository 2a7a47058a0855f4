package localserver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// A Person can log in at a Dex. Dex has no claim for a workflow, so the demo
// and the tests carry it in preferred_username.
type Person struct {
	Email    string
	Groups   []string
	Workflow string
}

// DexConfig says whom a Dex knows. Everyone's password is DexPassword.
type DexConfig struct {
	People   []Person
	Lifetime time.Duration // of tokens; 0 is an hour
	Console  string        // where the client console may have codes sent to; "" nowhere of use
}

// The one password and the client secret of every Dex started here.
const (
	DexPassword = "correct horse battery staple"
	DexSecret   = "agent-client-secret"
)

// A Dex is a running OpenID Connect provider. It knows three clients: chaperone,
// the audience of the gateway, and two that may ask for that audience: agent,
// for subagents, and console, for people.
type Dex struct {
	Issuer string // also where discovery begins
	Addr   string
	proc   *process
	cmd    func() *exec.Cmd
	log    string
}

// StartDex starts a Dex with its files in dir.
func StartDex(ctx context.Context, dir string, config DexConfig) (*Dex, error) {
	path, err := Tool("dex")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("dex: %w", err)
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	d := &Dex{Addr: loopback(port), Issuer: "http://" + loopback(port) + "/dex", log: filepath.Join(dir, "dex.log")}
	file, err := d.config(dir, config)
	if err != nil {
		return nil, fmt.Errorf("dex: %w", err)
	}
	d.cmd = func() *exec.Cmd { return exec.Command(path, "serve", file) }
	return d, d.Start(ctx)
}

// Start starts the provider again after Kill, on the same port with new keys.
func (d *Dex) Start(ctx context.Context) (err error) {
	if d.proc, err = start(d.cmd(), d.log); err != nil {
		return err
	}
	if err := d.proc.ready(ctx, d.discovery); err != nil {
		d.Close()
		return err
	}
	return nil
}

func (d *Dex) config(dir string, config DexConfig) (file string, err error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(DexPassword), bcrypt.DefaultCost)
	if err != nil {
		return "", err
	}
	people := make([]map[string]any, 0, len(config.People))
	for _, p := range config.People {
		people = append(people, map[string]any{"email": p.Email, "username": p.Email, "userID": p.Email, "hash": string(hash),
			"preferredUsername": p.Workflow, "groups": p.Groups, "emailVerified": true})
	}
	if config.Lifetime == 0 {
		config.Lifetime = time.Hour
	}
	b, err := json.Marshal(map[string]any{
		"issuer":  d.Issuer,
		"storage": map[string]any{"type": "memory"},
		"web":     map[string]any{"http": d.Addr},
		"expiry":  map[string]any{"idTokens": config.Lifetime.String()},
		"oauth2": map[string]any{"passwordConnector": "local", "skipApprovalScreen": true,
			"grantTypes": []string{"authorization_code", "password", "refresh_token", "client_credentials"}},
		"enablePasswordDB": true,
		"staticPasswords":  people,
		"staticClients": []map[string]any{
			{"id": "chaperone", "name": "chaperone", "secret": DexSecret, "trustedPeers": []string{"agent", "console", "cli"},
				"redirectURIs": []string{"http://127.0.0.1/callback"}},
			{"id": "agent", "name": "agent", "secret": DexSecret, "redirectURIs": []string{"http://127.0.0.1/callback"}},
			{"id": "cli", "name": "cli", "public": true}, // people with a browser
			{"id": "console", "name": "console", "secret": DexSecret, "redirectURIs": []string{cmp.Or(config.Console, "http://127.0.0.1/callback")}},
		},
	})
	if err != nil {
		return "", err
	}
	file = filepath.Join(dir, "dex.json")
	return file, os.WriteFile(file, b, 0o600)
}

func (d *Dex) discovery(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.Issuer+"/.well-known/openid-configuration", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("discovery: %s", res.Status)
	}
	return nil
}

// Token gets a token for a person through the client agent, as a subagent does:
// aud is chaperone, azp is agent.
func (d *Dex) Token(ctx context.Context, email string) (string, error) {
	return d.token(ctx, "agent", email, forChaperone)
}

// TokenForAgent gets a token whose audience is the client agent, not chaperone.
func (d *Dex) TokenForAgent(ctx context.Context, email string) (string, error) {
	return d.token(ctx, "agent", email, "openid email profile groups")
}

// TokenForPerson gets a token that a person logged in for: aud is chaperone,
// azp is console.
func (d *Dex) TokenForPerson(ctx context.Context, email string) (string, error) {
	return d.token(ctx, "console", email, forChaperone)
}

const forChaperone = "openid email profile groups audience:server:client_id:chaperone"

func (d *Dex) token(ctx context.Context, client, email, scope string) (string, error) {
	form := url.Values{"grant_type": {"password"}, "username": {email}, "password": {DexPassword}, "scope": {scope}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.Issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.SetBasicAuth(client, DexSecret)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("dex token: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("dex token: %w", err)
	}
	var answer struct {
		IDToken string `json:"id_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.IDToken == "" {
		return "", fmt.Errorf("dex token for %s: %s: %s", email, res.Status, body)
	}
	return answer.IDToken, nil
}

// Kill ends the provider at once.
func (d *Dex) Kill() { d.proc.stop(syscall.SIGKILL) }

// Close stops the provider.
func (d *Dex) Close() error {
	d.proc.stop(syscall.SIGTERM)
	return nil
}
