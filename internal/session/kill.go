package session

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// A Selector names sessions. Members that are set must all match; All matches
// every session and stands alone.
type Selector struct {
	Session   string `json:"session,omitempty"`   // its id
	Token     string `json:"token,omitempty"`     // TokenRef.ID of the token or of one that it was exchanged from
	Principal string `json:"principal,omitempty"` // Principal.Key, or the subject
	User      string `json:"user,omitempty"`      // of the principal or its chain, whatever the case
	Subagent  string `json:"subagent,omitempty"`  // of the principal, or an actor of its chain
	Workflow  string `json:"workflow,omitempty"`
	Chain     string `json:"chain,omitempty"` // a token id, subject or actor anywhere in the delegation
	Resource  string `json:"resource,omitempty"`
	All       bool   `json:"all,omitempty"`
}

func (sel Selector) check() error {
	rest := sel
	rest.All = false
	empty := rest == Selector{}
	switch {
	case sel.All && !empty:
		return errors.New("all stands alone")
	case !sel.All && empty:
		return errors.New("which sessions? nothing is selected")
	}
	return nil
}

// Matches reports whether the selector names the session.
func (sel Selector) Matches(s access.Session) bool {
	if sel.check() != nil {
		return false
	}
	return (sel.Session == "" || sel.Session == s.ID) && (sel.Resource == "" || sel.Resource == s.Resource.Name) && sel.names(s.Principal)
}

// names reports whether the members about the principal match it.
func (sel Selector) names(p access.Principal) bool {
	inChain := func(match func(access.Hop) bool) bool { return slices.ContainsFunc(p.Chain, match) }
	return (sel.Token == "" || sel.Token == p.Token.ID || inChain(func(h access.Hop) bool { return h.Parent == sel.Token || h.ActorToken == sel.Token })) &&
		(sel.Principal == "" || sel.Principal == p.Key() || sel.Principal == p.Subject) &&
		(sel.User == "" || strings.EqualFold(sel.User, p.User) || inChain(func(h access.Hop) bool { return strings.EqualFold(h.User, sel.User) })) &&
		(sel.Subagent == "" || sel.Subagent == p.Subagent || inChain(func(h access.Hop) bool { return h.Actor == sel.Subagent })) &&
		(sel.Workflow == "" || sel.Workflow == p.Workflow) &&
		(sel.Chain == "" || inChain(func(h access.Hop) bool {
			return slices.Contains([]string{h.Parent, h.ActorToken, h.Actor, h.Subject}, sel.Chain)
		}))
}

// A revocation is a kill as it is kept: in the store for replicas that start or
// missed it, and in memory for sessions that are being opened.
type revocation struct {
	ID       string    `json:"id"`
	Selector Selector  `json:"selector"`
	Cause    string    `json:"cause"`
	By       string    `json:"by"`
	At       time.Time `json:"at"`
	Until    time.Time `json:"until"` // the store keeps it so long

	heard time.Time       // when it got here, by this replica's clock
	lasts *store.Deadline // memory keeps it so long
}

const (
	// opening is longer than any session takes from being accepted to Open.
	opening = time.Minute
	// kept is how long a kill can be read from the store by a replica that lost
	// touch. Its sessions have long ended by then.
	kept = time.Hour
	// skew is how far the clocks of replicas may be apart for a kill that is
	// read from the store to find exactly the sessions from before it.
	skew = 2 * time.Second
)

// refuses reports whether a session may not open because of the revocation: with
// a revoked token never again, else only if it began before the kill came.
func (v *revocation) refuses(s access.Session) bool {
	return v.revokes(s.Principal) || v.Selector.Matches(s) && !v.lasts.Passed() && !s.Opened.After(v.heard)
}

// ofTokens reports whether the selector is about principals alone: such a kill
// also revokes the tokens that they had.
func (sel Selector) ofTokens() bool {
	return sel.Session == "" && sel.Resource == "" && sel != (Selector{All: true})
}

// revokes reports whether the principal's token is refused: one that is named,
// or one of who is named that was issued until then. A token that does not say
// when it was issued may have been. Times in tokens are whole seconds.
func (v *revocation) revokes(p access.Principal) bool {
	return v.Selector.ofTokens() && v.Selector.names(p) && !v.lasts.Passed() &&
		(v.Selector.Token != "" || !p.Token.IssuedAt.After(v.At))
}

