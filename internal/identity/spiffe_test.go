package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
)

// An authority signs the certificates of a trust domain.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: noon.AddDate(-1, 0, 0), NotAfter: noon.AddDate(1, 0, 0)}
	a := authority{key: key}
	a.cert, a.pem = a.make(t, template, template, key)
	return a
}

func (a authority) make(t *testing.T, template, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// leaf is a certificate for an hour with these URI names.
func (a authority) leaf(t *testing.T, change func(*x509.Certificate), ids ...string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotBefore: noon, NotAfter: noon.Add(time.Hour)}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	if change != nil {
		change(template)
	}
	cert, _ := a.make(t, template, a.cert, key)
	return cert
}

func showing(chain ...*x509.Certificate) context.Context {
	return WithShown(context.Background(), ShownChain(chain))
}

const reporterID = "spiffe://prod.test/ns/nightly/sa/reporter"

func meshVerifier(t *testing.T, a authority, clock *clocktest.Clock, others ...TrustDomain) *Verifier {
	t.Helper()
	return newVerifier(t, Config{Clock: clock.Now, Domains: append([]TrustDomain{{Name: "mesh", Domain: "prod.test", Bundle: a.pem,
		Paths: []SPIFFEPath{{Path: "/ns/nightly/sa/auditor"}, {Path: "/ns/{workflow}/sa/{subagent}", Groups: []string{"b", "a", "a"}}}}}, others...)})
}

func TestCertificateIsAnIdentity(t *testing.T) {
	t.Parallel()
	a, clock := newAuthority(t), newFakeClock()
	v, leaf := meshVerifier(t, a, clock), a.leaf(t, nil, reporterID)
	for range 2 { // the second from memory
		p, err := v.Verify(showing(leaf), access.Secret{})
		if err != nil || p.Issuer != "mesh" || p.Subject != reporterID || p.Workflow != "nightly" || p.Subagent != "reporter" ||
			strings.Join(p.Groups, ",") != "a,b" || !p.Token.ExpiresAt.Equal(leaf.NotAfter) || p.Token.Bound != ShownChain([]*x509.Certificate{leaf}).Thumbprint() {
			t.Fatalf("%+v %v", p, err)
		}
	}
	if v.NameOf("spiffe://prod.test") != "mesh" || v.URLOf("mesh") != "spiffe://prod.test" {
		t.Error("the trust domain is not an issuer")
	}
	if p, err := v.Verify(showing(a.leaf(t, nil, "spiffe://prod.test/ns/nightly/sa/auditor")), access.Secret{}); err != nil || p.Subagent != "" {
		t.Errorf("the first path that matches: %+v %v", p, err)
	}
	clock.Advance(61 * time.Minute)
	if _, err := v.Verify(showing(leaf), access.Secret{}); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("after its end: %v", err)
	}
}

func TestBadCertificatesAreNobody(t *testing.T) {
	t.Parallel()
	a, other, clock := newAuthority(t), newAuthority(t), newFakeClock()
	// The other authority is believed, too, but for its own domain only.
	v := meshVerifier(t, a, clock, TrustDomain{Name: "lab", Domain: "lab.test", Bundle: other.pem, Paths: []SPIFFEPath{{Path: "/{subagent}"}}})
	if _, err := v.Verify(showing(other.leaf(t, nil, "spiffe://lab.test/x")), access.Secret{}); err != nil {
		t.Errorf("the twin: %v", err)
	}
	for name, leaf := range map[string]*x509.Certificate{
		"another domain's authority": other.leaf(t, nil, reporterID),
		"an unknown domain":          a.leaf(t, nil, "spiffe://evil.test/ns/nightly/sa/reporter"),
		"no path":                    a.leaf(t, nil, "spiffe://prod.test"),
		"an unmapped path":           a.leaf(t, nil, "spiffe://prod.test/ns/nightly/sa/reporter/extra"),
		"two ids":                    a.leaf(t, nil, reporterID, "spiffe://prod.test/ns/nightly/sa/auditor"),
		"no id":                      a.leaf(t, nil),
		"a user in it":               a.leaf(t, nil, "spiffe://x@prod.test/ns/nightly/sa/reporter"),
		"a port":                     a.leaf(t, nil, "spiffe://prod.test:1/ns/nightly/sa/reporter"),
		"an encoded letter":          a.leaf(t, nil, "spiffe://prod.test/ns/nightly/sa/%72eporter"),
		"dots":                       a.leaf(t, nil, "spiffe://prod.test/ns/../sa/reporter"),
		"an empty segment":           a.leaf(t, nil, "spiffe://prod.test/ns//sa/reporter"),
		"a query":                    a.leaf(t, nil, reporterID+"?x"),
		"another scheme":             a.leaf(t, nil, "https://prod.test/ns/nightly/sa/reporter"),
		"an authority's own":         a.leaf(t, func(c *x509.Certificate) { c.IsCA = true }, reporterID),
		"no key usage":               a.leaf(t, func(c *x509.Certificate) { c.KeyUsage = 0 }, reporterID),
		"a server's":                 a.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, reporterID),
		"a long life":                a.leaf(t, func(c *x509.Certificate) { c.NotAfter = noon.Add(48 * time.Hour) }, reporterID),
		"not yet":                    a.leaf(t, func(c *x509.Certificate) { c.NotBefore = noon.Add(time.Minute) }, reporterID),
		"no more":                    a.leaf(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = noon.Add(-time.Hour), noon.Add(-time.Second) }, reporterID),
	} {
		if p, err := v.Verify(showing(leaf), access.Secret{}); !errors.Is(err, ErrTokenRejected) {
			t.Errorf("%s: %+v %v", name, p, err)
		}
	}
	if _, err := v.Verify(t.Context(), access.Secret{}); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("none: %v", err)
	}
}

