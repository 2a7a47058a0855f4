package identity

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/beevik/etree"
	"github.com/crewjam/saml"
	dsig "github.com/russellhaering/goxmldsig"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
)

const (
	samlEntity    = "https://idp.test/realms/main"
	samlAudience  = "https://gateway.test"
	samlRecipient = "https://gateway.test/oauth/token"
)

// A samlIDP signs as an identity provider does.
type samlIDP struct {
	cert []byte // DER
	key  *rsa.PrivateKey
}

func newSAMLIDP(t *testing.T, key *rsa.PrivateKey) samlIDP {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: noon, NotAfter: noon.Add(time.Minute)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return samlIDP{der, key}
}

func newRSAKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (i samlIDP) metadata() string {
	return fmt.Sprintf(`<EntityDescriptor xmlns="urn:oasis:names:tc:SAML:2.0:metadata" entityID=%q><IDPSSODescriptor protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol">`+
		`<KeyDescriptor use="signing"><KeyInfo xmlns="http://www.w3.org/2000/09/xmldsig#"><X509Data><X509Certificate>%s</X509Certificate></X509Data></KeyInfo></KeyDescriptor>`+
		`</IDPSSODescriptor></EntityDescriptor>`, samlEntity, base64.StdEncoding.EncodeToString(i.cert))
}

// assertion is an ordinary one, of noon.
func assertion(change func(*saml.Assertion)) *saml.Assertion {
	session := noon.Add(30 * time.Minute)
	a := &saml.Assertion{ID: "id-1", IssueInstant: noon, Version: "2.0", Issuer: saml.Issuer{Value: samlEntity},
		Subject: &saml.Subject{NameID: &saml.NameID{Value: "ada@example.com"}, SubjectConfirmations: []saml.SubjectConfirmation{{
			Method:                  "urn:oasis:names:tc:SAML:2.0:cm:bearer",
			SubjectConfirmationData: &saml.SubjectConfirmationData{NotOnOrAfter: noon.Add(5 * time.Minute), Recipient: samlRecipient}}}},
		Conditions: &saml.Conditions{NotBefore: noon, NotOnOrAfter: noon.Add(time.Minute),
			AudienceRestrictions: []saml.AudienceRestriction{{Audience: saml.Audience{Value: samlAudience}}}},
		AuthnStatements: []saml.AuthnStatement{{AuthnInstant: noon, SessionNotOnOrAfter: &session}},
		AttributeStatements: []saml.AttributeStatement{{Attributes: []saml.Attribute{
			{Name: "email", Values: []saml.AttributeValue{{Type: "xs:string", Value: "ada@example.com"}}},
			{Name: "groups", Values: []saml.AttributeValue{{Type: "xs:string", Value: "b"}, {Type: "xs:string", Value: "a"}, {Type: "xs:string", Value: "a"}}},
		}}}}
	if change != nil {
		change(a)
	}
	return a
}

// signed is the assertion with its signature, as text.
func (i samlIDP) signed(t *testing.T, a *saml.Assertion, change ...func(*dsig.SigningContext)) string {
	t.Helper()
	return i.signElement(t, a.Element(), change...)
}

