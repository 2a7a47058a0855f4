package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/kube"
	"chaperone.dev/chaperone/internal/mask"
)

const ownToken = "token-of-the-gateway"

// An apiServer answers with what a test gives for each method and path, and
// keeps what it was asked.
type apiServer struct {
	target  Target
	answers map[string]string // "GET /path" → [status ]body

	mu    sync.Mutex
	asked []*http.Request
}

func newAPIServer(t *testing.T, answers map[string]string) *apiServer {
	t.Helper()
	s := &apiServer{answers: answers}
	server := httptest.NewTLSServer(s)
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	s.target = Target{Address: server.Listener.Addr().String(), Host: "kube.internal", Token: access.NewSecret(ownToken), Literals: mask.NewLiterals(ownToken),
		TLS: &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS12}}
	return s
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	s.mu.Unlock()
	body, ok := s.answers[r.Method+" "+r.URL.Path]
	status := 200
	if !ok {
		status, body = 404, `{"kind":"Status","message":"not found"}`
	}
	if rest, found := strings.CutPrefix(body, "!"); found {
		_, _ = fmt.Sscan(rest, &status)
		body = rest[4:]
	}
	if body == "hang" {
		<-r.Context().Done()
		return
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

// view makes the preview of a request, and checks that nothing but a dry run was
// asked for, as the caller.
func (s *apiServer) view(t *testing.T, r kube.Request, masks ...access.Mask) *access.Preview {
	t.Helper()
	r.Body.Whole = true
	if len(r.Body.Bytes) > 0 && r.Body.ContentType == nil {
		r.Body.ContentType = []string{"application/json"}
	}
	k, err := kube.Read(r)
	if err != nil {
		t.Fatal(err)
	}
	p := s.target.Preview(t.Context(), Question{Call: k, Body: r.Body.Bytes, As: http.Header{"Impersonate-User": {"ana"}}, Masks: masks}, time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.asked {
		if r.Method != http.MethodGet && !slices.Equal(r.URL.Query()["dryRun"], []string{"All"}) || r.Method == http.MethodDelete {
			t.Errorf("asked for %s %s", r.Method, r.URL)
		}
		if r.Header.Get("Impersonate-User") != "ana" || r.Header.Get("Authorization") != "Bearer "+ownToken || r.Host != "kube.internal" {
			t.Errorf("asked with %v", r.Header)
		}
	}
	if text, err := json.Marshal(p); err != nil || strings.Contains(string(text), "hunter2") || strings.Contains(string(text), ownToken) {
		t.Errorf("shown: %s %v", text, err)
	}
	return p
}

const (
	web     = "/apis/apps/v1/namespaces/shop/deployments/web"
	widget  = "/apis/example.com/v1/namespaces/shop/widgets/one"
	secret  = "/api/v1/namespaces/shop/secrets/db"
	openAPI = "/openapi/v3/apis/example.com/v1"
)

func patch(path, body string, query ...string) kube.Request {
	return kube.Request{Method: "PATCH", Path: path, Query: map[string][]string{"dryRun": query},
		Body: kube.Body{Bytes: []byte(body), ContentType: []string{"application/merge-patch+json"}}}
}

// TestPreviewOfWrites: what a write would change, masked, or why that is not
// known.
func TestPreviewOfWrites(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers map[string]string
		request kube.Request
		masks   []access.Mask
		want    string // in the JSON of the preview
	}{
		"a patch": {map[string]string{"GET " + web: `{"spec":{"replicas":1}}`, "PATCH " + web: `{"spec":{"replicas":3}}`}, patch(web, `{"spec":{"replicas":3}}`), nil,
			`"changes":[{"path":"spec.replicas","before":"1","after":"3"}]`},
		"a dry run that is none": {map[string]string{"GET " + web: `{"spec":{"replicas":1}}`, "PATCH " + web: `{"spec":{"replicas":3}}`},
			patch(web, `{}`, "None", "All"), nil, `"spec.replicas"`},
		"a dry run":       {nil, patch(web, `{}`, "All"), nil, `"none":"the request is a dry run itself`},
		"nothing changes": {map[string]string{"GET " + web: `{"a":1}`, "PATCH " + web: `{"a":1}`}, patch(web, `{}`), nil, "nothing would change"},
		"an apply that creates": {map[string]string{"PATCH " + web: `{"spec":{"replicas":3}}`},
			kube.Request{Method: "PATCH", Path: web, Body: kube.Body{Bytes: []byte("{}"), ContentType: []string{"application/apply-patch+yaml"}}}, nil, `"creates":true,"changes":[{"path":"spec.replicas","after":"3"}]`},
		"a secret": {map[string]string{"GET " + secret: `{"data":{"p":"aHVudGVyMg==","q":"eA=="}}`, "PATCH " + secret: `{"data":{"p":"aHVudGVyMjI=","q":"eA=="}}`},
			patch(secret, `{"data":{"p":"aHVudGVyMjI="}}`), nil, `"changes":[{"path":"data.p","before":"\"Kioq\"","after":"\"Kioq\"","masked":true}]`},
		"a masked field": {map[string]string{"GET " + web: `{"spec":{"key":"hunter2"}}`, "PATCH " + web: `{"spec":{"key":"hunter22"}}`},
			patch(web, `{"spec":{"key":"x"}}`), []access.Mask{{JSON: "/spec/key"}}, `"before":"\"***\"","after":"\"***\"","masked":true`},
		"the gateway's credential": {map[string]string{"GET " + web: `{"a":"` + ownToken + `"}`, "PATCH " + web: `{"a":"b"}`}, patch(web, `{}`), nil, `"path":"a"`},
		"webhooks with side effects": {map[string]string{"GET " + web: `{}`, "PATCH " + web: `!400 {"message":"admission webhook \"x\" does not support dry run"}`}, patch(web, `{}`), nil,
			`"none":"the API server would not do it, or not as a dry run: admission webhook \"x\" does not support dry run"`},
		"a message with a secret":  {map[string]string{"GET " + secret: `{}`, "PATCH " + secret: `!422 {"message":"invalid: hunter2"}`}, patch(secret, `{}`), nil, `"none":"the API server would not`},
		"not readable":             {map[string]string{"GET " + web: `!403 {"message":"no"}`}, patch(web, `{}`), nil, "the caller may not read what it changes: no"},
		"no JSON":                  {map[string]string{"GET " + web: `{`}, patch(web, `{}`), nil, "is no JSON"},
		"an API server that hangs": {map[string]string{"GET " + web: `hang`}, patch(web, `{}`), nil, "did not answer within 2s"},
		"another server that takes dry runs": {map[string]string{"GET " + widget: `{}`, "PATCH " + widget: `{"a":1}`,
			"GET " + openAPI: `{"paths":{"/apis/example.com/v1/namespaces/{namespace}/widgets/{name}":{"patch":{"parameters":[{"name":"dryRun"}]},"parameters":[]}}}`},
			patch(widget, `{}`), nil, `"path":"a"`},
		"another server that may not": {map[string]string{"GET " + widget: `{}`, "PATCH " + widget: `{"a":1}`,
			"GET " + openAPI: `{"paths":{"/apis/example.com/v1/namespaces/{namespace}/widgets/{name}":{"patch":{"parameters":[{"name":"force"}]}}}}`},
			patch(widget, `{}`), nil, "does not say that it takes dry runs"},
		"no object": {nil, kube.Request{Method: "POST", Path: "/api/v1/namespaces/shop/serviceaccounts/x/token", Body: kube.Body{Bytes: []byte("{}")}}, nil, "what this asks for is no object"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newAPIServer(t, c.answers).view(t, c.request, c.masks...)
			text, err := json.Marshal(p)
			if err != nil || !strings.Contains(string(text), c.want) {
				t.Errorf("%s %v", text, err)
			}
		})
	}
	if p := newAPIServer(t, nil).view(t, kube.Request{Method: "GET", Path: web}); p != nil {
		t.Errorf("a read has a preview: %+v", p)
	}
}

