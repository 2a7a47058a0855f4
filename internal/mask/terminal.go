package mask

import "bytes"

const (
	maxControl = 4 << 10  // bytes of one control sequence; what is longer is text
	maxQueued  = 16 << 10 // bytes of control sequences that wait; more are left out
)

// A Terminal masks what a terminal shows. It is a Stream that sees through
// control sequences: a key of which a part is coloured is still a key. What
// control strings hold (titles, links, the clipboard) is masked by itself. It
// never fails, and holds back as much as a Stream.
//
// A sequence keeps its place, unless it stands within what is replaced, or the
// end of what has arrived might be the beginning of that: then it follows.
type Terminal struct {
	sieve   sieve
	masker  *detectors
	control []byte // a sequence that is not whole yet
	state   escapeState
	waiting []waiting // sequences behind text that is held back
	queued  int
	fed     int64 // bytes of text given to the sieve
	shown   int64 // of those, how many are written or replaced
	out     []byte
	text    []byte
	masked  int64 // within control strings
}

// A waiting sequence stands before the byte of text with this number.
type waiting struct {
	at       int64
	sequence []byte
}

type escapeState uint8

const (
	ground       escapeState = iota
	escaped                  // after ESC
	intermediate             // ESC and bytes 0x20 to 0x2f
	csi                      // ESC [
	controlText              // ESC ] and its like, to BEL or ESC \
	controlEnd               // ESC in such a text
)

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
	t.end()
	t.feed(true)
	return t.out, nil
}

// take adds one byte to the text or to a control sequence.
func (t *Terminal) take(c byte) {
	if t.state == ground {
		switch {
		case c == 0x1b:
			t.control, t.state = append(t.control[:0], c), escaped
		case isControl(c):
			t.control = append(t.control[:0], c)
			t.end()
		default:
			t.text = append(t.text, c)
			if len(t.waiting) > 0 {
				t.feed(false) // so that what waits goes out at its place
			}
		}
		return
	}
	if c == 0x18 || c == 0x1a { // CAN and SUB break a sequence off
		t.control = append(t.control, c)
		t.end()
		return
	}
	if c == 0x1b && t.state != controlText && t.state != controlEnd { // another begins
		t.end()
		t.control, t.state = append(t.control[:0], c), escaped
		return
	}
	t.control = append(t.control, c)
	t.state = t.state.after(c)
	if t.state == ground || len(t.control) > maxControl {
		t.end()
	}
}

// isControl lists what a terminal acts on by itself, and does not move on by in
// the text: not tabs and ends of lines, which part words.
func isControl(c byte) bool { return c < 0x20 && c != '\t' && c != '\n' && c != '\r' || c == 0x7f }

// after is the state after one more byte of a sequence (ECMA-48, section 5.3 to
// 5.6); ground when it is whole.
func (s escapeState) after(c byte) escapeState {
	switch s {
	case escaped:
		switch {
		case c == '[':
			return csi
		case c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_':
			return controlText
		case c >= 0x20 && c <= 0x2f:
			return intermediate
		}
	case intermediate:
		if c >= 0x20 && c <= 0x2f {
			return intermediate
		}
	case csi:
		if c < 0x40 || c > 0x7e {
			return csi
		}
	case controlText, controlEnd:
		switch {
		case c == 0x1b:
			return controlEnd
		case c == 0x07, c == '\\' && s == controlEnd:
			return ground
		}
		return controlText
	}
	return ground
}

// end queues the sequence that is whole, or that nothing completes.
func (t *Terminal) end() {
	if len(t.control) == 0 {
		t.state = ground
		return
	}
	sequence := bytes.Clone(t.control)
	// What holds more than numbers may hold a secret.
	if s := newSieve(t.masker); len(sequence) > 2 {
		sequence = s.feed(nil, sequence, true)
		t.masked += s.masked
	}
	t.control, t.state = t.control[:0], ground
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
