package xds

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"chaperone.dev/chaperone/envoy/envoytest"
	"chaperone.dev/chaperone/internal/access"
)

var update = flag.Bool("update", false, "write the golden files anew")

// selfSigned makes a certificate for the subject, with its key.
func selfSigned(t testing.TB, subject string) (cert []byte, key access.Secret) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: subject}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		access.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

// full uses everything that a Config has.
func full(t testing.TB) Config {
	cert, key := selfSigned(t, "gateway")
	return Config{
		Revision: "r1", Hold: 5 * time.Minute, OTLP: "otel.internal:4317", SystemCAs: "/etc/ssl/certs/ca-certificates.crt",
		Listen: Listen{HTTPS: "0.0.0.0:8443", Postgres: "[::]:5432", SSH: "0.0.0.0:2222", Certificate: cert, Key: key, ClientCAs: cert},
		Sockets: Sockets{Services: "/run/chaperone/services.sock", Postgres: "/run/chaperone/postgres.sock", SSH: "/run/chaperone/ssh.sock",
			API: "/run/chaperone/api.sock", Kubernetes: "/run/chaperone/kubernetes.sock"},
		HTTP: []HTTPResource{
			{Name: "wiki", Address: "http://[2001:db8::1]:8080"},
			{Name: "billing", Address: "https://billing.internal", ReadBody: true,
				Credential: &Credential{Header: "X-Api-Key", Value: access.NewSecret("golden-api-key")}},
			{Name: "mail", Address: "https://192.0.2.1:444", Host: "mail.example:444", CA: cert,
				Credential: &Credential{Header: "authorization", Value: access.NewSecret("Bearer golden-token")}},
			{Name: "cluster", Address: "https://k8s.internal:6443", CA: cert, Kubernetes: true,
				Certificate: &Certificate{Chain: cert, Key: key}},
		},
	}
}

func build(t testing.TB, c Config) *Snapshot {
	t.Helper()
	s, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestGolden(t *testing.T) {
	t.Parallel()
	postgresOnly := full(t)
	postgresOnly.Listen.HTTPS, postgresOnly.Listen.SSH, postgresOnly.HTTP, postgresOnly.OTLP = "", "", nil, ""
	for name, c := range map[string]Config{"full": full(t), "postgres-only": postgresOnly} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := build(t, c).JSON()
			if err != nil {
				t.Fatal(err)
			}
			// Certificates are made anew for each run.
			got = bytes.ReplaceAll(got, []byte(base64.StdEncoding.EncodeToString(c.Listen.Certificate)), []byte("Q0VSVElGSUNBVEU="))
			path := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s at line %d; run the test with -update and read the difference", path, firstDifference(got, want))
			}
		})
	}
}

func firstDifference(a, b []byte) int {
	as, bs := bytes.Split(a, []byte("\n")), bytes.Split(b, []byte("\n"))
	for i := range min(len(as), len(bs)) {
		if !bytes.Equal(as[i], bs[i]) {
			return i + 1
		}
	}
	return min(len(as), len(bs)) + 1
}

func TestBuildIsDeterministic(t *testing.T) {
	t.Parallel()
	c := full(t)
	first := build(t, c)
	slices.Reverse(c.HTTP)
	for range 20 {
		again := build(t, c)
		for _, typ := range served {
			if again.versions[typ] != first.versions[typ] {
				t.Fatalf("%s: version %s, then %s", typ, first.versions[typ], again.versions[typ])
			}
		}
	}
}

