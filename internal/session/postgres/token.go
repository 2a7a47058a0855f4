package postgres

import (
	"math"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// A session goes on while its token lasts. A fresh token of the same principal
// and chain takes the old one's place (session.Registry.Renew); and a rule may
// grant a session more time than its token has, for what that rule allows.

// renewPrincipal takes over the principal of a fresh token: whose groups may be
// others, and with them what is masked.
func (s *session) renewPrincipal() error {
	p, ok := s.deps.Sessions.Principal(s.info.ID)
	if !ok || p.Token.ID == s.info.Principal.Token.ID {
		return nil
	}
	old := s.info.Principal
	s.info.Principal, s.wallView = p, nil
	for setting, attribute := range s.resource.Claims {
		if p.Attribute(attribute) != old.Attribute(attribute) {
			d := s.newDenial(access.SessionEnded, "the fresh token has another "+attribute+", which "+setting+" was set from")
			d.Hint = "connect again"
			return &fatalError{r: refuse(d, "claims changed")}
		}
	}
	return nil
}

// tokenEnd is when the session's token expires, be it a fresh one.
func (s *session) tokenEnd() time.Time {
	if p, ok := s.deps.Sessions.Principal(s.info.ID); ok {
		return p.Token.ExpiresAt
	}
	return s.info.Principal.Token.ExpiresAt
}

// goesOnUntil is until when the session may do what was decided.
func (s *session) goesOnUntil(d access.Decision) time.Time {
	end := s.tokenEnd()
	if granted := s.info.Opened.Add(d.Obligations.SessionMax); granted.After(end) {
		return granted
	}
	return end
}

// mayGoOn reports whether the token still serves for what was decided. Where no
// rule lets a session outlive its token, the registry ends it with that.
func (s *session) mayGoOn(v *verdict) bool {
	return !s.outlives || s.deps.Clock().Before(s.goesOnUntil(v.decision))
}

// outlived is the denial of what only a token that has not expired may do.
func (s *session) outlived(request string, d access.Decision) *access.Denial {
	return &access.Denial{
		RequestID: request, Reason: access.Unauthenticated, Rule: d.Rule(), Resource: s.resource.Access.Name, Revision: d.Revision,
		Message: "the token of this session has expired, and " + d.Rule() + " does not let it go on so long",
		Hint:    "connect again with a fresh token, or renew the session in time",
	}
}

// endWithToken has the execution cancelled when the token expires, unless a rule
// or by then a fresh token lets it go on.
func (e *execution) endWithToken(s *session) {
	if !s.outlives {
		return
	}
	up, clock := s.up, s.deps.Clock
	left := func() time.Duration { return s.goesOnUntil(e.decision).Sub(clock()) }
	e.expiry = time.AfterFunc(math.MaxInt64, func() {
		if left := left(); left > 0 {
			e.expiry.Reset(left)
			return
		}
		e.expired.Store(true)
		up.cancel()
	})
	e.expiry.Reset(left())
}