// TestIntermediates: the life of an authority in between bounds the leaf's.
func TestIntermediates(t *testing.T) {
	t.Parallel()
	root, clock := newAuthority(t), newFakeClock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	between := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "between"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(10 * time.Minute)}
	cert, _ := root.make(t, between, root.cert, key)
	leaf := authority{cert: cert, key: key}.leaf(t, nil, reporterID)
	v := meshVerifier(t, root, clock)
	if _, err := v.Verify(showing(leaf), access.Secret{}); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("without the one in between: %v", err)
	}
	if p, err := v.Verify(showing(leaf, cert), access.Secret{}); err != nil || !p.Token.ExpiresAt.Equal(cert.NotAfter) {
		t.Errorf("%+v %v", p, err)
	}
}

// TestBoundTokens: a token with cnf is good beside its certificate only.
func TestBoundTokens(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	mine, theirs := a.leaf(t, nil, reporterID), a.leaf(t, nil, reporterID)
	thumbprint := ShownChain([]*x509.Certificate{mine}).Thumbprint()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	token := func(cnf any) access.Secret { return key.token(p.claims(map[string]any{"cnf": cnf})) }
	good := token(map[string]any{"x5t#S256": thumbprint})
	for range 2 { // the second from memory
		if who, err := v.Verify(showing(mine), good); err != nil || who.Token.Bound != thumbprint {
			t.Fatalf("%+v %v", who, err)
		}
		for name, ctx := range map[string]context.Context{"no certificate": t.Context(), "another": showing(theirs)} {
			if _, err := v.Verify(ctx, good); !errors.Is(err, ErrTokenRejected) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if who, err := v.Examine(t.Context(), good); err != nil || who.Token.Bound != thumbprint {
			t.Errorf("asked about: %v", err)
		}
	}
	for name, cnf := range map[string]any{
		"a DPoP key": map[string]any{"jkt": "x"}, "two kinds": map[string]any{"x5t#S256": thumbprint, "jkt": "x"}, "text": thumbprint,
		"another case": map[string]any{"X5T#S256": thumbprint}, "not a digest": map[string]any{"x5t#S256": "AAAA"}, "empty": map[string]any{}, "a number": 1,
	} {
		if _, err := v.Verify(showing(mine), token(cnf)); !errors.Is(err, ErrTokenRejected) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestForwardedReadsOneChain as Envoy writes it, and nothing else.
func TestForwardedReadsOneChain(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	leaf := a.leaf(t, nil, reporterID)
	encode := func(c *x509.Certificate) string {
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		return strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D").Replace(text)
	}
	good := fmt.Sprintf(`Hash=00;Chain="%s%s"`, encode(leaf), encode(a.cert))
	s, err := Forwarded([]string{good})
	if err != nil || len(s.chain) != 2 || s.Thumbprint() != ShownChain([]*x509.Certificate{leaf}).Thumbprint() {
		t.Fatalf("%+v %v", s, err)
	}
	if s, err := Forwarded(nil); err != nil || !s.Empty() || s.Thumbprint() != "" {
		t.Errorf("none: %+v %v", s, err)
	}
	for name, values := range map[string][]string{
		"two headers": {good, good}, "two elements": {good + "," + good}, "no chain": {"Hash=00"}, "not closed": {good[:len(good)-1]},
		"not encoded": {`Chain="%zz"`}, "not PEM": {`Chain="x"`}, "too long": {strings.Repeat("x", 3*maxChainBytes)}, "empty": {""},
	} {
		if s, err := Forwarded(values); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestTrustDomainsAreChecked(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	good := TrustDomain{Name: "mesh", Domain: "prod.test", Bundle: a.pem, Paths: []SPIFFEPath{{Path: "/{subagent}"}}}
	if _, err := New(Config{Domains: []TrustDomain{good}}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*TrustDomain){
		"name": func(d *TrustDomain) { d.Name = "A" }, "domain": func(d *TrustDomain) { d.Domain = "Prod" }, "bundle": func(d *TrustDomain) { d.Bundle = nil },
		"life": func(d *TrustDomain) { d.MaxLife = 8 * 24 * time.Hour }, "skew": func(d *TrustDomain) { d.Skew = time.Hour }, "no paths": func(d *TrustDomain) { d.Paths = nil },
		"path": func(d *TrustDomain) { d.Paths = []SPIFFEPath{{Path: "/{group}"}} }, "twice": func(d *TrustDomain) { d.Paths = []SPIFFEPath{{Path: "/{job}/{job}"}} },
		"relative": func(d *TrustDomain) { d.Paths = []SPIFFEPath{{Path: "x"}} },
	} {
		bad := good
		change(&bad)
		if _, err := New(Config{Domains: []TrustDomain{bad}}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := New(Config{Domains: []TrustDomain{good, good}}); err == nil {
		t.Error("twice: taken")
	}
}
