package ssh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ingress"
	"chaperone.dev/chaperone/internal/telemetry"
)

// Times of the end of a session.
const (
	// killGrace is how long a client that does not read keeps its socket after
	// its session was ended.
	killGrace = 100 * time.Millisecond
	// refusedLife is how long a client may stay that got no session, to hear why.
	refusedLife = 10 * time.Second
	// aliveEvery is how often client and target are asked whether they are
	// there; after aliveMissed questions without an answer they are not.
	aliveEvery  = 30 * time.Second
	aliveMissed = 3
	// maxWishes bounds what a session may ask for that is never served: each wish is
	// recorded, and a flood of them would fill the disk.
	maxWishes = 64
)

// A session is one authenticated connection.
type session struct {
	*Service
	conn     *ingress.Conn
	link     *link
	info     access.Session
	resource Resource
	user     string // account at the target
	log      *slog.Logger
	span     trace.Span
	outlives bool // some rule lets it go on though its token has expired

	// refused is why there is no session: every channel is told.
	refused *access.Denial

	target targetLink

	mu       sync.Mutex
	channels int
	emptied  chan struct{} // closed when there are no more; nil: nobody waits for that
	closing  bool          // the client wants no more sessions
	wishes   int           // for what is never served
	stop     context.CancelCauseFunc
}

// open makes the session and runs it to its end.
func (s *Service) open(ctx context.Context, conn *ingress.Conn, l *link, who identity) {
	select {
	case s.live <- struct{}{}:
		defer func() { <-s.live }()
	default:
		s.turnAway(ctx, conn, l, who, access.LimitExceeded, "the gateway has too many sessions", "try again later", "session bound")
		return
	}
	leave, ok := s.place(who.principal)
	if !ok {
		s.turnAway(ctx, conn, l, who, access.LimitExceeded, fmt.Sprintf("you have %d sessions, which is as many as one may have", s.cfg.MaxSessionsPerPrincipal),
			"end some, or share one: ssh -o ControlMaster=auto", "session bound of the principal")
		return
	}
	defer leave()
	resource, ok := s.deps.Resource(who.resource)
	if !ok || resource.Access.Kind != access.SSH || !s.deps.Decider.MayConnect(ctx, who.principal, resource.Access) {
		message := fmt.Sprintf("there is no resource %q that you may use", access.Printable(who.resource, 100))
		hint := "log in as USER@RESOURCE; ask the resource's owners for a policy if you need one"
		s.turnAway(ctx, conn, l, who, access.UnknownResource, message, hint, "no such resource, or no policy lets "+who.principal.Subject+" connect")
		return
	}
	user := who.user
	if len(resource.Users) == 1 {
		user = resource.Users[0] // whatever the client calls it
	}
	if !slices.Contains(resource.Users, user) {
		s.turnAway(ctx, conn, l, who, access.UnknownResource, fmt.Sprintf("%s has no account %q for you", who.resource, access.Printable(user, 64)),
			"log in as USER@"+who.resource, "account not configured")
		return
	}
	info := access.Session{ID: access.NewSessionID(), Principal: who.principal, Resource: resource.Access, Client: conn.Source.String(),
		Opened: s.deps.Clock(), Deadline: who.principal.Token.ExpiresAt}
	outlives := false
	if last := info.Opened.Add(s.deps.Decider.SessionMax(ctx, who.principal, resource.Access)); last.After(info.Deadline) {
		info.Deadline, outlives = last, true
	}
	ctx, span := telemetry.StartSession(ctx, s.deps.Tracer, "ssh session", &info, attribute.String("network.protocol.name", "ssh"),
		attribute.String("chaperone.resource", info.Resource.Name), attribute.String("chaperone.account", user))
	defer span.End()
	conn.Keep() // from here on the session itself watches ctx
	ctx, closeSession, err := s.deps.Sessions.Open(ctx, info)
	if err != nil {
		var denial *access.Denial
		if !errors.As(err, &denial) {
			denial = &access.Denial{Reason: access.Unavailable, Message: "the gateway cannot open sessions now", Hint: "try again in a moment"}
		}
		s.turnAway(ctx, conn, l, who, denial.Reason, denial.Message, denial.Hint, err.Error())
		return
	}
	s.metrics.sessions.Inc()
	defer s.metrics.sessions.Dec()
	one := &session{Service: s, conn: conn, link: l, info: info, resource: resource, user: user, span: span, outlives: outlives,
		log: s.deps.Log.With("session", info.ID, "resource", resource.Access.Name)}
	closeSession(one.run(ctx))
}

// turnAway keeps a client that gets no session just long enough to tell it why
// in answer to what it asks for.
func (s *Service) turnAway(ctx context.Context, conn *ingress.Conn, l *link, who identity, reason access.Reason, message, hint, cause string) {
	denial := &access.Denial{RequestID: access.NewRequestID(), Reason: reason, Rule: ruleDefault, Message: message, Hint: hint, Resource: access.Printable(who.resource, 100)}
	s.metrics.refused.WithLabelValues(string(reason)).Inc()
	one := &session{Service: s, conn: conn, link: l, refused: denial, log: s.deps.Log}
	one.log.Warn("ssh connection refused", "client", conn.Source.String(), "reason", reason, "resource", denial.Resource, "cause", cause, "request", denial.RequestID)
	one.lastWords(ctx, access.Event{Request: denial.RequestID, Denied: &access.Denied{Denial: *denial, Cause: cause, Resource: denial.Resource, Client: conn.Source.String()}})
	ctx, cancel := context.WithTimeout(ctx, refusedLife)
	defer cancel()
	one.serve(ctx)
}

