package mask

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// beginString comes after the opening quote of a name or a value.
func (j *JSON) beginString(name bool) {
	j.state, j.name = inString, name
	j.held, j.length, j.partial, j.within = j.held[:0], 0, false, nil
	switch {
	case j.hidden:
		j.handling = dropping
	case name:
		j.handling = holding
	default:
		j.handling = passing
	}
}

// plain are the bytes that stand for themselves in a string, and alone.
var plain = func() (table [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		table[c] = c != '"' && c != '\\'
	}
	return table
}()

// stringBytes reads plain bytes of a string up to an escape or its end.
func (j *JSON) stringBytes(p []byte) (n int, err error) {
	for i := 0; i < len(p); i++ {
		if j.utf8.left == 0 {
			for i < len(p) && plain[p[i]] {
				i++
			}
			if i == len(p) {
				break
			}
		}
		c := p[i]
		switch {
		case j.utf8.left > 0 || c >= utf8.RuneSelf:
			if !j.utf8.next(c) {
				return i, errors.New("not UTF-8")
			}
		case c == '"':
			if err := j.keep(p[:i]); err != nil {
				return i, err
			}
			return i + 1, j.endString()
		case c == '\\':
			j.state = inEscape
			return i + 1, j.keep(p[:i+1])
		case c < ' ':
			return i, fmt.Errorf("control character 0x%02x in a string", c)
		}
	}
	return len(p), j.keep(p)
}

// escape reads one byte after a backslash.
func (j *JSON) escape(c byte) error {
	switch {
	case j.state == inHex && isHex(c):
		if j.hex--; j.hex == 0 {
			j.state = inString
		}
	case j.state == inHex:
		return errors.New(`\u without four hexadecimal digits`)
	case c == 'u':
		j.state, j.hex = inHex, 4
	case c == '"', c == '\\', c == '/', c == 'b', c == 'f', c == 'n', c == 'r', c == 't':
		j.state = inString
	default:
		return fmt.Errorf(`unknown escape 0x%02x`, c)
	}
	return j.keep([]byte{c})
}

// keep does with part of a string what its handling says. A name that grows too
// long is refused, a held value dropped: it will be hidden whole.
func (j *JSON) keep(p []byte) error {
	j.length += len(p)
	if j.name && j.length > maxString {
		return fmt.Errorf("name of more than %d bytes", maxString)
	}
	switch j.handling {
	case passing:
		j.out = append(j.out, p...)
	case holding:
		if j.length > maxString && (j.within == nil || j.length > maxWithin) {
			j.handling = dropping
		} else {
			j.held = append(j.held, p...)
		}
	}
	return nil
}

// endString comes after the closing quote.
func (j *JSON) endString() error {
	if j.name {
		j.state = expectColon
		if !j.hidden {
			j.endName()
		}
		return nil
	}
	if !j.hidden {
		j.endText()
	}
	j.endValue()
	return nil
}

// endName finds the masked places of the member and writes its name.
func (j *JSON) endName() {
	text := j.unescaped()
	if j.watched != nil && len(j.stack) == 1 {
		j.watched.named(text)
	}
	j.reach = j.reach[:0]
	if from := j.active[j.top().nodes:]; len(from) > 0 {
		j.reach = follow(j.reach, from, text)
	}
	if d := j.masker.detectors; d != nil {
		j.called = append(j.called[:0], text...)
		if masked, n := d.mask(text); n > 0 {
			j.masked += n
			j.out = appendQuoted(j.out, masked)
			return
		}
	}
	j.emitHeld()
}

