package identity

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"slices"
	"time"

	"github.com/beevik/etree"
	"github.com/crewjam/saml"
	xrv "github.com/mattermost/xml-roundtrip-validator"
	dsig "github.com/russellhaering/goxmldsig"
	"github.com/russellhaering/goxmldsig/etreeutils"
)

// Namespaces of what is read.
const (
	nsAssertion = "urn:oasis:names:tc:SAML:2.0:assertion"
	nsProtocol  = "urn:oasis:names:tc:SAML:2.0:protocol"
	nsSignature = "http://www.w3.org/2000/09/xmldsig#"
)

// What a signature may be made of (XML Signature; SAML Core, section 5.4): one
// reference to its parent, the one canonical form, nothing of SHA-1.
const (
	exclusiveC14N      = "http://www.w3.org/2001/10/xml-exc-c14n#"
	envelopedSignature = nsSignature + "enveloped-signature"
)

var digestMethods = []string{
	"http://www.w3.org/2001/04/xmlenc#sha256", "http://www.w3.org/2001/04/xmldsig-more#sha384", "http://www.w3.org/2001/04/xmlenc#sha512",
}

// Bounds of a document.
const (
	maxXMLElements = 2000
	maxXMLDepth    = 24
)

// plainXML reads a document of elements, attributes and text. Everything that
// two readers could understand differently is refused: entities and DOCTYPE,
// comments (which cut a text in two for some), processing instructions, CDATA,
// names that do not survive being written again.
func plainXML(text []byte) (*etree.Element, error) {
	if err := xrv.Validate(bytes.NewReader(text)); err != nil {
		return nil, errors.New("is not XML that can be read in one way only")
	}
	document := etree.NewDocument()
	document.ReadSettings.PreserveCData = true // else it could not be told from text
	if err := document.ReadFromBytes(text); err != nil {
		return nil, errors.New("is not XML")
	}
	var root *etree.Element
	for _, child := range document.Child {
		switch child := child.(type) {
		case *etree.Element:
			if root != nil {
				return nil, errors.New("has several roots")
			}
			root = child
		case *etree.CharData:
			if !child.IsWhitespace() {
				return nil, errors.New("has text beside its root")
			}
		case *etree.ProcInst:
			if child.Target != "xml" {
				return nil, errors.New("has a processing instruction")
			}
		default:
			return nil, errors.New("has comments or a document type")
		}
	}
	if root == nil {
		return nil, errors.New("is empty")
	}
	elements := 0
	return root, plainElement(root, 0, &elements)
}

func plainElement(e *etree.Element, depth int, elements *int) error {
	if *elements++; *elements > maxXMLElements || depth > maxXMLDepth {
		return errors.New("has too many elements, or nests too deep")
	}
	for _, child := range e.Child {
		switch child := child.(type) {
		case *etree.Element:
			if err := plainElement(child, depth+1, elements); err != nil {
				return err
			}
		case *etree.CharData:
			if child.IsCData() {
				return errors.New("has a CDATA section")
			}
		default:
			return errors.New("has a comment or a processing instruction")
		}
	}
	return nil
}

// A signedXML is an assertion with the one signature that it has, in the one
// form that is taken. Nothing of it is verified.
type signedXML struct {
	assertion *etree.Element
	method    string
}

// readSigned finds the only assertion of a document and checks the form of its
// signature. Whatever could lead the signature to something else than what is
// read (signature wrapping) is refused before any key is tried: a second
// assertion anywhere, a second signature in it, an ID that is not unique, a
// reference to anything but the assertion, any other transform.
func readSigned(text []byte) (*signedXML, error) {
	root, err := plainXML(text)
	if err != nil {
		return nil, err
	}
	all := append([]*etree.Element{root}, root.FindElements(".//*")...)
	var found []*etree.Element
	ids := map[string]bool{}
	for _, e := range all {
		switch e.Tag {
		case "Assertion":
			found = append(found, e)
		case "EncryptedAssertion", "EncryptedID", "EncryptedAttribute":
			return nil, errors.New("is encrypted")
		}
		for _, a := range e.Attr {
			if a.Key != "ID" && a.Key != "Id" && a.Key != "id" {
				continue
			}
			if ids[a.Value] || a.Value == "" {
				return nil, errors.New("has an ID that is not unique")
			}
			ids[a.Value] = true
		}
	}
	if len(found) != 1 || found[0].NamespaceURI() != nsAssertion {
		return nil, errors.New("is not exactly one")
	}
	assertion := found[0]
	inResponse := assertion.Parent() == root && root.Tag == "Response" && root.NamespaceURI() == nsProtocol
	if assertion != root && !inResponse {
		return nil, errors.New("is not where it belongs")
	}
	return signatureOf(assertion)
}

