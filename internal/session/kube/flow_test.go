package kube

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/spdystream"
	"golang.org/x/net/websocket"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ticket"
)

const success = `{"status":"Success"}`

func receive(ws *websocket.Conn) (m []byte) {
	_ = websocket.Message.Receive(ws, &m)
	return m
}

func TestExecByWebSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, webSocketAPI(func(ws *websocket.Conn) {
		_, _ = ws.Write([]byte{channelStdout})
		line := receive(ws)
		size := receive(ws)
		_ = receive(ws) // the end of stdin
		_, _ = ws.Write(append([]byte{channelStdout}, line[1:]...))
		_, _ = ws.Write(append([]byte{channelStderr}, size[1:]...))
		_, _ = ws.Write(append([]byte{channelError}, `{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}`...))
	}))
	c := w.channels(permit("GET", "exec", "command=cat&stdin=true&tty=true", masked), "v5.channel.k8s.io", "base64.channel.k8s.io")
	c.send(t, "\x00pay "+card+" now")
	c.send(t, "\x04"+`{"Width":80,"Height":24}`)
	c.send(t, "\xff\x00")
	got := c.all()
	if got[channelStdout] != "pay *** now" || got[channelStderr] != `{"Width":80,"Height":24}` || !strings.Contains(got[channelError], "ExitCode") {
		t.Errorf("got %q", got)
	}
	asked := <-w.asked
	if h := asked.Header; asked.URL.String() != "/api/v1/namespaces/shop/pods/web/exec?command=cat&stdin=true&tty=true" || asked.Host != "kube.internal" ||
		h.Get("Authorization") != "Bearer "+apiToken || h.Get("Impersonate-User") != "chaperone:dex:ana" || h.Get(ticket.Header) != "" ||
		h.Get(protocolHeader) != "v5.channel.k8s.io" {
		t.Errorf("the API server was asked %s %v", asked.URL, h)
	}
	text, ended := w.recorded()
	if strings.Contains(text, card) || !strings.Contains(text, `"name":"stdin","text":"pay ***`) || !strings.Contains(text, `"columns":80,"rows":24`) {
		t.Errorf("recorded %s", text)
	}
	if ended.Tag != "exit 3" || ended.Masked != 1 || len(ended.Streams) != 3 {
		t.Errorf("ended %+v", ended)
	}
}

