package identity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crewjam/saml"

	"chaperone.dev/chaperone/internal/access"
)

// errNotSAML is a name that stands for no SAML provider (any more).
var errNotSAML = errors.New("there is no SAML provider of that name")

func (v *Verifier) provider(name string) (*samlProvider, error) {
	for _, p := range v.providers {
		if p.name == name {
			return p, nil
		}
	}
	return nil, errNotSAML
}

// SAMLRequest returns where a browser logs in at the provider with that
// configured name, with a request whose ID is id and that has the answer posted
// to recipient (Web Browser SSO; Bindings, section 3.4). The request is not
// signed: all that it says is checked in the answer.
func (v *Verifier) SAMLRequest(ctx context.Context, provider, id, recipient string) (string, error) {
	p, err := v.provider(provider)
	if err != nil {
		return "", err
	}
	keys, err := p.keys.current(ctx)
	if err != nil {
		return "", named(p.issuer, err)
	}
	if keys.login == nil {
		return "", named(p.issuer, errors.New("its metadata has no SingleSignOnService for HTTP-Redirect"))
	}
	request := saml.AuthnRequest{ID: id, Version: "2.0", IssueInstant: v.clock.read().late.UTC().Truncate(time.Second), Destination: keys.login.String(),
		Issuer: &saml.Issuer{Value: p.audience}, AssertionConsumerServiceURL: recipient, ProtocolBinding: saml.HTTPPostBinding}
	to, err := request.Redirect("", &saml.ServiceProvider{})
	if err != nil {
		return "", named(p.issuer, fmt.Errorf("write the request: %w", err))
	}
	return to.String(), nil
}

// VerifyLogin is VerifyAssertion for the answer to a SAMLRequest with the same
// three.
func (v *Verifier) VerifyLogin(ctx context.Context, assertion access.Secret, provider, id, recipient string) (Asserted, error) {
	if provider == "" || id == "" || recipient == "" {
		return Asserted{}, errors.New("verify login: no request")
	}
	return v.assertion(ctx, assertion, delivery{provider, recipient, id})
}

// Stands reports by nil that what a provider has asserted of p still holds: the
// provider is configured, the time is not over and nothing was revoked. Errors
// are those of Verify.
func (v *Verifier) Stands(ctx context.Context, p access.Principal) error {
	is, err := v.provider(p.Issuer)
	if err != nil {
		return rejected(err.Error())
	}
	known := &verified{issuer: is.issuer, who: p, times: times{expires: p.Token.ExpiresAt.Unix(), notBefore: p.Token.IssuedAt.Unix(),
		issued: p.Token.IssuedAt.Unix(), hasIssued: true}}
	if err := v.current(ctx, known); err != nil {
		return named(is.issuer, err)
	}
	return nil
}
