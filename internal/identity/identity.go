// Package identity turns a bearer token into an access.Principal, on every
// request. It owns which issuers are believed, their signing keys, the strict
// reading of a token, its times and the mapping of its claims. It refuses
// everything that it does not know to be right, and it never lets a token say
// where its own keys are: only addresses from the configuration are fetched.
//
// The path of one token:
//
//	Verify ─ known token? ──────────────┐ (bounded, by digest of the whole token)
//	   │ no                             │
//	parse      strict compact JWS, one configured issuer, its algorithms
//	   │                                │
//	keyring    that issuer's keys only  │
//	   │                                │
//	claims     audience, Principal      │
//	   │                                │
//	times ◄─────────────────────────────┘ every time, with the clock's doubts
//	revocation                            every time
//	binding                               every time: the certificate that was shown
//
// Without a token, the certificate is the identity, if it is a SPIFFE one of a
// configured trust domain.
package identity

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
)

// ErrTokenRejected wraps every fault of the token itself. Any other error means
// that no verdict was reached (for example, no signing keys). The texts of both
// are for operators and hold nothing of the token.
var ErrTokenRejected = errors.New("token rejected")

// MaxTokenBytes bounds a token.
const MaxTokenBytes = 16 << 10

// DefaultCacheSize is how many verified tokens are remembered when Config says
// nothing. An entry holds at most what fits into a token.
const DefaultCacheSize = 4096

// Revocations says whether a verified token's principal has been revoked. It is
// asked on every Verify. An error means no verdict.
type Revocations interface {
	Revoked(ctx context.Context, p access.Principal) (bool, error)
}

// Config is what a Verifier is made of.
type Config struct {
	Issuers []Issuer
	Domains []TrustDomain
	SAML    []SAMLProvider
	// CacheSize bounds the verified tokens that are remembered; 0 is
	// DefaultCacheSize.
	CacheSize int
	// Clock gives the time; nil is time.Now.
	Clock func() time.Time
	// Log hears about signing keys that cannot be fetched; nil is silence.
	Log *slog.Logger
	// Registerer gets the metrics; nil is none.
	Registerer prometheus.Registerer
	// Revocations may be nil: then nothing is revoked.
	Revocations Revocations
}

// A Verifier verifies tokens. It is safe for concurrent use. Close it.
type Verifier struct {
	issuers map[string]*issuer      // by the exact iss
	domains map[string]*trustDomain // by the trust domain
	// providers are those of SAML, by entity id.
	providers map[string]*samlProvider

	clock *clock
	cache *tokenCache
	// certificates are the chains that were verified, by digest.
	certificates *tokenCache
	revoked      Revocations
	metrics      *metrics
}

// New returns a Verifier for the issuers of c, or every fault of the
// configuration. It fetches nothing: keys come with the first token or with Run.
func New(c Config) (*Verifier, error) {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.CacheSize == 0 {
		c.CacheSize = DefaultCacheSize
	}
	if c.CacheSize < 0 {
		return nil, errors.New("cache size is negative")
	}
	if len(c.Issuers)+len(c.Domains)+len(c.SAML) == 0 {
		return nil, errors.New("no issuer is configured")
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	v := &Verifier{
		issuers:   make(map[string]*issuer, len(c.Issuers)),
		domains:   make(map[string]*trustDomain, len(c.Domains)),
		providers: make(map[string]*samlProvider, len(c.SAML)),
		clock:     newClock(c.Clock),
		cache:     newTokenCache(c.CacheSize),
		revoked:   c.Revocations,
		metrics:   m,

		certificates: newTokenCache(c.CacheSize),
	}
	if faults := v.configure(c); len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return v, nil
}

// configure takes every issuer of c in, whatever its kind, or says every fault.
func (v *Verifier) configure(c Config) (faults []error) {
	taken := map[string]bool{}
	take := func(kind, name string, err error, known bool) {
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("%s %s: %w", kind, name, err))
		case taken[name]:
			faults = append(faults, fmt.Errorf("%s %s: the name is taken", kind, name))
		case known:
			faults = append(faults, fmt.Errorf("%s %s: the provider is that of another issuer", kind, name))
		}
		taken[name] = true
	}
	for _, config := range c.Issuers {
		is, err := newIssuer(config, v.clock, c.Log, v.metrics)
		take("issuer", config.Name, err, v.issuers[config.URL] != nil)
		v.issuers[config.URL] = is
	}
	for _, config := range c.Domains {
		d, err := newTrustDomain(config)
		take("trust domain", config.Name, err, v.domains[config.Domain] != nil)
		v.domains[config.Domain] = d
	}
	for _, config := range c.SAML {
		p, err := newSAMLProvider(config, v.clock, c.Log, v.metrics)
		take("SAML provider", config.Name, err, v.providers[config.EntityID] != nil)
		v.providers[config.EntityID] = p
	}
	return faults
}

// keyrings are those of every issuer that has keys to fetch.
func (v *Verifier) keyrings() (all []*keyring) {
	for _, is := range v.issuers {
		all = append(all, is.keys)
	}
	for _, p := range v.providers {
		all = append(all, p.keys)
	}
	return all
}