// TestOnlyWhatChangedChanges: connections drain when their listener changes, so
// nothing that can be elsewhere may be in it.
func TestOnlyWhatChangedChanges(t *testing.T) {
	t.Parallel()
	base := full(t)
	first := build(t, base)
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"the revision's name", func(c *Config) { c.Revision = "r2" }, nil},
		{"a credential", func(c *Config) {
			c.HTTP[1].Credential = &Credential{Header: "X-Api-Key", Value: access.NewSecret("another")}
		}, []string{"Secret"}},
		{"the gateway's certificate", func(c *Config) { c.Listen.Certificate, c.Listen.Key = selfSigned(t, "gateway") }, []string{"Secret"}},
		{"what clients' certificates must lead to", func(c *Config) { c.Listen.ClientCAs, _ = selfSigned(t, "mesh") }, []string{"Secret"}},
		{"whether bodies are read", func(c *Config) { c.HTTP[0].ReadBody = true }, []string{"RouteConfiguration"}},
		{"a new target", func(c *Config) {
			c.HTTP = append(c.HTTP, HTTPResource{Name: "new", Address: "http://new.internal"})
		}, []string{"Cluster", "RouteConfiguration"}},
		{"the hold", func(c *Config) { c.Hold++ }, []string{"Listener"}},
	} {
		changed := base
		changed.HTTP = slices.Clone(base.HTTP)
		c.change(&changed)
		next := build(t, changed)
		var got []string
		for _, typ := range served {
			if next.versions[typ] != first.versions[typ] {
				got = append(got, short(typ))
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v changed, want %v", c.name, got, c.want)
		}
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	anonymous, anonymousKey := selfSigned(t, "")
	other, _ := selfSigned(t, "other")
	for _, c := range []struct {
		name string
		edit func(*Config)
		want string
	}{
		{"nowhere to listen", func(c *Config) { c.Listen.HTTPS, c.Listen.Postgres, c.Listen.SSH = "", "", "" }, "nothing to listen on"},
		{"name for an address", func(c *Config) { c.Listen.HTTPS = "localhost:8443" }, `listen https: "localhost:8443" is not IP:port`},
		{"port 0", func(c *Config) { c.Listen.Postgres = "127.0.0.1:0" }, "listen postgres"},
		{"no socket for SSH", func(c *Config) { c.Sockets.SSH = "" }, "listen ssh: its service has no socket"},
		{"no socket", func(c *Config) { c.Sockets.Services = "" }, "listen https: its service has no socket"},
		{"no certificate", func(c *Config) { c.Listen.Certificate = nil }, "listen tls"},
		{"certificate of another key", func(c *Config) { c.Listen.Certificate = other }, "listen tls"},
		{"certificate of nobody", func(c *Config) { c.Listen.Certificate, c.Listen.Key = anonymous, anonymousKey }, "names nobody"},
		{"no hold", func(c *Config) { c.Hold = 0 }, "hold"},
		{"collector without port", func(c *Config) { c.OTLP = "otel" }, "otlp"},
		{"resource twice", func(c *Config) { c.HTTP[1].Name = "wiki" }, "resource wiki: twice"},
		{"name with a slash", func(c *Config) { c.HTTP[0].Name = "a/b" }, "resource a/b: name"},
		{"name with dots", func(c *Config) { c.HTTP[0].Name = ".." }, "resource ..: name"},
		{"no name", func(c *Config) { c.HTTP[0].Name = "" }, "name"},
		{"another scheme", func(c *Config) { c.HTTP[0].Address = "ftp://x" }, "scheme"},
		{"no host", func(c *Config) { c.HTTP[0].Address = "http://" }, "no host"},
		{"path in the address", func(c *Config) { c.HTTP[0].Address = "http://x/base" }, "only scheme, host and port"},
		{"user in the address", func(c *Config) { c.HTTP[0].Address = "http://u:p@x" }, "only scheme, host and port"},
		{"port out of range", func(c *Config) { c.HTTP[0].Address = "http://x:70000" }, "not a port"},
		{"https without a CA", func(c *Config) { c.SystemCAs = "" }, "resource billing: an https target needs a CA"},
		{"CA that is none", func(c *Config) { c.HTTP[2].CA = []byte("x") }, "resource mail: ca"},
		{"host that is none", func(c *Config) { c.HTTP[0].Host = "a b" }, "host"},
		{"credential in Host", func(c *Config) { c.HTTP[1].Credential.Header = "Host" }, "cannot be used"},
		{"credential in a header of the gateway", func(c *Config) { c.HTTP[1].Credential.Header = "X-Chaperone-User" }, "cannot be used"},
		{"credential header with a colon", func(c *Config) { c.HTTP[1].Credential.Header = ":path" }, "cannot be used"},
		{"no credential value", func(c *Config) { c.HTTP[1].Credential.Value = access.Secret{} }, "credential value"},
		{"newline after the credential", func(c *Config) { c.HTTP[1].Credential.Value = access.NewSecret("golden-api-key\n") }, "newline"},
		{"header in the credential", func(c *Config) { c.HTTP[1].Credential.Value = access.NewSecret("golden-api-key\r\nx: y") }, "not a header value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := full(t)
			c.edit(&cfg)
			_, err := Build(cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), "golden-api-key") {
				t.Errorf("the error holds a secret: %v", err)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		t.Parallel()
		cfg := full(t)
		cfg.Hold, cfg.HTTP[0].Name, cfg.HTTP[1].Address = 0, "", "x"
		_, err := Build(cfg)
		for _, want := range []string{"hold", "name", "resource billing"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not tell of %q", err, want)
			}
		}
	})
}

func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	c := full(t)
	s := build(t, c)
	printed, err := s.JSON()
	if err != nil {
		t.Fatal(err)
	}
	static, err := s.Static()
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Split(c.Listen.Key.Reveal(), "\n")[1]
	for where, text := range map[string]string{
		"%v": fmt.Sprintf("%v %+v", c, s.config), "%#v": fmt.Sprintf("%#v", c), "JSON": string(printed), "Static": string(static)} {
		for _, secret := range []string{"golden-api-key", "golden-token", key,
			base64.StdEncoding.EncodeToString([]byte("golden-api-key")), base64.StdEncoding.EncodeToString([]byte(c.Listen.Key.Reveal()))} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds a secret", where)
			}
		}
	}
	if !strings.Contains(string(printed), "golden") && strings.Contains(string(printed), "[redacted]") {
		return
	}
	t.Error("the secrets are not shown as redacted")
}

