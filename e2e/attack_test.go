package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"chaperone.dev/chaperone/examples/demo"
)

// raw opens a TCP connection to a listener of the gateway.
func raw(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func secured(t *testing.T, s *demo.Site, conn net.Conn) *tls.Conn {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(s.Dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: "localhost"})
}

func pgAddress(s *demo.Site) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.PGPort)) }

// packet is a first packet of the PostgreSQL protocol, without a type byte.
func packet(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)+8))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

const (
	sslRequest = 80877103
	startupV3  = 196608
	startText  = "user\x00agent\x00database\x00orders\x00\x00"
)

// TestAttackBeforeTLS: bytes that come ahead of the handshake, and a PROXY
// header of the client's own, open nothing. Control: an honest handshake does.
func TestAttackBeforeTLS(t *testing.T) {
	t.Parallel()
	s := site(t)
	for name, first := range map[string][]byte{
		"a startup message behind the SSLRequest": append(packet(sslRequest, ""), packet(startupV3, startText)...),
		"a PROXY v1 header":                       append([]byte("PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"), packet(sslRequest, "")...),
		"a PROXY v2 header":                       append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x00\x01\x00\x02"), packet(sslRequest, "")...),
		"nothing":                                 packet(sslRequest, ""),
	} {
		conn := raw(t, pgAddress(s))
		if _, err := conn.Write(first); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 1)
		_, err := io.ReadFull(conn, answer)
		if err == nil && answer[0] == 'S' {
			err = secured(t, s, conn).Handshake()
		} else if err == nil {
			err = fmt.Errorf("answered %q", answer)
		}
		if honest := name == "nothing"; (err == nil) != honest {
			t.Errorf("%s before TLS: %v", name, err)
		}
	}
}

// TestAttackStartupParameters: no parameter of the startup message changes what
// a statement means. Twin: one that changes nothing is taken.
func TestAttackStartupParameters(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := token(t, s, demo.Ada)
	for name, value := range map[string]string{
		"options": "-c role=postgres", "Options": "-c statement_timeout=0", "statement_timeout": "0", "lock_timeout": "0",
		"DateStyle": "German", "IntervalStyle": "sql_standard", "search_path": "pg_temp", "Search_Path": "pg_temp", "role": "postgres",
		"session_authorization": "postgres", "replication": "database", "standard_conforming_strings": "off",
		"client_encoding": "SJIS", "TimeZone": "x'", "plan_cache_mode": "force_generic_plan", "application_name": "honest",
	} {
		config, err := pgx.ParseConfig(s.DSN(tok))
		if err != nil {
			t.Fatal(err)
		}
		config.RuntimeParams[name] = value
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err == nil {
			conn.Close(context.Background())
		}
		if honest := name == "application_name"; (err == nil) != honest {
			t.Errorf("startup parameter %s=%s: %v", name, value, err)
		}
	}
}

// TestAttackLyingLengths: who lies about lengths loses the connection, and
// nobody else does.
func TestAttackLyingLengths(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := token(t, s, demo.Ada)
	bystander := connect(t, s, tok)
	for _, size := range []uint32{0, 3, 64 << 20, 1<<31 - 1, 1<<32 - 1} {
		for _, typ := range []byte("QPBDECSp") {
			liar, err := pgconn.Connect(t.Context(), s.DSN(tok))
			if err != nil {
				t.Fatal(err)
			}
			hijacked, err := liar.Hijack()
			if err != nil {
				t.Fatal(err)
			}
			conn := hijacked.Conn
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := conn.Write(append(binary.BigEndian.AppendUint32([]byte{typ}, size), "xx"...)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a message %q of %d bytes does not end the session", typ, size)
			}
			conn.Close()
		}
	}
	if got, err := read(t.Context(), bystander, "select ssn from customers where id = 1"); got != "***|" {
		t.Errorf("the bystander: %q %v", got, err)
	}
}

