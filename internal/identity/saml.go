package identity

import (
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/crewjam/saml"
	"github.com/lestrrat-go/jwx/v2/jwa"

	"chaperone.dev/chaperone/internal/access"
)

// MaxAssertionBytes bounds an encoded assertion.
const MaxAssertionBytes = 48 << 10

// maxAssertionAge bounds how long an assertion may wait for its delivery: so
// long it must be remembered, for it is good once.
const maxAssertionAge = 10 * time.Minute

// AssertedLife is how long what an assertion says of somebody may be used when
// the provider does not say how long the session lasts. (The assertion's own
// times are only those of its delivery.)
const AssertedLife = time.Hour

// A SAMLProvider is an identity provider whose SAML 2.0 bearer assertions are
// believed (RFC 7522; Profiles, section 4.1.4). Its keys are those of its
// metadata, never those that an assertion brings.
type SAMLProvider struct {
	Name        string
	EntityID    string // the exact Issuer of assertions, and the entity of the metadata
	Metadata    []byte // the document; or
	MetadataURL string // where it is fetched, as the keys of an Issuer are
	CA          []byte // PEM; replaces the system's roots for MetadataURL
	Audience    string // must be in every audience restriction
	Recipient   string // whom the assertion must be delivered to
	Algorithms  []string
	Skew        time.Duration
	KeyAge      time.Duration
	// Claims are names of attributes; NameID is the subject's name.
	Claims Claims
	// Subagent is what program the asserted speak through, when no attribute
	// says.
	Subagent string
}

// samlNameID is the pseudo attribute in Claims.
const samlNameID = "NameID"

// A samlProvider is a SAMLProvider at work.
type samlProvider struct {
	*issuer
	entity, audience, recipient string
	methods                     []string // URIs of the signature algorithms
	names                       Claims
	subagent                    string
}

// samlMethods are the signature algorithms that can be pinned, as XML names them.
var samlMethods = map[jwa.SignatureAlgorithm]string{
	jwa.RS256: "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
	jwa.RS384: "http://www.w3.org/2001/04/xmldsig-more#rsa-sha384",
	jwa.RS512: "http://www.w3.org/2001/04/xmldsig-more#rsa-sha512",
}

func newSAMLProvider(c SAMLProvider, clk *clock, log *slog.Logger, m *metrics) (*samlProvider, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.EntityID == "" || c.Audience == "" || c.Recipient == "" {
		fault("entity id, audience and recipient are needed")
	}
	if (len(c.Metadata) == 0) == (c.MetadataURL == "") {
		fault("exactly one of metadata and metadata url is needed")
	}
	p := &samlProvider{entity: c.EntityID, audience: c.Audience, recipient: c.Recipient, names: c.Claims, subagent: c.Subagent}
	for _, name := range c.Algorithms {
		method := samlMethods[jwa.SignatureAlgorithm(name)]
		if method == "" {
			fault("algorithms: %q is not one of RS256, RS384, RS512", name)
		}
		p.methods = append(p.methods, method)
	}
	// What else there is to check is the same for every issuer with keys.
	address := c.MetadataURL
	if address == "" {
		address = "https://metadata.invalid" // never fetched
	}
	var err error
	p.issuer, err = newIssuer(Issuer{Name: c.Name, URL: address, JWKSURL: c.MetadataURL, Audiences: []string{c.Audience},
		Algorithms: c.Algorithms, Skew: c.Skew, KeyAge: c.KeyAge, CA: c.CA}, clk, log, m)
	if err != nil {
		fault("%w", err)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	p.url = samlURL(c.EntityID)
	p.keys.source.parse = func(document []byte) (*keySet, error) { return parseMetadata(document, c.EntityID) }
	if c.MetadataURL == "" {
		if _, err := parseMetadata(c.Metadata, c.EntityID); err != nil {
			return nil, err
		}
		p.keys.source.own = func() ([]byte, error) { return c.Metadata, nil }
	}
	return p, nil
}

// samlURL is how our own tokens name the provider as their origin: an entity id
// need not be a URL.
func samlURL(entity string) string { return samlScheme + url.QueryEscape(entity) }

const samlScheme = "saml://"

// parseMetadata reads the signing keys of the one entity.
func parseMetadata(document []byte, entity string) (*keySet, error) {
	if _, err := plainXML(document); err != nil {
		return nil, fmt.Errorf("the metadata %w", err)
	}
	var e saml.EntityDescriptor
	if err := xml.Unmarshal(document, &e); err != nil {
		return nil, errors.New("the metadata is not one EntityDescriptor")
	}
	if e.EntityID != entity || len(e.IDPSSODescriptors) != 1 {
		return nil, errors.New("the metadata is not that of the configured identity provider")
	}
	set := &keySet{}
	for _, d := range e.IDPSSODescriptors[0].KeyDescriptors {
		if d.Use != "signing" && d.Use != "" {
			continue
		}
		for _, one := range d.KeyInfo.X509Data.X509Certificates {
			der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(one.Data), ""))
			if err != nil {
				return nil, errors.New("the metadata holds a certificate that is not base64")
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, errors.New("the metadata holds a certificate that cannot be read")
			}
			if key, ok := cert.PublicKey.(*rsa.PublicKey); ok && sound(key) {
				set.keys = append(set.keys, publicKey{id: sha256.Sum256(cert.RawSubjectPublicKeyInfo), key: key})
			}
		}
	}
	if len(set.keys) > maxKeys {
		return nil, fmt.Errorf("the metadata holds %d keys, more than %d", len(set.keys), maxKeys)
	}
	for _, service := range e.IDPSSODescriptors[0].SingleSignOnServices {
		if u, err := fetchable(service.Location); err == nil && service.Binding == saml.HTTPRedirectBinding && set.login == nil {
			set.login = u
		}
	}
	return set, nil
}

