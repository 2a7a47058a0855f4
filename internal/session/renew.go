package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

const (
	// maxRenewed is how long after its opening a session can be renewed to last.
	maxRenewed = 24 * time.Hour
	// maxFormer bounds the token ids by which a session can be found and ended.
	maxFormer = 4096
)

// A renewal is a fresh token for live sessions, as replicas tell each other.
type renewal struct {
	Principal access.Principal `json:"principal"` // of the fresh token
	Client    string           `json:"client"`    // address that it came from
}

// renews reports whether the token of the renewal can go on with the session:
// the same principal, handed on by the same hops that gave up the same, at the
// same address, with a token that lasts longer, and is bound to a certificate
// when the other one was. HTTP requests bring their own.
func (n *renewal) renews(s access.Session) bool {
	p, old := n.Principal, s.Principal
	return (s.Resource.Kind == access.Postgres || s.Resource.Kind == access.SSH) && p.Key() == old.Key() && p.Instance == old.Instance && p.Job == old.Job &&
		(p.Token.Bound == "") == (old.Token.Bound == "") && slices.EqualFunc(p.Chain, old.Chain, sameHop) && sameHost(n.Client, s.Client) && p.Token.ExpiresAt.After(old.Token.ExpiresAt)
}

// sameHop compares hops but for the tokens that they went with: each renewal
// has others.
func sameHop(a, b access.Hop) bool {
	a.Parent, a.ActorToken, b.Parent, b.ActorToken = "", "", "", ""
	return reflect.DeepEqual(a, b)
}

// sameHost compares addresses without their ports; all of loopback is one.
func sameHost(a, b string) bool {
	one, two := hostOf(a), hostOf(b)
	return one.IsValid() && (one == two || one.IsLoopback() && two.IsLoopback())
}

func hostOf(address string) netip.Addr {
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	addr, _ := netip.ParseAddr(address) // the zero Addr is the same as none
	return addr.Unmap()
}

// Renewable counts the sessions, at all replicas, that Renew would renew.
func (r *Registry) Renewable(ctx context.Context, p access.Principal, client string) (n int, err error) {
	all, err := r.List(ctx)
	if err != nil {
		return 0, fmt.Errorf("renew: %w", err)
	}
	fresh := &renewal{Principal: p, Client: client}
	for _, s := range all {
		if fresh.renews(s) {
			n++
		}
	}
	return n, nil
}

// Renew gives the PostgreSQL and SSH sessions of the principal, opened with the same
// chain from the same address, its fresh token: they last as long as it does,
// at every replica, and 24 hours from their opening at most. From then on they
// are judged as p, whose groups may be others. Renew neither verifies nor
// records: the caller does, before.
func (r *Registry) Renew(ctx context.Context, p access.Principal, client string) error {
	if err := r.await(ctx); err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	n := &renewal{Principal: p, Client: client}
	b, err := json.Marshal(feedMessage{Renewal: n})
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	r.renewMatching(n)
	if _, err := r.store.Publish(ctx, feedTopic, b); err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	return nil
}

// A feedMessage is one entry of the feed: a revocation, or a renewal.
type feedMessage struct {
	*revocation
	Renewal *renewal `json:"renewal,omitempty"`
}

// renewMatching renews the sessions of this replica.
func (r *Registry) renewMatching(n *renewal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.revoked.revoke(n.Principal) {
		return
	}
	for _, one := range r.live {
		if r.expire(one); one.ended == nil && n.renews(one.session) && len(one.former) < maxFormer {
			r.renewSession(one, n.Principal)
		}
	}
}

// renewSession replaces the session's token. What the session was under stays
// a way to end it. r.mu is held.
func (r *Registry) renewSession(one *live, p access.Principal) {
	s := &one.session
	for _, id := range tokensOf(s.Principal) {
		if id != "" && !slices.Contains(one.former, id) {
			one.former = append(one.former, id)
		}
	}
	s.Principal = p
	until := p.Token.ExpiresAt
	if last := s.Opened.Add(maxRenewed); until.After(last) {
		until = last
	}
	if until.After(s.Deadline) {
		s.Deadline = until
		one.deadline = store.NewDeadline(r.config.Clock, until, 0)
	}
	one.changed = true
	r.log.Info("session renewed", "session", s.ID, "resource", s.Resource.Name, "token", p.Token.ID, "until", s.Deadline)
}

// tokensOf are the ids of the principal's token and of those that it came from.
func tokensOf(p access.Principal) []string {
	ids := []string{p.Token.ID}
	for _, h := range p.Chain {
		ids = append(ids, h.Parent, h.ActorToken)
	}
	return ids
}

// names reports whether the selector names the session, by a token that it was
// renewed from too: who takes that one back means this session.
func (one *live) names(sel Selector) bool {
	if sel.Matches(one.session) {
		return true
	}
	rest := sel
	if slices.Contains(one.former, sel.Token) {
		rest.Token = ""
	}
	if slices.Contains(one.former, sel.Chain) {
		rest.Chain = ""
	}
	return rest != sel && (rest == Selector{} || rest.Matches(one.session))
}

// Principal returns whom a live session of this replica acts for now: a fresh
// token may have come since it was opened.
func (r *Registry) Principal(id string) (access.Principal, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.live[id]
	if one == nil {
		return access.Principal{}, false
	}
	return one.session.Principal, true
}

// tellChanged puts renewed sessions into their leases, where other replicas
// read them.
func (r *Registry) tellChanged(ctx context.Context) {
	r.mu.Lock()
	var changed []access.Session
	for _, one := range r.live {
		if one.changed && one.leased && one.ended == nil {
			one.changed = false
			changed = append(changed, one.session)
		}
	}
	r.mu.Unlock()
	for _, s := range changed {
		value, err := encode(s)
		if err == nil {
			err = r.store.Acquire(ctx, leasePrefix+s.ID, r.owner, value, r.config.LeaseTTL)
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			r.log.Warn("a renewed session is listed with its old token", "session", s.ID, "error", err)
		}
	}
}
