package postgres

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds of one batch of results: it is recorded, then written.
const (
	batchBytes = 32 << 10
	batchRows  = 64
)

// appendFrame appends one message.
func appendFrame(dst []byte, typ byte, body []byte) []byte {
	dst = append(dst, typ)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)+4))
	return append(dst, body...)
}

// emit adds a message of the gateway's own to what the client gets next.
func (s *session) emit(msg pgproto3.BackendMessage) error {
	out, err := msg.Encode(s.out)
	if err != nil {
		return fmt.Errorf("encode %T: %w", msg, err)
	}
	s.out = out
	return nil
}

// event completes an event of this session.
func (s *session) event(e access.Event) access.Event {
	e.Session, e.Time = s.info.ID, s.deps.Clock()
	return e
}

// flush records what the client is about to see, and then writes it.
func (s *session) flush(ctx context.Context) error {
	if err := s.recordResponses(ctx); err != nil {
		return err
	}
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.conn.Write(s.out)
	const keep = 256 << 10
	if cap(s.out) > keep {
		s.out = nil
	}
	s.out = s.out[:0]
	if err != nil {
		s.torn = true
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %w", errClientLeft, err)
	}
	return nil
}

// recordResponses writes the pending response events before their bytes leave.
func (s *session) recordResponses(ctx context.Context) error {
	if s.current != nil {
		s.responses = s.current.takeRows(s, s.responses)
	}
	if len(s.responses) == 0 {
		return nil
	}
	events := s.responses
	s.responses = nil
	return s.append(ctx, access.Written, events)
}

// recordBefore makes durable what must be so before the target is asked.
func (s *session) recordBefore(ctx context.Context) error {
	var events []access.Event
	for _, st := range s.steps[s.sent:] {
		events = append(events, st.before...)
	}
	if len(events) == 0 {
		return nil
	}
	if s.current != nil {
		s.responses = s.current.takeRows(s, s.responses)
	}
	events = append(s.responses, events...) // in the order in which it happened
	s.responses = nil
	return s.append(ctx, access.Synced, events)
}

// append records, or ends the session: nothing runs or is shown unrecorded.
func (s *session) append(ctx context.Context, d access.Durability, events []access.Event) error {
	err := s.deps.Recorder.Append(ctx, d, events...)
	if err == nil {
		return nil
	}
	s.out = nil // was not recorded, is not shown
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &fatalError{s.unavailable("the gateway cannot record"), fmt.Errorf("record: %w", err)}
}
