package console

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/record"
)

// A Kind says what an entry of a card is.
type Kind string

// The kinds.
const (
	Field      Kind = "field"      // one line
	Text       Kind = "text"       // several
	Difference Kind = "difference" // several, each of which begins with -, + or ~
)

// An Entry is one thing that a reviewer reads. Its value is inert: whatever a
// subagent wrote in it neither acts nor hides.
type Entry struct {
	Name  string `json:"name"`
	Kind  Kind   `json:"kind"`
	Value string `json:"value"`
	Alarm bool   `json:"alarm,omitempty"` // worth a second look
}

// CardOf is all that a reviewer reads of an approval before answering, in order.
// at writes a time.
func CardOf(a access.Approval, at func(time.Time) string) []Entry {
	c := &card{}
	req, p := a.Ask.Request, a.Ask.Request.Principal
	c.field("request", "%s", a.ID)
	c.field("state", "%s (opened %s, expires %s)", string(a.State), at(a.Opened), at(a.Expires))
	c.field("who", "subagent %s, workflow %s", p.Subagent, p.Workflow)
	c.field("for whom", "%s (%s/%s)", p.User, p.Issuer, p.Subject)
	for _, hop := range p.Chain {
		c.field("through", "%s (subject %s of %s) from token %s", hop.Actor, hop.Subject, hop.Issuer, hop.Parent)
		if text := hop.Attenuation.Text(); text != "" {
			c.field("  only", "%s", text)
		}
	}
	c.field("resource", "%s (%s)", req.Resource.Name, string(req.Resource.Kind))
	c.field("rule", "%s", a.Ask.Decision.Rule())
	if terms := a.Ask.Decision.Obligations.Approval; terms != nil {
		serves := "once"
		if terms.Window > 0 {
			serves = "again and again for " + terms.Window.String()
		}
		c.field("a grant", "takes %d of %s, and serves %s", terms.Count, strings.Join(terms.Groups, ", "), serves)
	}
	c.action(req.Action)
	c.preview(a.Ask.Preview, at)
	for _, answer := range a.Answers {
		verb := "refused"
		if answer.Grant {
			verb = "granted"
		}
		c.field(verb+" by", "%s at %s %s", answer.Reviewer.User, at(answer.Time), answer.Comment)
	}
	return c.entries
}

type card struct{ entries []Entry }

// field makes each text in args inert by itself.
func (c *card) field(name, format string, args ...any) {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = record.Visible(s)
		}
	}
	c.entries = append(c.entries, Entry{Name: name, Kind: Field, Value: fmt.Sprintf(format, args...)})
}

func (c *card) alarm(name, format string, args ...any) {
	c.field(name, format, args...)
	c.entries[len(c.entries)-1].Alarm = true
}

func (c *card) each(name string, values []string) {
	for _, v := range values {
		c.field(name, "%s", v)
	}
}

func (c *card) text(name, text string) {
	c.entries = append(c.entries, Entry{Name: name, Kind: Text, Value: visibleLines(text)})
}

// visibleLines makes text inert and keeps its lines.
func visibleLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = record.Visible(l)
	}
	return strings.Join(lines, "\n")
}

func (c *card) action(a access.Action) {
	switch {
	case a.SQL != nil:
		c.sql(a.SQL)
	case a.HTTP != nil:
		c.http(a.HTTP)
	case a.K8s != nil:
		c.k8s(a.K8s)
	case a.SSH != nil:
		c.ssh(a.SSH)
	}
}

func (c *card) sql(s *access.SQL) {
	c.field("command", "%s", s.Command)
	c.field("writes", "%s", strings.Join(s.Writes, ", "))
	c.field("reads", "%s", strings.Join(s.Reads, ", "))
	if s.HasWhere {
		c.field("has WHERE", "yes")
	} else {
		c.field("has WHERE", "NO: every row")
		c.entries[len(c.entries)-1].Alarm = len(s.Writes) > 0
	}
	for _, why := range s.Unknown {
		c.alarm("NOT KNOWN", "%s", why)
	}
	if s.EstimatedRows == nil || s.EstimatedBytes == nil {
		c.field("estimate", "unknown")
	} else {
		c.field("estimate", "%d rows, %d bytes", *s.EstimatedRows, *s.EstimatedBytes)
	}
	for i, v := range s.Parameters {
		value := v.Value
		if v.Null {
			value = "NULL"
		}
		c.field(fmt.Sprintf("$%d", i+1), "%s", value)
	}
	c.text("text", s.Text)
	if s.Forward != "" && s.Forward != s.Text {
		c.text("as forwarded", s.Forward)
		c.entries = append(c.entries, Entry{Name: "difference", Kind: Difference, Value: difference(s.Text, s.Forward)})
	}
}

