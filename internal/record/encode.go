package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/access"
)

// What every statement and request writes (decided, executed, rows, ended) is
// encoded by hand, for reflection took most of the time that recording did. The
// outcome is byte for byte that of encodeAny, which encodes the rest: a test
// fills every member of every event to show it.

// encodeAny is json.Marshal without the escapes for HTML, so that a recorded
// statement can be searched for as it was written.
func encodeAny(v any) ([]byte, error) { return appendAny(nil, v) }

func appendAny(b []byte, v any) ([]byte, error) {
	buf := bytes.NewBuffer(b)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return b, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// appendPayload appends ev encoded, without its seq, which only the writer
// knows. After an error b is as it was.
func appendPayload(b []byte, ev *access.Event) ([]byte, error) {
	start := len(b)
	e := encoder{b: b}
	e.event(ev)
	if e.err != nil {
		return b[:start], e.err
	}
	if n := len(e.b) - start; n > MaxEventBytes {
		return b[:start], fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, MaxEventBytes)
	}
	return e.b, nil
}

// An encoder appends JSON to b until something cannot be encoded. Members named
// opt are left out when they are empty.
type encoder struct {
	b   []byte
	err error
}

func (e *encoder) event(ev *access.Event) {
	e.open()
	e.time("time", ev.Time)
	e.optText("session", ev.Session)
	e.optText("request", ev.Request)
	optAny(e, "opened", ev.Opened)
	optAny(e, "closed", ev.Closed)
	if d := ev.Decided; d != nil {
		e.key("decided")
		e.open()
		e.key("request")
		e.request(&d.Request)
		e.key("decision")
		e.decision(&d.Decision)
		e.close()
	}
	optAny(e, "denied", ev.Denied)
	optAny(e, "approval", ev.Approval)
	if ev.Executed != nil {
		e.executed(ev.Executed)
	}
	if ev.Rows != nil {
		e.rows(ev.Rows)
	}
	optAny(e, "body", ev.Body)
	optAny(e, "stream", ev.Stream)
	if ev.Ended != nil {
		e.ended(ev.Ended)
	}
	optAny(e, "notice", ev.Notice)
	optAny(e, "admin", ev.Admin)
	e.close()
}

func (e *encoder) request(r *access.Request) {
	e.open()
	e.text("id", r.ID)
	e.text("session", r.Session)
	e.time("time", r.Time)
	e.key("principal")
	e.principal(&r.Principal)
	e.key("resource")
	e.open()
	e.text("name", r.Resource.Name)
	e.text("kind", string(r.Resource.Kind))
	e.optMap("labels", r.Resource.Labels)
	e.close()
	e.key("action")
	e.open()
	if r.Action.SQL != nil {
		e.sql(r.Action.SQL)
	}
	optAny(e, "http", r.Action.HTTP)
	optAny(e, "ssh", r.Action.SSH)
	optAny(e, "k8s", r.Action.K8s)
	e.close()
	e.close()
}

func (e *encoder) principal(p *access.Principal) {
	e.open()
	e.text("issuer", p.Issuer)
	e.text("subject", p.Subject)
	e.optText("user", p.User)
	e.optText("subagent", p.Subagent)
	e.optText("instance", p.Instance)
	e.optText("workflow", p.Workflow)
	e.optText("job", p.Job)
	e.optTexts("groups", p.Groups)
	if len(p.Chain) > 0 {
		e.any("chain", p.Chain)
	}
	e.key("token")
	e.open()
	e.text("id", p.Token.ID)
	if !p.Token.IssuedAt.IsZero() {
		e.time("issued_at", p.Token.IssuedAt)
	}
	e.time("expires_at", p.Token.ExpiresAt)
	e.optText("bound", p.Token.Bound)
	e.close()
	e.close()
}

