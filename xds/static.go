package xds

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"chaperone.dev/chaperone/internal/access"
)

// Static returns the whole snapshot as one static configuration, for Envoy to
// validate before it is served. It holds no secret: the key and the credentials
// are stand-ins made for it. (Build has seen that the real certificate and key
// belong together.)
func (s *Snapshot) Static() ([]byte, error) {
	c := s.config
	var err error
	if c.Listen.Certificate, c.Listen.Key, err = standIn(); err != nil {
		return nil, fmt.Errorf("xds: static configuration: %w", err)
	}
	c.HTTP = slices.Clone(c.HTTP)
	for i, r := range c.HTTP {
		if r.Credential != nil {
			c.HTTP[i].Credential = &Credential{Header: r.Credential.Header, Value: access.NewSecret("stand-in")}
		}
		if r.Certificate != nil {
			c.HTTP[i].Certificate = &Certificate{Chain: c.Listen.Certificate, Key: c.Listen.Key}
		}
	}
	static := &bootstrapv3.Bootstrap_StaticResources{
		Listeners: listeners(c, source{static: true}),
		Clusters:  clusters(c, source{static: true}),
	}
	if c.Listen.HTTPS != "" {
		static.Secrets = secrets(c)
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(&bootstrapv3.Bootstrap{StaticResources: static})
	if err != nil {
		return nil, fmt.Errorf("xds: static configuration: %w", err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("xds: static configuration: %w", err)
	}
	return b.Bytes(), nil
}

// standIn is a certificate that vouches for nothing, with its key.
func standIn() ([]byte, access.Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, access.Secret{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<33, 0),
		DNSNames: []string{"stand-in.invalid"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, access.Secret{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, access.Secret{}, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		access.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), nil
}
