package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"

	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/mask"
	streams "chaperone.dev/chaperone/internal/session/kube"
)

// streamTarget is how the session service reaches an API server. Envoy reaches
// it for everything else, with the same credential.
func streamTarget(res config.Resource, hidden *mask.Literals) (streams.Resource, error) {
	k := res.Kubernetes
	u, err := url.Parse(res.Address)
	if err != nil {
		return streams.Resource{}, err
	}
	out := streams.Resource{Address: u.Host, Host: u.Host, Token: k.Credential.Token.Secret(), Literals: hidden,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}}
	if u.Port() == "" {
		out.Address = net.JoinHostPort(u.Hostname(), "443")
	}
	if ca := k.CA.Bytes(); ca != nil {
		out.TLS.RootCAs = x509.NewCertPool()
		out.TLS.RootCAs.AppendCertsFromPEM(ca) // validated
	}
	if out.Token.Empty() {
		pair, err := tls.X509KeyPair(k.Credential.Cert.Bytes(), k.Credential.Key.Bytes())
		if err != nil {
			return streams.Resource{}, err
		}
		out.TLS.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// streamResource finds an API server of the current revision.
func (c *current) streamResource(name string) (streams.Resource, bool) {
	r, ok := c.revision.Load().kubernetes[name]
	return r, ok
}

// streams makes the session service of Kubernetes.
func (s *server) streams() (*streams.Service, error) {
	return streams.New(streams.Config{}, streams.Deps{Recorder: s.recorder, Resource: s.current.streamResource, Watch: s.calls.Watch,
		Usage: s.usage, Log: s.log, Metric: s.metrics})
}
