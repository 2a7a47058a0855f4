// Package session owns the registry of live sessions: which there are, on all
// replicas, and the power to end them. Each session is leased in the store by
// the replica that serves it; a kill reaches every replica through the store's
// feed and is kept as a revocation, so that what is being opened at that moment
// is refused too. When the store is out of reach, sessions end before their
// leases do.
//
// It neither speaks a protocol (its subpackages do) nor records; it ends
// contexts, and whoever serves the session does the rest.
package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// Config is what a Registry needs. Zero values of the optional members are the
// defaults given with them.
type Config struct {
	Store   store.Store // required
	Replica string      // names this process in leases; random when empty

	Clock      func() time.Time      // time.Now
	Logger     *slog.Logger          // discards
	Registerer prometheus.Registerer // none

	MaxSessions     int           // at this replica: 10000
	MaxPerPrincipal int           // at this replica: 500
	LeaseTTL        time.Duration // sessions end this long after the store was last reached: 4s; 2s at least
	CountWithin     time.Duration // how long a kill waits for its sessions to be counted, before it ends them: 20ms. Listing a thousand takes longer; fewer are counted then
	TokenLife       time.Duration // how long a token lives at most, and so one of unknown expiry stays revoked: 24h
}

func (c Config) withDefaults() Config {
	if c.Replica == "" {
		c.Replica = "replica-" + strings.ToLower(rand.Text())
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.MaxSessions = cmp.Or(c.MaxSessions, 10_000)
	c.MaxPerPrincipal = cmp.Or(c.MaxPerPrincipal, 500)
	c.LeaseTTL = cmp.Or(c.LeaseTTL, 4*time.Second)
	c.CountWithin = cmp.Or(c.CountWithin, 20*time.Millisecond)
	c.TokenLife = cmp.Or(c.TokenLife, 24*time.Hour)
	return c
}

// A Registry keeps the live sessions of this replica and knows those of the
// others. Methods are safe for concurrent use. Run must be running: without it
// nothing opens.
type Registry struct {
	config  Config
	store   store.Store
	log     *slog.Logger
	owner   string // of this registry's leases
	metrics metrics
	gone    chan string // keys of leases to give back

	mu           sync.Mutex
	live         map[string]*live
	perPrincipal map[string]int
	revoked      revocations
	ready        chan struct{} // closed while revocations are known and the feed is followed
	heard        time.Time     // when the feed was last reached
	stopped      bool
}

// A live session of this replica. Its members are guarded by Registry.mu.
type live struct {
	session  access.Session
	deadline *store.Deadline
	cancel   context.CancelCauseFunc
	ended    *access.Denial // why, once it has ended
	leased   bool
	until    time.Time // the lease surely lasts until then
	former   []string  // ids of the tokens before a renewal, and of those that they came from
	changed  bool      // the lease tells of an older token
}

// What names a session in the store.
const (
	leasePrefix  = "session/"    // + id
	revokePrefix = "revocation/" // + random
	feedTopic    = "session"
)

// leastTTL is well above the second that reading an idle feed takes: a shorter
// lease would end sessions because nothing happens.
const leastTTL = 2 * time.Second

// openWait is how long Open waits for a registry that has just started.
const openWait = 2 * time.Second

// New returns a Registry on a store that is open.
func New(config Config) (*Registry, error) {
	config = config.withDefaults()
	if config.Store == nil {
		return nil, errors.New("session registry needs a store")
	}
	if config.LeaseTTL < leastTTL {
		return nil, fmt.Errorf("session leases of %s: %s at least", config.LeaseTTL, leastTTL)
	}
	r := &Registry{
		config: config, store: config.Store, log: config.Logger,
		owner: config.Replica + "/" + strings.ToLower(rand.Text()[:8]),
		gone:  make(chan string, 4096), live: map[string]*live{}, perPrincipal: map[string]int{},
		revoked: newRevocations(), ready: make(chan struct{}),
	}
	if err := r.metrics.register(config.Registerer, r); err != nil {
		return nil, fmt.Errorf("session metrics: %w", err)
	}
	return r, nil
}

// Open registers a session and returns its context: ctx, which also ends, with
// a *access.Denial as its cause, when the session is killed, its deadline
// passes, its lease is lost or the gateway stops. The function closes the
// session, with a cause in a few words; it may be called more than once and
// must be called. An error is a *access.Denial without a request id.
func (r *Registry) Open(ctx context.Context, s access.Session) (context.Context, func(cause string), error) {
	if s.Opened.IsZero() {
		s.Opened = r.config.Clock()
	}
	if err := r.await(ctx); err != nil {
		return nil, nil, r.unavailable(s, err)
	}
	value, err := encode(s)
	if err != nil {
		return nil, nil, r.unavailable(s, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	one := &live{session: s, cancel: cancel, deadline: store.NewDeadline(r.config.Clock, s.Deadline, 0)}
	if denial := r.enter(one); denial != nil {
		cancel(denial)
		return nil, nil, denial
	}
	if denial := r.lease(ctx, one, value); denial != nil {
		r.leave(one, denial)
		return nil, nil, denial
	}
	var once sync.Once
	return ctx, func(cause string) {
		once.Do(func() { r.leave(one, ended(s, "the session is over: "+cause)) })
	}, nil
}

// await waits until the registry knows what is revoked.
func (r *Registry) await(ctx context.Context) error {
	r.mu.Lock()
	ready, stopped := r.ready, r.stopped
	r.mu.Unlock()
	if stopped {
		return errors.New("the registry has stopped")
	}
	timer := time.NewTimer(openWait)
	defer timer.Stop()
	select {
	case <-ready:
		return nil
	case <-timer.C:
		return errors.New("the registry is not in touch with the store")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// encode leaves the groups out: nothing selects by them, and they can be many.
func encode(s access.Session) ([]byte, error) {
	if s.ID == "" || s.Deadline.IsZero() {
		return nil, errors.New("a session needs an id and a deadline")
	}
	s.Principal.Groups = nil
	return json.Marshal(s)
}

// enter adds the session, or says why not. From then on a kill finds it.
func (r *Registry) enter(one *live) *access.Denial {
	s := one.session
	r.mu.Lock()
	defer r.mu.Unlock()
	who := s.Principal.Key()
	switch {
	case r.stopped || !r.inTouch():
		return r.unavailable(s, errors.New("the registry is not in touch with the store"))
	case one.deadline.Passed():
		return ended(s, "the time of this session is over: its token has expired")
	case r.live[s.ID] != nil:
		return r.unavailable(s, fmt.Errorf("session %s is open already", s.ID))
	case len(r.live) >= r.config.MaxSessions:
		return r.unavailable(s, fmt.Errorf("%d sessions are open", len(r.live)))
	case r.perPrincipal[who] >= r.config.MaxPerPrincipal:
		return &access.Denial{Reason: access.LimitExceeded, Resource: s.Resource.Name,
			Message: fmt.Sprintf("%d sessions of yours are open", r.config.MaxPerPrincipal), Hint: "close some, then try again"}
	}
	for rev := range r.revoked.about(s.Principal) {
		if rev.refuses(s) {
			return rev.denial(s)
		}
	}
	r.live[s.ID] = one
	r.perPrincipal[who]++
	return nil
}

// lease takes the session's lease and returns the denial when that fails, or
// when the session was ended meanwhile.
func (r *Registry) lease(ctx context.Context, one *live, value []byte) *access.Denial {
	asked := time.Now()
	err := r.store.Acquire(ctx, leasePrefix+one.session.ID, r.owner, value, r.config.LeaseTTL)
	r.mu.Lock()
	defer r.mu.Unlock()
	if one.ended != nil {
		r.giveUp(one) // a second time: the first came before the lease
		return one.ended
	}
	if err != nil {
		return r.unavailable(one.session, err)
	}
	one.leased, one.until = true, asked.Add(r.config.LeaseTTL)
	return nil
}

// end ends the session's context. r.mu is held.
func (r *Registry) end(one *live, denial *access.Denial, why string) {
	if one.ended != nil {
		return
	}
	one.ended = denial
	one.cancel(denial)
	r.metrics.ended.WithLabelValues(why).Inc()
	if why != "closed" {
		r.log.Info("session ended", "session", one.session.ID, "cause", why, "resource", one.session.Resource.Name,
			"user", one.session.Principal.User, "subagent", one.session.Principal.Subagent)
	}
	r.giveUp(one)
}

// giveUp has the session's lease given back. Failing that it ends by itself.
func (r *Registry) giveUp(one *live) {
	select {
	case r.gone <- leasePrefix + one.session.ID:
	default:
	}
}

// leave takes the session out when nobody serves it any more.
func (r *Registry) leave(one *live, denial *access.Denial) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end(one, denial, "closed")
	if r.live[one.session.ID] != one {
		return
	}
	delete(r.live, one.session.ID)
	who := one.session.Principal.Key()
	if r.perPrincipal[who]--; r.perPrincipal[who] == 0 {
		delete(r.perPrincipal, who)
	}
}

// expire ends the session if its deadline has passed. r.mu is held.
func (r *Registry) expire(one *live) {
	if one.ended == nil && one.deadline.Passed() {
		r.end(one, ended(one.session, "the time of this session is over: its token has expired"), "deadline")
	}
}

// Check returns the *access.Denial with which a session of this replica has
// ended, also when only its deadline has just passed, or nil while it lives.
// Whoever serves several requests in one session asks before each.
func (r *Registry) Check(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.live[id]
	if one == nil {
		return &access.Denial{Reason: access.SessionEnded, Message: "there is no such session"}
	}
	if r.expire(one); one.ended != nil {
		return one.ended
	}
	return nil
}

// List returns the live sessions of all replicas, without the principals'
// groups, 10,000 at most.
func (r *Registry) List(ctx context.Context) ([]access.Session, error) {
	const most = 10_000
	var all []access.Session
	for after := ""; len(all) < most; {
		page, err := r.store.Holders(ctx, leasePrefix, after, store.MaxPage)
		if err != nil {
			return nil, fmt.Errorf("list sessions: %w", err)
		}
		for _, l := range page.Items {
			var s access.Session
			if err := json.Unmarshal(l.Value, &s); err != nil {
				return nil, fmt.Errorf("list sessions: lease %s: %w", l.Key, err)
			}
			all = append(all, s)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	return all, nil
}

// ended is the denial of a session whose time is over.
func ended(s access.Session, message string) *access.Denial {
	return &access.Denial{Reason: access.SessionEnded, Message: message, Resource: s.Resource.Name}
}

// unavailable is the denial for a fault of the gateway, which goes to the log.
func (r *Registry) unavailable(s access.Session, err error) *access.Denial {
	r.log.Error("session not opened", "session", s.ID, "resource", s.Resource.Name, "error", err)
	return &access.Denial{Reason: access.Unavailable, Message: "the gateway cannot open a session now",
		Hint: "try again; tell the operators if it lasts", Resource: s.Resource.Name}
}

// metrics of the sessions of this replica.
type metrics struct {
	ended *prometheus.CounterVec
	kills prometheus.Histogram
}

func (m *metrics) register(to prometheus.Registerer, r *Registry) error {
	m.ended = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chaperone_session_ended_total", Help: "Sessions of this replica that ended, by cause."}, []string{"cause"})
	m.kills = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "chaperone_session_kill_seconds",
		Help: "From a kill to its effect at this replica, by the two replicas' clocks.", Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 5}})
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "chaperone_session_open", Help: "Open sessions of this replica."}, func() float64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return float64(len(r.live))
	})
	if to == nil {
		return nil
	}
	return errors.Join(to.Register(m.ended), to.Register(m.kills), to.Register(open))
}