// TestAttackTwoQuestionsOneAnswer: two sessions ask the same thing, one is
// granted, one runs. What comes behind a held statement in its pipeline is not
// covered by the grant. Control: the granted ones run.
func TestAttackTwoQuestionsOneAnswer(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	tok, grace := token(t, s, demo.Ada), person(t, s, demo.Grace)
	const double = "update orders set status = status || 'x' where id = 20"
	before := status(t, s, "20")
	first, done, _ := hold(t, s, tok, double)
	second, other, _ := hold(t, s, tok, double)
	if first == second {
		t.Errorf("two sessions share the question %s", first)
	}
	if out, err := cli(t, s, grace, "approvals", "approve", first); err != nil {
		t.Fatal(out)
	}
	if err := <-done; err != nil {
		t.Errorf("the granted one: %v", err)
	}
	if out, err := cli(t, s, grace, "approvals", "refuse", second); err != nil {
		t.Fatal(out)
	}
	if err := <-other; err == nil {
		t.Error("the refused one ran")
	}
	if got := status(t, s, "20"); got != before+"x" {
		t.Errorf("the order is %q, was %q", got, before)
	}
}

// TestAttackPaths: no spelling of a path reaches the target as another path
// than the one that was judged.
func TestAttackPaths(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	tok := token(t, s, demo.Ada)
	for path, want := range map[string]string{
		"/http/billing/customers/2":                  "GET /customers/2",
		"/http/billing//customers//2":                "GET /customers/2",
		"/http/billing/customers/..%2frefunds":       "",
		"/http/billing/customers/..%5crefunds":       "",
		"/http/billing/customers/%2e%2e/refunds":     "",
		"/http/billing/customers/../refunds":         "",
		`/http/billing/customers\..\refunds`:         "",
		"/http/billing/customers/%252e%252e/refunds": "",
		"/http/billing/customers/..%3b/refunds":      "",
		"/http/billing/customers/1;x=1":              "",
		"/http/billing/customers/1%00":               "",
		"/http/billing/..%2f..%2fapi/v1/approvals":   "",
		"/http/billing/../../api/v1/approvals":       "",
	} {
		before := len(s.Billing.Seen())
		answer := exchange(t, s, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+tok+"\r\nConnection: close\r\n\r\n")
		seen := strings.Join(s.Billing.Seen()[before:], ", ")
		if seen != want || (want == "") == strings.HasPrefix(answer, "HTTP/1.1 200") {
			t.Errorf("%s reached billing as %q, answer %.60q", path, seen, answer)
		}
	}
}

// exchange sends bytes to the HTTPS listener and returns all that comes back.
func exchange(t *testing.T, s *demo.Site, request string) string {
	t.Helper()
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	conn := secured(t, s, raw(t, net.JoinHostPort("127.0.0.1", u.Port())))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	var answer bytes.Buffer
	_, _ = io.Copy(&answer, conn) // until either side has enough
	return answer.String()
}

// TestAttackSmuggling: framing that two parsers could read in two ways, doubled
// credentials and tunnels never reach the target. Twin: the same call, plain.
func TestAttackSmuggling(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	head := " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
	bearer := "Authorization: Bearer " + token(t, s, demo.Ada) + "\r\n"
	const get, post = "GET /http/billing/customers/1", "POST /http/billing/refunds"
	const inner = "0\r\n\r\nDELETE /http/billing/customers/1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for name, request := range map[string]string{
		"both lengths":          post + head + bearer + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + inner,
		"two lengths":           post + head + bearer + "Content-Length: 0\r\nContent-Length: 5\r\n\r\nGET /",
		"an unknown encoding":   post + head + bearer + "Transfer-Encoding: xchunked\r\n\r\n" + inner,
		"a space before colon":  post + head + bearer + "Transfer-Encoding : chunked\r\n\r\n" + inner,
		"two encodings":         post + head + bearer + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + inner,
		"two tokens":            get + head + bearer + bearer + "\r\n",
		"an underscore":         get + head + bearer + "X_Api_Key: mine\r\n\r\n",
		"a hidden token":        strings.Replace(get+head, "close", "authorization", 1) + bearer + "\r\n",
		"a tunnel":              "CONNECT " + s.Billing.URL[len("http://"):] + head + bearer + "\r\n",
		"a tunnel along a path": "CONNECT /http/billing/customers/1" + head + bearer + "\r\n",
		"TRACE":                 "TRACE /http/billing/customers/1" + head + bearer + "\r\n",
		"a WebSocket":           strings.Replace(get+head, "close", "Upgrade", 1) + bearer + "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		"honest":                get + head + bearer + "\r\n",
	} {
		before := len(s.Billing.Seen())
		if name == "a hidden token" || name == "a WebSocket" { // the connection stays open: end it ourselves
			request += "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
		}
		answer := exchange(t, s, request)
		if reached, honest := len(s.Billing.Seen()) > before, name == "honest"; reached != honest || strings.HasPrefix(answer, "HTTP/1.1 200") != honest {
			t.Errorf("%s: reached %v, answer %.80q", name, reached, answer)
		}
	}
}

