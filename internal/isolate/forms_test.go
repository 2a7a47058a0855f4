//go:build linux && (amd64 || arm64)

package isolate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// failed makes a system call of two arguments besides its first.
func failed(number, first, second uintptr) error {
	if _, _, errno := unix.Syscall(number, first, second, 0); errno != 0 {
		return errno
	}
	return nil
}

// ask prints what each address answers.
func ask(addresses []string) {
	for _, a := range addresses {
		c, err := net.Dial("tcp", a)
		if err == nil {
			_, err = c.Write([]byte("for"))
		}
		if err == nil {
			_, err = io.Copy(os.Stdout, c)
		}
		if err != nil {
			fmt.Println(a, err)
		}
	}
}

func attributesOf(u User) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}}
}

// routed is an address of this machine that is not loopback's.
func routed(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	return "127.0.0.2" // a machine without any network: as good as another host
}

// TestAddresses: names and addresses of either family are found inside, each
// where its own listener is, and half a connection can be closed.
func TestAddresses(t *testing.T) {
	t.Parallel()
	reach := []Address{{"gateway.test", 443}, {"other.test", 443}, {"gateway.test", 5432}, {"192.0.2.7", 443}, {"2001:db8::7", 443}, {"127.0.0.1", 2222}, {"localhost", 80}}
	var hosts []string
	for _, r := range reach {
		hosts = append(hosts, net.JoinHostPort(r.Host, strconv.Itoa(r.Port)))
	}
	cmd, out := exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{asking}, hosts...)...), &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	err := Run(t.Context(), cmd, Config{Reach: reach, Folder: folder(t), User: someone(), Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			b := make([]byte, 3)
			if _, err := io.ReadFull(theirs, b); err == nil {
				fmt.Fprintf(theirs, "%s to %s\n", b, address)
			}
		}()
		return ours, nil
	}})
	if want := "for " + strings.Join(hosts, "\nfor ") + "\n"; err != nil || out.String() != strings.ReplaceAll(want, "for ", "for to ") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestRefusals: what cannot be isolated does not run.
func TestRefusals(t *testing.T) {
	t.Parallel()
	run := func(c Config, command ...string) (string, error) {
		cmd, out := exec.CommandContext(t.Context(), command[0], command[1:]...), &bytes.Buffer{}
		cmd.Stdout = out
		err := Run(t.Context(), cmd, c)
		return out.String(), err
	}
	good := Config{Reach: []Address{{"gateway.test", 443}}, Dial: new(net.Dialer).DialContext, User: someone()}
	with := func(change func(*Config)) Config {
		c := good
		c.Folder = folder(t)
		change(&c)
		return c
	}
	if out, err := run(with(func(*Config) {}), "echo", "ran"); err != nil || out != "ran\n" {
		t.Fatalf("the twin: %q %v", out, err)
	}
	for name, c := range map[string]Config{
		"as root":         with(func(c *Config) { c.User = &User{} }),
		"a group of root": with(func(c *Config) { c.User = &User{UID: 65534} }),
		"nothing":         with(func(c *Config) { c.Reach = nil }),
		"no port":         with(func(c *Config) { c.Reach = []Address{{"gateway.test", 0}} }),
		"two names":       with(func(c *Config) { c.Reach = []Address{{"gateway.test\n10.0.0.1 other", 443}} }),
		"no folder":       with(func(c *Config) { c.Folder += "/none" }),
		"a file in the way": with(func(c *Config) {
			if err := os.WriteFile(c.Folder+"/hosts", nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}),
	} {
		if out, err := run(c, "echo", "ran"); err == nil || out != "" {
			t.Errorf("%s: %q %v", name, out, err)
		}
	}
	var exit *exec.ExitError
	if _, err := run(with(func(*Config) {}), "sh", "-c", "exit 7"); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("the exit status: %v", err)
	}
	if _, err := run(with(func(*Config) {}), "no-such-command"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("no such command: %v", err)
	}
}

// TestUnavailable: where the kernel makes no namespaces, nothing runs and the
// error says why.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	if os.Getenv("ISOLATE_UNAVAILABLE") != "" { // in the place that the test below makes
		_, err := exec.LookPath("true")
		if err == nil {
			err = Run(t.Context(), exec.Command("echo", "ran"), Config{Reach: []Address{{"gateway.test", 443}}, Dial: new(net.Dialer).DialContext, Folder: t.TempDir(), User: &User{UID: 1, GID: 1}})
		}
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "user.max_user_namespaces") {
			t.Errorf("it ran: %v", err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A user namespace in which there can be no more of them.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -test.run '^TestUnavailable$'`, self)
	cmd.Env = append(os.Environ(), "ISOLATE_UNAVAILABLE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}