func (c *card) http(h *access.HTTPCall) {
	c.field("call", "%s %s", h.Method, h.Path)
	if len(h.Query) > 0 {
		c.field("query", "%s", url.Values(h.Query).Encode())
	}
	c.field("body", "%d bytes, %s", h.BodyBytes, h.BodyDigest)
	c.content(h.BodyState, h.Body)
}

func (c *card) content(state access.BodyState, body any) {
	if state != access.BodyWhole {
		return
	}
	b, err := json.MarshalIndent(body, "", "  ")
	if err != nil {
		b = []byte("a body that cannot be shown")
	}
	c.text("content", string(b))
}

func (c *card) k8s(k *access.K8s) {
	c.field("what", "%s", k.String())
	c.field("call", "%s %s", k.Method, k.Path)
	c.field("powers", "%s", strings.Join(k.Powers, ", "))
	for i, word := range k.Command {
		c.field(fmt.Sprintf("command %d", i), "%s", word)
	}
	if k.Container != "" {
		c.field("container", "%s", k.Container)
	}
	if k.Terminal || k.Stdin {
		c.field("streams", "terminal %t, stdin %t", k.Terminal, k.Stdin)
	}
	if k.DryRun {
		c.field("dry run", "nothing is stored")
	}
	c.field("body", "%d bytes, %s %s", k.BodyBytes, k.ContentType, k.BodyDigest)
	c.content(k.BodyState, k.Body)
}

// preview shows what the target expects. Every line of a change begins with a
// mark, so that no text can pass for one.
func (c *card) preview(p *access.Preview, at func(time.Time) string) {
	if p == nil {
		return
	}
	c.field("preview", "an estimate of %s; what you grant is the request above", at(p.Taken))
	if p.None != "" {
		c.alarm("no preview", "%s", p.None)
	}
	if p.Creates {
		c.field("creates", "the object is not there yet")
	}
	if lines := previewLines(p); len(lines) > 0 {
		c.entries = append(c.entries, Entry{Name: "changes", Kind: Difference, Value: strings.Join(lines, "\n")})
	}
	if p.More > 0 {
		c.field("and", "%d more", p.More)
	}
	c.each("note", p.Notes)
}

func previewLines(p *access.Preview) (lines []string) {
	for _, c := range p.Changes {
		note := ""
		if c.Masked {
			note = " (masked)"
		}
		switch path, before, after := record.Visible(c.Path), record.Visible(c.Before), record.Visible(c.After); {
		case before == "":
			lines = append(lines, "+ "+path+": "+after+note)
		case after == "":
			lines = append(lines, "- "+path+": "+before+note)
		default:
			lines = append(lines, "~ "+path+": "+before+" -> "+after+note)
		}
	}
	for _, r := range p.Removes {
		names := strings.Join(r.Names, ", ")
		if r.Count > len(r.Names) {
			names += ", …"
		}
		lines = append(lines, fmt.Sprintf("- %d %s: %s", r.Count, record.Visible(r.What), record.Visible(names)))
	}
	return lines
}

func (c *card) ssh(s *access.SSHCall) {
	c.field("what", "%s as %s", s.Shape(), s.User)
	for _, why := range s.Unknown {
		c.alarm("NOT KNOWN", "%s", why)
	}
	for _, why := range s.UnknownPaths {
		c.alarm("paths not known", "%s", why)
	}
	c.each("reads", s.Reads)
	c.each("writes", s.Writes)
	c.each("removes", s.Removes)
	for _, name := range slices.Sorted(maps.Keys(s.Environment)) {
		c.field("environment", "%s", name+"="+s.Environment[name])
	}
	if s.Terminal {
		c.field("terminal", "yes")
	}
	if s.Host != "" {
		c.field("forward", "%s port %d", s.Host, s.Port)
	}
	c.text("text", s.Command)
}
