package issuer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
)

// Names of RFC 8693 and RFC 9396.
const (
	grantExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
	typeSAML2       = "urn:ietf:params:oauth:token-type:saml2"
	// typeCertificate stands for the client certificate of the connection, and
	// goes with no token.
	typeCertificate = "urn:chaperone:token-type:client-certificate"
	detailsType     = identity.DetailsType
	// resourceURN begins a resource (RFC 8707) that is named by URI.
	resourceURN = "urn:chaperone:resource:"
)

// An Answer is a token with what RFC 8693, section 2.2.1, says beside it.
type Answer struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
	RequestID       string `json:"request_id"`
}

// An order is an exchange on its way.
type order struct {
	subject access.Principal
	actor   access.Principal // with a name; its Token.ID is "" for a client's assertion
	hop     access.Hop
	life    time.Duration // asked for; 0 is as long as may be
	bound   string        // thumbprint of the certificate that was shown
	// once are the assertions that the order rests on: nobody may have used them.
	once []identity.Asserted
	// login is an assertion that is only put into the form of a token, for its
	// subject and for all that it may do: there is no hop.
	login bool
}

// exchange serves the token endpoint.
func (s *Service) exchange(r *http.Request, in *form, id string) (any, *fault) {
	ctx := r.Context()
	if in.get("grant_type") != grantExchange {
		f := invalidRequest("only token exchange (RFC 8693) is served here")
		f.code = "unsupported_grant_type"
		return nil, f
	}
	if !in.bearer.Empty() {
		return nil, invalidClient(errors.New("an Authorization header"))
	}
	if in.get("scope") != "" {
		f := invalidRequest("there are no scopes here: narrow a token by audience and authorization_details")
		f.code = "invalid_scope"
		return nil, f
	}
	o, f := s.parties(ctx, in)
	if f == nil && !o.login {
		f = s.narrow(ctx, in, o)
	}
	if f == nil {
		f = s.useUp(ctx, o)
	}
	if f != nil {
		return nil, f
	}
	m, f := s.mint(o)
	if f != nil {
		return nil, f
	}
	if err := s.Recorder.Append(ctx, access.Synced, m.event(id)); err != nil {
		return nil, unavailable("the token cannot be recorded now, so it was not issued", err)
	}
	return Answer{AccessToken: m.token.Reveal(), IssuedTokenType: typeAccessToken, TokenType: "Bearer",
		ExpiresIn: int64(m.principal.Token.ExpiresAt.Sub(s.Clock()) / time.Second), RequestID: id}, nil
}

// parties learns whose rights are handed on, and to whom.
func (s *Service) parties(ctx context.Context, in *form) (*order, *fault) {
	if t := in.get("requested_token_type"); t != "" && t != typeAccessToken && t != typeJWT {
		return nil, invalidRequest("only access tokens are issued")
	}
	o := &order{bound: identity.ShownIn(ctx).Thumbprint()}
	subject, f := s.token(ctx, in, "subject_token", o)
	if f != nil {
		return nil, f
	}
	client, f := s.authenticateClient(ctx, in)
	if f != nil {
		return nil, f
	}
	o.subject, o.actor = subject, subject
	switch {
	case in.get("actor_token") != "" || in.get("actor_token_type") == typeCertificate:
		if o.actor, f = s.token(ctx, in, "actor_token", o); f != nil {
			return nil, f
		}
		if len(o.actor.Chain) > 0 {
			return nil, badToken("actor_token", errors.New("it is a delegated one, not the actor's own"))
		}
	case in.get("actor_token_type") != "":
		return nil, invalidRequest("there is an actor_token_type and no actor_token")
	case client == "" && in.get("subject_token_type") == typeSAML2 && in.get("authorization_details")+in.get("audience")+in.get("resource") == "":
		o.login = true
		return o, nil
	case client != "":
		o.actor = access.Principal{Issuer: Name, Subject: client, Subagent: client}
	}
	if f := s.mayAct(in, o); f != nil {
		return nil, f
	}
	o.hop = access.Hop{Issuer: o.actor.Issuer, Subject: o.actor.Subject, User: o.actor.User,
		Actor: cmp.Or(o.actor.Subagent, o.actor.Subject), Parent: subject.Token.ID}
	if o.actor.Token.ID != subject.Token.ID {
		o.hop.ActorToken = o.actor.Token.ID
	}
	return o, nil
}

// useUp makes sure that nobody has used the assertions, nor will.
func (s *Service) useUp(ctx context.Context, o *order) *fault {
	for _, a := range o.once {
		switch err := s.Once(ctx, a.Once, a.Until.Sub(s.Clock())); {
		case errors.Is(err, ErrSeen):
			return badToken("assertion", err)
		case err != nil:
			return unavailable("the gateway cannot check assertions now", err)
		}
	}
	return nil
}

