package session

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// HTTPConfig is what HTTPSessions needs besides the registry.
type HTTPConfig struct {
	Idle    time.Duration // a session ends this long after its last request: 5m
	MaxLife time.Duration // however long its token is good: 12h

	// Opened runs before the first request of a session; when it fails, the
	// session is refused. Closed runs once after the last, with the cause. They
	// are where sessions are recorded; either may be nil.
	Opened func(ctx context.Context, s access.Session) error
	Closed func(ctx context.Context, s access.Session, cause string)
}

// HTTPSessions gathers requests into sessions: those of one principal with one
// token for one resource, until there was none for a while. Methods are safe
// for concurrent use. Run must be running for sessions to end when idle.
type HTTPSessions struct {
	registry *Registry
	config   HTTPConfig
	look     time.Duration // how often idle sessions are looked for

	mu      sync.Mutex
	groups  map[string]*group
	byID    map[string]*group // those that have opened
	stopped bool
	endings sync.WaitGroup // one per session that has opened
}

// A group is one session. Its members after ready are set before ready is
// closed; users and last are guarded by HTTPSessions.mu.
type group struct {
	key   string
	users int
	last  time.Time // when it last had a user

	ready   chan struct{}
	session access.Session
	ctx     context.Context
	close   func(cause string)
	err     error
}

// closedTime bounds Closed.
const closedTime = 5 * time.Second

// NewHTTPSessions returns HTTPSessions over a registry. Their number is bounded
// by the registry's.
func NewHTTPSessions(registry *Registry, config HTTPConfig) (*HTTPSessions, error) {
	if registry == nil {
		return nil, errors.New("HTTP sessions need a registry")
	}
	config.Idle = cmp.Or(config.Idle, 5*time.Minute)
	config.MaxLife = cmp.Or(config.MaxLife, 12*time.Hour)
	look := max(config.Idle/20, 10*time.Millisecond)
	return &HTTPSessions{registry: registry, config: config, look: look, groups: map[string]*group{}, byID: map[string]*group{}}, nil
}

// For returns the session of a request, opening it when there is none, and the
// request's context: ctx, which also ends when the session does, with the same
// *access.Denial as its cause. release must be called when the request is over.
// An error that a client should see is a *access.Denial without a request id.
func (h *HTTPSessions) For(ctx context.Context, p access.Principal, resource access.Resource, client string) (id string, requestCtx context.Context, release func(), err error) {
	g, err := h.join(ctx, p, resource, client)
	if err != nil {
		return "", nil, nil, err
	}
	requestCtx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(g.ctx, func() { cancel(context.Cause(g.ctx)) })
	var once sync.Once
	return g.session.ID, requestCtx, func() {
		once.Do(func() {
			stop()
			cancel(context.Canceled)
			h.part(g)
		})
	}, nil
}

// join finds or opens the group, and counts its caller in.
func (h *HTTPSessions) join(ctx context.Context, p access.Principal, resource access.Resource, client string) (*group, error) {
	key := groupKey(p.Key(), p.Token.ID, resource.Name, string(resource.Kind))
	for {
		g, opener, err := h.find(key)
		if err != nil {
			return nil, h.registry.unavailable(access.Session{Resource: resource}, err)
		}
		if opener {
			h.open(ctx, g, p, resource, client)
		}
		select {
		case <-g.ready:
		case <-ctx.Done():
			h.part(g)
			return nil, context.Cause(ctx)
		}
		if g.err != nil {
			h.part(g)
			return nil, g.err
		}
		if err := h.registry.Check(g.session.ID); err == nil {
			return g, nil
		} else if opener { // it ended before its first request
			h.part(g)
			return nil, err
		}
		h.part(g) // it ended between two requests: this one begins another
		h.drop(g)
	}
}

func (h *HTTPSessions) find(key string) (g *group, opener bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return nil, false, errors.New("the gateway is stopping")
	}
	if g = h.groups[key]; g == nil {
		g, opener = &group{key: key, ready: make(chan struct{})}, true
		h.groups[key] = g
	}
	g.users++
	return g, opener, nil
}

// open opens the group's session. It outlives the request that began it, so a
// client that leaves does not break it off for the others that wait for it.
func (h *HTTPSessions) open(ctx context.Context, g *group, p access.Principal, resource access.Resource, client string) {
	defer close(g.ready)
	ctx = context.WithoutCancel(ctx)
	now := h.registry.config.Clock()
	g.session = access.Session{ID: access.NewSessionID(), Principal: p, Resource: resource, Client: client, Opened: now, Deadline: now.Add(h.config.MaxLife)}
	if expires := p.Token.ExpiresAt; expires.Before(g.session.Deadline) {
		g.session.Deadline = expires
	}
	g.ctx, g.close, g.err = h.registry.Open(ctx, g.session)
	if g.err != nil {
		h.drop(g)
		return
	}
	if h.config.Opened != nil {
		if err := h.config.Opened(ctx, g.session); err != nil {
			g.err = h.registry.unavailable(g.session, err)
			g.close("not recorded")
			h.drop(g)
			return
		}
	}
	h.endings.Add(1)
	h.mu.Lock()
	h.byID[g.session.ID] = g
	h.mu.Unlock()
	context.AfterFunc(g.ctx, func() { // killed, expired, idle, …
		defer h.endings.Done()
		h.drop(g)
		g.close("over")
		if h.config.Closed != nil {
			ctx, cancel := context.WithTimeout(ctx, closedTime)
			defer cancel()
			h.config.Closed(ctx, g.session, context.Cause(g.ctx).Error())
		}
	})
}

// part counts a user out.
func (h *HTTPSessions) part(g *group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g.users--
	g.last = h.registry.config.Clock()
}

// drop takes the group out, so that the next request begins another.
func (h *HTTPSessions) drop(g *group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.groups[g.key] == g {
		delete(h.groups, g.key)
	}
	delete(h.byID, g.session.ID)
}

// Run ends idle sessions until ctx ends, then all of them, and returns nil when
// Closed has run for each.
func (h *HTTPSessions) Run(ctx context.Context) error {
	tick := time.NewTicker(h.look)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, g := range h.idle() {
				g.close("idle")
			}
		case <-ctx.Done():
			for _, g := range h.stop() {
				<-g.ready
				if g.err == nil {
					g.close("the gateway is stopping")
				}
			}
			h.endings.Wait()
			return nil
		}
	}
}

// idle takes out and returns the sessions without a request for long.
func (h *HTTPSessions) idle() (idle []*group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.registry.config.Clock()
	for key, g := range h.groups {
		if g.users == 0 && now.Sub(g.last) >= h.config.Idle {
			delete(h.groups, key)
			idle = append(idle, g)
		}
	}
	return idle
}

func (h *HTTPSessions) stop() (all []*group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	for _, g := range h.groups {
		all = append(all, g)
	}
	return all
}

// groupKey joins parts so that none can be shaped to look like others.
func groupKey(parts ...string) string {
	key := ""
	for _, p := range parts {
		key += strconv.Itoa(len(p)) + ":" + p
	}
	return key
}
