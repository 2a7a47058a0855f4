package record

import (
	"bytes"
	"strings"

	"chaperone.dev/chaperone/internal/vt"
)

// A Screen turns what a session showed on its terminal into what may be shown on
// another: text, colours, movements of the cursor and the other screen stay;
// whatever sets, asks or remembers something beyond the picture (titles, links,
// the clipboard, answers that would be typed, keys and mouse) is left out. The
// zero Screen is ready. It is not safe for concurrent use.
type Screen struct {
	splitter vt.Splitter
	rest     []byte // the beginning of a character
}

// restored is what puts a terminal right after a Screen: plain text, a cursor
// that shows, wrapping lines, the first screen, no margins, ASCII.
const restored = "\x1b[0m\x1b[?25h\x1b[?7h\x1b[?1049l\x1b7\x1b[r\x1b8\x1b(B"

// Show returns what of the next piece may be shown.
func (s *Screen) Show(piece []byte) []byte {
	var out bytes.Buffer
	text := s.rest
	flush := func(last bool) {
		end := len(text)
		if !last {
			end = vt.CompleteUTF8(text)
		}
		out.WriteString(strings.Map(shownRune, strings.ToValidUTF8(string(text[:end]), "\ufffd")))
		text = append([]byte(nil), text[end:]...)
	}
	for _, c := range piece {
		isText, sequence := s.splitter.Next(c)
		if len(sequence) > 0 {
			flush(true)
			if isShown(sequence) {
				out.Write(sequence)
			}
		}
		if isText {
			text = append(text, c)
		}
	}
	flush(false)
	s.rest = text
	return out.Bytes()
}

// shownRune drops the control characters beyond ASCII, which are sequences to
// some terminals.
func shownRune(r rune) rune {
	if r >= 0x80 && r < 0xa0 {
		return -1
	}
	return r
}

// isShown lists the sequences that draw.
func isShown(q []byte) bool {
	if q[0] != 0x1b {
		return q[0] == '\b' || q[0] == 0x0b || q[0] == 0x0c
	}
	if len(q) < 2 {
		return false
	}
	if q[1] != '[' {
		return strings.Contains(" 7 8 D E M (0 (B ", " "+string(q[1:])+" ")
	}
	if len(q) < 3 || len(q) > 64 {
		return false // broken off, or endless
	}
	parameters, final := string(q[2:len(q)-1]), q[len(q)-1]
	if mode, private := strings.CutPrefix(parameters, "?"); private {
		return (final == 'h' || final == 'l') && strings.Contains(" 6 7 25 47 1047 1048 1049 ", " "+mode+" ")
	}
	return strings.Trim(parameters, "0123456789;:") == "" && strings.IndexByte("ABCDEFGHIJKLMPSTXZ@adefmrsu`", final) >= 0
}
