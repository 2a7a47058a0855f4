package extauthz

import (
	"reflect"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"chaperone.dev/chaperone/internal/access"
)

func TestParseTarget(t *testing.T) {
	t.Parallel()
	const prefix = "/http/billing"
	for _, c := range []struct {
		name, target, path string
		query              map[string][]string
		refused            string
	}{
		{name: "plain", target: prefix + "/customers/1", path: "/customers/1"},
		{name: "root", target: prefix + "/", path: "/"},
		{name: "without a slash", target: prefix, path: "/"},
		{name: "without a slash, with a query", target: prefix + "?a=1", path: "/", query: map[string][]string{"a": {"1"}}},
		{name: "trailing slash", target: prefix + "/a/", path: "/a/"},
		{name: "decoded once", target: prefix + "/caf%c3%a9%20(1)", path: "/café (1)"},
		{name: "either case of an escape", target: prefix + "/caf%C3%A9", path: "/café"},
		{name: "encoded question mark stays in the path", target: prefix + "/a%3Fb", path: "/a?b"},
		{name: "encoded letter", target: prefix + "/%61dmin", path: "/admin"},
		{name: "dots that are not segments", target: prefix + "/a..b/...", path: "/a..b/..."},
		{name: "query", target: prefix + "/a?x=1&y=a%2Fb&x=2&z", path: "/a", query: map[string][]string{"x": {"1", "2"}, "y": {"a/b"}, "z": {""}}},
		{name: "query may hold dots and slashes", target: prefix + "/a?f=../b", path: "/a", query: map[string][]string{"f": {"../b"}}},

		{name: "other prefix", target: "/http/other/x", refused: "not below"},
		{name: "prefix of a name", target: prefix + "x/y", refused: "not below"},
		{name: "no target", target: "", refused: "not below"},
		{name: "double encoding", target: prefix + "/a/%252e%252e/x", refused: "percent sign"},
		{name: "encoded percent sign", target: prefix + "/100%25", refused: "percent sign"},
		{name: "dot dot", target: prefix + "/pub/../admin", refused: "segment"},
		{name: "encoded dot dot", target: prefix + "/pub/%2e%2E/admin", refused: "segment"},
		{name: "last segment dot dot", target: prefix + "/pub/..", refused: "segment"},
		{name: "dot", target: prefix + "/./admin", refused: "segment"},
		{name: "empty segment", target: prefix + "//admin", refused: "segment"},
		{name: "encoded slash", target: prefix + "/pub%2Fadmin", refused: "encoded slash"},
		{name: "encoded slash, small", target: prefix + "/pub%2fadmin", refused: "encoded slash"},
		{name: "backslash", target: prefix + `/pub\admin`, refused: "must be percent-encoded"},
		{name: "encoded backslash", target: prefix + "/pub%5cadmin", refused: "backslash"},
		{name: "path parameter", target: prefix + "/admin;x=1/y", refused: "semicolon"},
		{name: "dot dot with a path parameter", target: prefix + "/pub/..;/admin", refused: "semicolon"},
		{name: "encoded semicolon", target: prefix + "/admin%3bx", refused: "semicolon"},
		{name: "nul", target: prefix + "/a%00b", refused: "control"},
		{name: "encoded newline", target: prefix + "/a%0ab", refused: "control"},
		{name: "encoded C1 control", target: prefix + "/a%c2%85b", refused: "control"},
		{name: "not UTF-8", target: prefix + "/a%ff", refused: "UTF-8"},
		{name: "overlong slash", target: prefix + "/a%c0%afb", refused: "UTF-8"},
		{name: "raw byte above ASCII", target: prefix + "/caf\xc3\xa9", refused: "percent-encoded"},
		{name: "space", target: prefix + "/a b", refused: "percent-encoded"},
		{name: "fragment", target: prefix + "/a#b", refused: "percent-encoded"},
		{name: "broken escape", target: prefix + "/a%zz", refused: "encodes nothing"},
		{name: "cut escape", target: prefix + "/a%2", refused: "encodes nothing"},
		{name: "semicolon in the query", target: prefix + "/a?x=1;y=2", refused: "one way"},
		{name: "broken escape in the query", target: prefix + "/a?x=%zz", refused: "one way"},
		{name: "nul in the query", target: prefix + "/a?x=%00", refused: "UTF-8"},
		{name: "query not UTF-8", target: prefix + "/a?x=%ff", refused: "UTF-8"},
		{name: "query name not UTF-8", target: prefix + "/a?%ff=1", refused: "UTF-8"},
		{name: "raw byte in the query", target: prefix + "/a?x=\xe9", refused: "percent-encoded"},
		{name: "fragment after the query", target: prefix + "/a?x=1#y", refused: "percent-encoded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path, query, f := parseTarget(c.target, prefix)
			switch {
			case c.refused != "" && (f == nil || f.Reason != access.Unreadable || !strings.Contains(f.Message, c.refused)):
				t.Fatalf("got %q %v, %v; want a refusal that says %q", path, query, f, c.refused)
			case c.refused == "" && (f != nil || path != c.path || !reflect.DeepEqual(query, c.query)):
				t.Fatalf("got %q %v, %v", path, query, f)
			}
		})
	}
	if _, _, f := parseTarget("/a", ""); f == nil {
		t.Error("a route that names no prefix is not refused")
	}
}

