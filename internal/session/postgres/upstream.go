package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// baseDSN names every setting that pgconn would otherwise look for elsewhere;
// targetConfig then overwrites them.
const baseDSN = "host=localhost port=5432 user=chaperone password=unused database=chaperone sslmode=disable target_session_attrs=any"

// targetConfig is how a resource is dialled by a login. Nothing
// of the environment, of service files or of password files takes part.
func targetConfig(r Resource, by *login, settings map[string]string) (*pgx.ConnConfig, error) {
	host, portText, err := net.SplitHostPort(r.Address)
	if err != nil {
		return nil, fmt.Errorf("address of %s: %w", r.Access.Name, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port of %s: %w", r.Access.Name, err)
	}
	config, err := pgx.ParseConfig(baseDSN)
	if err != nil {
		return nil, fmt.Errorf("dial configuration: %w", err)
	}
	config.Host, config.Port, config.Database, config.User = host, uint16(port), r.Database, by.user
	config.TLSConfig, config.Fallbacks = r.TLS, nil
	config.SSLNegotiation, config.SSLCertMode = "postgres", "allow"
	config.RequireAuth, config.ChannelBinding = by.auth, "prefer"
	config.MinProtocolVersion, config.MaxProtocolVersion = "3.0", "3.0"
	config.KerberosSrvName, config.KerberosSpn, config.OAuthTokenProvider = "", "", nil
	config.ConnectTimeout = 0
	config.ValidateConnect, config.AfterConnect, config.AfterNetConnect = nil, nil, nil
	config.OnNotice, config.OnNotification = nil, nil
	config.DialFunc = new(net.Dialer).DialContext
	if r.Dial != nil {
		config.DialFunc = r.Dial
		config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	}
	if config.TLSConfig != nil && config.TLSConfig.ServerName == "" && !config.TLSConfig.InsecureSkipVerify {
		config.TLSConfig = config.TLSConfig.Clone()
		config.TLSConfig.ServerName = host
	}
	config.RuntimeParams = ownedSettings(r.searchPath())
	maps.Copy(config.RuntimeParams, settings)
	config.Password = by.password.Reveal()
	return config, nil
}

// searchPath is what unqualified names mean, pg_catalog aside.
func (r Resource) searchPath() []string {
	if len(r.SearchPath) == 0 {
		return []string{"public"}
	}
	return r.SearchPath
}

// An upstream is the connection to the target, in the hands of one session.
// Reading and writing belong to the session's own goroutine; interrupt and
// cancel may be called from any.
type upstream struct {
	target *pgconn.HijackedConn // what the target said of itself, and how to cancel
	conn   net.Conn
	r      *source
	body   []byte
	maxRow int
	login  *login

	mu          sync.Mutex
	closed      bool // nothing more is cancelled
	interrupted bool
	cancelling  chan struct{} // closed when the cancel request under way is done
	canceller   sync.WaitGroup
}

// cancelWithin bounds one cancel request to the target.
const cancelWithin = 5 * time.Second

// dial opens the session's connection to the target.
func dial(ctx context.Context, all logins, r Resource, settings map[string]string, maxRow int, spare *buffers) (*upstream, error) {
	by, err := all.take(ctx, r)
	if err != nil {
		return nil, err
	}
	pg, err := dialBy(ctx, r, by, settings)
	if err != nil {
		by.end()
		return nil, fmt.Errorf("dial %s: %w", r.Access.Name, err)
	}
	target, err := pg.Hijack() // its buffers are ours from here on
	if err != nil {
		pg.Close(ctx)
		by.end()
		return nil, fmt.Errorf("dial %s: %w", r.Access.Name, err)
	}
	target.Frontend = nil
	return &upstream{login: by, target: target, conn: target.Conn, r: newSource(target.Conn, spare), maxRow: maxRow}, nil
}

func dialBy(ctx context.Context, r Resource, by *login, settings map[string]string) (*pgconn.PgConn, error) {
	config, err := targetConfig(r, by, settings)
	if err != nil {
		return nil, err
	}
	pg, err := pgconn.ConnectConfig(ctx, &config.Config)
	if err != nil {
		return nil, err
	}
	if err := pg.SyncConn(ctx); err != nil {
		pg.Close(ctx)
		return nil, err
	}
	return pg, nil
}

// connectBeside opens a connection of the gateway's own beside the sessions'.
// end goes with closing it.
func connectBeside(ctx context.Context, all logins, r Resource, settings map[string]string) (conn *pgx.Conn, end func(), err error) {
	by, err := all.take(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	config, err := targetConfig(r, by, settings)
	if err == nil {
		config.DefaultQueryExecMode = pgx.QueryExecModeExec
		conn, err = pgx.ConnectConfig(ctx, config)
	}
	if err != nil {
		by.end()
		return nil, nil, err
	}
	return conn, by.end, nil
}

// write sends whole messages.
func (u *upstream) write(b []byte) error {
	u.settleCancel()
	_, err := u.conn.Write(b)
	return err
}

// read returns the next message. The body is valid until the next read.
func (u *upstream) read() (byte, []byte, error) {
	typ, size, err := u.r.header(u.maxRow)
	if err != nil {
		return 0, nil, err
	}
	if cap(u.body) > bigBuffer && size <= bigBuffer {
		u.body = nil
	}
	body, grown, err := u.r.body(u.body, size)
	u.body = grown
	return typ, body, err
}

// atHand reports whether the next message can be read without waiting.
func (u *upstream) atHand() bool { return u.r.whole() }

// rest gives up what is held for answers, while none is awaited.
func (u *upstream) rest() {
	u.r.rest()
	u.body = nil
}

// cancel asks the target to cancel what runs, once at a time, and does not
// wait. The target gets its own key, over TLS when the session has it.
func (u *upstream) cancel() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return
	}
	if u.cancelling != nil {
		select {
		case <-u.cancelling:
		default:
			return
		}
	}
	done := make(chan struct{})
	u.cancelling = done
	u.canceller.Go(func() {
		defer close(done)
		ctx, stop := context.WithTimeout(context.Background(), cancelWithin)
		defer stop()
		// Without an answer the statement just runs on; what bounds it then is
		// the end of the connection.
		if pg, err := pgconn.Construct(u.target); err == nil {
			_ = pg.CancelRequest(ctx)
		}
	})
}

