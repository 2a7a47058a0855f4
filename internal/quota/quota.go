// Package quota owns what has been used of the limits that hold beyond one
// request: those of a session, and those of a principal on a resource in an
// hour. The counters are records of the store, so that replicas share them;
// they are authentic as other records are, and a counter that cannot be read or
// written lets nothing through.
//
// What is not known beforehand is reserved in parts: rows and bytes before they
// are passed on, a part at a time, and what was reserved in vain is given back.
// So no number of requests at once reads more than a limit. Changed rows are
// taken before the change becomes final. Only time is counted when it has
// passed: requests that run at once may each use what was left when they began.
// What a process had reserved when it was killed stays used.
//
// The package refuses to know protocols: it is told what is about to be used.
package quota

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

// A measure is one thing that is counted.
type measure int

const (
	statements measure = iota
	rowsRead
	rowsChanged
	bytesRead
	timeUsed // nanoseconds
	measures
)

func (m measure) String() string {
	return [...]string{"statements", "rows_read", "rows_changed", "bytes", "time"}[m]
}

// amounts is a number for each measure; in limits 0 is none.
type amounts [measures]int64

func amountsOf(q access.Quota) amounts {
	return amounts{q.Statements, q.RowsRead, q.RowsChanged, q.Bytes, int64(q.Time)}
}

// A counter is the value of a record.
type counter struct {
	Used amounts   `json:"used"` // in the order of the measures
	Last time.Time `json:"last"`
}

const (
	prefix        = "usage/"
	sessionPrefix = prefix + "session/"
	hourPrefix    = prefix + "hour/"

	// sessionKept is how long the counter of a session is kept after its last
	// request: longer than any session lives without one.
	sessionKept = 7 * 24 * time.Hour

	maxTries = 64 // of one write, against writers on other replicas
	stripes  = 64
)

// Config is what a Service needs. Store is required.
type Config struct {
	Store  store.Records
	Clock  func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means silent
}

// A Service keeps the counters. It is safe for concurrent use.
type Service struct {
	store store.Records
	clock func() time.Time
	log   *slog.Logger
	seed  maphash.Seed
	// Writers of this process queue here rather than conflict in the store.
	queues [stripes]sync.Mutex
}

// New returns a Service. Run must run for it to forget what is over.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil {
		return nil, errors.New("quota: a store is required")
	}
	s := &Service{store: cfg.Store, clock: cfg.Clock, log: cfg.Logger, seed: maphash.MakeSeed()}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, nil
}

// An ExceededError says that a limit is used up.
type ExceededError struct {
	Limit string // for example per_hour.rows_read
	Max   int64
	Frees time.Time // when it is free again; zero: not in this session
}

// Error says which limit, and when it is free again.
func (e *ExceededError) Error() string {
	scope, name, _ := strings.Cut(e.Limit, ".")
	most := fmt.Sprint(e.Max)
	if name == timeUsed.String() {
		most = time.Duration(e.Max).String()
	}
	if scope == "per_session" {
		return fmt.Sprintf("the limit %s of %s a session is used up", e.Limit, most)
	}
	return fmt.Sprintf("the limit %s of %s an hour is used up; it is free again at %s", e.Limit, most, e.Frees.Format("15:04 MST"))
}

// DenialOf is the denial for an error of this package.
func DenialOf(err error, requestID, resource string, d access.Decision) *access.Denial {
	denial := &access.Denial{
		RequestID: requestID, Resource: resource, Rule: d.Rule(), Revision: d.Revision,
		Reason: access.Unavailable, Message: "the gateway cannot count what this would use", Hint: "try again in a moment",
	}
	if over, ok := errors.AsType[*ExceededError](err); ok {
		denial.Reason, denial.Message, denial.Limit, denial.Frees = access.LimitExceeded, over.Error(), over.Limit, over.Frees
		denial.Hint = "ask for less, or in a new session"
		if !over.Frees.IsZero() {
			denial.Hint = "ask again after " + over.Frees.Format(time.RFC3339)
		}
	}
	return denial
}

// Account names what a principal uses on a resource, without telling who it is.
func Account(p access.Principal, r access.Resource) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%d:%s%s", len(r.Name), r.Name, p.Key())))
	return hex.EncodeToString(sum[:])
}

// update changes a counter: change gets it as it is and alters it. When change
// returns an error nothing is written.
func (s *Service) update(ctx context.Context, key string, change func(*counter) error) error {
	queue := &s.queues[maphash.String(s.seed, key)%stripes]
	queue.Lock()
	defer queue.Unlock()
	for range maxTries {
		c, version, err := s.read(ctx, key)
		if err != nil {
			return err
		}
		if err := change(&c); err != nil {
			return err
		}
		c.Last = s.clock().UTC()
		value, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("count %s: %w", key, err)
		}
		_, err = s.store.Put(ctx, key, value, version)
		if err == nil {
			return nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return fmt.Errorf("count: %w", err)
		}
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(2 * time.Millisecond))))
		select {
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("count %s: %w", key, context.Cause(ctx))
		case <-pause.C:
		}
	}
	return fmt.Errorf("count %s: too many others write it: %w", key, store.ErrUnavailable)
}

func (s *Service) read(ctx context.Context, key string) (counter, uint64, error) {
	var c counter
	record, err := s.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return c, 0, nil
	}
	if err != nil {
		return c, 0, fmt.Errorf("count: %w", err)
	}
	if err := json.Unmarshal(record.Value, &c); err != nil {
		return c, 0, fmt.Errorf("count %s: %w", key, err)
	}
	return c, record.Version, nil
}

// sweepEvery is how often Run looks for counters that are over.
const sweepEvery = time.Hour

// Run removes counters that are over, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("counters that are over were not removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep removes the counters of past hours and of sessions that are long over.
func (s *Service) Sweep(ctx context.Context) error {
	now := s.clock()
	current := fmt.Sprintf("%s%010d/", hourPrefix, hourOf(now)-1) // one back, for a replica whose clock is behind
	for after := ""; ; {
		page, err := s.store.List(ctx, prefix, after, store.MaxPage)
		if err != nil {
			return fmt.Errorf("sweep counters: %w", err)
		}
		for _, record := range page.Items {
			over := strings.HasPrefix(record.Key, hourPrefix) && record.Key < current
			if strings.HasPrefix(record.Key, sessionPrefix) {
				var c counter
				over = json.Unmarshal(record.Value, &c) == nil && now.Sub(c.Last) > sessionKept
			}
			if !over {
				continue
			}
			if err := s.store.Delete(ctx, record.Key, record.Version); err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("sweep counters: %w", err)
			}
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}

func hourOf(t time.Time) int64 { return t.Unix() / 3600 }
