package datapath_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"chaperone.dev/chaperone/envoy"
	"chaperone.dev/chaperone/envoy/envoytest"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/xds"
)

// proxied reads a PROXY protocol v2 header and returns the client it names.
func proxied(t testing.TB, conn net.Conn) string {
	t.Helper()
	// One byte at a time, so that nothing after the header is taken.
	header, err := proxyproto.Read(bufio.NewReaderSize(&oneByte{conn}, 16))
	if err != nil {
		t.Fatal(err)
	}
	if header.Version != 2 {
		t.Fatalf("version %d", header.Version)
	}
	return header.SourceAddr.String()
}

type oneByte struct{ r io.Reader }

func (o *oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

func (g *gateway) inSync() bool {
	nodes := g.control.Status().Nodes
	return len(nodes) == 1 && nodes[0].InSync
}

func (g *gateway) set() {
	g.t.Helper()
	if err := g.control.Set(g.build()); err != nil {
		g.t.Fatal(err)
	}
}

// TestChangesAreLive: targets and credentials change under an open connection.
func TestChangesAreLive(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	g := newGateway(t, parts{auth: newWorld().server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL,
		Credential: &xds.Credential{Header: "X-Api-Key", Value: access.NewSecret("first")}})
	dialled := 0
	trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if !i.Reused {
			dialled++
		}
	}})
	key := func() string {
		t.Helper()
		got, err := g.do(trace, g.client, "GET", "/http/t/x", "", "Authorization", "Bearer good")
		if err != nil || got.status != http.StatusOK {
			t.Fatalf("got %+v, %v", got, err)
		}
		return target.take()[0].header.Get("X-Api-Key")
	}
	if k := key(); k != "first" {
		t.Fatalf("credential %q", k)
	}
	g.must("GET", "/http/t2/x", "", "Authorization", "Bearer good").refused(t, 404, access.UnknownResource)

	g.cfg.HTTP[0].Credential = &xds.Credential{Header: "X-Api-Key", Value: access.NewSecret("second")}
	g.cfg.HTTP = append(g.cfg.HTTP, xds.HTTPResource{Name: "t2", Address: target.URL})
	g.set()
	eventually(t, "in sync", g.inSync)
	eventually(t, "the rotated credential is injected", func() bool { return key() == "second" })
	if got := g.must("GET", "/http/t2/y", "", "Authorization", "Bearer good"); got.status != http.StatusOK {
		t.Errorf("the new target: %+v", got)
	}
	target.take()

	// A target that goes leaves no way to it, and nothing out of sync.
	g.cfg.HTTP = g.cfg.HTTP[1:]
	g.set()
	eventually(t, "the old target is gone", func() bool {
		got, err := g.do(trace, g.client, "GET", "/http/t/x", "", "Authorization", "Bearer good")
		return err == nil && got.status == http.StatusNotFound
	})
	eventually(t, "in sync", g.inSync)
	if dialled != 1 {
		t.Errorf("the connection was dropped: %d were dialled", dialled)
	}
}

