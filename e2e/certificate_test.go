package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/examples/demo"
)

// mesh is the authority of the trust domain that every Site believes.
var mesh = sync.OnceValue(func() *meshAuthority {
	m, err := newMesh()
	if err != nil {
		panic(err)
	}
	return m
})

type meshAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newMesh() (*meshAuthority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mesh"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &meshAuthority{cert, key}, err
}

func (m *meshAuthority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert.Raw})
}

// issue makes a certificate for an hour; it began long enough ago not to be
// taken for one from the future.
func (m *meshAuthority) issue(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{u}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, m.cert, key.Public(), m.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// withMesh makes the demo's configuration believe the mesh.
func withMesh(text string) string {
	return strings.Replace(text, "  issuers:\n", `  issuers:
    - name: mesh
      spiffe:
        trust_domain: mesh.test
        bundle: {file: mesh.pem}
        ids: [{path: "/ns/{workflow}/sa/{subagent}", groups: [orders-agents]}, {path: "/guest/{subagent}"}, {path: "/person/{user}", groups: [orders-agents]}]
`, 1)
}

// certified is an HTTPS client with a certificate.
func certified(t *testing.T, s *demo.Site, cert ...tls.Certificate) *http.Client {
	t.Helper()
	client, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = cert
	return client
}

// ask sends a request with such a client.
func ask(t *testing.T, client *http.Client, method, address, token, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// open connects to orders with a password and a certificate, by classic TLS.
func open(t *testing.T, s *demo.Site, password string, cert ...tls.Certificate) error {
	t.Helper()
	conn, err := connectCertified(t, s, password, cert...)
	if err != nil {
		return err
	}
	_, err = read(t.Context(), conn, "select count(*) from orders")
	return err
}

func connectCertified(t *testing.T, s *demo.Site, password string, cert ...tls.Certificate) (*pgx.Conn, error) {
	t.Helper()
	config, err := pgx.ParseConfig(s.DSN(password))
	if err != nil {
		t.Fatal(err)
	}
	config.TLSConfig.Certificates = cert
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err == nil {
		t.Cleanup(func() { conn.Close(context.Background()) })
	}
	return conn, err
}

func unauthenticated(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && strings.Contains(refused.Detail, "reason unauthenticated")
}

// TestCertificateIsAnIdentity: a SPIFFE certificate does in place of a token.
func TestCertificateIsAnIdentity(t *testing.T) {
	t.Parallel()
	s := site(t)
	cert := mesh().issue(t, "spiffe://mesh.test/ns/nightly/sa/reporter")
	client := certified(t, s, cert)
	status, body := ask(t, client, "GET", s.URL()+"/http/billing/echo", "", "")
	if status != http.StatusOK || strings.Contains(strings.ToLower(body), "client-cert") {
		t.Errorf("the target answers %d, and sees %s", status, body)
	}
	status, body = ask(t, client, "GET", s.URL()+"/.well-known/chaperone", "", "")
	var document struct {
		Subagent, Workflow string
		TokenID            string `json:"token_id"`
	}
	if err := json.Unmarshal([]byte(body), &document); err != nil || status != http.StatusOK || document.Subagent != "reporter" || document.Workflow != "nightly" {
		t.Errorf("%d %s %v", status, body, err)
	}
	if err := open(t, s, "certificate", cert); err != nil {
		t.Errorf("psql's protocol: %v", err)
	}
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--token", document.TokenID, "--cause", "leaked"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if status, body := ask(t, client, "GET", s.URL()+"/http/billing/customers/1", "", ""); status != http.StatusUnauthorized {
		t.Errorf("once it is revoked: %d %s", status, body)
	}
}

// TestForgedCertificates: attack. The twin is the test above.
func TestForgedCertificates(t *testing.T) {
	t.Parallel()
	s := site(t)
	stranger, err := newMesh()
	if err != nil {
		t.Fatal(err)
	}
	const id, path = "spiffe://mesh.test/ns/nightly/sa/reporter", "/http/billing/customers/1"
	real := mesh().issue(t, id)
	block := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: real.Certificate[0]}))
	header := `Hash=00;Chain="` + url.PathEscape(block) + `";URI=` + id
	for name, headers := range map[string][]string{
		"a forged header": {"X-Forwarded-Client-Cert", header}, "twice": {"X-Forwarded-Client-Cert", header, "x-forwarded-client-cert", header},
	} {
		for _, at := range []string{path, "/.well-known/chaperone"} {
			if status, body := ask(t, certified(t, s), "GET", s.URL()+at, "", "", headers...); status != http.StatusUnauthorized {
				t.Errorf("%s, %s: %d %s", name, at, status, body)
			}
		}
	}
	guest := certified(t, s, mesh().issue(t, "spiffe://mesh.test/guest/eve"))
	if status, body := ask(t, guest, "GET", s.URL()+"/.well-known/chaperone", "", "", "X-Forwarded-Client-Cert", header); status != http.StatusOK || !strings.Contains(body, `"eve"`) {
		t.Errorf("a forged header beside one's own certificate: %d %s", status, body)
	}
	if status, _ := ask(t, guest, "GET", s.URL()+path, "", "", "X-Forwarded-Client-Cert", header); status == http.StatusOK {
		t.Error("a guest with a forged header reaches billing")
	}
	if status, body := ask(t, certified(t, s, stranger.issue(t, id)), "GET", s.URL()+path, "", ""); status != 0 || !strings.Contains(body, "tls") {
		t.Errorf("another authority's certificate: %d %s", status, body)
	}
	unmapped := certified(t, s, mesh().issue(t, "spiffe://mesh.test/elsewhere"))
	if status, body := ask(t, unmapped, "GET", s.URL()+path, "", ""); status != http.StatusUnauthorized {
		t.Errorf("an id that is not mapped: %d %s", status, body)
	}
	for name, certs := range map[string][]tls.Certificate{
		"none": nil, "another authority's": {stranger.issue(t, id)}, "not mapped": {mesh().issue(t, "spiffe://mesh.test/elsewhere")},
	} {
		if err := open(t, s, "certificate", certs...); !unauthenticated(err) {
			t.Errorf("psql's protocol, %s: %v", name, err)
		}
	}
}

