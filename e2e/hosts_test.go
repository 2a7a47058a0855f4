package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// onHosts are policies for the host web. What begins with ": free;" is a script
// that the tests write; files below free may be moved.
const onHosts = `
policy: e2e-hosts
principal: '"web-agents" in principal.groups'
resource: 'resource.name == "web"'
rules:
  - name: script
    when: 'ssh.act == "exec" && ssh.command.startsWith(": free;") && size(ssh.unknown) >= 0'
    effect: allow
  - name: short
    when: 'ssh.act == "exec" && ssh.command.startsWith(": free; : short;") && size(ssh.unknown) >= 0'
    effect: allow
    limits: {bytes: 1000, time: 1s}
  - name: files
    when: 'ssh.act in ["scp", "rsync", "git", "sftp"] && ssh.paths.all(p, p.contains("/sshd/home/free"))'
    effect: allow
  - name: look-around
    when: 'ssh.act == "sftp" && ssh.operation in ["realpath", "stat"]'
    effect: allow
  - name: terminal
    when: 'ssh.act == "shell" && ssh.terminal'
    effect: allow
  - name: brief-question
    when: 'ssh.act == "exec" && ssh.programs == ["touch"] && ssh.paths.all(p, p.endsWith("/brief"))'
    effect: approve
    approval: {groups: [senior-engineers], count: 1, expires: 1s}
  - name: compatibility
    when: 'ssh.act == "exec" && (ssh.command.contains("/sshd/home/free/compat-") || ssh.command.startsWith("/bin/sh -c ''echo ~") || ssh.command.endsWith("/bin/python3 && sleep 0''")) && size(ssh.unknown) >= 0'
    effect: allow
  - name: own-port
    when: 'ssh.act == "forward" && ssh.operation == "direct-tcpip" && ssh.host == "127.0.0.1"'
    effect: allow
`

// A hostClient is one way to reach the host web: through the gateway, with what
// chaperone env and ssh-cert leave in a folder, or straight to its sshd.
type hostClient struct {
	dir, config string
	env         []string
}

// hosts makes the ssh of who's subagent, as the documents say.
func hosts(t testing.TB, s *demo.Site, who string) *hostClient {
	t.Helper()
	return hostsWith(t, s, token(t, s, who))
}

// hostsWith makes it for a token.
func hostsWith(t testing.TB, s *demo.Site, tok string) *hostClient {
	t.Helper()
	dir := t.TempDir()
	c := &hostClient{dir: dir, config: filepath.Join(dir, "config"), env: append(os.Environ(), "CHAPERONE_TOKEN="+tok, "HOME="+dir, "LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null")}
	lines, err := client(t, s, dir, c.env, "env", "web", "--ssh-config="+filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	c.configure(t, lines)
	return c
}

// toHost makes one that goes to sshd itself: the control of every test.
func toHost(t testing.TB, s *demo.Site) *hostClient {
	t.Helper()
	dir := t.TempDir()
	c := &hostClient{dir: dir, config: filepath.Join(dir, "config"), env: append(os.Environ(), "HOME="+dir, "LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null")}
	c.configure(t, strings.Join([]string{"Host web", "HostName 127.0.0.1", "Port " + strings.TrimPrefix(s.Host.Addr, "127.0.0.1:"), "User " + s.Host.Account,
		"IdentityFile " + filepath.Join(s.Host.Dir, "operator"), "IdentitiesOnly yes", "UserKnownHostsFile " + filepath.Join(s.Host.Dir, "known_hosts"), ""}, "\n"))
	return c
}

// configure also makes config what ssh reads when nobody tells it: rsync, git
// and the like start it on their own.
func (c *hostClient) configure(t testing.TB, lines string) {
	t.Helper()
	if err := os.WriteFile(c.config, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	c.env = append(c.env, "RSYNC_RSH=ssh -F "+c.config, "GIT_SSH_COMMAND=ssh -F "+c.config)
}

// run runs a client and returns what it wrote, and its exit status.
func (c *hostClient) run(t testing.TB, stdin, name string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd, out, errs := c.command(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (c *hostClient) command(ctx context.Context, name string, args ...string) (cmd *exec.Cmd, out, errs *bytes.Buffer) {
	if name == "ssh" || name == "scp" || name == "sftp" {
		args = append([]string{"-F", c.config}, args...)
	}
	cmd = exec.CommandContext(ctx, name, args...)
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.Dir = out, errs, c.env, c.dir
	return cmd, out, errs
}

// ssh runs the stock client.
func (c *hostClient) ssh(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	return c.run(t, "", "ssh", args...)
}

// free is a folder of the test's own on the host, whose files may be moved.
func free(t testing.TB, s *demo.Site) string {
	t.Helper()
	parent := filepath.Join(s.Host.Dir, "home", "free")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(parent, "")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// prepareHost lets the operator's key in, which the control uses.
func prepareHost(s *demo.Site) error {
	if s.Host == nil {
		return errors.New("there is no sshd: run tools/install openssh")
	}
	key := filepath.Join(s.Host.Dir, "operator")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		return errors.New(string(out))
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		return err
	}
	known := "[127.0.0.1]:" + strings.TrimPrefix(s.Host.Addr, "127.0.0.1:") + " " + s.Host.HostKey + "\n"
	return errors.Join(os.WriteFile(filepath.Join(s.Host.Dir, "authorized_keys"), public, 0o600), os.WriteFile(filepath.Join(s.Host.Dir, "known_hosts"), []byte(known), 0o644))
}

// A lockedBuffer is read while a command still writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
