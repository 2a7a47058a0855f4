package postgres

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
)

// cancelKeys maps the gateway's own BackendKeyData to sessions. The target's
// secret never leaves the gateway, so a client can cancel nothing but its own
// session.
type cancelKeys struct {
	mu       sync.Mutex
	limit    int
	count    int
	sessions map[uint32][]*cancelKey // several where targets share a process id
}

type cancelKey struct {
	secret []byte
	cancel func(context.Context)
}

func newCancelKeys(limit int) *cancelKeys {
	return &cancelKeys{limit: limit, sessions: map[uint32][]*cancelKey{}}
}

// The lengths of a key's secret, in bytes: of protocol 3.0, of 3.2 as
// PostgreSQL makes it, and the most that a cancel request may hold.
const (
	shortSecret = 4
	longSecret  = 32
	maxSecret   = 256
)

// add makes a key with a secret of that length for a session; release forgets
// it. The process id is one of the gateway's own when own is 0.
func (k *cancelKeys) add(length int, own uint32, cancel func(context.Context)) (pid uint32, secret []byte, release func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.count >= k.limit {
		return 0, nil, nil, errors.New("too many sessions")
	}
	secret = make([]byte, length)
	rand.Read(secret) // never fails
	for pid = own; pid == 0; {
		var b [4]byte
		rand.Read(b[:])
		// libpq shows the process id as a signed number: keep it positive.
		if pid = binary.BigEndian.Uint32(b[:]) >> 1; len(k.sessions[pid]) > 0 {
			pid = 0
		}
	}
	key := &cancelKey{secret, cancel}
	k.sessions[pid] = append(k.sessions[pid], key)
	k.count++
	return pid, secret, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.count--
		k.sessions[pid] = slices.DeleteFunc(k.sessions[pid], func(other *cancelKey) bool { return other == key })
		if len(k.sessions[pid]) == 0 {
			delete(k.sessions, pid)
		}
	}, nil
}

// find returns the session's cancel function when the secret is right.
func (k *cancelKeys) find(pid uint32, secret []byte) (cancel func(context.Context)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.sessions[pid] {
		if subtle.ConstantTimeCompare(secret, key.secret) == 1 {
			cancel = key.cancel
		}
	}
	return cancel
}

// cancelRequest serves a connection that only asks to cancel. As with
// PostgreSQL there is no answer, whatever happened.
func (c *connection) cancelRequest(ctx context.Context, body []byte) {
	if len(body) < 4+shortSecret || len(body) > 4+maxSecret {
		return
	}
	cancel := c.keys.find(binary.BigEndian.Uint32(body), body[4:])
	if cancel == nil {
		c.metrics.refused.WithLabelValues("cancel-key").Inc()
		c.deps.Log.Info("postgres cancel request with an unknown key", "client", c.source.String())
		return
	}
	cancel(ctx)
}