// TestTokensAreBoundToTheirSender: attack with a stolen token. The control is a
// bearer token, which anybody can use; the twin is the sender.
func TestTokensAreBoundToTheirSender(t *testing.T) {
	t.Parallel()
	s := site(t)
	mine, theirs := mesh().issue(t, "spiffe://mesh.test/ns/a/sa/mine"), mesh().issue(t, "spiffe://mesh.test/ns/a/sa/theirs")
	exchange := func(client *http.Client, form url.Values) string {
		status, body := ask(t, client, "POST", s.URL()+"/oauth/token", "", form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
		var answer struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK {
			t.Fatalf("exchange: %d %s", status, body)
		}
		return answer.Token
	}
	form := exchangeForm(token(t, s, demo.Ada), "", "audience", "orders", "audience", "billing")
	bearer := exchange(certified(t, s), form)
	form.Set("actor_token_type", "urn:chaperone:token-type:client-certificate")
	bound := exchange(certified(t, s, mine), form)
	for name, c := range map[string]struct {
		token  string
		certs  []tls.Certificate
		passes bool
	}{
		"the sender":                 {bound, []tls.Certificate{mine}, true},
		"the thief":                  {bound, nil, false},
		"a thief with a certificate": {bound, []tls.Certificate{theirs}, false},
		"the control":                {bearer, nil, true},
	} {
		client := certified(t, s, c.certs...)
		want := map[bool]int{true: http.StatusOK, false: http.StatusUnauthorized}[c.passes]
		for _, path := range []string{"/http/billing/customers/1", "/.well-known/chaperone"} {
			if status, body := ask(t, client, "GET", s.URL()+path, c.token, ""); status != want {
				t.Errorf("%s, %s: %d %s", name, path, status, body)
			}
		}
		if err := open(t, s, c.token, c.certs...); c.passes != (err == nil) || !c.passes && !unauthenticated(err) {
			t.Errorf("%s, psql's protocol: %v", name, err)
		}
	}
	if status, body := ask(t, certified(t, s, theirs), "POST", s.URL()+"/oauth/token", "", exchangeForm(bound, "").Encode(),
		"Content-Type", "application/x-www-form-urlencoded"); status != http.StatusBadRequest {
		t.Errorf("the thief exchanges it: %d %s", status, body)
	}
	status, body := ask(t, certified(t, s, mine), "GET", s.URL()+"/.well-known/chaperone", bound, "")
	if status != http.StatusOK || !strings.Contains(body, `"actor":"mine"`) {
		t.Errorf("the certificate is not the actor: %d %s", status, body)
	}
}

// writeMesh puts the bundle where the configuration looks for it.
func writeMesh(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "mesh.pem"), mesh().pem(), 0o600); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	return nil
}
