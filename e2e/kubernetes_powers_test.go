package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// certificateRequest is the PEM of a CSR, in base64.
func certificateRequest(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "mallory"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// TestAttackKubernetesPowers: every way around the API that its writes have is
// judged as what it is: a rule for writes without powers lets none through.
// Control: the API server takes each, in a dry run where it makes one. Twin: the
// near writes without a power pass.
func TestAttackKubernetesPowers(t *testing.T) {
	t.Parallel()
	s, direct, _ := kubernetes(t)
	alan, admin := token(t, s, demo.Alan), prepared.cluster.Admin
	direct.must(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"List","items":[
		{"apiVersion":"v1","kind":"Pod","metadata":{"name":"powers","namespace":"shop"},"spec":{"containers":[{"name":"c","image":"i"}]}},
		{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kept-here","namespace":"shop"}},
		{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"powers","namespace":"shop"}},
		{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{"name":"powers"},
			"spec":{"request":%q,"signerName":"kubernetes.io/kube-apiserver-client","usages":["client auth"]}}]}`, certificateRequest(t)), "apply", "-f", "-")
	const (
		shop, pod = "/api/v1/namespaces/shop", "/api/v1/namespaces/shop/pods/powers"
		rbac      = "/apis/rbac.authorization.k8s.io/v1"
		object    = "application/json"
		strategic = "application/strategic-merge-patch+json"
	)
	for name, c := range map[string]struct{ method, path, media, body string }{
		"an ephemeral container": {"PATCH", pod + "/ephemeralcontainers", strategic, `{"spec":{"ephemeralContainers":[{"name":"d","image":"i"}]}}`},
		"a binding":              {"POST", pod + "/binding", object, `{"metadata":{"name":"powers"},"target":{"kind":"Node","name":"n1"}}`},
		"an old binding":         {"POST", shop + "/bindings", object, `{"metadata":{"name":"powers"},"target":{"kind":"Node","name":"n1"}}`},
		"an eviction":            {"POST", pod + "/eviction", object, `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"powers","namespace":"shop"}}`},
		"a token":                {"POST", shop + "/serviceaccounts/powers/token", object, `{"spec":{}}`},
		"an approval": {"PATCH", "/apis/certificates.k8s.io/v1/certificatesigningrequests/powers/approval", "application/merge-patch+json",
			`{"status":{"conditions":[{"type":"Approved","status":"True","reason":"r"}]}}`},
		"a webhook": {"POST", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", object, `{"metadata":{"name":"powers"}}`},
		"an admission policy": {"POST", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings", object,
			`{"metadata":{"name":"powers"},"spec":{"policyName":"p","validationActions":["Deny"]}}`},
		"another API server": {"POST", "/apis/apiregistration.k8s.io/v1/apiservices", object, `{"metadata":{"name":"v1.powers.example.com"},
			"spec":{"group":"powers.example.com","version":"v1","groupPriorityMinimum":100,"versionPriority":100,"insecureSkipTLSVerify":true,"service":{"name":"x","namespace":"shop"}}}`},
		"a role":         {"POST", rbac + "/namespaces/shop/roles", object, `{"metadata":{"name":"powers"},"rules":[{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}]}`},
		"a cluster role": {"POST", rbac + "/clusterroles", object, `{"metadata":{"name":"powers"},"rules":[{"apiGroups":[""],"resources":["users"],"verbs":["impersonate"]}]}`},
		"a role binding": {"POST", rbac + "/namespaces/shop/rolebindings", object,
			`{"metadata":{"name":"powers"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"admin"},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"mallory"}]}`},
		"a raw URL": {"GET", "/debug/pprof/symbol", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := c.path
			if c.method != http.MethodGet {
				path += "?dryRun=All"
			}
			var headers []string
			if c.media != "" {
				headers = []string{"Content-Type", c.media}
			}
			if status, text := atCluster(t, c.method, path, admin, c.body, headers...); status >= 300 {
				t.Errorf("control: %d %s", status, text)
			}
			if status, text := atGateway(t, s, c.method, path, alan, c.body, headers...); status != http.StatusForbidden || !strings.Contains(text, "req_") || !strings.Contains(text, "e2e-cluster") && !strings.Contains(text, "no rule") {
				t.Errorf("%d %s", status, text)
			}
		})
	}
	for name, c := range map[string]struct{ method, path, media, body string }{
		"twin, a deletion":  {"DELETE", pod + "?dryRun=All", "", ""},
		"twin, a label":     {"PATCH", shop + "/configmaps/kept-here", strategic, `{"metadata":{"labels":{"a":"b"}}}`},
		"twin, an object":   {"POST", shop + "/configmaps", object, `{"metadata":{"name":"powers"}}`},
		"twin, a raw URL":   {"GET", "/version", "", ""},
		"twin, the account": {"PATCH", shop + "/serviceaccounts/powers", strategic, `{"metadata":{"labels":{"a":"b"}}}`},
	} {
		if status, text := atGateway(t, s, c.method, c.path, alan, c.body, "Content-Type", c.media); status >= 300 {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
}
