package record

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// RenderOptions say how RenderEvents shows a session.
type RenderOptions struct {
	Colour bool
	// Speed replays with the pauses that there were, divided by Speed and none
	// longer than IdleLimit; 0 shows everything at once.
	Speed float64
	// IdleLimit is the longest pause; 0 is 3 s.
	IdleLimit time.Duration
	// Screens says that w is a terminal, on which what sessions showed on theirs
	// may be drawn, as far as a Screen lets it. Else it is shown as lines of text.
	Screens bool
}

const defaultIdleLimit = 3 * time.Second

// RenderEvents writes events to w as text for a person: statements and calls,
// what was decided and why, rows as tables, bodies, errors. Whatever came from
// a client or a target stands behind a bar at the left and is inert: it can
// neither act on the terminal nor pass for chaperone's own words. It stops at
// the first error of events, of w or of ctx.
func RenderEvents(ctx context.Context, w io.Writer, events iter.Seq2[access.Event, error], opts RenderOptions) error {
	r := &renderer{colour: opts.Colour, screens: opts.Screens}
	if opts.IdleLimit <= 0 {
		opts.IdleLimit = defaultIdleLimit
	}
	var before time.Time
	for ev, err := range events {
		if err != nil {
			return err
		}
		if err := pause(ctx, before, ev.Time, opts); err != nil {
			return err
		}
		before = ev.Time
		r.event(ev)
		if _, err := r.out.WriteTo(w); err != nil {
			return fmt.Errorf("render: %w", err)
		}
	}
	r.leaveScreen()
	if _, err := r.out.WriteTo(w); err != nil {
		return fmt.Errorf("render: %w", err)
	}
	return nil
}

// pause waits as long as there was between two events.
func pause(ctx context.Context, before, now time.Time, opts RenderOptions) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if opts.Speed <= 0 || before.IsZero() || !now.After(before) {
		return nil
	}
	gap := min(float64(now.Sub(before))/opts.Speed, float64(opts.IdleLimit))
	timer := time.NewTimer(time.Duration(gap))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A renderer turns one event after the other into text.
type renderer struct {
	out     bytes.Buffer
	colour  bool
	request string // the one that is being shown
	text    string // what it asked
	table   table  // of the result that is being shown

	screens  bool
	displays map[string]*display // of the requests with a terminal
	display  *display            // of the request that is being shown; nil: it has none
	drawn    bool                // on the screen, which is not restored yet
	streamed string              // the stream that is being shown
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	dim    = "2"
	bold   = "1"
)

// paint colours chaperone's own words.
func (r *renderer) paint(code, s string) string {
	if !r.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// line writes one line of chaperone's own words; foreign arguments are made
// inert.
func (r *renderer) line(format string, args ...any) {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = Visible(s)
		}
	}
	fmt.Fprintf(&r.out, format+"\n", args...)
}

// foreign writes text of others, each line behind a bar.
func (r *renderer) foreign(text string) {
	for l := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		r.bar(strings.ReplaceAll(l, "\t", "    "))
	}
}

func (r *renderer) bar(s string) {
	r.out.WriteString("  " + r.paint(dim, "│") + " " + Visible(s) + "\n")
}

func (r *renderer) event(ev access.Event) {
	r.turnTo(ev)
	if ev.Stream == nil {
		r.leaveScreen()
	}
	switch {
	case ev.Opened != nil:
		r.opened(ev.Opened.Session)
	case ev.Closed != nil:
		r.line("%s session closed: %s", stamp(ev.Time), ev.Closed.Cause)
	case ev.Decided != nil:
		r.decided(ev.Decided)
	case ev.Denied != nil:
		r.denied(ev.Denied)
	case ev.Approval != nil:
		r.approval(ev.Approval)
	case ev.Executed != nil:
		r.executed(ev.Executed)
	case ev.Rows != nil:
		r.rows(ev.Rows)
	case ev.Body != nil:
		r.body(ev.Body)
	case ev.Stream != nil:
		r.stream(ev.Stream)
	case ev.Ended != nil:
		r.ended(ev.Ended)
	case ev.Notice != nil:
		r.line("  %s:", ev.Notice.Severity)
		r.foreign(ev.Notice.Text)
	case ev.Admin != nil:
		r.line("%s %s on %s by %s", stamp(ev.Time), ev.Admin.Act, ev.Admin.On, who(ev.Admin.Actor))
	}
}

