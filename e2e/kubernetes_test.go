package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// prepared is the cluster of the shared Site. It starts with the first test that
// needs it.
var prepared struct {
	cluster *localserver.Kubernetes
	liar    *liar
	dir     string
	once    sync.Once
	err     error
}

// clusterPolicy lets Alan's subagents do much, so that what stops them is the
// gateway.
const clusterPolicy = `
policy: e2e-cluster
principal: '"platform" in principal.groups'
resource: 'resource.kind == "kubernetes"'
rules:
  - name: read
    when: 'k8s.read_only'
    effect: allow
    mask: [{detect: [CREDIT_CARD]}]
  - name: pods
    when: 'k8s.resource == "pods" && k8s.subresource == ""'
    effect: allow
    mask: [{json: /spec/containers/*/env/*/value}]
  - name: releases
    when: 'k8s.resource == "secrets" && k8s.namespace == "helm"'
    effect: allow
    mask: [{secrets_except: [helm.sh/release.v1]}]
  - name: write
    when: '!k8s.read_only && k8s.namespace != "" && k8s.group in ["", "apps", "coordination.k8s.io"] && size(k8s.powers) == 0'
    effect: allow
  - name: no-privileged-pods
    when: 'k8s.verb in ["create", "patch"] && k8s.resource == "pods" && k8s.subresource == "" && (k8s.object.privileged || size(k8s.object.host_paths) > 0)'
    effect: deny
    message: privileged pods need another way
  - name: streams
    when: 'k8s.powers.exists(p, p in ["exec", "attach", "port-forward", "proxy"])'
    effect: allow
  - name: closed-shop
    when: 'k8s.namespace == "shop" && k8s.powers.exists(p, p in ["exec", "attach", "port-forward"])'
    effect: deny
  - name: masked-output
    when: 'k8s.subresource == "exec" && "card" in k8s.command'
    effect: allow
    mask: [{detect: [CREDIT_CARD]}]
  - name: no-reboot
    when: 'k8s.subresource == "exec" && "reboot" in k8s.command'
    effect: deny
  - name: hold-exec
    when: 'k8s.subresource == "exec" && "restore" in k8s.command'
    effect: approve
    approval: {groups: [senior-engineers], count: 1, expires: 1m}
  - name: no-load-balancers
    when: 'k8s.verb == "create" && k8s.resource == "services" && k8s.object.type == "LoadBalancer"'
    effect: deny
  - name: no-choice-of-nodes
    when: 'k8s.namespace == "shop" && "bind-pod" in k8s.powers'
    effect: deny
  - name: dry-only
    when: 'k8s.namespace == "dry" && !k8s.read_only && !k8s.dry_run'
    effect: deny
  - name: reviewed
    when: '!k8s.read_only && (k8s.namespace == "reviewed" || k8s.resource == "namespaces" && k8s.name == "reviewed")'
    effect: approve
    approval: {groups: [senior-engineers], count: 1, expires: 1m}
  - name: hold
    when: 'k8s.verb == "delete" && k8s.resource == "configmaps" && k8s.name == "held"'
    effect: approve
    approval: {groups: [senior-engineers], count: 1, expires: 1m}
`

// prepareCluster makes what the gateway's configuration names.
func prepareCluster() (err error) {
	if prepared.dir, err = os.MkdirTemp("", "k8s"); err != nil {
		return err
	}
	if prepared.cluster, err = localserver.PrepareKubernetes(prepared.dir); err != nil {
		return err
	}
	if prepared.liar, err = startLiar(prepared.dir); err != nil {
		return err
	}
	cert, key, err := prepared.cluster.ClientCertificate("gateway-by-certificate")
	for name, content := range map[string][]byte{"gateway-token": []byte(prepared.cluster.Gateway), "gateway.crt": cert, "gateway.key": key} {
		err = errors.Join(err, os.WriteFile(filepath.Join(prepared.dir, name), content, 0o600))
	}
	return err
}

