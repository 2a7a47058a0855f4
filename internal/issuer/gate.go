package issuer

import (
	"container/list"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds on what may be asked before anything is known of who asks.
const (
	perSource  = 20 // requests a second
	burst      = 60
	maxSources = 4096 // remembered
	atOnce     = 64   // requests under way
)

// A gate bounds requests: by source, and all at once.
type gate struct {
	clock func() time.Time
	slots chan struct{}

	mu     sync.Mutex
	recent *list.List // of *source, the latest first
	index  map[string]*list.Element
}

type source struct {
	address string
	limiter *rate.Limiter
}

func newGate(clock func() time.Time) *gate {
	return &gate{clock: clock, slots: make(chan struct{}, atOnce), recent: list.New(), index: map[string]*list.Element{}}
}

// enter lets a request in until release is called, or says that there are too
// many.
func (g *gate) enter(address string) (release func(), f *fault) {
	if !g.limiter(address).AllowN(g.clock(), 1) {
		return nil, tooMany()
	}
	select {
	case g.slots <- struct{}{}:
		return func() { <-g.slots }, nil
	default:
		return nil, tooMany()
	}
}

func tooMany() *fault {
	return &fault{status: http.StatusTooManyRequests, code: "temporarily_unavailable", reason: access.LimitExceeded, message: "too many requests; try again in a second"}
}

func (g *gate) limiter(address string) *rate.Limiter {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.index[address]; e != nil {
		g.recent.MoveToFront(e)
		return e.Value.(*source).limiter
	}
	s := &source{address: address, limiter: rate.NewLimiter(perSource, burst)}
	g.index[address] = g.recent.PushFront(s)
	if g.recent.Len() > maxSources {
		last := g.recent.Back()
		g.recent.Remove(last)
		delete(g.index, last.Value.(*source).address)
	}
	return s.limiter
}
