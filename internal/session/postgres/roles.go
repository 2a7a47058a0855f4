package postgres

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// Roles of sessions: a resource with a profile has a role made for each of its
// connections, which can do nothing but log in once, soon, and become the
// profile.
//
//	CREATE ROLE chaperone_… LOGIN NOINHERIT CONNECTION LIMIT 1
//	  PASSWORD (SCRAM verifier) VALID UNTIL (a minute from now) IN ROLE profile;
//	ALTER ROLE chaperone_… SET role = profile;
//	…
//	DROP ROLE chaperone_…
//
// What a crash leaves behind cannot log in any more, and goes when the next
// role is made.
const (
	// rolePrefix begins their names; the replica's digest follows.
	rolePrefix = "chaperone_"
	// roleValid is how long such a role can log in.
	roleValid = "1 minute"
	// roleLeft is how long after that it is looked upon as left behind, when
	// nobody is logged in with it.
	roleLeft = "1 minute"
	// sweepEvery is how often what was left behind is looked for.
	sweepEvery = 10 * time.Minute
	// dropWithin bounds taking a role away.
	dropWithin = 5 * time.Second
	// scramRounds of the verifier: the password is as random as a key.
	scramRounds = 4096
)

// sessionRoles makes roles, with one connection to each target that does.
type sessionRoles struct {
	replica string
	clock   func() time.Time
	log     *slog.Logger

	mu     sync.Mutex
	makers map[makerKey]*roleMaker
	closed bool
}

type makerKey struct{ address, database, user string }

func newSessionRoles(replica string, clock func() time.Time, log *slog.Logger) *sessionRoles {
	sum := sha256.Sum256([]byte(replica))
	return &sessionRoles{replica: hex.EncodeToString(sum[:4]), clock: clock, log: log, makers: map[makerKey]*roleMaker{}}
}

// A roleMaker is the connection with the resource's own credential.
type roleMaker struct {
	busy  chan struct{} // holds a value while the fields below are in use
	conn  *pgx.Conn
	swept time.Time
}

// make makes a role and returns how to log in with it.
func (s *sessionRoles) make(ctx context.Context, r Resource) (*login, error) {
	password := rand.Text()
	verifier, err := scramVerifier(password)
	if err != nil {
		return nil, err
	}
	name := rolePrefix + s.replica + "_" + strings.ToLower(rand.Text()[:20])
	err = s.with(ctx, r, func(ctx context.Context, m *roleMaker) error {
		s.sweep(ctx, m, r)
		return m.create(ctx, name, verifier, r.Profile)
	})
	if err != nil {
		return nil, err
	}
	return &login{user: name, password: access.NewSecret(password), auth: "scram-sha-256", end: func() { s.drop(r, name) }}, nil
}

// drop takes a role away, with whatever is still logged in with it. What fails
// is swept later.
func (s *sessionRoles) drop(r Resource, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), dropWithin)
	defer cancel()
	err := s.with(ctx, r, func(ctx context.Context, m *roleMaker) error { return m.drop(ctx, name) })
	if err != nil {
		s.log.Warn("the role of a session is left behind for now; it cannot log in", "role", name, "resource", r.Access.Name, "error", err)
	}
}

// with runs do on the maker's connection, over a new one when the old one had
// died, one at a time.
func (s *sessionRoles) with(ctx context.Context, r Resource, do func(context.Context, *roleMaker) error) error {
	m := s.maker(r)
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	kept := m.conn != nil
	err := m.connected(ctx, r, do)
	if err != nil && kept && m.conn == nil && ctx.Err() == nil {
		err = m.connected(ctx, r, do)
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		m.disconnect()
	}
	return err
}

func (s *sessionRoles) maker(r Resource) *roleMaker {
	key := makerKey{r.Address, r.Database, r.User}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.makers[key]
	if m == nil {
		m = &roleMaker{busy: make(chan struct{}, 1)}
		s.makers[key] = m
	}
	return m
}

// close disconnects the makers; one that is still needed connects once more.
func (s *sessionRoles) close() {
	s.mu.Lock()
	s.closed = true
	makers := make([]*roleMaker, 0, len(s.makers))
	for _, m := range s.makers {
		makers = append(makers, m)
	}
	s.mu.Unlock()
	for _, m := range makers {
		m.busy <- struct{}{}
		m.disconnect()
		<-m.busy
	}
}

// connected runs do on a connection; after an error of the connection itself
// there is none.
func (m *roleMaker) connected(ctx context.Context, r Resource, do func(context.Context, *roleMaker) error) error {
	if m.conn == nil {
		if err := m.connect(ctx, r); err != nil {
			return err
		}
	}
	err := do(ctx, m)
	if m.conn.IsClosed() {
		m.conn = nil
	}
	return err
}

