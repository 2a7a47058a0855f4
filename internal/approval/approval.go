// Package approval owns the life of held requests: it files the question, takes
// reviewers' answers, and lets exactly what was granted run, once. One store
// record holds one approval; every step is taken under a lock that all replicas
// share, recorded first, then stored by compare-and-swap:
//
//	pending ─┬─► granted ─┬─► consumed
//	         ├─► refused  ├─► expired
//	         ├─► expired  └─► abandoned
//	         └─► abandoned
//
// It refuses what it cannot bind, record or store, reviewers who ask for
// themselves, and every step that the drawing does not have. It decides neither
// what needs approval (policy) nor who may sign in as a reviewer (console).
package approval

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// The errors that callers branch on. A step that the state does not allow is a
// *StateError; a store that cannot be reached is store.ErrUnavailable.
var (
	// ErrNotFound: there is no such approval, or not any more.
	ErrNotFound = errors.New("no such approval")
	// ErrNotReviewer: the reviewer is not of the groups that may answer, or is
	// not somebody who can be told from the requester.
	ErrNotReviewer = errors.New("not a reviewer of this request")
	// ErrOwnRequest: the reviewer is the requester, or one of those it acts for.
	ErrOwnRequest = errors.New("nobody reviews their own request")
	// ErrAnswered: this reviewer has answered already.
	ErrAnswered = errors.New("this reviewer has answered already")
	// ErrDigest: what is to run is not what was granted.
	ErrDigest = errors.New("what is to run is not what was granted")
	// ErrTooMany: too many questions are open, or come too fast.
	ErrTooMany = errors.New("too many requests for approval")
)

// A StateError says that an approval is in a state in which the step is not
// possible.
type StateError struct {
	ID    string
	State access.ApprovalState
}

// Error says what became of the approval.
func (e *StateError) Error() string { return "approval " + e.ID + " is " + string(e.State) }

// A Recorder writes a step down before it takes effect. When it fails, the step
// is not taken.
type Recorder interface {
	Append(ctx context.Context, d access.Durability, evs ...access.Event) error
}

// Config is what a Service needs. Zero values of the optional members are the
// defaults given with them.
type Config struct {
	Store    store.Store // required
	Recorder Recorder    // required
	Replica  string      // names this process in leases; random when empty

	Clock      func() time.Time      // time.Now
	Logger     *slog.Logger          // discards
	Registerer prometheus.Registerer // none

	MaxPending             int           // open questions of all replicas: 1000
	MaxPendingPerPrincipal int           // 20
	MaxAsksPerMinute       int           // new questions of one principal, at this replica: 300
	LeaseTTL               time.Duration // a leased ask outlives its replica by this: 4s
	Sweep                  time.Duration // how often expiry is looked for: 1s
	Retention              time.Duration // how long ended approvals can be shown: 24h
	MaxKept                int           // ended approvals that are kept: 5000

	// AllowSameSubagent lets a reviewer's token come through the program that
	// the requester's came through. Otherwise such a reviewer is refused: the
	// program may be what has gone astray.
	AllowSameSubagent bool

	Webhooks []Webhook
	// HTTPClient delivers webhooks; nil is one that follows no redirects.
	HTTPClient *http.Client
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
	c.MaxPending = cmp.Or(c.MaxPending, 1000)
	c.MaxPendingPerPrincipal = cmp.Or(c.MaxPendingPerPrincipal, 20)
	c.MaxAsksPerMinute = cmp.Or(c.MaxAsksPerMinute, 300)
	c.MaxKept = cmp.Or(c.MaxKept, 5000)
	c.LeaseTTL = cmp.Or(c.LeaseTTL, 4*time.Second)
	c.Sweep = cmp.Or(c.Sweep, time.Second)
	c.Retention = cmp.Or(c.Retention, 24*time.Hour)
	return c
}

// A Service keeps approvals. Methods are safe for concurrent use, also with
// those of other replicas over the same store. Run must be running: it renews
// the leases of asks, ends what has expired and passes on what other replicas
// did.
type Service struct {
	config  Config
	store   store.Store
	log     *slog.Logger
	owner   string // of this service's leases
	live    *liveSet
	waiters *waiters
	turns   *turns
	paces   *paces
	hooks   []*hook
	metrics metrics

	mu   sync.Mutex
	held map[string]struct{} // ids whose lease this replica renews
}

// New returns a Service on a store that is open.
func New(config Config) (*Service, error) {
	config = config.withDefaults()
	if config.Store == nil || config.Recorder == nil {
		return nil, errors.New("approvals need a store and a recorder")
	}
	s := &Service{
		config: config, store: config.Store, log: config.Logger,
		owner: config.Replica + "/" + strings.ToLower(rand.Text()[:8]),
		live:  newLiveSet(config), waiters: newWaiters(), turns: newTurns(),
		paces: newPaces(config.MaxAsksPerMinute), held: map[string]struct{}{},
	}
	for _, w := range config.Webhooks {
		h, err := newHook(w, config, &s.metrics)
		if err != nil {
			return nil, err
		}
		s.hooks = append(s.hooks, h)
	}
	if err := s.metrics.register(config.Registerer, s.live); err != nil {
		return nil, fmt.Errorf("approval metrics: %w", err)
	}
	return s, nil
}

// Run works until ctx ends, then gives its leases up and returns nil. Whoever
// waits should have been sent away before.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.follow(ctx) })
	wg.Go(func() { s.renew(ctx) })
	wg.Go(func() { s.sweep(ctx) })
	for _, h := range s.hooks {
		wg.Go(func() { h.run(ctx) })
	}
	wg.Wait()
	s.letGo()
	return nil
}

// metrics are few and carry no names of people or resources.
type metrics struct {
	steps *prometheus.CounterVec
	hooks *prometheus.CounterVec
}

func (m *metrics) register(r prometheus.Registerer, live *liveSet) error {
	m.steps = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chaperone_approval_steps_total", Help: "Steps of approvals that this replica took, by the state they led to."}, []string{"state"})
	m.hooks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chaperone_approval_webhook_total", Help: "Webhook deliveries: delivered, failed, dropped."}, []string{"result"})
	pending := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "chaperone_approval_pending", Help: "Open questions of all replicas, as this one knows."}, func() float64 { return float64(live.pendingCount()) })
	if r == nil {
		return nil
	}
	return errors.Join(r.Register(m.steps), r.Register(m.hooks), r.Register(pending))
}