func TestExecBySPDY(t *testing.T) {
	t.Parallel()
	w := newWorld(t, spdyAPI(5, func(s map[string]*spdystream.Stream) {
		in, _ := io.ReadAll(s["stdin"])
		_, _ = s["stdout"].Write(in)
		_ = s["stdout"].Close()
		_, _ = s["stderr"].Write([]byte("careful"))
		_ = s["stderr"].Close()
		_, _ = s["error"].Write([]byte(success))
		_ = s["error"].Close()
	}))
	p := permit("POST", "exec", "command=cat&stdin=true", masked)
	answer, conn, _ := w.ask(p, w.admit(p), spdyUpgrade("v5.channel.k8s.io", "v4.channel.k8s.io", "v1.channel.k8s.io"))
	if answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get(versionHeader) != "v5.channel.k8s.io" {
		t.Fatal(answer.Status, answer.Header)
	}
	client, err := spdystream.NewConnection(conn, false)
	if err != nil {
		t.Fatal(err)
	}
	go client.Serve(spdystream.NoOpStreamHandler)
	s := open(t, client, ofType("error", "stdin", "stdout", "stderr", "resize")...)
	_, _ = s[4].Write([]byte(`{"Width":80,"Height":24}` + "\n"))
	for _, part := range []string{"pay 4111", "11111111", "1111 now"} {
		if _, err := s[1].Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	_ = s[1].Close()
	for i, want := range map[int]string{2: "pay *** now", 3: "careful", 0: success} {
		if got, err := io.ReadAll(s[i]); string(got) != want {
			t.Errorf("stream %d: %q, %v", i, got, err)
		}
	}
	text, ended := w.recorded()
	if strings.Contains(text, card) || ended.Tag != "exit 0" || ended.Masked != 1 {
		t.Errorf("recorded %s", text)
	}
}

// TestMaskingSplitAtEveryByte never shows a client what is masked, however the
// API server cuts it.
func TestMaskingSplitAtEveryByte(t *testing.T) {
	t.Parallel()
	text := "card " + card + "!"
	for cut := 1; cut < len(text); cut++ {
		ws := newWorld(t, webSocketAPI(func(ws *websocket.Conn) {
			_, _ = ws.Write(append([]byte{channelStdout}, text[:cut]...))
			_, _ = ws.Write(append([]byte{channelStderr}, text[:cut]...))
			_, _ = ws.Write(append([]byte{channelStdout}, text[cut:]...))
			_, _ = ws.Write(append([]byte{channelStderr}, text[cut:]...))
			_, _ = ws.Write(append([]byte{channelError}, success...))
		}))
		if got := ws.channels(permit("GET", "attach", "", masked), protocolV4).all(); got[1] != "card ***!" || got[2] != "card ***!" || got[3] != success {
			t.Errorf("WebSocket, cut at %d: %q", cut, got)
		}
		spdy := newWorld(t, spdyAPI(2, func(s map[string]*spdystream.Stream) {
			_, _ = s["stdout"].Write([]byte(text[:cut]))
			_, _ = s["stdout"].Write([]byte(text[cut:]))
			_ = s["stdout"].Reset()
			_, _ = s["error"].Write([]byte(success))
			_ = s["error"].Close()
		}))
		p := permit("POST", "attach", "", masked)
		_, conn, _ := spdy.ask(p, spdy.admit(p), spdyUpgrade(protocolV4))
		client, err := spdystream.NewConnection(conn, false)
		if err != nil {
			t.Fatal(err)
		}
		go client.Serve(spdystream.NoOpStreamHandler)
		got, _ := io.ReadAll(open(t, client, ofType("stdout", "error")...)[0])
		if string(got) != "card ***!" {
			t.Errorf("SPDY, cut at %d: %q", cut, got)
		}
		spdy.recorded()
	}
}

// tunnelled is the other end of SPDY within a WebSocket.
type tunnelled struct{ *websocket.Conn }

func (t tunnelled) SetDeadline(time.Time) error { return nil }

func TestPortForwardInATunnel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, webSocketAPI(func(ws *websocket.Conn) {
		serveSPDY(tunnelled{ws}, 2, func(s map[string]*spdystream.Stream) {
			_ = s["error"].Close()
			in, _ := io.ReadAll(s["data"])
			_, _ = s["data"].Write(append([]byte("\x00echo "), in...))
			_ = s["data"].Close()
		})
	}))
	ws := w.channels(permit("GET", "portforward", ""), tunnel)
	client, err := spdystream.NewConnection(tunnelled(ws), false)
	if err != nil {
		t.Fatal(err)
	}
	go client.Serve(spdystream.NoOpStreamHandler)
	header := func(kind string) http.Header {
		return http.Header{"streamtype": {kind}, "port": {"8080"}, "requestid": {"0"}}
	}
	s := open(t, client, header("error"), header("data"))
	_ = s[0].Close()
	if _, err := s[1].Write([]byte(card)); err != nil {
		t.Fatal(err)
	}
	_ = s[1].Close()
	if got, _ := io.ReadAll(s[1]); string(got) != "\x00echo "+card {
		t.Errorf("got %q", got)
	}
	text, ended := w.recorded()
	if strings.Contains(text, card) || len(ended.Streams) != 2 || ended.Streams[0].Name != "to 8080" || ended.Streams[0].Bytes != 16 ||
		ended.Streams[1].Name != "from 8080" || ended.Streams[1].Bytes != 22 {
		t.Errorf("recorded %s", text)
	}
}

