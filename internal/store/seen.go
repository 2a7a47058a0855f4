package store

import (
	"fmt"
	"sync"
)

// watermarkKeys is how many keys a watermark remembers at least.
const watermarkKeys = 1 << 15

// A watermark remembers the newest version seen of each key, so that an older
// authentic record put back into the store is noticed. It holds at most twice
// watermarkKeys: when the young generation is full it becomes the old one.
type watermark struct {
	mu         sync.Mutex
	young, old map[string]uint64
}

// floor returns the newest version seen so far. Take it before reading: what is
// read later cannot honestly be older.
func (w *watermark) floor(key string) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.young[key], w.old[key])
}

// raise notes a version that was read or written.
func (w *watermark) raise(key string, version uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if version <= w.young[key] {
		return
	}
	if w.young == nil || len(w.young) >= watermarkKeys {
		w.old, w.young = w.young, map[string]uint64{}
	}
	w.young[key] = max(version, w.old[key])
}

// admit refuses a version below the floor and notes any other.
func (w *watermark) admit(key string, version, floor uint64) error {
	if version < floor {
		return fmt.Errorf("record %s went back from version %d to %d: %w", key, floor, version, ErrForged)
	}
	w.raise(key, version)
	return nil
}

// outdated reports whether a writer expects a version that is known to have
// been replaced, even if somebody put it back.
func outdated(expect, floor uint64) bool { return expect != 0 && expect < floor }
