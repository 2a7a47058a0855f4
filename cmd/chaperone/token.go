package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/issuer"
)

// A tokenWish is what token to get, and how far it should reach.
type tokenWish struct {
	audience  string
	resources []string
	actorFile string
	narrow    access.Attenuation
	depth     int
	life      time.Duration
	refresh   bool
}

func (t *tokenWish) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&t.audience, "audience", "chaperone", "audience that GitHub Actions is asked for")
	f.StringVar(&t.actorFile, "actor-token-file", "", "your program's own token, when the other one is somebody else's")
	f.BoolVar(&t.narrow.ReadOnly, "read-only", false, "hand on reading only")
	f.StringSliceVar(&t.narrow.Tables, "table", nil, "hand on these tables only: schema.table or schema.*")
	f.StringSliceVar(&t.narrow.Methods, "method", nil, "hand on these HTTP methods only")
	f.StringSliceVar(&t.narrow.Paths, "path", nil, "hand on these HTTP paths and what is below them only")
	f.Int64Var(&t.narrow.Rows, "rows", 0, "hand on at most so many rows for each statement")
	f.IntVar(&t.depth, "depth", -1, "how often the token may be handed on again; -1 leaves it open")
	f.DurationVar(&t.life, "expires-in", 0, "how long the token lives at most")
	f.BoolVar(&t.refresh, "refresh", false, "get a new token even if a kept one is still good")
}

// exchanges reports whether the wish needs the gateway's token service.
func (t *tokenWish) exchanges() bool {
	a := t.narrow
	return len(t.resources) > 0 || t.actorFile != "" || a.ReadOnly || len(a.Tables)+len(a.Methods)+len(a.Paths) > 0 || a.Rows > 0 || t.depth >= 0 || t.life > 0
}

func tokenCommand() *cobra.Command {
	g, t, format, renew := &gateway{}, &tokenWish{}, "", false
	c := &cobra.Command{
		Use:   "token",
		Short: "Print a token, exchanged for a narrower one when asked",
		Long: `token finds your token: in --token-file, CHAPERONE_TOKEN, from GitHub Actions
(ACTIONS_ID_TOKEN_REQUEST_URL), or in the projected file ` + projectedToken + `.

With --resource and the flags that narrow, it exchanges it at the gateway for one that lives a few
minutes and reaches no further; that one is kept for you alone in the user's cache folder until it is
nearly over.

With --renew it gets a new one, and gives it to your open PostgreSQL sessions: those that were opened from
this machine for the same principal, with a token that was handed on and narrowed in the same way.`,
		Example: `  PGPASSWORD=$(chaperone token) psql "host=gateway.internal dbname=orders user=agent"
  curl -H "$(chaperone token --resource billing --format header)" https://gateway.internal:8443/http/billing/
  eval "$(chaperone token --resource orders --read-only --format pgpassword)"`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			show, ok := tokenFormats[format]
			if !ok {
				return fmt.Errorf("%w: --format is raw, pgpassword, header or exec-credential", errUsage)
			}
			t.refresh = t.refresh || renew
			token, err := g.obtain(c.Context(), t)
			if err != nil {
				return err
			}
			if renew {
				n, err := g.renewSessions(c.Context(), token)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.ErrOrStderr(), "chaperone: sessions renewed: %d\n", n)
			}
			return show(c.OutOrStdout(), token)
		},
	}
	g.flags(c)
	t.flags(c)
	c.Flags().StringSliceVar(&t.resources, "resource", nil, "exchange it for a token for this resource alone; may repeat")
	c.Flags().BoolVar(&renew, "renew", false, "give the token to your open sessions, which then last as long as it does")
	c.Flags().StringVar(&format, "format", "raw", "raw, pgpassword, header or exec-credential")
	must(c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"raw", "pgpassword", "header", "exec-credential"}, cobra.ShellCompDirectiveNoFileComp)))
	must(c.RegisterFlagCompletionFunc("resource", g.completeResources))
	return c
}

// must is for faults of the program itself.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

