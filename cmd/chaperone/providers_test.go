package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/strictyaml"
)

// pages are what each provider's page makes of the token that it shows.
var pages = map[string]access.Principal{
	"okta":           {Issuer: "okta", Subject: "ada@example.com", User: "ada@example.com", Subagent: "0oa1agent", Groups: []string{"orders-agents"}},
	"entra":          {Issuer: "entra", Subject: "AAAAADa", User: "ada@example.com", Subagent: "agent-app-id", Groups: []string{"0a0a0a0a-orders"}},
	"google":         {Issuer: "google", Subject: "1098", User: "ada@example.com", Subagent: "1234567890-agent.apps.googleusercontent.com", Groups: []string{"example.com"}},
	"dex":            {Issuer: "dex", Subject: "CgNhZGESBWxvY2Fs", User: "ada@example.com", Subagent: "agent", Groups: []string{"orders-agents"}},
	"github-actions": {Issuer: "github", Subject: "repo:example/orders:ref:refs/heads/main", User: "ada", Subagent: "example/orders", Workflow: "example/orders/.github/workflows/nightly.yml@refs/heads/main", Job: "4711", Instance: "1", Groups: []string{"example"}},
	"gitlab":         {Issuer: "gitlab", Subject: "project_path:example/orders:ref_type:branch:ref:main", User: "ada@example.com", Subagent: "example/orders", Workflow: "gitlab.com/example/orders//.gitlab-ci.yml@refs/heads/main", Job: "4711", Instance: "815", Groups: []string{"example"}},
	"kubernetes":     {Issuer: "cluster", Subject: "system:serviceaccount:orders:reporter", Subagent: "reporter", Instance: "reporter-7d9f", Groups: []string{"orders"}},
}

// TestProviderPages: the settings that each page shows read the token that it
// shows, and Entra's page is right about overage. The provider is one of ours in
// its place.
func TestProviderPages(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../docs/identity/*.md")
	if err != nil || len(files) != len(pages) {
		t.Fatalf("%d pages, %d known: %v", len(files), len(pages), err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".md")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			verify := provider(t, key, shownIn(t, string(b), "yaml"))
			claims := map[string]any{}
			if err := json.Unmarshal([]byte(shownIn(t, string(b), "json")), &claims); err != nil {
				t.Fatal(err)
			}
			got, err := verify(claims)
			got.Token = access.TokenRef{}
			if err != nil || !reflect.DeepEqual(got, pages[name]) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, pages[name])
			}
			if name != "entra" {
				return
			}
			delete(claims, "groups")
			claims["_claim_names"] = map[string]any{"groups": "src1"}
			if _, err := verify(claims); err == nil || !strings.Contains(err.Error(), "too many") {
				t.Errorf("overage: %v", err)
			}
		})
	}
}

func shownIn(t *testing.T, page, language string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "```"+language+"\n")
	block, _, ok2 := strings.Cut(rest, "```")
	if !ok || !ok2 {
		t.Fatalf("the page shows no %s", language)
	}
	return block
}

// provider stands in for the one of the settings, and verifies claims as they
// say.
func provider(t *testing.T, key *ecdsa.PrivateKey, settings string) func(claims map[string]any) (access.Principal, error) {
	t.Helper()
	cfg := &config.Config{}
	var document struct {
		Issuers []config.Issuer `yaml:"issuers"`
	}
	if _, faults := strictyaml.Decode("page.yaml", []byte("issuers:\n"+settings), &document); faults.Err() != nil || len(document.Issuers) != 1 {
		t.Fatalf("%v", faults.Err())
	}
	public, err := jwk.FromRaw(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{public}})
	}))
	t.Cleanup(server.Close)
	is := document.Issuers[0]
	shown := is.OIDC.Issuer
	skew := time.Duration(0)
	is.Skew, is.OIDC.Issuer, is.OIDC.JWKS, is.OIDC.Algorithms = &skew, server.URL, server.URL, []string{"ES256"}
	cfg.Identity.KeyAge, cfg.Identity.Issuers = time.Hour, []config.Issuer{is}
	v, err := newVerifier(cfg, slog.New(slog.DiscardHandler), nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return func(claims map[string]any) (access.Principal, error) {
		if claims["iss"] != shown && claims["iss"] != server.URL {
			return access.Principal{}, fmt.Errorf("the token is of %v", claims["iss"])
		}
		claims["iss"], claims["iat"], claims["exp"] = server.URL, time.Now().Unix()-1, time.Now().Add(time.Hour).Unix()
		payload, err := json.Marshal(claims)
		if err != nil {
			return access.Principal{}, err
		}
		token, err := jws.Sign(payload, jws.WithKey(jwa.ES256, key))
		if err != nil {
			return access.Principal{}, err
		}
		return v.Verify(t.Context(), access.NewSecret(string(token)))
	}
}