// clusterOf is an API server with a deployment that owns a replica set that owns
// two pods, one of which belongs to another, too.
func clusterOf(t *testing.T) *apiServer {
	group := func(name, resources string) string {
		return `{"metadata":{"name":"` + name + `"},"versions":[{"version":"v1","resources":[` + resources + `]}]}`
	}
	resource := func(name string) string {
		return `{"resource":"` + name + `","scope":"Namespaced","verbs":["get","list"]}`
	}
	list := func(of string) string { return `{"kind":"APIGroupDiscoveryList","items":[` + of + `]}` }
	const in = "/namespaces/shop"
	return newAPIServer(t, map[string]string{
		"GET /api":   list(group("", resource("pods")+","+resource("secrets")+","+resource("events")+`,{"resource":"nodes","scope":"Cluster","verbs":["list"]}`)),
		"GET /apis":  list(group("apps", resource("replicasets"))),
		"GET " + web: `{"metadata":{"name":"web","uid":"d","finalizers":["example.com/wait"]}}`,
		"GET /apis/apps/v1/namespaces/shop/deployments":                                `{"items":[{"metadata":{"name":"web","uid":"d"}}],"metadata":{"remainingItemCount":4}}`,
		"GET /apis/apps/v1" + in + "/replicasets":                                      `{"items":[{"metadata":{"name":"web-1","namespace":"shop","uid":"r","ownerReferences":[{"uid":"d"}]}},{"metadata":{"name":"db-1","uid":"r2"}}]}`,
		"GET /api/v1" + in + "/pods":                                                   `{"items":[{"metadata":{"name":"web-1-a","uid":"p","ownerReferences":[{"uid":"r"}]}},{"metadata":{"name":"web-1-b","uid":"q","ownerReferences":[{"uid":"r"},{"uid":"r2"}]}}],"metadata":{"continue":"x"}}`,
		"GET /api/v1" + in + "/secrets":                                                `!403 {"message":"forbidden"}`,
		"GET /apis/apiextensions.k8s.io/v1/customresourcedefinitions/replicasets.apps": `{"metadata":{"name":"replicasets.apps","uid":"c"}}`,
		"GET /apis/apps/v1/replicasets":                                                `{"items":[{"metadata":{"name":"a","namespace":"x"}},{"metadata":{"name":"b","namespace":"y"}}]}`,
		"GET /api/v1/namespaces/shop":                                                  `{"metadata":{"name":"shop"}}`,
	})
}

