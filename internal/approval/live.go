package approval

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// A note is what replicas tell one another about a step.
type note struct {
	ID        string               `json:"id"`
	State     access.ApprovalState `json:"state"`
	Version   uint64               `json:"version"`
	Expires   time.Time            `json:"expires"`
	Period    time.Duration        `json:"period"`
	Principal string               `json:"principal"`
	OnLease   bool                 `json:"on_lease,omitempty"`
	From      string               `json:"from"` // the replica that took the step
}

func noteOf(e *entry, from string) note {
	return note{ID: e.Approval.ID, State: e.state(), Version: e.version, Expires: e.Approval.Expires, Period: e.period(),
		Principal: e.principal(), OnLease: e.onLease(), From: from}
}

func (n note) encode() []byte {
	b, err := json.Marshal(n)
	if err != nil { // strings, numbers and a time
		panic("approval: note: " + err.Error())
	}
	return b
}

func (n note) live() bool { return n.State == access.Pending || n.State == access.Granted }

// A liveSet is what this replica knows of all approvals that can still change:
// for counting, for finding what expires, and for deadlines that no clock can
// put off. It is never what a decision rests on; that is the store.
type liveSet struct {
	clock            func() time.Time
	most, mostOfEach int

	mu      sync.Mutex
	byID    map[string]*liveOne
	pending map[string]int // per principal
	total   int            // pending
}

type liveOne struct {
	note     note
	deadline *store.Deadline
	reserved bool // being filed: counts, but is not in the store yet
}

func newLiveSet(c Config) *liveSet {
	return &liveSet{clock: c.Clock, most: c.MaxPending, mostOfEach: c.MaxPendingPerPrincipal, byID: map[string]*liveOne{}, pending: map[string]int{}}
}

func (l *liveSet) newDeadline(e *entry) *store.Deadline {
	return store.NewDeadline(l.clock, e.Approval.Expires, e.period())
}

// deadline returns the deadline of the entry's present state: the one it had
// when this replica first saw it so.
func (l *liveSet) deadline(e *entry) *store.Deadline {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.byID[e.Approval.ID]
	if one != nil && !one.reserved && one.note.State == e.state() && one.note.Expires.Equal(e.Approval.Expires) {
		return one.deadline
	}
	d := l.newDeadline(e)
	if one == nil || one.note.Version < e.version {
		l.set(&liveOne{note: noteOf(e, ""), deadline: d})
	}
	return d
}

// reserve counts an ask that is about to be filed, or refuses it.
func (l *liveSet) reserve(e *entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch n := noteOf(e, ""); {
	case l.byID[n.ID] != nil:
		return nil // the same request asks again
	case l.total >= l.most:
		return fmt.Errorf("%w: %d are open", ErrTooMany, l.total)
	case l.pending[n.Principal] >= l.mostOfEach:
		return fmt.Errorf("%w: %d of yours are open", ErrTooMany, l.mostOfEach)
	default:
		l.set(&liveOne{note: n, reserved: true})
		return nil
	}
}

// unreserve takes a reservation back that led to nothing.
func (l *liveSet) unreserve(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.byID[id]; one != nil && one.reserved {
		l.drop(id)
	}
}

// update takes a step over unless a newer one is known.
func (l *liveSet) update(n note, d *store.Deadline) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.byID[n.ID]; one != nil && !one.reserved && one.note.Version > n.Version {
		return
	}
	if !n.live() {
		l.drop(n.ID)
		return
	}
	if one := l.byID[n.ID]; one != nil && !one.reserved && one.note.State == n.State && one.note.Expires.Equal(n.Expires) {
		d = one.deadline // as first seen
	}
	l.set(&liveOne{note: n, deadline: d})
}

// learn takes over what another replica did.
func (l *liveSet) learn(n note) {
	l.update(n, store.NewDeadline(l.clock, n.Expires, n.Period))
}

func (l *liveSet) remove(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.byID[id]; one != nil && !one.reserved {
		l.drop(id)
	}
}

// set and drop keep the counts; l.mu is held.
func (l *liveSet) set(one *liveOne) {
	l.drop(one.note.ID)
	l.byID[one.note.ID] = one
	if one.note.State == access.Pending {
		l.total++
		l.pending[one.note.Principal]++
	}
}

func (l *liveSet) drop(id string) {
	one := l.byID[id]
	if one == nil {
		return
	}
	delete(l.byID, id)
	if one.note.State != access.Pending {
		return
	}
	l.total--
	if l.pending[one.note.Principal]--; l.pending[one.note.Principal] == 0 {
		delete(l.pending, one.note.Principal)
	}
}

func (l *liveSet) pendingCount() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// due returns the approvals whose time is over, and those that live as long as
// a lease does.
func (l *liveSet) due() (passed, onLease []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, one := range l.byID {
		switch {
		case one.reserved:
		case one.deadline.Passed():
			passed = append(passed, id)
		case one.note.OnLease:
			onLease = append(onLease, id)
		}
	}
	return passed, onLease
}

// ids returns what is known, without what is only being filed.
func (l *liveSet) ids() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make([]string, 0, len(l.byID))
	for id, one := range l.byID {
		if !one.reserved {
			ids = append(ids, id)
		}
	}
	return ids
}

// waiters wakes whoever waits for an approval.
type waiters struct {
	mu   sync.Mutex
	byID map[string]*waiting
	n    int
}

type waiting struct {
	changed chan struct{} // closed at the next step
	n       int
}

// maxWaiters bounds the clients that wait at this replica.
const maxWaiters = 20_000

func newWaiters() *waiters { return &waiters{byID: map[string]*waiting{}} }

// join returns a channel that is closed at the next step, and a function to
// call when done with it.
func (w *waiters) join(id string) (<-chan struct{}, func(), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n >= maxWaiters {
		return nil, nil, fmt.Errorf("%w: %d clients wait", ErrTooMany, w.n)
	}
	one := w.byID[id]
	if one == nil {
		one = &waiting{changed: make(chan struct{})}
		w.byID[id] = one
	}
	one.n++
	w.n++
	return one.changed, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.n--
		if one.n--; one.n == 0 && w.byID[id] == one {
			delete(w.byID, id)
		}
	}, nil
}

func (w *waiters) wake(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if one := w.byID[id]; one != nil {
		close(one.changed)
		delete(w.byID, id)
	}
}

// wakeAll makes everyone look again.
func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, one := range w.byID {
		close(one.changed)
		delete(w.byID, id)
	}
}

// paces bound how fast one principal may put new questions before people.
type paces struct {
	mu    sync.Mutex
	limit rate.Limit
	burst int
	each  map[string]*rate.Limiter
}

const maxPaces = 1 << 16

func newPaces(perMinute int) *paces {
	return &paces{limit: rate.Limit(float64(perMinute) / 60), burst: max(1, perMinute/3), each: map[string]*rate.Limiter{}}
}

func (p *paces) allow(principal string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.each[principal]
	if one == nil {
		if len(p.each) >= maxPaces {
			p.forgetIdle()
		}
		if len(p.each) >= maxPaces {
			return false
		}
		one = rate.NewLimiter(p.limit, p.burst)
		p.each[principal] = one
	}
	return one.Allow()
}

func (p *paces) forgetIdle() {
	for principal, one := range p.each {
		if one.Tokens() >= float64(p.burst) {
			delete(p.each, principal)
		}
	}
}
