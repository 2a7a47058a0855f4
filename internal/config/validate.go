package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/strictyaml"
)

var (
	functionName = regexp.MustCompile(`^[^.()\s]+\.[^.()\s]+(\([^()]*\))?$`) // schema.name or schema.name(integer, text)
	resourceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	headerName   = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	labelKey     = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
)

// maxSocketPath is what fits in a sockaddr_un, less the longest socket name.
const maxSocketPath = 107 - len("/parsers/worker-00.sock")

type validation struct {
	config *Config
	doc    *strictyaml.Document
	faults strictyaml.Faults
}

func (v *validation) fault(path, format string, args ...any) {
	v.faults = append(v.faults, v.doc.Fault(path, format, args...))
}

func (v *validation) all() {
	c := v.config
	v.listen(&c.Listen)
	v.identity(&c.Identity)
	v.resources(c.Resources)
	if c.Policies == "" {
		v.fault("policies", "is needed: the folder of policy files")
	}
	v.people(&c.People)
	v.logins(&c.People)
	v.approvals(&c.Approvals)
	v.store(&c.Store)
	v.tokens(c.Tokens)
	v.publicURL(&c.Listen)
	v.sshGateway(&c.SSH)
	v.rest()
}

// path makes a relative path absolute.
func (v *validation) path(p *string) {
	if *p != "" && !filepath.IsAbs(*p) {
		*p = filepath.Join(v.config.Dir, *p)
	}
}

// secret reads a reference; a missing one is a fault only when it is needed.
func (v *validation) secret(path string, r *SecretRef, needed bool) {
	if !r.Set() {
		if needed {
			v.fault(path, "is needed: {file: path} or {env: NAME}")
		}
		return
	}
	if err := r.read(v.config.Dir); err != nil {
		v.fault(path, "cannot be read: %s", err)
	}
	if r.File != "" {
		v.config.files = append(v.config.files, r.File)
	}
}

func (v *validation) certificates(path string, r *SecretRef) {
	v.secret(path, r, false)
	if !r.Secret().Empty() && !x509.NewCertPool().AppendCertsFromPEM(r.Bytes()) {
		v.fault(path, "holds no certificate in PEM form")
	}
}

func (v *validation) address(path, addr string) (host string) {
	host, port, err := net.SplitHostPort(addr)
	if n, convErr := strconv.Atoi(port); err != nil || convErr != nil || n < 1 || n > 65535 {
		v.fault(path, "must be host:port with a port from 1 to 65535")
	}
	return host
}

func (v *validation) listenAddress(path, addr string) {
	host := v.address(path, addr)
	if net.ParseIP(host) == nil {
		v.fault(path, "must begin with an IP address to listen on, for example 0.0.0.0:8443")
	}
}

func (v *validation) listen(l *Listen) {
	if l.HTTPS == "" {
		v.fault("listen.https", "is needed: host:port")
	} else {
		v.listenAddress("listen.https", l.HTTPS)
	}
	if l.Postgres != "" {
		v.listenAddress("listen.postgres", l.Postgres)
	}
	if l.SSH != "" {
		v.listenAddress("listen.ssh", l.SSH)
	}
	if l.WaitingPerAddress == nil {
		l.WaitingPerAddress = new(int)
		*l.WaitingPerAddress = 32
	}
	if n := *l.WaitingPerAddress; n < 1 || n > 256 {
		v.fault("listen.waiting_per_address", "must be from 1 to 256")
	}
	v.secret("listen.tls.cert", &l.TLS.Cert, true)
	v.secret("listen.tls.key", &l.TLS.Key, true)
	if !l.TLS.Cert.Secret().Empty() && !l.TLS.Key.Secret().Empty() {
		if _, err := tls.X509KeyPair(l.TLS.Cert.Bytes(), l.TLS.Key.Bytes()); err != nil {
			v.fault("listen.tls", "certificate and key do not make a pair: %s", err)
		}
	}
}

// publicURL is configured, or follows from what is.
func (v *validation) publicURL(l *Listen) {
	if t := v.config.Tokens; l.Public == "" && t != nil {
		l.Public = t.Issuer
	}
	if l.Public == "" {
		pair, err := tls.X509KeyPair(l.TLS.Cert.Bytes(), l.TLS.Key.Bytes())
		if err != nil {
			return // it is a fault already
		}
		names := pair.Leaf.DNSNames
		for _, ip := range pair.Leaf.IPAddresses {
			names = append(names, ip.String())
		}
		_, port, _ := net.SplitHostPort(l.HTTPS) // validated
		if len(names) == 0 || strings.Contains(names[0], "*") {
			v.fault("listen.public_url", "is needed: the certificate does not begin with a name at which clients reach the gateway")
			return
		}
		l.Public = "https://" + net.JoinHostPort(names[0], port)
	}
	if u := v.secureURL("listen.public_url", l.Public); u != nil && (u.Path != "" || u.RawQuery != "" || u.Scheme != "https") {
		v.fault("listen.public_url", "must be https://host or https://host:port, without a path")
	}
}

