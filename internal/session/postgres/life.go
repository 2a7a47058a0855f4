package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// maxWaiting bounds what a client has sent and the session not yet taken; one
// message alone may be larger.
const maxWaiting = 2 << 20

// run is a session from its Opened to its Closed event. It returns the cause of
// the end, after both connections are closed.
func (s *session) run(ctx context.Context, start *startup) string {
	s.in = newInbox(newSource(s.conn, &s.buffers), min(2*s.cfg.MaxMessage, maxWaiting), s.cfg.MaxMessage)
	var helpers sync.WaitGroup
	unwatch := func() {}
	err := s.guarded(func() error {
		opened := s.event(access.Event{Opened: &access.SessionOpened{Session: s.info}})
		if err := s.append(ctx, access.Synced, []access.Event{opened}); err != nil {
			return err
		}
		if err := s.prepare(ctx, start); err != nil {
			return err
		}
		s.conn.SetDeadline(time.Time{})
		unwatch = s.watch(ctx)
		return s.serve(ctx, start)
	})
	cause := s.farewell(ctx, err)
	unwatch()
	s.in.stop()
	running := s.awaitsTarget()
	if s.up != nil {
		helpers.Go(func() { s.up.close(running) })
	}
	s.closeClient()
	helpers.Wait()
	s.in.readers.Wait()
	if s.catalog != nil {
		s.catalog.release()
	}
	s.conclude(ctx, cause)
	return cause
}

// guarded turns a panic into the end of this session alone.
func (s *session) guarded(run func() error) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			s.log.Error("postgres session panics", "fault", fault, "stack", string(debug.Stack()))
			s.out = nil
			err = &fatalError{s.unavailable("the gateway failed"), fmt.Errorf("panic: %v", fault)}
		}
	}()
	return run()
}

// killGrace is how long a client that does not read keeps its socket after its
// session was ended.
const killGrace = 100 * time.Millisecond

// watch ends what the session waits for when it must not wait any longer: its
// context ended, or its client left while a statement runs and the target does
// not answer to that. The function that it returns ends the watch, and waits for
// what is being done.
func (s *session) watch(ctx context.Context) func() {
	var busy sync.WaitGroup
	busy.Add(2)
	silent := time.AfterFunc(math.MaxInt64, func() {
		defer busy.Done()
		s.up.interrupt()
	})
	s.in.onGone(func() {
		if s.isRunning() {
			s.up.cancel()
		}
		silent.Reset(s.cfg.LeaveTimeout)
	})
	stop := context.AfterFunc(ctx, func() {
		defer busy.Done()
		if s.isRunning() {
			s.up.cancel()
		}
		s.up.interrupt()
		s.conn.SetWriteDeadline(time.Now().Add(killGrace))
		s.conn.SetReadDeadline(longAgo)
	})
	return func() {
		s.in.onGone(nil)
		if silent.Stop() {
			busy.Done()
		}
		if stop() {
			busy.Done()
		}
		busy.Wait()
	}
}

func (s *session) setRunning(running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = running
}

func (s *session) isRunning() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// cancelByClient serves a cancel request with this session's key: it lets a
// held statement go, or cancels what runs at the target.
func (s *session) cancelByClient(context.Context) {
	s.mu.Lock()
	hold, running := s.cancelHold, s.running
	s.mu.Unlock()
	switch {
	case hold != nil:
		signal(hold)
	case running:
		s.up.cancel()
	}
}

// farewell tells the client why its session ends, as far as it still listens,
// and returns the cause for the recording.
func (s *session) farewell(ctx context.Context, err error) string {
	var fatal *fatalError
	var denial *access.Denial
	switch {
	case err == nil, errors.Is(err, errTargetClosed):
		_ = s.flush(ctx)
		return errTargetClosed.Error()
	case errors.As(err, &fatal):
	case errors.As(err, &denial):
		fatal = &fatalError{r: refuse(s.named(denial), "")}
	case errors.Is(err, errClientLeft):
		s.log.Debug("postgres client left", "error", err)
		return errClientLeft.Error()
	default:
		fatal = &fatalError{s.unavailable("the session ended"), err}
	}
	s.log.Warn("postgres session ended", "error", fatal.Error(), "cause", fatal.r.cause, "request", requestID(fatal.r.denial))
	s.finish(s.current, "", fatal.Error())
	s.evidence(ctx, fatal.r)
	s.out = nil
	s.torn = s.torn || s.emit(fatal.r.response("FATAL")) != nil
	if !s.torn {
		patience := farewell
		if ctx.Err() != nil {
			patience = killGrace // counted anew: a busy disk may have used up what watch gave
		}
		s.conn.SetWriteDeadline(time.Now().Add(patience))
		_, werr := s.conn.Write(s.out)
		s.torn = werr != nil
	}
	return fatal.Error()
}

// named is a denial of the registry's with what it cannot know.
func (s *session) named(d *access.Denial) *access.Denial {
	named := *d
	if named.RequestID == "" {
		named.RequestID = access.NewRequestID()
	}
	if named.Resource == "" {
		named.Resource = s.resource.Access.Name
	}
	return &named
}

// evidence records what ended the session. The session ends whether or not
// that succeeds, and one that was ended does not wait for the disk: its client
// is cut first, and conclude has the rest on disk.
func (s *session) evidence(ctx context.Context, r *refusal) {
	events := s.responses
	s.responses = nil
	if r.denial != nil && !r.recorded {
		e := s.event(access.Event{Request: r.denial.RequestID, Denied: &access.Denied{
			Denial: *r.denial, Cause: r.cause, Resource: s.resource.Access.Name, Client: s.info.Client}})
		events = append(events, e)
	}
	durability := access.Synced
	if ctx.Err() != nil {
		durability = access.Written
	}
	s.lastWords(ctx, durability, events...)
}

// conclude abandons what the session left open and writes its Closed event.
func (s *session) conclude(ctx context.Context, cause string) {
	s.finish(s.current, "", cause)
	events := append(s.responses, s.event(access.Event{Closed: &access.SessionClosed{Cause: cause}}))
	s.responses = nil
	s.lastWords(ctx, access.Synced, events...)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	for _, id := range s.asks {
		if err := s.deps.Approvals.Abandon(ctx, id); err != nil {
			s.log.Error("approval not abandoned", "error", err, "approval", id)
		}
	}
}

// lastWords records while the session's context may have ended already.
func (s *session) lastWords(ctx context.Context, d access.Durability, events ...access.Event) {
	if len(events) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	if err := s.deps.Recorder.Append(ctx, d, events...); err != nil {
		s.log.Error("end of postgres session not recorded", "error", err)
	}
}

// closeClient says goodbye in TLS's own way when the client still listens.
func (s *session) closeClient() {
	if secured, ok := s.conn.(*tls.Conn); ok && s.torn {
		secured.NetConn().Close()
		return
	}
	s.conn.Close()
}

var _ net.Conn = (*prefixedConn)(nil)
