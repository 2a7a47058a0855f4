package mask

// Held returns how much the stream keeps in memory.
func (t *Stream) Held() int { return cap(t.sieve.buf) + cap(t.sieve.spans)*32 }