func (i samlIDP) signElement(t *testing.T, e *etree.Element, change ...func(*dsig.SigningContext)) string {
	t.Helper()
	ctx := dsig.NewDefaultSigningContext(dsig.TLSCertKeyStore(tls.Certificate{Certificate: [][]byte{i.cert}, PrivateKey: i.key}))
	ctx.Canonicalizer = dsig.MakeC14N10ExclusiveCanonicalizerWithPrefixList("")
	for _, c := range append([]func(*dsig.SigningContext){func(c *dsig.SigningContext) {
		if err := c.SetSignatureMethod(dsig.RSASHA256SignatureMethod); err != nil {
			t.Fatal(err)
		}
	}}, change...) {
		c(ctx)
	}
	element, err := ctx.SignEnveloped(e)
	if err != nil {
		t.Fatal(err)
	}
	document := etree.NewDocument()
	document.SetRoot(element)
	text, err := document.WriteToString()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func samlConfig(metadata string) SAMLProvider {
	return SAMLProvider{Name: "keycloak", EntityID: samlEntity, Metadata: []byte(metadata), Audience: samlAudience, Recipient: samlRecipient,
		Algorithms: []string{"RS256"}, Claims: Claims{User: "email", Groups: "groups"}, Subagent: "console"}
}

func samlVerifier(t *testing.T, metadata string, clock *clocktest.Clock) *Verifier {
	t.Helper()
	return newVerifier(t, Config{Clock: clock.Now, SAML: []SAMLProvider{samlConfig(metadata)}})
}

func encoded(text string) access.Secret {
	return access.NewSecret(base64.RawURLEncoding.EncodeToString([]byte(text)))
}

const response = `<samlp:Response xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol" ID="id-r" Version="2.0">%s</samlp:Response>`

func TestAssertionIsRead(t *testing.T) {
	t.Parallel()
	idp, clock := newSAMLIDP(t, rsaKey()), newFakeClock()
	v := samlVerifier(t, idp.metadata(), clock)
	text := idp.signed(t, assertion(nil))
	want := access.Principal{Issuer: "keycloak", Subject: "ada@example.com", User: "ada@example.com", Subagent: "console", Groups: []string{"a", "b"},
		Token: access.TokenRef{IssuedAt: noon, ExpiresAt: noon.Add(30 * time.Minute)}}
	var once string
	for name, raw := range map[string]access.Secret{
		"alone": encoded(text), "in a response": encoded(fmt.Sprintf(response, text)),
		"in base64 with padding": access.NewSecret(base64.StdEncoding.EncodeToString([]byte(text))),
	} {
		got, err := v.VerifyAssertion(t.Context(), raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if once != "" && got.Once != once || !got.Until.Equal(noon.Add(time.Minute)) {
			t.Errorf("%s: once %q until %s", name, got.Once, got.Until)
		}
		once, want.Token.ID = got.Once, got.Principal.Token.ID
		if !reflect.DeepEqual(got.Principal, want) {
			t.Errorf("%s: %+v", name, got.Principal)
		}
	}
	if name := v.NameOf(v.URLOf("keycloak")); name != "keycloak" {
		t.Errorf("its name is %q", name)
	}
}

// TestForgedAssertions: each is an attack that has worked on somebody. The twin
// is the test above.
func TestForgedAssertions(t *testing.T) {
	t.Parallel()
	idp, other := newSAMLIDP(t, rsaKey()), newSAMLIDP(t, newRSAKey(t))
	v := samlVerifier(t, idp.metadata(), newFakeClock())
	good := idp.signed(t, assertion(nil))
	evil := func(a *saml.Assertion) { a.Subject.NameID.Value, a.ID = "root@example.com", "id-2" }
	unsigned := func(change func(*saml.Assertion)) string {
		document := etree.NewDocument()
		document.SetRoot(assertion(change).Element())
		text, err := document.WriteToString()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	signature := good[strings.Index(good, "<ds:Signature "):]
	signature = signature[:strings.Index(signature, "</ds:Signature>")+len("</ds:Signature>")]
	bare := strings.Replace(good, signature, "", 1)
	evilWith := func(inside string) string { // an unsigned one with something before its subject
		return strings.Replace(unsigned(evil), "<saml:Subject>", inside+"<saml:Subject>", 1)
	}
	for name, text := range map[string]string{
		"unsigned":                               unsigned(nil),
		"unsigned in a response":                 fmt.Sprintf(response, unsigned(nil)),
		"only the response is signed":            fmt.Sprintf(response, signature+bare),
		"another provider's key":                 other.signed(t, assertion(nil)),
		"changed":                                strings.Replace(good, "ada@example.com", "eve@example.com", 1),
		"wrapped: evil first":                    fmt.Sprintf(response, unsigned(evil)+good),
		"wrapped: evil last":                     fmt.Sprintf(response, good+unsigned(evil)),
		"wrapped: the good one in the signature": evilWith(strings.Replace(signature, "</ds:Signature>", "<ds:Object>"+bare+"</ds:Object></ds:Signature>", 1)),
		"wrapped: the good one in advice":        evilWith(signature + "<saml:Advice>" + bare + "</saml:Advice>"),
		"wrapped: the same id":                   strings.Replace(unsigned(func(a *saml.Assertion) { evil(a); a.ID = "id-1" }), "<saml:Subject>", signature+"<saml:Subject>", 1),
		"wrapped: in an extension":               fmt.Sprintf(response, "<samlp:Extensions>"+good+"</samlp:Extensions>"),
		"two signatures":                         strings.Replace(good, signature, signature+signature, 1),
		"the reference is empty":                 strings.Replace(good, `URI="#id-1"`, `URI=""`, 1),
		"an id twice":                            strings.Replace(good, "<saml:Subject>", `<saml:Subject ID="id-1">`, 1),
		"a comment in the name":                  strings.Replace(good, ">ada@example.com<", ">ada@example.com<!-- -->.evil.test<", 1),
		"a comment":                              strings.Replace(good, "<saml:Subject>", "<!-- --><saml:Subject>", 1),
		"CDATA":                                  strings.Replace(good, ">ada@example.com<", "><![CDATA[ada@example.com]]><", 1),
		"a document type":                        `<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>` + good,
		"a processing instruction":               strings.Replace(good, "<saml:Subject>", "<?x y?><saml:Subject>", 1),
		"encrypted":                              fmt.Sprintf(response, "<saml:EncryptedAssertion xmlns:saml=\""+nsAssertion+"\"/>"),
		"two roots":                              good + good,
		"not XML":                                "hello",
		"nothing":                                "",
		"deep":                                   strings.Repeat("<a>", 3000) + strings.Repeat("</a>", 3000),
	} {
		if a, err := v.VerifyAssertion(t.Context(), encoded(text)); !errors.Is(err, ErrTokenRejected) {
			t.Errorf("%s: %+v %v", name, a, err)
		}
	}
	if _, err := v.VerifyAssertion(t.Context(), access.NewSecret(strings.Repeat("A", MaxAssertionBytes+1))); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("too long: %v", err)
	}
	if _, err := v.Verify(t.Context(), encoded(good)); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("an assertion as a bearer token: %v", err)
	}
}

// TestAssertionsForOthers are signed well, and are not for us or not for now.
func TestAssertionsForOthers(t *testing.T) {
	t.Parallel()
	idp, clock := newSAMLIDP(t, rsaKey()), newFakeClock()
	v := samlVerifier(t, idp.metadata(), clock)
	data := func(a *saml.Assertion) *saml.SubjectConfirmationData {
		return a.Subject.SubjectConfirmations[0].SubjectConfirmationData
	}
	past := noon.Add(-time.Second)
	for name, change := range map[string]func(*saml.Assertion){
		"another audience": func(a *saml.Assertion) { a.Conditions.AudienceRestrictions[0].Audience.Value = "https://other.test" },
		"audiences, all of which must be ours": func(a *saml.Assertion) {
			a.Conditions.AudienceRestrictions = append(a.Conditions.AudienceRestrictions, saml.AudienceRestriction{Audience: saml.Audience{Value: "x"}})
		},
		"no audience":       func(a *saml.Assertion) { a.Conditions.AudienceRestrictions = nil },
		"no conditions":     func(a *saml.Assertion) { a.Conditions = nil },
		"another recipient": func(a *saml.Assertion) { data(a).Recipient = samlRecipient + "/x" },
		"no recipient":      func(a *saml.Assertion) { data(a).Recipient = "" },
		"no end":            func(a *saml.Assertion) { data(a).NotOnOrAfter = time.Time{} },
		"not a bearer": func(a *saml.Assertion) {
			a.Subject.SubjectConfirmations[0].Method = "urn:oasis:names:tc:SAML:2.0:cm:holder-of-key"
		},
		"no confirmation":         func(a *saml.Assertion) { a.Subject.SubjectConfirmations = nil },
		"nobody":                  func(a *saml.Assertion) { a.Subject = nil },
		"another issuer":          func(a *saml.Assertion) { a.Issuer.Value = "https://evil.test" },
		"no more":                 func(a *saml.Assertion) { a.Conditions.NotOnOrAfter = noon },
		"no more, by the subject": func(a *saml.Assertion) { data(a).NotOnOrAfter = noon },
		"not yet":                 func(a *saml.Assertion) { a.Conditions.NotBefore = noon.Add(time.Second) },
		"from the future":         func(a *saml.Assertion) { a.IssueInstant = noon.Add(time.Second) },
		"old":                     func(a *saml.Assertion) { a.IssueInstant = noon.Add(-time.Hour) },
		"its session is over":     func(a *saml.Assertion) { a.AuthnStatements[0].SessionNotOnOrAfter = &past },
		"not to be exchanged":     func(a *saml.Assertion) { a.Conditions.ProxyRestriction = &saml.ProxyRestriction{} },
		"two users": func(a *saml.Assertion) {
			at := &a.AttributeStatements[0].Attributes[0]
			at.Values = append(at.Values, at.Values[0])
		},
		"a line break in a group": func(a *saml.Assertion) { a.AttributeStatements[0].Attributes[1].Values[0].Value = "a\nb" },
		"a reserved attribute":    func(a *saml.Assertion) { a.AttributeStatements[0].Attributes[0].Name = "NameID" },
	} {
		if a, err := v.VerifyAssertion(t.Context(), encoded(idp.signed(t, assertion(change)))); !errors.Is(err, ErrTokenRejected) {
			t.Errorf("%s: %+v %v", name, a, err)
		}
	}
	for name, change := range map[string]func(*dsig.SigningContext){
		"SHA-1":       func(c *dsig.SigningContext) { c.Hash = 3; _ = c.SetSignatureMethod(dsig.RSASHA1SignatureMethod) },
		"another pin": func(c *dsig.SigningContext) { _ = c.SetSignatureMethod(dsig.RSASHA512SignatureMethod) },
		"with comments": func(c *dsig.SigningContext) {
			c.Canonicalizer = dsig.MakeC14N10ExclusiveWithCommentsCanonicalizerWithPrefixList("")
		},
		"inclusive forms": func(c *dsig.SigningContext) { c.Canonicalizer = dsig.MakeC14N10RecCanonicalizer() },
	} {
		if a, err := v.VerifyAssertion(t.Context(), encoded(idp.signed(t, assertion(nil), change))); !errors.Is(err, ErrTokenRejected) {
			t.Errorf("%s: %+v %v", name, a, err)
		}
	}
	for name, change := range map[string]func(*etree.Element){
		"another version":        func(e *etree.Element) { e.CreateAttr("Version", "1.1") },
		"a condition of its own": func(e *etree.Element) { e.FindElement("./Conditions").CreateElement("saml:Condition") },
		"two audiences in one":   func(e *etree.Element) { e.FindElement(".//AudienceRestriction").CreateElement("saml:Audience") },
		"an element of its own":  func(e *etree.Element) { e.CreateElement("x:y").CreateAttr("xmlns:x", "urn:x") },
		"one subject twice":      func(e *etree.Element) { e.AddChild(e.FindElement("./Subject").Copy()) },
	} {
		element := assertion(nil).Element()
		change(element)
		if a, err := v.VerifyAssertion(t.Context(), encoded(idp.signElement(t, element))); !errors.Is(err, ErrTokenRejected) {
			t.Errorf("%s: %+v %v", name, a, err)
		}
	}
	clock.Advance(61 * time.Second)
	if _, err := v.VerifyAssertion(t.Context(), encoded(idp.signed(t, assertion(nil)))); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("after its end: %v", err)
	}
}

