// Package vt owns how the output of a terminal is parted into text and control
// sequences (ECMA-48, section 5; xterm). It refuses to know what they do.
package vt

// MaxSequence bounds one sequence, in bytes. What is longer is given out in
// parts.
const MaxSequence = 4 << 10

// A Splitter parts a stream byte by byte. The zero Splitter is ready. It is not
// safe for concurrent use.
type Splitter struct {
	sequence []byte
	given    bool // sequence was given out
	state    state
}

type state uint8

const (
	ground       state = iota
	escaped            // after ESC
	intermediate       // ESC and bytes 0x20 to 0x2f
	csi                // ESC [
	controlText        // ESC ] and its like, to BEL or ESC \
	controlEnd         // ESC in such a text
)

// Next takes one byte. It is text when text is set. sequence, when not empty, is
// one that ends before this byte or with it: a control character, an escape or
// control sequence, a control string; or what another broke off. It is valid
// until the next call. Tabs, line feeds and carriage returns are text: they part
// words.
func (s *Splitter) Next(c byte) (text bool, sequence []byte) {
	if s.given {
		s.sequence, s.given = s.sequence[:0], false
	}
	switch {
	case s.state == ground && c != 0x1b && !isControl(c):
		return true, nil
	case s.state == ground && c != 0x1b:
		s.sequence = append(s.sequence, c)
		return false, s.give()
	case s.state == ground:
		s.sequence, s.state = append(s.sequence, c), escaped
		return false, nil
	case c == 0x18 || c == 0x1a: // CAN and SUB break a sequence off
		s.sequence = append(s.sequence, c)
		return false, s.give()
	case c == 0x1b && s.state != controlText && s.state != controlEnd: // another begins
		broken := append([]byte(nil), s.sequence...)
		s.sequence, s.state = append(s.sequence[:0], c), escaped
		return false, broken
	}
	s.sequence = append(s.sequence, c)
	if s.state = s.state.after(c); s.state == ground || len(s.sequence) >= MaxSequence {
		return false, s.give()
	}
	return false, nil
}

// Rest returns the sequence that is not whole at the end of the stream.
func (s *Splitter) Rest() []byte {
	if s.given {
		return nil
	}
	return s.give()
}

func (s *Splitter) give() []byte {
	s.given, s.state = true, ground
	return s.sequence
}

func isControl(c byte) bool { return c < 0x20 && c != '\t' && c != '\n' && c != '\r' || c == 0x7f }

// after is the state after one more byte of a sequence; ground when it is whole.
func (s state) after(c byte) state {
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
