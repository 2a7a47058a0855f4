// Package ticket hands what Envoy's authorizer let through over to the session
// service that Envoy takes it to. The authorizer leaves a permit and gets a
// ticket for it; the service redeems the ticket. A ticket is random, good once
// and for a short time, and names an entry in the memory of this process alone:
// nothing to verify is nothing to forge.
package ticket

import (
	"crypto/rand"
	"errors"
	"sync"
	"time"
)

// Header carries a ticket from the authorizer to Envoy. Envoy takes off what
// clients send by names that begin so.
const Header = "x-chaperone-ticket"

// Bounds on tickets. One is redeemed as soon as Envoy has passed the request on.
const (
	life    = 30 * time.Second
	maxOpen = 4096
)

// A Desk keeps the permits that were not used yet. It is safe for concurrent use.
type Desk[P any] struct {
	clock func() time.Time

	mu   sync.Mutex
	open map[string]entry[P]
}

type entry[P any] struct {
	permit  P
	expires time.Time
}

// NewDesk makes an empty Desk.
func NewDesk[P any](clock func() time.Time) *Desk[P] {
	return &Desk[P]{clock: clock, open: map[string]entry[P]{}}
}

// Admit keeps a permit and returns what redeems it. It fails when too many
// permits wait to be used.
func (d *Desk[P]) Admit(permit P) (ticket string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.clock()
	if len(d.open) >= maxOpen {
		for id, one := range d.open {
			if !now.Before(one.expires) {
				delete(d.open, id)
			}
		}
	}
	if len(d.open) >= maxOpen {
		return "", errors.New("too many connections are being opened")
	}
	id := rand.Text()
	d.open[id] = entry[P]{permit, now.Add(life)}
	return id, nil
}

// Redeem returns the permit of a ticket, once.
func (d *Desk[P]) Redeem(id string) (P, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	one, ok := d.open[id]
	delete(d.open, id)
	return one.permit, ok && d.clock().Before(one.expires)
}
