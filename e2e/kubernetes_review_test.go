package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// reviewed is a Deployment with what its controller would make, and a Secret.
const reviewed = `
apiVersion: v1
kind: Namespace
metadata: {name: reviewed}
---
apiVersion: v1
kind: Secret
metadata: {name: db, namespace: reviewed}
data: {password: aHVudGVyMg==}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: reviewed}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:1"}]}
`

const dependent = `
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: web-1
  namespace: reviewed
  ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: %s}]
spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "web:1"}]}}}
`

// TestKubernetesPreview: a reviewer sees what the API server would make of held
// writes and deletions, none of which is done, nor any value of a Secret shown.
func TestKubernetesPreview(t *testing.T) {
	t.Parallel()
	s, direct, through := kubernetes(t)
	direct.must(t, reviewed, "apply", "-f", "-")
	uid := direct.must(t, "", "-n", "reviewed", "get", "deployment", "web", "-o", "jsonpath={.metadata.uid}")
	direct.must(t, fmt.Sprintf(dependent, uid), "apply", "-f", "-")
	state := func() string {
		return direct.must(t, "", "-n", "reviewed", "get", "deployments,replicasets,secrets,configmaps", "-o", "yaml")
	}
	before := state()
	alan, grace := strings.TrimPrefix(through.env[0], "CHAPERONE_TOKEN="), person(t, s, demo.Grace)
	const web = "/apis/apps/v1/namespaces/reviewed/deployments/web"
	for name, c := range map[string]struct {
		method, path, media, body string
		want                      []string
	}{
		"a merge patch":     {"PATCH", web, "application/merge-patch+json", `{"spec":{"replicas":3}}`, []string{"~ spec.replicas: 1 -> 3", "an estimate of"}},
		"a strategic patch": {"PATCH", web, "application/strategic-merge-patch+json", `{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"web:2"}]}}}}`, []string{`~ spec.template.spec.containers[web].image: "web:1" -> "web:2"`}},
		"a JSON patch":      {"PATCH", web, "application/json-patch+json", `[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]`, []string{`+ metadata.labels.a: "b"`}},
		"an apply": {"PATCH", web + "?fieldManager=x&force=true", "application/apply-patch+yaml", `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 4}}`,
			[]string{"~ spec.replicas: 1 -> 4"}},
		"a scale":    {"PUT", web + "/scale", "application/json", `{"metadata":{"name":"web","namespace":"reviewed"},"spec":{"replicas":7}}`, []string{"~ spec.replicas: 1 -> 7"}},
		"a creation": {"POST", "/api/v1/namespaces/reviewed/configmaps", "application/yaml", `{metadata: {name: new}, data: {k: v}}`, []string{"creates:", `+ data.k: "v"`}},
		"a secret":   {"PATCH", "/api/v1/namespaces/reviewed/secrets/db", "application/merge-patch+json", `{"data":{"password":"aHVudGVyMjI="}}`, []string{`~ data.password: "Kioq" -> "Kioq" (masked)`}},
		"what is refused": {"PATCH", web, "application/merge-patch+json", `{"spec":{"selector":{"matchLabels":{"app":"x"}}}}`,
			[]string{"no preview:", "the API server would not do it"}},
		"a deletion":        {"DELETE", web, "", "", []string{"- 1 replicasets.apps: web-1", "Background"}},
		"a deletion of one": {"DELETE", web + "?propagationPolicy=Orphan", "", "", []string{"Orphan: what belongs to it is kept"}},
		"a collection":      {"DELETE", "/apis/apps/v1/namespaces/reviewed/deployments?fieldSelector=metadata.name%3Dweb", "", "", []string{"- 1 deployments.apps: web", "- 1 replicasets.apps: web-1"}},
		"a namespace":       {"DELETE", "/api/v1/namespaces/reviewed", "", "", []string{"- 1 deployments.apps: web", "- 1 replicasets.apps: web-1", "secrets: db"}},
	} {
		t.Run(name, func(t *testing.T) {
			headers := []string{"Prefer", "respond-async"}
			if c.media != "" {
				headers = append(headers, "Content-Type", c.media)
			}
			status, text := atGateway(t, s, c.method, c.path, alan, c.body, headers...)
			id := requestID.FindString(text)
			if status != http.StatusAccepted || id == "" {
				t.Fatalf("it was not held: %d %s", status, text)
			}
			card, err := cli(t, s, grace, "approvals", "show", id)
			object, jsonErr := cli(t, s, grace, "approvals", "show", id, "-o", "json")
			for _, want := range c.want {
				if err != nil || !strings.Contains(card, want) {
					t.Errorf("the card lacks %q: %v\n%s", want, err, card)
				}
			}
			if jsonErr != nil || !strings.Contains(object, `"preview": {`) {
				t.Errorf("JSON: %v\n%s", jsonErr, object)
			}
			for _, leak := range []string{"hunter2", "aHVudGVyMg", "aHVudGVyMjI"} {
				if strings.Contains(card+object, leak) {
					t.Errorf("%s is shown:\n%s", leak, card)
				}
			}
		})
	}
	if after := state(); after != before {
		t.Errorf("previews changed the cluster:\n%s\nwas\n%s", after, before)
	}
	applies(t, s, through, direct, grace)
}