// settleCancel waits for a cancel request under way, so that it cannot hit the
// statement after the one that it was meant for.
func (u *upstream) settleCancel() {
	u.mu.Lock()
	done := u.cancelling
	u.mu.Unlock()
	if done == nil {
		return
	}
	<-done
	u.mu.Lock()
	u.cancelling = nil
	u.mu.Unlock()
}

// interrupt makes reading and writing fail from now on.
func (u *upstream) interrupt() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.interrupted = true
	u.conn.SetDeadline(longAgo)
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// peek waits for the target to say something. told is closed when it has, or
// cannot; until stop has returned nobody else may read. stop returns the error
// of the connection, not that it was stopped.
func (u *upstream) peek() (told <-chan struct{}, stop func() error) {
	done := make(chan struct{})
	var fault error
	go func() {
		defer close(done)
		fault = u.r.atLeast(1)
	}()
	return done, func() error {
		u.conn.SetReadDeadline(longAgo)
		<-done
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.interrupted {
			return fault
		}
		u.conn.SetReadDeadline(time.Time{})
		if errors.Is(fault, os.ErrDeadlineExceeded) {
			return nil
		}
		return fault
	}
}

// close ends the connection; running says that a statement may still be
// running, which is then cancelled at the target first.
func (u *upstream) close(running bool) {
	if running {
		u.cancel()
	}
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.canceller.Wait()
	u.conn.SetDeadline(time.Now().Add(farewell))
	u.conn.Write([]byte{msgTerminate, 0, 0, 0, 4})
	u.conn.Close()
	u.login.end()
}

// lostTarget is the end of a session whose target is gone.
func lostTarget(d *refusal, err error) error {
	d.state = sqlstateLost
	return &fatalError{d, fmt.Errorf("target: %w", err)}
}

// isTooLong reports a message of the target beyond the bound for rows.
func isTooLong(err error) bool {
	var frame *frameError
	return errors.As(err, &frame) && frame.sqlstate == sqlstateLimit
}
