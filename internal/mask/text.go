package mask

import (
	"bytes"
	"errors"
)

// piece is how much text is judged at a time, which bounds what is buffered.
const piece = 16 << 10

// Stream masks plain text by detectors. At most about 4 KiB are held back, and
// only while the end of what has arrived could be the beginning of something to
// hide. It refuses text with NUL bytes: it is in another encoding, in which
// nothing would be recognised, or no text.
type Stream struct {
	sieve sieve
	out   []byte
	err   error
}

// NewText returns a Writer for text. JSON fields cannot be found in it: see
// Fields.
func (m *Masker) NewText() *Stream {
	d := m.detectors
	if d == nil {
		d = &detectors{}
	}
	return &Stream{sieve: newSieve(d)}
}

// Masked returns how many values were replaced so far.
func (t *Stream) Masked() int64 { return t.sieve.masked }

// Write takes the next piece of the text.
func (t *Stream) Write(p []byte) ([]byte, error) {
	t.out = t.out[:0]
	if t.err == nil && bytes.IndexByte(p, 0) >= 0 {
		t.err = errors.New("text: NUL byte")
	}
	if t.err != nil {
		return nil, t.err
	}
	for len(p) > 0 {
		n := min(len(p), piece)
		t.out = t.sieve.feed(t.out, p[:n], false)
		p = p[n:]
	}
	return t.out, nil
}

// Close says that the text is over and returns what was held.
func (t *Stream) Close() ([]byte, error) {
	if t.err != nil {
		return nil, t.err
	}
	t.out = t.sieve.feed(t.out[:0], nil, true)
	t.err = errors.New("text: write after close")
	return t.out, nil
}
