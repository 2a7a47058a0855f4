package kube

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1" // RFC 6455, section 4.2.2: no secret rests on it
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/transcript"
)

// The protocols that are served, by where they are asked for.
const (
	protocolV5  = "v5.channel.k8s.io"
	protocolV4  = "v4.channel.k8s.io"
	portForward = "portforward.k8s.io"
	tunnel      = "SPDY/3.1+" + portForward // SPDY within a WebSocket

	protocolHeader = "Sec-Websocket-Protocol"
	versionHeader  = "X-Stream-Protocol-Version" // the same for SPDY

	upgradeWebSocket = "websocket"
	upgradeSPDY      = "SPDY/3.1"
)

// A handshake is what a client asks for beside its request, and later what the
// API server chose.
type handshake struct {
	upgrade string   // upgradeWebSocket or upgradeSPDY
	offered []string // of the served protocols
	key     string   // of the client's WebSocket

	chosen string
}

// served are the protocols for a kind of request.
func (f *flow) served(upgrade string) []string {
	switch {
	case !f.forwards():
		return []string{protocolV5, protocolV4}
	case upgrade == upgradeWebSocket:
		return []string{tunnel}
	}
	return []string{portForward}
}

// handshake reads what the client asks for.
func (f *flow) handshake(r *http.Request) (*handshake, *access.Denial) {
	unserved := func(message string) *access.Denial {
		return f.denial(access.Unsupported, message, "use a kubectl or a client library of Kubernetes 1.30 or newer")
	}
	h := &handshake{}
	header := versionHeader
	switch upgrade := r.Header.Values("Upgrade"); {
	case len(upgrade) == 1 && strings.EqualFold(upgrade[0], upgradeWebSocket):
		h.upgrade, header = upgradeWebSocket, protocolHeader
		h.key = r.Header.Get("Sec-Websocket-Key")
		if nonce, err := base64.StdEncoding.DecodeString(h.key); err != nil || len(nonce) != 16 || r.Header.Get("Sec-Websocket-Version") != "13" || r.Method != http.MethodGet {
			return nil, unserved("that is no WebSocket of RFC 6455")
		}
	case len(upgrade) == 1 && strings.EqualFold(upgrade[0], upgradeSPDY):
		h.upgrade = upgradeSPDY
	default:
		return nil, unserved("exec, attach and port-forward are served over WebSocket and SPDY/3.1 only")
	}
	known := f.served(h.upgrade)
	for _, line := range r.Header.Values(header) {
		for one := range strings.SplitSeq(line, ",") {
			if one = strings.TrimSpace(one); slices.Contains(known, one) && !slices.Contains(h.offered, one) {
				h.offered = append(h.offered, one)
			}
		}
	}
	if len(h.offered) == 0 {
		return nil, unserved("none of the protocols that you offer is served here: " + strings.Join(known, ", "))
	}
	return h, nil
}

// accept is what a server answers to the key of a WebSocket.
func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// reach asks the API server. When it says no, that is passed on, recorded, and
// the side has no connection.
func (f *flow) reach(ctx context.Context, w http.ResponseWriter, h *handshake) (side, *access.Denial) {
	unreachable := func(err error) *access.Denial {
		if ctx.Err() != nil {
			return f.denialOf(context.Cause(ctx))
		}
		f.log.Warn("API server not reached", "request", f.permit.Request.ID, "error", err)
		return f.denial(access.Unavailable, "the gateway cannot reach "+f.permit.Request.Resource.Name, "try again; tell the operators if it lasts")
	}
	resource, ok := f.deps.Resource(f.permit.Request.Resource.Name)
	if !ok {
		return side{}, unreachable(errors.New("it is not configured any more"))
	}
	f.resource = resource
	conn, err := f.dial(ctx)
	if err != nil {
		return side{}, unreachable(err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_ = conn.SetDeadline(time.Now().Add(f.cfg.HandshakeTimeout))
	up := side{conn, bufio.NewReaderSize(conn, chunk)}
	request, key := f.request(h)
	if err := request.Write(conn); err != nil {
		_ = conn.Close()
		return side{}, unreachable(err)
	}
	answer, err := readAnswer(up.reader, request)
	if err == nil && answer.StatusCode == http.StatusSwitchingProtocols {
		err = h.check(answer.Header, key)
	}
	if err != nil {
		_ = conn.Close()
		return side{}, unreachable(err)
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		defer conn.Close()
		return side{}, f.saysNo(w, answer)
	}
	_ = conn.SetDeadline(time.Time{})
	return up, nil
}

func (f *flow) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.DialTimeout)
	defer cancel()
	config := f.resource.TLS.Clone()
	config.NextProtos = []string{"http/1.1"}
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", f.resource.Address)
}

// request is what was judged, and nothing that the client says beside it but
// the protocols that it can.
func (f *flow) request(h *handshake) (r *http.Request, key string) {
	header := f.permit.Impersonate.Clone()
	if header == nil {
		header = http.Header{}
	}
	if !f.resource.Token.Empty() {
		header.Set("Authorization", "Bearer "+f.resource.Token.Reveal())
	}
	header.Set("Connection", "Upgrade")
	header.Set("Upgrade", h.upgrade)
	header.Set("User-Agent", "chaperone")
	if h.upgrade == upgradeWebSocket {
		nonce := make([]byte, 16)
		_, _ = rand.Read(nonce) // never fails
		key = base64.StdEncoding.EncodeToString(nonce)
		header.Set("Sec-Websocket-Key", key)
		header.Set("Sec-Websocket-Version", "13")
		header.Set(protocolHeader, strings.Join(h.offered, ", "))
	} else {
		header[versionHeader] = h.offered
	}
	return &http.Request{Method: f.call.Method, Host: f.resource.Host, Header: header, ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Path: f.call.Path, RawQuery: url.Values(f.call.Query).Encode()}}, key
}

