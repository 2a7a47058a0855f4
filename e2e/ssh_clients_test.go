package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// workshop prepares a client for the commands of the page: programs that find the
// configuration by themselves, files to move, and a folder on the host.
func (c *hostClient) workshop(t *testing.T, s *demo.Site) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(free(t, s)), "compat-")
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{"up": strings.Repeat("\x00\x01 a file of any kind\n", 5_000), "tree/a": "a", "tree/b": "b",
		dir + "/text": "text\n", dir + "/tree/a": "a", dir + "/tree/c": "c"} {
		if !filepath.IsAbs(path) {
			path = filepath.Join(c.dir, path)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"play.yaml", "with_paramiko.py", "with_asyncssh.py"} {
		b, err := os.ReadFile(filepath.Join("testdata", "hosts", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(c.dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(c.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ssh", "scp", "sftp"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nexec "+path+" -F "+c.config+" \"$@\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	python := filepath.Join(tools(t), "python", "bin")
	c.env = append(c.env, "PATH="+bin+":"+os.Getenv("PATH")+":"+python, "DIR="+dir, "GIT_SSH_COMMAND=ssh", "RSYNC_RSH=ssh",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com",
		"ANSIBLE_REMOTE_TMP="+dir+"/.ansible", "ANSIBLE_PYTHON_INTERPRETER="+filepath.Join(python, "python3"), "ANSIBLE_NOCOLOR=1", "LC_ALL=C.UTF-8",
		"ANSIBLE_SSH_ARGS=-o ControlMaster=auto -o ControlPersist=2s", "ANSIBLE_SSH_CONTROL_PATH="+controlPath(t))
	return dir
}

// shell runs one line of the page, and returns all that it has to say.
func (c *hostClient) shell(t *testing.T, line, dir string) (said string, status int) {
	t.Helper()
	line = strings.ReplaceAll(line, "python ", filepath.Join(tools(t), "python", "bin", "python3")+" ")
	cmd, out, errs := c.command(t.Context(), "sh", "-c", line)
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	// What is called by another name, or takes another time, is no difference.
	text := plainErrors(strings.ReplaceAll(out.String()+"\nstderr:\n"+errs.String(), dir, "$DIR"))
	return changing.ReplaceAllString(strings.ReplaceAll(text, c.dir, "."), ""), cmd.ProcessState.ExitCode()
}

// changing is what no two runs have in common.
var changing = regexp.MustCompile(`Connection to HOST closed\.\r?\n|\[main [^]]*\]`)

// TestSSHClients runs the commands of the page on compatibility, in its order,
// straight and through.
func TestSSHClients(t *testing.T) {
	t.Parallel()
	s := site(t)
	page, err := os.ReadFile("../docs/ssh-compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	through, straight := hosts(t, s, demo.Omar), toHost(t, s)
	host, err := os.ReadFile(filepath.Join(s.Dir, "data", "ssh", "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(through.dir, "plain")
	if err := os.WriteFile(plain, fmt.Appendf(nil, "[localhost]:%d %s", s.SSHPort, host), 0o600); err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(s.Host.Dir, "known_hosts")
	straight.env = append(straight.env, "HOST=127.0.0.1", "PORT="+strconv.Itoa(s.Host.Port), "LOGIN="+s.Host.Account, "KEY="+filepath.Join(s.Host.Dir, "operator"),
		"KNOWN_HOSTS="+known, "PLAIN_KNOWN_HOSTS="+known)
	keys := filepath.Join(through.dir, "keys")
	through.env = append(through.env, "HOST=localhost", "PORT="+strconv.Itoa(s.SSHPort), "LOGIN="+s.Host.Account+"@web", "KEY="+filepath.Join(keys, "web"),
		"CERTIFICATE="+filepath.Join(keys, "web-cert.pub"), "KNOWN_HOSTS="+filepath.Join(keys, "known_hosts"), "PLAIN_KNOWN_HOSTS="+plain)
	behind := fmt.Sprintf("\nHost behind\n    HostName 127.0.0.1\n    Port %d\n    User %s\n    IdentityFile %s\n    UserKnownHostsFile %s\n", s.Host.Port, s.Host.Account,
		filepath.Join(s.Host.Dir, "operator"), known)
	rows := regexp.MustCompile("(?m)^\\| `(.+?)` \\| ([a-z]+) \\|").FindAllStringSubmatch(string(page), -1)
	if len(rows) < 25 {
		t.Errorf("the page has %d commands", len(rows))
	}
	type outcome struct {
		said   string
		status int
	}
	outcomes := map[*hostClient][]outcome{}
	for _, c := range []*hostClient{through, straight} {
		b, err := os.ReadFile(c.config)
		if err == nil {
			err = os.WriteFile(c.config, append(b, behind...), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		outcomes[c] = make([]outcome, len(rows))
	}
	t.Run("run", func(t *testing.T) { // both at once
		for c, got := range outcomes {
			dir := c.workshop(t, s)
			t.Run(filepath.Base(dir), func(t *testing.T) {
				t.Parallel()
				for i, row := range rows {
					got[i].said, got[i].status = c.shell(t, strings.ReplaceAll(row[1], `\|`, "|"), dir)
				}
			})
		}
	})
	for i, row := range rows {
		got, want := outcomes[through][i], outcomes[straight][i]
		switch row[2] {
		case "same":
			if got != want {
				t.Errorf("%s is not the same\nstraight: %d %s\nthrough:  %d %s", row[1], want.status, want.said, got.status, got.said)
			}
		case "refused":
			if got.status == 0 || !strings.Contains(got.said, "denied") && !strings.Contains(got.said, "remote port forwarding failed") {
				t.Errorf("%s: %d %s", row[1], got.status, got.said)
			}
		default:
			t.Errorf("%s: no test knows what %q means", row[1], row[2])
		}
	}
}

// controlPath is short, as the path of a socket must be.
func controlPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir + "/%%h" // ansible reads it first
}