// Run fetches the keys of every issuer and keeps them fresh until ctx ends,
// whether tokens arrive or not. Without it keys are fetched as tokens arrive,
// and a provider that goes down in a quiet hour is noticed too late.
func (v *Verifier) Run(ctx context.Context) error {
	tick := time.NewTicker(fetchInterval)
	defer tick.Stop()
	for {
		for _, k := range v.keyrings() {
			k.refresh()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Close ends fetches under way and waits for them. Known keys still serve until
// their age; no new ones come.
func (v *Verifier) Close() {
	for _, k := range v.keyrings() {
		k.close()
	}
	for is := range v.all() {
		if is.lookUp != nil {
			is.lookUp.Close()
		}
	}
}

// Invalidate forgets the verified tokens with that TokenRef.ID: the next Verify
// starts from nothing. It does not by itself refuse them (see Revocations).
func (v *Verifier) Invalidate(tokenID string) {
	v.cache.invalidate(tokenID)
	v.certificates.invalidate(tokenID)
}

// TokenID is the id under which a token appears in records: "tok_" and 32 hex
// digits of the SHA-256 of what the issuer signed. The signature is left out:
// with ECDSA a holder can make a second valid one, and must not get a second
// id, which nobody has revoked.
func TokenID(token access.Secret) string { return tokenID(signedPart(token.Reveal())) }

// Verify returns the principal that the token names, when it is right in every
// respect at this moment. A token that is bound to a client certificate is right
// only beside that one (WithShown); without any token, a certificate of a
// configured trust domain is the identity. It may wait a few seconds for an
// issuer's keys. The result is the caller's.
func (v *Verifier) Verify(ctx context.Context, token access.Secret) (access.Principal, error) {
	return v.verdict(ctx, token, held)
}

// Examine is Verify but for the certificate to which the token is bound: for
// questions about a token that is somebody else's.
func (v *Verifier) Examine(ctx context.Context, token access.Secret) (access.Principal, error) {
	return v.verdict(ctx, token, func(context.Context, access.TokenRef) error { return nil })
}

func (v *Verifier) verdict(ctx context.Context, token access.Secret, held func(context.Context, access.TokenRef) error) (p access.Principal, err error) {
	var is *issuer
	defer func() {
		if fault := recover(); fault != nil {
			p, err = access.Principal{}, fmt.Errorf("verify token: panic of type %T", fault)
		}
		v.metrics.verified(is, err)
	}()
	raw := token.Reveal()
	if shown := ShownIn(ctx); raw == "" && !shown.Empty() {
		known, err := v.certified(ctx, shown)
		if err != nil {
			return access.Principal{}, err
		}
		is = known.issuer
		return known.principal(), nil
	}
	if err := checkSize(raw); err != nil {
		return access.Principal{}, err
	}
	digest := sha256.Sum256([]byte(raw))
	known := v.cache.get(digest)
	if known != nil {
		is = known.issuer
		published, err := is.publishes(ctx, known.key)
		if err != nil {
			return access.Principal{}, named(is, err)
		}
		if !published {
			v.cache.remove(digest)
			known = nil
		}
	}
	fresh := known == nil
	if fresh {
		if known, is, err = v.examine(ctx, raw); err != nil {
			return access.Principal{}, named(is, err)
		}
	}
	if err := v.current(ctx, known); err != nil {
		return access.Principal{}, named(is, err)
	}
	if err := held(ctx, known.who.Token); err != nil {
		return access.Principal{}, named(is, err)
	}
	if fresh {
		v.cache.add(digest, known)
	}
	p = known.principal()
	if known.lookUp != "" {
		if p.Groups, err = is.groups(ctx, known.lookUp); err != nil {
			return access.Principal{}, named(is, err)
		}
	}
	return p, nil
}

// examine reads and verifies a token from nothing, all but its times and
// revocation. The issuer is returned with an error too, once it is known.
func (v *Verifier) examine(ctx context.Context, raw string) (*verified, *issuer, error) {
	t, err := parse(raw)
	if err != nil {
		return nil, nil, err
	}
	is := v.issuers[t.issuer]
	if is == nil {
		return nil, nil, rejected("its issuer is not configured")
	}
	if err := is.accepts(t); err != nil {
		return nil, is, err
	}
	key, err := is.verifySignature(ctx, t)
	if err != nil {
		return nil, is, err
	}
	known, err := is.read(t, v.nameOf)
	if err != nil {
		return nil, is, err
	}
	known.key = key
	return known, is, nil
}

// nameOf returns the configured name of the issuer with that URL, or "".
func (v *Verifier) nameOf(url string) string {
	for is := range v.all() {
		if is.url == url {
			return is.name
		}
	}
	return ""
}

// all are the issuers of every kind.
func (v *Verifier) all() iter.Seq[*issuer] {
	return func(yield func(*issuer) bool) {
		for _, is := range v.issuers {
			if !yield(is) {
				return
			}
		}
		for _, d := range v.domains {
			if !yield(d.issuer) {
				return
			}
		}
		for _, p := range v.providers {
			if !yield(p.issuer) {
				return
			}
		}
	}
}

// current checks what changes from one use of a token to the next.
func (v *Verifier) current(ctx context.Context, known *verified) error {
	if err := known.issuer.checkTimes(known.times, v.clock.read()); err != nil {
		return err
	}
	if v.revoked == nil {
		return nil
	}
	revoked, err := v.revoked.Revoked(ctx, known.principal())
	if err != nil {
		return fmt.Errorf("ask for revocation: %w", err)
	}
	if revoked {
		return rejected("it has been revoked")
	}
	return nil
}

// rejected is a fault of the token. The reason holds nothing of it.
func rejected(reason string) error { return fmt.Errorf("%w: %s", ErrTokenRejected, reason) }

func named(is *issuer, err error) error {
	if is == nil {
		return err
	}
	return fmt.Errorf("issuer %s: %w", is.name, err)
}
