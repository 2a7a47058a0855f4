package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/telemetry"
)

// A session is one authenticated client with its own connection to the target.
// Everything in it belongs to the goroutine that runs it, but for the inbox,
// the upstream's cancel and interrupt, and what mu guards.
type session struct {
	*Service
	conn     net.Conn
	info     access.Session
	resource Resource
	catalog  *catalogUse
	in       *inbox
	up       *upstream
	log      *slog.Logger
	outlives bool // some rule lets it go on though its token has expired
	span     trace.Span
	types    *pgtype.Map

	// Policy as last seen.
	revision string
	wallView *view
	masked   bool // some column of the resource is masked for this principal
	walled   *refusal
	plain    bool // nothing of the resource is hidden from this principal
	// unsettledBy is the statement that ran as it came, after which names may
	// mean something else; empty when none did.
	unsettledBy string
	// doubted is the last execution with something unknown in it, until the target
	// was asked what that did to names.
	doubted string

	// Towards the client.
	out       []byte
	responses []access.Event // recorded before out is written
	torn      bool           // a write broke off: not even a farewell fits
	current   *execution     // whose rows are arriving
	cells     [][]byte       // of the row that is being relayed
	// committing is the last execution of a simple query, until its transaction
	// is done.
	committing *execution

	// Towards the target.
	steps    []step
	sent     int
	unsent   []byte // the messages of the steps that are not sent
	status   byte   // of the last ReadyForQuery
	ran      bool   // something executed since the last Sync
	dirty    bool   // something was sent since the last Sync
	skipping bool   // the target discards up to Sync

	discarding bool // the client's messages have no effect up to Sync
	statements map[string]*statement
	portals    map[string]*portal
	cursors    map[string]*named   // SQL cursors
	prepared   map[string]*named   // by PREPARE
	channels   map[string]Detector // that it listens to; what is looked for in payloads
	pid        uint32              // as the client knows it
	textBytes  int                 // of the prepared statements
	names      int
	asks       []string // approvals left open

	mu         sync.Mutex
	running    bool
	cancelHold chan struct{} // gets a value when the client cancels while held; nil otherwise
}

// open makes the session and runs it to its end. An error before the session's
// first ReadyForQuery is returned for the caller to tell the client.
func (c *connection) open(ctx context.Context, start *startup, p access.Principal) error {
	select {
	case c.live <- struct{}{}:
		defer func() { <-c.live }()
	default:
		d := c.denial(start, access.LimitExceeded, "the gateway has too many sessions")
		d.Hint = "try again later"
		return &fatalError{r: &refusal{denial: d, state: sqlstateTooMany, cause: "session bound"}}
	}
	resource, ok := c.deps.Resource(start.database)
	ok = ok && resource.Access.Kind == access.Postgres
	if !ok || !c.deps.Decider.MayConnect(ctx, p, resource.Access) {
		d := c.denial(start, access.UnknownResource, fmt.Sprintf("there is no resource %q that you may use", access.Printable(start.database, 100)))
		d.Hint = "give the name of a resource as the database name; ask its owners for a policy if you need one"
		cause := "no policy lets " + p.Subject + " connect"
		if !ok {
			cause = "no such resource"
		}
		return &fatalError{r: refuse(d, cause)}
	}
	info := access.Session{
		ID: access.NewSessionID(), Principal: p, Resource: resource.Access, Client: c.source.String(),
		Opened: c.deps.Clock(), Deadline: p.Token.ExpiresAt,
	}
	outlives := false
	if last := info.Opened.Add(c.deps.Decider.SessionMax(ctx, p, resource.Access)); last.After(info.Deadline) {
		info.Deadline, outlives = last, true
	}
	ctx, span := telemetry.StartSession(ctx, c.deps.Tracer, "postgres session", &info,
		attribute.String("db.system.name", "postgresql"), attribute.String("db.namespace", info.Resource.Name))
	defer span.End()
	c.unwatch() // from here on the session itself watches ctx
	ctx, closeSession, err := c.deps.Sessions.Open(ctx, info)
	if err != nil {
		return c.notOpened(start, err)
	}
	c.metrics.sessions.Inc()
	defer c.metrics.sessions.Dec()
	s := &session{
		Service: c.Service, conn: c.conn, info: info, resource: resource, span: span, types: pgtype.NewMap(),
		log:        c.deps.Log.With("session", info.ID, "resource", resource.Access.Name),
		statements: map[string]*statement{}, portals: map[string]*portal{}, status: statusIdle,
		cursors: map[string]*named{}, prepared: map[string]*named{}, outlives: outlives, channels: map[string]Detector{},
	}
	cause := s.run(ctx, start)
	closeSession(cause)
	return nil
}

// notOpened is a session that the registry refuses: its own denial, when it is
// one.
func (c *connection) notOpened(start *startup, err error) error {
	d := c.denial(start, access.Unavailable, "the gateway cannot open sessions now")
	var denial *access.Denial
	if errors.As(err, &denial) {
		id := d.RequestID
		*d = *denial
		d.RequestID, d.Resource = id, access.Printable(start.database, 100)
	}
	return &fatalError{refuse(d, err.Error()), err}
}

