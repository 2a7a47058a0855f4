package extauthz

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/cluster"
	"chaperone.dev/chaperone/internal/kube"
	streams "chaperone.dev/chaperone/internal/session/kube"
	"chaperone.dev/chaperone/internal/session/ticket"
)

// An Impersonation is as whom an API server acts for a caller: its name and
// those of its groups that are passed on, each behind the prefix.
type Impersonation struct {
	Prefix string
	Groups []string
}

// kind is that of the resource that the route is for.
func (m *message) kind() access.Kind {
	switch kind := access.Kind(m.extensions[contextKind]); kind {
	case access.Kubernetes, access.SSH:
		return kind
	}
	return access.HTTP
}

// bearerProtocol is how a browser sends a token with a WebSocket.
const bearerProtocol = "base64url.bearer.authorization.k8s.io."

// kubernetes is the request as the API server will get it. Headers by which a
// client says who it is are refused: dropped in silence, a client would believe
// to act as somebody else.
func (m *message) kubernetes() (*access.K8s, *fault) {
	for name, values := range m.headers {
		switch {
		case strings.HasPrefix(name, "impersonate-"):
			return nil, unsupported("impersonation is the gateway's: it says itself for whom you act")
		case strings.HasPrefix(name, "x-remote-"):
			return nil, unsupported("the header " + name + " speaks in the name of a proxy")
		case name == "sec-websocket-protocol" && strings.Contains(strings.Join(values, ","), bearerProtocol):
			return nil, unsupported("a token belongs into the header Authorization, not into a subprotocol")
		}
	}
	path, query, f := parseTarget(m.target, m.extensions[contextPrefix])
	if f != nil {
		return nil, f
	}
	r := kube.Request{Method: m.method, Path: path, Query: query, Body: kube.Body{
		ContentType: m.headers["content-type"], ContentEncoding: m.headers["content-encoding"], Bytes: m.body}}
	if r.Body.Whole = m.extensions[contextBody] == wholeBody; r.Body.Whole {
		if f := m.whole(); f != nil {
			return nil, f
		}
	}
	k, err := kube.Read(r)
	if err != nil {
		var refusal *kube.Refusal
		if errors.As(err, &refusal) && refusal.Reason == access.Unreadable {
			return nil, unreadable(refusal.Message)
		} else if errors.As(err, &refusal) {
			return nil, &fault{Denial: access.Denial{Reason: refusal.Reason, Message: refusal.Message}}
		}
		return nil, unreadable("the request cannot be read").because(err)
	}
	if m.extensions[contextStream] != "" && k.LeavesHTTP() {
		k.BodyState = access.BodyNone // the session service passes none on
	}
	return k, nil
}

// unserved refuses what policy would let through and the gateway does not serve,
// or for somebody whose name cannot be told to the cluster.
func (c *check) unserved(d access.Decision) *fault {
	k := c.request.Action.K8s
	switch {
	case k == nil || d.Effect == access.Deny:
		return nil
	case c.message.extensions[contextStream] != "" && c.Streams != nil && k.LeavesHTTP(): // served
	case k.LeavesHTTP():
		return unsupported(strings.Join(k.Powers, ", ") + " needs a connection that leaves HTTP: a header Upgrade with websocket or SPDY/3.1")
	case kube.IsStream(k):
		return unsupported(strings.Join(k.Powers, ", ") + " is not served by this gateway")
	case k.BodyState == access.BodyUnread:
		return unsupported("only exec, attach and port-forward may leave HTTP for another protocol")
	}
	_, f := c.impersonated()
	return f
}

// passed are the request headers that reach an API server as they are. What
// others mean to it, or to a server behind it, nobody judged.
var passed = []string{"accept", "content-type", "content-length", "transfer-encoding", "user-agent", "host", "connection", "te", "expect",
	"x-request-id", "x-forwarded-proto", "x-forwarded-for", "traceparent", "tracestate", "accept-encoding"}

// passedOn are those that reach the session service beside them: how the client
// asks to leave HTTP.
var passedOn = []string{"upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", "x-stream-protocol-version"}

