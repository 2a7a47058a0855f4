package postgres

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/sql"
)

// The messages of COPY (PostgreSQL manual, "COPY Operations").
const (
	msgCopyData = 'd'
	msgCopyDone = 'c'
	msgCopyFail = 'f'
)

// copies reports whether an execution is a COPY of that direction.
func (e *execution) copies(kind sql.Kind) bool {
	return e != nil && e.statement.judged.Kind == kind
}

// copyOut relays one message of COPY TO STDOUT. The data is never altered.
func (s *session) copyOut(ctx context.Context, e *execution, typ byte, body []byte) error {
	if typ != msgCopyData {
		if e.over == nil {
			s.out = appendFrame(s.out, typ, body)
		}
		return nil
	}
	if e.over != nil {
		return nil
	}
	switch {
	case e.limits.RowsRead > 0 && e.rows >= e.limits.RowsRead:
		e.over = s.overLimit(e, fmt.Sprintf("the copy has more than %d rows", e.limits.RowsRead))
	case e.limits.Bytes > 0 && e.bytes+int64(len(body)) > e.limits.Bytes:
		e.over = s.overLimit(e, fmt.Sprintf("the copy is larger than %d bytes", e.limits.Bytes))
	default:
		if err := e.use.Read(ctx, 1, int64(len(body))); err != nil {
			e.over = s.usedUp(e, err)
		}
	}
	if e.over != nil {
		s.up.cancel()
		return nil
	}
	e.rows, e.bytes = e.rows+1, e.bytes+int64(len(body))
	e.keepCopied(body, s.cfg.RecordedResult)
	s.out = appendFrame(s.out, typ, body)
	s.metrics.bytes.Add(float64(len(body)))
	if len(s.out) >= batchBytes || len(e.pending) >= batchRows {
		return s.flush(ctx)
	}
	return nil
}

// maxCopiedEvent bounds what of a copy goes into one event of the recording: as
// hexadecimal digits it is twice as long.
const maxCopiedEvent = 256 << 10

// keepCopied remembers one message of data for the recording, within its bound.
func (e *execution) keepCopied(data []byte, bound int64) {
	if e.recorded+int64(len(data)) > bound || len(data) > maxCopiedEvent {
		e.omitted++
		return
	}
	e.recorded += int64(len(data))
	text := `\x` + hex.EncodeToString(data)
	if !e.statement.judged.Binary && utf8.Valid(data) {
		text = strings.TrimSuffix(string(data), "\n")
	}
	e.pending = append(e.pending, []*string{&text})
}

// copyIn serves COPY FROM STDIN: while the client's data goes to the target,
// the target is listened to, for it may refuse it at any time.
func (s *session) copyIn(ctx context.Context, e *execution, body []byte) error {
	s.out = appendFrame(s.out, 'G', body)
	if err := s.flush(ctx); err != nil {
		return err
	}
	s.current = nil // the pump has it
	s.in.pin()      // it is stopped while it waits for data
	defer s.in.unpin()
	pumping, stop := context.WithCancel(ctx)
	defer stop()
	pumped := make(chan error, 1)
	go func() {
		defer func() {
			if fault := recover(); fault != nil {
				pumped <- fmt.Errorf("panic: %v", fault)
				s.up.interrupt()
			}
		}()
		err := s.pump(pumping, e)
		pumped <- err
		if err != nil {
			s.up.interrupt() // nothing more will come that the target could answer
		}
	}()
	typ, body, err := s.untilAnswered(ctx)
	stop()
	fault := <-pumped
	s.current = e
	switch {
	case fault != nil && ctx.Err() == nil:
		return fault
	case err != nil:
		return err
	}
	return s.answer(ctx, typ, body)
}

// untilAnswered relays what the target says by the way, up to the first message
// that answers.
func (s *session) untilAnswered(ctx context.Context) (byte, []byte, error) {
	for {
		typ, body, err := s.up.read()
		switch {
		case err != nil:
			return 0, nil, s.upstreamFault(ctx, err)
		case typ != 'N' && typ != 'S' && typ != 'A':
			return typ, body, nil
		}
		if err := s.answer(ctx, typ, body); err != nil {
			return 0, nil, err
		}
	}
}

