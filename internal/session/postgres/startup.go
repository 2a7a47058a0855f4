package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
)

// Codes of the first packet of a connection (PostgreSQL manual, "Message
// Formats"), which has no type byte.
const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSSENC = 80877104

	protocolMajor = 3
	protocolMinor = 2 // the newest that is spoken; its cancel keys are longer
)

const (
	maxStartupPacket = 10_000   // PostgreSQL's own bound
	maxPassword      = 32 << 10 // tokens are long
	tlsHandshake     = 0x16     // first byte of a TLS connection
	alpnPostgres     = "postgresql"
)

// A connection is a client before its session.
type connection struct {
	*Service
	conn          net.Conn
	source        net.Addr // the client as Envoy saw it
	secure        bool     // TLS ends here
	shown         identity.Shown
	authenticated func()
	unwatch       func() bool
}

// A startup is what a StartupMessage asks for.
type startup struct {
	minor    int  // protocol 3.minor, as it is spoken
	newer    bool // the client asked for a newer one
	user     string
	database string // the resource
	settings map[string]string
	options  []string // protocol options, of which none is known
}

// serve takes the connection from its first packet to its end.
func (c *connection) serve(ctx context.Context) {
	c.conn.SetDeadline(time.Now().Add(c.cfg.StartupTimeout))
	start, err := c.negotiate(ctx)
	if err != nil || start == nil {
		c.fail(ctx, start, err)
		return
	}
	principal, err := c.authenticate(ctx, start)
	if err != nil {
		c.fail(ctx, start, err)
		return
	}
	c.authenticated()
	if err := c.open(ctx, start, principal); err != nil {
		c.fail(ctx, start, err)
	}
}

// turnAway tells a client for which there is no place, once TLS stands: before
// it clients show nothing of an error. A cancel request is served as ever, for
// it may be what makes room.
func (c *connection) turnAway(ctx context.Context) {
	start, err := c.negotiate(ctx)
	if start == nil {
		return
	}
	d := c.denial(start, access.LimitExceeded, "too many connections, of this address or in all, have not given a token yet")
	d.Hint = "try again in a moment; open fewer connections at once"
	r := &refusal{denial: d, state: sqlstateTooMany, recorded: true} // counted, not recorded: a flood must not fill the disk
	c.deps.Log.Info("postgres connection turned away", "client", c.source.String(), "resource", resourceName(start), "error", err, "request", d.RequestID)
	c.send(r.response("FATAL"))
}

