package policy

import "sync"

// Bounds on what a set remembers. The weight of an entry is about a sixteenth of
// its bytes: entryWeight and one for each policy, group or hop that it holds.
const (
	maxTargetWeight = 1 << 20
	maxScopeWeight  = 1 << 20
	entryWeight     = 64
)

// A cache holds up to two generations of entries: when the current one is full
// it becomes the previous one, and what is still used moves back. It never
// holds more than twice its limit and is safe for concurrent use.
type cache[V any] struct {
	limit int

	mu       sync.RWMutex
	current  map[uint64]V
	previous map[uint64]V
	weight   int // of current
}

func newCache[V any](limit int) *cache[V] {
	return &cache[V]{limit: limit, current: map[uint64]V{}}
}

// get returns the entry of key. The caller must check that it is the one that
// it means: key is only a hash.
func (c *cache[V]) get(key uint64) (v V, aged, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if v, ok = c.current[key]; ok {
		return v, false, true
	}
	v, ok = c.previous[key]
	return v, ok, ok
}

// put makes v the entry of key. An entry heavier than half the limit is not
// kept.
func (c *cache[V]) put(key uint64, v V, weight int) {
	if weight > c.limit/2 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.weight+weight > c.limit {
		c.previous, c.current, c.weight = c.current, map[uint64]V{}, 0
	}
	if _, replaced := c.current[key]; !replaced {
		c.weight += weight
	}
	c.current[key] = v
}