// An Asserted is what a SAML assertion says, verified.
type Asserted struct {
	Principal access.Principal
	// Once names the assertion. Whoever acts on it must make sure that nobody
	// else has or will, until Until.
	Once  string
	Until time.Time
}

// A delivery is how an assertion must have come.
type delivery struct {
	provider  string // configured name; "" for any
	recipient string // "" for the provider's own
	request   string // the ID of what it answers; "" for anything
}

// VerifyAssertion verifies a SAML 2.0 bearer assertion, base64-encoded in either
// alphabet, alone or as the only one in the Response that a browser delivers. It
// is good once: see Asserted. Errors are those of Verify.
func (v *Verifier) VerifyAssertion(ctx context.Context, assertion access.Secret) (Asserted, error) {
	return v.assertion(ctx, assertion, delivery{})
}

func (v *Verifier) assertion(ctx context.Context, assertion access.Secret, by delivery) (a Asserted, err error) {
	var p *samlProvider
	defer func() {
		if fault := recover(); fault != nil {
			a, err = Asserted{}, fmt.Errorf("verify assertion: panic of type %T", fault)
		}
		if p != nil {
			v.metrics.verified(p.issuer, err)
		} else {
			v.metrics.verified(nil, err)
		}
	}()
	raw := assertion.Reveal()
	if len(raw) > MaxAssertionBytes {
		return Asserted{}, rejected("the assertion is too long")
	}
	text, err := decodeEither(raw)
	if err != nil {
		return Asserted{}, rejected("the assertion is not base64")
	}
	signed, err := readSigned(text)
	if err != nil {
		return Asserted{}, rejected("the assertion " + err.Error())
	}
	if p = v.providers[signed.issuer()]; p == nil {
		return Asserted{}, rejected("its issuer is not configured")
	}
	if by.provider != "" && by.provider != p.name {
		return Asserted{}, named(p.issuer, rejected("it is of another provider than was asked"))
	}
	believed, err := p.verify(ctx, signed)
	if err != nil {
		return Asserted{}, named(p.issuer, err)
	}
	by.recipient = cmp.Or(by.recipient, p.recipient)
	known, until, err := p.read(believed, by, v.clock.read())
	if err == nil {
		err = v.current(ctx, known)
	}
	if err != nil {
		return Asserted{}, named(p.issuer, err)
	}
	sum := sha256.Sum256([]byte("saml\x00" + p.entity + "\x00" + believed.ID))
	return Asserted{Principal: known.principal(), Once: hex.EncodeToString(sum[:]), Until: until}, nil
}

func decodeEither(raw string) ([]byte, error) {
	raw = strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(raw), "=")
	return base64.RawURLEncoding.DecodeString(raw)
}

// verify returns what the provider signed, read from exactly those bytes.
func (p *samlProvider) verify(ctx context.Context, s *signedXML) (*saml.Assertion, error) {
	if !slices.Contains(p.methods, s.method) {
		return nil, rejected("its signature algorithm is not accepted of this issuer")
	}
	keys, err := p.keys.current(ctx)
	if err != nil {
		return nil, err
	}
	believed, fault := s.verifiedBy(keys)
	if fault == nil {
		return believed, nil
	}
	newer, err := p.keys.newer(ctx, keys)
	if err != nil {
		return nil, err
	}
	if newer != keys {
		if believed, fault = s.verifiedBy(newer); fault == nil {
			return believed, nil
		}
	}
	if err := p.keys.failure(); err != nil {
		return nil, fmt.Errorf("no verdict on an assertion that no known key signed: %w", err)
	}
	return nil, rejected("its signature does not verify")
}

