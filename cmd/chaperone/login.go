package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/authcode"
)

// loginWithin is how long a person has to log in.
const loginWithin = 5 * time.Minute

// A loginFlow is one authorization code flow on the loopback (RFC 8252).
type loginFlow struct {
	issuer, client, scope string
	accessToken, noOpen   bool
	http                  *http.Client
	say                   io.Writer
}

func loginCommand() *cobra.Command {
	provider, l := &gateway{}, &loginFlow{}
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
			if l.client == "" || !authcode.Secure(l.issuer) {
				return fmt.Errorf("%w: --issuer, an https URL, and --client are needed", errUsage)
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

func (l *loginFlow) run(ctx context.Context) (access.Secret, error) {
	client := &authcode.Client{Issuer: l.issuer, ID: l.client, Scope: l.scope, HTTP: l.http}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return access.Secret{}, err
	}
	attempt := authcode.NewAttempt("http://" + listener.Addr().String() + "/callback")
	to, err := client.Address(ctx, attempt)
	if err != nil {
		return access.Secret{}, errors.Join(err, listener.Close())
	}
	fmt.Fprintf(l.say, "Log in at:\n\n    %s\n\n", to)
	if !l.noOpen {
		openBrowser(ctx, to)
	}
	code, err := l.callback(ctx, listener, attempt.State)
	if err != nil {
		return access.Secret{}, err
	}
	// The gateway verifies the token.
	tokens, err := client.Redeem(ctx, attempt, code)
	if l.accessToken {
		return tokens.Access, err
	}
	return tokens.ID, err
}

// callback waits for the browser to come back with a code, and with the state
// that only this login knows.
func (l *loginFlow) callback(ctx context.Context, listener net.Listener, state string) (string, error) {
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
