package kube

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/spdystream"
	"golang.org/x/net/websocket"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/session/ticket"
)

const (
	apiToken = "token-of-the-gateway"
	card     = "4111111111111111"
)

// A world is the service between a client and an API server of the test's.
type world struct {
	t       *testing.T
	service *Service
	front   *httptest.Server // where Envoy is
	asked   chan *http.Request

	mu     sync.Mutex
	events []access.Event
	full   bool // the recorder fails
	kill   context.CancelCauseFunc

	clients []io.Closer
}

// newWorld starts the service; api is what the API server does with requests.
func newWorld(t *testing.T, api http.HandlerFunc) *world {
	t.Helper()
	w := &world{t: t, asked: make(chan *http.Request, 16)}
	server := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.asked <- r
		api(rw, r)
	}))
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	address := server.Listener.Addr().String()
	session, kill := context.WithCancelCause(context.Background())
	w.kill = kill
	t.Cleanup(func() { kill(nil) })
	var err error
	w.service, err = New(Config{RecordedTerminal: 1 << 20}, Deps{Recorder: w, Watch: func(string) (context.Context, func()) { return session, func() {} },
		Resource: func(name string) (Resource, bool) {
			return Resource{Address: address, Host: "kube.internal", Token: access.NewSecret(apiToken),
				TLS: &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS12}, Literals: mask.NewLiterals(apiToken)}, name == "cluster"
		}})
	if err != nil {
		t.Fatal(err)
	}
	w.front = httptest.NewServer(w.service)
	t.Cleanup(w.front.Close)
	return w
}

// Append keeps events.
func (w *world) Append(_ context.Context, _ access.Durability, evs ...access.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full {
		return io.ErrShortWrite
	}
	w.events = append(w.events, evs...)
	return nil
}

// recorded hangs up, waits for the end of the flow, and returns its events as
// JSON.
func (w *world) recorded() (string, *access.Ended) {
	w.t.Helper()
	for _, c := range w.clients {
		_ = c.Close()
	}
	w.service.flows.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	text, err := json.Marshal(w.events)
	if err != nil || len(w.events) == 0 || w.events[len(w.events)-1].Ended == nil {
		w.t.Fatalf("the recording does not end: %s, %v", text, err)
	}
	return string(text), w.events[len(w.events)-1].Ended
}

// permit is one for a call below the pod web.
func permit(method, subresource, query string, change ...func(*Permit)) Permit {
	values, err := url.ParseQuery(query)
	if err != nil {
		panic(err)
	}
	power := map[string]string{"exec": access.PowerExec, "attach": access.PowerAttach, "portforward": access.PowerPortForward}[subresource]
	p := Permit{Impersonate: http.Header{"Impersonate-User": {"chaperone:dex:ana"}}, Request: access.Request{ID: "req_1", Session: "ses_1",
		Resource: access.Resource{Name: "cluster", Kind: access.Kubernetes},
		Action: access.Action{K8s: &access.K8s{Method: method, Path: "/api/v1/namespaces/shop/pods/web/" + subresource, Query: values, Subresource: subresource,
			Powers: []string{power}, Terminal: values.Has("tty"), Stdin: values.Has("stdin")}}}}
	p.Decision.Effect = access.Allow
	for _, c := range change {
		c(&p)
	}
	return p
}

// masked has card numbers masked.
func masked(p *Permit) {
	p.Decision.Obligations.Masks = []access.Mask{{Detect: []string{"CREDIT_CARD"}}}
}

// ask sends what Envoy would pass on, and returns the answer and the connection.
func (w *world) ask(p Permit, shown string, header http.Header) (*http.Response, net.Conn, *bufio.Reader) {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.front.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.clients = append(w.clients, conn)
	w.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	k := p.Request.Action.K8s
	r := &http.Request{Method: k.Method, Host: "gateway", Header: header.Clone(), ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Path: k.Path, RawQuery: url.Values(k.Query).Encode()}}
	if shown != "" {
		r.Header.Set(ticket.Header, shown)
	}
	if err := r.Write(conn); err != nil {
		w.t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	answer, err := http.ReadResponse(reader, r)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer, conn, reader
}

