package e2e

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// chart are the files of the page on compatibility for Helm.
var chart = map[string]string{
	"Chart.yaml":  "apiVersion: v2\nname: web\nversion: 1.0.0\nappVersion: \"1\"\n",
	"values.yaml": "replicas: 1\npassword: hunter2\n",
	"templates/web.yaml": `
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec: {containers: [{name: web, image: "web:1"}]}
---
apiVersion: v1
kind: Secret
metadata: {name: {{ .Release.Name }}-password}
data: {password: {{ .Values.password | b64enc }}}
`,
	"templates/hook.yaml": `
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-hook, annotations: {helm.sh/hook: "post-install,post-upgrade"}}
data: {replicas: {{ .Values.replicas | quote }}}
`,
}

// TestHelm runs Helm's commands of the page on compatibility, in its order, with
// the kubeconfig that chaperone prints, and the same straight at the cluster.
func TestHelm(t *testing.T) {
	t.Parallel()
	_, direct, through := kubernetes(t)
	page, err := os.ReadFile("../docs/kubernetes-compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range chart {
		path := filepath.Join(dir, "chart", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `(helm .+)` \\| (same|done) \\|").FindAllStringSubmatch(string(page), -1)
	if len(rows) < 10 {
		t.Errorf("the page shows %d commands", len(rows))
	}
	for _, row := range rows {
		got, err := through.shell(t, dir, row[1])
		if err != nil {
			t.Fatalf("%s: %v %s", row[1], err, got)
		}
		if row[2] != "same" {
			continue
		}
		if want, err := direct.shell(t, dir, row[1]); err != nil || got != want || want == "" {
			t.Errorf("%s\ndirect:  %s %v\nthrough: %s", row[1], want, err, got)
		}
	}
}

// TestAttackKubernetesSecretTypes: policy shows the Secrets of one type. No
// other shows because it looks like one: by its name, labels or annotations, by
// what asks for it, or by another type that somebody would like it to have.
// Control: the API server shows it in each form. Twin: one of the type shows.
func TestAttackKubernetesSecretTypes(t *testing.T) {
	t.Parallel()
	s, direct, _ := kubernetes(t)
	const kind, real, other = "helm.sh/release.v1", "cmVhbC1yZWxlYXNl", "aHVudGVyMg"
	labels := `"labels":{"owner":"helm","type":"helm.sh_release.v1","is":"disguised"},"annotations":{"type":"` + kind + `"}`
	direct.must(t, `{"apiVersion":"v1","kind":"Secret","type":"Opaque","metadata":{"name":"sh.helm.release.v1.disguised.v1",`+labels+`},"data":{"release":"`+other+`==","type":"`+
		base64.StdEncoding.EncodeToString([]byte(kind))+`"}}`, "-n", "helm", "create", "-f", "-")
	direct.must(t, `{"apiVersion":"v1","kind":"Secret","type":"`+kind+`","metadata":{"name":"real",`+labels+`},"data":{"release":"`+real+`"}}`, "-n", "helm", "create", "-f", "-")
	alan, admin := token(t, s, demo.Alan), prepared.cluster.Admin
	const all, object = "/api/v1/namespaces/helm/secrets", "application/json"
	const chosen, one = all + "?labelSelector=is%3Ddisguised", all + "/sh.helm.release.v1.disguised.v1"
	for name, c := range map[string]struct{ path, accept string }{
		"one":                 {one, object},
		"one in a table":      {one + "?includeObject=Object", object + ";as=Table;v=v1;g=meta.k8s.io"},
		"a list":              {chosen, object},
		"a list, in pieces":   {chosen + "&limit=5", object},
		"a table":             {chosen + "&includeObject=Object", object + ";as=Table;v=v1;g=meta.k8s.io"},
		"a watch":             {chosen + "&watch=1&timeoutSeconds=1", object},
		"a watch of tables":   {chosen + "&includeObject=Object&watch=1&timeoutSeconds=1", object + ";as=Table;v=v1;g=meta.k8s.io"},
		"asked for as a type": {chosen + "&fieldSelector=type%21%3D" + "x", object},
	} {
		if _, text := atCluster(t, "GET", c.path, admin, "", "Accept", c.accept); !strings.Contains(text, other) {
			t.Errorf("%s: control: %q", name, text)
		}
		status, text := atGateway(t, s, "GET", c.path, alan, "", "Accept", c.accept)
		if status != http.StatusOK || strings.Contains(text, other) || !strings.Contains(text, "Kioq") {
			t.Errorf("%s: %d %s", name, status, text)
		}
		if !strings.HasPrefix(c.path, one) && !strings.Contains(text, real) {
			t.Errorf("%s: twin: %s", name, text)
		}
	}
	// The API server keeps the type of a Secret as it was created.
	for media, body := range map[string]string{
		"application/merge-patch+json":           `{"type":"` + kind + `"}`,
		"application/strategic-merge-patch+json": `{"type":"` + kind + `"}`,
		"application/json-patch+json":            `[{"op":"replace","path":"/type","value":"` + kind + `"}]`,
		"application/apply-patch+yaml":           `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"sh.helm.release.v1.disguised.v1"},"type":"` + kind + `"}`,
	} {
		path := one + "?dryRun=All"
		if strings.Contains(media, "apply") {
			path += "&fieldManager=x&force=true"
		}
		status, text := atGateway(t, s, "PATCH", path, alan, body, "Content-Type", media)
		if status != http.StatusUnprocessableEntity || strings.Contains(text, other) {
			t.Errorf("relabelled by %s: %d %s", media, status, text)
		}
	}
	// Nor does an exception in one namespace reach another.
	direct.must(t, `{"apiVersion":"v1","kind":"Secret","type":"`+kind+`","metadata":{"name":"elsewhere"},"data":{"release":"`+real+`"}}`, "-n", "shop", "create", "-f", "-")
	for _, path := range []string{"/api/v1/namespaces/shop/secrets/elsewhere", "/api/v1/secrets?fieldSelector=type%3Dhelm.sh%2Frelease.v1"} {
		if status, text := atGateway(t, s, "GET", path, alan, ""); status != http.StatusOK || strings.Contains(text, real) || !strings.Contains(text, "Kioq") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}