// FuzzParseTarget: what is accepted has no second reading.
func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"/a/b?x=1", "/%2e%2e/a", "/a%252fb", "//", "/a;b", "/%c3%a9", "?", "/a?%3b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path, _, fault := parseTarget("/p"+s, "/p")
		if fault != nil {
			return
		}
		if path[0] != '/' || strings.ContainsAny(path, "%\\;\x00\n\r") || strings.Contains(path, "//") {
			t.Fatalf("%q is read as %q", s, path)
		}
		for _, segment := range strings.Split(path, "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("%q is read as %q", s, path)
			}
		}
	})
}

// question builds a CheckRequest as Envoy does with encode_raw_headers.
func question(extensions map[string]string, body string, headers ...string) *authv3.CheckRequest {
	h := &authv3.AttributeContext_HttpRequest{Protocol: "HTTP/1.1", RawBody: []byte(body), HeaderMap: &corev3.HeaderMap{}}
	for i := 0; i < len(headers); i += 2 {
		h.HeaderMap.Headers = append(h.HeaderMap.Headers, &corev3.HeaderValue{Key: headers[i], RawValue: []byte(headers[i+1])})
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "192.0.2.7", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 4711}}}}},
		Request:           &authv3.AttributeContext_Request{Http: h},
		ContextExtensions: extensions,
	}}
}

func billing(more ...string) map[string]string {
	m := map[string]string{"resource": "billing", "prefix": "/http/billing", "host": "billing.internal", "credential": "x-api-key"}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

func TestBearer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		headers []string
		want    string // "" means refused
	}{
		{"one", []string{"authorization", "Bearer abc.DEF-_~+/=="}, "abc.DEF-_~+/=="},
		{"any case of the scheme", []string{"Authorization", "bEARER abc"}, "abc"},
		{"none", nil, ""},
		{"two", []string{"authorization", "Bearer a", "authorization", "Bearer a"}, ""},
		{"two, joined", []string{"authorization", "Bearer a,Bearer b"}, ""},
		{"two, joined with a space", []string{"authorization", "Bearer a, Bearer b"}, ""},
		{"another scheme", []string{"authorization", "Basic YTpi"}, ""},
		{"no scheme", []string{"authorization", "abc"}, ""},
		{"empty", []string{"authorization", ""}, ""},
		{"no token", []string{"authorization", "Bearer "}, ""},
		{"only padding", []string{"authorization", "Bearer =="}, ""},
		{"two words", []string{"authorization", "Bearer a b"}, ""},
		{"tab", []string{"authorization", "Bearer\tabc"}, ""},
		{"not UTF-8", []string{"authorization", "Bearer a\xff"}, ""},
		{"too long", []string{"authorization", "Bearer " + strings.Repeat("a", maxToken+1)}, ""},
		{"in a proxy's header", []string{"proxy-authorization", "Bearer abc"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, f := read(question(nil, "", c.headers...))
			if f != nil {
				t.Fatal(f)
			}
			token, f := m.bearer()
			if (f == nil) != (c.want != "") || token.Reveal() != c.want {
				t.Fatalf("got %q, %v", token.Reveal(), f)
			}
			if f != nil && (f.Reason != access.Unauthenticated || f.Message != unauthenticated("").Message || f.cause == "") {
				t.Fatalf("not the uniform refusal: %+v", f)
			}
		})
	}
}

func TestRawHeadersAreRequired(t *testing.T) {
	t.Parallel()
	q := question(billing(), "")
	q.Attributes.Request.Http.HeaderMap = nil
	q.Attributes.Request.Http.Headers = map[string]string{"authorization": "Bearer abc"}
	if _, f := read(q); f == nil || f.Reason != access.Unavailable {
		t.Fatalf("got %v", f)
	}
}