// TestMetadataByURL: fetched as keys are, rotated, and refused when it is not
// the provider's.
func TestMetadataByURL(t *testing.T) {
	t.Parallel()
	old, next, clock := newSAMLIDP(t, rsaKey()), newSAMLIDP(t, newRSAKey(t)), newFakeClock()
	p := newProvider(t)
	serve := func(body string) {
		p.answer(nil, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
	}
	serve(old.metadata())
	c := samlConfig("")
	c.Metadata, c.MetadataURL = nil, p.URL+"/keys"
	v := newVerifier(t, Config{Clock: clock.Now, SAML: []SAMLProvider{c}})
	verify := func(i samlIDP) error {
		_, err := v.VerifyAssertion(t.Context(), encoded(i.signed(t, assertion(nil))))
		return err
	}
	if err := verify(old); err != nil {
		t.Fatal(err)
	}
	serve(next.metadata())
	if err := verify(next); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("within ten seconds of the last fetch: %v", err)
	}
	clock.Advance(11 * time.Second)
	if err := errors.Join(verify(next)); err != nil {
		t.Errorf("a new key: %v", err)
	}
	if err := verify(old); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("a removed key: %v", err)
	}
	serve("<html>down</html>")
	clock.Advance(11 * time.Second)
	if err := verify(old); err == nil || errors.Is(err, ErrTokenRejected) {
		t.Errorf("a verdict without metadata: %v", err)
	}
	if err := verify(next); err != nil {
		t.Errorf("a known key: %v", err)
	}
}

