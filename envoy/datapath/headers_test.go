package datapath_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/xds"
)

// trusting believes what headers say, as many targets behind a proxy do. It
// reads underscores as dashes, as CGI does.
func trusting(w http.ResponseWriter, r *http.Request) {
	get := func(name string) string {
		for k, v := range r.Header {
			if strings.EqualFold(strings.ReplaceAll(k, "_", "-"), name) {
				return v[0]
			}
		}
		return ""
	}
	method, path := r.Method, r.URL.Path
	for _, name := range []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"} {
		if v := get(name); v != "" {
			method = v
		}
	}
	for _, name := range []string{"X-Original-Url", "X-Original-Uri", "X-Rewrite-Url", "X-Envoy-Original-Path", "X-Forwarded-Uri", "X-Forwarded-Path"} {
		if v := get(name); v != "" {
			path = v
		}
	}
	trusted := false
	for _, name := range []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "True-Client-Ip", "X-Client-Ip"} {
		trusted = trusted || strings.Contains(get(name), "10.9.9.9")
	}
	switch {
	case path == "/admin", method == "DELETE", trusted, get("X-Chaperone-Workflow") == "root", get("Cookie") == "session=admin",
		get("Authorization") == "Basic cm9vdDpyb290", get("Proxy-Authorization") != "", r.Header.Get("X-Envoy-Internal") == "true",
		get("X-Forwarded-Host") != "", get("X-Forwarded-Client-Cert") != "", get("Range") != "":
		io.WriteString(w, "the secret")
	default:
		io.WriteString(w, "public")
	}
}