// forgetCluster stops it, if it runs.
func forgetCluster() {
	if prepared.cluster != nil {
		prepared.cluster.Close()
	}
	if prepared.liar != nil {
		prepared.liar.server.Close()
	}
	os.RemoveAll(prepared.dir)
}

// withCluster adds the cluster to a configuration.
func withCluster(text string) string {
	return strings.Replace(text, "\npolicies:", fmt.Sprintf(`
  - name: cluster
    kind: kubernetes
    address: %[1]s
    kubernetes: {ca: {file: %[2]s/server.crt}, credential: {token: {file: %[2]s/gateway-token}}, impersonate: {groups: [platform]}}
  - name: liar
    kind: kubernetes
    address: %[3]s
    kubernetes: {ca: {file: %[2]s/liar.crt}, credential: {token: {file: %[2]s/gateway-token}}}
  - name: cluster-by-certificate
    kind: kubernetes
    address: %[1]s
    kubernetes: {ca: {file: %[2]s/server.crt}, credential: {cert: {file: %[2]s/gateway.crt}, key: {file: %[2]s/gateway.key}}, impersonate: {groups: [platform]}}
policies:`, prepared.cluster.URL, prepared.dir, prepared.liar.server.URL), 1)
}

// asAdmin is what the tests need beside what the page for operators has: whom
// the gateway acts as may do everything.
const asAdmin = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: compat}
---
apiVersion: v1
kind: Namespace
metadata: {name: helm}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: by-certificate}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: chaperone}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: gateway-by-certificate}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: platform}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "chaperone:platform"}]
---
`

// account is the manifest of the page for operators: that of the gateway's
// account.
func account() (string, error) {
	page, err := os.ReadFile("../docs/kubernetes.md")
	if err != nil {
		return "", err
	}
	_, text, _ := strings.Cut(string(page), "```yaml\n")
	text, _, ok := strings.Cut(text, "```")
	if !ok || !strings.Contains(text, "kind: ClusterRole") {
		return "", errors.New("the page on Kubernetes shows no ClusterRole")
	}
	return text, nil
}

// A kubectl runs kubectl with one kubeconfig.
type kubectl struct {
	config, home string
	env          []string
	tool         string // "" is kubectl
}

func (k kubectl) run(ctx context.Context, stdin string, args ...string) (string, error) {
	pinned := filepath.Join(localserver.ToolsDir(), "bin", cmp.Or(k.tool, "kubectl"))
	cmd := exec.CommandContext(ctx, pinned, append([]string{"--kubeconfig", k.config, "--cache-dir", k.home}, args...)...)
	cmd.Env = append(append(os.Environ(), "HOME="+k.home), k.env...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, &stderr)
	}
	return stdout.String(), nil
}

