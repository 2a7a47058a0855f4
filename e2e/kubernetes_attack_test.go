package e2e

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// atCluster sends a request straight at the API server, with a token.
func atCluster(t *testing.T, method, path, tok, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, prepared.cluster.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+tok)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := prepared.cluster.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// atGateway sends it through the gateway.
func atGateway(t *testing.T, s *demo.Site, method, path, tok, body string, headers ...string) (int, string) {
	t.Helper()
	res := request(t, s, method, "/k8s/cluster"+path, tok, body, headers...)
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// TestAttackKubernetesSecrets: no form of an answer shows the value of a Secret.
// Control: each of them does, straight at the API server. Twin: the same answer
// shows what is no secret.
func TestAttackKubernetesSecrets(t *testing.T) {
	t.Parallel()
	s, direct, _ := kubernetes(t)
	direct.must(t, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"stolen","labels":{"is":"stolen"}},"data":{"p":"aHVudGVyMg=="},"stringData":{"q":"hunter2"}}`,
		"-n", "shop", "apply", "-f", "-")
	alan, admin := token(t, s, demo.Alan), prepared.cluster.Admin
	const one, list = "/api/v1/namespaces/shop/secrets/stolen", "/api/v1/namespaces/shop/secrets?labelSelector=is%3Dstolen"
	for name, c := range map[string]struct{ path, accept string }{
		"one":                    {one, "application/json"},
		"one, pretty":            {one + "?pretty=1", "*/*"},
		"a list":                 {list, "application/json"},
		"a table":                {list + "&includeObject=Object", "application/json;as=Table;v=v1;g=meta.k8s.io"},
		"metadata":               {list, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"},
		"a watch":                {list + "&watch=1&timeoutSeconds=1", "application/json"},
		"a watch by path":        {"/api/v1/watch/namespaces/shop/secrets?labelSelector=is%3Dstolen&timeoutSeconds=1", "application/json"},
		"a watch that lists":     {list + "&watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "application/json"},
		"protobuf":               {one, "application/vnd.kubernetes.protobuf"},
		"protobuf before JSON":   {list, "application/vnd.kubernetes.protobuf,application/json"},
		"CBOR":                   {one, "application/cbor,application/json"},
		"YAML":                   {one, "application/yaml"},
		"a name in percent form": {"/api/v1/namespaces/shop/%73ecrets/stolen", "application/json"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			leaks := func(text string) bool {
				return strings.Contains(text, "hunter2") || strings.Contains(text, "aHVudGVyMg")
			}
			if _, text := atCluster(t, "GET", c.path, admin, "", "Accept", c.accept); !leaks(text) {
				t.Errorf("control: %q", text)
			}
			status, text := atGateway(t, s, "GET", c.path, alan, "", "Accept", c.accept)
			if status != http.StatusOK || leaks(text) || !strings.Contains(text, "stolen") {
				t.Errorf("%d %s", status, text)
			}
		})
	}
}

// TestAttackKubernetesPaths: what could be read as another resource is refused.
// Control: the plain path is not.
func TestAttackKubernetesPaths(t *testing.T) {
	t.Parallel()
	s, _, _ := kubernetes(t)
	alan := token(t, s, demo.Alan)
	for path, want := range map[string]int{
		"/api/v1/namespaces/shop/configmaps":              http.StatusOK,
		"/api/v1/namespaces/shop/configmaps%2Fx":          http.StatusBadRequest,
		"/api/v1/namespaces/shop/pods/..%2f..%2fsecrets":  http.StatusBadRequest,
		"/api/v1/namespaces/shop/pods/%252e%252e/secrets": http.StatusBadRequest,
		"/api/v1/namespaces/shop/configmaps;x":            http.StatusBadRequest,
		"/api/v1/namespaces/shop/configmaps/":             http.StatusBadRequest,
		"/api/v1/namespaces/shop/ConfigMaps":              http.StatusBadRequest,
		"/api/v1/namespaces/shop/pods/x/exec/../log":      http.StatusNotFound, // one log, of no pod
		"/api/v1/proxy/namespaces/shop/pods/x":            http.StatusForbidden,
	} {
		if status, text := atGateway(t, s, "GET", path, alan, ""); status != want {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}

// TestAttackKubernetesIdentity: nobody says himself who he is to the cluster.
// Control: straight at the API server the header counts. Twin: without it the
// request passes, as its caller.
func TestAttackKubernetesIdentity(t *testing.T) {
	t.Parallel()
	s, _, _ := kubernetes(t)
	alan, admin := token(t, s, demo.Alan), prepared.cluster.Admin
	const path, body, object = "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`, "application/json"
	if _, text := atCluster(t, "POST", path, admin, body, "Content-Type", object, "Impersonate-User", "mallory"); !strings.Contains(text, `"username":"mallory"`) {
		t.Errorf("control: %s", text)
	}
	for name, value := range map[string]string{
		"Impersonate-User": "mallory", "Impersonate-Group": "system:masters", "Impersonate-Extra-x": "y", "Impersonate-Uid": "1",
		"X-Remote-User": "mallory", "X-Remote-Group": "system:masters",
		"Sec-WebSocket-Protocol": "base64url.bearer.authorization.k8s.io." + admin,
	} {
		if status, text := atGateway(t, s, "POST", path, alan, body, "Content-Type", object, name, value); status != http.StatusForbidden || !strings.Contains(text, `"kind":"Status"`) {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	status, text := atGateway(t, s, "POST", path, alan, body, "Content-Type", object, "X-Forwarded-Client-Cert", "By=x;URI=y", "Forwarded", "for=mallory")
	if status != http.StatusCreated || !strings.Contains(text, `"username":"chaperone:dex:alan@example.com"`) || !strings.Contains(text, `"chaperone:platform"`) {
		t.Errorf("twin: %d %s", status, text)
	}
	if status, text := atGateway(t, s, "GET", "/api", admin, ""); status != http.StatusUnauthorized || !strings.Contains(text, `"kind":"Status"`) {
		t.Errorf("the cluster's own token: %d %s", status, text)
	}
}

// TestAttackKubernetesStreams: no way into a container that a rule denies, by
// whatever method and upgrade, and none through a proxy, though policy allows
// it. Control: the API server knows each way (the pod has no node, and the
// service nothing behind it). Twin: its logs pass.
func TestAttackKubernetesStreams(t *testing.T) {
	t.Parallel()
	s, direct, _ := kubernetes(t)
	direct.must(t, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"box"},"spec":{"containers":[{"name":"c","image":"i"}]}}`, "-n", "shop", "apply", "-f", "-")
	alan, admin := token(t, s, demo.Alan), prepared.cluster.Admin
	const pod = "/api/v1/namespaces/shop/pods/box"
	websocket := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol", "v5.channel.k8s.io"}
	spdy := []string{"Connection", "Upgrade", "Upgrade", "SPDY/3.1", "X-Stream-Protocol-Version", "v4.channel.k8s.io"}
	for _, c := range []struct {
		method, path string
		headers      []string
	}{
		{"GET", pod + "/exec?command=id&stdout=1", websocket}, {"POST", pod + "/exec?command=id&stdout=1", spdy}, {"POST", pod + "/exec?command=id&stdout=1", nil},
		{"GET", pod + "/exec?command=id&stdout=1", nil}, {"GET", pod + "/attach?stdout=1", websocket}, {"POST", pod + "/portforward", spdy},
		{"GET", pod + "/portforward?ports=80", websocket}, {"GET", pod + "/proxy/", nil}, {"GET", "/api/v1/namespaces/default/services/https:kubernetes:443/proxy/", nil},
	} {
		if status, text := atCluster(t, c.method, c.path, admin, "", c.headers...); status == http.StatusNotFound || status == http.StatusForbidden || status == http.StatusMethodNotAllowed {
			t.Errorf("control: %s %s: %d %s", c.method, c.path, status, text)
		}
		res := h1(t, s, c.method, "/k8s/cluster"+c.path, alan, c.headers...)
		text, err := io.ReadAll(res.Body)
		why := "closed-shop"
		if strings.HasSuffix(c.path, "/proxy/") {
			why = "is not served by this gateway"
		}
		if err != nil || res.StatusCode != http.StatusForbidden || !strings.Contains(string(text), why) {
			t.Errorf("%s %s %v: %d %s %v", c.method, c.path, c.headers, res.StatusCode, text, err)
		}
	}
	if status, text := atGateway(t, s, "GET", pod+"/log", alan, ""); status == http.StatusForbidden {
		t.Errorf("twin: %d %s", status, text)
	}
}

// h1 sends a request by HTTP/1.1, which alone has upgrades.
func h1(t *testing.T, s *demo.Site, method, path, tok string, headers ...string) *http.Response {
	t.Helper()
	client, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	transport := client.Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2, transport.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+tok)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

// TestAttackKubernetesWrites: what policy does not let through is not stored,
// however it is written. Control: the API server takes it, in a dry run. Twin:
// the near, permitted write passes.
func TestAttackKubernetesWrites(t *testing.T) {
	t.Parallel()
	s, direct, _ := kubernetes(t)
	alan, admin := token(t, s, demo.Alan), prepared.cluster.Admin
	const pods = "/api/v1/namespaces/shop/pods"
	pod := func(spec string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"attack"},"spec":{` + spec + `"containers":[{"name":"c","image":"i"}]}}`
	}
	const privileged = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"attack"},"spec":{"containers":[{"name":"c","image":"i","securityContext":{"privileged":true}}]}}`
	binding := `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"attack"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"mallory"}]}`
	for name, c := range map[string]struct{ method, path, media, body string }{
		"a privileged pod":                        {"POST", pods, "application/json", privileged},
		"a privileged pod in YAML":                {"POST", pods, "application/yaml", privileged},
		"a folder of the node":                    {"POST", pods, "application/json", pod(`"volumes":[{"name":"h","hostPath":{"path":"/"}}],`)},
		"a name that stands twice":                {"POST", pods, "application/json", pod(`"hostPID":true,"hostPID":null,`)},
		"a patch that creates":                    {"PATCH", pods + "/attack?fieldManager=x", "application/apply-patch+yaml", privileged},
		"a privileged pod by a merge key in YAML": {"POST", pods, "application/yaml", "x: &p {privileged: true}\napiVersion: v1\nkind: Pod\nmetadata: {name: attack}\nspec: {containers: [{name: c, image: i, securityContext: {<<: *p}}]}\n"},
		"a privileged pod with any name":          {"POST", pods, "application/json", strings.Replace(privileged, `"name":"attack"`, `"generateName":"attack-"`, 1)},
		"an apply by force":                       {"PATCH", pods + "/attack?fieldManager=x&force=true", "application/apply-patch+yaml", privileged},
		"a body of an unsaid type":                {"POST", pods, "", privileged},
		"a body with a parameter":                 {"POST", pods, "application/json; as=x", privileged},
		"a pod on a node of its choice":           {"POST", pods, "application/json", pod(`"nodeName":"n1",`)},
		"a pod on a node, applied":                {"PATCH", pods + "/attack?fieldManager=x", "application/apply-patch+yaml", pod(`"nodeName":"n1",`)},
		"a load balancer that says it is none": {"POST", "/api/v1/namespaces/shop/services", "application/json",
			`{"apiVersion":"v1","kind":"Service","type":"ClusterIP","metadata":{"name":"attack"},"spec":{"type":"LoadBalancer","ports":[{"port":80}]}}`},
		"a role for somebody":         {"POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "application/json", binding},
		"a token of a serviceaccount": {"POST", "/api/v1/namespaces/kube-system/secrets", "application/json", `{"metadata":{"name":"t","annotations":{"kubernetes.io/service-account.name":"default"}},"type":"kubernetes.io/service-account-token"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			separator := "?"
			if strings.Contains(c.path, "?") {
				separator = "&"
			}
			if status, text := atCluster(t, c.method, c.path+separator+"dryRun=All", admin, c.body, "Content-Type", c.media); status >= 300 {
				t.Errorf("control: %d %s", status, text)
			}
			if status, text := atGateway(t, s, c.method, c.path, alan, c.body, "Content-Type", c.media); status != http.StatusForbidden && status != http.StatusBadRequest || !strings.Contains(text, "req_") {
				t.Errorf("%d %s", status, text)
			}
		})
	}
	t.Run("twin", func(t *testing.T) {
		t.Parallel()
		modest := strings.Replace(pod(""), "attack", "modest", 1)
		if status, text := atGateway(t, s, "POST", pods, alan, modest, "Content-Type", "application/json"); status != http.StatusCreated {
			t.Errorf("%d %s", status, text)
		}
	})
	t.Run("a mask written back", func(t *testing.T) {
		t.Parallel()
		direct.must(t, "", "-n", "shop", "create", "secret", "generic", "kept", "--from-literal=password=hunter2")
		const kept = "/api/v1/namespaces/shop/secrets/kept"
		_, text := atGateway(t, s, "GET", kept, alan, "")
		if !strings.Contains(text, "Kioq") {
			t.Fatalf("not masked: %s", text)
		}
		if status, answer := atGateway(t, s, "PUT", kept, alan, text, "Content-Type", "application/json"); status != http.StatusForbidden || !strings.Contains(answer, "masked-field") {
			t.Errorf("%d %s", status, answer)
		}
		if status, answer := atGateway(t, s, "PATCH", kept, alan, `{"metadata":{"labels":{"a":"b"}}}`, "Content-Type", "application/merge-patch+json"); status != http.StatusOK || strings.Contains(answer, "aHVudGVyMg") {
			t.Errorf("twin: %d %s", status, answer)
		}
		const copied = `[{"op":"add","path":"/metadata/annotations","value":{}},{"op":"copy","from":"/data/password","path":"/metadata/annotations/password"}]`
		if status, answer := atCluster(t, "PATCH", kept+"?dryRun=All", admin, copied, "Content-Type", "application/json-patch+json"); status != http.StatusOK || !strings.Contains(answer, `"annotations":{"password":"aHVudGVyMg=="}`) {
			t.Errorf("control: %d %s", status, answer)
		}
		if status, answer := atGateway(t, s, "PATCH", kept, alan, copied, "Content-Type", "application/json-patch+json"); status != http.StatusForbidden || strings.Contains(answer, "aHVudGVyMg") {
			t.Errorf("a value copied: %d %s", status, answer)
		}
		if _, text := atCluster(t, "GET", kept, admin, ""); !strings.Contains(text, "aHVudGVyMg==") {
			t.Errorf("the value is gone: %s", text)
		}
	})
}