// TestHeaderConfusion: the target believes a header that policy never judged.
func TestHeaderConfusion(t *testing.T) {
	t.Parallel()
	target := newTarget(t, trusting)
	w := newWorld()
	w.decide = below("/pub/")
	g := newGateway(t, parts{auth: w.server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	for _, attack := range []string{
		"X-Chaperone-Workflow: root", "x-chaperone-workflow: root", "X_Chaperone_Workflow: root", "X-Chaperone_Workflow: root",
		"X-Original-Url: /admin", "X-Original-Uri: /admin", "X-Rewrite-Url: /admin", "X-Envoy-Original-Path: /admin", "X_Original_Url: /admin",
		"X-Forwarded-Uri: /admin", "X-Forwarded-Path: /admin",
		"X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE",
		"X-Forwarded-For: 10.9.9.9", "Forwarded: for=10.9.9.9", "X-Real-Ip: 10.9.9.9", "True-Client-Ip: 10.9.9.9", "X-Client-Ip: 10.9.9.9",
		"X-Forwarded-Host: admin.internal", "X-Forwarded-Client-Cert: Subject=root", "X-Envoy-Internal: true",
		"Cookie: session=admin", "Proxy-Authorization: Basic x", "Authorization: Basic cm9vdDpyb290", "Range: bytes=0-1",
	} {
		t.Run(attack, func(t *testing.T) {
			conn, err := net.Dial("tcp", target.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if control := exchange(t, conn, line("GET", "/pub/x", attack)); control.body != "the secret" {
				t.Fatalf("the attack does not work straight at the target: %q", control.body)
			}
			got := g.raw(line("GET", "/http/t/pub/x", bearer, attack))
			if strings.Contains(got.body, "secret") {
				t.Errorf("got %d %q", got.status, got.body)
			}
		})
	}
	target.take()
	got := g.raw(line("GET", "/http/t/pub/x", bearer, "X-Tenant: a", "X-Tenant: b", "Accept: text/plain", "Accept-Encoding: gzip"))
	seen := target.take()
	if got.body != "public" || len(seen) != 1 || !slices.Equal(seen[0].header.Values("X-Tenant"), []string{"a", "b"}) ||
		seen[0].header.Get("Accept") != "text/plain" || seen[0].header.Get("Accept-Encoding") != "identity" {
		t.Errorf("the twin: %d %q %+v", got.status, got.body, seen)
	}
}

// TestTokens: only one whole bearer token opens, and what it opened with never
// reaches the target.
func TestTokens(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	w := newWorld()
	g := newGateway(t, parts{auth: w.server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	for name, headers := range map[string][]string{
		"none":                {},
		"rejected":            {"Authorization: Bearer bad"},
		"two":                 {bearer, "Authorization: Bearer other"},
		"two, the same":       {bearer, bearer},
		"good and bad":        {bearer, "Authorization: Bearer bad"},
		"joined":              {"Authorization: Bearer good,Bearer other"},
		"another scheme":      {"Authorization: Basic Z29vZA=="},
		"not UTF-8":           {"Authorization: Bearer go\xffod"},
		"declared hop-by-hop": {bearer, "Connection: authorization"},
		"in a cookie":         {"Cookie: authorization=Bearer good"},
		"underscore":          {"Authorization_: Bearer good"},
		"in the query":        {"X-Authorization: Bearer good"},
	} {
		got := g.raw(line("GET", "/http/t/x", headers...))
		if name == "underscore" {
			got.refused(t, http.StatusBadRequest, access.Unreadable)
			continue
		}
		got.refused(t, http.StatusUnauthorized, access.Unauthenticated)
		if got.header.Get("Www-Authenticate") != "Bearer" {
			t.Errorf("%s: %v", name, got.header)
		}
	}
	if seen := target.take(); len(seen) != 0 {
		t.Fatalf("the target was reached: %+v", seen)
	}
	if got := g.raw(line("GET", "/http/t/x", bearer)); got.status != http.StatusOK {
		t.Fatalf("the twin: %+v", got)
	}
	seen := target.take()[0]
	for name, values := range seen.header {
		if strings.Contains(strings.Join(values, " "), "good") && name != "X-Chaperone-Subject" {
			t.Errorf("the token reached the target in %s: %v", name, values)
		}
	}
	want := map[string]string{"X-Chaperone-User": "ann@example.com", "X-Chaperone-Subagent": "agent", "X-Chaperone-Subject": "good", "X-Chaperone-Session-Id": "ses_test"}
	for name, value := range want {
		if seen.header.Get(name) != value {
			t.Errorf("%s: %v", name, seen.header)
		}
	}
	for _, e := range w.take() {
		if e.Denied != nil && (e.Denied.Cause == "" || e.Denied.Client == "") {
			t.Errorf("recorded without a cause: %+v", e.Denied)
		}
	}
}

func TestOversizedHeaders(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	g := newGateway(t, parts{auth: newWorld().server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	many := slices.Repeat([]string{"X-A: b"}, 120)
	g.raw(line("GET", "/http/t/x", append(many, bearer)...)).refused(t, 431, access.LimitExceeded)
	g.raw(line("GET", "/http/t/x", bearer, "X-Big: "+strings.Repeat("x", 70<<10))).refused(t, 431, access.LimitExceeded)
	if len(target.take()) != 0 {
		t.Error("the target was reached")
	}
	if got := g.raw(line("GET", "/http/t/x", append(many[:60], bearer, "X-Big: "+strings.Repeat("x", 20<<10))...)); got.status != http.StatusOK {
		t.Errorf("the twin: %+v", got)
	}
}

// TestWhatIsNotServed: what would change the protocol, or is none.
func TestWhatIsNotServed(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	g := newGateway(t, parts{auth: newWorld().server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	g.raw(line("GET", "/http/t/x", bearer, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")).refused(t, 403, access.Unsupported)
	g.raw(line("GET", "/http/t/x", bearer, "Connection: Upgrade", "Upgrade: SPDY/3.1")).refused(t, 403, access.Unsupported)
	g.raw(line("CONNECT", "gateway:443", bearer)).refused(t, 404, access.UnknownResource)
	g.raw(line("TRACE", "/http/t/x", bearer)).refused(t, 403, access.Unsupported)
	g.raw(line("PROPFIND", "/http/t/x", bearer)).refused(t, 403, access.Unsupported)
	g.raw("GET /http/t/x HTTP/1.0\r\n"+bearer+"\r\n\r\n").refused(t, 426, access.Unsupported)
	g.raw("G@T / HTTP/1.1\r\n\r\n").refused(t, 400, access.Unreadable)
	g.raw(line("get", "/http/t/x", bearer)).refused(t, 400, access.Unreadable)
	g.raw(line("POST", "/http/t/x", bearer, "Content-Length: 3", "Transfer-Encoding: chunked")+"0\r\n\r\n").refused(t, 400, access.Unreadable)
	g.raw(line("POST", "/http/t/x", bearer, "Content-Length: 3", "Content-Length: 4")+"abcd").refused(t, 400, access.Unreadable)
	g.raw(line("GET", "/http/t/x#y", bearer)).refused(t, 400, access.Unreadable)
	g.raw(line("GET", "/http/t/x", bearer, "X-Name: caf\xe9")).refused(t, 400, access.Unreadable)
	if seen := target.take(); len(seen) != 0 {
		t.Errorf("the target was reached: %+v", seen)
	}
	if got := g.raw(line("OPTIONS", "/http/t/x", bearer)); got.status != http.StatusOK {
		t.Errorf("the twin: %+v", got)
	}
}

// frames speaks HTTP/2 frame by frame: what it sends no library would.
type frames struct {
	t      testing.TB
	framer *http2.Framer
}

func (g *gateway) frames(t testing.TB) *frames {
	t.Helper()
	conn, err := tls.Dial("tcp", g.address, &tls.Config{RootCAs: g.pki.pool, ServerName: "localhost", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := &frames{t, http2.NewFramer(conn, conn)}
	f.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask sends one request on stream 1 and returns the status, "" when the stream
// was reset.
func (f *frames) ask(trailer []hpack.HeaderField, fields ...hpack.HeaderField) string {
	f.t.Helper()
	write := func(end bool, fields []hpack.HeaderField) {
		var block strings.Builder
		e := hpack.NewEncoder(&block)
		for _, field := range fields {
			if err := e.WriteField(field); err != nil {
				f.t.Fatal(err)
			}
		}
		err := f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: end})
		if err != nil {
			f.t.Fatal(err)
		}
	}
	write(len(trailer) == 0, fields)
	if len(trailer) > 0 {
		if err := f.framer.WriteData(1, false, []byte("body")); err != nil {
			f.t.Fatal(err)
		}
		write(true, trailer)
	}
	for {
		frame, err := f.framer.ReadFrame()
		if err != nil {
			return ""
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return ""
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				if err := f.framer.WriteSettingsAck(); err != nil {
					f.t.Fatal(err)
				}
			}
		}
	}
}

func h2request(method, path string, more ...string) []hpack.HeaderField {
	fields := []hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "gateway"},
		{Name: ":path", Value: path}, {Name: "authorization", Value: "Bearer good"}}
	for i := 0; i < len(more); i += 2 {
		fields = append(fields, hpack.HeaderField{Name: more[i], Value: more[i+1]})
	}
	return fields
}

// TestHTTP2Frames: the same rules over HTTP/2, and its own forms.
func TestHTTP2Frames(t *testing.T) {
	t.Parallel()
	target := newTarget(t, nil)
	w := newWorld()
	w.decide = below("/pub/")
	g := newGateway(t, parts{auth: w.server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	for name, c := range map[string]struct {
		fields  []hpack.HeaderField
		trailer []hpack.HeaderField
		want    string
	}{
		"two tokens":        {fields: h2request("GET", "/http/t/pub/x", "authorization", "Bearer other"), want: "401"},
		"underscore":        {fields: h2request("GET", "/http/t/pub/x", "x_chaperone_user", "root")},
		"double encoding":   {fields: h2request("GET", "/http/t/pub/%252e%252e/admin"), want: "400"},
		"encoded slash":     {fields: h2request("GET", "/http/t/pub%2f..%2fadmin"), want: "400"},
		"climbing":          {fields: h2request("GET", "/http/t/pub/../admin"), want: "403"},
		"newline in header": {fields: h2request("GET", "/http/t/pub/x", "x-a", "b\r\nx-chaperone-user: root")},
		"connection header": {fields: h2request("GET", "/http/t/pub/x", "connection", "authorization")},
		"second path":       {fields: append(h2request("GET", "/http/t/pub/x"), hpack.HeaderField{Name: ":path", Value: "/admin"})},
		"extended connect":  {fields: append(h2request("CONNECT", "/http/t/pub/x"), hpack.HeaderField{Name: ":protocol", Value: "websocket"})},
		"space in the path": {fields: h2request("GET", "/http/t/pub/x HTTP/1.1\r\nX-A: b")},
	} {
		if got := g.frames(t).ask(c.trailer, c.fields...); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		if seen := target.take(); len(seen) != 0 {
			t.Errorf("%s: the target was reached: %+v", name, seen)
		}
	}
	// Nobody judges trailers, so they stay behind.
	trailer := []hpack.HeaderField{{Name: "x-chaperone-user", Value: "root"}, {Name: "x-late", Value: "1"}}
	if got := g.frames(t).ask(trailer, h2request("POST", "/http/t/pub/x")...); got != "200" {
		t.Errorf("with trailers: %q", got)
	}
	seen := target.take()
	if len(seen) != 1 || len(seen[0].trailer) != 0 || seen[0].header.Get("X-Late") != "" || seen[0].header.Get("X-Chaperone-User") != "ann@example.com" || string(seen[0].body) != "body" {
		t.Errorf("with trailers: %+v", seen)
	}
	if got := g.frames(t).ask(nil, h2request("GET", "/http/t/pub/x")...); got != "200" {
		t.Errorf("the twin: %q", got)
	}
}
