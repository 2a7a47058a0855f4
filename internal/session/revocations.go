package session

import (
	"fmt"
	"iter"
	"maps"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds on the revocations in memory. Whoever holds a token can revoke it, and
// can get more tokens to revoke: the rest is kept for operators, whose kill must
// not fail because of them.
const (
	maxRevocations = 10_000
	maxByHolders   = maxRevocations / 2
)

// revocations are those in force. Those that name a token and nothing else, which
// can be thousands, are found by it: every request asks.
type revocations struct {
	byID    map[string]*revocation
	byToken map[string][]*revocation // by Selector.Token
	others  map[string]*revocation   // by id
}

func newRevocations() revocations {
	return revocations{byID: map[string]*revocation{}, byToken: map[string][]*revocation{}, others: map[string]*revocation{}}
}

// room reports whether one more can be kept.
func (r *revocations) room(most int) error {
	if len(r.byID) >= most {
		return fmt.Errorf("%d revocations are in force", len(r.byID))
	}
	return nil
}

// add keeps a revocation, unless it is kept already.
func (r *revocations) add(v *revocation) {
	if r.byID[v.ID] != nil {
		return
	}
	r.byID[v.ID] = v
	if v.Selector == (Selector{Token: v.Selector.Token}) {
		r.byToken[v.Selector.Token] = append(r.byToken[v.Selector.Token], v)
	} else {
		r.others[v.ID] = v
	}
}

// forget drops those that refuse nothing any more.
func (r *revocations) forget() {
	kept := newRevocations()
	for _, v := range r.byID {
		if !v.lasts.Passed() {
			kept.add(v)
		}
	}
	*r = kept
}

// about yields all that could refuse the principal, and others.
func (r *revocations) about(p access.Principal) iter.Seq[*revocation] {
	return func(yield func(*revocation) bool) {
		for _, id := range tokensOf(p) {
			for _, v := range r.byToken[id] {
				if id != "" && !yield(v) {
					return
				}
			}
		}
		for v := range maps.Values(r.others) {
			if !yield(v) {
				return
			}
		}
	}
}

// revoke reports whether the principal's token is revoked.
func (r *revocations) revoke(p access.Principal) bool {
	for v := range r.about(p) {
		if v.revokes(p) {
			return true
		}
	}
	return false
}
