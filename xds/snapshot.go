package xds

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// served are the types that a Snapshot has, in the order in which Envoy must
// learn of them.
var served = []resourcev3.Type{resourcev3.ClusterType, resourcev3.ListenerType, resourcev3.RouteType, resourcev3.SecretType}

// A Snapshot is one whole, consistent set of resources. It is immutable.
type Snapshot struct {
	config    Config
	resources map[resourcev3.Type][]types.Resource
	versions  map[resourcev3.Type]string
	cache     *cachev3.Snapshot
}

// Build translates c. The error lists every fault of c; none of its texts
// holds a secret.
func Build(c Config) (*Snapshot, error) {
	c.HTTP = slices.Clone(c.HTTP)
	slices.SortFunc(c.HTTP, func(a, b HTTPResource) int { return strings.Compare(a.Name, b.Name) })
	for i, r := range c.HTTP {
		if r.Credential != nil {
			lower := *r.Credential
			lower.Header = strings.ToLower(lower.Header)
			c.HTTP[i].Credential = &lower
		}
	}
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	s := &Snapshot{
		config:    c,
		resources: map[resourcev3.Type][]types.Resource{},
		versions:  map[resourcev3.Type]string{},
		cache:     &cachev3.Snapshot{},
	}
	s.resources[resourcev3.ClusterType] = list(clusters(c, source{}))
	s.resources[resourcev3.ListenerType] = list(listeners(c, source{}))
	if c.Listen.HTTPS != "" {
		s.resources[resourcev3.RouteType] = []types.Resource{routes(c)}
		s.resources[resourcev3.SecretType] = list(secrets(c))
	}
	for _, t := range served {
		s.versions[t] = version(s.resources[t])
		s.cache.Resources[cachev3.GetResponseType(t)] = cachev3.NewResources(s.versions[t], s.resources[t])
	}
	if err := s.cache.Consistent(); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	// Made now: the cache would make it later without a lock.
	if err := s.cache.ConstructVersionMap(); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	return s, nil
}

// Revision is the name that the Config had.
func (s *Snapshot) Revision() string { return s.config.Revision }

func secrets(c Config) []*tlsv3.Secret {
	out := []*tlsv3.Secret{{Name: tlsSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(c.Listen.Certificate), PrivateKey: inline([]byte(c.Listen.Key.Reveal()))}}}}
	if c.Listen.ClientCAs != nil {
		out = append(out, &tlsv3.Secret{Name: clientsSecret, Type: &tlsv3.Secret_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(c.Listen.ClientCAs)}}})
	}
	for _, r := range c.HTTP {
		if r.Credential != nil {
			out = append(out, &tlsv3.Secret{Name: credentialSecret(r.Name), Type: &tlsv3.Secret_GenericSecret{
				GenericSecret: &tlsv3.GenericSecret{Secret: inline([]byte(r.Credential.Value.Reveal()))}}})
		}
		if own := r.Certificate; own != nil {
			out = append(out, &tlsv3.Secret{Name: certificateSecret(r.Name), Type: &tlsv3.Secret_TlsCertificate{
				TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(own.Chain), PrivateKey: inline([]byte(own.Key.Reveal()))}}})
		}
	}
	return out
}

func list[M types.Resource](in []M) []types.Resource {
	out := make([]types.Resource, len(in))
	for i, m := range in {
		out[i] = m
	}
	return out
}

// version is a digest of the resources of one type, so that what did not change
// keeps its version from one revision to the next.
func version(resources []types.Resource) string {
	h := sha256.New()
	for _, r := range resources {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		if err != nil {
			panic("xds: marshal: " + err.Error()) // see pack
		}
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// JSON prints every resource by type, with "[redacted]" for secrets, for people
// and golden files.
func (s *Snapshot) JSON() ([]byte, error) {
	out := make(map[string][]json.RawMessage, len(served))
	for _, t := range served {
		for _, r := range s.resources[t] {
			m := proto.Message(r)
			if secret, ok := r.(*tlsv3.Secret); ok {
				m = redact(secret)
			}
			raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				return nil, fmt.Errorf("xds: %w", err)
			}
			short := t[strings.LastIndexByte(t, '.')+1:]
			out[short] = append(out[short], raw)
		}
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func redact(s *tlsv3.Secret) *tlsv3.Secret {
	hidden := &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "[redacted]"}}
	out := &tlsv3.Secret{Name: s.GetName()}
	if cert := s.GetTlsCertificate(); cert != nil {
		out.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: cert.GetCertificateChain(), PrivateKey: hidden}}
		return out
	}
	if s.GetValidationContext() != nil { // certificates, and no key
		return s
	}
	out.Type = &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{Secret: hidden}}
	return out
}
