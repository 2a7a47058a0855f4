package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
)

const gateway = "https://gateway.test:8443"

// A world is a token service whose verifier is the real one, with one provider
// beside the service itself.
type world struct {
	*Service
	clock    *fakeClock
	verifier *identity.Verifier
	provider string // its iss
	foreign  *Keys  // the provider's

	mu      sync.Mutex
	events  []access.Event
	broken  error // of the recorder
	revoked map[string]bool
	seen    map[string]bool
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{clock: newFakeClock(), revoked: map[string]bool{}, seen: map[string]bool{}}
	var err error
	w.foreign, err = OpenKeys(filepath.Join(t.TempDir(), "foreign"), 24*time.Hour, time.Hour, w.clock.Now)
	must(t, err)
	own, err := OpenKeys(filepath.Join(t.TempDir(), "own"), 24*time.Hour, time.Hour, w.clock.Now)
	must(t, err)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/keys") {
			b, _ := w.foreign.Published()
			_, _ = rw.Write(b)
			return
		}
		fmt.Fprintf(rw, `{"issuer":%q,"jwks_uri":%q}`, w.provider, w.provider+"/keys")
	}))
	t.Cleanup(server.Close)
	w.provider = server.URL
	w.verifier, err = identity.New(identity.Config{Clock: w.clock.Now, Revocations: w, Issuers: []identity.Issuer{
		{Name: "dex", URL: w.provider, Audiences: []string{"chaperone"}, Algorithms: []string{"ES256"},
			Claims: identity.Claims{User: "email", Subagent: "azp", Groups: "groups", Workflow: "workflow"}},
		{Name: Name, URL: gateway, Audiences: []string{gateway}, Algorithms: []string{"ES256"}, MaxLife: MaxLife, Own: own.Published},
	}})
	must(t, err)
	t.Cleanup(w.verifier.Close)
	config := Config{Issuer: gateway}
	if change != nil {
		change(&config)
	}
	w.Service, err = New(config, Deps{
		Keys: own, Verifier: w.verifier, Recorder: w, Revoker: w, Clock: w.clock.Now,
		Resource: func(name string) (access.Resource, bool) {
			return access.Resource{Name: name, Kind: access.Postgres}, name == "orders" || name == "billing" || name == "vault"
		},
		MayConnect: func(_ context.Context, p access.Principal, r access.Resource) bool {
			hop, _ := p.OutOfBounds(r, access.Action{})
			return hop == 0 && r.Name != "vault" && p.InGroup("orders-agents")
		},
		MayIntrospect: func(p access.Principal) bool { return p.Subagent == "resource-server" },
		Once: func(_ context.Context, key string, _ time.Duration) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.seen[key] {
				return ErrSeen
			}
			w.seen[key] = true
			return nil
		},
		Rejected: func(err error) bool { return errors.Is(err, identity.ErrTokenRejected) },
	})
	must(t, err)
	return w
}

func (w *world) Append(_ context.Context, d access.Durability, evs ...access.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		return w.broken
	}
	if d != access.Synced {
		return errors.New("not synced")
	}
	w.events = append(w.events, evs...)
	return nil
}

func (w *world) RevokeToken(_ context.Context, p access.Principal, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked[p.Token.ID] = true
	return nil
}

func (w *world) Revoked(_ context.Context, p access.Principal) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	revoked := w.revoked[p.Token.ID]
	for _, h := range p.Chain {
		revoked = revoked || w.revoked[h.Parent] || w.revoked[h.ActorToken]
	}
	return revoked, nil
}

func (w *world) last() access.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) == 0 {
		return access.Event{}
	}
	return w.events[len(w.events)-1]
}

// signed makes a JWT with a key of keys; a nil claim is taken away.
func signed(t *testing.T, keys *Keys, typ string, claims, changes map[string]any) string {
	t.Helper()
	all := maps.Clone(claims)
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	must(t, err)
	k, err := keys.signing()
	must(t, err)
	headers := jws.NewHeaders()
	must(t, errors.Join(headers.Set(jws.TypeKey, typ), headers.Set(jws.KeyIDKey, k.kid)))
	b, err := jws.Sign(payload, jws.WithKey(jwa.ES256, k.private, jws.WithProtectedHeaders(headers)))
	must(t, err)
	return string(b)
}

// user is a token of Ada's, as the provider makes it.
func (w *world) user(t *testing.T, changes map[string]any) string {
	t.Helper()
	now := w.clock.Now()
	return signed(t, w.foreign, "JWT", map[string]any{"iss": w.provider, "sub": "ada-sub", "aud": "chaperone", "azp": "console", "email": "ada@example.com",
		"groups": []string{"orders-agents"}, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}, changes)
}

// agent is the own token of a subagent.
func (w *world) agent(t *testing.T, name string, changes map[string]any) string {
	t.Helper()
	all := map[string]any{"sub": name + "-sub", "azp": name, "email": nil, "groups": nil, "workflow": "nightly"}
	maps.Copy(all, changes)
	return w.user(t, all)
}

// A reply is an answer of the service.
type reply struct {
	status int
	header http.Header
	body   map[string]any
}

func (r reply) text(name string) string { s, _ := r.body[name].(string); return s }

func (w *world) post(t *testing.T, path string, form url.Values, headers ...string) reply {
	t.Helper()
	r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return w.do(t, r)
}

func (w *world) do(t *testing.T, r *http.Request) reply {
	t.Helper()
	rec := httptest.NewRecorder()
	w.Handler().ServeHTTP(rec, r)
	out := reply{status: rec.Code, header: rec.Header()}
	b, err := io.ReadAll(rec.Body)
	must(t, err)
	if err := json.Unmarshal(b, &out.body); err != nil {
		t.Fatalf("%d %s: %v", rec.Code, b, err)
	}
	return out
}

// exchange is the form of an exchange; pairs add to it.
func exchange(subject string, pairs ...string) url.Values {
	f := url.Values{"grant_type": {grantExchange}, "subject_token": {subject}, "subject_token_type": {typeJWT}}
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Add(pairs[i], pairs[i+1])
	}
	return f
}

func actor(token string) []string { return []string{"actor_token", token, "actor_token_type", typeJWT} }

// issue exchanges and returns the token with its verified principal.
func (w *world) issue(t *testing.T, form url.Values) (string, access.Principal) {
	t.Helper()
	r := w.post(t, TokenPath, form)
	if r.status != 200 {
		t.Fatalf("%d %v", r.status, r.body)
	}
	token := r.text("access_token")
	p, err := w.verifier.Verify(t.Context(), access.NewSecret(token))
	must(t, err)
	return token, p
}
