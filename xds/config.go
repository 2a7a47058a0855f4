// Package xds turns a revision of the gateway's configuration into the whole
// set of resources that an Envoy needs, and serves it by delta ADS.
//
// Config is the model: it speaks of listeners, targets and sockets and holds no
// Envoy type. Build translates it, always to the same bytes for the same
// Config. A Snapshot is replaced whole or not at all. The Server keeps what
// every connected Envoy has accepted and what it has rejected.
//
// The package refuses to let a request past Envoy undecided or a response past
// it unprocessed: no filter it writes is allowed to fail open, and the tests
// hold it to that through a real Envoy.
package xds

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"chaperone.dev/chaperone/internal/access"
)

// MaxBody is the largest request body, in bytes, that a resource whose policy
// reads bodies (or may hold) accepts. Larger ones are answered 413.
const MaxBody = 1 << 20

// MaxKubernetesBody is the same for Kubernetes, whose bodies are always read:
// the API server's own bound.
const MaxKubernetesBody = 3 << 20

// A Config is everything that Envoy is told. It is a value: Build keeps none of
// its slices.
type Config struct {
	Revision string // name of the revision this is part of; for people only
	Listen   Listen
	Sockets  Sockets
	HTTP     []HTTPResource

	// Hold is the longest that the authorizer may keep a request waiting.
	Hold time.Duration
	// OTLP is the host:port of an OpenTelemetry collector (gRPC) to which
	// Envoy sends its spans. "" turns them off.
	OTLP string
	// SystemCAs is the file of root certificates that Envoy trusts for https
	// targets without a CA of their own. "" means there is none, and then such
	// targets are a fault.
	SystemCAs string
}

// Listen says where clients connect. An empty address leaves that listener out.
// Addresses are IP:port; Envoy cannot choose a port itself.
type Listen struct {
	HTTPS, Postgres, SSH string
	Certificate          []byte        // PEM, leaf first; for HTTPS
	Key                  access.Secret // PEM
	// ClientCAs, in PEM, are what the certificates of clients must lead to. Nil
	// asks no client for one; otherwise a client may show one, and what it shows
	// is told to the services in x-forwarded-client-cert.
	ClientCAs []byte
}

// Sockets are the unix sockets of chaperone's own services.
type Sockets struct {
	Services string // gRPC: Authorization and ExternalProcessor
	Postgres string // the session service, behind PROXY protocol v2
	SSH      string // the same for SSH
	// Kubernetes is the session service that exec, attach and port-forward lead
	// to: HTTP/1.1 that is handed over.
	Kubernetes string
	API        string // HTTP/1.1: /api/v1, /oauth, /console, /.well-known; "" leaves the routes out
}

// An HTTPResource is a target that clients reach below /http/<Name>/, or, when it
// is a Kubernetes API server, below /k8s/<Name>/.
type HTTPResource struct {
	Name       string
	Address    string      // http[s]://host[:port], no path
	Host       string      // Host header and TLS server name; "" means the address's
	CA         []byte      // PEM; nil means SystemCAs
	Credential *Credential // nil injects nothing
	// ReadBody buffers request bodies up to MaxBody and shows them to the
	// authorizer: for policies that read them or may hold the request.
	ReadBody bool

	Kubernetes  bool
	Certificate *Certificate // for the target; nil shows none

	stream bool // of a route: it leads to the session service
}

// A Certificate is what Envoy proves itself by to the target.
type Certificate struct {
	Chain []byte        // PEM, leaf first
	Key   access.Secret // PEM
}

// A Credential is a header that Envoy sets on every request to the target, in
// place of any that the client sent.
type Credential struct {
	Header string
	Value  access.Secret
}

// connects reports whether SSH is reached by CONNECT, too.
func (c Config) connects() bool { return c.Listen.HTTPS != "" && c.Listen.SSH != "" }

var resourceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$`)

// reservedHeaders mean something to HTTP itself or to the gateway; a
// credential cannot be one of them.
var reservedHeaders = []string{"host", "connection", "content-length", "content-type", "transfer-encoding",
	"te", "trailer", "upgrade", "expect", "accept-encoding", "keep-alive", "proxy-connection"}

// validate lists every fault of c.
func (c Config) validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Listen.HTTPS == "" && c.Listen.Postgres == "" && c.Listen.SSH == "" {
		fault("nothing to listen on")
	}
	for _, a := range []struct{ name, address, socket string }{
		{"https", c.Listen.HTTPS, c.Sockets.Services}, {"postgres", c.Listen.Postgres, c.Sockets.Postgres}, {"ssh", c.Listen.SSH, c.Sockets.SSH}} {
		if a.address == "" {
			continue
		}
		if ap, err := netip.ParseAddrPort(a.address); err != nil || ap.Port() == 0 {
			fault("listen %s: %q is not IP:port", a.name, a.address)
		}
		if a.socket == "" {
			fault("listen %s: its service has no socket", a.name)
		}
	}
	if c.Listen.HTTPS != "" {
		if err := c.Listen.certified(); err != nil {
			fault("listen tls: %w", err)
		}
	}
	if c.Listen.HTTPS != "" && c.Hold <= 0 {
		fault("hold: must be more than 0")
	}
	if c.OTLP != "" {
		if _, _, err := splitHostPort(c.OTLP); err != nil {
			fault("otlp: %w", err)
		}
	}
	names := make(map[string]bool, len(c.HTTP))
	for _, r := range c.HTTP {
		if names[r.Name] {
			fault("resource %s: twice", r.Name)
		}
		names[r.Name] = true
		if r.Kubernetes && c.Sockets.Kubernetes == "" {
			fault("resource %s: the session service of Kubernetes has no socket", r.Name)
		}
		if err := r.validate(c.SystemCAs); err != nil {
			fault("resource %s: %w", r.Name, err)
		}
	}
	return errors.Join(faults...)
}

// certified checks what Envoy would refuse. The errors of crypto/tls quote
// nothing of the key.
func (l Listen) certified() error {
	pair, err := tls.X509KeyPair(l.Certificate, []byte(l.Key.Reveal()))
	if err != nil {
		return err
	}
	if l.ClientCAs != nil && !x509.NewCertPool().AppendCertsFromPEM(l.ClientCAs) {
		return errors.New("the client CAs hold no PEM certificate")
	}
	leaf := pair.Leaf
	if leaf.Subject.CommonName == "" && len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.URIs)+len(leaf.EmailAddresses) == 0 {
		return errors.New("the certificate names nobody")
	}
	return nil
}

func (r HTTPResource) validate(systemCAs string) error {
	if !resourceName.MatchString(r.Name) {
		return errors.New("name: letters, digits, - and _ only, at most 63")
	}
	t, err := r.target()
	if err != nil {
		return err
	}
	if t.tls && len(r.CA) == 0 && systemCAs == "" {
		return errors.New("an https target needs a CA")
	}
	if len(r.CA) > 0 && !x509.NewCertPool().AppendCertsFromPEM(r.CA) {
		return errors.New("ca: holds no PEM certificate")
	}
	if !httpguts.ValidHostHeader(t.hostHeader) || strings.ContainsAny(t.hostHeader, "/@ ") {
		return fmt.Errorf("host: %q is not a host", t.hostHeader)
	}
	if c := r.Certificate; c != nil {
		if _, err := tls.X509KeyPair(c.Chain, []byte(c.Key.Reveal())); err != nil || !t.tls {
			return errors.New("certificate: it has no key, or the target no TLS")
		}
	}
	if r.Credential == nil {
		return nil
	}
	header := strings.ToLower(r.Credential.Header)
	if !httpguts.ValidHeaderFieldName(header) || slices.Contains(reservedHeaders, header) ||
		strings.HasPrefix(header, "x-envoy-") || strings.HasPrefix(header, "x-chaperone-") {
		return fmt.Errorf("credential header: %q cannot be used", r.Credential.Header)
	}
	if v := r.Credential.Value.Reveal(); v == "" || !httpguts.ValidHeaderFieldValue(v) || strings.TrimSpace(v) != v {
		return errors.New("credential value: it is empty or not a header value (a newline at its end?)")
	}
	return nil
}

// A target is an HTTPResource's address, taken apart.
type target struct {
	tls        bool
	host       string // name or IP, without brackets
	port       uint32
	ip         bool
	hostHeader string
	serverName string // for TLS; without port
}

func (r HTTPResource) target() (target, error) {
	u, err := url.Parse(r.Address)
	switch {
	case err != nil:
		return target{}, errors.New("address: not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return target{}, fmt.Errorf("address: scheme %q is not http or https", u.Scheme)
	case u.Hostname() == "":
		return target{}, errors.New("address: no host")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return target{}, errors.New("address: only scheme, host and port belong there")
	}
	t := target{tls: u.Scheme == "https", host: u.Hostname(), port: 80, hostHeader: r.Host}
	if t.tls {
		t.port = 443
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return target{}, fmt.Errorf("address: %q is not a port", p)
		}
		t.port = uint32(n)
	}
	_, err = netip.ParseAddr(t.host)
	t.ip = err == nil
	if t.hostHeader == "" {
		t.hostHeader = u.Host
	}
	t.serverName = t.hostHeader
	if host, _, err := net.SplitHostPort(t.hostHeader); err == nil {
		t.serverName = host
	}
	t.serverName = strings.Trim(t.serverName, "[]")
	return t, nil
}

func splitHostPort(hostport string) (string, uint32, error) {
	host, p, err := net.SplitHostPort(hostport)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", hostport)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 || host == "" {
		return "", 0, fmt.Errorf("%q is not host:port", hostport)
	}
	return host, uint32(port), nil
}
