package identity

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds on how long a client certificate may be good for, from its first to
// its last moment. One that lives long is a stored key.
const (
	DefaultCertificateLife = 24 * time.Hour
	MaxCertificateLife     = 7 * 24 * time.Hour
)

// A TrustDomain is an issuer of X.509 SPIFFE identities (X509-SVID), with which
// callers prove themselves by mutual TLS.
type TrustDomain struct {
	Name    string        // what principals are told apart by, as an Issuer's
	Domain  string        // as in spiffe://DOMAIN/path
	Bundle  []byte        // PEM; what chains must lead to
	MaxLife time.Duration // of a certificate; 0 is DefaultCertificateLife
	Skew    time.Duration // at most MaxSkew
	// Paths say what the path of a SPIFFE id means. The first that matches
	// does; one that none matches is refused.
	Paths []SPIFFEPath
}

// A SPIFFEPath is a path whose segments are themselves or, in braces, members
// of a principal: /ns/{workflow}/sa/{subagent}.
type SPIFFEPath struct {
	Path   string
	Groups []string
}

// spiffeMembers are what a segment may stand for.
var spiffeMembers = map[string]func(*access.Principal) *string{
	"{user}":     func(p *access.Principal) *string { return &p.User },
	"{subagent}": func(p *access.Principal) *string { return &p.Subagent },
	"{instance}": func(p *access.Principal) *string { return &p.Instance },
	"{workflow}": func(p *access.Principal) *string { return &p.Workflow },
	"{job}":      func(p *access.Principal) *string { return &p.Job },
}

// A trustDomain is a TrustDomain at work. Of its issuer only the name, the URL
// and what concerns times are set: it has no keys to fetch.
type trustDomain struct {
	*issuer
	roots *x509.CertPool
	paths []SPIFFEPath
}

var (
	trustDomainName = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
	spiffeSegment   = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	spiffeURI       = regexp.MustCompile(`^spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)+)$`)
)

// maxSPIFFEID is the specification's bound (SPIFFE-ID, section 2.3).
const maxSPIFFEID = 2048

func newTrustDomain(c TrustDomain) (*trustDomain, error) {
	var faults []error
	if !issuerName.MatchString(c.Name) {
		faults = append(faults, fmt.Errorf("the name must match %s", issuerName))
	}
	if !trustDomainName.MatchString(c.Domain) {
		faults = append(faults, fmt.Errorf("the trust domain must match %s", trustDomainName))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.Bundle) {
		faults = append(faults, errors.New("bundle: holds no certificate in PEM"))
	}
	c.MaxLife = cmp.Or(c.MaxLife, DefaultCertificateLife)
	if c.MaxLife < time.Minute || c.MaxLife > MaxCertificateLife {
		faults = append(faults, fmt.Errorf("max life: must be from 1m to %s", MaxCertificateLife))
	}
	if c.Skew < 0 || c.Skew > MaxSkew {
		faults = append(faults, fmt.Errorf("skew: must be between 0 and %s", MaxSkew))
	}
	if len(c.Paths) == 0 {
		faults = append(faults, errors.New("paths: name at least one"))
	}
	for _, p := range c.Paths {
		if err := CheckSPIFFEPath(p.Path); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return &trustDomain{issuer: &issuer{name: c.Name, url: "spiffe://" + c.Domain, skew: c.Skew, maxLife: c.MaxLife},
		roots: roots, paths: slices.Clone(c.Paths)}, nil
}

// CheckSPIFFEPath says what is wrong with the pattern of a path.
func CheckSPIFFEPath(path string) error {
	segments := strings.Split(path, "/")
	if segments[0] != "" || len(segments) < 2 {
		return fmt.Errorf("path %q: must begin with a slash", path)
	}
	seen := map[string]bool{}
	for _, s := range segments[1:] {
		_, member := spiffeMembers[s]
		if !member && !spiffeSegment.MatchString(s) || seen[s] && member {
			return fmt.Errorf("path %q: %q is neither a segment of a SPIFFE id nor {user}, {subagent}, {instance}, {workflow} or {job}, each once", path, s)
		}
		seen[s] = true
	}
	return nil
}

// spiffeID takes the one URI of a leaf apart (X509-SVID, section 2).
func spiffeID(leaf *x509.Certificate) (domain, path string, err error) {
	if len(leaf.URIs) != 1 {
		return "", "", rejected("the client certificate does not have exactly one URI name")
	}
	id := leaf.URIs[0].String()
	parts := spiffeURI.FindStringSubmatch(id)
	if len(id) > maxSPIFFEID || parts == nil || slices.ContainsFunc(strings.Split(parts[2], "/"), func(s string) bool { return s == "." || s == ".." }) {
		return "", "", rejected("the URI name of the client certificate is not a SPIFFE id")
	}
	return parts[1], parts[2], nil
}

// read verifies a chain against the bundle and maps the path of its SPIFFE id.
// The times are for current.
func (d *trustDomain) read(chain []*x509.Certificate, path string, now reading) (*verified, error) {
	leaf := chain[0]
	switch {
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return nil, rejected("the client certificate is not one for signatures only (X509-SVID, section 4)")
	case leaf.NotAfter.Sub(leaf.NotBefore) > d.maxLife:
		return nil, rejected("the client certificate lives longer than is configured")
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	// The leaf's own times are judged with each use, in doubt of the clock.
	at := now.late
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	paths, err := leaf.Verify(x509.VerifyOptions{Roots: d.roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil, rejected("the client certificate does not lead to the bundle of its trust domain")
	}
	when := times{expires: leaf.NotAfter.Unix(), notBefore: leaf.NotBefore.Unix(), issued: leaf.NotBefore.Unix(), hasIssued: true}
	for _, c := range paths[0] {
		when.expires = min(when.expires, c.NotAfter.Unix())
	}
	p := access.Principal{Issuer: d.name, Subject: leaf.URIs[0].String()}
	if !d.fill(&p, path) {
		return nil, rejected("no configured path is like that of the client certificate's SPIFFE id")
	}
	p.Token = access.TokenRef{ID: certificateID(leaf.Raw), IssuedAt: leaf.NotBefore.UTC(), ExpiresAt: time.Unix(when.expires, 0).UTC()}
	return &verified{issuer: d.issuer, times: when, who: p}, nil
}

// fill maps path by the first pattern that is like it.
func (d *trustDomain) fill(p *access.Principal, path string) bool {
	segments := strings.Split(path, "/")
	for _, pattern := range d.paths {
		want := strings.Split(pattern.Path, "/")
		like := len(want) == len(segments)
		for i := 0; like && i < len(want); i++ {
			like = spiffeMembers[want[i]] != nil || want[i] == segments[i]
		}
		if !like {
			continue
		}
		for i, name := range want {
			if member := spiffeMembers[name]; member != nil {
				*member(p) = segments[i]
			}
		}
		p.Groups = slices.Compact(slices.Sorted(slices.Values(pattern.Groups)))
		return true
	}
	return false
}
