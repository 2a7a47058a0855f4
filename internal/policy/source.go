package policy

import (
	"errors"
	"strings"

	"go.yaml.in/yaml/v3"

	"chaperone.dev/chaperone/internal/strictyaml"
)

// A source is a condition as it stands in a policy file. It keeps its node, so
// that a fault inside the condition can be reported where it is in the file.
type source struct {
	text string
	node yaml.Node
}

// DecodeNode implements strictyaml.NodeDecoder.
func (s *source) DecodeNode(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return errors.New("must be a condition in quotes")
	}
	if n.Tag != "!!str" {
		return errors.New("must be a condition in quotes, for example 'true'")
	}
	if strings.TrimSpace(n.Value) == "" {
		return errors.New("must not be empty; write 'true' when it shall always hold")
	}
	s.text, s.node = n.Value, *n
	return nil
}

// given reports whether the file holds the condition at all.
func (s *source) given() bool { return s.text != "" }

// position maps a line (from 1) and column (from 0) of the condition's text to
// its place in the file. Where the two cannot be matched, it is where the
// condition begins.
func (s *source) position(file string, lines [][]rune, line, column int) strictyaml.Position {
	begin := strictyaml.Position{File: file, Line: s.node.Line, Column: s.node.Column}
	places := s.places(lines)
	if places == nil || line < 1 || column < 0 {
		return begin
	}
	offset := 0
	for i, l := range strings.Split(s.text, "\n") {
		if i == line-1 {
			offset += column
			break
		}
		offset += len([]rune(l)) + 1
	}
	if offset >= len(places) {
		return begin
	}
	at := places[offset]
	return strictyaml.Position{File: file, Line: at.line + 1, Column: at.column + 1}
}

// splitLines splits a file as positions count: by line, then by character.
func splitLines(data []byte) [][]rune {
	parts := strings.Split(string(data), "\n")
	lines := make([][]rune, len(parts))
	for i, p := range parts {
		lines[i] = []rune(strings.TrimSuffix(p, "\r"))
	}
	return lines
}

// A place is a line and a column, both from 0.
type place struct{ line, column int }

// places returns where each character of the text stands in the file, and one
// more for its end; nil when text and file cannot be matched. Quoting styles
// differ only in what they escape: all fold line breaks and indentation into
// white space, so that matching every other character in order is enough.
func (s *source) places(lines [][]rune) []place {
	c := &scanner{lines: lines, at: place{s.node.Line - 1, s.node.Column - 1}}
	style := s.node.Style
	if style&yaml.TaggedStyle != 0 {
		c.skipWord()
		c.skipSpace()
	}
	switch {
	case style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		c.at = place{s.node.Line, 0}
	case style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		c.at.column++
	}
	text := []rune(s.text)
	places := make([]place, 0, len(text)+1)
	for _, want := range text {
		escaped := style&yaml.DoubleQuotedStyle != 0 && c.atEscape()
		if isSpace(want) && !escaped {
			places = append(places, c.at)
			c.skipOneSpace()
			continue
		}
		c.skipSpace()
		places = append(places, c.at)
		if !c.take(want, style) {
			return nil
		}
	}
	return append(places, c.at)
}

// A scanner walks the characters of a file.
type scanner struct {
	lines [][]rune
	at    place
}

func (c *scanner) peek() (r rune, ok bool) {
	if c.at.line >= len(c.lines) {
		return 0, false
	}
	if c.at.column >= len(c.lines[c.at.line]) {
		return '\n', true
	}
	return c.lines[c.at.line][c.at.column], true
}

func (c *scanner) next() {
	if c.at.column >= len(c.lines[c.at.line]) {
		c.at = place{c.at.line + 1, 0}
		return
	}
	c.at.column++
}

func (c *scanner) skipSpace() {
	for r, ok := c.peek(); ok && isSpace(r); r, ok = c.peek() {
		c.next()
	}
}

func (c *scanner) skipWord() {
	for r, ok := c.peek(); ok && !isSpace(r); r, ok = c.peek() {
		c.next()
	}
}

// skipOneSpace passes one blank of the line, never the end of the line: what a
// line break folds into is skipped before the next visible character.
func (c *scanner) skipOneSpace() {
	if r, ok := c.peek(); ok && r != '\n' && isSpace(r) {
		c.next()
	}
}

// atEscape reports whether a backslash stands next, after passing escaped line
// breaks, which stand for nothing.
func (c *scanner) atEscape() bool {
	for {
		r, ok := c.peek()
		if !ok || r != '\\' {
			return false
		}
		if c.at.column+1 < len(c.lines[c.at.line]) {
			return true
		}
		c.next()
		c.skipSpace()
	}
}

// take passes the characters of the file that stand for want.
func (c *scanner) take(want rune, style yaml.Style) bool {
	r, ok := c.peek()
	if !ok {
		return false
	}
	switch {
	case style&yaml.DoubleQuotedStyle != 0 && r == '\\':
		c.next()
		letter, ok := c.peek()
		if !ok {
			return false
		}
		for range 1 + escapeDigits(letter) {
			c.next()
		}
		return true
	case style&yaml.SingleQuotedStyle != 0 && r == '\'':
		c.next()
	}
	c.next()
	return r == want
}

// escapeDigits is how many hexadecimal digits follow the letter of an escape.
func escapeDigits(letter rune) int {
	switch letter {
	case 'x':
		return 2
	case 'u':
		return 4
	case 'U':
		return 8
	}
	return 0
}

func isSpace(r rune) bool { return r == ' ' || r == '\t' || r == '\n' }