// turnTo names the request that ev belongs to when it is another one than
// before.
func (r *renderer) turnTo(ev access.Event) {
	if ev.Request == r.request {
		return
	}
	r.leaveScreen()
	r.request, r.text, r.table, r.streamed = ev.Request, "", table{}, ""
	r.display = r.displays[ev.Request]
	if ev.Request != "" {
		r.out.WriteString("\n" + stamp(ev.Time) + " " + r.paint(bold, Visible(ev.Request)) + "\n")
	}
}

func stamp(t time.Time) string { return t.UTC().Format("15:04:05.000") }

// who names a principal in a few words.
func who(p access.Principal) string {
	name := p.User
	if name == "" {
		name = p.Subject
	}
	if p.Subagent != "" {
		name += " through " + p.Subagent
	}
	if p.Workflow != "" {
		name += " in " + p.Workflow
	}
	return name
}

func (r *renderer) opened(s access.Session) {
	r.line("session %s", s.ID)
	r.line("  %s on %s (%s)", who(s.Principal), s.Resource.Name, string(s.Resource.Kind))
	r.line("  subject %s of %s, from %s, opened %s", s.Principal.Subject, s.Principal.Issuer, s.Client,
		s.Opened.UTC().Format(time.RFC3339))
	for i, h := range s.Principal.Chain {
		r.line("  hop %d: to %s (subject %s of %s) from token %s", i+1, h.Actor, h.Subject, h.Issuer, h.Parent)
		if text := h.Attenuation.Text(); text != "" {
			r.line("    only: %s", text)
		}
	}
}

func (r *renderer) decided(d *access.Decided) {
	r.action(d.Request.Action)
	effect := map[access.Effect]string{access.Allow: green, access.Approve: yellow}[d.Decision.Effect]
	if effect == "" {
		effect = red
	}
	r.out.WriteString("  " + r.paint(effect, d.Decision.Effect.String()))
	r.line("  %s", d.Decision.Rule())
	if d.Decision.Reason != "" || d.Decision.Message != "" {
		r.line("    %s: %s", string(d.Decision.Reason), d.Decision.Message)
	}
	if d.Decision.Hint != "" {
		r.line("    hint: %s", d.Decision.Hint)
	}
	for _, m := range d.Decision.Obligations.Masks {
		with := m.With
		if with == "" {
			with = access.Redact
		}
		r.line("    mask %s: %s", m.What(), string(with))
	}
}

// action shows what was asked.
func (r *renderer) action(a access.Action) {
	switch {
	case a.SQL != nil:
		r.text = a.SQL.Text
		r.foreign(a.SQL.Text)
		r.parameters(a.SQL.Parameters)
	case a.HTTP != nil:
		r.text = callLine(a.HTTP)
		r.call(a.HTTP)
	case a.K8s != nil:
		r.text = a.K8s.String()
		r.k8s(a.K8s)
	case a.SSH != nil:
		r.ssh(a.SSH)
	}
}

func (r *renderer) parameters(ps []access.BoundParameter) {
	for i, p := range ps {
		value := p.Value
		switch {
		case p.Null:
			value = "NULL"
		case p.Binary:
			value = "base64 " + value
		}
		if p.Size > 0 {
			value += fmt.Sprintf("… (%d bytes, sha256 %s)", p.Size, p.SHA256)
		}
		r.bar(fmt.Sprintf("$%d = %s", i+1, value))
	}
}

func callLine(c *access.HTTPCall) string {
	target := c.Path
	if len(c.Query) > 0 {
		target += "?" + url.Values(c.Query).Encode()
	}
	return c.Method + " " + c.Host + target
}

