// Package clocktest has the clock that tests inject where time decides.
package clocktest

import (
	"sync"
	"time"
)

// A Clock stands still until it is advanced. Its zero value shows the zero time.
// It is safe for concurrent use.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// New returns a Clock that shows now.
func New(now time.Time) *Clock { return &Clock{now: now} }

// Now is what time.Now would be.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock by d, which may be negative.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
