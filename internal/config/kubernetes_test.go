package config

import (
	"strings"
	"testing"
)

const cluster = `  - name: cluster
    kind: kubernetes
    address: https://k8s.internal:6443
    kubernetes: {credential: {token: {file: secret}}, impersonate: {groups: [shop-agents]}}
`

func withCluster() string {
	return strings.Replace(whole, "policies: ./policies", cluster+"policies: ./policies", 1)
}

func TestLoadKubernetes(t *testing.T) {
	t.Parallel()
	c, err := Load(folder(t, withCluster()))
	if err != nil {
		t.Fatal(err)
	}
	k := c.Resources[len(c.Resources)-1].Kubernetes
	if k.Credential.Token.Secret().Reveal() != "hunter2" || *k.Impersonate.Prefix != "chaperone:" {
		t.Errorf("%+v", k)
	}
	if _, err := Load(folder(t, strings.Replace(withCluster(), "{token: {file: secret}}", "{cert: {file: gw.crt}, key: {file: gw.key}}", 1))); err != nil {
		t.Errorf("a client certificate: %v", err)
	}
}

func TestLoadRefusesKubernetes(t *testing.T) {
	t.Setenv("CHAPERONE_TEST_BEARER", "Bearer hunter2")
	for name, c := range map[string]struct{ old, new, want string }{
		"no TLS":                   {"https://k8s", "http://127.0.0.1", "must be https"},
		"a path":                   {"k8s.internal:6443", "k8s.internal:6443/x", "must not have a path"},
		"no settings":              {"    kubernetes: {credential: {token: {file: secret}}, impersonate: {groups: [shop-agents]}}\n", "", "kubernetes: is needed"},
		"no credential":            {"credential: {token: {file: secret}}, ", "", "credential.token: is needed"},
		"two credentials":          {"{token: {file: secret}}", "{token: {file: secret}, cert: {file: gw.crt}, key: {file: gw.key}}", "exclude each other"},
		"half a certificate":       {"{token: {file: secret}}", "{cert: {file: gw.crt}}", "credential.key: is needed"},
		"no pair":                  {"{token: {file: secret}}", "{cert: {file: gw.crt}, key: {file: gw.crt}}", "do not make a pair"},
		"the word Bearer":          {"{token: {file: secret}}", "{token: {env: CHAPERONE_TEST_BEARER}}", "what no token has"},
		"the cluster's own groups": {"{groups: [shop-agents]}", "{prefix: '', groups: ['system:masters']}", "groups[0]"},
		"the cluster's own prefix": {"{groups: [shop-agents]}", "{prefix: 'system:'}", "must be printable, and not begin with system:"},
		"settings of HTTP":         {"    kubernetes: {", "    http: {}\n    kubernetes: {", "does not belong to a resource of kind kubernetes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(folder(t, strings.Replace(withCluster(), c.old, c.new, 1)))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
