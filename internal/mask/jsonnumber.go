package mask

import "errors"

// A numberState is how far a JSON number has been read (RFC 8259, section 6).
type numberState uint8

const (
	afterMinus numberState = iota
	afterZero
	inInteger
	afterPoint
	inFraction
	afterE
	afterSign
	inExponent
)

func beginNumber(c byte) numberState {
	switch c {
	case '-':
		return afterMinus
	case '0':
		return afterZero
	}
	return inInteger
}

// complete reports whether the number may end here.
func (s numberState) complete() bool {
	return s == afterZero || s == inInteger || s == inFraction || s == inExponent
}

// next returns the state after c; ok is false when c cannot come here.
func (s numberState) next(c byte) (after numberState, ok bool) {
	switch {
	case isDigit(c):
		switch s {
		case afterMinus:
			return beginNumber(c), true
		case inInteger, inFraction, inExponent:
			return s, true
		case afterPoint:
			return inFraction, true
		case afterE, afterSign:
			return inExponent, true
		}
	case c == '.' && (s == afterZero || s == inInteger):
		return afterPoint, true
	case c|0x20 == 'e' && (s == afterZero || s == inInteger || s == inFraction):
		return afterE, true
	case (c == '+' || c == '-') && s == afterE:
		return afterSign, true
	}
	return s, false
}

// numberBytes reads bytes of a number. When it is over it ends the value and
// leaves the byte after it.
func (j *JSON) numberBytes(p []byte) (n int, err error) {
	for n < len(p) {
		after, ok := j.number.next(p[n])
		if !ok {
			break
		}
		j.number = after
		n++
	}
	j.emit(p[:n])
	if n < len(p) {
		if !j.number.complete() {
			return n, errors.New("malformed number")
		}
		j.endValue()
	}
	return n, nil
}