// secureURL demands https, except to loopback.
func (v *validation) secureURL(path, raw string) *url.URL {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		v.fault(path, "must be a URL such as https://host/path, without a user or a fragment")
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		v.fault(path, "must be https (http is for loopback only)")
	default:
		return u
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (v *validation) resources(rs []Resource) {
	names := map[string]bool{}
	for i := range rs {
		r, path := &rs[i], fmt.Sprintf("resources[%d]", i)
		if !resourceName.MatchString(r.Name) {
			v.fault(path+".name", "must be 1 to 63 lower-case letters, digits and dashes")
		}
		if names[r.Name] {
			v.fault(path+".name", "is used twice")
		}
		names[r.Name] = true
		for key := range r.Labels {
			if !labelKey.MatchString(key) {
				v.fault(path+".labels", "label names are lower-case letters, digits and underscores")
			}
		}
		switch r.Kind {
		case access.Postgres:
			v.postgres(path, r)
		case access.HTTP:
			v.http(path, r)
		case access.SSH:
			v.ssh(path, r)
		case access.Kubernetes:
			v.kubernetes(path, r)
		default:
			v.fault(path+".kind", "must be postgres, http, ssh or kubernetes")
			continue
		}
		v.onlyOwnSettings(path, r)
	}
}

// onlyOwnSettings refuses the settings of other kinds.
func (v *validation) onlyOwnSettings(path string, r *Resource) {
	for _, other := range []struct {
		kind  access.Kind
		given bool
	}{{access.Postgres, r.Postgres != nil}, {access.HTTP, r.HTTP != nil}, {access.SSH, r.SSH != nil},
		{access.Kubernetes, r.Kubernetes != nil}} {
		if other.given && other.kind != r.Kind {
			v.fault(path+"."+string(other.kind), "does not belong to a resource of kind %s", r.Kind)
		}
	}
}

func (v *validation) postgres(path string, r *Resource) {
	host := v.address(path+".address", r.Address)
	if r.Postgres == nil {
		v.fault(path+".postgres", "is needed")
		return
	}
	p := r.Postgres
	path += ".postgres"
	if p.Database == "" {
		p.Database = r.Name
	}
	switch p.TLS.Mode {
	case "":
		p.TLS.Mode = "verify-full"
	case "verify-full":
	case "disable":
		if !isLoopback(host) {
			v.fault(path+".tls.mode", "disable is for targets on loopback only; use verify-full")
		}
	default:
		v.fault(path+".tls.mode", "must be verify-full or disable")
	}
	v.certificates(path+".tls.ca", &p.TLS.CA)
	if p.Credential.User == "" {
		v.fault(path+".credential.user", "is needed: the role that is injected")
	}
	v.postgresCredential(path, p)
	for name, attribute := range p.Settings {
		if !customSetting.MatchString(name) {
			v.fault(path+".settings", "%q must be a setting of your own, with a dot in its name: app.tenant", name)
		}
		if !slices.Contains(access.Attributes(), attribute) {
			v.fault(path+".settings", "%s must be one of %s", name, strings.Join(access.Attributes(), ", "))
		}
	}
	for i, f := range p.Functions {
		if !functionName.MatchString(f) {
			v.fault(fmt.Sprintf("%s.functions[%d]", path, i), "must be schema.name or schema.name(types)")
		}
	}
}

// customSetting is the name of a setting that no server knows by itself.
var customSetting = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,30}\.[a-z_][a-z0-9_]{0,30}$`)

func (v *validation) postgresCredential(path string, p *Postgres) {
	c := &p.Credential
	path += ".credential"
	certificate := c.Certificate.Set() || c.Key.Set()
	v.secret(path+".password", &c.Password, !certificate)
	if certificate && c.Password.Set() {
		v.fault(path+".password", "stands beside a certificate: give one of them")
	}
	if certificate && p.TLS.Mode == "disable" {
		v.fault(path+".certificate", "needs TLS to the target")
	}
	v.secret(path+".certificate", &c.Certificate, certificate)
	v.secret(path+".key", &c.Key, certificate)
	if cert, key := c.Certificate.Bytes(), c.Key.Bytes(); cert != nil && key != nil {
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			v.fault(path+".certificate", "and its key do not go together: %v", err)
		}
	}
	if c.Profile != "" && c.Profile == c.User {
		v.fault(path+".profile", "must be another role than the one that makes roles in it")
	}
}

func (v *validation) http(path string, r *Resource) {
	if u := v.secureURL(path+".address", r.Address); u != nil && (u.Path != "" && u.Path != "/" || u.RawQuery != "") {
		v.fault(path+".address", "must not have a path or a query")
	}
	if r.HTTP == nil {
		r.HTTP = &HTTP{}
	}
	path += ".http"
	v.certificates(path+".ca", &r.HTTP.CA)
	cred := &r.HTTP.Credential
	v.secret(path+".credential.value", &cred.Value, cred.Header != "")
	if strings.ContainsAny(cred.Value.Secret().Reveal(), "\r\n\x00") {
		v.fault(path+".credential.value", "holds a line break, which no header can carry")
	}
	if cred.Value.Set() && !headerName.MatchString(cred.Header) {
		v.fault(path+".credential.header", "must be a header name")
	}
	if slices.Contains([]string{"host", "connection", "content-length", "transfer-encoding", "te", "upgrade"}, strings.ToLower(cred.Header)) {
		v.fault(path+".credential.header", "cannot carry a credential")
	}
}

func (v *validation) approvals(a *Approvals) {
	if a.Wait == 0 {
		a.Wait = 5 * time.Minute
	}
	if a.Wait > time.Hour {
		v.fault("approvals.wait", "is %s; 1h at most", a.Wait)
	}
	for i := range a.Webhooks {
		path := fmt.Sprintf("approvals.webhooks[%d]", i)
		v.secureURL(path+".url", a.Webhooks[i].URL)
		v.secret(path+".secret", &a.Webhooks[i].Secret, true)
	}
}

func (v *validation) store(s *Store) {
	switch {
	case s.Embedded != nil && s.Redis != nil:
		v.fault("store", "embedded and redis exclude each other")
	case s.Redis != nil:
		v.secret("store.redis.url", &s.Redis.URL, true)
	case s.Embedded == nil:
		s.Embedded = &Embedded{}
	}
	dir := "data"
	if s.Embedded != nil {
		if s.Embedded.Dir == "" {
			s.Embedded.Dir = dir
		}
		v.path(&s.Embedded.Dir)
		dir = s.Embedded.Dir
	}
	if s.Key == "" {
		s.Key = filepath.Join(dir, "store.key")
	}
	v.path(&s.Key)
}

func (v *validation) tokens(t *Tokens) {
	if t == nil {
		return
	}
	if u := v.secureURL("tokens.issuer", t.Issuer); u != nil && (u.Path != "" || u.RawQuery != "" || u.Scheme != "https") {
		v.fault("tokens.issuer", "must be https://host or https://host:port, without a path")
	}
	for i, is := range v.config.Identity.Issuers {
		if is.Name == "chaperone" || is.OIDC != nil && is.OIDC.Issuer == t.Issuer {
			v.fault(fmt.Sprintf("identity.issuers[%d]", i), "has the name or the URL of the gateway's own token service")
		}
	}
	if t.Keys == "" {
		t.Keys = filepath.Join(filepath.Dir(v.config.Store.Key), "keys")
	}
	v.path(&t.Keys)
	setDefault(&t.Life, 5*time.Minute)
	setDefault(&t.Rotate, 30*24*time.Hour)
	setDefault(&t.Depth, 4)
	if t.Life < time.Second || t.Life > time.Hour {
		v.fault("tokens.life", "is %s; it must be from 1s to 1h", t.Life)
	}
	if t.Rotate < time.Hour {
		v.fault("tokens.rotate", "is %s; 1h at least", t.Rotate)
	}
	if t.Depth < 1 || t.Depth > 8 {
		v.fault("tokens.depth", "is %d; it must be from 1 to 8", t.Depth)
	}
	ids := map[string]bool{}
	for i := range t.Clients {
		path := fmt.Sprintf("tokens.clients[%d]", i)
		if t.Clients[i].ID == "" || ids[t.Clients[i].ID] {
			v.fault(path+".id", "is empty or used twice")
		}
		ids[t.Clients[i].ID] = true
		v.secret(path+".keys", &t.Clients[i].Keys, true)
	}
	if slices.Contains(t.Introspect, "") {
		v.fault("tokens.introspect", "a name is empty")
	}
}

func setDefault[T int | time.Duration](value *T, otherwise T) {
	if *value == 0 {
		*value = otherwise
	}
}

func (v *validation) rest() {
	c := v.config
	v.path(&c.Policies)
	if c.Recording.Dir == "" {
		c.Recording.Dir = filepath.Join("data", "recordings")
	}
	v.path(&c.Recording.Dir)
	if c.Parsers == 0 {
		c.Parsers = 2
	}
	if c.Parsers < 1 || c.Parsers > 64 {
		v.fault("parsers", "is %d; it must be from 1 to 64", c.Parsers)
	}
	if c.Sockets == "" {
		c.Sockets = "run"
	}
	v.path(&c.Sockets)
	if len(c.Sockets) > maxSocketPath {
		v.fault("sockets", "%s is too long for a unix socket: %d characters at most", c.Sockets, maxSocketPath)
	}
	if c.Telemetry.OTLP.Endpoint != "" {
		host := v.address("telemetry.otlp.endpoint", c.Telemetry.OTLP.Endpoint)
		if c.Telemetry.OTLP.Insecure && !isLoopback(host) {
			v.fault("telemetry.otlp.insecure", "is for a collector on loopback only")
		}
	}
	if c.Telemetry.Metrics != "" {
		v.address("telemetry.metrics", c.Telemetry.Metrics)
	}
	if !slices.Contains([]string{"", "debug", "info", "warn", "error"}, c.Telemetry.Log) {
		v.fault("telemetry.log", "must be debug, info, warn or error")
	}
}