func (v *revocation) denial(s access.Session) *access.Denial {
	message := "an operator ended this session"
	if v.Cause != "" {
		message += ": " + v.Cause
	}
	return ended(s, message)
}

// Kill ends the sessions that the selector names, at every replica, and returns
// how many there were (fewer, where there are thousands). With a selector of principals alone, the tokens that they
// had until then stay refused, and all that was exchanged from them: a named
// token until it expires, others for TokenLife. Else what is opened afterwards
// is a new session. When the store fails, the sessions
// of this replica have ended all the same, and the error says that others may
// not have. Kill does not record who did it: the caller does.
func (r *Registry) Kill(ctx context.Context, sel Selector, cause string, by access.Principal) (int, error) {
	return r.kill(ctx, sel, cause, by, time.Time{}, maxRevocations)
}

// RevokeToken refuses the principal's token, and all that was exchanged from it,
// for as long as it would have been good, and ends their sessions.
func (r *Registry) RevokeToken(ctx context.Context, p access.Principal, cause string) error {
	_, err := r.kill(ctx, Selector{Token: p.Token.ID}, cause, p, p.Token.ExpiresAt.Add(opening), maxByHolders)
	return err
}

// kill is Kill; until, when set, is how long the revocation lasts, and most how
// many there may be.
func (r *Registry) kill(ctx context.Context, sel Selector, cause string, by access.Principal, until time.Time, most int) (int, error) {
	if err := sel.check(); err != nil {
		return 0, fmt.Errorf("kill: %w", err)
	}
	now := r.config.Clock().UTC()
	v := &revocation{ID: strings.ToLower(rand.Text()), Selector: sel, Cause: plain(cause), By: by.User, At: now, Until: now.Add(kept)}
	if sel.ofTokens() {
		v.Until = now.Add(r.config.TokenLife)
	}
	r.mu.Lock()
	full := r.revoked.room(most)
	r.mu.Unlock()
	if full != nil {
		return 0, fmt.Errorf("kill: %w", full)
	}
	counting := r.count(ctx, sel)
	all, quick := counting.within(r.config.CountWithin)
	switch {
	case !until.IsZero():
		v.Until = until
	case !all.expires.IsZero():
		v.Until = all.expires.Add(opening) // it is no good after that anyway
	}
	// The other replicas hear of it while this one ends its own.
	r.keep(v, r.config.Clock())
	announced := make(chan error, 1)
	go func() { announced <- r.announce(ctx, v) }()
	here := r.endMatching(v, everySession)
	told := <-announced
	if !quick {
		all = <-counting
	}
	n := max(all.sessions, here)
	r.log.Info("kill", "selector", sel, "cause", v.Cause, "by", by.User, "sessions", n)
	if err := errors.Join(all.err, told); err != nil {
		return n, fmt.Errorf("kill: %w", err)
	}
	return n, nil
}

// A count is how many sessions a selector names, at all replicas, and when the
// token that it names expires, as far as a session has it.
type count struct {
	sessions int
	expires  time.Time
	err      error
}

type counting chan count

// count lists the sessions beside the kill.
func (r *Registry) count(ctx context.Context, sel Selector) counting {
	result := make(counting, 1)
	go func() {
		all, err := r.List(ctx)
		c := count{err: err}
		for _, s := range all {
			if !sel.Matches(s) {
				continue
			}
			c.sessions++
			if sel.Token != "" && s.Principal.Token.ID == sel.Token {
				c.expires = s.Principal.Token.ExpiresAt
			}
		}
		result <- c
	}()
	return result
}

// within waits a moment for the count, and reports whether it came.
func (c counting) within(d time.Duration) (count, bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case got := <-c:
		return got, true
	case <-timer.C:
		return count{}, false
	}
}

// Revoked reports whether the principal's token has been revoked, or any that it
// was exchanged from. An error means that it is not known: the store is out of
// reach.
func (r *Registry) Revoked(ctx context.Context, p access.Principal) (bool, error) {
	if err := r.await(ctx); err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.inTouch() {
		return false, errors.New("the registry is not in touch with the store")
	}
	return r.revoked.revoke(p), nil
}