func TestCall(t *testing.T) {
	t.Parallel()
	base := []string{":method", "POST", ":path", "/http/billing/customers?limit=2", ":authority", "gw", ":scheme", "https"}
	with := func(more ...string) []string { return append(append([]string(nil), base...), more...) }
	plain := func(edit func(*access.HTTPCall)) *access.HTTPCall {
		c := &access.HTTPCall{Method: "POST", Host: "billing.internal", Path: "/customers", Query: map[string][]string{"limit": {"2"}}}
		edit(c)
		return c
	}
	for _, c := range []struct {
		name       string
		extensions map[string]string
		body       string
		headers    []string
		want       *access.HTTPCall
		refused    access.Reason
	}{
		{name: "headers are kept as they are", extensions: billing(), headers: with("X-Tenant", "a", "x-tenant", "b", "content-length", "0"),
			want: plain(func(c *access.HTTPCall) { c.Headers = map[string][]string{"x-tenant": {"a", "b"}} })},
		{name: "credentials, hop and Envoy headers are not seen", extensions: billing(), headers: with(
			"authorization", "Bearer x", "cookie", "a=b", "proxy-authorization", "y", "x-api-key", "mine", "x-envoy-internal", "true",
			"x-chaperone-user", "root", "x-forwarded-for", "1.2.3.4", "x-request-id", "r", "traceparent", "t", "accept-encoding", "identity",
			"content-length", "0", "connection", "close"),
			want: plain(func(*access.HTTPCall) {})},
		{name: "preference for asynchrony is not part of the call", extensions: billing(), headers: with("prefer", "respond-async, return=minimal", "content-length", "0"),
			want: plain(func(c *access.HTTPCall) { c.Headers = map[string][]string{"prefer": {"return=minimal"}} })},
		{name: "header that is not UTF-8", extensions: billing(), headers: with("x-name", "caf\xe9"), refused: access.Unreadable},
		{name: "method unknown", extensions: billing(), headers: append([]string{":method", "PROPFIND"}, base[2:]...), refused: access.Unsupported},
		{name: "method in small letters", extensions: billing(), headers: append([]string{":method", "post"}, base[2:]...), refused: access.Unsupported},
		{name: "method twice", extensions: billing(), headers: with(":method", "GET"), refused: access.Unsupported},
		{name: "path twice", extensions: billing(), headers: with(":path", "/http/billing/x"), refused: access.Unreadable},

		{name: "body that is not read", extensions: billing(), headers: with("content-length", "5"),
			want: plain(func(c *access.HTTPCall) { c.BodyState = access.BodyUnread })},
		{name: "body of unknown length that is not read", extensions: billing(), headers: with("transfer-encoding", "chunked"),
			want: plain(func(c *access.HTTPCall) { c.BodyState = access.BodyUnread })},
		{name: "HTTP/2 does not say whether there is a body", extensions: billing(), headers: with("h2", ""),
			want: plain(func(c *access.HTTPCall) { c.BodyState = access.BodyUnread })},
		{name: "no body", extensions: billing(), headers: base, want: plain(func(*access.HTTPCall) {})},
		{name: "no body where bodies are read", extensions: billing("body", "whole"), headers: base, want: plain(func(*access.HTTPCall) {})},
		{name: "body", extensions: billing("body", "whole"), body: `{"amount":12.50,"to":["a"]}`,
			headers: with("content-type", "application/json; charset=utf-8", "content-length", "27"),
			want: plain(func(c *access.HTTPCall) {
				c.Headers = map[string][]string{"content-type": {"application/json; charset=utf-8"}}
				c.BodyState, c.BodyBytes, c.BodyDigest = access.BodyWhole, 27, "set below"
			})},
		{name: "body shorter than it says", extensions: billing("body", "whole"), body: "{}", headers: with("content-length", "3"), refused: access.Unreadable},
		{name: "body cut by Envoy", extensions: billing("body", "whole"), body: "{}", headers: with("x-envoy-auth-partial-body", "true"), refused: access.LimitExceeded},
		{name: "body cut by Envoy, denied by the client", extensions: billing("body", "whole"), body: "{}",
			headers: with("x-envoy-auth-partial-body", "false", "x-envoy-auth-partial-body", "true"), refused: access.LimitExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, f := read(question(c.extensions, c.body, c.headers...))
			if f != nil {
				t.Fatal(f)
			}
			if _, ok := m.headers["h2"]; ok {
				delete(m.headers, "h2")
				m.protocol = "HTTP/2"
			}
			got, f := m.call()
			if c.refused != "" {
				if f == nil || f.Reason != c.refused {
					t.Fatalf("got %+v, %+v; want %s", got, f, c.refused)
				}
				return
			}
			if f != nil {
				t.Fatal(f)
			}
			if got.BodyState == access.BodyWhole {
				if !strings.HasPrefix(got.BodyDigest, "sha256:") {
					t.Errorf("digest %q", got.BodyDigest)
				}
				c.want.BodyDigest, got.Body = got.BodyDigest, nil
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Fatalf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestBodyStates(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, body string
		headers    []string
		want       access.BodyState
	}{
		{"json", `{"a":[1,{"b":null}]}`, []string{"content-type", "application/json"}, access.BodyWhole},
		{"a suffix of json", `1e400`, []string{"content-type", "application/merge-patch+json"}, access.BodyWhole},
		{"name twice", `{"a":1,"a":2}`, []string{"content-type", "application/json"}, access.BodyUndecodable},
		{"name twice, escaped", `{"a":1,"\u0061":2}`, []string{"content-type", "application/json"}, access.BodyUndecodable},
		{"name twice, deep", `[{"x":{"a":1,"a":1}}]`, []string{"content-type", "application/json"}, access.BodyUndecodable},
		{"two values", `{}{}`, []string{"content-type", "application/json"}, access.BodyUndecodable},
		{"trailing bytes", `{} x`, []string{"content-type", "application/json"}, access.BodyUndecodable},
		{"cut", `{"a":`, []string{"content-type", "application/json"}, access.BodyUndecodable},
		{"not UTF-8", "\"\xff\"", []string{"content-type", "application/json"}, access.BodyUndecodable},
		{"too deep", strings.Repeat("[", 100) + strings.Repeat("]", 100), []string{"content-type", "application/json"}, access.BodyUndecodable},
		{"another type", `{"a":1}`, []string{"content-type", "application/x-www-form-urlencoded"}, access.BodyUndecodable},
		{"no type", `{"a":1}`, nil, access.BodyUndecodable},
		{"two types", `{"a":1}`, []string{"content-type", "application/json", "content-type", "text/plain"}, access.BodyUndecodable},
		{"another charset", `{"a":1}`, []string{"content-type", "application/json; charset=utf-7"}, access.BodyUndecodable},
		{"encoded", `{"a":1}`, []string{"content-type", "application/json", "content-encoding", "gzip"}, access.BodyUndecodable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			headers := append([]string{":method", "POST", ":path", "/http/billing/"}, c.headers...)
			m, f := read(question(billing("body", "whole"), c.body, headers...))
			if f != nil {
				t.Fatal(f)
			}
			call, f := m.call()
			if f != nil {
				t.Fatal(f)
			}
			if call.BodyState != c.want || (call.Body != nil) != (c.want == access.BodyWhole) || call.BodyDigest == "" {
				t.Fatalf("got %+v", call)
			}
		})
	}
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		headers []string
		kept    string
		async   bool
	}{
		{nil, "", false},
		{[]string{"respond-async"}, "", true},
		{[]string{"Respond-Async; foo=1, wait=10"}, "wait=10", true},
		{[]string{"return=minimal", " respond-async "}, "return=minimal", true},
		{[]string{"respond-asynchronously"}, "respond-asynchronously", false},
	} {
		m := message{headers: map[string][]string{"prefer": c.headers}}
		if kept, async := m.preferences(); kept != c.kept || async != c.async {
			t.Errorf("%q: got %q %v", c.headers, kept, async)
		}
	}
}

func TestHeaderValue(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"ann@example.com": "ann@example.com", "two words": "two words", " x ": "%20x%20",
		"a\r\nx-admin: 1": "a%0D%0Ax-admin: 1", "50%": "50%25", "é": "%C3%A9",
	} {
		if got := headerValue(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestBodyAsText: Envoy replaces what is not UTF-8 in a body that it sends as
// text, so that another one would be judged than the target gets.
func TestBodyAsText(t *testing.T) {
	t.Parallel()
	in := question(nil, "")
	in.Attributes.Request.Http.Body = "a!b"
	if _, f := read(in); f == nil || f.Reason != access.Unavailable || !strings.Contains(f.cause, "pack_as_bytes") {
		t.Errorf("read as %v", f)
	}
	in = question(nil, "a\xffb")
	if m, f := read(in); f != nil || string(m.body) != "a\xffb" {
		t.Errorf("as bytes it is %q, %v", m.body, f)
	}
}
