package console

import (
	"sync"
	"time"
)

// A pace bounds how often each caller does something: burst times at once, then
// once per interval. It remembers nobody who may do it burst times again, and
// refuses new callers when it remembers too many.
type pace struct {
	interval time.Duration
	burst    int
	most     int // callers remembered
	clock    func() time.Time

	mu   sync.Mutex
	next map[string]time.Time // when everything taken so far is paid for
}

func newPace(interval time.Duration, burst, most int, clock func() time.Time) *pace {
	return &pace{interval: interval, burst: burst, most: most, clock: clock, next: map[string]time.Time{}}
}

// take reports whether who may do it now, and otherwise when.
func (p *pace) take(who string) (free time.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	paid, known := p.next[who]
	if !known && len(p.next) >= p.most {
		for other, until := range p.next {
			if !until.After(now) {
				delete(p.next, other)
			}
		}
		if len(p.next) >= p.most {
			return now.Add(p.interval), false
		}
	}
	if paid.Before(now) {
		paid = now
	}
	if paid = paid.Add(p.interval); paid.Sub(now) > time.Duration(p.burst)*p.interval {
		return paid.Add(-time.Duration(p.burst) * p.interval), false
	}
	p.next[who] = paid
	return time.Time{}, true
}
