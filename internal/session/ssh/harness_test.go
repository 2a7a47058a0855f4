package ssh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pires/go-proxyproto"
	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/policy"
	"chaperone.dev/chaperone/internal/quota"
	sessions "chaperone.dev/chaperone/internal/session"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
	"chaperone.dev/chaperone/internal/store/storetest"
)

// host is the real sshd, started once for all tests, and the gateway's keys,
// which it trusts.
var host struct {
	*server
	keys     *authority.Keys
	operator gossh.Signer // a key that sshd takes as it is: the control
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "chaperone-ssh")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := startHost(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer host.Close()
		return m.Run()
	}())
}

func startHost(dir string) (err error) {
	if host.keys, err = authority.Open(filepath.Join(dir, "keys")); err != nil {
		return err
	}
	sshd, err := localserver.StartSSHD(context.Background(), filepath.Join(dir, "sshd"), filepath.Join(dir, "keys", "target_ca.pub"))
	if err != nil {
		return err
	}
	host.server = &server{sshd}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	if host.operator, err = gossh.NewSignerFromKey(private); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(host.Dir, "authorized_keys"), gossh.MarshalAuthorizedKey(host.operator.PublicKey()), 0o600)
}

const rules = `
policy: test
principal: '"agents" in principal.groups'
resource: 'resource.kind == "ssh"'
rules:
  - {name: anything, when: 'ssh.act == "exec" && ssh.command.startsWith(": free;") && size(ssh.unknown) >= 0', effect: allow}
  - {name: quick, when: 'ssh.act == "exec" && ssh.command.startsWith(": free; : quick;") && size(ssh.unknown) >= 0', effect: allow, limits: {time: 3s}}
  - {name: small, when: 'ssh.act == "exec" && ssh.command.startsWith(": free; : small;") && size(ssh.unknown) >= 0', effect: allow, limits: {bytes: 1000}}
  - {name: twice, when: 'ssh.act == "exec" && ssh.command.startsWith(": free; : twice;") && size(ssh.unknown) >= 0', effect: allow, limits: {per_session: {statements: 2}}}
  - {name: hidden, when: 'ssh.act == "exec" && ssh.command.startsWith(": free; : hidden;") && size(ssh.unknown) >= 0', effect: allow, mask: [{detect: [CREDIT_CARD, API_KEY]}]}
  - {name: plain, when: 'ssh.act == "exec" && ssh.programs.all(p, p in ["echo", "cat", "ls", "true"]) && ssh.read_only', effect: allow}
  - {name: asked, when: 'ssh.act == "exec" && ssh.programs == ["touch"]', effect: approve, approval: {groups: [seniors], count: 1, expires: 1m}}
  - {name: files, when: 'ssh.act in ["sftp", "scp"] && ssh.paths.all(p, p.contains("/free/"))', effect: allow}
  - {name: masked-files, when: 'ssh.act == "scp" && ssh.paths.all(p, p.contains("/free/masked"))', effect: allow, mask: [{detect: [CREDIT_CARD]}]}
  - {name: terminal, when: 'ssh.act == "shell" && ssh.terminal', effect: allow}
  - {name: forward, when: 'ssh.act == "forward" && ssh.operation == "direct-tcpip" && ssh.host == "127.0.0.1"', effect: allow}
  - {name: wishes, when: 'ssh.act in ["agent", "x11"] || ssh.act == "forward" && ssh.operation == "tcpip-forward"', effect: allow}
`

// A gateway is a running service with everything around it.
type gateway struct {
	*Service
	socket    string
	recorder  *memory
	approvals *approval.Service
	registry  *sessions.Registry
	log       *safeBuffer
	ahead     atomic.Int64 // of the clock
	issuers   atomic.Value // []string
	resource  atomic.Value // Resource
}

type option func(*gateway, *Config)