// applies has kubectl apply held, shown and granted.
func applies(t *testing.T, s *demo.Site, through, direct kubectl, grace string) {
	done := make(chan error, 1)
	go func() {
		_, err := through.run(t.Context(), strings.Replace(reviewed[strings.LastIndex(reviewed, "---"):], "\nspec:", "\nspec:\n  replicas: 9", 1), "apply", "-f", "-")
		done <- err
	}()
	id := ""
	eventually(t, func() error {
		out, err := cli(t, s, grace, "approvals", "list", "--state", "pending", "-o", "json")
		for _, m := range regexp.MustCompile(`"id":\s*"(req_[a-z0-9]+)"[^}]*patch deployments.apps reviewed/web`).FindAllStringSubmatch(out, -1) {
			if card, err := cli(t, s, grace, "approvals", "show", m[1]); err == nil && strings.Contains(card, "~ spec.replicas: 1 -> 9") {
				id = m[1]
				return nil
			}
		}
		return fmt.Errorf("%w: %s", err, out)
	})
	if out, err := cli(t, s, grace, "approvals", "approve", id); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if err := <-done; err != nil {
		t.Errorf("granted: %v", err)
	}
	if got := direct.must(t, "", "-n", "reviewed", "get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"); got != "9" {
		t.Errorf("it has %s replicas", got)
	}
}

// TestKubectlExecRepeated: what nobody grants within the configured wait is
// refused with the request id, and repeated once it was granted it runs, exactly
// once. kubectl asks by WebSocket and then by SPDY: that is one question.
func TestKubectlExecRepeated(t *testing.T) {
	t.Parallel()
	_, direct, _ := kubernetes(t)
	s := own(t, demo.Options{Config: func(text string) string {
		return strings.Replace(withCluster(text), "wait: 2m", "wait: 500ms", 1)
	}})
	through := kubectlThrough(t, s, "cluster")
	runningPod(t, direct, "repeated")
	marks := filepath.Join(t.TempDir(), "marks")
	run := func() (string, error) {
		return through.run(t.Context(), "", "-n", "repeated", "exec", "web", "--", "sh", "-c", "echo ran >>"+marks+"; cat "+marks, "restore")
	}
	refused := func(err error) string {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "a reviewer has to grant this") || !strings.Contains(err.Error(), "(Forbidden)") && !strings.Contains(err.Error(), "forbidden") {
			t.Fatalf("not refused as a Status: %v", err)
		}
		return requestID.FindString(err.Error())
	}
	_, err := run()
	id := refused(err)
	grace := person(t, s, demo.Grace)
	if out, err := cli(t, s, grace, "approvals", "list", "--state", "pending"); err != nil || len(requestID.FindAllString(out, -1)) != 1 || !strings.Contains(out, id) {
		t.Errorf("not one question %s: %v\n%s", id, err, out)
	}
	if out, err := cli(t, s, grace, "approvals", "approve", id); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if _, err := os.Stat(marks); err == nil {
		t.Error("it ran before it was repeated")
	}
	if out, err := run(); err != nil || out != "ran\n" {
		t.Errorf("repeated: %q %v", out, err)
	}
	_, err = run()
	if another := refused(err); another == id {
		t.Errorf("the used grant %s is asked for again", id)
	}
	if text, err := os.ReadFile(marks); err != nil || string(text) != "ran\n" {
		t.Errorf("it ran %q: %v", text, err)
	}
}
