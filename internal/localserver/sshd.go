package localserver

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// An SSHD is a running OpenSSH server on loopback. Its one account is the user
// of this process, for a server that is not root's can log nobody else in.
type SSHD struct {
	Addr    string // 127.0.0.1:port
	Port    int
	Account string
	HostKey string // public, one line
	Dir     string // its files; Dir/home is a folder for what clients leave
	proc    *process
	path    string
}

// SSHDPath finds the OpenSSH server, which is rarely on PATH.
func SSHDPath() (string, error) {
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("sshd")
	if err != nil {
		return "", fmt.Errorf("sshd is neither in /usr/sbin nor on PATH: run tools/install openssh")
	}
	return path, nil
}

// StartSSHD starts a server with its files in dir. It takes certificates of the
// authority in the file trustedCA, and the keys in dir/authorized_keys. Settings are
// lines of sshd_config that come before its own.
func StartSSHD(ctx context.Context, dir, trustedCA string, settings ...string) (*SSHD, error) {
	path, err := SSHDPath()
	if err != nil {
		return nil, err
	}
	account, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("sshd: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "home"), 0o755); err != nil {
		return nil, fmt.Errorf("sshd: %w", err)
	}
	if os.Geteuid() == 0 { // its own, made at boot where there is one
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			return nil, fmt.Errorf("sshd: %w", err)
		}
	}
	s := &SSHD{Account: account.Username, Dir: dir, path: path}
	if s.Port, err = FreePort(); err != nil {
		return nil, err
	}
	s.Addr = loopback(s.Port)
	if err := s.NewHostKey(ctx); err != nil {
		return nil, err
	}
	text := strings.Join(append(settings, []string{
		"ListenAddress " + s.Addr, "HostKey " + s.file("host"), "PidFile none", "TrustedUserCAKeys " + trustedCA,
		"AuthorizedKeysFile " + s.file("authorized_keys"), "StrictModes no", "UsePAM no", "PasswordAuthentication no",
		"KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "PrintMotd no", "AcceptEnv LANG LC_* GIT_PROTOCOL TEST_*",
		"Subsystem sftp internal-sftp", "LogLevel VERBOSE", "MaxStartups 200",
		"SetEnv HOME=" + s.file("home"), "", // what whoever runs it has in ~/.bashrc is not ours to run
	}...), "\n")
	if err := os.WriteFile(s.file("sshd_config"), []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("sshd: %w", err)
	}
	return s, s.Start(ctx)
}

func (s *SSHD) file(name string) string { return filepath.Join(s.Dir, name) }

// NewHostKey makes a host key in place of any other. A server that runs keeps the
// one that it has.
func (s *SSHD) NewHostKey(ctx context.Context) error {
	for _, name := range []string{"host", "host.pub"} {
		if err := os.RemoveAll(s.file(name)); err != nil {
			return fmt.Errorf("sshd: %w", err)
		}
	}
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", s.file("host")).CombinedOutput(); err != nil {
		return fmt.Errorf("sshd: host key: %w: %s", err, out)
	}
	public, err := os.ReadFile(s.file("host.pub"))
	if err != nil {
		return fmt.Errorf("sshd: %w", err)
	}
	s.HostKey = strings.TrimSpace(string(public))
	return nil
}

// Start starts the server, again after Close, on the same port and files.
func (s *SSHD) Start(ctx context.Context) (err error) {
	cmd := exec.Command(s.path, "-D", "-e", "-f", s.file("sshd_config"))
	if s.proc, err = start(cmd, s.file("sshd.log")); err != nil {
		return err
	}
	if err := s.proc.ready(ctx, s.greets); err != nil {
		s.Close()
		return err
	}
	return nil
}

// greets asks whether the server speaks.
func (s *SSHD) greets(ctx context.Context) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	greeting := make([]byte, 4)
	if _, err := c.Read(greeting); err != nil || string(greeting) != "SSH-" {
		return fmt.Errorf("no greeting: %w", err)
	}
	return nil
}

// Log is what the server has written so far.
func (s *SSHD) Log() string {
	b, err := os.ReadFile(s.file("sshd.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Close stops the server.
func (s *SSHD) Close() error {
	if s.proc != nil {
		s.proc.stop(syscall.SIGTERM)
	}
	return nil
}
