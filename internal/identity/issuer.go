package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
)

// MaxSkew bounds how far an issuer's clock may be from ours.
const MaxSkew = time.Minute

// DefaultKeyAge is how long known keys serve while their issuer is down.
const DefaultKeyAge = time.Hour

const maxKeyAge = 24 * time.Hour

// An Issuer is a provider whose tokens are believed.
type Issuer struct {
	Name string // what principals are told apart by: a-z, 0-9, - _ .
	URL  string // the exact iss; https, or http on the loopback
	// JWKSURL is where the keys are. When empty it comes from the issuer's
	// discovery document, and must then be of the same origin.
	JWKSURL    string
	Audiences  []string      // a token must be for one of these
	Algorithms []string      // RS*, PS*, ES* or EdDSA; nothing is assumed
	Skew       time.Duration // at most MaxSkew; 0 is none
	// Types are the allowed typ headers, "" for an absent one; nil is JWT,
	// at+jwt and absent.
	Types []string
	// KeyAge is how long known keys serve while the issuer cannot be reached;
	// 0 is DefaultKeyAge.
	KeyAge time.Duration
	// MaxLife bounds exp minus iat, when set; then iat is required.
	MaxLife time.Duration
	Claims  Claims
	// LookUp, when set, says which groups somebody is in, in place of what the
	// token says; LookUpBy is the claim that names them.
	LookUp   Directory
	LookUpBy string
	// CA, in PEM, replaces the system's roots for this issuer.
	CA []byte
	// Own marks the gateway's own token service, and gives its key set (RFC
	// 7517), which is then never fetched. Only its tokens say whose principal
	// they carry and what each hop gave up; Types and Claims are its own.
	Own func() ([]byte, error)
}

// A Directory knows the groups of a provider's users. An error of Groups that is
// not ErrTokenRejected means that they are not known now. The Verifier closes it.
type Directory interface {
	Groups(ctx context.Context, who string) ([]string, error)
	Close()
}

// ownClaims are those of the gateway's own tokens.
var ownClaims = Claims{User: "user", Subagent: "subagent", Instance: "instance", Workflow: "workflow", Job: "job", Groups: "groups"}

// Claims names the claim that each member of a principal comes from. A name
// that begins with "/" is a JSON pointer (RFC 6901) into nested claims. An
// empty name leaves the member empty, and so does a claim that is absent.
type Claims struct {
	User, Subagent, Instance, Workflow, Job, Groups string
}

// An issuer is an Issuer at work.
type issuer struct {
	name       string
	url        string
	audiences  []string
	algorithms []jwa.SignatureAlgorithm
	types      []string
	skew       time.Duration
	maxLife    time.Duration
	claims     mapping
	keys       *keyring
	own        bool
	lookUp     Directory
	lookUpBy   claim
	// newest is the latest iat accepted, in Unix seconds: the issuer's own word
	// that at least this much time has passed.
	newest atomic.Int64
}

var issuerName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// asymmetric are the algorithms that can be configured: with any other one,
// whoever can verify a token could also make it.
var asymmetric = []jwa.SignatureAlgorithm{
	jwa.RS256, jwa.RS384, jwa.RS512, jwa.PS256, jwa.PS384, jwa.PS512,
	jwa.ES256, jwa.ES384, jwa.ES512, jwa.EdDSA,
}