// prepare reaches the target, learns its catalog and checks the first wall.
func (s *session) prepare(ctx context.Context, start *startup) error {
	dialCtx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	settings, r := s.withClaims(start.settings)
	if r != nil {
		return &fatalError{r: r}
	}
	up, err := dial(dialCtx, s.logins, s.resource, settings, s.cfg.MaxRow, &s.buffers)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return lostTarget(s.unavailable("the gateway cannot reach the database behind "+s.resource.Access.Name), err)
	}
	s.up = up
	s.catalog = s.catalogs.use(s.resource)
	view, err := s.catalog.view(dialCtx, false)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, catalog.ErrUnknownServer) {
			r := refuse(s.newDenial(access.Unsupported, err.Error()), "server")
			r.denial.Hint = "chaperone judges the statements of PostgreSQL 16 to 18 and of no other server"
			return &fatalError{r, err}
		}
		return &fatalError{s.unavailable("the gateway cannot read the catalog of " + s.resource.Access.Name), err}
	}
	masks := s.deps.Decider.Masks(ctx, s.info.Principal, s.resource.Access)
	s.masked, s.plain = hasColumnMask(masks), s.hidesNothing(masks)
	if r := s.wall(view, masks); r != nil {
		return &fatalError{r: r}
	}
	return nil
}

// serve greets the client and takes its messages until one of them, the target
// or ctx ends the session.
func (s *session) serve(ctx context.Context, start *startup) error {
	length := shortSecret
	if start.minor >= protocolMinor {
		length = longSecret
	}
	own := uint32(0)
	if s.plain { // whoever may ask for everything may know it, and programs compare it
		own = s.up.target.PID
	}
	pid, secret, release, err := s.keys.add(length, own, s.cancelByClient)
	if err != nil {
		return &fatalError{s.unavailable("the gateway has too many sessions"), err}
	}
	defer release()
	s.pid = pid
	if err := s.greet(ctx, pid, secret); err != nil {
		return err
	}
	for {
		f, err := s.next(ctx)
		if err != nil {
			return err
		}
		if err := s.handle(ctx, f); err != nil {
			return err
		}
		if s.discarding && !s.in.waiting() { // a client may wait for the error before it sends its Sync
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
	}
}

func (s *session) greet(ctx context.Context, pid uint32, secret []byte) error {
	if err := s.emit(&pgproto3.AuthenticationOk{}); err != nil {
		return err
	}
	for _, name := range []string{
		"server_version", "server_encoding", "client_encoding", "application_name", "DateStyle", "IntervalStyle",
		"TimeZone", "integer_datetimes", "standard_conforming_strings", "default_transaction_read_only",
		"in_hot_standby", "is_superuser", "session_authorization", "scram_iterations", "search_path",
	} {
		if value := s.up.target.ParameterStatuses[name]; value != "" || name == "application_name" {
			if err := s.emit(&pgproto3.ParameterStatus{Name: name, Value: value}); err != nil {
				return err
			}
		}
	}
	if err := s.emit(&pgproto3.BackendKeyData{ProcessID: pid, SecretKey: secret}); err != nil {
		return err
	}
	s.out = appendFrame(s.out, 'Z', []byte{statusIdle})
	return s.flush(ctx)
}

// inboxFault says how the client's side ended.
func (s *session) inboxFault(ctx context.Context, err error) error {
	var frame *frameError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return errClientLeft
	case errors.As(err, &frame):
		if frame.sqlstate == sqlstateLimit {
			d := s.newDenial(access.LimitExceeded, frame.text)
			d.Hint = "send smaller messages"
			return &fatalError{refuse(d, frame.text), err}
		}
		return &fatalError{plainError(frame.sqlstate, "%s", frame.text), err}
	default:
		return fmt.Errorf("%w: %w", errClientLeft, err)
	}
}

// handle takes one message of the client.
func (s *session) handle(ctx context.Context, f frame) error {
	if s.discarding && f.typ != msgSync || f.typ == msgCopyData || f.typ == msgCopyDone || f.typ == msgCopyFail {
		return nil // data of a copy that failed may still be on its way
	}
	switch f.typ {
	case msgQuery:
		return s.query(ctx, f.body)
	case msgCall:
		return s.functionCall(ctx, f.body)
	case msgParse:
		return s.parse(ctx, f.body)
	case msgBind:
		return s.bind(ctx, f.body)
	case msgDescribe:
		return s.describe(ctx, f.body)
	case msgExecute:
		return s.execute(ctx, f.body)
	case msgClose:
		return s.closeNamed(ctx, f.body)
	case msgFlush:
		if err := s.drain(ctx); err != nil {
			return err
		}
		return s.flush(ctx)
	case msgSync:
		return s.sync(ctx)
	case msgPassword:
		return &fatalError{r: refuse(s.newDenial(access.Unsupported, "PasswordMessage messages are not supported"), "")}
	default:
		return &fatalError{r: plainError(sqlstateProtocol, "unknown message type %q", f.typ)}
	}
}

// sync ends a pipeline. What never concerned the target needs no round trip.
func (s *session) sync(ctx context.Context) error {
	s.discarding = false
	if !s.dirty && !s.awaitsTarget() {
		if err := s.drain(ctx); err != nil {
			return err
		}
		s.out = appendFrame(s.out, 'Z', []byte{s.status})
		return s.flush(ctx)
	}
	if err := s.stage(ctx, step{kind: stepSync}, &pgproto3.Sync{}); err != nil {
		return err
	}
	return s.drain(ctx)
}