// TestAttackClientHeaders: what a client says about itself or the target's key
// is not believed, and not passed on as the gateway's word.
func TestAttackClientHeaders(t *testing.T) {
	t.Parallel()
	s := site(t)
	ssn, card := secretsOf(t, s)
	tok := token(t, s, demo.Ada)
	for _, h := range [][2]string{
		{"X-Api-Key", "mine"}, {"Connection", "x-api-key"}, {"Range", "bytes=0-60"}, {"Accept-Encoding", "gzip, br"},
		{"If-None-Match", "*"}, {"X-Chaperone-User", "grace@example.com"}, {"X-Original-Url", "/refunds"}, {"Te", "trailers"},
	} {
		res := request(t, s, http.MethodGet, "/http/billing/customers/1", tok, "", h[0], h[1])
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"ssn":"***"`)) ||
			bytes.Contains(body, []byte(ssn)) || bytes.Contains(body, []byte(card)) {
			t.Errorf("%s: %s answers %d %s %v", h[0], h[1], res.StatusCode, body, err)
		}
	}
	res := request(t, s, http.MethodGet, "/api/v1/approvals", tok, "", "X-Chaperone-User", "grace@example.com", "X-Chaperone-Groups", "senior-engineers")
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("a subagent that calls itself Grace lists approvals: %d", res.StatusCode)
	}
	if res := request(t, s, http.MethodGet, "/api/v1/approvals", person(t, s, demo.Grace), ""); res.StatusCode != http.StatusOK {
		t.Errorf("control: Grace herself gets %d", res.StatusCode)
	}
}

// TestAttackSpelling: however a statement is spelled, it shows the mask or is
// refused. Control: each shows the secret straight at the database, or an
// error there too.
func TestAttackSpelling(t *testing.T) {
	t.Parallel()
	s := site(t)
	ssn, _ := secretsOf(t, s)
	owner, agent := direct(t, s), connect(t, s, token(t, s, demo.Ada))
	for _, query := range []string{
		`select ssn from U&"\0063ustomers" where id = 1`,
		`select ssn from U&"!0063ustomers" uescape '!' where id = 1`,
		`select U&"\0073sn" from customers where id = 1`,
		`select E'\'' || ssn from customers where id = 1`,
		`select $a$ ' $a$ || ssn from customers where id = 1`,
		"select /* /* */ x -- */ ssn\nfrom customers where id = 1",
		`select orders.public.customers.ssn from orders.public.customers where id = 1`,
		`with "customers" as (select * from public.customers) select ssn from customers where id = 1`,
		`with c(a, b, c, d, e) as (table customers) select d from c where a = 1`,
		`select (c).ssn from (select customers as c from customers where id = 1) x`,
		`select d from customers as c (a, b, c, d, e) where a = 1`,
		`select x from customers c, lateral (select c.ssn) l (x) where c.id = 1`,
		`select (array(select ssn from customers where id = 1))[1]`,
		`select * from customers c natural join (select 1 as id) o`,
	} {
		control, err := read(t.Context(), owner, query)
		if err != nil || !strings.Contains(control, ssn) {
			t.Errorf("control: %s straight at the database answers %q, %v", query, control, err)
		}
		got, err := read(t.Context(), agent, query)
		var refused *pgconn.PgError
		if all := got + fmt.Sprintf("%+v", err); strings.Contains(all, ssn) || err == nil && !strings.Contains(got, "***") || err != nil && !errors.As(err, &refused) {
			t.Errorf("%s: %s", query, all)
		}
	}
	if got, err := read(t.Context(), agent, "select ssn from customers where id = 1"); got != "***|" {
		t.Errorf("twin: %q %v", got, err)
	}
}

