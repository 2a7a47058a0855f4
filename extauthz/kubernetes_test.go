package extauthz

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"chaperone.dev/chaperone/internal/access"
	streams "chaperone.dev/chaperone/internal/session/kube"
	"chaperone.dev/chaperone/internal/session/ticket"
)

func clusterRoute(more ...string) map[string]string {
	m := map[string]string{"resource": "cluster", "prefix": "/k8s/cluster", "host": "k8s.internal", "credential": "authorization", "kind": "kubernetes", "body": "whole"}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

func toCluster(method, path, body string, headers ...string) *authv3.CheckRequest {
	return question(clusterRoute(), body, append([]string{":method", method, ":path", "/k8s/cluster" + path, "authorization", "Bearer good"}, headers...)...)
}

// status checks that a refusal is one that kubectl prints well.
func (o outcome) isStatus(t *testing.T, code int, part string) {
	t.Helper()
	message, _ := o.body["message"].(string)
	if o.forwarded || o.status != code || o.body["kind"] != "Status" || o.body["apiVersion"] != "v1" || o.body["code"] != float64(code) ||
		o.headers["content-type"] != "application/json" || !strings.Contains(message, part) || !strings.Contains(message, "req_") {
		t.Errorf("got %+v; want a Status of %d that says %q", o, code, part)
	}
}

// kubernetes is a server that impersonates.
func (w *world) kubernetes(t *testing.T, groups ...string) *Server {
	t.Helper()
	s := w.server(t, nil)
	s.Impersonation = func(resource string) *Impersonation {
		if resource != "cluster" {
			t.Errorf("asked about %q", resource)
		}
		return &Impersonation{Prefix: "chaperone:", Groups: groups}
	}
	return s
}

func TestKubernetesAllow(t *testing.T) {
	t.Parallel()
	w := newWorld()
	verify := w.verify
	w.verify = func(token string) (access.Principal, error) {
		p, err := verify(token)
		p.Groups, p.Chain = []string{"shop", "secret-society"}, []access.Hop{{Actor: "planner"}, {Actor: "worker"}}
		return p, err
	}
	w.decide = func(r access.Request) access.Decision {
		if k := r.Action.K8s; k == nil || r.Action.HTTP != nil || k.String() != "watch secrets in shop" || !k.ReadOnly {
			t.Errorf("decided on %+v", r.Action)
		}
		return access.Decision{Effect: access.Allow, Rules: rule("read")}
	}
	in := toCluster("GET", "/api/v1/namespaces/shop/secrets?watch=1", "", "accept", "application/vnd.kubernetes.protobuf,application/json;as=Table,application/json",
		"cookie", "a=b", "kubectl-session", "x", "x-unjudged", "y", "user-agent", "kubectl")
	resp, err := w.kubernetes(t, "shop", "elsewhere").Check(t.Context(), in)
	ok := resp.GetOkResponse()
	if err != nil || ok == nil {
		t.Fatalf("%v %v", resp, err)
	}
	got := map[string][]string{}
	for _, h := range ok.GetHeaders() {
		got[h.GetHeader().GetKey()] = append(got[h.GetHeader().GetKey()], h.GetHeader().GetValue())
	}
	for name, want := range map[string]string{
		"accept": "application/json;as=Table,application/json", "impersonate-user": "chaperone:dex:ann@example.com",
		"impersonate-group": "chaperone:callers chaperone:shop", "impersonate-extra-chaperone.dev%2fsession": "ses_1",
		"impersonate-extra-chaperone.dev%2fchain": "planner%20%3E%20worker", "impersonate-extra-chaperone.dev%2frequest": w.events[0].Request,
	} {
		if strings.Join(got[name], " ") != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	slices.Sort(ok.HeadersToRemove)
	if want := []string{"authorization", "cookie", "kubectl-session", "x-unjudged"}; !slices.Equal(ok.GetHeadersToRemove(), want) {
		t.Errorf("removed: %v", ok.GetHeadersToRemove())
	}
	metadata, _ := resp.GetDynamicMetadata().AsMap()[MetadataKey].(map[string]any)
	if metadata["kubernetes"] != `{"objects":true,"secrets":true,"lines":true,"quiet":true}` {
		t.Errorf("told the processor %v", metadata)
	}
}

func TestKubernetesRefuses(t *testing.T) {
	t.Parallel()
	const pods = "/api/v1/namespaces/shop/pods"
	upgrade := func(path string, headers ...string) *authv3.CheckRequest {
		in := toCluster("GET", path, "", append([]string{"connection", "upgrade", "upgrade", "websocket"}, headers...)...)
		delete(in.GetAttributes().ContextExtensions, "body")
		return in
	}
	for name, c := range map[string]struct {
		in   *authv3.CheckRequest
		code int
		says string
	}{
		"a user of its own":        {toCluster("GET", pods, "", "impersonate-user", "admin"), 403, "impersonation"},
		"an extra of its own":      {toCluster("GET", pods, "", "Impersonate-Extra-Scopes", "x"), 403, "impersonation"},
		"a proxy's word":           {toCluster("GET", pods, "", "x-remote-user", "admin"), 403, "proxy"},
		"a token as a subprotocol": {upgrade(pods+"/x/exec", "sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.abc"), 403, "token"},
		"exec":                     {toCluster("POST", pods+"/x/exec?command=id", ""), 403, "exec needs a connection"},
		"exec by another route":    {upgrade(pods + "/x/exec?command=id"), 403, "exec needs a connection"},
		"a proxy":                  {toCluster("GET", "/api/v1/nodes/n/proxy/pods", ""), 403, "proxy is not served"},
		"an upgrade of a read":     {upgrade(pods), 403, "leave HTTP"},
		"capitals":                 {toCluster("GET", "/api/v1/namespaces/shop/Pods", ""), 400, "lower-case"},
		"an encoded slash":         {toCluster("GET", pods+"%2fx", ""), 400, "encoded slash"},
		"CBOR":                     {toCluster("POST", pods, "\xa0", "content-type", "application/cbor"), 403, "application/cbor"},
		"half a body":              {toCluster("POST", pods, "{}", "x-envoy-auth-partial-body", "true"), 413, "larger"},
		"a mask":                   {toCluster("PUT", "/api/v1/namespaces/shop/secrets/s", `{"data":{"a":"Kioq"}}`), 403, "mask"},
		"a token of nobody":        {question(clusterRoute(), "", ":method", "GET", ":path", "/k8s/cluster/api"), 401, "token"},
		"another kind":             {question(clusterRoute("resource", "billing"), "", ":method", "GET", ":path", "/k8s/cluster/api", "authorization", "Bearer good"), 404, "no such resource"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checked(t, newWorld().kubernetes(t), t.Context(), c.in).isStatus(t, c.code, c.says)
		})
	}
	in := question(billing("resource", "cluster"), "", ":method", "GET", ":path", "/http/billing/api/v1/secrets", "authorization", "Bearer good")
	checked(t, newWorld().server(t, nil), t.Context(), in).refused(t, http.StatusNotFound, access.UnknownResource)

	w := newWorld()
	verify := w.verify
	w.verify = func(token string) (access.Principal, error) {
		p, err := verify(token)
		p.User = "ann\nsystem:masters"
		return p, err
	}
	checked(t, w.kubernetes(t), t.Context(), toCluster("GET", pods, "")).isStatus(t, 403, "your name")
}

// TestKubernetesHold: kubectl waits in silence, is sent away with the id, and the
// same command passes once it is granted.
func TestKubernetesHold(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.decide = approve("delete")
	s := w.kubernetes(t)
	in := toCluster("DELETE", "/api/v1/namespaces/shop/pods/x", `{"propagationPolicy":"Background"}`, "content-type", "application/json")
	first := checked(t, s, t.Context(), in)
	first.isStatus(t, 403, "a reviewer has to grant this")
	w.grant(t)
	if o := checked(t, s, t.Context(), in); !o.forwarded {
		t.Errorf("granted: %+v", o)
	}
	other := toCluster("DELETE", "/api/v1/namespaces/shop/pods/x", `{"propagationPolicy":"Orphan"}`, "content-type", "application/json")
	checked(t, s, t.Context(), other).isStatus(t, 403, "a reviewer has to grant this")
}

// TestKubernetesRecordsNoSecret: what a client writes into a Secret is not on
// record, nor what a reviewer would see.
func TestKubernetesRecordsNoSecret(t *testing.T) {
	t.Parallel()
	w := newWorld()
	in := toCluster("POST", "/api/v1/namespaces/shop/secrets", `{"metadata":{"name":"db"},"data":{"a":"aHVudGVyMg=="},"stringData":{"b":"hunter2"}}`, "content-type", "application/json")
	if o := checked(t, w.kubernetes(t), t.Context(), in); !o.forwarded {
		t.Fatalf("%+v", o)
	}
	b, err := json.Marshal(w.events)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(b); strings.Contains(text, "hunter2") || strings.Contains(text, "aHVudGVyMg") || !strings.Contains(text, `"name":"db"`) || !strings.Contains(text, `"executed":{"k8s"`) {
		t.Errorf("recorded: %s", text)
	}
}

// keeper keeps the permits that it gets.
type keeper struct{ permits []streams.Permit }

func (k *keeper) Admit(p streams.Permit) (string, error) {
	k.permits = append(k.permits, p)
	return "ticket-1", nil
}

// TestKubernetesStreams: what leaves HTTP goes on with a ticket, in place of one
// that the client sent, and as it was judged.
func TestKubernetesStreams(t *testing.T) {
	t.Parallel()
	w, kept := newWorld(), &keeper{}
	w.decide = func(r access.Request) access.Decision {
		if k := r.Action.K8s; !slices.Equal(k.Command, []string{"id"}) || !k.Stdin || k.Terminal || k.Container != "web" || k.BodyState != access.BodyNone {
			t.Errorf("judged %+v", k)
		}
		return access.Decision{Effect: access.Allow}
	}
	s := w.kubernetes(t)
	s.Streams = kept
	in := toCluster("POST", "/api/v1/namespaces/shop/pods/x/exec?command=id&stdin=1&tty=false&container=web", "", "connection", "upgrade", "upgrade", "SPDY/3.1",
		"x-stream-protocol-version", "v4.channel.k8s.io", "x-chaperone-ticket", "forged", "sec-websocket-extensions", "x")
	in.GetAttributes().ContextExtensions = clusterRoute("stream", "yes", "body", "")
	o := checked(t, s, t.Context(), in)
	if !o.forwarded || o.headers[ticket.Header] != "ticket-1" || slices.Contains(o.removed, "x-stream-protocol-version") ||
		!slices.Contains(o.removed, "sec-websocket-extensions") || o.headers["impersonate-user"] != "" {
		t.Errorf("got %+v", o)
	}
	if len(kept.permits) != 1 || kept.permits[0].Request.Action.K8s.Subresource != "exec" || !strings.HasPrefix(kept.permits[0].Impersonate.Get("Impersonate-User"), "chaperone:") {
		t.Errorf("permits %+v", kept.permits)
	}
	w.decide = func(access.Request) access.Decision { return access.Decision{Effect: access.Deny} }
	if o := checked(t, s, t.Context(), in); o.forwarded || len(kept.permits) != 1 {
		t.Errorf("what is denied has a permit: %+v", o)
	}
}

// viewed counts previews.
type viewed struct{ bodies []string }

func (v *viewed) Preview(_ context.Context, _ access.Request, body []byte, as http.Header) *access.Preview {
	v.bodies = append(v.bodies, as.Get("Impersonate-User")+" "+string(body))
	return &access.Preview{None: "seen"}
}

// TestKubernetesPreviewOnce: a held request is previewed as its caller, with its
// question; the same request that finds its grant is not.
func TestKubernetesPreviewOnce(t *testing.T) {
	t.Parallel()
	w, v := newWorld(), &viewed{}
	w.decide = approve("delete")
	s := w.kubernetes(t)
	s.Previews = v
	in := toCluster("DELETE", "/api/v1/namespaces/shop/pods/x", `{"propagationPolicy":"Background"}`, "content-type", "application/json")
	checked(t, s, t.Context(), in).isStatus(t, 403, "a reviewer has to grant this")
	for _, a := range w.live {
		if a.Ask.Preview == nil || a.Ask.Preview.None != "seen" {
			t.Errorf("asked %+v", a.Ask)
		}
	}
	w.grant(t)
	if o := checked(t, s, t.Context(), in); !o.forwarded {
		t.Errorf("granted: %+v", o)
	}
	if want := []string{`chaperone:dex:ann@example.com {"propagationPolicy":"Background"}`}; !slices.Equal(v.bodies, want) {
		t.Errorf("previewed %q", v.bodies)
	}
}

// TestKubernetesFallback: kubectl, sent away after the wait, asks again at once
// over its other protocol. It does not wait again, has the same id, and the
// grant is good for either.
func TestKubernetesFallback(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.decide = approve("exec")
	s := w.kubernetes(t)
	s.Streams = &keeper{}
	exec := func(method string) outcome {
		in := toCluster(method, "/api/v1/namespaces/shop/pods/x/exec?command=id", "", "connection", "upgrade", "upgrade", "SPDY/3.1")
		in.GetAttributes().ContextExtensions = clusterRoute("stream", "yes", "body", "")
		return checked(t, s, t.Context(), in)
	}
	first := exec("GET")
	w.takeSteps()
	second := exec("POST")
	if slices.Contains(w.takeSteps(), "wait") || first.status != 403 || second.body["message"] != first.body["message"] {
		t.Errorf("first %+v, then %+v", first, second)
	}
	exec("POST")
	if !slices.Contains(w.takeSteps(), "wait") {
		t.Error("a command that is repeated does not wait")
	}
	w.grant(t)
	if o := exec("GET"); !o.forwarded {
		t.Errorf("granted: %+v", o)
	}
	if o := exec("GET"); o.forwarded {
		t.Errorf("granted once: %+v", o)
	}
}