// errMakerPower refuses a maker that could do anything.
var errMakerPower = errors.New("the role that makes roles is a superuser; doctor says what it needs instead")

func (m *roleMaker) connect(ctx context.Context, r Resource) error {
	own, err := r.own(ctx)
	if err != nil {
		return err
	}
	config, err := targetConfig(r, own, map[string]string{"application_name": "chaperone roles"})
	if err != nil {
		return err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	// So that the maker may end the sessions of the roles that it made.
	config.RuntimeParams["createrole_self_grant"] = "inherit"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	var super bool
	err = conn.QueryRow(ctx, "SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) current_user").Scan(&super)
	if err == nil && super {
		err = errMakerPower
	}
	m.conn = conn
	if err != nil {
		m.disconnect()
	}
	return err
}

func (m *roleMaker) disconnect() {
	if m.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	m.conn.Close(ctx)
	m.conn = nil
}

// create makes a role by the server's own clock. The server's log has the
// verifier, never the password. A server that loses the gateway ends what the
// role runs within seconds.
func (m *roleMaker) create(ctx context.Context, name, verifier, profile string) error {
	var until string
	if err := m.conn.QueryRow(ctx, "SELECT (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) '"+roleValid+"'::pg_catalog.interval)::pg_catalog.text").Scan(&until); err != nil {
		return err
	}
	role, in := catalog.QuoteIdentifier(name), catalog.QuoteIdentifier(profile)
	return m.inOne(ctx,
		"CREATE ROLE "+role+" LOGIN NOINHERIT CONNECTION LIMIT 1 PASSWORD "+quoteLiteral(verifier)+" VALID UNTIL "+quoteLiteral(until)+" IN ROLE "+in,
		"ALTER ROLE "+role+" SET role = "+quoteLiteral(profile),
		"ALTER ROLE "+role+" SET client_connection_check_interval = '5s'")
}

// inOne runs statements in one transaction.
func (m *roleMaker) inOne(ctx context.Context, statements ...string) error {
	return pgx.BeginFunc(ctx, m.conn, func(tx pgx.Tx) error {
		for _, text := range statements {
			if _, err := tx.Exec(ctx, text); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *roleMaker) drop(ctx context.Context, name string) error {
	_, err := m.conn.Exec(ctx, "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a WHERE a.usename OPERATOR(pg_catalog.=) "+quoteLiteral(name)+"::pg_catalog.name")
	if err != nil {
		return err
	}
	_, err = m.conn.Exec(ctx, "DROP ROLE IF EXISTS "+catalog.QuoteIdentifier(name))
	return err
}

// leftQuery lists what crashes, of whatever replica, left behind: what can log
// in no more and nobody is logged in with.
const leftQuery = `
SELECT r.rolname::pg_catalog.text FROM pg_catalog.pg_roles r
 WHERE r.rolname OPERATOR(pg_catalog.~) '^chaperone_[0-9a-f]{8}_[a-z0-9]{20}$'
   AND r.rolvaliduntil OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '` + roleLeft + `'::pg_catalog.interval)
   AND pg_catalog.pg_has_role($1::pg_catalog.name, r.oid, 'MEMBER WITH ADMIN OPTION')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.usesysid OPERATOR(pg_catalog.=) r.oid)
 ORDER BY 1 LIMIT 100`

// sweep takes away what was left behind. That it fails is no reason not to make
// a role.
func (s *sessionRoles) sweep(ctx context.Context, m *roleMaker, r Resource) {
	now := s.clock()
	if since := now.Sub(m.swept); !m.swept.IsZero() && since >= 0 && since < sweepEvery {
		return
	}
	m.swept = now
	left, err := texts(ctx, m.conn, leftQuery, r.User)
	for _, name := range left {
		err = cmp.Or(err, m.drop(ctx, name))
	}
	if err != nil {
		s.log.Warn("roles that a crash left behind are not removed", "resource", r.Access.Name, "error", err)
	} else if len(left) > 0 {
		s.log.Info("roles that a crash left behind are removed", "resource", r.Access.Name, "roles", len(left))
	}
}

// quoteLiteral writes a string constant; backslashes mean themselves
// (standard_conforming_strings is on).
func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// scramVerifier is what a server keeps of a password (RFC 5803).
func scramVerifier(password string) (string, error) {
	salt := make([]byte, 16)
	rand.Read(salt)
	salted, err := pbkdf2.Key(sha256.New, password, salt, scramRounds, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("scram verifier: %w", err)
	}
	keyed := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(keyed("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", scramRounds, b64(salt), b64(stored[:]), b64(keyed("Server Key"))), nil
}
