package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/sql"
)

// Notifications. LISTEN is decided when it runs; what others then send to the
// channel reaches the client as it comes, also while it waits for nothing. A
// payload is free text that triggers may fill from any column: where columns are
// masked the client gets a mask for it, and learns only that something happened.
//
//	LISTEN jobs ─────────► judged, decided, recorded ──► target
//	◄ NotificationResponse   channel known? mask, record  ◄── NotificationResponse

// maxChannels bounds those that a session listens to.
const maxChannels = 100

// aNotification is what the recording calls one, in the place of a severity.
const aNotification = "NOTIFICATION"

// checkChannel bounds LISTEN.
func (s *session) checkChannel(st *statement) *refusal {
	if _, known := s.channels[st.judged.Name]; known || st.judged.Kind != sql.KindListen || len(s.channels) < maxChannels {
		return nil
	}
	d := s.newDenial(access.LimitExceeded, fmt.Sprintf("a session listens to at most %d channels", maxChannels))
	d.Hint = "use fewer channels, and tell things apart by the payload"
	return refuse(d, "channels")
}

// next takes the client's next message. While the session listens, the target
// is listened to meanwhile.
func (s *session) next(ctx context.Context) (frame, error) {
	if len(s.channels) > 0 {
		s.in.pin()
		defer s.in.unpin()
	}
	for len(s.channels) > 0 && !s.in.arrived() {
		told, stop := s.up.peek()
		select {
		case <-s.in.ready:
		case <-told:
		case <-ctx.Done():
		}
		if err := stop(); err != nil {
			return frame{}, s.upstreamFault(ctx, err)
		}
		if err := s.relayTold(ctx); err != nil {
			return frame{}, err
		}
		if ctx.Err() != nil {
			return frame{}, context.Cause(ctx)
		}
	}
	if !s.in.waiting() {
		s.up.rest()
	}
	f, err := s.in.next(ctx)
	if err != nil {
		return frame{}, s.inboxFault(ctx, err)
	}
	return f, nil
}

// relayTold passes on what the target has said of its own accord.
func (s *session) relayTold(ctx context.Context) error {
	for s.up.r.buffered() > 0 {
		typ, body, err := s.up.read()
		if err != nil {
			return s.upstreamFault(ctx, err)
		}
		switch typ {
		case 'A':
			err = s.notification(body)
		case 'N':
			err = s.notice(ctx, body)
		case 'S':
			err = s.parameterStatus(body)
		case 'E':
			err = s.toldError(body)
		default:
			err = s.unexpected(typ)
		}
		if err != nil {
			return err
		}
	}
	return s.flush(ctx)
}

// toldError relays an error that answers nothing: the target ends the session.
func (s *session) toldError(body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return lostTarget(s.unavailable("the target broke the protocol"), err)
	}
	if err := s.emit(s.shownError(&e, nil)); err != nil {
		return err
	}
	return errTargetClosed
}

// notification passes on what was sent to a channel that the session listens
// to. The sender's process id is not told where something is hidden, but for the
// session itself.
func (s *session) notification(body []byte) error {
	var n pgproto3.NotificationResponse
	if err := n.Decode(body); err != nil {
		return lostTarget(s.unavailable("the target broke the protocol"), err)
	}
	detect, listens := s.channels[n.Channel]
	if !listens {
		return nil
	}
	switch {
	case n.Payload == "":
	case s.masked:
		n.Payload = mask.Mark
	case detect != nil:
		if hidden, found := detect([]byte(n.Payload)); found {
			n.Payload = string(hidden)
		}
	}
	switch {
	case s.pid == s.up.target.PID:
	case n.PID == s.up.target.PID:
		n.PID = s.pid
	default:
		n.PID = 0
	}
	s.responses = append(s.responses, s.event(access.Event{Notice: &access.Notice{Severity: aNotification, Text: n.Channel + ": " + n.Payload}}))
	return s.emit(&n)
}