// pump takes the client's data to the target until the client says that it is
// all, or ctx ends because the target has answered. What is forwarded was
// recorded before.
func (s *session) pump(ctx context.Context, e *execution) error {
	var tail []byte // of the data before, where a mask may begin
	for {
		var wire []byte
		for done := false; !done; done = len(wire) >= batchBytes || !s.in.waiting() {
			f, err := s.in.next(ctx)
			if err != nil {
				return s.pumpFault(ctx, err)
			}
			switch f.typ {
			case msgCopyData:
				e.bytes += int64(len(f.body))
				e.over, tail = s.checkCopied(ctx, e, tail, f.body)
				if e.over != nil {
					return s.endCopy(ctx, e, wire, &pgproto3.CopyFail{Message: "chaperone refused the data"})
				}
				e.keepCopied(f.body, s.cfg.RecordedResult)
				wire = appendFrame(wire, msgCopyData, f.body)
			case msgCopyDone:
				if len(f.body) != 0 {
					return s.inboxFault(ctx, malformed("CopyDone"))
				}
				return s.endCopy(ctx, e, wire, &pgproto3.CopyDone{})
			case msgCopyFail:
				text, ok := bytes.CutSuffix(f.body, []byte{0})
				if !ok || bytes.IndexByte(text, 0) >= 0 {
					return s.inboxFault(ctx, malformed("CopyFail"))
				}
				return s.endCopy(ctx, e, wire, &pgproto3.CopyFail{Message: string(text)})
			case msgSync, msgFlush: // the protocol has them ignored here
			default:
				return s.inboxFault(ctx, &frameError{sqlstateProtocol, fmt.Sprintf("unexpected message type %q during COPY from stdin", f.typ)})
			}
		}
		if err := s.forwardCopied(ctx, e, wire); err != nil {
			return err
		}
	}
}

// pumpFault says why no more data comes.
func (s *session) pumpFault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil // the target has answered, or the session's own context ended
	}
	return s.inboxFault(ctx, err)
}

// checkCopied refuses data beyond the limit, and masks that come back.
func (s *session) checkCopied(ctx context.Context, e *execution, tail, data []byte) (*refusal, []byte) {
	if e.limits.Bytes > 0 && e.bytes > e.limits.Bytes {
		return s.overLimit(e, fmt.Sprintf("the copy is larger than %d bytes", e.limits.Bytes)), nil
	}
	if err := e.use.Read(context.WithoutCancel(ctx), 0, int64(len(data))); err != nil { // ctx ends when the target has answered
		return s.usedUp(e, err), nil
	}
	if !s.masked || e.statement.judged.Binary {
		return nil, nil
	}
	joined := append(tail, data...)
	if mask.ContainsMask(joined) {
		return refuse(&access.Denial{
			RequestID: e.request.ID, Reason: access.MaskedField, Rule: e.decision.Rule(), Resource: s.resource.Access.Name, Revision: e.decision.Revision,
			Message: "the data to be copied holds a mask (" + mask.Mark + ")", Hint: "leave masked columns out of what you write",
		}, "judge"), nil
	}
	return nil, bytes.Clone(joined[max(0, len(joined)-len(mask.Mark)+1):])
}

// endCopy sends what is left and the end of the data. The Flush makes the
// target answer: the one before was swallowed by the copy.
func (s *session) endCopy(ctx context.Context, e *execution, wire []byte, end pgproto3.FrontendMessage) error {
	wire, err := end.Encode(wire)
	if err != nil {
		return fmt.Errorf("encode %T: %w", end, err)
	}
	return s.forwardCopied(ctx, e, append(wire, msgFlush, 0, 0, 0, 4))
}

func (s *session) forwardCopied(ctx context.Context, e *execution, wire []byte) error {
	if len(wire) == 0 {
		return nil
	}
	if events := e.takeRows(s, nil); len(events) > 0 {
		if err := s.deps.Recorder.Append(ctx, access.Written, events...); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return &fatalError{s.unavailable("the gateway cannot record"), fmt.Errorf("record: %w", err)}
		}
	}
	if err := s.up.write(wire); err != nil && ctx.Err() == nil {
		return s.upstreamFault(ctx, err)
	}
	return nil
}