// read judges a verified assertion and maps it. until is when nobody could
// deliver it any more.
func (p *samlProvider) read(a *saml.Assertion, by delivery, now reading) (known *verified, until time.Time, err error) {
	if a.Version != "2.0" || a.ID == "" {
		return nil, until, rejected("it is not of SAML 2.0, or has no ID")
	}
	if a.Issuer.Value != p.entity || a.Issuer.Format != "" && a.Issuer.Format != "urn:oasis:names:tc:SAML:2.0:nameid-format:entity" {
		return nil, until, rejected("its issuer is another one than of its signature")
	}
	if until, err = p.deliverable(a, by, now); err != nil {
		return nil, until, err
	}
	who, err := p.principal(a)
	if err != nil {
		return nil, until, err
	}
	ends := a.IssueInstant.Add(AssertedLife)
	for _, s := range a.AuthnStatements {
		if s.SessionNotOnOrAfter != nil && s.SessionNotOnOrAfter.Before(ends) {
			ends = *s.SessionNotOnOrAfter
		}
	}
	sum := sha256.Sum256([]byte(p.entity + "\x00" + a.ID))
	issued := a.IssueInstant.Truncate(time.Second).UTC()
	who.Token = access.TokenRef{ID: "tok_" + hex.EncodeToString(sum[:16]), IssuedAt: issued, ExpiresAt: ends.UTC()}
	return &verified{issuer: p.issuer, who: who, times: times{expires: ends.Unix(), notBefore: issued.Unix(), issued: issued.Unix(), hasIssued: true}}, until, nil
}

// deliverable checks to whom, in answer to what and when the assertion may be
// delivered (Core, sections 2.4 and 2.5; RFC 7522, section 3).
func (p *samlProvider) deliverable(a *saml.Assertion, by delivery, now reading) (until time.Time, err error) {
	c := a.Conditions
	switch {
	case a.Subject == nil || a.Subject.NameID == nil || !saneText(a.Subject.NameID.Value):
		return until, rejected("it names nobody")
	case c == nil || len(c.AudienceRestrictions) == 0:
		return until, rejected("it is for no audience in particular")
	case c.ProxyRestriction != nil:
		return until, rejected("it forbids to be exchanged")
	}
	for _, r := range c.AudienceRestrictions {
		if r.Audience.Value != p.audience {
			return until, rejected("it is for another audience")
		}
	}
	for _, s := range a.Subject.SubjectConfirmations {
		d := s.SubjectConfirmationData
		if s.Method != "urn:oasis:names:tc:SAML:2.0:cm:bearer" || d == nil || d.Recipient != by.recipient || d.NotOnOrAfter.IsZero() || s.NameID != nil ||
			by.request != "" && d.InResponseTo != by.request {
			continue
		}
		until = d.NotOnOrAfter
		if !c.NotOnOrAfter.IsZero() && c.NotOnOrAfter.Before(until) {
			until = c.NotOnOrAfter
		}
		from := c.NotBefore
		if d.NotBefore.After(from) {
			from = d.NotBefore
		}
		return until.Add(p.skew), p.inTime(a.IssueInstant, from, until, now)
	}
	return until, rejected("it is for another recipient, in answer to something else, or not a bearer assertion")
}

// inTime wants both times that it may be between the assertion's.
func (p *samlProvider) inTime(issued, from, until time.Time, now reading) error {
	fault := func(at time.Time) error {
		switch {
		case !at.Before(until.Add(p.skew)) || at.Sub(issued) > maxAssertionAge+p.skew:
			return rejected("it has expired")
		case at.Before(from.Add(-p.skew)) || at.Before(issued.Add(-p.skew)):
			return rejected("it is not valid yet")
		}
		return nil
	}
	early, late := fault(now.early), fault(now.late)
	if (early == nil) != (late == nil) {
		return errClockJumped
	}
	return late
}

// principal maps the attributes.
func (p *samlProvider) principal(a *saml.Assertion) (access.Principal, error) {
	who := access.Principal{Issuer: p.name, Subject: a.Subject.NameID.Value}
	attributes := map[string][]string{samlNameID: {a.Subject.NameID.Value}}
	for _, statement := range a.AttributeStatements {
		for _, one := range statement.Attributes {
			if one.Name == samlNameID {
				return access.Principal{}, rejected("it has an attribute of a reserved name")
			}
			for _, value := range one.Values {
				if !saneText(value.Value) {
					return access.Principal{}, rejected("an attribute of it is unprintable, empty or overlong")
				}
				attributes[one.Name] = append(attributes[one.Name], value.Value)
			}
		}
	}
	for name, to := range map[string]*string{p.names.User: &who.User, p.names.Subagent: &who.Subagent, p.names.Instance: &who.Instance,
		p.names.Workflow: &who.Workflow, p.names.Job: &who.Job} {
		switch values := attributes[name]; {
		case name == "" || len(values) == 0:
		case len(values) > 1:
			return access.Principal{}, rejected("its " + name + " attribute has several values")
		default:
			*to = values[0]
		}
	}
	if who.Subagent == "" {
		who.Subagent = p.subagent
	}
	groups := attributes[p.names.Groups]
	if p.names.Groups == "" {
		groups = nil
	}
	if len(groups) > maxGroups {
		return access.Principal{}, rejected("its " + p.names.Groups + " attribute holds too many groups")
	}
	who.Groups = slices.Compact(slices.Sorted(slices.Values(groups)))
	return who, nil
}
