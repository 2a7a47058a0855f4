package session

import (
	"context"

	"chaperone.dev/chaperone/internal/access"
)

// Watch returns a context that ends when the session does, with a
// *access.Denial as its cause; it has ended already for a session that is not
// known. For whoever serves a request after For's release, as a streamed
// response is.
func (h *HTTPSessions) Watch(id string) context.Context {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.byID[id]; g != nil {
		return g.ctx
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(&access.Denial{Reason: access.SessionEnded, Message: "the session is over", Hint: "send the request again"})
	return ctx
}