// TestAttackEcho: a target that answers with what it was sent gives nobody the
// credential, which the recording does not hold either.
func TestAttackEcho(t *testing.T) {
	t.Parallel()
	s := site(t)
	straight, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Billing.URL+"/echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	straight.Header.Set("X-Api-Key", s.APIKey)
	for name, send := range map[string]func() *http.Response{
		"control": func() *http.Response {
			res, err := http.DefaultClient.Do(straight)
			if err != nil {
				t.Fatal(err)
			}
			return res
		},
		"gateway": func() *http.Response {
			return request(t, s, http.MethodGet, "/http/billing/echo", token(t, s, demo.Ada), "", "X-Mine", "stays")
		},
	} {
		res := send()
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %v", name, res.Status, err)
		}
		if got := strings.Contains(string(body)+res.Header.Get("X-Echo"), s.APIKey); got != (name == "control") {
			t.Errorf("%s: the key is in the answer: %v\n%s", name, got, body)
		}
		if name == "gateway" && (!strings.Contains(string(body), "stays") || !strings.Contains(string(body), "****")) {
			t.Errorf("twin: the rest of the answer: %s", body)
		}
	}
	files, err := filepath.Glob(filepath.Join(s.Dir, "data/recordings/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err != nil || strings.Contains(string(text), s.APIKey) {
			t.Errorf("the key is in %s, or it cannot be read: %v", f, err)
		}
	}
}

// TestAttackSecretsStayInside: what the gateway holds for the targets and what
// the client gave it is in no log, recording, metric, argument or dump.
func TestAttackSecretsStayInside(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	tok := token(t, s, demo.Ada)
	if err := works(t.Context(), t, s, tok); err != nil {
		t.Fatal(err)
	}
	refuses := connect(t, s, tok)
	if _, err := read(t.Context(), refuses, "drop table orders"); err == nil {
		t.Error("control: a DROP passed")
	}
	places := map[string]string{"the log": s.Gateway.Log()}
	for _, pattern := range []string{"data/recordings/*", "run/envoy.json", "run/*.pid"} {
		files, err := filepath.Glob(filepath.Join(s.Dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			places[f] = string(text)
		}
	}
	admin := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.Dir, "run", "admin.sock"))
	}}}
	res, err := admin.Get("http://admin/config_dump?include_eds")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	dump, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Contains(dump, []byte("[redacted]")) {
		t.Errorf("control: the dump holds no secret at all: %v", err)
	}
	places["Envoy's dump"] = string(dump)
	if !strings.Contains(s.Gateway.Log(), "revision serves") {
		t.Error("control: the log is empty")
	}
	for secret, value := range map[string]string{"the API key": s.APIKey, "the database's password": s.DBPassword, "the token": tok, "the token's signature": tok[strings.LastIndexByte(tok, '.')+1:]} {
		for place, text := range places {
			if strings.Contains(text, value) {
				t.Errorf("%s is in %s", secret, place)
			}
		}
	}
}

// TestAttackBodyBeyondTheBound: over HTTP/2, without a length and with the end
// of the stream in the very frame that is too much, a body is not judged by its
// beginning. The twin ends within the bound and is held.
func TestAttackBodyBeyondTheBound(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := token(t, s, demo.Ada)
	for size, want := range map[int]string{1 << 20: "202", 1<<20 + 1: "413", 1<<20 + 16000: "413"} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(s.URL(), "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := post2(t, conn, "/http/billing/refunds", tok, []byte(`"`+strings.Repeat("x", size-2)+`"`)); got != want {
			t.Errorf("%d bytes: %s, want %s", size, got, want)
		}
	}
}

// post2 sends one HTTP/2 request without content-length, the end of the stream
// being in the last of its DATA frames, and returns the status.
func post2(t *testing.T, conn net.Conn, path, tok string, body []byte) (status string) {
	t.Helper()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", path},
		{"authorization", "Bearer " + tok}, {"prefer", "respond-async"}, {"content-type", "application/json"},
		{"x-envoy-auth-partial-body", "false"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(framer.WriteSettings(),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})); err != nil {
		t.Fatal(err)
	}
	window := map[uint32]int{0: 65535, 1: 65535}
	for {
		for len(body) > 0 {
			n := min(len(body), 16384, window[0], window[1])
			if n == 0 || n < 16384 && n < len(body) {
				break // the last frame is to be a large one
			}
			if err := framer.WriteData(1, n == len(body), body[:n]); err != nil {
				t.Fatal(err)
			}
			body = body[n:]
			window[0] -= n
			window[1] -= n
		}
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := frame.(type) {
		case *http2.WindowUpdateFrame:
			window[f.StreamID] += int(f.Increment)
		case *http2.SettingsFrame:
			if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
				window[1] += int(v) - 65535
			}
			if !f.IsAck() {
				if err := framer.WriteSettingsAck(); err != nil {
					t.Fatal(err)
				}
			}
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return frame.Header().Type.String()
		}
	}
}
