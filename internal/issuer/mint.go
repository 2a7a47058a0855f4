package issuer

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
)

// principal is who the new token speaks for, its TokenRef aside. It has the
// subject's user and groups and the actor's program. The workflow and the job
// stay the subject's where it has any: by handing a token on nobody gets into
// another one.
func (o *order) principal() access.Principal {
	p := o.subject
	p.Token = access.TokenRef{}
	if o.login {
		return p
	}
	p.Subagent, p.Instance = o.hop.Actor, o.actor.Instance
	p.Workflow, p.Job = cmp.Or(p.Workflow, o.actor.Workflow), cmp.Or(p.Job, o.actor.Job)
	p.Chain = append(slices.Clone(p.Chain), o.hop)
	return p
}

// A minted token has not left yet.
type minted struct {
	token     access.Secret
	id        string // jti
	principal access.Principal
}

// mint signs. The token ends with the first of: its life, what was asked for,
// the subject token, the actor token.
func (s *Service) mint(o *order) (*minted, *fault) {
	now := s.Clock().Truncate(time.Second)
	expires := earliest(now.Add(s.config.Life), o.subject.Token.ExpiresAt, o.actor.Token.ExpiresAt)
	if o.life > 0 {
		expires = earliest(expires, now.Add(o.life))
	}
	if !expires.After(now) {
		return nil, badToken("subject_token or actor_token", errors.New("it is about to expire"))
	}
	m := &minted{id: strings.ToLower(rand.Text()), principal: o.principal()}
	m.principal.Token.Bound = o.bound
	claims, err := s.claims(m, now, expires)
	if err != nil {
		return nil, unavailable("no token can be made now", err)
	}
	signed, err := s.sign(claims)
	if err != nil {
		return nil, unavailable("no token can be signed now", err)
	}
	if len(signed) > identity.MaxTokenBytes {
		f := invalidRequest("the token would be too long: it holds the subject's groups and the whole chain")
		f.reason = access.LimitExceeded
		return nil, f
	}
	m.token = access.NewSecret(string(signed))
	m.principal.Token = access.TokenRef{ID: identity.TokenID(m.token), IssuedAt: now.UTC(), ExpiresAt: expires.UTC(), Bound: o.bound}
	return m, nil
}

// claims are those of RFC 9068, with the chain (RFC 8693, section 4.1) and the
// principal's own.
func (s *Service) claims(m *minted, now, expires time.Time) ([]byte, error) {
	p := m.principal
	origin := s.Verifier.URLOf(p.Issuer)
	if origin == "" {
		return nil, errors.New("the issuer of the subject token is not configured any more")
	}
	act, err := s.act(p.Chain)
	if err != nil {
		return nil, err
	}
	claims := map[string]any{
		"iss": s.config.Issuer, "aud": []string{s.config.Issuer}, "sub": p.Subject, "client_id": p.Subagent, "jti": m.id,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": expires.Unix(), identity.OriginClaim: origin,
	}
	if act != nil {
		claims["act"] = act
	}
	for name, value := range map[string]string{"user": p.User, "subagent": p.Subagent, "instance": p.Instance, "workflow": p.Workflow, "job": p.Job} {
		if value != "" {
			claims[name] = value
		}
	}
	if p.Token.Bound != "" { // RFC 8705, section 3.1
		claims["cnf"] = map[string]any{"x5t#S256": p.Token.Bound}
	}
	if len(p.Groups) > 0 {
		claims["groups"] = p.Groups
	}
	return json.Marshal(claims)
}

// act nests the hops, the latest outermost.
func (s *Service) act(chain []access.Hop) (act map[string]any, err error) {
	for _, h := range chain {
		iss := s.Verifier.URLOf(h.Issuer)
		if iss == "" {
			iss = h.Issuer // that of a foreign chain: a URL already
		}
		if !strings.Contains(iss, "://") {
			return nil, errors.New("an issuer of the chain is not configured any more")
		}
		outer := map[string]any{"iss": iss, "sub": h.Subject}
		for name, value := range map[string]string{"user": h.User, "subagent": h.Actor,
			identity.ParentClaim: h.Parent, identity.ActorTokenClaim: h.ActorToken} {
			if value != "" {
				outer[name] = value
			}
		}
		if h.Attenuation != nil {
			outer[identity.AttenuationClaim] = h.Attenuation
		}
		if act != nil {
			outer["act"] = act
		}
		act = outer
	}
	return act, nil
}

func (s *Service) sign(claims []byte) ([]byte, error) {
	k, err := s.Keys.signing()
	if err != nil {
		return nil, err
	}
	headers := jws.NewHeaders()
	if err := errors.Join(headers.Set(jws.TypeKey, "at+jwt"), headers.Set(jws.KeyIDKey, k.kid)); err != nil {
		return nil, err
	}
	return jws.Sign(claims, jws.WithKey(jwa.ES256, k.private, jws.WithProtectedHeaders(headers)))
}

// event is the evidence of an issue.
func (m *minted) event(request string) access.Event {
	var hop access.Hop
	if n := len(m.principal.Chain); n > 0 {
		hop = m.principal.Chain[n-1]
	}
	input, err := json.Marshal(struct {
		JTI         string              `json:"jti"`
		Parent      string              `json:"parent"`
		Attenuation *access.Attenuation `json:"attenuation"`
	}{m.id, hop.Parent, hop.Attenuation})
	if err != nil { // texts and numbers always encode
		panic("issuer: " + err.Error())
	}
	return access.Event{Request: request, Admin: &access.Administrative{Actor: m.principal, Act: "token.issue", On: m.principal.Token.ID, Input: input}}
}
