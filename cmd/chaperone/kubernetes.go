package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/cluster"
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

// previews asks API servers what held requests would do.
type previews struct {
	current *current
	masks   func(access.Resource) []access.Mask
}

// Preview asks the API server of the request. What any rule masks there is
// masked, for those who review and those who read recordings.
func (p previews) Preview(ctx context.Context, req access.Request, body []byte, as http.Header) *access.Preview {
	if req.Action.K8s == nil {
		return nil
	}
	target, ok := p.current.streamResource(req.Resource.Name)
	if !ok {
		return nil
	}
	return target.Preview(ctx, cluster.Question{Call: req.Action.K8s, Body: body, As: as, Masks: p.masks(req.Resource)}, time.Now())
}