func TestSAMLProvidersAreChecked(t *testing.T) {
	t.Parallel()
	idp := newSAMLIDP(t, rsaKey())
	good := samlConfig(idp.metadata())
	for name, change := range map[string]func(*SAMLProvider){
		"no audience": func(p *SAMLProvider) { p.Audience = "" }, "no recipient": func(p *SAMLProvider) { p.Recipient = "" },
		"both": func(p *SAMLProvider) { p.MetadataURL = "https://idp.test" }, "neither": func(p *SAMLProvider) { p.Metadata = nil },
		"plain http": func(p *SAMLProvider) { p.Metadata, p.MetadataURL = nil, "http://idp.test/m" },
		"ECDSA":      func(p *SAMLProvider) { p.Algorithms = []string{"ES256"} }, "no algorithm": func(p *SAMLProvider) { p.Algorithms = nil },
		"another's": func(p *SAMLProvider) { p.EntityID = "https://other.test" }, "not metadata": func(p *SAMLProvider) { p.Metadata = []byte("<a/>") },
		"an entity": func(p *SAMLProvider) { p.Metadata = []byte(`<!DOCTYPE a [<!ENTITY e "x">]>` + idp.metadata()) },
	} {
		bad := good
		change(&bad)
		if _, err := New(Config{SAML: []SAMLProvider{bad}}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// FuzzAssertion: no text panics, and whoever cannot sign is nobody.
func FuzzAssertion(f *testing.F) {
	f.Add(`<Assertion xmlns="urn:oasis:names:tc:SAML:2.0:assertion" ID="a"><Issuer>` + samlEntity + `</Issuer></Assertion>`)
	f.Add(fmt.Sprintf(response, ""))
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := readSigned([]byte(text)); err == nil {
			if _, err := s.verifiedBy(&keySet{keys: []publicKey{{key: rsaKey().Public()}}}); err == nil {
				t.Errorf("signed by nobody: %q", text)
			}
		}
	})
}
