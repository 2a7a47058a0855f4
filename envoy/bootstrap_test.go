package envoy

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func installed(t testing.TB) Binary {
	t.Helper()
	b, err := Find(t.Context(), Options{})
	if err != nil {
		t.Fatalf("tests need Envoy: %v", err)
	}
	return b
}

func TestBootstrap(t *testing.T) {
	t.Parallel()
	binary := installed(t)
	mutual := &ClientTLS{CAFile: "/etc/chaperone/ca.pem", CertFile: "/etc/chaperone/envoy.pem", KeyFile: "/etc/chaperone/envoy.key"}
	for name, c := range map[string]Config{
		"socket":  {NodeID: "node-1", ADS: ADS{Socket: "/run/chaperone/ads.sock"}, AdminSocket: "/run/chaperone/admin.sock"},
		"address": {NodeID: "node-1", Cluster: "edge", ADS: ADS{Address: "control.internal:18000", TLS: mutual}, MaxConnections: 100, MaxHeapBytes: 1 << 30},
		"ip":      {NodeID: "node-1", ADS: ADS{Address: "[2001:db8::1]:18000", TLS: mutual}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Bootstrap(c)
			if err != nil {
				t.Fatal(err)
			}
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
				t.Errorf("differs from %s; run the test with -update and read the difference\n%s", path, got)
			}
			if c.ADS.TLS == nil {
				if err := binary.Validate(t.Context(), got); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestBootstrapRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		config Config
		want   string
	}{
		{"no node", Config{ADS: ADS{Socket: "/s"}}, "node id"},
		{"no control plane", Config{NodeID: "n"}, "needs a socket or an address"},
		{"two control planes", Config{NodeID: "n", ADS: ADS{Socket: "/s", Address: "a:1"}}, "not both"},
		{"TCP without TLS", Config{NodeID: "n", ADS: ADS{Address: "a:1"}}, "mutual TLS"},
		{"TLS that is not mutual", Config{NodeID: "n", ADS: ADS{Address: "a:1", TLS: &ClientTLS{CAFile: "/ca"}}}, "mutual TLS"},
		{"no port", Config{NodeID: "n", ADS: ADS{Address: "a", TLS: &ClientTLS{}}}, "address"},
		{"port 0", Config{NodeID: "n", ADS: ADS{Address: "a:0", TLS: &ClientTLS{}}}, "host:port"},
	} {
		if _, err := Bootstrap(c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	binary := installed(t)
	if err := binary.Validate(t.Context(), []byte(`{}`)); err != nil {
		t.Errorf("an empty configuration: %v", err)
	}
	err := binary.Validate(t.Context(), []byte(`{"static_resources":{"clusters":[{"name":"x","no_such_field":1}]}}`))
	if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "no_such_field") {
		t.Errorf("got %v", err)
	}
	if err := (Binary{Path: "/nonexistent/envoy"}).Validate(t.Context(), nil); err == nil || errors.Is(err, ErrRejected) {
		t.Errorf("no verdict is taken for one: %v", err)
	}
}