func newIssuer(c Issuer, clk *clock, log *slog.Logger, m *metrics) (*issuer, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !issuerName.MatchString(c.Name) {
		fault("the name must match %s", issuerName)
	}
	if _, err := fetchable(c.URL); err != nil {
		fault("url: %w", err)
	} else if strings.Contains(c.URL, "?") {
		fault("url: has a query")
	}
	if c.JWKSURL != "" {
		if _, err := fetchable(c.JWKSURL); err != nil {
			fault("jwks_url: %w", err)
		}
	}
	if len(c.Audiences) == 0 || slices.Contains(c.Audiences, "") {
		fault("audiences: name at least one, none empty")
	}
	algorithms, err := signatureAlgorithms(c.Algorithms)
	if err != nil {
		fault("%w", err)
	}
	if c.Skew < 0 || c.Skew > MaxSkew {
		fault("skew: must be between 0 and %s", MaxSkew)
	}
	if c.KeyAge == 0 {
		c.KeyAge = DefaultKeyAge
	}
	if c.KeyAge < fetchInterval || c.KeyAge > maxKeyAge {
		fault("key age: must be between %s and %s", fetchInterval, maxKeyAge)
	}
	if c.MaxLife < 0 {
		fault("max life: is negative")
	}
	if c.Own != nil {
		c.Claims, c.Types = ownClaims, []string{"at+jwt"}
	}
	claims, err := newMapping(c.Claims)
	if err != nil {
		fault("%w", err)
	}
	by, err := claimPath(c.LookUpBy)
	if err != nil || c.LookUp != nil && by == nil {
		fault("look up by: not the name of a claim")
	}
	roots, err := rootsOf(c.CA)
	if err != nil {
		fault("%w", err)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if c.Types == nil {
		c.Types = []string{"JWT", "at+jwt", ""}
	}
	is := &issuer{
		name: c.Name, url: c.URL, audiences: slices.Clone(c.Audiences), algorithms: algorithms,
		skew: c.Skew, maxLife: c.MaxLife, claims: claims, own: c.Own != nil,
		lookUp: c.LookUp, lookUpBy: claim{name: c.LookUpBy, path: by},
		keys: &keyring{
			issuer: c.Name, source: newSource(c.URL, c.JWKSURL, roots), clock: clk,
			age: c.KeyAge, log: log, metrics: m,
		},
	}
	is.keys.source.own = c.Own
	if c.LookUp != nil {
		is.claims.groups = claim{} // what the token says of them, or leaves out, is not asked
	}
	for _, t := range c.Types {
		is.types = append(is.types, mediaType(t))
	}
	return is, nil
}

func signatureAlgorithms(names []string) ([]jwa.SignatureAlgorithm, error) {
	if len(names) == 0 {
		return nil, errors.New("algorithms: name at least one")
	}
	var out []jwa.SignatureAlgorithm
	for _, name := range names {
		alg := jwa.SignatureAlgorithm(name)
		if !slices.Contains(asymmetric, alg) {
			return nil, fmt.Errorf("algorithms: %q is not one of %v", name, asymmetric)
		}
		out = append(out, alg)
	}
	return out, nil
}

func rootsOf(pem []byte) (*x509.CertPool, error) {
	if len(pem) == 0 {
		return nil, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("ca: holds no certificate in PEM")
	}
	return roots, nil
}

// fetchable parses an address that keys may be fetched from: https, or http on
// the loopback, where nobody sits in between.
func fetchable(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("is not a URL")
	}
	switch {
	case u.Host == "" || u.Opaque != "":
		return nil, errors.New("is not an absolute URL")
	case u.User != nil:
		return nil, errors.New("holds a user name")
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return nil, errors.New("has a fragment")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, errors.New("must be https (http is for the loopback only)")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("must be https")
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// accepts checks the header against what the issuer is configured to use.
func (is *issuer) accepts(t *token) error {
	if !slices.Contains(is.algorithms, t.alg) {
		return rejected("its signature algorithm is not accepted of this issuer")
	}
	if !slices.Contains(is.types, t.typ) {
		return rejected("its typ header is not accepted of this issuer")
	}
	return nil
}

// publishes reports whether a key that signed before is still the issuer's.
func (is *issuer) publishes(ctx context.Context, key keyID) (bool, error) {
	keys, err := is.keys.current(ctx)
	return err == nil && keys.has(key), err
}

// verifySignature returns the key that signed t, which is a key that the issuer
// publishes. An unknown key, or a signature that does not verify, is reason to
// look for newer keys once, as often as the keyring allows.
func (is *issuer) verifySignature(ctx context.Context, t *token) (keyID, error) {
	keys, err := is.keys.current(ctx)
	if err != nil {
		return keyID{}, err
	}
	id, fault := keys.verify(t)
	if fault == nil {
		return id, nil
	}
	newer, err := is.keys.newer(ctx, keys)
	if err != nil {
		return keyID{}, err
	}
	if newer != keys {
		id, fault = newer.verify(t)
	}
	if errors.Is(fault, errUnknownKey) {
		if err := is.keys.failure(); err != nil {
			return keyID{}, fmt.Errorf("no verdict on a token with an unknown key: %w", err)
		}
	}
	return id, fault
}
