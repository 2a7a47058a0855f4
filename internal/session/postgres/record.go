package postgres

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/quota"
)

// An execution is one Execute on its way: what was decided about it, what it
// may still do, and what of its answer goes into the recording.
type execution struct {
	request   access.Request
	decision  access.Decision
	before    []access.Event // durable before it leaves
	statement *statement
	portal    *portal
	max       uint32 // rows that the client asked for; 0 is all
	limits    access.Limits
	use       *quota.Use // nil: nothing beyond this execution has a limit
	runs      *named     // what FETCH and EXECUTE run; nil for all others
	sent      string     // as the target gets it
	detector  Detector   // nil when nothing is to be detected
	span      trace.Span

	started  time.Time
	timer    *time.Timer
	timedOut atomic.Bool
	expiry   *time.Timer // of the token, where the session may outlive it
	expired  atomic.Bool
	over     *refusal // a limit was reached: the rest is dropped
	withheld byte     // type of the answer that waits for settle; 0 is none
	tag      []byte
	changed  int64 // rows changed in this transaction before
	ended    bool

	rows, bytes, masked int64

	pending  [][]*string
	recorded int64
	omitted  int64
	headed   bool
}

// begin is called when the Execute is about to leave.
func (e *execution) begin(s *session) {
	if e == nil { // an empty statement
		return
	}
	e.started = s.deps.Clock()
	s.current = e
	if e.limits.Time > 0 {
		up := s.up
		e.timer = time.AfterFunc(e.limits.Time, func() {
			e.timedOut.Store(true)
			up.cancel()
		})
	}
	e.endWithToken(s)
}

// row takes one DataRow: limits, detectors, recording, and out.
func (s *session) row(ctx context.Context, st *step, body []byte) error {
	cells, err := splitRow(s.cells[:0], body)
	if err != nil {
		return lostTarget(s.unavailable("the target broke the protocol"), err)
	}
	s.cells = cells
	if st.quiet {
		st.own.add(cells)
		return nil
	}
	e := st.exec
	if e == nil || e.over != nil {
		return nil
	}
	seen := e.seen()
	if e.limits.RowsRead > 0 && *seen >= e.limits.RowsRead {
		// No more than this row was asked for: nothing needs cancelling.
		e.over = s.overLimit(e, fmt.Sprintf("the result has more than %d rows", e.limits.RowsRead))
		return nil
	}
	changed := e.detect(cells)
	if changed {
		body = joinRow(cells)
	}
	if err := e.use.Read(ctx, 1, int64(len(body))); err != nil {
		e.over = s.usedUp(e, err)
		s.up.cancel()
		return nil
	}
	if e.limits.Bytes > 0 && e.bytes+int64(len(body)) > e.limits.Bytes {
		e.over = s.overLimit(e, fmt.Sprintf("the result is larger than %d bytes", e.limits.Bytes))
		s.up.cancel()
		return nil
	}
	e.rows, e.bytes, *seen = e.rows+1, e.bytes+int64(len(body)), *seen+1
	e.keep(cells, s.cfg.RecordedResult)
	if e.portal.call != nil {
		s.out = appendCallResponse(s.out, body)
	} else {
		s.out = appendFrame(s.out, 'D', body)
	}
	s.metrics.bytes.Add(float64(len(body)))
	if len(s.out) >= batchBytes || len(e.pending) >= batchRows {
		return s.flush(ctx)
	}
	return nil
}

// seen counts the rows that the client already got of this result: a portal's
// or a cursor's, however many executions fetched them.
func (e *execution) seen() *int64 {
	if e.runs != nil && e.runs.cursor {
		return &e.runs.rows
	}
	return &e.portal.rows
}

// overLimit is the refusal of a result beyond what the rule allows.
func (s *session) overLimit(e *execution, message string) *refusal {
	return refuse(&access.Denial{
		RequestID: e.request.ID, Reason: access.LimitExceeded, Rule: e.decision.Rule(), Message: message + ", which is the limit of " + e.decision.Rule(),
		Resource: s.resource.Access.Name, Revision: e.decision.Revision, Hint: "ask for less at a time",
	}, "limit")
}

// detect replaces in the cells what the detector finds.
func (e *execution) detect(cells [][]byte) (changed bool) {
	if e.detector == nil {
		return false
	}
	for i, cell := range cells {
		if cell == nil || !e.portal.textLike(i) {
			continue
		}
		if masked, found := e.detector(cell); found {
			cells[i], changed = masked, true
			e.masked++
		}
	}
	return changed
}

// keep remembers a row for the recording, within its bound.
func (e *execution) keep(cells [][]byte, bound int64) {
	var size int64
	for _, cell := range cells {
		size += int64(len(cell)) + 8
	}
	if e.recorded+size > bound {
		e.omitted++
		return
	}
	e.recorded += size
	row := make([]*string, len(cells))
	for i, cell := range cells {
		if cell != nil {
			text := e.portal.text(i, cell)
			row[i] = &text
		}
	}
	e.pending = append(e.pending, row)
}