func (e *encoder) sql(s *access.SQL) {
	e.key("sql")
	e.open()
	e.text("text", s.Text)
	e.optText("forward", s.Forward)
	e.text("command", s.Command)
	e.bool("read_only", s.ReadOnly)
	e.optTexts("tables", s.Tables)
	e.optTexts("reads", s.Reads)
	e.optTexts("writes", s.Writes)
	e.optTexts("columns", s.Columns)
	e.optTexts("functions", s.Functions)
	e.optTexts("channels", s.Channels)
	e.bool("has_where", s.HasWhere)
	e.int("statements", int64(s.Statements))
	e.optBool("locks", s.Locks)
	e.optBool("ddl", s.DDL)
	e.optBool("privilege", s.Privilege)
	e.optBool("session", s.Session)
	e.optTexts("unknown", s.Unknown)
	e.optBool("in_transaction", s.InTransaction)
	e.optTexts("search_path", s.SearchPath)
	e.optParameters(s.Parameters)
	if s.EstimatedRows != nil {
		e.int("estimated_rows", *s.EstimatedRows)
	}
	if s.EstimatedBytes != nil {
		e.int("estimated_bytes", *s.EstimatedBytes)
	}
	e.optText("plan", s.Plan)
	e.close()
}

func (e *encoder) optParameters(ps []access.BoundParameter) {
	if len(ps) == 0 {
		return
	}
	e.key("parameters")
	e.b = append(e.b, '[')
	for i := range ps {
		e.comma(i)
		e.open()
		e.int("type", int64(ps[i].Type))
		e.optText("value", ps[i].Value)
		e.optBool("null", ps[i].Null)
		e.optBool("binary", ps[i].Binary)
		e.optInt("size", ps[i].Size)
		e.optText("sha256", ps[i].SHA256)
		e.close()
	}
	e.b = append(e.b, ']')
}

func (e *encoder) decision(d *access.Decision) {
	e.open()
	e.text("effect", d.Effect.String())
	if len(d.Rules) > 0 {
		e.key("rules")
		e.b = append(e.b, '[')
		for i := range d.Rules {
			e.comma(i)
			e.rule(&d.Rules[i])
		}
		e.b = append(e.b, ']')
	}
	e.optText("reason", string(d.Reason))
	e.optText("message", d.Message)
	if d.Nearest != nil {
		e.key("nearest")
		e.rule(d.Nearest)
	}
	e.optText("hint", d.Hint)
	e.text("revision", d.Revision)
	if !d.Time.IsZero() {
		e.time("time", d.Time)
	}
	if o := &d.Obligations; o.Masks != nil || o.Limits != (access.Limits{}) || o.Approval != nil || o.WriteMasked != nil || o.SessionMax != 0 || o.Account != "" {
		e.obligations(o)
	}
	e.close()
}

func (e *encoder) rule(r *access.RuleRef) {
	e.open()
	e.text("policy", r.Policy)
	e.text("rule", r.Rule)
	e.optText("hash", r.Hash)
	e.close()
}

func (e *encoder) obligations(o *access.Obligations) {
	e.key("obligations")
	e.open()
	if len(o.Masks) > 0 {
		e.key("masks")
		e.b = append(e.b, '[')
		for i := range o.Masks {
			e.comma(i)
			e.open()
			e.optText("column", o.Masks[i].Column)
			e.optText("json", o.Masks[i].JSON)
			e.optTexts("detect", o.Masks[i].Detect)
			e.optTexts("secrets_except", o.Masks[i].SecretsExcept)
			e.optText("with", string(o.Masks[i].With))
			e.close()
		}
		e.b = append(e.b, ']')
	}
	if o.Limits != (access.Limits{}) {
		e.limits(&o.Limits)
	}
	optAny(e, "approval", o.Approval)
	e.optTexts("write_masked", o.WriteMasked)
	e.optInt("session_max", int64(o.SessionMax))
	e.optText("account", o.Account)
	e.close()
}

func (e *encoder) limits(l *access.Limits) {
	e.key("limits")
	e.open()
	e.optInt("rows_read", l.RowsRead)
	e.optInt("rows_changed", l.RowsChanged)
	e.optInt("bytes", l.Bytes)
	e.optInt("time", int64(l.Time))
	e.optQuota("session", &l.Session)
	e.optQuota("hour", &l.Hour)
	e.close()
}

func (e *encoder) optQuota(name string, q *access.Quota) {
	if *q == (access.Quota{}) {
		return
	}
	e.key(name)
	e.open()
	e.optInt("statements", q.Statements)
	e.optInt("rows_read", q.RowsRead)
	e.optInt("rows_changed", q.RowsChanged)
	e.optInt("bytes", q.Bytes)
	e.optInt("time", int64(q.Time))
	e.close()
}

func (e *encoder) executed(x *access.Executed) {
	e.key("executed")
	e.open()
	e.optText("sql", x.SQL)
	optAny(e, "http", x.HTTP)
	optAny(e, "k8s", x.K8s)
	optAny(e, "ssh", x.SSH)
	e.optParameters(x.Parameters)
	e.optText("approval", x.Approval)
	e.close()
}