// TestRejection: what Envoy rejects is seen, and the last good keeps serving.
func TestRejection(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	g := newGateway(t, parts{auth: newWorld().server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	served := func() bool {
		return g.must("GET", "/http/t/x", "", "Authorization", "Bearer good").status == http.StatusOK
	}
	good := g.cfg.HTTP
	g.cfg.SystemCAs = filepath.Join(g.dir, "no-such-roots.pem")
	g.cfg.HTTP = append(good[:1:1], xds.HTTPResource{Name: "t2", Address: "https://t2.internal"})
	g.set()
	eventually(t, "the rejection is seen", func() bool {
		n := g.control.Status().Nodes
		return len(n) == 1 && len(n[0].Rejected) == 1
	})
	r := g.control.Status().Nodes[0].Rejected[0]
	if r.Type != "Cluster" || !strings.Contains(r.Detail, "no-such-roots.pem") || !strings.Contains(r.Detail, "http/t2") || g.inSync() {
		t.Errorf("rejection %+v", r)
	}
	if !served() {
		t.Error("the last good does not serve")
	}
	g.cfg.HTTP = good
	g.set()
	// Taking the bad resource back is not an answer that Envoy could accept
	// by itself, so the next good change clears the rejection.
	g.cfg.HTTP = append(good[:1:1], xds.HTTPResource{Name: "t2", Address: target.URL})
	g.set()
	eventually(t, "in sync", func() bool { return g.inSync() && len(g.control.Status().Nodes[0].Rejected) == 0 })
	if !served() {
		t.Error("the good one does not serve")
	}
}

// TestControlPlaneRestarts: without it Envoy keeps serving, and what comes back
// finds it as it left it.
func TestControlPlaneRestarts(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	g := newGateway(t, parts{auth: newWorld().server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	serves := func(when string) {
		t.Helper()
		if got := g.must("GET", "/http/t/x", "", "Authorization", "Bearer good"); got.status != http.StatusOK {
			t.Fatalf("%s: %+v", when, got)
		}
	}
	serves("at first")
	g.stopADS()
	for range 20 {
		serves("without a control plane")
	}
	stop := make(chan struct{})
	failed := make(chan answer, 1)
	go func() { // traffic throughout the return
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := g.do(context.Background(), g.client, "GET", "/http/t/x", "", "Authorization", "Bearer good")
			if err != nil || got.status != http.StatusOK {
				failed <- got
				return
			}
		}
	}()
	var err error
	if g.control, err = xds.NewServer(xds.ServerConfig{Logger: logger(t)}, g.build()); err != nil {
		t.Fatal(err)
	}
	serve(t, g.adsPath, g.control)
	eventually(t, "in sync with the new control plane", g.inSync)
	close(stop)
	if got, ok := <-failed; ok {
		t.Errorf("a request failed on the way: %+v", got)
	}
	serves("in the end")
}

// TestEnvoyFirst: an Envoy without a control plane does not listen.
func TestEnvoyFirst(t *testing.T) {
	t.Parallel()
	dir := envoytest.SocketDir(t)
	address := envoytest.ReserveAddress(t)
	e, run := envoytest.Prepare(t, envoytest.Options{ADSSocket: filepath.Join(dir, "ads.sock")})
	run()
	eventually(t, "envoy is up", func() bool {
		_, err := e.Admin.Get(t.Context(), "/server_info")
		return err == nil
	})
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Fatal("it listens")
	}
	p := newPKI(t)
	s, err := xds.Build(xds.Config{Hold: time.Minute, Sockets: xds.Sockets{Services: filepath.Join(dir, "services.sock")},
		Listen: xds.Listen{HTTPS: address, Certificate: p.cert, Key: access.NewSecret(string(p.key))}})
	if err != nil {
		t.Fatal(err)
	}
	control, err := xds.NewServer(xds.ServerConfig{Logger: logger(t)}, s)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, filepath.Join(dir, "ads.sock"), control)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := e.Supervisor.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: p.pool})
	if err != nil {
		t.Fatal(err)
	}
	if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("TLS version %x", v)
	}
	conn.Close()
	if conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: p.pool, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is served")
	}
}

// TestControlPlaneOverTCP: with mutual TLS, by the bootstrap's own files.
func TestControlPlaneOverTCP(t *testing.T) {
	t.Parallel()
	p, stranger := newPKI(t), newPKI(t)
	files := func(p pki) *envoy.ClientTLS {
		dir := t.TempDir()
		c := &envoy.ClientTLS{CAFile: filepath.Join(dir, "ca"), CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key")}
		for path, content := range map[string][]byte{c.CAFile: p.ca, c.CertFile: p.cert, c.KeyFile: p.key} {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	s, err := xds.Build(xds.Config{Listen: xds.Listen{Postgres: envoytest.ReserveAddress(t)}, Sockets: xds.Sockets{Postgres: "/nowhere.sock"}})
	if err != nil {
		t.Fatal(err)
	}
	control, err := xds.NewServer(xds.ServerConfig{Logger: logger(t)}, s)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- control.Serve(ctx, l, grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{pair}, ClientCAs: p.pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13})))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	client := files(p)
	envoytest.Start(t, envoytest.Options{ADS: envoy.ADS{Address: l.Addr().String(), TLS: client}, NodeID: "friend"})
	if n := control.Status().Nodes; len(n) != 1 || n[0].ID != "friend" {
		t.Fatalf("nodes %+v", n)
	}
	other := files(stranger)
	other.CAFile = client.CAFile // it trusts the control plane; the control plane does not trust it
	e, run := envoytest.Prepare(t, envoytest.Options{ADS: envoy.ADS{Address: l.Addr().String(), TLS: other}, NodeID: "stranger"})
	run()
	eventually(t, "the stranger has tried", func() bool {
		stats, err := e.Admin.Get(t.Context(), "/stats?filter=control_plane.connected_state|chaperone-ads.upstream_cx_destroy$")
		return err == nil && strings.Contains(string(stats), "control_plane.connected_state: 0") &&
			!strings.Contains(string(stats), "upstream_cx_destroy: 0")
	})
	if n := control.Status().Nodes; len(n) != 1 {
		t.Errorf("the stranger is served: %s", fmt.Sprint(n))
	}
}