func signatureOf(assertion *etree.Element) (*signedXML, error) {
	var signature *etree.Element
	for _, e := range assertion.FindElements(".//*") {
		if e.Tag != "Signature" {
			if ns := e.NamespaceURI(); ns != nsAssertion && (ns != nsSignature && ns != exclusiveC14N || signature == nil) {
				return nil, errors.New("has elements of another kind")
			}
			continue
		}
		if signature != nil || e.Parent() != assertion || e.NamespaceURI() != nsSignature {
			return nil, errors.New("has a signature where none belongs, or several")
		}
		signature = e
	}
	if signature == nil {
		return nil, errors.New("is not signed")
	}
	for _, once := range []string{".//Issuer", ".//Subject", ".//Conditions", "./Subject/NameID"} {
		if len(assertion.FindElements(once)) > 1 {
			return nil, errors.New("says something twice")
		}
	}
	if err := childrenOf(assertion, "Conditions", "AudienceRestriction", "OneTimeUse", "ProxyRestriction"); err != nil {
		return nil, err
	}
	if err := childrenOf(assertion, "AudienceRestriction", "Audience"); err != nil {
		return nil, err
	}
	s := &signedXML{assertion: assertion}
	info, value, key := signature.SelectElements("SignedInfo"), signature.SelectElements("SignatureValue"), signature.SelectElements("KeyInfo")
	if len(info) != 1 || len(value) != 1 || len(key) > 1 || len(signature.ChildElements()) != 2+len(key) {
		return nil, errors.New("has a signature of another form")
	}
	for _, k := range key { // it may not say what its key is
		signature.RemoveChild(k)
	}
	err := s.readInfo(info[0])
	return s, err
}

// childrenOf refuses any other child of elements of a name, and of audience
// restrictions more than one: what would not be read could restrict.
func childrenOf(assertion *etree.Element, name string, known ...string) error {
	for _, parent := range assertion.FindElements(".//" + name) {
		for _, child := range parent.ChildElements() {
			if !slices.Contains(known, child.Tag) {
				return errors.New("has a condition that is not known")
			}
		}
		if name == "AudienceRestriction" && len(parent.ChildElements()) != 1 {
			return errors.New("has an audience restriction without exactly one audience")
		}
	}
	return nil
}

func (s *signedXML) readInfo(info *etree.Element) error {
	wrong := errors.New("has a signature of another form")
	algorithm := func(e *etree.Element) string { return e.SelectAttrValue("Algorithm", "") }
	children := info.ChildElements()
	if len(children) != 3 || children[0].Tag != "CanonicalizationMethod" || children[1].Tag != "SignatureMethod" || children[2].Tag != "Reference" {
		return wrong
	}
	reference := children[2]
	parts := reference.ChildElements()
	id := s.assertion.SelectAttrValue("ID", "")
	if algorithm(children[0]) != exclusiveC14N || len(children[1].ChildElements()) != 0 || id == "" || reference.SelectAttrValue("URI", "") != "#"+id ||
		len(parts) != 3 || parts[0].Tag != "Transforms" || parts[1].Tag != "DigestMethod" || parts[2].Tag != "DigestValue" {
		return wrong
	}
	transforms := parts[0].ChildElements()
	if len(transforms) != 2 || algorithm(transforms[0]) != envelopedSignature || algorithm(transforms[1]) != exclusiveC14N {
		return wrong
	}
	if !slices.Contains(digestMethods, algorithm(parts[1])) {
		return errors.New("has a digest of an algorithm that is not accepted")
	}
	s.method = algorithm(children[1])
	return nil
}

// issuer is who the assertion says it is of: only to know whose keys to try.
func (s *signedXML) issuer() string {
	for _, child := range s.assertion.ChildElements() {
		if child.Tag == "Issuer" {
			return child.Text()
		}
	}
	return ""
}

// verifiedBy returns the assertion as some key of keys has signed it: it is read
// from the canonical bytes that the signature covers, and from nothing else.
func (s *signedXML) verifiedBy(keys *keySet) (*saml.Assertion, error) {
	around, err := etreeutils.NSBuildParentContext(s.assertion)
	if err == nil {
		around, err = around.SubContext(s.assertion)
	}
	if err != nil {
		return nil, err
	}
	alone, err := etreeutils.NSDetatch(around, s.assertion)
	if err != nil {
		return nil, err
	}
	for _, k := range keys.keys {
		key, ok := k.key.(*rsa.PublicKey)
		if !ok {
			continue
		}
		// Whether the key may still be used is for the metadata to say.
		holder := &x509.Certificate{PublicKey: key, PublicKeyAlgorithm: x509.RSA, NotAfter: time.Unix(maxNumericDate, 0)}
		validation := dsig.NewDefaultValidationContext(&dsig.MemoryX509CertificateStore{Roots: []*x509.Certificate{holder}})
		validation.IdAttribute = "ID"
		covered, err := validation.Validate(alone)
		if err != nil {
			continue
		}
		return decodeAssertion(covered)
	}
	return nil, errors.New("no key has signed it")
}

func decodeAssertion(covered *etree.Element) (*saml.Assertion, error) {
	document := etree.NewDocument()
	document.SetRoot(covered.Copy())
	text, err := document.WriteToBytes()
	if err != nil {
		return nil, err
	}
	a := &saml.Assertion{}
	return a, xml.Unmarshal(text, a)
}