// allowedKubernetes is the answer that lets a request through to an API server.
func (c *check) allowedKubernetes(k *access.K8s, d access.Decision, told map[string]any) *authv3.CheckResponse {
	reading := kube.AnswerTo(k)
	form, err := json.Marshal(reading)
	if err == nil {
		told["kubernetes"] = string(form)
	}
	metadata, metadataErr := structpb.NewStruct(map[string]any{MetadataKey: told})
	if errors.Join(err, metadataErr) != nil {
		return c.denied(unavailable("the gateway cannot say what is to be masked"))
	}
	stream := k.LeavesHTTP()
	ok := &authv3.OkHttpResponse{}
	for name := range c.message.headers {
		if !strings.HasPrefix(name, ":") && !slices.Contains(passed, name) && !(stream && slices.Contains(passedOn, name)) {
			ok.HeadersToRemove = append(ok.HeadersToRemove, name)
		}
	}
	if stream {
		if f := c.admit(ok, d); f != nil {
			return c.denied(f)
		}
		return &authv3.CheckResponse{
			Status:       &rpcstatus.Status{Code: int32(codes.OK)},
			HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
		}
	}
	if k.Resource != "" {
		fields := slices.ContainsFunc(d.Obligations.Masks, func(m access.Mask) bool { return m.JSON != "" })
		ok.Headers = append(ok.Headers, set("accept", kube.Accept(c.message.headers["accept"], fields && kube.IsForeign(k))))
	}
	as, f := c.impersonated()
	if f != nil { // unserved has seen it
		return c.denied(f)
	}
	ok.Headers = append(ok.Headers, as...)
	return &authv3.CheckResponse{
		Status:          &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: metadata,
	}
}

// admit hands the request over to the session service: by a ticket, which says
// nothing to anybody else.
func (c *check) admit(ok *authv3.OkHttpResponse, d access.Decision) *fault {
	as, f := c.impersonated()
	if f != nil { // unserved has seen it
		return f
	}
	permit := streams.Permit{Request: c.request, Decision: d, Impersonate: headersOf(as)}
	id, err := c.Streams.Admit(permit)
	if err != nil {
		return unavailable("the gateway carries too many streams").because(err)
	}
	ok.Headers = append(ok.Headers, set(ticket.Header, id))
	return nil
}

// impersonated are the headers that make the API server act as the caller, and
// note in its audit for whom, through whom, and in which session.
func (c *check) impersonated() ([]*corev3.HeaderValueOption, *fault) {
	if c.Impersonation == nil {
		return nil, nil
	}
	i := c.Impersonation(c.request.Resource.Name)
	if i == nil {
		return nil, nil
	}
	p := c.request.Principal
	name := p.User
	if name == "" {
		name = p.Subject
	}
	user := i.Prefix + p.Issuer + ":" + name
	groups := []string{i.Prefix + "callers"} // everybody
	for _, g := range i.Groups {
		if p.InGroup(g) {
			groups = append(groups, i.Prefix+g)
		}
	}
	if strings.ContainsFunc(user+strings.Join(groups, ""), func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil, unsupported("your name cannot be told to the cluster: it is not printable ASCII")
	}
	out := []*corev3.HeaderValueOption{set("impersonate-user", user)}
	for _, g := range groups {
		out = append(out, add("impersonate-group", g))
	}
	extra := map[string]string{"request": c.id, "session": c.request.Session, "subject": p.Subject, "subagent": p.Subagent,
		"workflow": p.Workflow, "job": p.Job, "chain": p.Through()}
	for _, key := range cluster.Extras {
		if value := extra[key]; value != "" {
			out = append(out, set("impersonate-extra-"+extraPrefix+key, url.PathEscape(value)))
		}
	}
	return out, nil
}

// headersOf are the same, for a request of the gateway's own.
func headersOf(as []*corev3.HeaderValueOption) http.Header {
	out := http.Header{}
	for _, h := range as {
		out.Add(h.GetHeader().GetKey(), h.GetHeader().GetValue())
	}
	return out
}

// extraPrefix is chaperone.dev/ as the name of a header spells it.
const extraPrefix = "chaperone.dev%2f"

// add is one more header of its name.
func add(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
	}
}
