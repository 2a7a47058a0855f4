// Package ingress takes the connections that Envoy hands to a session service:
// each begins with a PROXY protocol v2 header, by which Envoy vouches for the
// client's address. It bounds those that have not authenticated, in all and from
// one address, tells those beyond a bound so where the protocol can, ends all of
// them when the service ends, and turns a panic into the end of one connection. It refuses whatever has no such header.
package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"

	"chaperone.dev/chaperone/internal/access"
)

// Config is what a Gate needs. All members but TurnAway are required.
type Config struct {
	Name           string        // of the service, in logs and errors
	HeaderTimeout  time.Duration // for Envoy's header
	MaxWaiting     int           // connections that have not authenticated
	MaxWaitingEach int           // those of them from one address; of an IPv6 address its /64
	Log            *slog.Logger
	Refused        func(reason string) // counts
	// TurnAway tells a client that there is no place for it. It gets little time
	// and is called for a few clients at once: the others, and all of them when it
	// is nil, are closed without a word.
	TurnAway func(ctx context.Context, conn *Conn)
}

// Bounds of telling clients that there is no place for them.
const (
	turningAway    = 16
	turnAwayWithin = 2 * time.Second
)

// A Gate lets connections in. It is safe for concurrent use.
type Gate struct {
	Config
	waiting chan struct{}
	turning chan struct{}
	sources *sources
}

// New makes a Gate.
func New(c Config) *Gate {
	return &Gate{Config: c, waiting: make(chan struct{}, c.MaxWaiting), turning: make(chan struct{}, turningAway), sources: newSources(c.MaxWaitingEach)}
}

// TicketTLV is the type of the TLV (of the range for applications' own) in which
// Envoy passes on the ticket of a connection that its authorizer let through.
const TicketTLV proxyproto.PP2Type = 0xE0

// Ticket returns the ticket that the header carries; shown is false when there is
// none, which only a connection without an authorizer has. The header is
// Envoy's: nothing that a client sends stands in it.
func (c *Conn) Ticket() (ticket string, shown bool) {
	all, err := c.Header.TLVs()
	if err != nil { // validHeader has read them
		return "", true
	}
	for _, tlv := range all {
		if tlv.Type == TicketTLV {
			if shown { // two are none
				return "", true
			}
			ticket, shown = string(tlv.Value), true
		}
	}
	return ticket, shown
}

// Waiting counts the connections of an address that have not authenticated.
func (g *Gate) Waiting(addr net.Addr) int {
	g.sources.mu.Lock()
	defer g.sources.mu.Unlock()
	return g.sources.waiting[sourceOf(addr)]
}

// A Conn is one connection behind its header.
type Conn struct {
	net.Conn
	Source net.Addr // the client as Envoy saw it
	Header *proxyproto.Header
	// Authenticated gives back the places of those that have not.
	Authenticated func()
	// Keep stops the end of the service from closing the connection by itself:
	// its session ends it, when its context ends.
	Keep func() bool
}

// Shutdown is why sessions end when their service does.
func Shutdown() *access.Denial {
	return &access.Denial{
		RequestID: access.NewRequestID(), Reason: access.SessionEnded, Message: "the gateway is shutting down",
		Hint: "connect again",
	}
}

// Serve accepts connections from l until ctx ends or l fails, and has each
// served by handle, whose context ends with a *access.Denial as its cause. It
// closes l, and returns when every handle has; after ctx ended it returns nil.
func (g *Gate) Serve(ctx context.Context, l net.Listener, handle func(context.Context, *Conn)) error {
	asked := ctx
	ctx, stop := context.WithCancelCause(context.WithoutCancel(asked)) // so that sessions learn why they end
	end := func() {
		stop(Shutdown())
		l.Close()
	}
	unwatch := context.AfterFunc(asked, end)
	defer unwatch()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer end()
	for {
		conn, err := l.Accept()
		if err != nil {
			if asked.Err() != nil {
				return nil
			}
			if temporary(ctx, err) {
				continue
			}
			return fmt.Errorf("%s service: accept: %w", g.Name, err)
		}
		select {
		case g.waiting <- struct{}{}:
			serving.Go(func() { g.accept(ctx, conn, handle) })
		default:
			g.Refused("crowded")
			g.Log.Warn(g.Name+" connection closed: too many have not authenticated", "bound", g.MaxWaiting)
			select {
			case g.turning <- struct{}{}:
				serving.Go(func() { g.turnAway(ctx, conn) })
			default:
				conn.Close()
			}
		}
	}
}

