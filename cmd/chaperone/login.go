package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
)

// loginWithin is how long a person has to log in.
const loginWithin = 5 * time.Minute

// A login is one authorization code flow with PKCE on the loopback (RFC 8252,
// RFC 7636, OpenID Connect Core).
type login struct {
	issuer, client, scope string
	accessToken, noOpen   bool
	http                  *http.Client
	say                   io.Writer
}

func loginCommand() *cobra.Command {
	provider, l := &gateway{}, &login{}
	c := &cobra.Command{
		Use:   "login",
		Short: "Log in with a browser, as a person",
		Long: `login opens your provider's page in a browser and keeps the token that it gives, for you alone, in the
user's cache folder. The other commands use it when no other token is set, until it expires. The provider
must know --client as a public client with a redirect to the loopback (http://127.0.0.1, any port), and
the gateway must have it in people.clients.`,
		Example: `  chaperone login --issuer https://dex.internal/dex --client cli
  chaperone approvals list`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if l.issuer == "" || l.client == "" {
				return fmt.Errorf("%w: --issuer and --client are needed", errUsage)
			}
			var err error
			if l.http, err = provider.client(); err != nil {
				return err
			}
			l.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			l.say = c.ErrOrStderr()
			ctx, cancel := context.WithTimeout(c.Context(), loginWithin)
			defer cancel()
			token, err := l.run(ctx)
			if err != nil {
				return fmt.Errorf("login: %w", err)
			}
			return keepLogin(token)
		},
	}
	f := c.Flags()
	f.StringVar(&provider.ca, "issuer-ca", "", "file with the certificates that the provider's TLS must lead to (default the system's)")
	f.StringVar(&l.issuer, "issuer", os.Getenv("CHAPERONE_ISSUER"), "the provider's issuer URL (CHAPERONE_ISSUER)")
	f.StringVar(&l.client, "client", os.Getenv("CHAPERONE_CLIENT"), "your client id at the provider (CHAPERONE_CLIENT)")
	f.StringVar(&l.scope, "scope", "openid email profile groups", "what to ask for")
	f.BoolVar(&l.accessToken, "access-token", false, "keep the access token, not the ID token (Keycloak, Okta, Entra ID)")
	f.BoolVar(&l.noOpen, "no-browser", false, "only print the address to open")
	return c
}

// An oidcProvider is what is used of a discovery document.
type oidcProvider struct {
	Issuer    string `json:"issuer"`
	Authorize string `json:"authorization_endpoint"`
	Token     string `json:"token_endpoint"`
}

func (l *login) run(ctx context.Context) (access.Secret, error) {
	p, err := l.discover(ctx)
	if err != nil {
		return access.Secret{}, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return access.Secret{}, err
	}
	redirect := "http://" + listener.Addr().String() + "/callback"
	state, nonce, verifier := rand.Text(), rand.Text(), rand.Text()+rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	to, err := url.Parse(p.Authorize)
	if err != nil {
		return access.Secret{}, errors.Join(err, listener.Close())
	}
	q := to.Query()
	for name, value := range map[string]string{"response_type": "code", "client_id": l.client, "redirect_uri": redirect, "scope": l.scope, "state": state,
		"nonce": nonce, "code_challenge": base64.RawURLEncoding.EncodeToString(challenge[:]), "code_challenge_method": "S256"} {
		q.Set(name, value)
	}
	to.RawQuery = q.Encode()
	fmt.Fprintf(l.say, "Log in at:\n\n    %s\n\n", to)
	if !l.noOpen {
		openBrowser(ctx, to.String())
	}
	code, err := l.callback(ctx, listener, state)
	if err != nil {
		return access.Secret{}, err
	}
	return l.redeem(ctx, p, url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {redirect},
		"client_id": {l.client}, "code_verifier": {verifier}}, nonce)
}

// discover reads where the provider's pages are. They must be the issuer's own:
// nothing else has a say in where a person types a password.
func (l *login) discover(ctx context.Context) (p oidcProvider, err error) {
	if !secure(l.issuer) {
		return p, fmt.Errorf("%w: --issuer must be an https URL", errUsage)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(l.issuer, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return p, err
	}
	if err := l.ask(req, &p); err != nil {
		return p, err
	}
	if p.Issuer != l.issuer || !secure(p.Authorize) || !secure(p.Token) {
		return p, errors.New("the discovery document is that of another issuer, or names addresses without TLS")
	}
	return p, nil
}

// secure allows plain HTTP on the loopback only.
func secure(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http" && net.ParseIP(u.Hostname()).IsLoopback())
}

func (l *login) ask(req *http.Request, into any) error {
	res, err := l.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(into); err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("the provider answers %s", res.Status)
	}
	return nil
}

// callback waits for the browser to come back with a code, and with the state
// that only this login knows.
func (l *login) callback(ctx context.Context, listener net.Listener, state string) (string, error) {
	type answer struct {
		code string
		err  error
	}
	got := make(chan answer, 1)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/callback" || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			http.Error(w, "this is not the login that was begun here", http.StatusBadRequest)
			return
		}
		a := answer{code: q.Get("code")}
		if a.code == "" {
			a.err = fmt.Errorf("the provider refuses: %s", line(q.Get("error")+" "+q.Get("error_description")))
		}
		select {
		case got <- a:
		default: // a second one
		}
		fmt.Fprintln(w, "You can close this window and go back to the terminal.")
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	defer func() {
		// The page is still on its way.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			_ = server.Close()
		}
		<-ended
	}()
	select {
	case a := <-got:
		return a.code, a.err
	case err := <-ended:
		ended <- err
		return "", err
	case <-ctx.Done():
		return "", errors.New("nobody logged in")
	}
}

// redeem exchanges the code. The gateway verifies the token; here only the nonce
// is looked at, which nobody else could.
func (l *login) redeem(ctx context.Context, p oidcProvider, form url.Values, nonce string) (access.Secret, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Token, strings.NewReader(form.Encode()))
	if err != nil {
		return access.Secret{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var answer struct {
		Access string `json:"access_token"`
		ID     string `json:"id_token"`
	}
	if err := l.ask(req, &answer); err != nil {
		return access.Secret{}, err
	}
	var claims struct{ Nonce string }
	if parts := strings.Split(answer.ID, "."); len(parts) == 3 {
		b, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil || json.Unmarshal(b, &claims) != nil {
			claims.Nonce = ""
		}
	}
	if claims.Nonce != nonce {
		return access.Secret{}, errors.New("the ID token is not of this login")
	}
	if l.accessToken {
		return access.NewSecret(answer.Access), nil
	}
	return access.NewSecret(answer.ID), nil
}

// openBrowser is only a convenience: the address has been printed.
func openBrowser(ctx context.Context, address string) {
	command := "xdg-open"
	if runtime.GOOS == "darwin" {
		command = "open"
	}
	_ = exec.CommandContext(ctx, command, address).Run()
}

// loginKey is where the token of a login is kept.
const loginKey = "login"

func keepLogin(token access.Secret) error {
	if _, _, err := lifeOf(token); err != nil {
		return err
	}
	path, err := cachePath(loginKey)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = writeSecret(path, token.Reveal())
	}
	if err != nil {
		return fmt.Errorf("login: the token cannot be kept: %w", err)
	}
	return nil
}

// loggedIn is the token of the last login, while it is good.
func loggedIn() (access.Secret, bool) {
	t, ok := keptToken(loginKey)
	if !ok {
		return access.Secret{}, false
	}
	_, expires, err := lifeOf(t)
	return t, err == nil && time.Now().Before(expires)
}
