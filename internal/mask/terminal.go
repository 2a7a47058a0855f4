package mask

import (
	"bytes"

	"chaperone.dev/chaperone/internal/vt"
)

const maxQueued = 16 << 10 // bytes of control sequences that wait; more are left out

// A Terminal masks what a terminal shows. It is a Stream that sees through
// control sequences: a key of which a part is coloured is still a key. What
// control strings hold (titles, links, the clipboard) is masked by itself. It
// never fails, and holds back as much as a Stream.
//
// A sequence keeps its place, unless it stands within what is replaced, or the
// end of what has arrived might be the beginning of that: then it follows.
type Terminal struct {
	sieve    sieve
	masker   *detectors
	splitter vt.Splitter
	waiting  []waiting // sequences behind text that is held back
	queued   int
	fed      int64 // bytes of text given to the sieve
	shown    int64 // of those, how many are written or replaced
	out      []byte
	text     []byte
	masked   int64 // within control strings
}

// A waiting sequence stands before the byte of text with this number.
type waiting struct {
	at       int64
	sequence []byte
}

// NewTerminal returns a Writer for the output of a terminal.
func (m *Masker) NewTerminal() *Terminal {
	d := m.detectors
	if d == nil {
		d = &detectors{}
	}
	return &Terminal{sieve: newSieve(d), masker: d}
}

// Masked returns how many values were replaced so far.
func (t *Terminal) Masked() int64 { return t.sieve.masked + t.masked }

// Write takes the next piece of the output.
func (t *Terminal) Write(p []byte) ([]byte, error) {
	t.out, t.text = t.out[:0], t.text[:0]
	for _, c := range p {
		t.take(c)
		if len(t.text) >= piece {
			t.feed(false)
		}
	}
	t.feed(false)
	return t.out, nil
}

// Close says that the output is over and returns what was held.
func (t *Terminal) Close() ([]byte, error) {
	t.out, t.text = t.out[:0], t.text[:0]
	t.sequence(t.splitter.Rest())
	t.feed(true)
	return t.out, nil
}

// take adds one byte to the text, or what it makes whole to the sequences.
func (t *Terminal) take(c byte) {
	text, sequence := t.splitter.Next(c)
	t.sequence(sequence)
	if !text {
		return
	}
	t.text = append(t.text, c)
	if len(t.waiting) > 0 {
		t.feed(false) // so that what waits goes out at its place
	}
}

// sequence gives one out, or queues it behind text that is held back.
func (t *Terminal) sequence(sequence []byte) {
	if len(sequence) == 0 {
		return
	}
	if len(sequence) >= vt.MaxSequence { // its end is to come, as text
		t.text = append(t.text, sequence...)
		return
	}
	sequence = bytes.Clone(sequence)
	// What holds more than numbers may hold a secret.
	if s := newSieve(t.masker); len(sequence) > 2 {
		sequence = s.feed(nil, sequence, true)
		t.masked += s.masked
	}
	t.feed(false)
	switch {
	case t.shown == t.fed && len(t.waiting) == 0:
		t.out = append(t.out, sequence...)
	case t.queued+len(sequence) <= maxQueued:
		t.queued += len(sequence)
		t.waiting = append(t.waiting, waiting{t.fed, sequence})
	}
}

// feed gives the text to the sieve and puts the sequences back into what comes
// out.
func (t *Terminal) feed(last bool) {
	t.fed += int64(len(t.text))
	before := t.sieve.masked
	shown := t.sieve.feed(nil, t.text, last)
	t.text = t.text[:0]
	from := t.shown
	t.shown = t.fed - int64(t.sieve.unwritten())
	if last {
		t.shown = t.fed
	}
	exact := t.sieve.masked == before && int64(len(shown)) == t.shown-from
	n := 0
	for _, w := range t.waiting {
		if w.at > t.shown {
			break
		}
		n++
		t.queued -= len(w.sequence)
		if cut := w.at - from; exact && cut > 0 {
			t.out, shown, from = append(t.out, shown[:cut]...), shown[cut:], w.at
		} else if !exact && n == 1 {
			t.out, shown = append(t.out, shown[:afterMark(shown)]...), shown[afterMark(shown):]
		}
		t.out = append(t.out, w.sequence...)
	}
	t.out = append(t.out, shown...)
	t.waiting = append(t.waiting[:0], t.waiting[n:]...)
}

// afterMark is where what stands for something hidden ends, or the end.
func afterMark(shown []byte) int {
	if at := bytes.LastIndex(shown, []byte(Mark)); at >= 0 {
		return at + len(Mark)
	}
	return len(shown)
}