// TestPreviewOfDeletions: what goes along, and what could not be seen.
func TestPreviewOfDeletions(t *testing.T) {
	t.Parallel()
	remove := func(path, options string) kube.Request {
		return kube.Request{Method: "DELETE", Path: path, Body: kube.Body{Bytes: []byte(options)}}
	}
	for name, c := range map[string]struct {
		request kube.Request
		want    []string
	}{
		"its dependents": {remove(web, `{"gracePeriodSeconds":0}`), []string{`"removes":[{"what":"pods","count":1,"names":["web-1-a"]},{"what":"replicasets.apps","count":1,"names":["web-1"]}]`,
			"Background", "grace period 0 s: at once", "web waits for its finalizers example.com/wait", "not looked at: secrets", "only the first 500 were looked at of: pods"}},
		"kept":               {remove(web, `{"propagationPolicy":"Orphan"}`), []string{`"notes":["propagation Orphan: what belongs to it is kept"`}},
		"kept, in the query": {kube.Request{Method: "DELETE", Path: web, Query: map[string][]string{"propagationPolicy": {"Orphan"}}}, []string{"Orphan: what belongs"}},
		"a namespace":        {remove("/api/v1/namespaces/shop", ``), []string{`{"what":"pods","count":3,"names":["web-1-a","web-1-b"]},{"what":"replicasets.apps","count":2,"names":["web-1","db-1"]}`, "not looked at: secrets"}},
		"many":               {remove("/apis/apps/v1/namespaces/shop/deployments", ``), []string{`{"what":"deployments.apps","count":5,"names":["web"]}`, `{"what":"replicasets.apps","count":1`}},
		"a custom resource":  {remove("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/replicasets.apps", ``), []string{`{"what":"replicasets.apps","count":2,"names":["x/a","y/b"]}`}},
		"not there":          {remove(web+"x", ``), []string{"the caller may not read what it deletes: not found"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := clusterOf(t).view(t, c.request)
			text, err := json.Marshal(p)
			for _, want := range c.want {
				if err != nil || !strings.Contains(string(text), want) {
					t.Errorf("no %s in %s %v", want, text, err)
				}
			}
		})
	}
}
