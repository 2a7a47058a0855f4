// Package clocktest has what tests need where time decides: a clock to inject,
// and waiting for what other goroutines do.
package clocktest

import (
	"sync"
	"testing"
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

// patience is how long Eventually asks: a busy machine may be slow.
const patience = 20 * time.Second

// Eventually asks until ask returns nil, and fails the test with its error when
// it does not for too long.
func Eventually(t testing.TB, ask func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-end:
			t.Fatal(err)
		case <-tick.C:
		}
	}
}
