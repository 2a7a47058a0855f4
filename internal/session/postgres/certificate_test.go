package postgres

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/internal/access"
)

// clientCertificate is one that vouches for itself, of a database user.
func clientCertificate(t *testing.T, user string) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: user}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, parsed
}

// TestClientCertificate: the gateway logs in with a certificate and no password;
// another one is refused, and a server that asks for a password gets none. The
// server's TLS, with its check of the certificate, stands before it here.
func TestClientCertificate(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	if err := g.pg.Exec(t.Context(), "postgres", "create role certified login"); err != nil {
		t.Fatal(err)
	}
	hba := filepath.Join(targets.dir, "18", "pgdata", "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hba, append([]byte("host all certified 127.0.0.1/32 trust\n"), rules...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.pg.Exec(t.Context(), "postgres", "select pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	good, trusted := clientCertificate(t, "certified")
	stranger, _ := clientCertificate(t, "certified")
	server, pool, _ := certificate(t)
	clients := x509.NewCertPool()
	clients.AddCert(trusted)
	addr, _ := securedBy(t, g.pg.Addr, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert})
	with := func(user string, pair ...tls.Certificate) {
		g.setResource("orders", func(r *Resource) {
			r.Address, r.User, r.Password, r.TLS = addr, user, nil, &tls.Config{RootCAs: pool, Certificates: pair}
		})
	}
	with("certified", good)
	eventually(t, "the server has read its file", func() bool {
		conn, err := pgx.Connect(t.Context(), g.dsn(goodToken))
		if err == nil {
			conn.Close(t.Context())
		}
		return err == nil
	})
	conn := g.connect(t, pgx.QueryExecModeSimpleProtocol)
	if who, err := one(t, conn, "select current_user"); err != nil || who != "certified" {
		t.Errorf("it is %q %v", who, err)
	}
	r, _ := g.resource("orders")
	if x, err := Examine(t.Context(), r, []access.Mask{}); err != nil || !x.Walled() || !strings.HasSuffix(x.Connected, "as certified, by client certificate over TLS with a verified certificate") {
		t.Errorf("examined: %+v %v", x, err)
	}
	for name, c := range map[string]struct {
		user string
		pair []tls.Certificate
	}{"another certificate": {"certified", []tls.Certificate{stranger}}, "none": {"certified", nil}, "one that does not do": {"app", []tls.Certificate{good}}} {
		with(c.user, c.pair...)
		if conn, err := pgx.Connect(t.Context(), g.dsn(goodToken)); err == nil {
			conn.Close(t.Context())
			t.Errorf("%s: a session opens", name)
		}
	}
}