// takeRows moves the pending rows into an event. Rows that were left out are
// told with the last event.
func (e *execution) takeRows(s *session, events []access.Event) []access.Event {
	if len(e.pending) == 0 {
		return events
	}
	rows := &access.Rows{Rows: e.pending}
	if !e.headed {
		rows.Columns, e.headed = e.portal.columns(), true
	}
	e.pending = nil
	ev := s.event(access.Event{Rows: rows})
	ev.Request = e.request.ID
	return append(events, ev)
}

// finish writes the end of an execution to the pending events: rows, then
// Ended. It is idempotent.
func (s *session) finish(e *execution, tag, failure string) {
	if e == nil || e.ended {
		return
	}
	e.ended = true
	if e.timer != nil {
		e.timer.Stop()
	}
	if e.expiry != nil {
		e.expiry.Stop()
	}
	s.responses = e.takeRows(s, s.responses)
	if e.omitted > 0 {
		ev := s.event(access.Event{Request: e.request.ID, Rows: &access.Rows{Omitted: e.omitted}})
		s.responses = append(s.responses, ev)
	}
	ended := &access.Ended{Tag: tag, Rows: e.rows, Bytes: e.bytes, Masked: e.masked, Error: failure}
	if !e.started.IsZero() {
		ended.Duration = s.deps.Clock().Sub(e.started)
	}
	s.endUse(e, ended.Duration)
	s.responses = append(s.responses, s.event(access.Event{Request: e.request.ID, Ended: ended}))
	if s.current == e {
		s.current = nil
	}
	endSpan(e.span, ended)
}

// splitRow parses a DataRow and appends its cells, which alias body; nil is NULL.
func splitRow(cells [][]byte, body []byte) ([][]byte, error) {
	if len(body) < 2 {
		return nil, malformed("DataRow")
	}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	if len(body) < 4*n {
		return nil, malformed("DataRow")
	}
	for range n {
		if len(body) < 4 {
			return nil, malformed("DataRow")
		}
		size := int64(int32(binary.BigEndian.Uint32(body)))
		body = body[4:]
		if size == -1 {
			cells = append(cells, nil)
			continue
		}
		if size < 0 || size > int64(len(body)) {
			return nil, malformed("DataRow")
		}
		cells, body = append(cells, body[:size:size]), body[size:]
	}
	if len(body) != 0 {
		return nil, malformed("DataRow")
	}
	return cells, nil
}

func joinRow(cells [][]byte) []byte {
	row := binary.BigEndian.AppendUint16(nil, uint16(len(cells)))
	for _, cell := range cells {
		if cell == nil {
			row = binary.BigEndian.AppendUint32(row, 0xffffffff)
			continue
		}
		row = binary.BigEndian.AppendUint32(row, uint32(len(cell)))
		row = append(row, cell...)
	}
	return row
}

// A field is a column of a result.
type field struct {
	name string
	oid  uint32
}

func readFields(body []byte) ([]field, error) {
	var d pgproto3.RowDescription
	if err := d.Decode(body); err != nil {
		return nil, err
	}
	fields := make([]field, len(d.Fields))
	for i, f := range d.Fields {
		fields[i] = field{string(f.Name), f.DataTypeOID}
	}
	return fields, nil
}

// isText reports whether the binary form of a type is its text.
func isText(oid uint32) bool {
	switch oid {
	case pgtype.TextOID, pgtype.VarcharOID, pgtype.BPCharOID, pgtype.NameOID, pgtype.QCharOID, pgtype.JSONOID,
		pgtype.XMLOID, pgtype.UnknownOID:
		return true
	}
	return false
}

// mayHoldText reports whether values of a type can hold free text, in either
// format. Numbers, times and the like cannot; what is not known can.
func mayHoldText(oid uint32) bool {
	switch oid {
	case pgtype.BoolOID, pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.Float4OID, pgtype.Float8OID,
		pgtype.NumericOID, pgtype.OIDOID, pgtype.DateOID, pgtype.TimeOID, pgtype.TimetzOID, pgtype.TimestampOID,
		pgtype.TimestamptzOID, pgtype.IntervalOID, pgtype.UUIDOID, pgtype.TIDOID, pgtype.XIDOID, pgtype.CIDOID,
		pgtype.BitOID, pgtype.VarbitOID, pgtype.InetOID, pgtype.CIDROID, pgtype.MacaddrOID,
		pgtype.Int2ArrayOID, pgtype.Int4ArrayOID, pgtype.Int8ArrayOID, pgtype.Float4ArrayOID, pgtype.Float8ArrayOID,
		pgtype.NumericArrayOID, pgtype.BoolArrayOID:
		return false
	}
	return true
}

// cellText renders a cell for the recording. What has no text form here is hex.
func cellText(types *pgtype.Map, oid uint32, format int16, cell []byte) string {
	if format == 0 || isText(oid) && utf8.Valid(cell) {
		return string(cell)
	}
	if t, ok := types.TypeForOID(oid); ok {
		value, err := t.Codec.DecodeDatabaseSQLValue(types, oid, format, cell)
		if err == nil {
			switch v := value.(type) {
			case string:
				return v
			case int64:
				return strconv.FormatInt(v, 10)
			case float64:
				return strconv.FormatFloat(v, 'g', -1, 64)
			case bool:
				return strconv.FormatBool(v)
			case time.Time:
				return v.Format(time.RFC3339Nano)
			}
		}
	}
	return `\x` + hex.EncodeToString(cell)
}
