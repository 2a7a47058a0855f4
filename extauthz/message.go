package extauthz

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/strictjson"
)

// The context extensions of a route: what Envoy's configuration says about the
// request, out of the client's reach. The control plane writes them.
const (
	contextResource   = "resource"
	contextPrefix     = "prefix"
	contextHost       = "host"
	contextBody       = "body"
	contextCredential = "credential"
	contextKind       = "kind"
	contextStream     = "stream"
	wholeBody         = "whole"
)

const (
	maxToken = 16 << 10
	maxText  = 2 << 10 // of a refused request, in its recording
)

// methods are those whose meaning is known. Envoy passes any token through, and
// targets differ in what they make of the rest.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// A message is Envoy's question, taken apart but not judged. Header names are
// lower case, values are the client's bytes.
type message struct {
	method, target string // target is path and query as they stand
	protocol       string
	client         string
	headers        map[string][]string
	extensions     map[string]string
	body           []byte
}

// read takes a CheckRequest apart. Without raw headers there is no telling two
// headers from one, so their absence is a fault of the set-up.
func read(in *authv3.CheckRequest) (message, *fault) {
	a := in.GetAttributes()
	h := a.GetRequest().GetHttp()
	m := message{extensions: a.GetContextExtensions(), headers: map[string][]string{}, protocol: h.GetProtocol(), body: h.GetRawBody()}
	if s := a.GetSource().GetAddress().GetSocketAddress(); s != nil {
		m.client = net.JoinHostPort(s.GetAddress(), strconv.FormatUint(uint64(s.GetPortValue()), 10))
	}
	if h.GetHeaderMap() == nil {
		f := unavailable("the gateway is not set up to read requests")
		f.cause = "no raw headers in the check request: encode_raw_headers is off"
		return m, f
	}
	if h.GetBody() != "" {
		f := unavailable("the gateway is not set up to read requests")
		f.cause = "a body as text, in which Envoy has replaced what is not UTF-8: pack_as_bytes is off"
		return m, f
	}
	for _, v := range h.GetHeaderMap().GetHeaders() {
		value := v.GetRawValue()
		if len(value) == 0 {
			value = []byte(v.GetValue())
		}
		name := strings.ToLower(v.GetKey())
		m.headers[name] = append(m.headers[name], string(value))
	}
	m.method, m.target = m.only(":method"), m.only(":path")
	return m, nil
}

// only is the value of a header that stands exactly once, else "".
func (m *message) only(name string) string {
	if v := m.headers[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// text is what was asked, for the recording of a refusal.
func (m *message) text() string {
	s := m.method + " " + m.target
	if m.kind() == access.SSH {
		s = m.method + " " + m.only(":authority")
	}
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "\uFFFD")
}

// bearer returns the one token. Envoy joins two Authorization headers with a
// comma, which no token contains (RFC 6750, section 2.1).
func (m *message) bearer() (access.Secret, *fault) {
	values := m.credentials()
	if len(values) != 1 {
		return access.Secret{}, unauthenticated(strconv.Itoa(len(values)) + " authorization headers")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") {
		return access.Secret{}, unauthenticated("the authorization scheme is not Bearer")
	}
	if token = strings.Trim(token, " "); len(token) > maxToken || !isToken(token) {
		return access.Secret{}, unauthenticated("the bearer token has bytes that no token has, or too many")
	}
	return access.NewSecret(token), nil
}

// isToken reports whether s is a b64token of RFC 6750.
func isToken(s string) bool {
	s = strings.TrimRight(s, "=")
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._~+/", r))
	}) < 0
}

