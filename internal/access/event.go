package access

import (
	"encoding/json"
	"time"
)

// A Durability says when Append may return.
type Durability uint8

const (
	// Synced: the events are on disk (fsync) before Append returns. For
	// requests, decisions, approvals and whatever else comes before an act.
	Synced Durability = iota
	// Written: the events are handed to the operating system before Append
	// returns, and are on disk within 100 ms. For masked response events.
	Written
)

// An Event is one line of a recording. Exactly one payload member is set. Seq
// and Time are the recorder's: a caller leaves Seq 0; a zero Time becomes now.
// Nothing in an event is a secret: tokens appear as digests, values masked.
type Event struct {
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	Session string    `json:"session,omitempty"`
	Request string    `json:"request,omitempty"`

	Opened   *SessionOpened  `json:"opened,omitempty"`
	Closed   *SessionClosed  `json:"closed,omitempty"`
	Decided  *Decided        `json:"decided,omitempty"`
	Denied   *Denied         `json:"denied,omitempty"`
	Approval *ApprovalEvent  `json:"approval,omitempty"`
	Executed *Executed       `json:"executed,omitempty"`
	Rows     *Rows           `json:"rows,omitempty"`
	Body     *BodyChunk      `json:"body,omitempty"`
	Stream   *StreamChunk    `json:"stream,omitempty"`
	Ended    *Ended          `json:"ended,omitempty"`
	Notice   *Notice         `json:"notice,omitempty"`
	Admin    *Administrative `json:"admin,omitempty"`
}

// A Session is one client connection, or one group of HTTP requests.
type Session struct {
	ID        string    `json:"id"`
	Principal Principal `json:"principal"`
	Resource  Resource  `json:"resource"`
	Client    string    `json:"client"` // address as Envoy saw it
	Opened    time.Time `json:"opened"`
	Deadline  time.Time `json:"deadline"` // absolute
	Trace     string    `json:"trace,omitempty"`
}

// SessionOpened begins a session's recording.
type SessionOpened struct {
	Session Session `json:"session"`
}

// SessionClosed ends it; Cause is "client left", "killed by …", "token expired", …
type SessionClosed struct {
	Cause string `json:"cause"`
}

// Decided is written before its request is forwarded or refused, and holds the
// whole input of the decision so that other policies can be replayed over it.
type Decided struct {
	Request  Request  `json:"request"`
	Decision Decision `json:"decision"`
}

// Denied is a refusal that policy did not make: identity, parsing, protocol,
// bounds, faults. Cause is for operators and may say more than Denial does.
type Denied struct {
	Denial   Denial `json:"denial"`
	Cause    string `json:"cause,omitempty"`
	Resource string `json:"resource,omitempty"`
	Client   string `json:"client,omitempty"`
	Text     string `json:"text,omitempty"` // what was asked, as far as it was read
}

// An ApprovalEvent is one step of an approval's life.
type ApprovalEvent struct {
	ID     string        `json:"id"`
	Digest string        `json:"digest"`
	State  ApprovalState `json:"state"`
	Answer *Answer       `json:"answer,omitempty"`
	// Preview is what reviewers see beside the request, of a pending one.
	Preview *Preview `json:"preview,omitempty"`
}

// Executed says that a statement or request is about to be forwarded, exactly
// as the target will see it.
type Executed struct {
	SQL  string    `json:"sql,omitempty"`
	HTTP *HTTPCall `json:"http,omitempty"`
	K8s  *K8s      `json:"k8s,omitempty"`
	SSH  *SSHCall  `json:"ssh,omitempty"`
	// Parameters are the bound values of this execution.
	Parameters []BoundParameter `json:"parameters,omitempty"`
	Approval   string           `json:"approval,omitempty"` // the grant that it consumes
}

// Rows are result rows in text form as the client receives them. A nil cell is
// NULL. Columns is set on the first Rows of a result. The data of a COPY, in
// either direction, is one cell for each of its messages.
type Rows struct {
	Columns []string    `json:"columns,omitempty"`
	Rows    [][]*string `json:"rows,omitempty"`
	// Omitted counts rows left out because the recording bound was reached.
	Omitted int64 `json:"omitted,omitempty"`
}

// A BodyChunk is one piece of a masked HTTP response body. Text that is not
// UTF-8 is in Bytes.
type BodyChunk struct {
	Status  int                 `json:"status,omitempty"`  // on the first chunk
	Headers map[string][]string `json:"headers,omitempty"` // on the first chunk, credentials removed
	Text    string              `json:"text,omitempty"`
	Bytes   []byte              `json:"bytes,omitempty"`
	Omitted int64               `json:"omitted,omitempty"`
}

// The streams of an act on a host.
const (
	Stdin  = "stdin"
	Stdout = "stdout" // of a terminal: all that it shows
	Stderr = "stderr"
)

// A StreamChunk is one piece of a stream of an act on a host, as the client sent
// or received it, with secrets replaced. Text that is not UTF-8 is in Bytes. A
// terminal's size comes with Stdout, in a chunk of its own: the first before
// everything else, and one for each resize.
type StreamChunk struct {
	Name    string `json:"name"`
	Text    string `json:"text,omitempty"`
	Bytes   []byte `json:"bytes,omitempty"`
	Columns int    `json:"columns,omitempty"`
	Rows    int    `json:"rows,omitempty"`
	Term    string `json:"term,omitempty"` // kind of terminal, with the first size
	// Omitted counts bytes left out, at the end: the recording bound was reached,
	// or they are a file in transit or other binary.
	Omitted int64 `json:"omitted,omitempty"`
}

// IsSize reports whether the chunk is the size of a terminal, which may be 0 by
// 0 when the client has none itself.
func (c *StreamChunk) IsSize() bool { return c.Text == "" && len(c.Bytes) == 0 && c.Omitted == 0 }

// A StreamSum is all of a stream, as it passed the gateway, before anything was
// replaced in the recording.
type StreamSum struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Ended closes a request: how it came out at the target.
type Ended struct {
	Tag      string        `json:"tag,omitempty"` // command tag, HTTP status, or "exit 0" and "signal TERM"
	Rows     int64         `json:"rows,omitempty"`
	Bytes    int64         `json:"bytes,omitempty"`
	Masked   int64         `json:"masked,omitempty"` // values that detectors or field masks replaced
	Duration time.Duration `json:"duration,omitempty"`
	Error    string        `json:"error,omitempty"` // as the client received it
	Streams  []StreamSum   `json:"streams,omitempty"`
}

// A Notice is text shown to the client beside results.
type Notice struct {
	Severity string `json:"severity"`
	Text     string `json:"text"`
}

// Administrative is an act of a person on the gateway itself.
type Administrative struct {
	Actor Principal       `json:"actor"`
	Act   string          `json:"act"` // "session.kill", "approval.approve", …
	On    string          `json:"on"`
	Input json.RawMessage `json:"input,omitempty"`
}

// Type names the payload: "opened", "decided", …; "" when none is set.
func (e Event) Type() string {
	switch {
	case e.Opened != nil:
		return "opened"
	case e.Closed != nil:
		return "closed"
	case e.Decided != nil:
		return "decided"
	case e.Denied != nil:
		return "denied"
	case e.Approval != nil:
		return "approval"
	case e.Executed != nil:
		return "executed"
	case e.Rows != nil:
		return "rows"
	case e.Body != nil:
		return "body"
	case e.Stream != nil:
		return "stream"
	case e.Ended != nil:
		return "ended"
	case e.Notice != nil:
		return "notice"
	case e.Admin != nil:
		return "admin"
	}
	return ""
}