// accept serves one connection from the first byte to the last. It owns conn
// and one place in g.waiting.
func (g *Gate) accept(ctx context.Context, conn net.Conn, handle func(context.Context, *Conn)) {
	leaveAll := sync.OnceFunc(func() { <-g.waiting })
	defer leaveAll()
	defer conn.Close()
	defer g.guard()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	header, proxied, err := g.header(conn)
	if err != nil {
		g.Refused("proxy-header")
		g.Log.Warn(g.Name+" connection closed: no PROXY v2 header", "error", err)
		return
	}
	leaveSource, ok := g.sources.enter(header.SourceAddr)
	if !ok {
		g.Refused("crowded-source")
		g.Log.Warn(g.Name+" connection closed: too many from its address have not authenticated", "client", header.SourceAddr, "bound", g.MaxWaitingEach)
		leaveAll() // whoever is turned away keeps nobody else out
		select {
		case g.turning <- struct{}{}:
			defer func() { <-g.turning }()
			g.tell(ctx, conn, &Conn{Conn: proxied, Source: header.SourceAddr, Header: header})
		default:
		}
		return
	}
	defer leaveSource()
	handle(ctx, &Conn{Conn: proxied, Source: header.SourceAddr, Header: header, Keep: stop, Authenticated: func() {
		leaveSource()
		leaveAll()
	}})
}

// guard turns a panic into the end of one connection.
func (g *Gate) guard() {
	if fault := recover(); fault != nil {
		g.Refused("panic")
		g.Log.Error(g.Name+" connection closed: panic", "fault", fault, "stack", string(debug.Stack()))
	}
}

// turnAway serves a connection for which there is no place. It owns conn and one
// place in g.turning.
func (g *Gate) turnAway(ctx context.Context, conn net.Conn) {
	defer func() { <-g.turning }()
	defer conn.Close()
	defer g.guard()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn.SetDeadline(time.Now().Add(turnAwayWithin)) // for the header too
	if header, proxied, err := g.header(conn); err == nil {
		g.tell(ctx, conn, &Conn{Conn: proxied, Source: header.SourceAddr, Header: header})
	}
}

// tell has the client told that there is no place, and sees to it that this
// ends.
func (g *Gate) tell(ctx context.Context, raw net.Conn, conn *Conn) {
	if g.TurnAway == nil {
		return
	}
	end := time.AfterFunc(turnAwayWithin, func() { raw.Close() }) // whatever deadlines TurnAway sets
	defer end.Stop()
	conn.Authenticated, conn.Keep = func() {}, func() bool { return false }
	g.TurnAway(ctx, conn)
}

// header reads the header that Envoy puts before everything else. Without it
// nobody vouches for the client's address.
func (g *Gate) header(conn net.Conn) (*proxyproto.Header, net.Conn, error) {
	proxied := proxyproto.NewConn(conn, proxyproto.WithPolicy(proxyproto.REQUIRE),
		proxyproto.SetReadHeaderTimeout(g.HeaderTimeout), proxyproto.ValidateHeader(validHeader))
	header := proxied.ProxyHeader()
	if _, err := proxied.Read(nil); err != nil {
		return nil, nil, err
	}
	if header == nil {
		return nil, nil, proxyproto.ErrNoProxyProtocol
	}
	return header, proxied, nil
}

func validHeader(h *proxyproto.Header) error {
	if h.Version != 2 || !h.Command.IsProxy() {
		return errors.New("not a version 2 PROXY command")
	}
	if _, _, ok := h.TCPAddrs(); !ok {
		return errors.New("not a TCP client")
	}
	_, err := h.TLVs()
	return err
}

// acceptPause is how long a listener rests that lacks file descriptors.
const acceptPause = 50 * time.Millisecond

// temporary waits a little after a fault of accept that can pass.
func temporary(ctx context.Context, err error) bool {
	var fault net.Error
	exhausted := errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
	if !errors.As(err, &fault) || !fault.Timeout() && !exhausted {
		return false
	}
	select {
	case <-time.After(acceptPause):
	case <-ctx.Done():
	}
	return true
}