// TestNothingFailsOpen states the rules that no route and no filter may break.
func TestNothingFailsOpen(t *testing.T) {
	t.Parallel()
	s := build(t, full(t))
	toTargets := 0
	for _, r := range s.resources[resourcev3.RouteType][0].(*routev3.RouteConfiguration).GetVirtualHosts()[0].GetRoutes() {
		var check extauthzv3.ExtAuthzPerRoute
		if any := r.GetTypedPerFilterConfig()[extAuthzFilter]; any != nil {
			if err := any.UnmarshalTo(&check); err != nil {
				t.Fatal(err)
			}
		}
		_, processed := r.GetTypedPerFilterConfig()[extProcFilter]
		if cluster := r.GetRoute().GetCluster(); strings.HasPrefix(cluster, "http/") {
			toTargets++
			if check.GetDisabled() || processed || check.GetCheckSettings().GetContextExtensions()[contextResource] != strings.TrimPrefix(cluster, "http/") {
				t.Errorf("%s is not guarded", r.GetName())
			}
			if check.GetCheckSettings().GetWithRequestBody().GetAllowPartialMessage() {
				t.Errorf("%s lets the authorizer judge half a body", r.GetName())
			}
			if check.GetCheckSettings().GetDisableRequestBodyBuffering() == (check.GetCheckSettings().GetWithRequestBody() != nil) {
				t.Errorf("%s does not say whether the body is read", r.GetName())
			}
			if !slices.Contains(r.GetRequestHeadersToRemove(), "authorization") || !slices.Contains(r.GetRequestHeadersToRemove(), "x-forwarded-client-cert") || r.GetRoute().GetRetryPolicy() != nil {
				t.Errorf("%s passes tokens on, or repeats requests", r.GetName())
			}
		} else if cluster == kubernetesCluster { // it masks, and takes nothing that was not let through
			toTargets++
			if check.GetDisabled() || check.GetCheckSettings().GetContextExtensions()[contextStream] == "" || check.GetCheckSettings().GetContextExtensions()[contextResource] == "" {
				t.Errorf("%s is not guarded", r.GetName())
			}
		} else if cluster == connectCluster { // it serves nobody without the authorizer's ticket
			toTargets++
			if check.GetDisabled() || check.GetCheckSettings().GetContextExtensions()[contextKind] != sshKind || r.GetMatch().GetConnectMatcher() == nil {
				t.Errorf("%s is not guarded", r.GetName())
			}
		} else if cluster != "" && cluster != apiCluster {
			t.Errorf("%s leads to %s", r.GetName(), cluster)
		}
	}
	if toTargets != 12 {
		t.Errorf("%d routes to targets", toTargets)
	}
	var hcm hcmv3.HttpConnectionManager
	https := s.resources[resourcev3.ListenerType][0].(*listenerv3.Listener).GetFilterChains()[0].GetFilters()
	if err := https[len(https)-1].GetTypedConfig().UnmarshalTo(&hcm); err != nil {
		t.Fatal(err)
	}
	if len(hcm.GetUpgradeConfigs()) != 0 || hcm.GetRequestTimeout().AsDuration() != 0 || hcm.GetStreamIdleTimeout().AsDuration() <= 5*time.Minute {
		t.Error("upgrades are on, or a held request would be timed out")
	}
	var authz extauthzv3.ExtAuthz
	var wrapped matchingv3.ExtensionWithMatcher
	var proc extprocv3.ExternalProcessor
	filters := hcm.GetHttpFilters()
	for err := range slices.Values([]error{filters[0].GetTypedConfig().UnmarshalTo(&authz), filters[2].GetTypedConfig().UnmarshalTo(&wrapped),
		wrapped.GetExtensionConfig().GetTypedConfig().UnmarshalTo(&proc)}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if authz.GetFailureModeAllow() || authz.GetShadowMode() || authz.GetFilterEnabled() != nil || !authz.GetEncodeRawHeaders() || !authz.GetWithRequestBody().GetPackAsBytes() || authz.GetWithRequestBody().GetAllowPartialMessage() || filters[0].GetIsOptional() {
		t.Error("the decision can be skipped")
	}
	if proc.GetFailureModeAllow() || proc.GetAllowModeOverride() || proc.GetObservabilityMode() || filters[2].GetIsOptional() ||
		proc.GetProcessingMode().GetResponseBodyMode() != extprocv3.ProcessingMode_STREAMED {
		t.Error("the processing can be skipped")
	}
}

// TestEnvoyAcceptsIt lets a real Envoy load all of it.
func TestEnvoyAcceptsIt(t *testing.T) {
	t.Parallel()
	binary := envoytest.Binary(t)
	c := full(t)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, c.Listen.Certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	c.SystemCAs = roots
	static, err := build(t, c).Static()
	if err != nil {
		t.Fatal(err)
	}
	if err := binary.Validate(t.Context(), static); err != nil {
		t.Fatal(err)
	}
	// The control: it would say so if it did not.
	c.SystemCAs = roots + ".missing"
	if static, err = build(t, c).Static(); err != nil {
		t.Fatal(err)
	}
	if err := binary.Validate(t.Context(), static); err == nil || !strings.Contains(err.Error(), "roots.pem.missing") {
		t.Errorf("got %v", err)
	}
}