func (e *encoder) rows(r *access.Rows) {
	e.key("rows")
	e.open()
	e.optTexts("columns", r.Columns)
	if len(r.Rows) > 0 {
		e.key("rows")
		e.b = append(e.b, '[')
		for i, row := range r.Rows {
			e.comma(i)
			e.row(row)
		}
		e.b = append(e.b, ']')
	}
	e.optInt("omitted", r.Omitted)
	e.close()
}

func (e *encoder) row(row []*string) {
	if row == nil {
		e.b = append(e.b, "null"...)
		return
	}
	e.b = append(e.b, '[')
	for i, cell := range row {
		e.comma(i)
		if cell == nil {
			e.b = append(e.b, "null"...)
		} else {
			e.b = appendString(e.b, *cell)
		}
	}
	e.b = append(e.b, ']')
}

func (e *encoder) ended(x *access.Ended) {
	e.key("ended")
	e.open()
	e.optText("tag", x.Tag)
	e.optInt("rows", x.Rows)
	e.optInt("bytes", x.Bytes)
	e.optInt("masked", x.Masked)
	e.optInt("duration", int64(x.Duration))
	e.optText("error", x.Error)
	if len(x.Streams) > 0 {
		e.any("streams", x.Streams)
	}
	e.close()
}

func (e *encoder) open()  { e.b = append(e.b, '{') }
func (e *encoder) close() { e.b = append(e.b, '}') }

func (e *encoder) comma(i int) {
	if i > 0 {
		e.b = append(e.b, ',')
	}
}

// key begins a member of the object that was opened last.
func (e *encoder) key(name string) {
	if e.b[len(e.b)-1] != '{' {
		e.b = append(e.b, ',')
	}
	e.b = append(e.b, '"')
	e.b = append(e.b, name...)
	e.b = append(e.b, '"', ':')
}

func (e *encoder) text(name, s string) {
	e.key(name)
	e.b = appendString(e.b, s)
}

func (e *encoder) optText(name, s string) {
	if s != "" {
		e.text(name, s)
	}
}

func (e *encoder) optTexts(name string, list []string) {
	if len(list) == 0 {
		return
	}
	e.key(name)
	e.b = append(e.b, '[')
	for i, s := range list {
		e.comma(i)
		e.b = appendString(e.b, s)
	}
	e.b = append(e.b, ']')
}

func (e *encoder) optMap(name string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	var few [8]string
	keys := few[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	e.key(name)
	e.b = append(e.b, '{')
	for i, k := range keys {
		e.comma(i)
		e.b = appendString(e.b, k)
		e.b = append(e.b, ':')
		e.b = appendString(e.b, m[k])
	}
	e.b = append(e.b, '}')
}

func (e *encoder) bool(name string, v bool) {
	e.key(name)
	e.b = strconv.AppendBool(e.b, v)
}

func (e *encoder) optBool(name string, v bool) {
	if v {
		e.bool(name, v)
	}
}

func (e *encoder) int(name string, v int64) {
	e.key(name)
	e.b = strconv.AppendInt(e.b, v, 10)
}

func (e *encoder) optInt(name string, v int64) {
	if v != 0 {
		e.int(name, v)
	}
}

func (e *encoder) time(name string, t time.Time) {
	e.key(name)
	e.b = append(e.b, '"')
	b, err := t.AppendText(e.b)
	if err != nil {
		e.fail(fmt.Errorf("%s: %w", name, err))
		return
	}
	e.b = append(b, '"')
}

func (e *encoder) any(name string, v any) {
	e.key(name)
	b, err := appendAny(e.b, v)
	e.b = b
	e.fail(err)
}

func optAny[T any](e *encoder, name string, v *T) {
	if v != nil {
		e.any(name, v)
	}
}

func (e *encoder) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

// appendString appends s as encoding/json does without the escapes for HTML:
// what is not UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				b = append(append(b, s[start:i]...), `\ufffd`...)
				start = i + size
			case r == '\u2028' || r == '\u2029':
				b = append(append(b, s[start:i]...), `\u202`...)
				b = append(b, digits[r&0xf])
				start = i + size
			}
			i += size
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&0xf])
		}
		i++
		start = i
	}
	return append(append(b, s[start:]...), '"')
}
