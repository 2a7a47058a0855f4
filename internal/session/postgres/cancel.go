package postgres

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"sync"
)

// cancelKeys maps the gateway's own BackendKeyData to sessions. The target's
// key never leaves the gateway, so a client can cancel nothing but its own
// session.
type cancelKeys struct {
	mu       sync.Mutex
	limit    int
	sessions map[uint32]cancelKey
}

type cancelKey struct {
	secret []byte
	cancel func(context.Context)
}

func newCancelKeys(limit int) *cancelKeys {
	return &cancelKeys{limit: limit, sessions: map[uint32]cancelKey{}}
}

// The lengths of a key's secret, in bytes: of protocol 3.0, of 3.2 as
// PostgreSQL makes it, and the most that a cancel request may hold.
const (
	shortSecret = 4
	longSecret  = 32
	maxSecret   = 256
)

// add makes a key with a secret of that length for a session; release forgets
// it.
func (k *cancelKeys) add(length int, cancel func(context.Context)) (pid uint32, secret []byte, release func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.sessions) >= k.limit {
		return 0, nil, nil, errors.New("too many sessions")
	}
	for {
		b := make([]byte, 4+length)
		rand.Read(b) // never fails
		// libpq shows the process id as a signed number: keep it positive.
		pid, secret = binary.BigEndian.Uint32(b[:4])>>1, b[4:]
		if _, taken := k.sessions[pid]; !taken && pid != 0 {
			break
		}
	}
	k.sessions[pid] = cancelKey{secret, cancel}
	return pid, secret, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.sessions, pid)
	}, nil
}

// find returns the session's cancel function when the secret is right.
func (k *cancelKeys) find(pid uint32, secret []byte) func(context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.sessions[pid]
	if subtle.ConstantTimeCompare(secret, key.secret) != 1 || !ok {
		return nil
	}
	return key.cancel
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
