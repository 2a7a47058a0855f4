package kube

import (
	"crypto/rand"
	"errors"
	"net/http"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// TicketHeader carries the ticket from the authorizer to the service. Envoy
// takes off what clients send by names that begin so.
const TicketHeader = "x-chaperone-ticket"

// A Permit is a request that was let through and is on record: what the API
// server is asked for, as whom, and what is to be done to the answer.
type Permit struct {
	Request  access.Request // its action is of Kubernetes
	Decision access.Decision
	// Impersonate are the headers by which the API server acts as the caller.
	Impersonate http.Header
}

// Bounds on tickets. One is redeemed as soon as Envoy has passed the request on.
const (
	ticketLife = 30 * time.Second
	maxTickets = 4096
)

// tickets are the permits that were not used yet. A ticket is random, good for
// one request and for a short time; it never leaves this machine.
type tickets struct {
	clock func() time.Time

	mu   sync.Mutex
	open map[string]ticket
}

type ticket struct {
	permit  Permit
	expires time.Time
}

func newTickets(clock func() time.Time) *tickets {
	return &tickets{clock: clock, open: map[string]ticket{}}
}

// admit keeps a permit and returns what redeems it.
func (t *tickets) admit(p Permit) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	if len(t.open) >= maxTickets {
		for id, one := range t.open {
			if !now.Before(one.expires) {
				delete(t.open, id)
			}
		}
	}
	if len(t.open) >= maxTickets {
		return "", errors.New("too many streams are being opened")
	}
	id := rand.Text()
	t.open[id] = ticket{p, now.Add(ticketLife)}
	return id, nil
}

// redeem returns the permit of a ticket, once.
func (t *tickets) redeem(id string) (Permit, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.open[id]
	delete(t.open, id)
	return one.permit, ok && t.clock().Before(one.expires)
}