// call is the request as the target will get it. What it cannot show it does
// not let through: hidden headers are taken off, unreadable ones refused.
func (m *message) call() (*access.HTTPCall, *fault) {
	if !slices.Contains(methods, m.method) {
		return nil, unsupported("only " + strings.Join(methods, ", ") + " are served")
	}
	path, query, f := parseTarget(m.target, m.extensions[contextPrefix])
	if f != nil {
		return nil, f
	}
	headers, f := m.visible()
	if f != nil {
		return nil, f
	}
	c := &access.HTTPCall{Method: m.method, Host: m.extensions[contextHost], Path: path, Query: query, Headers: headers}
	if f := m.readBody(c); f != nil {
		return nil, f
	}
	return c, nil
}

// unseen are headers that no decision sees: credentials, which are taken off
// before the target; those that Envoy writes itself; and those that differ from
// one repetition of a request to the next, so that a repetition is recognised.
var unseen = []string{
	"authorization", "proxy-authorization", "cookie",
	"host", "x-request-id", "accept-encoding", "content-length", "transfer-encoding", "connection", "keep-alive",
	"proxy-connection", "te", "expect", "via", "traceparent", "tracestate", "prefer",
}

var unseenPrefixes = []string{":", "x-envoy-", "x-chaperone-", "x-forwarded-"}

func (m *message) visible() (map[string][]string, *fault) {
	out := make(map[string][]string, len(m.headers))
	for name, values := range m.headers {
		if slices.ContainsFunc(values, func(v string) bool { return !utf8.ValidString(v) }) {
			return nil, unreadable("the header " + strconv.Quote(name) + " is not UTF-8")
		}
		hidden := slices.Contains(unseen, name) || name == m.extensions[contextCredential] ||
			slices.ContainsFunc(unseenPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
		if !hidden {
			out[name] = slices.Clone(values)
		}
	}
	if kept, _ := m.preferences(); kept != "" {
		out["prefer"] = []string{kept}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// readBody fills in what is known of the body.
func (m *message) readBody(c *access.HTTPCall) *fault {
	if m.extensions[contextBody] != wholeBody {
		// HTTP/1 says whether there is a body; in HTTP/2 one may yet come.
		_, chunked := m.headers["transfer-encoding"]
		length := m.only("content-length")
		if length != "0" && (length != "" || chunked || m.protocol != "HTTP/1.1") {
			c.BodyState = access.BodyUnread
		}
		return nil
	}
	if f := m.whole(); f != nil {
		return f
	}
	if len(m.body) == 0 {
		return nil
	}
	sum := sha256.Sum256(m.body)
	c.BodyDigest, c.BodyBytes = "sha256:"+hex.EncodeToString(sum[:]), int64(len(m.body))
	c.BodyState = access.BodyUndecodable
	if !isJSON(m.headers["content-type"]) || len(m.headers["content-encoding"]) > 0 {
		return nil
	}
	if body, err := strictjson.Decode(m.body); err == nil {
		c.Body, c.BodyState = body, access.BodyWhole
	}
	return nil
}

// whole refuses a body that is not all there. Envoy answers a body above its
// bound itself, unless the end came together with what was too much: then it
// sends as much as the bound.
func (m *message) whole() *fault {
	if slices.Contains(m.headers["x-envoy-auth-partial-body"], "true") {
		return tooLarge(len(m.body))
	}
	if length, declared := m.headers["content-length"]; declared && (len(length) != 1 || length[0] != strconv.Itoa(len(m.body))) {
		return unreadable("the request body is not as long as it says")
	}
	return nil
}

// respondAsync is the preference (RFC 7240, section 4.1) of a client that would
// rather come back than wait.
const respondAsync = "respond-async"

// preferences returns the client's Prefer header without respond-async, and
// whether that was there.
func (m *message) preferences() (kept string, async bool) {
	var rest []string
	for _, header := range m.headers["prefer"] {
		for _, p := range strings.Split(header, ",") {
			p = strings.TrimSpace(p)
			name, _, _ := strings.Cut(p, ";")
			if strings.EqualFold(strings.TrimSpace(name), respondAsync) {
				async = true
			} else if p != "" {
				rest = append(rest, p)
			}
		}
	}
	return strings.Join(rest, ", "), async
}
