package datapath_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"chaperone.dev/chaperone/envoy/envoytest"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/xds"
)

// A pki is one CA with a leaf for 127.0.0.1 and localhost.
type pki struct {
	ca, cert, key []byte
	pool          *x509.CertPool
}

func newPKI(t testing.TB) pki {
	t.Helper()
	caKey, ca := certificate(t, nil, nil)
	leafKey, leaf := certificate(t, ca, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	p := pki{
		ca:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}),
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		pool: x509.NewCertPool(),
	}
	p.pool.AddCert(ca)
	return p
}

// certificate makes a CA, or a leaf of parent.
func certificate(t testing.TB, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if parent == nil {
		template.Subject = pkix.Name{CommonName: "test CA"}
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, parentKey = template, key
	} else {
		template.Subject = pkix.Name{CommonName: "test gateway"}
		template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// A received is one request as the target got it.
type received struct {
	method, path, host string
	header, trailer    http.Header
	body               []byte
}

// A recordingTarget is a minimal service that keeps what reached it.
type recordingTarget struct {
	*httptest.Server
	answer http.HandlerFunc // nil answers {"ok":true}

	mu   sync.Mutex
	seen []received
}

func newTarget(t testing.TB, answer http.HandlerFunc) *recordingTarget {
	t.Helper()
	rt := &recordingTarget{answer: answer}
	rt.Server = httptest.NewServer(rt)
	t.Cleanup(rt.Close)
	return rt
}

func (rt *recordingTarget) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	rt.mu.Lock()
	rt.seen = append(rt.seen, received{r.Method, r.RequestURI, r.Host, r.Header.Clone(), r.Trailer, body})
	rt.mu.Unlock()
	if rt.answer != nil {
		rt.answer(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"ok":true}`+"\n")
}

// take returns what arrived since the last take.
func (rt *recordingTarget) take() []received {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	seen := rt.seen
	rt.seen = nil
	return seen
}

// A gateway is a real Envoy with a control plane, and services given by the test.
type gateway struct {
	t        testing.TB
	pki      pki
	dir      string
	address  string // of the HTTPS listener
	cfg      xds.Config
	control  *xds.Server
	envoy    *envoytest.Envoy
	client   *http.Client
	services *grpc.Server
	adsPath  string
	stopADS  func()
}

// http2 is a client that insists on HTTP/2.
func (g *gateway) http2() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: g.pki.pool}, Protocols: protocols}}
	g.t.Cleanup(c.CloseIdleConnections)
	return c
}

// parts are what a test puts around the Envoy.
type parts struct {
	auth    authv3.AuthorizationServer        // nil: nobody listens on the services socket
	proc    extprocv3.ExternalProcessorServer // nil: one that changes nothing
	edit    func(*xds.Config)
	options []grpc.ServerOption
}

func newGateway(t testing.TB, p parts, resources ...xds.HTTPResource) *gateway {
	t.Helper()
	g := &gateway{t: t, pki: newPKI(t), dir: envoytest.SocketDir(t), address: envoytest.ReserveAddress(t)}
	g.cfg = xds.Config{
		Revision: "test", Hold: time.Minute, HTTP: resources,
		Listen:  xds.Listen{HTTPS: g.address, Certificate: g.pki.cert, Key: access.NewSecret(string(g.pki.key))},
		Sockets: xds.Sockets{Services: filepath.Join(g.dir, "services.sock"), API: filepath.Join(g.dir, "api.sock")},
	}
	if p.edit != nil {
		p.edit(&g.cfg)
	}
	if p.auth != nil {
		g.serveServices(p)
	}
	var err error
	if g.control, err = xds.NewServer(xds.ServerConfig{Logger: logger(t)}, g.build()); err != nil {
		t.Fatal(err)
	}
	g.adsPath = filepath.Join(g.dir, "ads.sock")
	g.stopADS = serve(t, g.adsPath, g.control)
	g.envoy = envoytest.Start(t, envoytest.Options{ADSSocket: g.adsPath})
	g.client = &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: g.pki.pool}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       30 * time.Second,
	}
	t.Cleanup(g.client.CloseIdleConnections)
	return g
}

func (g *gateway) build() *xds.Snapshot {
	g.t.Helper()
	s, err := xds.Build(g.cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

func (g *gateway) serveServices(p parts) {
	g.t.Helper()
	g.services = grpc.NewServer(append(xds.ServerOptions(), p.options...)...)
	authv3.RegisterAuthorizationServer(g.services, p.auth)
	proc := p.proc
	if proc == nil {
		proc = &passing{}
	}
	extprocv3.RegisterExternalProcessorServer(g.services, proc)
	l := envoytest.Listen(g.t, g.cfg.Sockets.Services)
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.services.Serve(l)
	}()
	g.t.Cleanup(func() {
		g.services.Stop()
		<-done
	})
}

// serve runs the control plane on the socket until the test or the returned
// func ends it.
func serve(t testing.TB, socket string, s *xds.Server) (stop func()) {
	t.Helper()
	l := envoytest.Listen(t, socket)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("control plane: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// raw sends the bytes over TLS, HTTP/1.1, and returns the answer: for requests
// that no client library would write.
func (g *gateway) raw(request string) answer {
	g.t.Helper()
	conn, err := tls.Dial("tcp", g.address, &tls.Config{RootCAs: g.pki.pool, ServerName: "localhost"})
	if err != nil {
		g.t.Fatal(err)
	}
	return exchange(g.t, conn, request)
}

// An answer is a response, read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

// problem is the body as a problem document.
func (a answer) problem(t testing.TB) map[string]any {
	t.Helper()
	var p map[string]any
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || a.header.Get("Content-Type") != access.ProblemType {
		t.Fatalf("%d %v %q is not a problem document: %v", a.status, a.header, a.body, err)
	}
	return p
}

// refused fails the test unless a is the uniform denial.
func (a answer) refused(t testing.TB, status int, reason access.Reason) {
	t.Helper()
	p := a.problem(t)
	if a.status != status || p["status"] != float64(status) || p["reason"] != string(reason) || p["title"] != http.StatusText(status) ||
		p["type"] != "urn:chaperone:denial:"+string(reason) || p["message"] == "" || p["detail"] != p["message"] || p["requestable"] == nil {
		t.Fatalf("got %d %v; want %d %s", a.status, p, status, reason)
	}
	if id, _ := p["request_id"].(string); !strings.HasPrefix(id, "req_") {
		t.Fatalf("no request id: %v", p)
	}
}

// exchange writes request and reads one answer.
func exchange(t testing.TB, conn net.Conn, request string) answer {
	t.Helper()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer to %.60q: %v", request, err)
	}
	return whole(t, resp)
}

func whole(t testing.TB, resp *http.Response) answer {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// line is an HTTP/1.1 request without a body.
func line(method, target string, headers ...string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: gateway\r\n" + strings.Join(append(headers, "", ""), "\r\n")
}

// do sends an ordinary request; headers are name, value, name, value, …
func (g *gateway) do(ctx context.Context, client *http.Client, method, path, body string, headers ...string) (answer, error) {
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+g.address+path, r)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

func (g *gateway) must(method, path, body string, headers ...string) answer {
	g.t.Helper()
	a, err := g.do(g.t.Context(), g.client, method, path, body, headers...)
	if err != nil {
		g.t.Fatal(err)
	}
	return a
}

// eventually polls for what happens in its own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(20 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// passing is a processor that changes nothing and notes what it was shown.
type passing struct {
	extprocv3.UnimplementedExternalProcessorServer
	mu       sync.Mutex
	requests []*extprocv3.ProcessingRequest
}

func (p *passing) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.requests = append(p.requests, req)
		p.mu.Unlock()
		resp := &extprocv3.ProcessingResponse{}
		switch req.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			resp.Response = &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}
		case *extprocv3.ProcessingRequest_ResponseBody:
			resp.Response = &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}
		case *extprocv3.ProcessingRequest_ResponseTrailers:
			resp.Response = &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (p *passing) take() []*extprocv3.ProcessingRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.requests
	p.requests = nil
	return r
}
