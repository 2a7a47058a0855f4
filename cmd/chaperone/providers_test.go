package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/identity"
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
	"keycloak":       {Issuer: "keycloak", Subject: "7a1e0c52", User: "ada@example.com", Subagent: "agent", Groups: []string{"orders-agents"}},
	"kubernetes":     {Issuer: "cluster", Subject: "system:serviceaccount:orders:reporter", Subagent: "reporter", Instance: "reporter-7d9f", Groups: []string{"orders"}},
}

// ownTests are the pages without a JSON web token, each with a test of its own.
var ownTests = []string{"spiffe.md"}

// TestProviderPages: the settings that each page shows read the token that it
// shows, and Entra's page is right about overage. The provider is one of ours in
// its place.
func TestProviderPages(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../docs/identity/*.md")
	files = slices.DeleteFunc(files, func(f string) bool { return slices.Contains(ownTests, filepath.Base(f)) })
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

// settingsOf is the one issuer of the settings that a page shows.
func settingsOf(t *testing.T, settings string) config.Issuer {
	t.Helper()
	var document struct {
		Issuers []config.Issuer `yaml:"issuers"`
	}
	if _, faults := strictyaml.Decode("page.yaml", []byte("issuers:\n"+settings), &document); faults.Err() != nil || len(document.Issuers) != 1 {
		t.Fatalf("%v", faults.Err())
	}
	return document.Issuers[0]
}

// TestSPIFFEPage: the paths that the page shows mean what it says.
func TestSPIFFEPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/identity/spiffe.md")
	if err != nil {
		t.Fatal(err)
	}
	is := settingsOf(t, shownIn(t, string(page), "yaml"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(template, parent *x509.Certificate) *x509.Certificate {
		template.SerialNumber, template.BasicConstraintsValid = big.NewInt(1), true
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	root := &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	root = sign(root, root)
	domain := trustDomain(config.Issuer{Name: is.Name, SPIFFE: is.SPIFFE, Skew: new(time.Duration)})
	domain.Bundle = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	v, err := identity.New(identity.Config{Domains: []identity.TrustDomain{domain}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	for path, want := range map[string]access.Principal{
		"/ns/orders/sa/reporter": {Subagent: "reporter", Groups: []string{"orders-agents"}}, "/ns/batch/sa/reporter": {Workflow: "batch", Subagent: "reporter"},
	} {
		id := &url.URL{Scheme: "spiffe", Host: "prod.example.com", Path: path}
		leaf := sign(&x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{id}}, root)
		got, err := v.Verify(identity.WithShown(t.Context(), identity.ShownChain([]*x509.Certificate{leaf})), access.Secret{})
		got.Token, want.Issuer, want.Subject = access.TokenRef{}, "mesh", id.String()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want)
		}
	}
}

// provider stands in for the one of the settings, and verifies claims as they
// say.
func provider(t *testing.T, key *ecdsa.PrivateKey, settings string) func(claims map[string]any) (access.Principal, error) {
	t.Helper()
	cfg := &config.Config{}
	public, err := jwk.FromRaw(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{public}})
	}))
	t.Cleanup(server.Close)
	is := settingsOf(t, settings)
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
