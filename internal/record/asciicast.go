package record

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// ErrNoTerminal is returned when there is no terminal in what is to be exported.
var ErrNoTerminal = errors.New("the session showed nothing on a terminal")

// An Asciicast says what to export. Version is 2 or 3. Request names one act;
// "" takes the first that had a terminal. Inert leaves out what does more than
// draw, as a Screen does. After Most bytes of output, 0 for no bound, it ends and
// says so.
type Asciicast struct {
	Version int
	Request string
	Inert   bool
	Most    int
}

// Write writes the terminal of a session as an asciicast
// (docs.asciinema.org/manual/asciicast/v3 and v2): what was shown, as it was
// recorded, with resizes and, in version 3, the exit status. What was typed is
// left out. Players must take the content for hostile, as every terminal does.
func (a Asciicast) Write(w io.Writer, events iter.Seq2[access.Event, error]) error {
	out := &cast{Asciicast: a, w: bufio.NewWriter(w)}
	for ev, err := range events {
		if err != nil {
			return err
		}
		if err := out.event(ev); err != nil {
			return err
		}
		if out.over {
			break
		}
	}
	if out.begun.IsZero() {
		return ErrNoTerminal
	}
	if err := out.w.Flush(); err != nil {
		return fmt.Errorf("asciicast: %w", err)
	}
	return nil
}

// A cast is being written.
type cast struct {
	Asciicast
	w             *bufio.Writer
	title         string
	commands      map[string]string // of requests that were decided and not yet shown
	begun, before time.Time
	over          bool
	screen        Screen
	written       int
}

const maxRemembered = 1024 // commands of acts without a terminal so far

func (c *cast) event(ev access.Event) error {
	switch {
	case ev.Opened != nil:
		s := ev.Opened.Session
		c.title = who(s.Principal) + " on " + s.Resource.Name
	case ev.Decided != nil && c.begun.IsZero():
		if c.commands == nil || len(c.commands) >= maxRemembered {
			c.commands = map[string]string{}
		}
		switch a := ev.Decided.Request.Action; {
		case a.SSH != nil:
			c.commands[ev.Request] = a.SSH.Command
		case a.K8s != nil:
			c.commands[ev.Request] = strings.Join(a.K8s.Command, " ")
		}
	case c.Request != "" && ev.Request != c.Request:
	case ev.Stream != nil && ev.Stream.IsSize() && c.begun.IsZero():
		c.Request, c.begun, c.before = ev.Request, ev.Time, ev.Time
		return c.line(c.header(ev.Stream))
	case c.begun.IsZero():
	case ev.Stream != nil:
		return c.stream(ev)
	case ev.Ended != nil:
		c.over = true
		if status, ok := strings.CutPrefix(ev.Ended.Tag, "exit "); ok && c.Version == 3 {
			return c.entry(ev.Time, "x", status)
		}
	}
	return nil
}

func (c *cast) header(size *access.StreamChunk) any {
	command := c.commands[c.Request]
	if c.Inert {
		c.title, command = Visible(c.title), Visible(command)
	}
	columns, rows := sizeOf(size)
	if c.Version == 2 {
		return struct {
			Version   int               `json:"version"`
			Width     int               `json:"width"`
			Height    int               `json:"height"`
			Timestamp int64             `json:"timestamp"`
			Title     string            `json:"title,omitempty"`
			Command   string            `json:"command,omitempty"`
			Env       map[string]string `json:"env,omitempty"`
		}{2, columns, rows, c.begun.Unix(), c.title, command, map[string]string{"TERM": size.Term}}
	}
	type term struct {
		Columns int    `json:"cols"`
		Rows    int    `json:"rows"`
		Type    string `json:"type,omitempty"`
	}
	return struct {
		Version   int    `json:"version"`
		Term      term   `json:"term"`
		Timestamp int64  `json:"timestamp"`
		Title     string `json:"title,omitempty"`
		Command   string `json:"command,omitempty"`
	}{3, term{columns, rows, size.Term}, c.begun.Unix(), c.title, command}
}

// sizeOf is the size of a terminal, or the usual one where the client had none.
func sizeOf(s *access.StreamChunk) (columns, rows int) {
	if s.Columns <= 0 || s.Rows <= 0 {
		return 80, 24
	}
	return s.Columns, s.Rows
}

func (c *cast) stream(ev access.Event) error {
	s := ev.Stream
	if s.IsSize() {
		columns, rows := sizeOf(s)
		return c.entry(ev.Time, "r", strconv.Itoa(columns)+"x"+strconv.Itoa(rows))
	}
	text := s.Text
	if len(s.Bytes) > 0 {
		text = strings.ToValidUTF8(string(s.Bytes), "\ufffd")
	}
	if s.Name != access.Stdout || text == "" {
		return nil
	}
	if c.Inert {
		text = string(c.screen.Show([]byte(text)))
	}
	if c.written += len(text); c.Most > 0 && c.written > c.Most {
		c.over = true
		text = "\r\n" + restored + "[the recording goes on: chaperone sessions export has all of it]\r\n"
	}
	return c.entry(ev.Time, "o", text)
}

// entry writes an event: version 3 counts from the event before, version 2 from
// the beginning.
func (c *cast) entry(at time.Time, code, data string) error {
	since := c.before
	if c.Version == 2 {
		since = c.begun
	}
	micros := max(0, at.Sub(since).Microseconds())
	if at.After(c.before) {
		c.before = at
	}
	return c.line([]any{json.Number(strconv.FormatFloat(float64(micros)/1e6, 'f', -1, 64)), code, data})
}

func (c *cast) line(v any) error {
	encoder := json.NewEncoder(c.w)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("asciicast: %w", err)
	}
	return nil
}
