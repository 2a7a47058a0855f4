// Package authcode is the client's side of logging a person in with a browser:
// OpenID Connect's authorization code flow with PKCE (OpenID Connect Core,
// section 3.1; RFC 7636). It owns what is sent to the provider and the check
// that the answer belongs to the attempt. It does not verify tokens: the
// gateway's verifier does.
package authcode

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

const (
	maxAnswer = 1 << 20 // what a provider answers
	// foundFor is how long a discovery document serves, and failedFor how long
	// the provider is left alone when it could not be read, whatever arrives.
	foundFor  = 5 * time.Minute
	failedFor = 5 * time.Second
)

// A Client is one client of one provider. It is safe for concurrent use.
type Client struct {
	Issuer string
	ID     string
	Secret access.Secret // empty: a public client
	Scope  string
	HTTP   *http.Client     // must not follow redirects, and must give up on its own
	Clock  func() time.Time // nil: time.Now

	mu     sync.Mutex
	found  provider
	failed error
	looked time.Time
}

// An Attempt is one login that was begun. Whoever has it can end it.
type Attempt struct {
	Redirect string `json:"redirect"`
	State    string `json:"state"`
	Nonce    string `json:"nonce"`
	Verifier string `json:"verifier"`
}

// NewAttempt begins a login whose answer comes to redirect.
func NewAttempt(redirect string) Attempt {
	return Attempt{Redirect: redirect, State: rand.Text(), Nonce: rand.Text(), Verifier: rand.Text() + rand.Text()}
}

// Tokens are what a provider gave for a code.
type Tokens struct{ ID, Access access.Secret }

// A provider is what is used of a discovery document.
type provider struct {
	Issuer    string `json:"issuer"`
	Authorize string `json:"authorization_endpoint"`
	Token     string `json:"token_endpoint"`
}

// Address returns where the person logs in.
func (c *Client) Address(ctx context.Context, a Attempt) (string, error) {
	p, err := c.discover(ctx)
	if err != nil {
		return "", err
	}
	to, err := url.Parse(p.Authorize)
	if err != nil {
		return "", err
	}
	challenge := sha256.Sum256([]byte(a.Verifier))
	q := to.Query()
	for name, value := range map[string]string{"response_type": "code", "client_id": c.ID, "redirect_uri": a.Redirect, "scope": c.Scope, "state": a.State,
		"nonce": a.Nonce, "code_challenge": base64.RawURLEncoding.EncodeToString(challenge[:]), "code_challenge_method": "S256"} {
		q.Set(name, value)
	}
	to.RawQuery = q.Encode()
	return to.String(), nil
}

// discover tells where the provider's pages are. One asks at a time; the others
// wait for its answer.
func (c *Client) discover(ctx context.Context) (provider, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now
	if c.Clock != nil {
		now = c.Clock
	}
	good := foundFor
	if c.failed != nil {
		good = failedFor
	}
	if age := now().Sub(c.looked); !c.looked.IsZero() && age >= 0 && age < good {
		return c.found, c.failed
	}
	found, err := c.fetch(ctx)
	if err == nil || ctx.Err() == nil { // else it says only that this one has left
		c.found, c.failed, c.looked = found, err, now()
	}
	return found, err
}

// fetch reads the discovery document. It must be the issuer's own: nothing else
// has a say in where a person types a password.
func (c *Client) fetch(ctx context.Context) (p provider, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.Issuer, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return p, err
	}
	if err := c.ask(req, &p); err != nil {
		return p, err
	}
	if p.Issuer != c.Issuer || !Secure(p.Authorize) || !Secure(p.Token) {
		return p, errors.New("the discovery document is that of another issuer, or names addresses without TLS")
	}
	return p, nil
}

// Secure allows plain HTTP on the loopback only.
func Secure(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http" && net.ParseIP(u.Hostname()).IsLoopback())
}

func (c *Client) ask(req *http.Request, into any) error {
	res, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(into); err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("the provider answers %s", res.Status)
	}
	return nil
}

// Redeem exchanges the code that answers the attempt. Of the tokens only the
// nonce is looked at, which nobody else could check; they come straight from the
// provider, over TLS.
func (c *Client) Redeem(ctx context.Context, a Attempt, code string) (Tokens, error) {
	p, err := c.discover(ctx)
	if err != nil {
		return Tokens{}, err
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {a.Redirect}, "code_verifier": {a.Verifier}}
	if c.Secret.Empty() {
		form.Set("client_id", c.ID)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Token, strings.NewReader(form.Encode()))
	if err != nil {
		return Tokens{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if !c.Secret.Empty() {
		req.SetBasicAuth(url.QueryEscape(c.ID), url.QueryEscape(c.Secret.Reveal())) // RFC 6749, section 2.3.1
	}
	var answer struct {
		Access string `json:"access_token"`
		ID     string `json:"id_token"`
	}
	if err := c.ask(req, &answer); err != nil {
		return Tokens{}, err
	}
	if nonce(answer.ID) != a.Nonce || a.Nonce == "" {
		return Tokens{}, errors.New("the ID token is not of this login")
	}
	return Tokens{access.NewSecret(answer.ID), access.NewSecret(answer.Access)}, nil
}

// nonce reads the claim of an ID token; "" when there is none.
func nonce(token string) string {
	var claims struct{ Nonce string }
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(b, &claims) != nil {
		return ""
	}
	return claims.Nonce
}