// negotiate handles everything up to the StartupMessage. It returns nil and no
// error when there is nothing more to do: a cancel request, or a client that
// left.
func (c *connection) negotiate(ctx context.Context) (*startup, error) {
	const packets = 3 // SSLRequest, GSSENCRequest, StartupMessage
	for range packets {
		code, body, err := c.firstPacket()
		if err != nil {
			return nil, err
		}
		switch {
		case code == codeSSL && !c.secure:
			err = c.startTLS(ctx)
		case code == codeGSSENC && !c.secure:
			_, err = c.conn.Write([]byte{'N'})
		case code == codeCancel:
			c.cancelRequest(ctx, body)
			return nil, nil
		case code>>16 == protocolMajor:
			return c.startupMessage(code, body)
		default:
			err = &frameError{sqlstateProtocol, "unsupported frontend protocol"}
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, &frameError{sqlstateProtocol, "too many packets before the startup message"}
}

// firstPacket reads a packet without a type byte, and no byte beyond it: what
// follows an SSLRequest belongs to TLS. A client that begins with TLS at once
// gets it.
func (c *connection) firstPacket() (code uint32, body []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(c.conn, head[:1]); err != nil {
		return 0, nil, err
	}
	if head[0] == tlsHandshake && !c.secure {
		if err := c.directTLS(head[0]); err != nil {
			return 0, nil, err
		}
		if _, err := io.ReadFull(c.conn, head[:1]); err != nil {
			return 0, nil, err
		}
	}
	if _, err := io.ReadFull(c.conn, head[1:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[:4])
	if size < 8 || size > maxStartupPacket {
		return 0, nil, &frameError{sqlstateProtocol, "invalid length of startup packet"}
	}
	body, err = readBody(c.conn, nil, int(size)-8)
	return binary.BigEndian.Uint32(head[4:]), body, err
}

// startTLS answers an SSLRequest.
func (c *connection) startTLS(ctx context.Context) error {
	config := c.deps.TLS()
	if config == nil {
		_, err := c.conn.Write([]byte{'N'})
		return err
	}
	if _, err := c.conn.Write([]byte{'S'}); err != nil {
		return err
	}
	config = config.Clone()
	config.NextProtos = []string{alpnPostgres}
	secured := tls.Server(c.conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	c.enter(secured)
	return nil
}

// enter goes on inside TLS.
func (c *connection) enter(conn *tls.Conn) {
	c.conn, c.secure = conn, true
	c.shown = identity.ShownChain(conn.ConnectionState().PeerCertificates)
}

// directTLS is TLS without an SSLRequest (sslnegotiation=direct), for which the
// protocol demands ALPN.
func (c *connection) directTLS(first byte) error {
	config := c.deps.TLS()
	if config == nil {
		return errors.New("tls: there is no certificate")
	}
	config = config.Clone()
	config.NextProtos = []string{alpnPostgres}
	secured := tls.Server(&prefixedConn{c.conn, []byte{first}}, config)
	if err := secured.Handshake(); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	if secured.ConnectionState().NegotiatedProtocol != alpnPostgres {
		return errors.New("tls: direct negotiation without ALPN")
	}
	c.enter(secured)
	return nil
}

// A prefixedConn gives back bytes that were read to look at them.
type prefixedConn struct {
	net.Conn
	prefix []byte
}

func (p *prefixedConn) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// startupMessage reads the parameters and refuses by name what is not taken.
func (c *connection) startupMessage(code uint32, body []byte) (*startup, error) {
	params, err := startupParameters(body)
	if err != nil {
		return nil, err
	}
	asked := int(code & 0xffff)
	start := &startup{minor: min(asked, protocolMinor), newer: asked > protocolMinor, user: params["user"], database: params["database"]}
	if start.user == "" {
		return nil, &frameError{sqlstateAuthorization, "no PostgreSQL user name specified in startup packet"}
	}
	if start.database == "" {
		start.database = start.user
	}
	for name := range params {
		if len(name) > len(protocolOption) && name[:len(protocolOption)] == protocolOption {
			start.options = append(start.options, name)
		}
	}
	if !c.secure && !(c.cfg.PlaintextOnLoopback && isLoopback(c.source)) {
		d := c.denial(start, access.Unauthenticated, "the gateway takes connections only with TLS")
		d.Hint = "connect with sslmode=verify-full"
		return start, &fatalError{r: &refusal{denial: d, state: sqlstateAuthorization, cause: "no TLS"}}
	}
	start.settings, err = clientSettings(params)
	if err != nil {
		d := c.denial(start, access.Unsupported, err.Error())
		return start, &fatalError{r: refuse(d, "startup parameter")}
	}
	return start, nil
}

// startupParameters reads the name and value pairs, each name once.
func startupParameters(body []byte) (map[string]string, error) {
	params := map[string]string{}
	for {
		name, rest, ok := bytes.Cut(body, []byte{0})
		if !ok {
			return nil, malformed("startup")
		}
		if len(name) == 0 {
			if len(rest) != 0 {
				return nil, malformed("startup")
			}
			return params, nil
		}
		value, rest, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return nil, malformed("startup")
		}
		if _, twice := params[string(name)]; twice {
			return nil, &frameError{sqlstateProtocol, "a startup parameter is given twice"}
		}
		params[string(name)] = string(value)
		body = rest
	}
}

// isLoopback reports whether addr is a client on this very machine.
func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// authenticate asks for the token and has it verified. None, expired, forged
// and meant for others look alike to the client.
func (c *connection) authenticate(ctx context.Context, start *startup) (access.Principal, error) {
	if start.newer || len(start.options) > 0 {
		// The field's name notwithstanding, PostgreSQL sends the whole version.
		version := uint32(protocolMajor<<16 | start.minor)
		c.send(&pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: version, UnrecognizedOptions: start.options})
	}
	if err := c.send(&pgproto3.AuthenticationCleartextPassword{}); err != nil {
		return access.Principal{}, err
	}
	typ, size, err := readHeader(c.conn, maxPassword)
	if err != nil {
		return access.Principal{}, err
	}
	if typ != 'p' {
		return access.Principal{}, &frameError{sqlstateProtocol, "expected a password message"}
	}
	body, err := readBody(c.conn, nil, size)
	if err != nil {
		return access.Principal{}, err
	}
	token, ok := bytes.CutSuffix(body, []byte{0})
	if !ok {
		return access.Principal{}, malformed("password")
	}
	principal, err := c.verify(ctx, access.NewSecret(string(token)))
	if err == nil {
		return principal, nil
	}
	if !errors.Is(err, errNoToken) && !c.deps.Rejected(err) {
		d := c.denial(start, access.Unavailable, "the gateway cannot check tokens now")
		d.Hint = "try again in a moment"
		return access.Principal{}, &fatalError{refuse(d, err.Error()), err}
	}
	d := c.denial(start, access.Unauthenticated, "no valid token was given as the password")
	d.Hint = "obtain a token (chaperone token) and give it as the password, for example in PGPASSWORD"
	return access.Principal{}, &fatalError{refuse(d, err.Error()), err}
}

// errNoToken wraps what is wrong with a password before and after the Verifier
// has a look at it.
var errNoToken = errors.New("no valid token")

// certificatePassword is what a client that proves itself by its certificate
// gives as the password: libpq does not send an empty one.
const certificatePassword = "certificate"

func (c *connection) verify(ctx context.Context, token access.Secret) (access.Principal, error) {
	switch {
	case token.Empty():
		return access.Principal{}, fmt.Errorf("%w: empty password", errNoToken)
	case token.Reveal() == certificatePassword && !c.shown.Empty():
		token = access.Secret{}
	}
	ctx, cancel := context.WithTimeout(identity.WithShown(ctx, c.shown), c.cfg.StartupTimeout)
	defer cancel()
	principal, err := c.deps.Verifier.Verify(ctx, token)
	if err == nil && !principal.Token.ExpiresAt.After(c.deps.Clock()) {
		err = fmt.Errorf("%w: it has expired", errNoToken)
	}
	return principal, err
}

// denial begins a denial of this connection.
func (c *connection) denial(start *startup, reason access.Reason, message string) *access.Denial {
	return &access.Denial{
		RequestID: access.NewRequestID(), Reason: reason, Rule: ruleDefault, Message: message,
		Resource: access.Printable(start.database, 100),
	}
}

// ruleDefault stands where no rule decided.
const ruleDefault = "default-deny"

// fail ends a connection that has no session: the reason goes to the log and
// the recording, the denial to the client. A nil error is a quiet end.
func (c *connection) fail(ctx context.Context, start *startup, err error) {
	if err == nil || errors.Is(err, errClientLeft) {
		return
	}
	var fatal *fatalError
	var frame *frameError
	switch {
	case errors.As(err, &fatal):
	case errors.As(err, &frame):
		fatal = &fatalError{r: plainError(frame.sqlstate, "%s", frame.text)}
	default:
		c.metrics.refused.WithLabelValues("startup").Inc()
		c.deps.Log.Info("postgres connection ended before its session", "client", c.source.String(), "error", err)
		return
	}
	reason := "protocol"
	if d := fatal.r.denial; d != nil {
		reason = string(d.Reason)
		c.recordDenied(ctx, start, fatal.r)
	}
	c.metrics.refused.WithLabelValues(reason).Inc()
	c.deps.Log.Warn("postgres connection refused", "client", c.source.String(), "reason", reason,
		"resource", resourceName(start), "error", err, "cause", fatal.r.cause, "request", requestID(fatal.r.denial))
	c.conn.SetWriteDeadline(time.Now().Add(farewell))
	c.send(fatal.r.response("FATAL"))
}

// farewell bounds writing the last message to a client.
const farewell = time.Second

// recordDenied writes the evidence of a refusal that no session holds. The
// client is refused whether or not that succeeds.
func (c *connection) recordDenied(ctx context.Context, start *startup, r *refusal) {
	event := access.Event{Request: r.denial.RequestID, Denied: &access.Denied{
		Denial: *r.denial, Cause: r.cause, Resource: resourceName(start), Client: c.source.String(),
	}}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	if err := c.deps.Recorder.Append(ctx, access.Synced, event); err != nil {
		c.deps.Log.Error("postgres denial not recorded", "error", err, "request", r.denial.RequestID)
	}
}

// recordWithin bounds evidence that is written while something ends.
const recordWithin = 5 * time.Second

func resourceName(start *startup) string {
	if start == nil {
		return ""
	}
	return access.Printable(start.database, 100)
}

func requestID(d *access.Denial) string {
	if d == nil {
		return ""
	}
	return d.RequestID
}

// send writes one message to a client that has no session yet.
func (c *connection) send(msg pgproto3.BackendMessage) error {
	b, err := msg.Encode(nil)
	if err != nil {
		return fmt.Errorf("encode %T: %w", msg, err)
	}
	_, err = c.conn.Write(b)
	return err
}