func TestAForwardedPortCannotBeMasked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, spdyAPI(1, func(map[string]*spdystream.Stream) {}))
	p := permit("POST", "portforward", "", masked)
	if answer, _, _ := w.ask(p, w.admit(p), spdyUpgrade(portForward)); answer.StatusCode != http.StatusForbidden || len(w.asked) != 0 {
		t.Errorf("%s, %d requests reached the API server", answer.Status, len(w.asked))
	}
}

// TestHostileClients end themselves, and nothing of it reaches the API server.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	for name, message := range map[string]string{
		"an unknown channel": "\x07x", "stdout": "\x01x", "an error": "\x03x", "no channel": "", "stdin that was not asked for": "\x00x",
		"a size of text": "\x04{}}", "a large size": "\x04" + strings.Repeat(" ", maxSizes+1), "another channel's end": "\xff\x01",
	} {
		reached := make(chan []byte, 1)
		w := newWorld(t, webSocketAPI(func(ws *websocket.Conn) { reached <- receive(ws) }))
		c := w.channels(permit("GET", "exec", "command=id"), protocolV5)
		c.send(t, message)
		if got := c.all(); !strings.Contains(got[channelError], "cannot be read") {
			t.Errorf("%s: the client hears %q", name, got)
		}
		if m := <-reached; len(m) > 0 && name != "a size of text" {
			t.Errorf("%s: the API server hears %q", name, m)
		}
		if _, ended := w.recorded(); ended.Tag != string(access.Unreadable) {
			t.Errorf("%s: ended %+v", name, ended)
		}
	}
}

func TestHostileStreams(t *testing.T) {
	t.Parallel()
	for name, headers := range map[string][]http.Header{
		"an unknown type": ofType("stdin2"), "twice the same": ofType("stdout", "stdout"), "no type": {{}},
		"a header beside it": {{"streamtype": {"stdout"}, "x": {"y"}}},
		"many headers":       {many(maxHeaders + 1)},
		"a long header":      {{"streamtype": {strings.Repeat("x", maxHeaderValue+1)}}},
	} {
		w := newWorld(t, spdyAPI(16, func(map[string]*spdystream.Stream) {}))
		p := permit("POST", "exec", "command=id")
		_, conn, _ := w.ask(p, w.admit(p), spdyUpgrade(protocolV4))
		client, err := spdystream.NewConnection(conn, false)
		if err != nil {
			t.Fatal(err)
		}
		go client.Serve(spdystream.NoOpStreamHandler)
		for _, h := range headers {
			if _, err := client.CreateStream(h, nil, false); err != nil {
				t.Fatal(err)
			}
		}
		<-client.CloseChan()
		if _, ended := w.recorded(); ended.Tag != string(access.Unreadable) {
			t.Errorf("%s: ended %+v", name, ended)
		}
	}
}

func many(n int) http.Header {
	h := http.Header{"streamtype": {"stdout"}}
	for i := range n {
		h[fmt.Sprintf("h%d", i)] = []string{"x"}
	}
	return h
}

func TestRawSPDY(t *testing.T) {
	t.Parallel()
	for name, wire := range map[string][]byte{
		"a large control frame":       {0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff},
		"an unknown control frame":    {0x80, 3, 0, 8, 0, 0, 0, 4, 0, 0, 0, 1},
		"another version":             {0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1},
		"data of a stream of nobody":  {0, 0, 0, 9, 0, 0, 0, 1, 'x'},
		"a short stream":              {0x80, 3, 0, 1, 0, 0, 0, 1, 0},
		"headers that are no headers": {0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2},
	} {
		w := newWorld(t, spdyAPI(16, func(map[string]*spdystream.Stream) {}))
		p := permit("POST", "exec", "command=id")
		_, conn, reader := w.ask(p, w.admit(p), spdyUpgrade(protocolV4))
		if _, err := conn.Write(wire); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(reader); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, ended := w.recorded(); ended.Tag != string(access.Unreadable) {
			t.Errorf("%s: ended %+v", name, ended)
		}
	}
}