// start runs a service in front of the host.
func start(t testing.TB, options ...option) *gateway {
	t.Helper()
	pinned, _, _, _, err := gossh.ParseAuthorizedKey([]byte(host.HostKey))
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Load(fstest.MapFS{"test.yaml": &fstest.MapFile{Data: []byte(rules)}})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{recorder: &memory{}, log: &safeBuffer{}}
	g.issuers.Store([]string{"dex"})
	g.resource.Store(Resource{Access: access.Resource{Name: "web", Kind: access.SSH}, Address: host.Addr, Users: []string{host.Account},
		HostKeys: []gossh.PublicKey{pinned}, Environment: []string{"TEST_GIVEN"}})
	embedded := storetest.Embedded(t)
	log := slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if g.registry, err = sessions.New(sessions.Config{Store: embedded, Clock: g.now}); err != nil {
		t.Fatal(err)
	}
	if g.approvals, err = approval.New(approval.Config{Store: embedded, Recorder: g.recorder, Replica: "one"}); err != nil {
		t.Fatal(err)
	}
	usage, err := quota.New(quota.Config{Store: embedded})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{ApprovalWait: 20 * time.Second}
	for _, o := range options {
		o(g, &cfg)
	}
	g.Service, err = New(cfg, Deps{Keys: host.keys, Verifier: verifier{}, Decider: policy.NewEngine(set), Recorder: g.recorder, Approvals: g.approvals,
		Sessions: g.registry, Usage: usage, Clock: g.now, Log: log, HostNames: func() []string { return []string{"gateway"} },
		KnownIssuer: func(name string) bool { return slices.Contains(g.issuers.Load().([]string), name) },
		Rejected:    func(err error) bool { return errors.Is(err, errBadToken) },
		Resource: func(name string) (Resource, bool) {
			return g.resource.Load().(Resource), name == "web"
		}})
	if err != nil {
		t.Fatal(err)
	}
	g.serve(t, g.registry.Run, g.approvals.Run, usage.Run)
	return g
}

func (g *gateway) now() time.Time { return time.Now().Add(time.Duration(g.ahead.Load())) }

// change changes how the host is configured.
func (g *gateway) change(change func(*Resource)) {
	r := g.resource.Load().(Resource)
	change(&r)
	g.resource.Store(r)
}

func (g *gateway) serve(t testing.TB, others ...func(context.Context) error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ssh") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	g.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	behind, stopBehind := context.WithCancel(context.Background())
	var running, supporting sync.WaitGroup
	for _, run := range others {
		supporting.Go(func() { _ = run(behind) })
	}
	running.Go(func() {
		if err := g.Serve(ctx, l); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		ended := make(chan struct{})
		go func() { running.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("Serve did not end")
		}
		stopBehind()
		supporting.Wait()
		os.RemoveAll(dir)
	})
}

// dial connects as Envoy does for a client.
func (g *gateway) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	header := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 4321}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 2222})
	if _, err := header.WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

// login authenticates, by a host key that the gateway's authority certified.
func (g *gateway) login(t testing.TB, login string, auth ...gossh.AuthMethod) (*gossh.Client, error) {
	t.Helper()
	checker := &gossh.CertChecker{IsHostAuthority: func(key gossh.PublicKey, _ string) bool {
		return bytes.Equal(key.Marshal(), host.keys.CA().Marshal())
	}}
	var banner strings.Builder
	conn, channels, requests, err := gossh.NewClientConn(g.dial(t), "gateway:2222", &gossh.ClientConfig{User: login, Auth: auth,
		HostKeyCallback: checker.CheckHostKey, HostKeyAlgorithms: []string{gossh.CertAlgoED25519v01}, Timeout: 10 * time.Second,
		BannerCallback: func(message string) error { banner.WriteString(message); return nil }})
	if err != nil {
		return nil, fmt.Errorf("%w; banner: %s", err, &banner)
	}
	client := gossh.NewClient(conn, channels, requests)
	t.Cleanup(func() { client.Close() })
	return client, nil
}

