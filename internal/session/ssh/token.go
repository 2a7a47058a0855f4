package ssh

import (
	"math"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// A session goes on while its token lasts. A fresh token of the same principal
// and chain takes the old one's place (session.Registry.Renew); and a rule may
// grant a session more time than its token has, for what that rule allows.

// principal is whom the session acts for now: a fresh token's groups may be
// others.
func (s *session) principal() access.Principal {
	if p, ok := s.deps.Sessions.Principal(s.info.ID); ok {
		return p
	}
	return s.info.Principal
}

// goesOnUntil is until when the session may do what was decided.
func (s *session) goesOnUntil(d access.Decision) time.Time {
	end := s.principal().Token.ExpiresAt
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
func (v *verdict) outlived() *access.Denial {
	return &access.Denial{RequestID: v.request.ID, Reason: access.Unauthenticated, Rule: v.decision.Rule(), Resource: v.request.Resource.Name,
		Revision: v.decision.Revision, Message: "the token of this session has expired, and " + v.decision.Rule() + " does not let it go on so long",
		Hint: "connect again with a fresh certificate"}
}

// endWithToken has the act ended when the token expires, unless a rule or by
// then a fresh token lets it go on. stop ends the watch.
func (v *verdict) endWithToken(end func(error)) (stop func()) {
	s := v.session
	if !s.outlives {
		return func() {}
	}
	left := func() time.Duration { return s.goesOnUntil(v.decision).Sub(s.deps.Clock()) }
	var timer *time.Timer
	timer = time.AfterFunc(math.MaxInt64, func() {
		if left := left(); left > 0 {
			timer.Reset(left)
			return
		}
		end(v.outlived())
	})
	timer.Reset(left())
	return func() { timer.Stop() }
}

// endInTime has the act ended when it has run for as long as it may, or its token
// expires. stop ends the watch.
func (v *verdict) endInTime(end func(error)) (stop func()) {
	stopToken := v.endWithToken(end)
	limit := v.decision.Obligations.Limits.Time
	if left := v.use.Left(); left > 0 && (limit == 0 || left < limit) {
		limit = left
	}
	if limit == 0 {
		return stopToken
	}
	denial := v.limit("it ran longer than " + limit.Round(time.Millisecond).String())
	timer := time.AfterFunc(limit, func() { end(denial) })
	return func() {
		timer.Stop()
		stopToken()
	}
}