// must runs kubectl and fails the test when it fails.
func (k kubectl) must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := k.run(t.Context(), stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// kubernetes returns kubectl straight at the cluster, as its administrator, and
// through the gateway, as a subagent of Alan's.
func kubernetes(t *testing.T) (s *demo.Site, direct, through kubectl) {
	t.Helper()
	s = site(t)
	cluster := prepared.cluster
	prepared.once.Do(func() {
		if prepared.err = cluster.Start(context.Background()); prepared.err != nil {
			return
		}
		config, configErr := cluster.Kubeconfig("admin", cluster.Admin)
		manifest, err := account()
		if prepared.err = errors.Join(configErr, err); prepared.err == nil {
			_, prepared.err = kubectl{config: config, home: prepared.dir}.run(context.Background(), asAdmin+manifest, "apply", "-f", "-")
		}
	})
	if prepared.err != nil {
		t.Fatal(prepared.err)
	}
	return s, kubectl{config: filepath.Join(prepared.dir, "admin.kubeconfig"), home: t.TempDir()}, kubectlThrough(t, s, "cluster")
}

// kubectlThrough is kubectl through a gateway to one of its resources, as a
// subagent of Alan's.
func kubectlThrough(t *testing.T, s *demo.Site, resource string) kubectl {
	t.Helper()
	home := t.TempDir()
	mine := []string{"CHAPERONE_TOKEN=" + token(t, s, demo.Alan), "XDG_CACHE_HOME=" + home}
	config, err := client(t, s, home, mine, "env", resource)
	if err != nil {
		t.Fatal(err)
	}
	through := kubectl{config: filepath.Join(home, "kubeconfig"), home: filepath.Join(home, "through"), env: mine}
	if err := os.WriteFile(through.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return through
}

// manifests are the files of the page on compatibility.
var manifests = map[string]string{
	"web.yaml": `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:1"}]}
`,
	"pod.yaml": `
apiVersion: v1
kind: Pod
metadata: {name: web-0, labels: {app: web}}
spec: {containers: [{name: web, image: "web:1", env: [{name: KEY, value: env-hunter2}]}]}
`,
	"secret.yaml": `
apiVersion: v1
kind: Secret
metadata: {name: db}
data: {password: aHVudGVyMg==}
`}

// TestKubectl runs the commands of the page on compatibility, in its order, as
// it says: the same outputs direct and through but for masks, writes that are
// done, and what is refused by name.
func TestKubectl(t *testing.T) {
	t.Parallel()
	_, direct, through := kubernetes(t)
	page, err := os.ReadFile("../docs/kubernetes-compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range manifests {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	results := map[string]int{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(kubectl .+)` \\| ([a-z]+) \\|").FindAllStringSubmatch(string(page), -1) {
		command, result := row[1], row[2]
		results[result]++
		got, err := through.shell(t, dir, command)
		switch result {
		case "same", "masked":
			want, directErr := direct.shell(t, dir, command)
			shown := strings.Contains(want, "hunter2") || strings.Contains(want, "aHVudGVyMg==")
			want = strings.NewReplacer("env-hunter2", "***", "aHVudGVyMg==", "Kioq").Replace(want)
			if err != nil || directErr != nil || got != want || shown != (result == "masked") {
				t.Errorf("%s is not %s: %v %v\ndirect:  %s\nthrough: %s", command, result, err, directErr, want, got)
			}
		case "done":
			if err != nil {
				t.Errorf("%s: %v %s", command, err, got)
			}
		case "refused":
			if err == nil || !strings.Contains(got, "not served") || !strings.Contains(got, "req_") {
				t.Errorf("%s: %v %s", command, err, got)
			}
		default:
			t.Errorf("%s: no test knows what %q means", command, result)
		}
	}
	if results["same"] < 15 || results["masked"] < 3 || results["done"] < 15 || results["refused"] < 3 {
		t.Errorf("the page has %v", results)
	}
}

// ages are what differs from one second to the next.
var ages = regexp.MustCompile(`\b([0-9]+[smhd])+\b( ago)?| +`)

// shell runs a command line in dir, and returns what it printed without ages
// and the width of columns.
func (k kubectl) shell(t *testing.T, dir, command string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), k.env...), "HOME="+k.home, "KUBECONFIG="+k.config, "KUBECACHEDIR="+k.home, "KUBE_EDITOR=true",
		"PATH="+filepath.Join(localserver.ToolsDir(), "bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return ages.ReplaceAllString(string(out), " "), err
}

// TestKubernetesHold: a held command goes on once it is granted.
func TestKubernetesHold(t *testing.T) {
	t.Parallel()
	s, direct, through := kubernetes(t)
	direct.must(t, "", "-n", "shop", "create", "configmap", "held")
	done := make(chan error, 1)
	go func() {
		_, err := through.run(t.Context(), "", "-n", "shop", "delete", "configmap", "held")
		done <- err
	}()
	grace, id := person(t, s, demo.Grace), ""
	eventually(t, func() error {
		out, err := cli(t, s, grace, "approvals", "list", "-o", "json")
		if m := regexp.MustCompile(`"id":\s*"(req_[a-z0-9]+)"[^}]*delete configmaps shop/held`).FindStringSubmatch(out); m != nil {
			id = m[1]
			return nil
		}
		return fmt.Errorf("%w: %s", err, out)
	})
	card, err := cli(t, s, grace, "approvals", "show", id)
	if err != nil || !strings.Contains(card, "DELETE /api/v1/namespaces/shop/configmaps/held") || !strings.Contains(card, "propagationPolicy") {
		t.Errorf("%v %s", err, card)
	}
	if _, err := direct.run(t.Context(), "", "-n", "shop", "get", "configmap", "held"); err != nil {
		t.Errorf("it was deleted before it was granted: %v", err)
	}
	if out, err := cli(t, s, grace, "approvals", "approve", id); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if err := <-done; err != nil {
		t.Errorf("granted: %v", err)
	}
	if _, err := direct.run(t.Context(), "", "-n", "shop", "get", "configmap", "held"); err == nil {
		t.Error("it is still there")
	}
}

// TestKubernetesExec: kubectl runs with what exec sets, and without the token.
func TestKubernetesExec(t *testing.T) {
	t.Parallel()
	s, _, through := kubernetes(t)
	tool := filepath.Join(localserver.ToolsDir(), "bin", "kubectl")
	out, err := client(t, s, t.TempDir(), through.env, "exec", "cluster", "--", "sh", "-c", `echo "token=$CHAPERONE_TOKEN"; "$0" get namespace default -o name`, tool)
	if err != nil || out != "token=\nnamespace/default\n" {
		t.Errorf("%q %v", out, err)
	}
	if _, err := client(t, s, t.TempDir(), through.env, "exec", "cluster", "--read-only", "--", tool, "-n", "shop", "create", "configmap", "never"); err == nil || !strings.Contains(err.Error(), "reading only") {
		t.Errorf("a write with a token for reading: %v", err)
	}
}

// TestKubernetesClientCertificate: the gateway's account may have a client
// certificate for a credential, on the way through Envoy and on that of exec.
func TestKubernetesClientCertificate(t *testing.T) {
	t.Parallel()
	s, direct, _ := kubernetes(t)
	runningPod(t, direct, "certificate")
	through := kubectlThrough(t, s, "cluster-by-certificate")
	if got := through.must(t, "", "-n", "certificate", "get", "pod", "web", "-o", "name"); got != "pod/web\n" {
		t.Errorf("got %q", got)
	}
	if got := through.must(t, "", "-n", "certificate", "exec", "web", "--", "echo", "inside"); got != "inside\n" {
		t.Errorf("exec says %q", got)
	}
	for _, uri := range []string{`"requestURI":"/api/v1/namespaces/certificate/pods/web"`, `"requestURI":"/api/v1/namespaces/certificate/pods/web/exec?`} {
		audited(t, uri, `"username":"gateway-by-certificate"`, `"impersonatedUser":{"username":"chaperone:dex:alan@example.com"`)
	}
}

// TestKubernetesAudit: the API server's own audit names who acted, and for whom.
func TestKubernetesAudit(t *testing.T) {
	t.Parallel()
	_, _, through := kubernetes(t)
	through.must(t, "", "get", "namespace", "kube-public")
	audited(t, `"requestURI":"/api/v1/namespaces/kube-public"`, `"username":"chaperone-gateway"`, `"impersonatedUser":{"username":"chaperone:dex:alan@example.com"`,
		`"chaperone:platform"`, `"chaperone.dev/session":["ses_`, `"chaperone.dev/request":["req_`, `"chaperone.dev/subagent"`)
}

// audited waits for a line of the API server's audit log that has uri and was not
// its own nor the administrator's doing, and checks that it has every part.
func audited(t *testing.T, uri string, parts ...string) {
	t.Helper()
	eventually(t, func() error {
		log, err := os.ReadFile(prepared.cluster.Audit)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(log)) {
			if !strings.Contains(line, uri) || strings.Contains(line, "system:apiserver") || strings.Contains(line, `"username":"admin"`) {
				continue
			}
			for _, part := range parts {
				if !strings.Contains(line, part) {
					return fmt.Errorf("no %s in %s", part, line)
				}
			}
			return nil
		}
		return errors.New("not in the audit log yet")
	})
}
