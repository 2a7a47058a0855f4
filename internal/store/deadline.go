package store

import (
	"sync/atomic"
	"time"
)

// A Deadline is a moment that passes once and for all, whatever the wall clock
// does. It has passed when the clock shows it, or when as much time went by as
// was left when the Deadline was made: a clock that is set back does not put it
// off, and one that was set forward for a moment has ended it for good. It is
// safe for concurrent use.
type Deadline struct {
	clock  func() time.Time
	at     time.Time
	made   time.Time // real, with its monotonic reading
	left   time.Duration
	passed atomic.Bool
}

// NewDeadline returns a deadline at a moment of the clock. At most longest may
// be left of it, so that a moment set by another replica's wrong clock is
// bounded too; 0 is no bound.
func NewDeadline(clock func() time.Time, at time.Time, longest time.Duration) *Deadline {
	left := at.Sub(clock().Round(0))
	if longest > 0 && left > longest {
		left = longest
	}
	return &Deadline{clock: clock, at: at, made: time.Now(), left: left}
}

// Passed reports whether it has passed.
func (d *Deadline) Passed() bool {
	return d.Left() <= 0
}

// Left returns how long it is until the deadline at the latest; 0 when it has
// passed.
func (d *Deadline) Left() time.Duration {
	if d.passed.Load() {
		return 0
	}
	// Round(0) takes the wall clock: the monotonic one stands still while a
	// machine sleeps, and tokens expire meanwhile.
	left := min(d.at.Sub(d.clock().Round(0)), d.left-time.Since(d.made))
	if left <= 0 {
		d.passed.Store(true)
		return 0
	}
	return left
}
