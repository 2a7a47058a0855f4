package record

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"chaperone.dev/chaperone/internal/access"
)

// Refusals of callers that did not prove who they are: anybody can cause them,
// as many as the network carries. So many are recorded one by one; the rest
// are counted.
const (
	strangersBurst     = 500
	strangersPerSecond = 10
)

// strangers keeps those who may not come in from filling the disk.
type strangers struct {
	mu      sync.Mutex
	limit   *rate.Limiter
	omitted int64     // not yet told
	since   time.Time // of the first of them
}

// StrangersOmitted is the input of a "recording.strangers" event: how many
// refusals of callers without an identity came too fast to be recorded one by
// one, from Since to the time of the event.
type StrangersOmitted struct {
	Omitted int64     `json:"omitted"`
	Since   time.Time `json:"since"`
}

func newStrangers() *strangers {
	return &strangers{limit: rate.NewLimiter(strangersPerSecond, strangersBurst)}
}

// admit reports whether a refusal is recorded by itself, and what of those that
// were not has to be told first.
func (s *strangers) admit(now time.Time) (ok bool, told *StrangersOmitted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit.AllowN(now, 1) {
		return true, s.tell()
	}
	if s.omitted == 0 {
		s.since = now
	}
	s.omitted++
	return false, nil
}

// tell returns what has to be told, once.
func (s *strangers) tell() *StrangersOmitted {
	if s.omitted == 0 {
		return nil
	}
	told := &StrangersOmitted{s.omitted, s.since.UTC().Round(0)}
	s.omitted = 0
	return told
}

// stranger reports whether evs is the refusal of somebody without an identity,
// and nothing else.
func stranger(evs []access.Event) bool {
	return len(evs) == 1 && evs[0].Denied != nil && evs[0].Session == "" && evs[0].Denied.Denial.Reason == access.Unauthenticated
}

// omit reports whether evs is only counted. Otherwise it returns them with what
// has to be told before them.
func (r *Recorder) omit(evs []access.Event) (bool, []access.Event) {
	if !stranger(evs) {
		return false, evs
	}
	ok, told := r.strangers.admit(r.cfg.Clock())
	if !ok {
		r.writer.metrics.strangers.Inc()
		return true, nil
	}
	if told != nil {
		evs = []access.Event{r.own("recording.strangers", "", told), evs[0]}
	}
	return false, evs
}

// farewell records what is left to tell when the recorder closes.
func (r *Recorder) farewell() error {
	r.strangers.mu.Lock()
	told := r.strangers.tell()
	r.strangers.mu.Unlock()
	if told == nil {
		return nil
	}
	return r.append(context.Background(), access.Synced, r.own("recording.strangers", "", told))
}
