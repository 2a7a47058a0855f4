package postgres

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pires/go-proxyproto"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/sql"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

const (
	goodToken    = "token-of-the-agent"
	rolePassword = "the-injected-password"
)

// targets are the real servers, started once for all tests.
var targets struct {
	sync.Mutex
	servers map[string]*target
	dir     string
}

type target struct {
	once sync.Once
	pg   *localserver.Postgres
	err  error
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "chaperone-postgres")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	targets.dir, targets.servers = dir, map[string]*target{}
	code := m.Run()
	if judge.pool != nil {
		judge.pool.Close()
	}
	for _, t := range targets.servers {
		if t.pg != nil {
			t.pg.Close()
		}
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// server returns the running PostgreSQL of a version with the orders database.
func server(t testing.TB, version string) *localserver.Postgres {
	t.Helper()
	targets.Lock()
	one := targets.servers[version]
	if one == nil {
		one = &target{}
		targets.servers[version] = one
	}
	targets.Unlock()
	one.once.Do(func() {
		ctx := context.Background()
		if one.pg, one.err = localserver.StartPostgres(ctx, filepath.Join(targets.dir, version), version); one.err != nil {
			return
		}
		if one.err = one.pg.Exec(ctx, "postgres", "CREATE ROLE app LOGIN PASSWORD '"+rolePassword+"'; CREATE ROLE nosy LOGIN PASSWORD '"+rolePassword+"'"); one.err != nil {
			return
		}
		if one.err = one.pg.Exec(ctx, "postgres", "CREATE DATABASE orders"); one.err != nil {
			return
		}
		one.err = one.pg.Exec(ctx, "orders", schema)
	})
	if one.err != nil {
		t.Fatal(one.err)
	}
	return one.pg
}

const schema = `
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, email text, ssn text, card text);
INSERT INTO customers SELECT i, 'name-' || i, 'mail-' || i || '@example.com', '123-45-' || (6000 + i), '4111111111111111' FROM generate_series(1, 20) i;
CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers ON DELETE CASCADE, status text NOT NULL, amount numeric(10,2));
INSERT INTO orders SELECT i, 1 + i % 20, 'open', i * 1.5 FROM generate_series(1, 200) i;
CREATE TABLE notes (id int PRIMARY KEY, body text UNIQUE);
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE);
INSERT INTO parents VALUES (1); INSERT INTO children SELECT i, 1 FROM generate_series(1, 50) i;
CREATE TABLE deferred (id int, parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION talk() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'heard' USING DETAIL = 'secret detail', HINT = 'secret hint'; RETURN 1; END $$;
GRANT SELECT (id, name, email, card), UPDATE, INSERT, DELETE ON customers TO app;
GRANT SELECT, INSERT, UPDATE, DELETE ON orders, notes, parents, children, deferred TO app;
GRANT SELECT ON customers, orders TO nosy;
`

// A gateway is a running service with everything around it.
type gateway struct {
	*Service
	pg        *localserver.Postgres
	addr      string // where clients go; the PROXY header is added on the way
	socket    string // where Envoy would go
	ca        *x509.CertPool
	caFile    string
	recorder  *recorder
	approvals *approvals
	registry  *registry
	policy    *policy
	log       *safeBuffer

	mu        sync.Mutex
	resources map[string]Resource
	source    *net.TCPAddr // which address clients seem to have
	tick      chan time.Time
	stop      func()
}

type option func(*gateway, *Config, *Deps)

// start runs a service in front of the given PostgreSQL.
func start(t testing.TB, version string, options ...option) *gateway {
	t.Helper()
	g := &gateway{
		pg: server(t, version), recorder: &recorder{}, approvals: newApprovals(), registry: newRegistry(),
		policy: &policy{}, log: &safeBuffer{}, source: &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 4321},
		tick: make(chan time.Time),
	}
	g.policy.allowAll()
	g.resources = map[string]Resource{"orders": {
		Access:  access.Resource{Name: "orders", Kind: access.Postgres, Labels: map[string]string{"env": "prod"}},
		Address: g.pg.Addr, Database: "orders", User: "app", Analyzer: plainAnalyzer{},
		Password: func(context.Context) (access.Secret, error) { return access.NewSecret(rolePassword), nil },
	}}
	cert, pool, caPEM := certificate(t)
	g.ca, g.caFile = pool, filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(g.caFile, caPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Config{PlaintextOnLoopback: true, ApprovalWait: 20 * time.Second}
	deps := Deps{
		Verifier: verifier{}, Decider: g.policy, Recorder: g.recorder, Approvals: g.approvals, Sessions: g.registry,
		Resource: g.resource, TLS: func() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}} },
		Log:    slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Ticker: func(time.Duration) (<-chan time.Time, func()) { return g.tick, func() {} },
	}
	for _, o := range options {
		o(g, &cfg, &deps)
	}
	service, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	g.Service = service
	g.serve(t)
	return g
}

func (g *gateway) resource(name string) (Resource, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, ok := g.resources[name]
	return r, ok
}

func (g *gateway) setResource(name string, change func(*Resource)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.resources[name]
	change(&r)
	g.resources[name] = r
}

func (g *gateway) serve(t testing.TB) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pg") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	g.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = front.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	g.stop = stop
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, l) }()
	go g.forward(front)
	t.Cleanup(func() {
		front.Close()
		stop()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Serve did not end")
		}
		os.RemoveAll(dir)
	})
}