var tokenFormats = map[string]func(io.Writer, access.Secret) error{
	"raw": func(w io.Writer, t access.Secret) error {
		_, err := fmt.Fprintln(w, t.Reveal())
		return err
	},
	"pgpassword": func(w io.Writer, t access.Secret) error {
		_, err := fmt.Fprintf(w, "export PGPASSWORD=%s\n", shellQuoted(t.Reveal()))
		return err
	},
	"header": func(w io.Writer, t access.Secret) error {
		_, err := fmt.Fprintf(w, "Authorization: Bearer %s\n", t.Reveal())
		return err
	},
	"exec-credential": func(w io.Writer, t access.Secret) error {
		_, expires, err := lifeOf(t)
		if err != nil {
			return err
		}
		return json.NewEncoder(w).Encode(map[string]any{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
			"status": map[string]string{"token": t.Reveal(), "expirationTimestamp": expires.UTC().Format(time.RFC3339)}})
	},
}

// renewSessions gives the token to the sessions that were opened with others
// like it, and returns how many there are.
func (g *gateway) renewSessions(ctx context.Context, token access.Secret) (int, error) {
	body, err := g.send(ctx, http.MethodPost, "/api/v1/sessions/renew", token, nil)
	if err != nil {
		return 0, fmt.Errorf("renew sessions: %w", err)
	}
	defer body.Close()
	var answer struct {
		Renewed int `json:"renewed"`
	}
	if err := json.NewDecoder(body).Decode(&answer); err != nil {
		return 0, fmt.Errorf("renew sessions: the answer is not what was expected: %w", err)
	}
	return answer.Renewed, nil
}

// shellQuoted is one word of a POSIX shell.
func shellQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// obtain gets the token of the wish, from the cache when it is fresh.
func (g *gateway) obtain(ctx context.Context, t *tokenWish) (access.Secret, error) {
	source, err := g.source(t.audience)
	if err != nil {
		return access.Secret{}, err
	}
	details, err := t.details()
	if err != nil {
		return access.Secret{}, err
	}
	actor := access.Secret{}
	if t.actorFile != "" {
		if actor, err = readTokenFile(t.actorFile); err != nil {
			return access.Secret{}, err
		}
	}
	key := digest(g.url, source.identity, strings.Join(slices.Sorted(slices.Values(t.resources)), ","), actor.Reveal(), details)
	if kept, ok := cachedToken(key); ok && !t.refresh {
		return kept, nil
	}
	token, err := source.get(ctx)
	if err != nil || !t.exchanges() {
		if err == nil && strings.HasPrefix(source.identity, "actions:") {
			keepToken(key, token)
		}
		return token, err
	}
	if token, err = g.exchange(ctx, token, actor, t.resources, details); err == nil {
		keepToken(key, token)
	}
	return token, err
}

// details is the authorization_details of the wish, "" for none.
func (t *tokenWish) details() (string, error) {
	a := t.narrow
	if t.depth >= 0 {
		a.Depth = &t.depth
	}
	if err := a.Check(); err != nil {
		return "", fmt.Errorf("%w: %w", errUsage, err)
	}
	b, err := json.Marshal(struct {
		Type string `json:"type"`
		access.Attenuation
		ExpiresIn int64 `json:"expires_in,omitempty"`
	}{identity.DetailsType, a, int64(t.life / time.Second)})
	return "[" + string(b) + "]", err
}

// exchange asks the gateway's token service (RFC 8693).
func (g *gateway) exchange(ctx context.Context, subject, actor access.Secret, resources []string, details string) (access.Secret, error) {
	const jwt = "urn:ietf:params:oauth:token-type:jwt"
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {subject.Reveal()},
		"subject_token_type": {jwt}, "audience": resources, "authorization_details": {details}}
	if !actor.Empty() {
		form.Set("actor_token", actor.Reveal())
		form.Set("actor_token_type", jwt)
	}
	base, err := g.base()
	if err != nil {
		return access.Secret{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+issuer.TokenPath, strings.NewReader(form.Encode()))
	if err != nil {
		return access.Secret{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	client, err := g.client()
	if err != nil {
		return access.Secret{}, err
	}
	res, err := client.Do(req)
	if err != nil {
		return access.Secret{}, fmt.Errorf("gateway: %w", err)
	}
	defer res.Body.Close()
	var answer struct {
		issuer.Answer
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil || res.StatusCode != http.StatusOK || answer.AccessToken == "" {
		if answer.Error != "" {
			return access.Secret{}, fmt.Errorf("token: %s: %s (request %s)", line(answer.Error), line(answer.Description), line(answer.RequestID))
		}
		return access.Secret{}, fmt.Errorf("token: the gateway answers %s: has it a token service?", res.Status)
	}
	return access.NewSecret(answer.AccessToken), nil
}