// run is a session from its Opened to its Closed event. It returns the cause of
// the end, after both connections are closed.
func (s *session) run(ctx context.Context) string {
	opened := s.event(access.Event{Opened: &access.SessionOpened{Session: s.info}})
	if err := s.deps.Recorder.Append(ctx, access.Synced, opened); err != nil {
		s.log.Error("ssh session not recorded", "error", err)
		s.link.conn.Close()
		return "not recorded"
	}
	cause := s.serve(ctx)
	s.lastWords(ctx, s.event(access.Event{Closed: &access.SessionClosed{Cause: cause}}))
	return cause
}

// errClientLeft and errTargetLeft end a session without a word.
var (
	errClientLeft = errors.New("client left")
	errTargetLeft = errors.New("the target closed the connection")
)

// serve takes what the client asks for until the client leaves, the target does,
// or ctx ends. It returns the cause, after both connections are closed.
func (s *session) serve(ctx context.Context) string {
	var working sync.WaitGroup
	ctx, s.stop = context.WithCancelCause(ctx)
	defer s.stop(nil)
	working.Go(func() { s.watch(ctx) })
	working.Go(func() { s.globals(ctx) })
	for incoming := range s.link.channels {
		s.channel(ctx, &working, incoming)
	}
	s.stop(errClientLeft) // unless it ended otherwise
	cause := context.Cause(ctx)
	s.link.conn.Close()
	s.target.close()
	working.Wait()
	if denial := (*access.Denial)(nil); errors.As(cause, &denial) {
		s.log.Info("ssh session ended", "cause", denial.Message)
	}
	return cause.Error()
}

// watch ends the connections when ctx ends: channels have told the client why by
// then, as far as it listens.
func (s *session) watch(ctx context.Context) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	var missed int
	answers := make(chan error, 1)
	asking := false
	for {
		select {
		case <-ctx.Done():
			_ = s.conn.SetDeadline(time.Now().Add(killGrace)) // a client that does not read must not keep us
			s.await()
			s.link.conn.Close()
			s.target.close()
			return
		case err := <-answers:
			asking, missed = false, 0
			if err != nil {
				s.stop(errClientLeft)
			}
		case <-tick.C:
			if asking {
				if missed++; missed >= aliveMissed {
					s.stop(errClientLeft)
				}
				continue
			}
			asking = true
			go func() { // ends with the connection
				_, _, err := s.link.conn.SendRequest("keepalive@openssh.com", true, nil)
				answers <- err
			}()
		}
	}
}

// await waits until the channels have said what they had to say, or the client's
// time is up.
func (s *session) await() {
	emptied := make(chan struct{})
	s.mu.Lock()
	if s.channels == 0 {
		close(emptied)
	} else {
		s.emptied = emptied
	}
	s.mu.Unlock()
	deadline := time.NewTimer(killGrace)
	defer deadline.Stop()
	select {
	case <-emptied:
	case <-deadline.C:
	}
}

// enter takes a place for a channel.
func (s *session) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels >= s.cfg.MaxChannels {
		return false
	}
	s.channels++
	return true
}

func (s *session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels--; s.channels == 0 && s.emptied != nil {
		close(s.emptied)
		s.emptied = nil
	}
}

// channel takes a channel that the client opens.
func (s *session) channel(ctx context.Context, working *sync.WaitGroup, incoming gossh.NewChannel) {
	var serve func(context.Context, gossh.NewChannel)
	switch kind := incoming.ChannelType(); {
	case kind == "session" && !s.noMore():
		serve = s.shellChannel
	case kind == "direct-tcpip" || kind == "direct-streamlocal@openssh.com":
		serve = s.forward
	default:
		s.reject(incoming, gossh.UnknownChannelType, "the gateway knows no such channel")
		return
	}
	if !s.enter() {
		s.reject(incoming, gossh.ResourceShortage, fmt.Sprintf("at most %d channels at once", s.cfg.MaxChannels))
		return
	}
	working.Go(func() {
		defer s.leave()
		s.guard(func() { serve(ctx, incoming) })
	})
}

func (s *session) noMore() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *session) reject(incoming gossh.NewChannel, reason gossh.RejectionReason, message string) {
	if err := incoming.Reject(reason, message); err != nil {
		s.log.Debug("ssh channel not refused", "error", err)
	}
}

// guard turns a panic into the end of this session alone.
func (s *session) guard(run func()) {
	defer func() {
		if fault := recover(); fault != nil {
			s.log.Error("ssh session panics", "fault", fault, "stack", string(debug.Stack()))
			s.stop(&access.Denial{RequestID: access.NewRequestID(), Reason: access.Unavailable, Message: "the gateway failed"})
		}
	}()
	run()
}

// globals answers requests about the connection as a whole.
func (s *session) globals(ctx context.Context) {
	for request := range s.link.requests {
		switch request.Type {
		case "no-more-sessions@openssh.com":
			s.mu.Lock()
			s.closing = true
			s.mu.Unlock()
		case "tcpip-forward", "streamlocal-forward@openssh.com":
			s.guard(func() { s.listenRequest(ctx, request) })
			continue
		}
		if request.WantReply { // as sshd answers what it does not know, keepalives among it
			if err := request.Reply(false, nil); err != nil {
				return
			}
		}
	}
}

// lastWords records while the session's context may have ended already.
func (s *session) lastWords(ctx context.Context, events ...access.Event) {
	s.record(ctx, access.Synced, events...)
}

// record is for what has happened, whether or not it can be recorded.
func (s *session) record(ctx context.Context, durable access.Durability, events ...access.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	if err := s.deps.Recorder.Append(ctx, durable, events...); err != nil {
		s.log.Error("ssh events not recorded", "error", err)
	}
}

// event completes an event of this session.
func (s *session) event(e access.Event) access.Event {
	e.Session = s.info.ID
	return e
}
