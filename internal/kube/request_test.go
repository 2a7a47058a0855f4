package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"chaperone.dev/chaperone/internal/access"
)

func get(path string) Request { return Request{Method: "GET", Path: path, Body: Body{Whole: true}} }

func post(path, body string) Request {
	return Request{Method: "POST", Path: path, Body: Body{Whole: true, Bytes: []byte(body)}}
}

func patch(path, contentType, body string) Request {
	r := post(path, body)
	r.Method, r.Body.ContentType = "PATCH", []string{contentType}
	return r
}

func with(r Request, method string, query ...string) Request {
	r.Method, r.Query = method, map[string][]string{}
	for i := 0; i < len(query); i += 2 {
		r.Query[query[i]] = append(r.Query[query[i]], query[i+1])
	}
	return r
}

func TestRead(t *testing.T) {
	t.Parallel()
	const pods, secret = "/api/v1/namespaces/shop/pods", "/api/v1/namespaces/shop/secrets/db"
	for _, c := range []struct {
		name    string
		request Request
		want    string // as String, with " reads" and the powers
	}{
		{"list", get(pods), "list pods in shop reads"},
		{"list of all namespaces", get("/apis/apps/v1/deployments"), "list deployments.apps reads"},
		{"get", get(pods + "/web"), "get pods shop/web reads"},
		{"list that picks one", with(get(pods), "GET", "fieldSelector", "metadata.name=web"), "list pods shop/web reads"},
		{"watch", with(get(pods), "GET", "watch", "1"), "watch pods in shop reads"},
		{"watch by path", get("/api/v1/watch/namespaces/shop/secrets"), "watch secrets in shop reads"},
		{"logs", get(pods + "/web/log"), "get pods/log shop/web reads"},
		{"namespace", get("/api/v1/namespaces/shop"), "get namespaces shop reads"},
		{"create", post(pods, `{"metadata":{"name":"web"}}`), "create pods shop/web"},
		{"delete", with(get(secret), "DELETE"), "delete secrets shop/db"},
		{"delete all", with(get(pods), "DELETE"), "deletecollection pods in shop"},
		{"own permissions", post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", `{"spec":{}}`), "create selfsubjectaccessreviews.authorization.k8s.io reads"},
		{"others' permissions", post("/apis/authorization.k8s.io/v1/subjectaccessreviews", `{"spec":{}}`), "create subjectaccessreviews.authorization.k8s.io"},
		{"version", get("/version"), "get /version reads"},
		{"discovery", get("/apis/apps/v1"), "get /apis/apps/v1 reads"},
		{"debug", get("/debug/pprof/heap"), "get /debug/pprof/heap"},
		{"a write to a path", with(get("/version"), "POST"), "post /version"},
		{"exec by POST", with(get(pods+"/web/exec"), "POST", "command", "sh", "command", "-c"), "create pods/exec shop/web exec"},
		{"exec by GET", with(get(pods+"/web/exec"), "GET", "command", "id"), "get pods/exec shop/web exec"},
		{"attach", get(pods + "/web/attach"), "get pods/attach shop/web attach"},
		{"port-forward", get(pods + "/web/portforward"), "get pods/portforward shop/web port-forward"},
		{"node proxy", get("/api/v1/nodes/n1/proxy/run/shop/web/c"), "get nodes/proxy n1 proxy"},
		{"service proxy", get("/api/v1/namespaces/shop/services/https:web:443/proxy/"), "get services/proxy shop/https:web:443 proxy"},
		{"pod proxy", with(get(pods+"/web/proxy/a/b"), "PUT"), "update pods/proxy shop/web proxy"},
		{"ephemeral container", patch(pods+"/web/ephemeralcontainers", strategicPatchType, `{}`), "patch pods/ephemeralcontainers shop/web ephemeral-containers"},
		{"binding", post(pods+"/web/binding", `{}`), "create pods/binding shop/web bind-pod"},
		{"a pod on a node of its own", post(pods, `{"spec":{"nodeName":"n1"}}`), "create pods in shop bind-pod"},
		{"a pod on a node, applied", patch(pods+"/web", applyPatchType, `{"spec":{"nodeName":"n1"}}`), "patch pods shop/web bind-pod"},
		{"a deployment on a node", patch("/apis/apps/v1/namespaces/shop/deployments/web", strategicPatchType, `{"spec":{"template":{"spec":{"nodeName":"n1"}}}}`), "patch deployments.apps shop/web bind-pod"},
		{"a deployment on a node by JSON patch", patch("/apis/apps/v1/namespaces/shop/deployments/web", jsonPatchType, `[{"op":"add","path":"/spec/template/spec/nodeName","value":"n1"}]`), "patch deployments.apps shop/web bind-pod"},
		{"a deployment on a node within a value", patch("/apis/apps/v1/namespaces/shop/deployments/web", jsonPatchType, `[{"op":"replace","path":"/spec/template","value":{"spec":{"nodeName":"n1"}}}]`), "patch deployments.apps shop/web bind-pod"},
		{"a running pod written back", with(post(pods+"/web", `{"spec":{"nodeName":"n1"}}`), "PUT"), "update pods shop/web"},
		{"a pod on any node", post(pods, `{"spec":{"nodeName":""}}`), "create pods in shop"},
		{"old binding", post("/api/v1/namespaces/shop/bindings", `{}`), "create bindings in shop bind-pod"},
		{"eviction", post(pods+"/web/eviction", `{}`), "create pods/eviction shop/web evict"},
		{"token", post("/api/v1/namespaces/shop/serviceaccounts/web/token", `{}`), "create serviceaccounts/token shop/web token"},
		{"token by a Secret", post("/api/v1/namespaces/shop/secrets", `{"type":"kubernetes.io/service-account-token"}`), "create secrets in shop token"},
		{"token by a patch that creates", patch(secret, applyPatchType, `{"type":"kubernetes.io/service-account-token"}`), "patch secrets shop/db token"},
		{"a patch of a Secret", patch(secret, mergePatchType, `{"type":"x"}`), "patch secrets shop/db"},
		{"another Secret", post("/api/v1/namespaces/shop/secrets", `{"stringData":{"a":"b"}}`), "create secrets in shop"},
		{"approval", with(post("/apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval", `{}`), "PUT"), "update certificatesigningrequests.certificates.k8s.io/approval x approve-certificate"},
		{"webhook", post("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", `{}`), "create mutatingwebhookconfigurations.admissionregistration.k8s.io admission"},
		{"aggregation", post("/apis/apiregistration.k8s.io/v1/apiservices", `{}`), "create apiservices.apiregistration.k8s.io aggregation"},
		{"role", post("/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"rules":[{"verbs":["get"]}]}`), "create clusterroles.rbac.authorization.k8s.io escalate"},
		{"role that impersonates", post("/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"rules":[{"verbs":["impersonate"]}]}`), "create clusterroles.rbac.authorization.k8s.io escalate impersonate"},
		{"role of which nothing is known", patch("/apis/rbac.authorization.k8s.io/v1/clusterroles/x", jsonPatchType, `[]`), "patch clusterroles.rbac.authorization.k8s.io x escalate impersonate"},
		{"role binding", post("/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings", `{}`), "create rolebindings.rbac.authorization.k8s.io in shop bind"},
		{"exec of another group", get("/apis/subresources.kubevirt.io/v1/namespaces/shop/virtualmachineinstances/vm/console"), "get virtualmachineinstances.subresources.kubevirt.io/console shop/vm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k, err := Read(c.request)
			if err != nil {
				t.Fatal(err)
			}
			got := k.String()
			if k.ReadOnly {
				got += " reads"
			}
			if got = strings.Join(append([]string{got}, k.Powers...), " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if stream := slices.ContainsFunc(k.Powers, func(p string) bool { return slices.Contains([]string{"exec", "attach", "port-forward", "proxy"}, p) }); IsStream(k) != stream {
				t.Errorf("IsStream is %v", IsStream(k))
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	const pods = "/api/v1/namespaces/shop/pods"
	protobuf, more := post(pods, "k8s\x00"), post(pods, string(inProtobuf(t))+"\x1a\x00")
	protobuf.Body.ContentType, more.Body.ContentType = []string{protobufType}, []string{protobufType}
	twoTypes, compressed := post(pods, "{}"), post(pods, "{}")
	twoTypes.Body.ContentType = []string{jsonType, jsonType}
	compressed.Body.ContentEncoding = []string{"gzip"}
	reads := post(pods, "{}")
	reads.Method = "GET"
	for _, c := range []struct {
		name    string
		request Request
		want    access.Reason
	}{
		{"upper case", get("/api/v1/namespaces/shop/Secrets"), access.Unreadable},
		{"upper case in a group", get("/apis/Apps/v1/deployments"), access.Unreadable},
		{"upper case in a namespace", get("/api/v1/namespaces/Shop/pods"), access.Unreadable},
		{"upper case in a subresource", get(pods + "/web/Exec"), access.Unreadable},
		{"space in a version", get("/api/v1 /pods"), access.Unreadable},
		{"slash at the end", get(pods + "/"), access.Unreadable},
		{"slash after a subresource", get(pods + "/web/log/"), access.Unreadable},
		{"more behind a subresource", get(pods + "/web/exec/x"), access.Unreadable},
		{"watch of one object", with(get(pods+"/web"), "GET", "watch", "true"), access.Unreadable},
		{"a parameter twice", with(get(pods), "GET", "fieldSelector", "metadata.name=a", "fieldSelector", "metadata.name=b"), access.Unreadable},
		{"a method without a verb", with(get(pods), "OPTIONS"), access.Unsupported},
		{"a write to a watch", with(get("/api/v1/watch/pods"), "POST"), access.Unsupported},
		{"proxy by path", get("/api/v1/proxy/nodes/n1"), access.Unsupported},
		{"broken protobuf", protobuf, access.Unreadable},
		{"protobuf with a field more", more, access.Unreadable},
		{"CBOR patch", patch(pods+"/web", "application/apply-patch+cbor", "\xa0"), access.Unsupported},
		{"a patch that is none", patch(pods+"/web", jsonType, "{}"), access.Unsupported},
		{"two types", twoTypes, access.Unreadable},
		{"compressed", compressed, access.Unsupported},
		{"a body in a read", reads, access.Unsupported},
		{"a name twice", post(pods, `{"spec":{"hostPID":true,"hostPID":null}}`), access.Unreadable},
		{"two values", post(pods, `{}{}`), access.Unreadable},
		{"YAML with a name twice", patch(pods+"/web", applyPatchType, "a: 1\na: 2\n"), access.Unreadable},
		{"a mask written back", post("/api/v1/namespaces/shop/secrets", `{"data":{"password":"Kioq"}}`), access.MaskedField},
		{"a mask in text", post("/api/v1/namespaces/shop/configmaps", `{"data":{"password":"***"}}`), access.MaskedField},
		{"a partial mask in a patch", patch("/api/v1/namespaces/shop/configmaps/c", jsonPatchType, `[{"op":"add","path":"/data/x","value":"***1234"}]`), access.MaskedField},
		{"a path with a body", post("/version", "{}"), access.Unsupported},
		{"a value copied out of a Secret", patch("/api/v1/namespaces/shop/secrets/s", jsonPatchType, `[{"op":"copy","from":"/data/p","path":"/metadata/annotations/p"}]`), access.MaskedField},
		{"a value moved", patch(pods+"/web", jsonPatchType, `[{"op":"move","from":"/spec/x","path":"/metadata/annotations/p"}]`), access.MaskedField},
		{"a guess at a Secret", patch("/api/v1/namespaces/shop/secrets/s", jsonPatchType, `[{"op":"test","path":"/data/p","value":"YQ=="}]`), access.MaskedField},
		{"an operation in capitals", patch(pods+"/web", jsonPatchType, `[{"op":"COPY","from":"/a","path":"/b"}]`), access.Unreadable},
		{"a JSON patch that is no list", patch(pods+"/web", jsonPatchType, `{}`), access.Unreadable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k, err := Read(c.request)
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Reason != c.want {
				t.Errorf("%v, %v, want a refusal that is %s", k, err, c.want)
			}
		})
	}
	if _, err := Read(post("/api/v1/namespaces/shop/configmaps", `{"data":{"text":"*** read me ***"}}`)); err != nil {
		t.Errorf("text with asterisks: %v", err)
	}
	if _, err := Read(patch(pods+"/web", jsonPatchType, `[{"op":"test","path":"/a","value":1},{"op":"replace","path":"/a","value":2}]`)); err != nil {
		t.Errorf("a JSON patch: %v", err)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	const pod = "/api/v1/namespaces/shop/pods/web"
	options := post(pod, `{"propagationPolicy":"Background"}`)
	dry := post(pod, `{"dryRun":["All"]}`)
	for name, c := range map[string]struct {
		request Request
		want    bool
	}{
		"a creation":                           {with(post("/api/v1/namespaces/shop/pods", "{}"), "POST", "dryRun", "All"), true},
		"an unknown word":                      {with(post("/api/v1/namespaces/shop/pods", "{}"), "POST", "dryRun", "Some"), false},
		"two words":                            {with(post("/api/v1/namespaces/shop/pods", "{}"), "POST", "dryRun", "All", "dryRun", ""), false},
		"a deletion":                           {with(get(pod), "DELETE", "dryRun", "All"), true},
		"a deletion whose body counts instead": {with(options, "DELETE", "dryRun", "All"), false},
		"a deletion by its body":               {with(dry, "DELETE"), true},
		"a command":                            {with(get(pod+"/exec"), "POST", "dryRun", "All", "command", "id"), false},
		"a command by GET":                     {with(get(pod+"/exec"), "GET", "dryRun", "All", "command", "id"), false},
		"a proxied write":                      {with(get("/api/v1/namespaces/shop/services/web/proxy/"), "PUT", "dryRun", "All"), false},
		"a token":                              {with(post("/api/v1/namespaces/shop/serviceaccounts/web/token", "{}"), "POST", "dryRun", "All"), false},
		"another API server":                   {with(post("/apis/example.com/v1/widgets", "{}"), "POST", "dryRun", "All"), false},
		"a path":                               {with(get("/debug/flags/v"), "PUT", "dryRun", "All"), false},
		"an eviction":                          {with(post(pod+"/eviction", "{}"), "POST", "dryRun", "All"), true},
	} {
		k, err := Read(c.request)
		if err != nil {
			t.Fatal(err)
		}
		if k.DryRun != c.want || k.ReadOnly {
			t.Errorf("%s: dry run %v, reads only %v", name, k.DryRun, k.ReadOnly)
		}
	}
}

func TestObject(t *testing.T) {
	t.Parallel()
	const pods, deployments = "/api/v1/namespaces/shop/pods", "/apis/apps/v1/namespaces/shop/deployments"
	all := access.K8sFacts()
	for _, c := range []struct {
		name    string
		request Request
		want    access.K8sObject
	}{
		{"nothing", get(pods), access.K8sObject{}},
		{"a deletion", with(post(pods+"/web", `{"kind":"DeleteOptions"}`), "DELETE"), access.K8sObject{}},
		{"a modest pod", post(pods, `{"spec":{"containers":[{"name":"a","image":"web:1"}],"serviceAccountName":"web"}}`),
			access.K8sObject{Kind: "Pod", Images: []string{"web:1"}, ServiceAccount: "web"}},
		{"a pod with everything", post(pods, `{"apiVersion":"v1","kind":"Pod","spec":{"hostPID":true,"hostNetwork":true,"hostIPC":true,"serviceAccount":"old",
			"volumes":[{"name":"h","hostPath":{"path":"/"}},{"name":"s","secret":{"secretName":"db"}},{"name":"p","projected":{"sources":[{"secret":{"name":"tls"}}]}},{"name":"i","image":{"reference":"data:1"}}],
			"initContainers":[{"name":"i","image":"init:1","securityContext":{"privileged":true}}],
			"containers":[{"name":"a","image":"web:1","env":[{"name":"x","valueFrom":{"secretKeyRef":{"name":"env","key":"k"}}}],"envFrom":[{"secretRef":{"name":"all"}}],
			"securityContext":{"capabilities":{"add":["SYS_ADMIN","cap_net_raw"]}}}]}}`),
			access.K8sObject{Kind: "Pod", Privileged: true, HostNamespaces: []string{"ipc", "network", "pid"}, HostPaths: []string{"/"}, ServiceAccount: "old",
				Capabilities: []string{"NET_RAW", "SYS_ADMIN"}, Images: []string{"data:1", "init:1", "web:1"}, Secrets: []string{"all", "db", "env", "tls"}}},
		{"an ephemeral container", with(post(pods+"/web/ephemeralcontainers", `{"spec":{"containers":[],"ephemeralContainers":[{"name":"d","image":"debug","securityContext":{"privileged":true}}]}}`), "PUT"),
			access.K8sObject{Kind: "Pod", Privileged: true, Images: []string{"debug"}}},
		{"a Windows host process", post(pods, `{"spec":{"containers":[],"securityContext":{"windowsOptions":{"hostProcess":true}}}}`), access.K8sObject{Kind: "Pod", Privileged: true}},
		{"a deployment", post(deployments, `{"spec":{"replicas":3,"template":{"spec":{"containers":[{"name":"a","image":"web:1"}]}}}}`),
			access.K8sObject{Kind: "Deployment", Replicas: 3, Images: []string{"web:1"}}},
		{"one replica", post(deployments, `{"spec":{"template":{"spec":{"containers":[]}}}}`), access.K8sObject{Kind: "Deployment", Replicas: 1}},
		{"a cron job", post("/apis/batch/v1/namespaces/shop/cronjobs", `{"spec":{"jobTemplate":{"spec":{"template":{"spec":{"containers":[],"hostPID":true}}}}}}`),
			access.K8sObject{Kind: "CronJob", HostNamespaces: []string{"pid"}}},
		{"a field that is not known", post(pods, `{"spec":{"containers":[{"name":"a","image":"b","securityContext":{"privileged":true}}],"hostEverything":true}}`),
			access.K8sObject{Privileged: true, Unknown: all}},
		{"a value of another type", post(pods, `{"spec":{"hostPID":"yes"}}`), access.K8sObject{Unknown: all}},
		{"another version", post(pods, `{"apiVersion":"v2","spec":{}}`), access.K8sObject{Unknown: all}},
		{"another kind", post(pods, `{"kind":"Deployment","spec":{}}`), access.K8sObject{Unknown: all}},
		{"another API server's", post("/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts", `{"spec":{}}`), access.K8sObject{Unknown: all}},
		{"a patch", patch(deployments+"/web", strategicPatchType, `{"spec":{"replicas":2}}`), access.K8sObject{Unknown: all}},
		{"a patch that says it", patch(deployments+"/web", strategicPatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"a","securityContext":{"privileged":true}}]}}}}`),
			access.K8sObject{Privileged: true, Unknown: all}},
		{"a JSON patch that says it", patch(deployments+"/web", jsonPatchType, `[{"op":"add","path":"/spec/template/spec/containers/0/securityContext/privileged","value":true}]`),
			access.K8sObject{Privileged: true, Unknown: all}},
		{"a scale", patch(deployments+"/web/scale", mergePatchType, `{"spec":{"replicas":5}}`), access.K8sObject{Kind: "Scale", Replicas: 5}},
		{"a scale without a number", patch(deployments+"/web/scale", mergePatchType, `{"spec":{}}`), access.K8sObject{Kind: "Scale", Unknown: []string{"replicas"}}},
		{"a Secret", post("/api/v1/namespaces/shop/secrets", `{"kind":"Secret","type":"t","data":{"a":"Yg=="}}`), access.K8sObject{Kind: "Secret", Type: "t"}},
		{"a Service", post("/api/v1/namespaces/shop/services", `{"spec":{"type":"NodePort"}}`), access.K8sObject{Type: "NodePort"}},
		{"a Service that says it elsewhere", post("/api/v1/namespaces/shop/services", `{"type":"ClusterIP","spec":{"type":"LoadBalancer"}}`), access.K8sObject{Type: "LoadBalancer"}},
		{"a Service of a strange type", post("/api/v1/namespaces/shop/services", `{"spec":{"type":["LoadBalancer"]}}`), access.K8sObject{Unknown: []string{"type"}}},
		{"a volume of the node", post("/api/v1/persistentvolumes", `{"spec":{"hostPath":{"path":"/etc"}}}`), access.K8sObject{HostPaths: []string{"/etc"}}},
		{"a role", post("/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"rules":[{"verbs":["watch","get"]},{"verbs":["get"]}]}`), access.K8sObject{Verbs: []string{"get", "watch"}}},
		{"a role put together", post("/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"aggregationRule":{}}`), access.K8sObject{Unknown: []string{"verbs"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k, err := Read(c.request)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*k.Object, c.want) {
				t.Errorf("got  %+v\nwant %+v", *k.Object, c.want)
			}
		})
	}
}

func inProtobuf(t *testing.T) []byte {
	t.Helper()
	yes := true
	var b bytes.Buffer
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "web:1", SecurityContext: &corev1.SecurityContext{Privileged: &yes}}}}}
	if err := bodies.serializer.Encode(pod, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestProtobuf(t *testing.T) {
	t.Parallel()
	r := post("/api/v1/namespaces/shop/pods", string(inProtobuf(t)))
	r.Body.ContentType = []string{protobufType}
	k, err := Read(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := (access.K8sObject{Kind: "Pod", Privileged: true, Images: []string{"web:1"}}); k.Name != "web" || !reflect.DeepEqual(*k.Object, want) {
		t.Errorf("%s %+v", k, *k.Object)
	}
}

// TestBodyIsShownMasked: what people and recordings get to see of a Secret.
func TestBodyIsShownMasked(t *testing.T) {
	t.Parallel()
	const secrets = "/api/v1/namespaces/shop/secrets"
	for name, r := range map[string]Request{
		"a creation":   post(secrets, `{"data":{"a":"aHVudGVyMg=="},"stringData":{"b":"hunter2"},"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"data\":{\"a\":\"aHVudGVyMg==\"}}"}}}`),
		"a patch":      patch(secrets+"/db", mergePatchType, `{"data":{"a":"aHVudGVyMg=="}}`),
		"a JSON patch": patch(secrets+"/db", jsonPatchType, `[{"op":"add","path":"/data/a","value":"aHVudGVyMg=="}]`),
		"a list":       post(secrets, `{"data":["hunter2"]}`),
	} {
		k, err := Read(r)
		if err != nil {
			t.Fatal(err)
		}
		if text := access.AskDigest(access.Ask{Request: access.Request{Action: access.Action{K8s: k}}}); text == "" || k.BodyDigest == "" {
			t.Errorf("%s has no digest", name)
		}
		if shown := mustJSON(t, k); strings.Contains(shown, "hunter2") || strings.Contains(shown, "aHVudGVyMg") || !strings.Contains(shown, "***") {
			t.Errorf("%s is shown as %s", name, shown)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
