package record

import (
	"fmt"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/vt"
)

// ssh shows what was asked of a host.
func (r *renderer) ssh(s *access.SSHCall) {
	what := strings.TrimSpace(s.Act + " " + s.Operation)
	if s.Terminal {
		what += " in a terminal"
	}
	r.line("  %s as %s", what, s.User)
	switch {
	case s.Command != "":
		r.foreign(s.Command)
	case s.Host != "":
		r.bar(fmt.Sprintf("%s port %d", s.Host, s.Port))
	}
	for _, why := range append(append([]string(nil), s.Unknown...), s.UnknownPaths...) {
		r.line("    not known: %s", why)
	}
}

// A display is a terminal that is being shown.
type display struct {
	screen Screen
	line   []byte // that has no end yet, when it is shown as text
	strip  vt.Splitter
}

// stream shows a piece of what went in or came out.
func (r *renderer) stream(c *access.StreamChunk) {
	if c.IsSize() {
		r.sized(c)
		return
	}
	content := c.Bytes
	if c.Text != "" {
		content = []byte(c.Text)
	}
	switch {
	case len(content) == 0:
	case r.display != nil && c.Name != access.Stdout: // what is typed shows as it is echoed
	case r.display != nil && r.screens:
		r.out.Write(r.display.screen.Show(content))
		r.drawn = true
	case r.display != nil:
		r.display.text(r, content)
	default:
		if r.streamed != c.Name {
			r.streamed = c.Name
			r.line("  %s", c.Name)
		}
		r.foreign(string(content))
	}
	if c.Omitted > 0 {
		r.leaveScreen()
		r.line("  %d bytes of %s are not recorded", c.Omitted, c.Name)
	}
}

// sized begins a terminal, or tells its new size.
func (r *renderer) sized(c *access.StreamChunk) {
	if r.display == nil {
		r.display = &display{}
		if r.displays == nil {
			r.displays = map[string]*display{}
		}
		r.displays[r.request] = r.display
		r.line("  terminal %s of %d columns and %d rows", c.Term, c.Columns, c.Rows)
		return
	}
	if !r.screens {
		r.line("  resized to %d columns and %d rows", c.Columns, c.Rows)
	}
}

// maxShownLine bounds a line of a terminal that is shown as text.
const maxShownLine = 4 << 10

// text shows lines of a terminal without what moves and colours them.
func (d *display) text(r *renderer, content []byte) {
	for _, c := range content {
		isText, _ := d.strip.Next(c)
		if !isText || c == '\r' {
			continue
		}
		if c != '\n' {
			d.line = append(d.line, c)
		}
		if c == '\n' || len(d.line) >= maxShownLine {
			r.foreign(string(d.line))
			d.line = d.line[:0]
		}
	}
}

// leaveScreen puts the terminal right before chaperone's own words.
func (r *renderer) leaveScreen() {
	if r.drawn {
		r.out.WriteString(restored + "\r\n")
		r.drawn = false
	}
	if r.display != nil && len(r.display.line) > 0 {
		r.foreign(string(r.display.line))
		r.display.line = nil
	}
}

func (r *renderer) sums(sums []access.StreamSum) {
	for _, s := range sums {
		r.line("  %s: %d bytes, sha256 %s", s.Name, s.Bytes, s.SHA256)
	}
}