func (r *renderer) call(c *access.HTTPCall) {
	r.bar(callLine(c))
	r.sent(c.Body, c.BodyBytes, c.BodyState)
}

func (r *renderer) k8s(k *access.K8s) {
	r.bar(k.String())
	for _, word := range k.Command {
		r.bar("  " + word)
	}
	r.sent(k.Body, k.BodyBytes, k.BodyState)
}

func (r *renderer) sent(body any, bytes int64, state access.BodyState) {
	switch {
	case body != nil:
		b, err := json.MarshalIndent(body, "", "  ")
		if err != nil {
			b = []byte("a body that cannot be shown")
		}
		r.foreign(string(b))
	case bytes > 0:
		r.line("  a body of %d bytes (%s)", bytes, string(state))
	}
}

func (r *renderer) denied(d *access.Denied) {
	if d.Text != "" && d.Text != r.text {
		r.foreign(d.Text)
	}
	r.out.WriteString("  " + r.paint(red, "deny"))
	r.line("  %s", d.Denial.Message)
	r.line("    %s", d.Denial.Detail())
	if d.Denial.Hint != "" {
		r.line("    hint: %s", d.Denial.Hint)
	}
	if d.Cause != "" {
		r.line("    cause: %s", d.Cause)
	}
}

func (r *renderer) approval(a *access.ApprovalEvent) {
	r.out.WriteString("  " + r.paint(yellow, "approval "+Visible(string(a.State))))
	if a.Answer == nil {
		r.line("  %s", a.ID)
		return
	}
	word := "refused"
	if a.Answer.Grant {
		word = "granted"
	}
	r.line("  %s, %s by %s", a.ID, word, who(a.Answer.Reviewer))
	if a.Answer.Comment != "" {
		r.foreign(a.Answer.Comment)
	}
}

// executed shows what went to the target, when it is not what was asked.
func (r *renderer) executed(x *access.Executed) {
	if x.Approval != "" {
		r.line("  runs by approval %s", x.Approval)
	}
	switch {
	case x.HTTP != nil && callLine(x.HTTP) != r.text:
		r.line("  sent on as")
		r.call(x.HTTP)
	case x.K8s != nil && x.K8s.String() != r.text:
		r.line("  sent on as")
		r.k8s(x.K8s)
	case x.SQL != "" && x.SQL != r.text:
		r.line("  sent on as")
		r.foreign(x.SQL)
	}
}

func (r *renderer) rows(rows *access.Rows) {
	for _, l := range r.table.add(rows.Columns, rows.Rows) {
		r.bar(l)
	}
	if rows.Omitted > 0 {
		r.line("  %d rows are not recorded", rows.Omitted)
	}
}

func (r *renderer) body(b *access.BodyChunk) {
	if b.Status > 0 {
		r.line("  status %d", b.Status)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Headers)) {
		r.bar(name + ": " + strings.Join(b.Headers[name], ", "))
	}
	if b.Text != "" {
		r.foreign(b.Text)
	}
	if len(b.Bytes) > 0 {
		r.line("  %d bytes that are not text", len(b.Bytes))
	}
	if b.Omitted > 0 {
		r.line("  %d bytes are not recorded", b.Omitted)
	}
}

func (r *renderer) ended(e *access.Ended) {
	r.table = table{}
	parts := []string{}
	if e.Tag != "" {
		parts = append(parts, e.Tag)
	}
	count := func(n int64, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	count(e.Rows, "rows")
	count(e.Bytes, "bytes")
	count(e.Masked, "values masked")
	if e.Duration > 0 {
		parts = append(parts, e.Duration.Round(10*time.Microsecond).String())
	}
	if len(parts) > 0 {
		r.line("  %s", strings.Join(parts, ", "))
	}
	r.sums(e.Streams)
	delete(r.displays, r.request)
	r.display = nil
	if e.Error != "" {
		r.out.WriteString("  " + r.paint(red, "error") + "\n")
		r.foreign(e.Error)
	}
}
