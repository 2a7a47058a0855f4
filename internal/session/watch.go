package session

import (
	"context"
	"sync"

	"chaperone.dev/chaperone/internal/access"
)

// Watch returns a context that ends when the session does, with a
// *access.Denial as its cause; it has ended already for a session that is not
// known. Until release is called the session is in use, and so not idle. It is
// for whoever serves a request after For's release, as a streamed response is.
func (h *HTTPSessions) Watch(id string) (ended context.Context, release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.byID[id]; g != nil {
		g.users++
		return g.ctx, sync.OnceFunc(func() { h.part(g) })
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(&access.Denial{Reason: access.SessionEnded, Message: "the session is over", Hint: "send the request again"})
	return ctx, func() {}
}