// token verifies one of the tokens of a form.
func (s *Service) token(ctx context.Context, in *form, name string, o *order) (access.Principal, *fault) {
	raw, kind := in.get(name), in.get(name+"_type")
	switch {
	case (raw == "") != (kind == typeCertificate):
		return access.Principal{}, invalidRequest("a " + name + " is needed, unless its type is that of the client certificate")
	case !slices.Contains([]string{typeAccessToken, typeJWT, typeIDToken, typeSAML2, typeCertificate}, kind):
		return access.Principal{}, invalidRequest("the " + name + "_type must be that of a JWT, an access token, an id token or a SAML assertion")
	}
	var p access.Principal
	var err error
	if kind == typeSAML2 {
		var a identity.Asserted
		a, err = s.Verifier.VerifyAssertion(ctx, access.NewSecret(raw))
		p, o.once = a.Principal, append(o.once, a)
	} else {
		p, err = s.Verifier.Verify(ctx, access.NewSecret(raw))
	}
	switch {
	case err == nil:
		return p, nil
	case s.Rejected(err):
		return access.Principal{}, badToken(name, err)
	}
	return access.Principal{}, unavailable("the gateway cannot check tokens now", err)
}

// mayAct honours the subject token's own word on who may act for it.
func (s *Service) mayAct(in *form, o *order) *fault {
	if kind := in.get("subject_token_type"); kind == typeCertificate || kind == typeSAML2 { // they say nothing of that
		return nil
	}
	iss, sub, said, err := identity.MayAct(access.NewSecret(in.get("subject_token")))
	if err != nil {
		return badToken("subject_token", err)
	}
	if !said || sub == o.actor.Subject && (iss == "" && o.actor.Issuer == o.subject.Issuer || iss != "" && s.Verifier.NameOf(iss) == o.actor.Issuer) {
		return nil
	}
	return &fault{status: http.StatusBadRequest, code: "invalid_grant", reason: access.DeniedByRule,
		message: "the subject_token names another actor (may_act)"}
}

// narrow reads what this hop gives up and refuses whatever would be wider than
// what was handed on.
func (s *Service) narrow(ctx context.Context, in *form, o *order) *fault {
	if len(o.subject.Chain)+1 > s.config.Depth {
		return tooDeep(fmt.Sprintf("a chain has %d hops at most", s.config.Depth))
	}
	a := &access.Attenuation{}
	if raw := in.get("authorization_details"); raw != "" {
		var err error
		if a, o.life, err = identity.ParseDetails(raw); err != nil {
			return invalidDetails(err.Error())
		}
	}
	names, f := resources(in)
	if f != nil {
		return f
	}
	a.Resources = names
	bounded := len(names) > 0
	for i, h := range o.subject.Chain {
		before := h.Attenuation
		if before == nil {
			continue
		}
		if before.Depth != nil && *before.Depth < len(o.subject.Chain)-i {
			return tooDeep(fmt.Sprintf("hop %d allows %d further hops", i+1, *before.Depth))
		}
		bounded = bounded || len(before.Resources) > 0
		if err := a.Within(before); err != nil {
			if err.Error() == "resources" {
				return invalidTarget()
			}
			return invalidDetails(fmt.Sprintf("%s: wider than what hop %d was given", err, i+1))
		}
	}
	if !bounded {
		return &fault{status: http.StatusBadRequest, code: "invalid_target", reason: access.Unreadable,
			message: "name the resources that the token is for: audience=NAME, once for each"}
	}
	o.hop.Attenuation = a
	return s.reachable(ctx, o, names)
}

// reachable refuses resources that are not there or that no policy lets the new
// principal reach: nobody can tell the two apart.
func (s *Service) reachable(ctx context.Context, o *order, names []string) *fault {
	p := o.principal()
	for _, name := range names {
		r, ok := s.Resource(name)
		if !ok || !s.MayConnect(ctx, p, r) {
			return invalidTarget()
		}
	}
	return nil
}

func invalidTarget() *fault {
	return &fault{status: http.StatusBadRequest, code: "invalid_target", reason: access.UnknownResource,
		message: "a resource is unknown, or not one that this token may be for"}
}

func invalidDetails(message string) *fault {
	return &fault{status: http.StatusBadRequest, code: "invalid_authorization_details", reason: access.DeniedByRule, message: message}
}

func tooDeep(message string) *fault {
	return &fault{status: http.StatusBadRequest, code: "invalid_grant", reason: access.LimitExceeded, message: message}
}

// resources are the names in audience and resource parameters, each once.
func resources(in *form) ([]string, *fault) {
	names := slices.Clone(in.values["audience"])
	for _, uri := range in.values["resource"] {
		name, ok := strings.CutPrefix(uri, resourceURN)
		if !ok {
			return nil, invalidTarget()
		}
		names = append(names, name)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if err := (&access.Attenuation{Resources: names}).Check(); err != nil {
		return nil, invalidTarget()
	}
	return names, nil
}
