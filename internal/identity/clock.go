package identity

import (
	"sync"
	"time"
)

const (
	// clockTolerance is how far the wall clock may be from where the steady one
	// expects it before that counts as a jump. The kernel slews both alike, so
	// anything visible here is a step.
	clockTolerance = time.Second
	// A step forward is believed after settleForward: a machine that slept, or
	// a first synchronisation. A step back could revive what has expired, and
	// must stand for longer.
	settleForward = 30 * time.Second
	settleBack    = 10 * time.Minute
)

// A reading is one look at the clock. Usually early and late are the same. After
// a jump they are the two times that it may be: what the wall clock says now and
// what it would say had it not jumped.
type reading struct {
	early, late time.Time
	steady      time.Duration // since the first reading; never goes back
}

// since is how long ago an earlier reading was, at the most.
func (r reading) since(earlier reading) time.Duration {
	return max(r.steady-earlier.steady, r.late.Sub(earlier.late))
}

// A clock watches the wall clock with the monotonic one, so that a jump is seen
// as a jump and not as time that passed.
type clock struct {
	// look returns the wall clock, and how much time has really passed since the
	// last look. It is called with mu held.
	look func() (wall time.Time, passed time.Duration)

	mu       sync.Mutex
	expected time.Time // the wall clock, had it never jumped; zero at first
	steady   time.Duration
	jump     time.Duration // how far off the wall clock has been since jumped
	jumped   time.Duration
}

// newClock takes both from now. Where its times have no monotonic part, as in
// tests, only a step back can be told from time that passed.
func newClock(now func() time.Time) *clock {
	var last time.Time
	return &clock{look: func() (time.Time, time.Duration) {
		t := now()
		if last.IsZero() {
			last = t
		}
		passed := max(0, t.Sub(last))
		last = t
		return t.Round(0), passed
	}}
}

func (c *clock) read() reading {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall, passed := c.look()
	if c.expected.IsZero() {
		c.expected = wall
	}
	c.steady += passed
	c.expected = c.expected.Add(passed)
	c.settle(wall)
	early, late := c.expected, wall
	if early.After(late) {
		early, late = late, early
	}
	return reading{early: early, late: late, steady: c.steady}
}

// settle adopts the wall clock when it has not jumped, or has stood by its jump
// for long enough.
func (c *clock) settle(wall time.Time) {
	off := wall.Sub(c.expected)
	if off.Abs() <= clockTolerance {
		c.expected, c.jump = wall, 0
		return
	}
	if c.jump == 0 || (off-c.jump).Abs() > clockTolerance {
		c.jump, c.jumped = off, c.steady
	}
	wait := settleForward
	if off < 0 {
		wait = settleBack
	}
	if c.steady-c.jumped >= wait {
		c.expected, c.jump = wall, 0
	}
}
