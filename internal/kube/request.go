package kube

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"

	"chaperone.dev/chaperone/internal/access"
)

// A Request is an HTTP request to an API server, as the target would get it.
type Request struct {
	Method string
	Path   string // decoded once; no segment is empty, . or ..
	Query  map[string][]string
	Body   Body
	// Recorded says that the request was made before and comes from a recording,
	// in which values are masked.
	Recorded bool
}

// A Refusal says why a request cannot be judged, to its client.
type Refusal struct {
	Reason  access.Reason
	Message string
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Message }

func unreadable(format string, args ...any) error {
	return &Refusal{access.Unreadable, fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return &Refusal{access.Unsupported, fmt.Sprintf(format, args...)}
}

var resolver = request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}

var (
	pathName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	versionName = regexp.MustCompile(`^v[0-9]+((alpha|beta)[0-9]+)?$`)
)

// manyValued are the query parameters that mean a list. Of any other the API
// server reads the first only.
var manyValued = []string{"command", "dryRun", "ports"}

// Read judges a request. An error is always a *Refusal.
func Read(r Request) (*access.K8s, error) {
	for name, values := range r.Query {
		if len(values) > 1 && !slices.Contains(manyValued, name) {
			return nil, unreadable("the query parameter %q stands there twice", name)
		}
	}
	info, err := resolver.NewRequestInfo(&http.Request{Method: r.Method,
		URL: &url.URL{Path: r.Path, RawQuery: url.Values(r.Query).Encode()}})
	if err != nil {
		return nil, unreadable("the path names no resource")
	}
	k := &access.K8s{Verb: info.Verb, Method: r.Method, Path: r.Path, Query: r.Query, Object: &access.K8sObject{}}
	if !info.IsResourceRequest {
		return k, readPath(k, r)
	}
	k.Group, k.Version, k.Resource, k.Subresource = info.APIGroup, info.APIVersion, info.Resource, info.Subresource
	k.Namespace, k.Name = info.Namespace, info.Name
	if k.Resource == "namespaces" && k.Group == "" {
		k.Namespace = "" // RequestInfo gives a namespace its own name for one
	}
	k.LabelSelector, k.FieldSelector = first(r.Query["labelSelector"]), first(r.Query["fieldSelector"])
	if err := plain(info, k); err != nil {
		return nil, err
	}
	if k.Subresource == "exec" || k.Subresource == "attach" {
		readStreams(k, r.Query)
	}
	if err := readBody(k, r); err != nil {
		return nil, err
	}
	k.DryRun = dryRun(k)
	k.Object = objectOf(k)
	k.Powers = powersOf(k)
	k.ReadOnly = readsOnly(k)
	k.Body = shown(k)
	return k, nil
}

// readStreams fills in what exec and attach are about.
func readStreams(k *access.K8s, query map[string][]string) {
	if k.Subresource == "exec" {
		k.Command = query["command"]
	}
	k.Container = first(query["container"])
	k.Terminal, k.Stdin = set(query["tty"]), set(query["stdin"])
}

// set reads a flag as the API server does: whatever is there and does not say
// no is a yes.
func set(values []string) bool {
	return len(values) > 0 && values[0] != "0" && !strings.EqualFold(values[0], "false")
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// plain refuses what the API server could take for another resource than
// RequestInfo does, or for none.
func plain(info *request.RequestInfo, k *access.K8s) error {
	for _, part := range []struct{ what, name string }{{"resource", k.Resource}, {"subresource", k.Subresource}, {"group", k.Group}, {"namespace", info.Namespace}} {
		if part.name != "" && !pathName.MatchString(part.name) {
			return unreadable("the path has %q for a %s: those are lower-case letters, digits, dashes and dots", part.name, part.what)
		}
	}
	get := k.Method == http.MethodGet || k.Method == http.MethodHead
	switch {
	case !versionName.MatchString(k.Version):
		return unreadable("the path has %q for a version of the API", k.Version)
	case strings.HasSuffix(info.Path, "/") && k.Subresource != "proxy":
		return unreadable("the path ends with a slash")
	case k.Verb == "" || (k.Verb == "watch" && !get):
		return unsupported("the method %s means nothing to a Kubernetes API", k.Method)
	case k.Verb == "proxy":
		return unsupported("this form of proxy requests is not served")
	case len(info.Parts) > 3 && k.Subresource != "proxy":
		return unreadable("the path goes on behind the subresource %q", k.Subresource)
	case k.Verb == "get" && len(k.Query["watch"]) > 0:
		return unreadable("the parameter watch belongs to lists, not to one object")
	}
	return nil
}

// readPath judges a request that is about no resource. Only reading is known.
func readPath(k *access.K8s, r Request) error {
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	if r.Body.present() {
		return unsupported("a request that is about no resource has no body")
	}
	k.ReadOnly = get && knownPath(strings.TrimSuffix(r.Path, "/"))
	return nil
}

// knownPath are the paths whose answers describe the API, its version and its
// health.
func knownPath(path string) bool {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	switch parts[0] {
	case "":
		return len(parts) == 1
	case "api", "apis", "version", "healthz", "livez", "readyz", "metrics", "openapi":
		return true
	}
	return path == "/.well-known/openid-configuration" || path == "/openid/v1/jwks"
}

// dryRuns are the subresources whose writes can be dry runs. Others, connections
// and tokens, do what they are asked for whatever the parameter says; and so may
// another API server.
var dryRuns = []string{"", "status", "scale", "ephemeralcontainers", "resize", "approval", "binding", "eviction", "finalize"}

// dryRun reports whether the API server stores nothing. With a body, that of a
// deletion counts and the query does not.
func dryRun(k *access.K8s) bool {
	if !slices.Contains([]string{"create", "update", "patch", "delete", "deletecollection"}, k.Verb) || !slices.Contains(dryRuns, k.Subresource) || IsForeign(k) {
		return false
	}
	values := k.Query["dryRun"]
	if (k.Verb == "delete" || k.Verb == "deletecollection") && k.BodyState != access.BodyNone {
		values = nil
		if options, ok := k.Body.(map[string]any); ok {
			values = texts(options["dryRun"])
		}
	}
	return len(values) > 0 && !slices.ContainsFunc(values, func(v string) bool { return v != "All" })
}

// texts are the strings of a decoded list; nil unless all members are.
func texts(v any) []string {
	list, _ := v.([]any)
	out := make([]string, 0, len(list))
	for _, one := range list {
		text, ok := one.(string)
		if !ok {
			return nil
		}
		out = append(out, text)
	}
	return out
}

// readSubresources are those whose answer to a read is data. Any other, of
// another API server, may be a stream.
var readSubresources = []string{"", "status", "scale", "log", "ephemeralcontainers", "resize", "approval"}

// reviews are created to ask what oneself may do; nothing is stored.
var reviews = []string{"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"}

func readsOnly(k *access.K8s) bool {
	switch k.Verb {
	case "get", "list", "watch":
		return slices.Contains(readSubresources, k.Subresource)
	case "create":
		return k.Subresource == "" && (k.Group == "authorization.k8s.io" || k.Group == "authentication.k8s.io") && slices.Contains(reviews, k.Resource)
	}
	return false
}

// IsStream reports whether the API server answers by a stream both ways, or by
// what another server says: none of that is an object of the API.
func IsStream(k *access.K8s) bool {
	return k.LeavesHTTP() || slices.Contains(k.Powers, access.PowerProxy)
}
