package issuer

import (
	"errors"
	"net/http"

	"chaperone.dev/chaperone/internal/access"
)

// revoke serves RFC 7009. Whoever holds a token may take it back: a thief who
// does so only helps. The answer is the same for a token that is no good.
func (s *Service) revoke(r *http.Request, in *form, id string) (any, *fault) {
	raw := in.get("token")
	if raw == "" {
		return nil, invalidRequest("a token is needed")
	}
	p, err := s.Verifier.Examine(r.Context(), access.NewSecret(raw))
	switch {
	case err != nil && s.Rejected(err):
		return struct{}{}, nil
	case err != nil:
		return nil, unavailable("the gateway cannot check tokens now", err)
	}
	event := access.Event{Request: id, Admin: &access.Administrative{Actor: p, Act: "token.revoke", On: p.Token.ID}}
	if err := s.Recorder.Append(r.Context(), access.Synced, event); err != nil {
		return nil, unavailable("the revocation cannot be recorded now", err)
	}
	if err := s.Revoker.RevokeToken(r.Context(), p, "its holder revoked it"); err != nil {
		return nil, unavailable("the revocation may not have reached every replica; repeat it", err)
	}
	return struct{}{}, nil
}

// introspect serves RFC 7662, for operators and resource servers.
func (s *Service) introspect(r *http.Request, in *form, _ string) (any, *fault) {
	if in.bearer.Empty() {
		return nil, invalidClient(errors.New("no bearer token"))
	}
	caller, err := s.Verifier.Verify(r.Context(), in.bearer)
	switch {
	case err != nil && s.Rejected(err):
		return nil, invalidClient(err)
	case err != nil:
		return nil, unavailable("the gateway cannot check tokens now", err)
	case !s.MayIntrospect(caller):
		f := invalidClient(errors.New("neither an operator nor a resource server"))
		f.status, f.code, f.message = http.StatusForbidden, "access_denied", "only operators and resource servers may ask about tokens"
		return nil, f
	}
	raw := in.get("token")
	if raw == "" {
		return nil, invalidRequest("a token is needed")
	}
	p, err := s.Verifier.Examine(r.Context(), access.NewSecret(raw))
	switch {
	case err != nil && s.Rejected(err):
		return map[string]any{"active": false}, nil
	case err != nil:
		return nil, unavailable("the gateway cannot check tokens now", err)
	}
	out := map[string]any{"active": true, "token_type": "Bearer", "iss": s.Verifier.URLOf(p.Issuer), "sub": p.Subject, "client_id": p.Subagent,
		"username": p.User, "exp": p.Token.ExpiresAt.Unix(), "token_id": p.Token.ID, "groups": p.Groups}
	if p.Token.Bound != "" { // RFC 8705, section 3.2
		out["cnf"] = map[string]any{"x5t#S256": p.Token.Bound}
	}
	if !p.Token.IssuedAt.IsZero() {
		out["iat"] = p.Token.IssuedAt.Unix()
	}
	act, err := s.act(p.Chain)
	if err != nil {
		return nil, unavailable("the chain cannot be shown", err)
	}
	if act != nil {
		out["act"] = act
	}
	return out, nil
}