// TestTickets: a request without the very ticket that was given for it reaches
// nothing. Its twin, with the ticket, does.
func TestTickets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, webSocketAPI(func(*websocket.Conn) {}))
	now := time.Now()
	w.service.tickets = ticket.NewDesk[Permit](func() time.Time { return now })
	p, other := permit("GET", "exec", "command=id"), permit("GET", "attach", "")
	plain := p
	plain.Request.Action.K8s = &access.K8s{Method: "GET", Path: p.Request.Action.K8s.Path}
	used, old := w.admit(p), w.admit(p)
	if answer, _, _ := w.ask(p, used, webSocket(protocolV5)); answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("with its ticket: %s", answer.Status)
	}
	<-w.asked
	now = now.Add(time.Minute)
	two := webSocket(protocolV5)
	two[ticket.Header] = []string{w.admit(p), w.admit(p)}
	for name, c := range map[string]struct {
		ticket string
		header http.Header
	}{
		"none": {"", webSocket(protocolV5)}, "a forged one": {"AAAAAAAAAAAAAAAAAAAAAAAAAA", webSocket(protocolV5)}, "a used one": {used, webSocket(protocolV5)},
		"an old one": {old, webSocket(protocolV5)}, "two": {"", two}, "another request's": {w.admit(other), webSocket(protocolV5)},
		"one that does not leave HTTP": {w.admit(plain), webSocket(protocolV5)},
	} {
		if answer, _, _ := w.ask(p, c.ticket, c.header); answer.StatusCode != http.StatusForbidden || len(w.asked) != 0 {
			t.Errorf("%s: %s, %d requests reached the API server", name, answer.Status, len(w.asked))
		}
	}
	post := permit("POST", "exec", "command=id")
	if answer, _, _ := w.ask(post, w.admit(p), spdyUpgrade(protocolV4)); answer.StatusCode != http.StatusForbidden || len(w.asked) != 0 {
		t.Errorf("POST with the ticket of a GET: %s", answer.Status)
	}
}

func TestHandshakesThatAreNotServed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, webSocketAPI(func(*websocket.Conn) {}))
	p := permit("GET", "exec", "command=id")
	old := webSocket(protocolV5)
	old.Set("Sec-Websocket-Version", "8")
	for name, h := range map[string]http.Header{
		"no upgrade": {}, "h2c": {"Upgrade": {"h2c"}, "Connection": {"Upgrade"}}, "base64": webSocket("base64.channel.k8s.io"),
		"a token": webSocket("base64url.bearer.authorization.k8s.io.dG9rZW4"), "a tunnel": webSocket(tunnel), "an old version": old, "SPDY of port-forward": spdyUpgrade(portForward),
	} {
		if answer, _, _ := w.ask(p, w.admit(p), h); answer.StatusCode != http.StatusForbidden || len(w.asked) != 0 {
			t.Errorf("%s: %s, %d requests reached the API server", name, answer.Status, len(w.asked))
		}
	}
}

// waits is an API server that says something and then nothing.
func waits(ws *websocket.Conn) {
	_, _ = ws.Write([]byte("\x01ready"))
	_ = receive(ws)
}

func TestKilledFlowsTellTheirClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t, webSocketAPI(waits))
	c := w.channels(permit("GET", "exec", "command=top"), protocolV5)
	_ = receive(c.Conn)
	w.kill(&access.Denial{Reason: access.SessionEnded, Message: "an operator ended this session"})
	if got := c.all(); !strings.Contains(got[channelError], "an operator ended this session") {
		t.Errorf("the client hears %q", got)
	}
	if _, ended := w.recorded(); ended.Tag != string(access.SessionEnded) {
		t.Errorf("ended %+v", ended)
	}

	spdy := newWorld(t, spdyAPI(2, func(s map[string]*spdystream.Stream) {
		_, _ = s["stdout"].Write([]byte("ready"))
		_, _ = io.ReadAll(s["stdout"])
	}))
	p := permit("POST", "exec", "command=top")
	_, conn, _ := spdy.ask(p, spdy.admit(p), spdyUpgrade(protocolV4))
	client, err := spdystream.NewConnection(conn, false)
	if err != nil {
		t.Fatal(err)
	}
	go client.Serve(spdystream.NoOpStreamHandler)
	s := open(t, client, ofType("stdout", "error")...)
	if _, err := s[0].Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	spdy.kill(&access.Denial{Reason: access.SessionEnded, Message: "an operator ended this session"})
	if got, _ := io.ReadAll(s[1]); !strings.Contains(string(got), "an operator ended this session") {
		t.Errorf("SPDY: the client hears %q", got)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits access.Limits
		says   string
	}{
		"bytes": {access.Limits{Bytes: 4}, "more than 4 bytes"}, "time": {access.Limits{Time: 50 * time.Millisecond}, "longer than 50ms"},
	} {
		w := newWorld(t, webSocketAPI(waits))
		p := permit("GET", "exec", "command=top", func(p *Permit) { p.Decision.Obligations.Limits = c.limits })
		if got := w.channels(p, protocolV5).all(); !strings.Contains(got[channelError], c.says) || name == "bytes" && got[channelStdout] != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestUnrecordedOutputDoesNotPass: what cannot be written down is not shown.
func TestUnrecordedOutputDoesNotPass(t *testing.T) {
	t.Parallel()
	w := newWorld(t, webSocketAPI(waits))
	w.full = true
	if got := w.channels(permit("GET", "exec", "command=top"), protocolV5).all(); got[channelStdout] != "" || got[channelError] == "" {
		t.Errorf("the client hears %q", got)
	}
}

func TestBinaryIsPassedOrRefused(t *testing.T) {
	t.Parallel()
	archive := "tar\x00\xff" + card
	api := webSocketAPI(func(ws *websocket.Conn) {
		_, _ = ws.Write([]byte("\x01" + archive))
		_, _ = ws.Write([]byte("\x03" + success))
	})
	w := newWorld(t, api)
	if got := w.channels(permit("GET", "exec", "command=tar"), protocolV5).all(); got[channelStdout] != archive {
		t.Errorf("without masks: %q", got)
	}
	if text, _ := w.recorded(); strings.Contains(text, card) || !strings.Contains(text, `"omitted":21`) {
		t.Errorf("recorded %s", text)
	}
	w = newWorld(t, api)
	if got := w.channels(permit("GET", "exec", "command=tar", masked), protocolV5).all(); got[channelStdout] != "" || !strings.Contains(got[channelError], "not text") {
		t.Errorf("with masks: %q", got)
	}
}

func TestTheAPIServersNoIsPassedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(rw, `{"kind":"Status","message":"%s may not, %s"}`, apiToken, card)
	})
	p := permit("GET", "exec", "command=id", masked)
	answer, _, _ := w.ask(p, w.admit(p), webSocket(protocolV5))
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusForbidden || strings.Contains(string(body), apiToken) || strings.Contains(string(body), card) ||
		!strings.Contains(string(body), "may not, ***") {
		t.Errorf("%s %s %v", answer.Status, body, err)
	}
	w.recorded()
}

// TestALyingAPIServer answers what was not asked for.
func TestALyingAPIServer(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"another protocol": "Upgrade: websocket\r\nSec-WebSocket-Protocol: v1.channel.k8s.io",
		"no accept":        "Upgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io",
		"another upgrade":  "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v5.channel.k8s.io",
		"an endless head":  "X: " + strings.Repeat("x", maxAnswer),
	} {
		w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
			var conn net.Conn
			conn, _, _ = rw.(http.Hijacker).Hijack()
			defer conn.Close()
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n%s\r\n\r\n\x81\x01x", head)
		})
		p := permit("GET", "exec", "command=id")
		if answer, _, _ := w.ask(p, w.admit(p), webSocket(protocolV5)); answer.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: %s", name, answer.Status)
		}
	}
}
