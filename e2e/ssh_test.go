package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// A hostClient is one person's ssh: a folder with what chaperone env and
// ssh-cert leave in it.
type hostClient struct {
	dir, config string
	env         []string
}

// hosts makes the ssh of who's subagent, as the documents say.
func hosts(t *testing.T, s *demo.Site, who string) *hostClient {
	t.Helper()
	dir := t.TempDir()
	c := &hostClient{dir: dir, config: filepath.Join(dir, "config"), env: append(os.Environ(), "CHAPERONE_TOKEN="+token(t, s, who), "HOME="+dir)}
	lines, err := client(t, s, dir, c.env, "env", "web", "--ssh-config="+filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.config, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a client and returns what it wrote, and its exit status.
func (c *hostClient) run(t *testing.T, stdin, name string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = strings.NewReader(stdin), &out, &errs, c.env
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ssh runs the stock client.
func (c *hostClient) ssh(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	return c.run(t, "", "ssh", append([]string{"-F", c.config}, args...)...)
}

// TestSSH: the stock client with what chaperone env wrote.
func TestSSH(t *testing.T) {
	t.Parallel()
	s := site(t)
	c := hosts(t, s, demo.Omar)
	if out, errs, status := c.ssh(t, "web", "true"); status != 0 || out != "" || errs != "" {
		t.Errorf("allowed: %d %q %q", status, out, errs)
	}
	if out, errs, status := c.ssh(t, "web", "touch "+filepath.Join(s.Host.Dir, "home", "evil")); status != 77 || out != "" || !strings.Contains(errs, "chaperone: denied: ") || !strings.Contains(errs, "request req_") {
		t.Errorf("refused: %d %q %q", status, out, errs)
	}
	if _, err := os.Stat(filepath.Join(s.Host.Dir, "home", "evil")); err == nil {
		t.Error("the refused command ran")
	}
}