// announce publishes the revocation at once, stores it, and publishes it again:
// a replica that reads the store before it is there finds it in the feed then.
func (r *Registry) announce(ctx context.Context, v *revocation) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	first := make(chan error, 1)
	go func() {
		_, err := r.store.Publish(ctx, feedTopic, b)
		first <- err
	}()
	_, put := r.store.Put(ctx, revokePrefix+v.ID, b, 0)
	published := <-first
	_, again := r.store.Publish(ctx, feedTopic, b)
	return errors.Join(put, published, again)
}

// take applies a revocation from the feed.
func (r *Registry) take(payload []byte) {
	var v revocation
	message := feedMessage{revocation: &v}
	if err := json.Unmarshal(payload, &message); err != nil {
		r.log.Error("revocation not understood", "error", err)
		return
	}
	if message.Renewal != nil {
		r.renewMatching(message.Renewal)
		return
	}
	if r.knows(v.ID) { // published here, or read from the store: what opened since is not meant
		return
	}
	r.apply(&v)
	r.metrics.kills.Observe(max(0, r.config.Clock().Sub(v.At).Seconds()))
}

// apply ends what the revocation names here, and keeps it for what is being
// opened. It returns how many sessions it ended.
func (r *Registry) apply(v *revocation) int {
	r.keep(v, r.config.Clock())
	return r.endMatching(v, everySession)
}

func everySession(access.Session) bool { return true }

func (r *Registry) knows(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revoked.byID[id] != nil
}

func (r *Registry) keep(v *revocation, heard time.Time) {
	lasts := heard.Add(opening)
	if v.Selector.ofTokens() {
		lasts = v.Until
	}
	v.heard, v.lasts = heard, store.NewDeadline(r.config.Clock, lasts, 0)
	if v.lasts.Passed() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked.add(v)
}

func (r *Registry) endMatching(v *revocation, also func(access.Session) bool) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.live {
		if one.ended == nil && one.names(v.Selector) && also(one.session) {
			r.end(one, v.denial(one.session), "killed")
			n++
		}
	}
	return n
}

// reload applies all stored revocations and returns the position in the feed
// from which to go on. It runs at the start and whenever the feed was lost.
func (r *Registry) reload(ctx context.Context) (store.Position, error) {
	at, err := r.store.Tail(ctx, feedTopic)
	if err != nil {
		return 0, err
	}
	return at, r.eachRevocation(ctx, func(_ store.Record, v *revocation) error {
		if r.knows(v.ID) {
			return nil
		}
		if v.Selector.Token != "" {
			r.apply(v)
			return nil
		}
		r.keep(v, v.At.Add(skew))
		r.endMatching(v, func(s access.Session) bool { return !s.Opened.After(v.At.Add(skew)) })
		return nil
	})
}

func (r *Registry) eachRevocation(ctx context.Context, fn func(store.Record, *revocation) error) error {
	for after := ""; ; {
		page, err := r.store.List(ctx, revokePrefix, after, store.MaxPage)
		if err != nil {
			return err
		}
		for _, record := range page.Items {
			var v revocation
			if err := json.Unmarshal(record.Value, &v); err != nil {
				return fmt.Errorf("stored revocation %s: %w", record.Key, err)
			}
			if err := fn(record, &v); err != nil {
				return err
			}
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}

// forgetRevocations removes those that no longer refuse anything.
func (r *Registry) forgetRevocations(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := r.forgetOnce(ctx); err != nil && ctx.Err() == nil {
				r.log.Warn("old revocations not removed", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (r *Registry) forgetOnce(ctx context.Context) error {
	r.mu.Lock()
	r.revoked.forget()
	r.mu.Unlock()
	return r.eachRevocation(ctx, func(record store.Record, v *revocation) error {
		if r.config.Clock().Before(v.Until) {
			return nil
		}
		if err := r.store.Delete(ctx, record.Key, record.Version); err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
		return nil
	})
}

// plain keeps an operator's words fit for a client's terminal, and short.
func plain(cause string) string {
	const most = 200
	cause = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(cause, " "))
	if runes := []rune(cause); len(runes) > most {
		cause = string(runes[:most]) + "…"
	}
	return strings.TrimSpace(cause)
}