// endText writes a value that is a string.
func (j *JSON) endText() {
	if j.wanted && j.handling == holding {
		j.watched.is(j.unescaped())
	}
	switch {
	case j.handling == passing:
		j.out = append(j.out, '"')
		return
	case j.handling == dropping:
		j.emitMark(Mark)
		return
	case j.within != nil:
		j.endDocument()
		return
	case j.partial:
		j.masked++
		j.out = appendQuoted(j.out, keepLast(j.unescaped()))
		return
	}
	d, text := j.masker.detectors, j.unescaped()
	if d == nil { // held to be read only
		j.emitHeld()
		return
	}
	if d.on&apiKey != 0 && len(text) >= minValue && credentialName(j.called) && random(text) {
		j.masked++
		j.out = appendQuoted(j.out, replacement(text, d.redacted&apiKey != 0))
		return
	}
	if masked, n := d.mask(text); n > 0 {
		j.masked += n
		j.out = appendQuoted(j.out, masked)
		return
	}
	j.emitHeld()
}

// endDocument writes a string that holds a document.
func (j *JSON) endDocument() {
	inner := j.within.NewJSON()
	out, err := inner.Write(j.unescaped())
	document := slices.Clone(out)
	if err == nil {
		out, err = inner.Close()
		document = append(document, out...)
	}
	switch {
	case err != nil:
		j.emitMark(Mark)
	case inner.Masked() == 0:
		j.emitHeld()
	default:
		j.masked += inner.Masked()
		j.out = appendQuoted(j.out, document)
	}
}

func (j *JSON) emitHeld() {
	j.out = append(j.out, '"')
	j.out = append(j.out, j.held...)
	j.out = append(j.out, '"')
}

// unescaped returns what the held string means, valid until the next string.
// A surrogate that has no partner means U+FFFD.
func (j *JSON) unescaped() []byte {
	j.plain = appendUnescaped(j.plain[:0], j.held)
	return j.plain
}

// appendUnescaped appends what s, the inside of a valid JSON string, means.
func appendUnescaped(out, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '\\' {
			out = append(out, c)
			continue
		}
		i++
		switch c = s[i]; c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := hexRune(s[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				pair := rune(utf8.RuneError)
				if i+6 < len(s) && s[i+1] == '\\' && s[i+2] == 'u' {
					pair = utf16.DecodeRune(r, hexRune(s[i+3:]))
				}
				if r = pair; r != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, c)
		}
	}
	return out
}

// hexRune reads four hexadecimal digits.
func hexRune(s []byte) (r rune) {
	for _, c := range s[:4] {
		d := c - '0'
		if !isDigit(c) {
			d = c | 0x20 - 'a' + 10
		}
		r = r<<4 | rune(d)
	}
	return r
}

// appendQuoted appends text as a JSON string. Like encoding/json it escapes
// what would be special in HTML and JavaScript.
func appendQuoted(out, text []byte) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for _, r := range string(text) {
		switch {
		case r == '"' || r == '\\':
			out = append(out, '\\', byte(r))
		case r == '\n':
			out = append(out, '\\', 'n')
		case r == '\r':
			out = append(out, '\\', 'r')
		case r == '\t':
			out = append(out, '\\', 't')
		case r < ' ' || r == '<' || r == '>' || r == '&' || r == 0x2028 || r == 0x2029:
			out = append(out, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			out = utf8.AppendRune(out, r)
		}
	}
	return append(out, '"')
}

// A continuation checks UTF-8 byte by byte (Unicode 17, table 3-7).
type continuation struct{ left, low, high byte }

// next takes the next byte of a character that is not ASCII.
func (u *continuation) next(c byte) bool {
	if u.left > 0 {
		ok := u.low <= c && c <= u.high
		u.left, u.low, u.high = u.left-1, 0x80, 0xBF
		return ok
	}
	u.low, u.high = 0x80, 0xBF
	switch {
	case 0xC2 <= c && c <= 0xDF:
		u.left = 1
	case 0xE0 <= c && c <= 0xEF:
		u.left = 2
		if c == 0xE0 {
			u.low = 0xA0
		} else if c == 0xED {
			u.high = 0x9F
		}
	case 0xF0 <= c && c <= 0xF4:
		u.left = 3
		if c == 0xF0 {
			u.low = 0x90
		} else if c == 0xF4 {
			u.high = 0x8F
		}
	default:
		return false
	}
	return true
}