// maxAnswer bounds the head of an answer, and the body of one that says no.
const maxAnswer = 64 << 10

func readAnswer(from *bufio.Reader, request *http.Request) (*http.Response, error) {
	bounded := &io.LimitedReader{R: from, N: maxAnswer}
	// Byte by byte from what is buffered, so that nothing behind the head is lost.
	head := bufio.NewReaderSize(oneByOne{bounded}, 1)
	answer, err := http.ReadResponse(head, request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		answer.Body = io.NopCloser(io.LimitReader(answer.Body, maxAnswer))
		bounded.N = 2 * maxAnswer
	}
	return answer, nil
}

// oneByOne keeps whoever reads from taking more than it needs.
type oneByOne struct{ from io.Reader }

func (o oneByOne) Read(p []byte) (int, error) { return o.from.Read(p[:min(1, len(p))]) }

// check takes what the API server chose.
func (h *handshake) check(answer http.Header, key string) error {
	header := versionHeader
	if h.upgrade == upgradeWebSocket {
		header = protocolHeader
		if answer.Get("Sec-Websocket-Accept") != accept(key) || answer.Get("Sec-Websocket-Extensions") != "" {
			return errors.New("it answers another WebSocket than was asked for")
		}
	}
	chosen := answer.Values(header)
	if !strings.EqualFold(answer.Get("Upgrade"), h.upgrade) || len(chosen) != 1 || !slices.Contains(h.offered, chosen[0]) {
		return fmt.Errorf("it chose %q of %q", chosen, h.offered)
	}
	h.chosen = chosen[0]
	return nil
}

// saysNo passes on why the API server refuses, and records it.
func (f *flow) saysNo(w http.ResponseWriter, answer *http.Response) *access.Denial {
	if answer.StatusCode < 400 {
		return f.denial(access.Unavailable, "the API server does not let the connection leave HTTP", "tell the operators")
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return f.denial(access.Unavailable, "the API server's answer broke off", "try again")
	}
	text, masked := f.resource.Literals.Replace(string(body))
	if f.masker != nil {
		hidden, found := f.masker.Text([]byte(text))
		if found {
			text, masked = string(hidden), masked+1
		}
	}
	f.masked += masked
	ctx, cancel := context.WithTimeout(context.Background(), recordWithin)
	defer cancel()
	err = f.deps.Recorder.Append(ctx, access.Synced, f.event(access.Event{Body: &access.BodyChunk{Status: answer.StatusCode, Text: strings.ToValidUTF8(string(transcript.Text([]byte(text))), "?")}}))
	if err != nil {
		return f.denial(access.Unavailable, "the gateway cannot record the answer", "try again")
	}
	f.end(nil)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(answer.StatusCode)
	_, _ = io.WriteString(w, text) // it may have left
	return nil
}

// accept takes the client's connection out of HTTP.
func (h *handshake) accept(w http.ResponseWriter) (side, error) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		return side{}, errors.New("the connection cannot leave HTTP")
	}
	conn, buffered, err := hijacker.Hijack()
	if err != nil {
		return side{}, err
	}
	_ = conn.SetDeadline(time.Time{})
	header := http.Header{"Connection": {"Upgrade"}, "Upgrade": {h.upgrade}}
	if h.upgrade == upgradeWebSocket {
		header.Set("Sec-Websocket-Accept", accept(h.key))
		header.Set(protocolHeader, h.chosen)
	} else {
		header.Set(versionHeader, h.chosen)
	}
	var head strings.Builder
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = header.Write(&head) // never fails
	head.WriteString("\r\n")
	if _, err := io.WriteString(conn, head.String()); err != nil {
		_ = conn.Close()
		return side{}, err
	}
	return side{conn, buffered.Reader}, nil
}

// relay is what carries the chosen protocol.
func (h *handshake) relay(f *flow, client, target side) relay {
	switch {
	case h.upgrade == upgradeSPDY:
		return f.streams(client, target, nil)
	case h.chosen == tunnel:
		below := &wsWriter{to: client.conn}
		return f.streams(newTunnel(&wsReader{from: client.reader, masked: true}, below),
			newTunnel(&wsReader{from: target.reader}, &wsWriter{to: target.conn, masked: true}),
			func(d *access.Denial) { _ = below.close(1000, d.Message) })
	}
	return f.channels(client, target, h.chosen)
}

// A wsTunnel is the stream of bytes that the messages of a WebSocket make.
type wsTunnel struct {
	from *wsReader
	to   *wsWriter
	rest []byte
}

func newTunnel(from *wsReader, to *wsWriter) io.ReadWriter { return &wsTunnel{from: from, to: to} }

func (t *wsTunnel) Read(p []byte) (int, error) {
	for len(t.rest) == 0 {
		next, err := t.from.next()
		if err != nil {
			return 0, err
		}
		switch next.opcode {
		case opClose:
			return 0, io.EOF
		case opPing:
			if err := t.to.frame(opPong, next.bytes); err != nil {
				return 0, err
			}
		case opBinary:
			t.rest = next.bytes
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

func (t *wsTunnel) Write(p []byte) (int, error) {
	if err := t.to.frame(opBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