// connect logs the agent in with a certificate.
func (g *gateway) connect(t testing.TB) *gossh.Client {
	t.Helper()
	client, err := g.login(t, host.Account+"@web", gossh.PublicKeys(certified(t, agent(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// direct logs in at sshd itself.
func direct(t testing.TB) *gossh.Client {
	t.Helper()
	client, err := gossh.Dial("tcp", host.Addr, &gossh.ClientConfig{User: host.Account, Auth: []gossh.AuthMethod{gossh.PublicKeys(host.operator)},
		HostKeyCallback: gossh.InsecureIgnoreHostKey()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func agent() access.Principal {
	return access.Principal{Issuer: "dex", Subject: "agent-7", User: "ann@example.com", Subagent: "reporter", Groups: []string{"agents"},
		Token: access.TokenRef{ID: "tok_1", IssuedAt: time.Now().Add(-time.Minute), ExpiresAt: time.Now().Add(time.Hour)}}
}

// certified makes a key and its certificate for the host web, changed by change
// before the authority signs it (nil: not at all).
func certified(t testing.TB, p access.Principal, change func(*gossh.Certificate)) gossh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := gossh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := host.keys.Grant(key.PublicKey(), p, []string{"web"}, time.Now(), 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cert)
	}
	signer, err := gossh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// A result is what a client sees of one act.
type result struct {
	out, errs string
	status    int
	signal    string
	err       error // other than an exit
}

// exec runs a command with what it reads.
func exec(t testing.TB, c *gossh.Client, command, stdin string) result {
	t.Helper()
	session, err := c.NewSession()
	if err != nil {
		return result{err: err}
	}
	defer session.Close()
	return perform(session, stdin, func() error { return session.Run(command) })
}

func perform(session *gossh.Session, stdin string, run func() error) (r result) {
	var out, errs safeBuffer
	session.Stdin, session.Stdout, session.Stderr = strings.NewReader(stdin), &out, &errs
	r.err = run()
	var exit *gossh.ExitError
	if errors.As(r.err, &exit) {
		r.status, r.signal, r.err = exit.ExitStatus(), exit.Signal(), nil
	}
	r.out, r.errs = out.String(), errs.String()
	return r
}

// refused reports whether the client was told that the act is refused, and why.
func (r result) refused(why string) bool {
	return r.err == nil && r.status == 77 && r.out == "" && strings.Contains(r.errs, "chaperone: denied: ") && strings.Contains(r.errs, "request req_") && strings.Contains(r.errs, why)
}

var errBadToken = errors.New("token rejected")

type verifier struct{}

func (verifier) Verify(_ context.Context, token access.Secret) (access.Principal, error) {
	switch token.Reveal() {
	case "good":
		return agent(), nil
	case "no-keys":
		return access.Principal{}, errors.New("no signing keys")
	}
	return access.Principal{}, errBadToken
}

// memory keeps events, or fails.
type memory struct {
	mu     sync.Mutex
	events []access.Event
	broken bool
	before func([]access.Event)
}

func (m *memory) Append(_ context.Context, _ access.Durability, evs ...access.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken {
		return errors.New("disk full")
	}
	if m.before != nil {
		m.before(evs)
	}
	m.events = append(m.events, evs...)
	return nil
}

func (m *memory) set(change func(*memory)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

func (m *memory) find(match func(access.Event) bool) (found []access.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		if match(e) {
			found = append(found, e)
		}
	}
	return found
}

// text is all that was recorded of a stream.
func (m *memory) text(name string) string {
	var b strings.Builder
	for _, e := range m.find(func(e access.Event) bool { return e.Stream != nil && e.Stream.Name == name }) {
		b.WriteString(e.Stream.Text + string(e.Stream.Bytes))
	}
	return b.String()
}

// eventually waits for something that has no event to wait for.
func eventually(t testing.TB, what string, ask func() bool) {
	t.Helper()
	clocktest.Eventually(t, func() error {
		if !ask() {
			return errors.New("never: " + what)
		}
		return nil
	})
}

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

var _ io.Writer = (*safeBuffer)(nil)

// server is the host with its files.
type server struct{ *localserver.SSHD }

// File reads a file beside the host's own.
func (s *server) File(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