// forward stands in for Envoy's tcp_proxy: it adds the PROXY header.
func (g *gateway) forward(front net.Listener) {
	for {
		client, err := front.Accept()
		if err != nil {
			return
		}
		go func() {
			defer client.Close()
			back, err := g.dialSocket(g.source)
			if err != nil {
				return
			}
			defer back.Close()
			go func() {
				io.Copy(back, client)
				back.(*net.UnixConn).CloseWrite()
			}()
			io.Copy(client, back)
		}()
	}
}

// dialSocket connects as Envoy does for a client at source.
func (g *gateway) dialSocket(source *net.TCPAddr) (net.Conn, error) {
	back, err := net.Dial("unix", g.socket)
	if err != nil {
		return nil, err
	}
	header := proxyproto.HeaderProxyFromAddrs(2, source, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 5432})
	if _, err := header.WriteTo(back); err != nil {
		back.Close()
		return nil, err
	}
	return back, nil
}

// dsn is a connection string through the gateway.
func (g *gateway) dsn(token string) string {
	host, port, _ := net.SplitHostPort(g.addr)
	return fmt.Sprintf("host=%s port=%s user=agent password=%s dbname=orders sslmode=verify-full sslrootcert=%s", host, port, token, g.caFile)
}

// onLoopback makes clients seem to be on the gateway's own machine.
func onLoopback(g *gateway, _ *Config, _ *Deps) {
	g.source = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4321}
}

// plainDSN is a connection string through the gateway without TLS.
func (g *gateway) plainDSN(token string) string {
	host, port, _ := net.SplitHostPort(g.addr)
	return fmt.Sprintf("host=%s port=%s user=agent password=%s dbname=orders sslmode=disable", host, port, token)
}

// connect opens a pgx connection through the gateway.
func (g *gateway) connect(t testing.TB, mode pgx.QueryExecMode) *pgx.Conn {
	t.Helper()
	return dialPgx(t, g.dsn(goodToken), mode)
}

func (g *gateway) connectPlain(t testing.TB, mode pgx.QueryExecMode) *pgx.Conn {
	t.Helper()
	return dialPgx(t, g.plainDSN(goodToken), mode)
}

func dialPgx(t testing.TB, dsn string, mode pgx.QueryExecMode) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = mode
	conn, err := pgx.ConnectConfig(context.Background(), config)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// plainAnalyzer is a judge for tests of the protocol: it goes by the first
// word. The real one is tested with the service in masking_test.go.
type plainAnalyzer struct{}

var parameter = regexp.MustCompile(`\$(\d)`)

func (plainAnalyzer) Analyze(ctx context.Context, text string, _ *catalog.Snapshot) (*sql.Statement, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	trimmed := strings.TrimSuffix(strings.TrimSpace(text), ";")
	word, _, _ := strings.Cut(strings.ToUpper(trimmed), " ")
	st := &sql.Statement{Text: text, Action: access.SQL{Text: text, Command: word, Statements: 1}}
	for _, m := range parameter.FindAllStringSubmatch(text, -1) {
		st.Parameters = max(st.Parameters, int(m[1][0]-'0'))
	}
	refused := func(message string) {
		st.Refusal = &sql.Refusal{Reason: access.Unsupported, Message: message, SQLState: sqlstateUnsupported, Position: 1}
	}
	switch {
	case trimmed == "" || strings.HasPrefix(trimmed, "--"):
		st.Kind = sql.KindEmpty
	case strings.Contains(trimmed, ";"):
		refused("cannot insert multiple commands into a prepared statement")
		at := 0
		for part := range strings.SplitSeq(trimmed, ";") {
			if left := strings.TrimLeft(part, " "); left != "" {
				st.Parts = append(st.Parts, sql.Part{Text: left, Offset: at + len(part) - len(left)})
			}
			at += len(part) + 1
		}
	case slices.Contains([]string{"SELECT", "VALUES", "WITH", "TABLE"}, word):
		st.Kind, st.ReturnsRows, st.Action.ReadOnly = sql.KindQuery, true, true
	case slices.Contains([]string{"INSERT", "UPDATE", "DELETE"}, word):
		st.Kind, st.ReturnsRows = sql.KindChange, strings.Contains(strings.ToUpper(text), "RETURNING")
	case slices.Contains([]string{"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "END", "ABORT", "START"}, word):
		st.Kind, st.Action.ReadOnly, st.Action.Session = sql.KindTransaction, true, true
	case word == "SET" || word == "SHOW":
		st.Kind, st.Action.ReadOnly, st.Action.Session = sql.KindSetting, true, true
		st.Setting = &sql.Setting{Name: strings.Fields(trimmed)[1], Show: word == "SHOW", Local: strings.HasPrefix(trimmed, "set local")}
		if strings.HasPrefix(trimmed, "set transaction") {
			st.Kind, st.Transaction, st.Setting = sql.KindTransaction, sql.TxSet, nil
		}
	case slices.Contains([]string{"COPY", "PREPARE", "DO", "DECLARE"}, word):
		refused(word + " is not supported")
	case word == "PANIC":
		panic("the judge panics")
	default:
		st.Kind, st.Action.DDL = sql.KindDefinition, true
	}
	return st, nil
}

func (plainAnalyzer) Mask(_ context.Context, st *sql.Statement, _ *catalog.Snapshot, o access.Obligations) (*sql.Forward, error) {
	text := st.Text
	for _, m := range o.Masks {
		if m.Column == "public.customers.ssn" {
			text = strings.ReplaceAll(text, "ssn", "'***'::pg_catalog.text AS ssn")
		}
	}
	return &sql.Forward{Text: text, Action: st.Action}, nil
}

// certificate makes a CA and a certificate for 127.0.0.1.
func certificate(t testing.TB) (tls.Certificate, *x509.CertPool, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gateway"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool, caPEM
}

// safeBuffer is a log that can be read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
