package config

import (
	"crypto/tls"
	"fmt"
	"strings"
)

// Kubernetes is how a Kubernetes API server is reached, and as whom.
type Kubernetes struct {
	CA          SecretRef            `yaml:"ca" doc:"certificates that the API server's TLS must lead to; default the system's"`
	Credential  KubernetesCredential `yaml:"credential" doc:"the gateway's own account: a token, or a client certificate"`
	Impersonate *Impersonate         `yaml:"impersonate" doc:"have the API server act as the caller; left out, it acts as the gateway's account"`
}

// KubernetesCredential is a bearer token or a client certificate.
type KubernetesCredential struct {
	Token SecretRef `yaml:"token" doc:"bearer token, without the word Bearer"`
	Cert  SecretRef `yaml:"cert" doc:"client certificate, PEM"`
	Key   SecretRef `yaml:"key" doc:"its private key, PEM"`
}

// Impersonate says what the API server calls the caller.
type Impersonate struct {
	Prefix *string  `yaml:"prefix" doc:"stands before users and groups, so that none is taken for one of the cluster's own; default chaperone:"`
	Groups []string `yaml:"groups" doc:"the caller's groups that are passed on; default none"`
}

func (v *validation) kubernetes(path string, r *Resource) {
	u := v.secureURL(path+".address", r.Address)
	switch {
	case u == nil:
	case u.Scheme != "https":
		v.fault(path+".address", "must be https: an API server takes no credential without TLS")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "":
		v.fault(path+".address", "must not have a path or a query")
	}
	if r.Kubernetes == nil {
		v.fault(path+".kubernetes", "is needed")
		return
	}
	k := r.Kubernetes
	path += ".kubernetes"
	v.certificates(path+".ca", &k.CA)
	cred := &k.Credential
	v.secret(path+".credential.token", &cred.Token, !cred.Cert.Set())
	v.secret(path+".credential.cert", &cred.Cert, cred.Key.Set())
	v.secret(path+".credential.key", &cred.Key, cred.Cert.Set())
	if cred.Token.Set() && cred.Cert.Set() {
		v.fault(path+".credential", "token and cert exclude each other")
	}
	if strings.ContainsFunc(cred.Token.Secret().Reveal(), func(r rune) bool { return r <= ' ' || r > '~' }) {
		v.fault(path+".credential.token", "holds what no token has: a space, a line break or the like")
	}
	if !cred.Cert.Secret().Empty() && !cred.Key.Secret().Empty() {
		if _, err := tls.X509KeyPair(cred.Cert.Bytes(), cred.Key.Bytes()); err != nil {
			v.fault(path+".credential", "certificate and key do not make a pair: %s", err)
		}
	}
	if k.Impersonate != nil {
		v.impersonate(path+".impersonate", k.Impersonate)
	}
}

func (v *validation) impersonate(path string, i *Impersonate) {
	if i.Prefix == nil {
		prefix := "chaperone:"
		i.Prefix = &prefix
	}
	if strings.HasPrefix(*i.Prefix, "system:") || strings.ContainsFunc(*i.Prefix, func(r rune) bool { return r <= ' ' || r > '~' }) {
		v.fault(path+".prefix", "must be printable, and not begin with system:")
	}
	for n, g := range i.Groups {
		if g == "" || *i.Prefix == "" && strings.HasPrefix(g, "system:") || strings.ContainsFunc(g, func(r rune) bool { return r < ' ' || r > '~' }) {
			v.fault(fmt.Sprintf("%s.groups[%d]", path, n), "must be printable ASCII, and without a prefix not begin with system:")
		}
	}
}