func (w *world) admit(p Permit) string {
	w.t.Helper()
	id, err := w.service.Admit(p)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func webSocket(protocols ...string) http.Header {
	return http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Protocol": {strings.Join(protocols, ", ")}}
}

func spdyUpgrade(protocols ...string) http.Header {
	return http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": protocols}
}

// A channelClient is a client with channels, as another library writes them.
type channelClient struct{ *websocket.Conn }

func (w *world) channels(p Permit, protocols ...string) channelClient {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.front.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	k := p.Request.Action.K8s
	config := &websocket.Config{Location: &url.URL{Scheme: "ws", Host: "gateway", Path: k.Path, RawQuery: url.Values(k.Query).Encode()},
		Origin: &url.URL{Scheme: "http", Host: "gateway"}, Version: websocket.ProtocolVersionHybi13, Protocol: protocols,
		Header: http.Header{ticket.Header: {w.admit(p)}, "Impersonate-User": {"system:admin"}}}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ws.Close() })
	w.clients = append(w.clients, ws)
	ws.PayloadType = websocket.BinaryFrame
	return channelClient{ws}
}

// all reads to the end; it returns what came on each channel.
func (c channelClient) all() map[byte]string {
	got := map[byte]string{}
	for {
		var m []byte
		if websocket.Message.Receive(c.Conn, &m) != nil {
			return got
		}
		if len(m) > 0 {
			got[m[0]] += string(m[1:])
		}
	}
}

func (c channelClient) send(t *testing.T, m string) {
	t.Helper()
	if _, err := c.Write([]byte(m)); err != nil {
		t.Fatal(err)
	}
}

// webSocketAPI is an API server that speaks WebSocket.
func webSocketAPI(serve func(ws *websocket.Conn)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		websocket.Server{
			Handshake: func(c *websocket.Config, _ *http.Request) error { c.Protocol = c.Protocol[:1]; return nil },
			Handler:   func(ws *websocket.Conn) { ws.PayloadType = websocket.BinaryFrame; serve(ws) },
		}.ServeHTTP(w, r)
	}
}

// spdyAPI is an API server that speaks SPDY. serve gets the streams by type once
// all that the client opens are there.
func spdyAPI(expected int, serve func(streams map[string]*spdystream.Stream)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "SPDY/3.1")
		w.Header().Set(versionHeader, r.Header.Get(versionHeader))
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		serveSPDY(readFirst{conn, buffered.Reader}, expected, serve)
	}
}

// readFirst reads what came before the connection left HTTP.
type readFirst struct {
	net.Conn
	from io.Reader
}

func (r readFirst) Read(p []byte) (int, error) { return r.from.Read(p) }

func (r readFirst) CloseWrite() error { return r.Conn.(*tls.Conn).CloseWrite() }

func serveSPDY(conn net.Conn, expected int, serve func(streams map[string]*spdystream.Stream)) {
	server, err := spdystream.NewConnection(conn, true)
	if err != nil {
		return
	}
	opened := make(chan *spdystream.Stream, 16)
	go server.Serve(func(s *spdystream.Stream) {
		_ = s.SendReply(http.Header{}, false)
		opened <- s
	})
	streams := map[string]*spdystream.Stream{}
	for range expected {
		s := <-opened
		streams[s.Headers().Get("streamtype")] = s
	}
	serve(streams)
	if half, ok := conn.(readFirst); ok {
		_ = half.CloseWrite()
		return
	}
	_ = conn.Close()
}

// open opens streams of these types.
func open(t *testing.T, c *spdystream.Connection, headers ...http.Header) (streams []*spdystream.Stream) {
	t.Helper()
	for _, h := range headers {
		s, err := c.CreateStream(h, nil, false)
		if err == nil {
			err = s.WaitTimeout(10 * time.Second)
		}
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	return streams
}

func ofType(kinds ...string) (all []http.Header) {
	for _, kind := range kinds {
		all = append(all, http.Header{"streamtype": {kind}})
	}
	return all
}
