package vt

import "unicode/utf8"

// CompleteUTF8 is how many bytes of b end with a whole character: what comes
// after them is the beginning of one. What is no UTF-8 at all is complete.
func CompleteUTF8(b []byte) int {
	for back := 1; back <= min(utf8.UTFMax-1, len(b)); back++ {
		c := b[len(b)-back]
		if c < utf8.RuneSelf {
			break
		}
		if utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-back:]) {
				return len(b) - back
			}
			break
		}
	}
	return len(b)
}