// TestAttackKubernetesDryRun: what does more than a dry run is not taken for one.
// Control: the API server does it, whatever dryRun says. Twin: a dry run passes,
// and stores nothing.
func TestAttackKubernetesDryRun(t *testing.T) {
	t.Parallel()
	s, direct, _ := kubernetes(t)
	alan, admin := token(t, s, demo.Alan), prepared.cluster.Admin
	const core = "/api/v1/namespaces/dry"
	direct.must(t, `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"dry"}},
		{"apiVersion":"v1","kind":"Pod","metadata":{"name":"box","namespace":"dry"},"spec":{"containers":[{"name":"c","image":"i"}]}},
		{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"robot","namespace":"dry"}},
		{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"control","namespace":"dry"}},
		{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kept","namespace":"dry"}}]}`, "apply", "-f", "-")
	spdy := []string{"Connection", "Upgrade", "Upgrade", "SPDY/3.1", "X-Stream-Protocol-Version", "v4.channel.k8s.io"}
	object := []string{"Content-Type", "application/json"}
	refused := func(name, method, path, body string, headers ...string) {
		t.Helper()
		res := h1(t, s, method, "/k8s/cluster"+path, alan, headers...)
		if body != "" {
			res = request(t, s, method, "/k8s/cluster"+path, alan, body, headers...)
		}
		text, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusForbidden || !strings.Contains(string(text), "dry-only") {
			t.Errorf("%s: %d %s %v", name, res.StatusCode, text, err)
		}
	}
	if status, text := atCluster(t, "POST", core+"/pods/box/exec?command=id&stdout=1&dryRun=All", admin, "", spdy...); status == http.StatusForbidden || status == http.StatusNotFound {
		t.Errorf("control of exec: %d %s", status, text)
	}
	refused("exec", "POST", core+"/pods/box/exec?command=id&stdout=1&dryRun=All", "", spdy...)
	refused("exec by GET", "GET", core+"/pods/box/exec?command=id&stdout=1&dryRun=All", "", spdy...)
	if status, text := atCluster(t, "POST", core+"/serviceaccounts/robot/token?dryRun=All", admin, `{"spec":{}}`, object...); status != http.StatusCreated || !strings.Contains(text, `"token":"`) {
		t.Errorf("control of a token: %d %s", status, text)
	}
	refused("a token", "POST", core+"/serviceaccounts/robot/token?dryRun=All", `{"spec":{}}`, object...)
	if status, text := atCluster(t, "DELETE", core+"/configmaps/control?dryRun=All", admin, `{}`, object...); status != http.StatusOK {
		t.Errorf("control of a deletion: %d %s", status, text)
	}
	if status, _ := atCluster(t, "GET", core+"/configmaps/control", admin, ""); status != http.StatusNotFound {
		t.Errorf("control of a deletion: it is there still, %d", status)
	}
	refused("a deletion whose body counts", "DELETE", core+"/configmaps/kept?dryRun=All", `{}`, object...)
	refused("a word of two", "DELETE", core+"/configmaps/kept", `{"dryRun":["All",""]}`, object...)
	if status, text := atGateway(t, s, "DELETE", core+"/configmaps/kept", alan, `{"dryRun":["All"]}`, object...); status != http.StatusOK {
		t.Errorf("twin: %d %s", status, text)
	}
	if status, text := atGateway(t, s, "POST", core+"/configmaps?dryRun=All", alan, `{"metadata":{"name":"new"}}`, object...); status != http.StatusCreated {
		t.Errorf("twin: %d %s", status, text)
	}
	if status, text := atCluster(t, "GET", core+"/configmaps/kept", admin, ""); status != http.StatusOK {
		t.Errorf("it is gone: %d %s", status, text)
	}
	if status, text := atCluster(t, "GET", core+"/configmaps/new", admin, ""); status != http.StatusNotFound {
		t.Errorf("it is stored: %d %s", status, text)
	}
}
