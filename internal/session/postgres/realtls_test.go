package postgres

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/localserver"
)

// A tlsServer is a real PostgreSQL that checks certificates itself. It may be
// older than those that are judged: what is tried is how the gateway logs in.
type tlsServer struct {
	*localserver.Postgres
	data string
	ca   *x509.CertPool // of the server
}

// startTLSServer starts one that trusts client for the role certified, asks the
// role worded for a password, and app for one without TLS.
func startTLSServer(t *testing.T, client *x509.Certificate) *tlsServer {
	t.Helper()
	version, err := localserver.TLSVersion()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pg, err := localserver.StartPostgres(t.Context(), filepath.Join(dir, "pg"), version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pg.Close() })
	s := &tlsServer{Postgres: pg, data: filepath.Join(dir, "pg", "pgdata")}
	own, pool, caPEM := certificate(t)
	s.ca = pool
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "server.crt", string(caPEM))
	s.write(t, "server.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	s.write(t, "clients.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: client.Raw})))
	s.write(t, "pg_hba.conf", `hostssl all certified 127.0.0.1/32 cert
hostssl all worded 127.0.0.1/32 scram-sha-256
hostssl all app 127.0.0.1/32 cert
hostnossl all postgres 127.0.0.1/32 scram-sha-256
`)
	for _, statement := range []string{
		"CREATE ROLE certified LOGIN", "CREATE ROLE app LOGIN", "CREATE ROLE worded LOGIN PASSWORD '" + rolePassword + "'",
		"ALTER SYSTEM SET ssl_ca_file = 'clients.crt'", "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()",
	} {
		if err := pg.Exec(t.Context(), "postgres", statement); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// write puts a file of the server's owner into its folder.
func (s *tlsServer) write(t *testing.T, name, text string) {
	t.Helper()
	info, err := os.Stat(s.data)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.data, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}
}

// TestRealTLS: a server's own certificate authentication and its own name are
// checked, by both sides, and SCRAM there is bound to the channel. Controls: the
// right certificate, name and password open a connection.
func TestRealTLS(t *testing.T) {
	t.Parallel()
	good, trusted := clientCertificate(t, "certified")
	stranger, _ := clientCertificate(t, "certified")
	s := startTLSServer(t, trusted)
	_, otherCA, _ := certificate(t)
	resource := func(user string, roots *x509.CertPool, name string, pairs ...tls.Certificate) Resource {
		return Resource{Access: access.Resource{Name: "real", Kind: access.Postgres}, Address: s.Addr, Database: "postgres", User: user,
			TLS: &tls.Config{RootCAs: roots, ServerName: name, Certificates: pairs}}
	}
	worded := func(password string) Resource {
		r := resource("worded", s.ca, "localhost")
		r.Password = func(context.Context) (access.Secret, error) { return access.NewSecret(password), nil }
		return r
	}
	clear := worded(rolePassword)
	clear.TLS = nil
	open := func(r Resource) (*upstream, error) { return dial(t.Context(), logins{}, r, nil, 1<<20, new(buffers)) }
	eventually(t, "the server speaks TLS", func() bool {
		up, err := open(resource("certified", s.ca, "localhost", good))
		if err == nil {
			up.close(false)
		}
		return err == nil
	})
	for name, c := range map[string]struct {
		resource Resource
		dn       string // "" where nothing opens
	}{
		"the certificate":                  {resource("certified", s.ca, "localhost", good), "/CN=certified"},
		"by its address":                   {resource("certified", s.ca, "", good), "/CN=certified"},
		"a certificate that it trusts not": {resource("certified", s.ca, "localhost", stranger), ""},
		"no certificate":                   {resource("certified", s.ca, "localhost"), ""},
		"a certificate of another role":    {resource("app", s.ca, "localhost", good), ""},
		"a password is asked for":          {resource("worded", s.ca, "localhost", good), ""},
		"another authority":                {resource("certified", otherCA, "localhost", good), ""},
		"another name":                     {resource("certified", s.ca, "db.internal", good), ""},
		"the password":                     {worded(rolePassword), "none"},
		"another password":                 {worded("guess"), ""},
		"the password in the clear":        {clear, ""},
	} {
		up, err := open(c.resource)
		if (err == nil) != (c.dn != "") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		rows := onTarget(t, up).ExecParams(t.Context(), "select current_user || ' ' || coalesce(client_dn, 'none') || ' ' || version from pg_stat_ssl where pid = pg_backend_pid()", nil, nil, nil, nil).Read()
		if rows.Err != nil || len(rows.Rows) != 1 || string(rows.Rows[0][0]) != c.resource.User+" "+c.dn+" TLSv1.3" {
			t.Errorf("%s: it is %q %v", name, rows.Rows, rows.Err)
		}
		if name == "the certificate" { // cancel requests go by TLS too
			cancelled := make(chan error, 1)
			go func() {
				cancelled <- onTarget(t, up).ExecParams(context.Background(), "select pg_sleep(60)", nil, nil, nil, nil).Read().Err
			}()
			eventually(t, "it is cancelled", func() bool {
				up.cancel()
				select {
				case err := <-cancelled:
					return pgError(t, err).Code == "57014"
				default:
					return false
				}
			})
		}
		up.close(false)
	}
	// A server of a version that is not judged is refused by name, behind a login that works.
	g := start(t, "18")
	g.setResource("orders", func(r *Resource) {
		real := resource("certified", s.ca, "localhost", good)
		r.Address, r.Database, r.User, r.Password, r.TLS = real.Address, real.Database, real.User, nil, real.TLS
	})
	version, _ := localserver.TLSVersion()
	if _, err := pgconn.Connect(t.Context(), g.dsn(goodToken)); version < "16" && (err == nil || pgError(t, err).Code != sqlstateUnsupported || !strings.Contains(pgError(t, err).Hint, "16 to 18")) {
		t.Errorf("a session: %v", err)
	}
}

// onTarget speaks to the target by pgconn again.
func onTarget(t *testing.T, up *upstream) *pgconn.PgConn {
	t.Helper()
	pg, err := pgconn.Construct(up.target)
	if err != nil {
		t.Fatal(err)
	}
	return pg
}
