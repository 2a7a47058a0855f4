package identity

import (
	"compress/flate"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/crewjam/saml"

	"chaperone.dev/chaperone/internal/access"
)

const (
	loginRequest   = "_r1"
	loginRecipient = "https://gateway.test/console/login/keycloak/acs"
)

// withLogin is metadata that says where browsers log in.
func withLogin(metadata, location string) string {
	return strings.Replace(metadata, "</IDPSSODescriptor>", `<SingleSignOnService Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST" Location="https://idp.test/post"/>`+
		`<SingleSignOnService Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect" Location="`+location+`"/></IDPSSODescriptor>`, 1)
}

func TestSAMLRequest(t *testing.T) {
	t.Parallel()
	idp, clock := newSAMLIDP(t, rsaKey()), newFakeClock()
	v := samlVerifier(t, withLogin(idp.metadata(), "https://idp.test/sso?realm=main"), clock)
	address, err := v.SAMLRequest(t.Context(), "keycloak", loginRequest, loginRecipient)
	if err != nil {
		t.Fatal(err)
	}
	to, err := url.Parse(address)
	if err != nil || to.Host != "idp.test" || to.Path != "/sso" || to.Query().Get("realm") != "main" {
		t.Fatalf("%s %v", address, err)
	}
	deflated, err := base64.StdEncoding.DecodeString(to.Query().Get("SAMLRequest"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(flate.NewReader(strings.NewReader(string(deflated))))
	if err != nil {
		t.Fatal(err)
	}
	var got saml.AuthnRequest
	if err := xml.Unmarshal(text, &got); err != nil || got.ID != loginRequest || got.AssertionConsumerServiceURL != loginRecipient || got.Issuer.Value != samlAudience ||
		got.ProtocolBinding != saml.HTTPPostBinding || !got.IssueInstant.Equal(noon) {
		t.Errorf("%v %s", err, text)
	}
	for name, metadata := range map[string]string{"none": idp.metadata(), "without TLS": withLogin(idp.metadata(), "http://idp.test/sso")} {
		if address, err := samlVerifier(t, metadata, clock).SAMLRequest(t.Context(), "keycloak", loginRequest, loginRecipient); err == nil {
			t.Errorf("%s: %s", name, address)
		}
	}
	if _, err := v.SAMLRequest(t.Context(), "dex", loginRequest, loginRecipient); err == nil {
		t.Error("a name of no SAML provider is taken")
	}
}

// TestLoginIsAnsweredOnce: an assertion for the console answers the request of
// this login, at the console's own address, and nothing else.
func TestLoginIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	idp, clock := newSAMLIDP(t, rsaKey()), newFakeClock()
	v := samlVerifier(t, idp.metadata(), clock)
	answer := func(change func(*saml.SubjectConfirmationData)) access.Secret {
		return encoded(fmt.Sprintf(response, idp.signed(t, assertion(func(a *saml.Assertion) {
			d := a.Subject.SubjectConfirmations[0].SubjectConfirmationData
			d.Recipient, d.InResponseTo = loginRecipient, loginRequest
			if change != nil {
				change(d)
			}
		}))))
	}
	good := answer(nil)
	a, err := v.VerifyLogin(t.Context(), good, "keycloak", loginRequest, loginRecipient)
	if err != nil || a.Principal.User != "ada@example.com" || a.Once == "" {
		t.Fatalf("%+v %v", a, err)
	}
	if _, err := v.VerifyAssertion(t.Context(), good); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("at the token service: %v", err)
	}
	for name, c := range map[string]struct {
		assertion                    access.Secret
		provider, request, recipient string
	}{
		"another request":           {good, "keycloak", "_r2", loginRecipient},
		"another provider":          {good, "dex", loginRequest, loginRecipient},
		"another recipient":         {good, "keycloak", loginRequest, samlRecipient},
		"no request":                {good, "keycloak", "", loginRecipient},
		"unasked":                   {answer(func(d *saml.SubjectConfirmationData) { d.InResponseTo = "" }), "keycloak", loginRequest, loginRecipient},
		"for the token service":     {answer(func(d *saml.SubjectConfirmationData) { d.Recipient = samlRecipient }), "keycloak", loginRequest, loginRecipient},
		"delivered too late":        {answer(func(d *saml.SubjectConfirmationData) { d.NotOnOrAfter = noon.Add(-time.Minute) }), "keycloak", loginRequest, loginRecipient},
		"an answer to several ones": {answer(func(d *saml.SubjectConfirmationData) { d.InResponseTo = loginRequest + " _r2" }), "keycloak", loginRequest, loginRecipient},
	} {
		if a, err := v.VerifyLogin(t.Context(), c.assertion, c.provider, c.request, c.recipient); err == nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// TestWhatWasAssertedStands until its time is over, it is revoked, or its
// provider is no longer believed.
func TestWhatWasAssertedStands(t *testing.T) {
	t.Parallel()
	idp, clock := newSAMLIDP(t, rsaKey()), newFakeClock()
	revoked := revokedTokens{}
	v := newVerifier(t, Config{Clock: clock.Now, SAML: []SAMLProvider{samlConfig(idp.metadata())}, Revocations: revoked})
	a, err := v.VerifyAssertion(t.Context(), encoded(idp.signed(t, assertion(nil))))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Stands(t.Context(), a.Principal); err != nil {
		t.Error(err)
	}
	other := a.Principal
	other.Issuer = "gone"
	if err := v.Stands(t.Context(), other); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("of a provider that is gone: %v", err)
	}
	revoked[a.Principal.Token.ID] = true
	if err := v.Stands(t.Context(), a.Principal); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("revoked: %v", err)
	}
	clear(revoked)
	clock.Advance(30 * time.Minute)
	if err := v.Stands(t.Context(), a.Principal); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("after its time: %v", err)
	}
}
