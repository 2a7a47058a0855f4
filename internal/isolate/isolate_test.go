//go:build linux && (amd64 || arm64)

package isolate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostile is the argument that makes this test the command that tries to get
// out; what follows is a plan.
const hostile = "hostile"

// asking makes it ask each address that follows.
const asking = "asking"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == Stage {
		fmt.Fprintln(os.Stderr, Inside(os.Args[2:]))
		os.Exit(126)
	}
	if len(os.Args) > 2 && os.Args[1] == hostile {
		attack(os.Args[2])
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == asking {
		ask(os.Args[2:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A plan is what there is to reach on the test's machine.
type plan struct {
	TCP, TCP6, Routed, UDP, Gateway string
	Socket, Datagrams, Abstract     string
	Victim                          int // a process of the same user
	Inherited                       int // a descriptor of a connection to TCP
}

// attack tries everything and prints, as JSON, what it got: "" is success.
func attack(text string) {
	var p plan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		panic(err)
	}
	got := map[string]string{}
	for name, try := range p.attempts() {
		got[name] = ""
		if err := try(); err != nil {
			got[name] = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
		panic(err)
	}
}

func (p plan) attempts() map[string]func() error {
	victim := "/proc/" + strconv.Itoa(p.Victim)
	dial := func(network, address string) func() error {
		return func() error { return heard(network, address) }
	}
	return map[string]func() error{
		"the gateway":            dial("tcp", p.Gateway),
		"loopback":               dial("tcp", p.TCP),
		"loopback of IPv6":       dial("tcp", p.TCP6),
		"an address of the host": dial("tcp", p.Routed),
		"a datagram":             dial("udp", p.UDP),
		"a unix socket":          dial("unix", p.Socket),
		"an abstract one":        dial("unix", p.Abstract),
		"a unix datagram":        dial("unixgram", p.Datagrams),
		"a unix datagram of a pair": func() error {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			return unix.Sendto(fds[0], []byte("x"), 0, &unix.SockaddrUnix{Name: p.Datagrams})
		},
		"a pair of streams": func() error {
			_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			return err
		},
		"vsock": func() error {
			_, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
			return err
		},
		"io_uring": func() error {
			var params [120]byte
			return failed(unix.SYS_IO_URING_SETUP, 1, addressOf(params[:]))
		},
		"a key that the kernel looks up": func() error { // there is none; only a filter says that nobody looks
			kind, name := []byte("dns_resolver\x00"), []byte("gateway.test\x00")
			if err := failed(unix.SYS_REQUEST_KEY, addressOf(kind), addressOf(name)); errors.Is(err, unix.ENOSYS) {
				return err
			}
			return nil
		},
		"a raw socket": func() error {
			_, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
			return err
		},
		"tracing": func() error {
			if err := unix.PtraceAttach(p.Victim); err != nil {
				return err
			}
			return unix.PtraceDetach(p.Victim)
		},
		"memory of another": func() error {
			f, err := os.OpenFile(victim+"/mem", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return f.Close()
		},
		"the environment of another": func() error {
			_, err := os.ReadFile(victim + "/environ")
			return err
		},
		"files of another": func() error {
			_, err := os.ReadDir(victim + "/root")
			return err
		},
		"the namespace of another": func() error {
			f, err := os.Open(victim + "/ns/net")
			if err != nil {
				return err
			}
			return f.Close()
		},
		"a descriptor of another": func() error {
			fd, err := unix.PidfdOpen(p.Victim, 0)
			if err != nil {
				return err
			}
			_, err = unix.PidfdGetfd(fd, 0, 0)
			return err
		},
		"an inherited connection": func() error {
			_, err := unix.Write(p.Inherited, []byte("x"))
			return err
		},
		"typing into the terminal": func() error { return typing(unix.TIOCSTI) },
		"pasting into the console": func() error { return typing(tioclinux | 1<<40) },
		"a capability": func() error {
			status, err := os.ReadFile("/proc/self/status")
			if err == nil && !strings.Contains(string(status), "CapBnd:\t0000000000000000") {
				return nil
			}
			return errors.Join(err, errors.New("none"))
		},
	}
}

// typing fails on what is no terminal in any case; only a filter says EPERM.
func typing(request uintptr) error {
	if err := failed(unix.SYS_IOCTL, 0, request); !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// heard reports whether somebody answers at an address.
func heard(network, address string) error {
	d := net.Dialer{Timeout: 3 * time.Second}
	c, err := d.Dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err = c.Write([]byte("hello")); err != nil || network == "unixgram" {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	b := make([]byte, 16)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != "hello" {
		return fmt.Errorf("it answers %q: %w", b[:n], err)
	}
	return nil
}

// someone is whom commands run as in this test: nobody, for root.
func someone() *User {
	if os.Getuid() == 0 {
		return &User{UID: 65534, GID: 65534}
	}
	return nil
}

// folder is one that everybody can read.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "isolate")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// world starts what there is to reach, and a process that sleeps.
func world(t *testing.T) plan {
	t.Helper()
	dir := folder(t)
	echo := func(network, address string) string {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go io.Copy(c, c)
			}
		}()
		return l.Addr().String()
	}
	packets := func(network, address string) string {
		l, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			b := make([]byte, 64)
			for {
				n, from, err := l.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil && from != nil {
					_, _ = l.WriteTo(b[:n], from) // datagrams of a pair have no address
				}
			}
		}()
		return l.LocalAddr().String()
	}
	p := plan{
		TCP: echo("tcp", "127.0.0.1:0"), TCP6: echo("tcp", "[::1]:0"), Routed: echo("tcp", net.JoinHostPort(routed(t), "0")), UDP: packets("udp", "127.0.0.1:0"),
		Socket: echo("unix", filepath.Join(dir, "stream")), Datagrams: packets("unixgram", filepath.Join(dir, "datagrams")),
		Abstract: echo("unix", "@isolate-"+strconv.Itoa(os.Getpid())),
	}
	for _, socket := range []string{p.Socket, p.Datagrams} {
		if err := os.Chmod(socket, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	victim := exec.Command("sleep", "600")
	if u := someone(); u != nil {
		victim.SysProcAttr = attributesOf(*u)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = victim.Process.Kill()
		_ = victim.Wait()
	})
	p.Victim = victim.Process.Pid
	return p
}

// TestIsolation: what a hostile command reaches. The control is the same
// command, run by the same user, without.
func TestIsolation(t *testing.T) {
	t.Parallel()
	p := world(t)
	inherited, err := net.Dial("tcp", p.TCP)
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	file, err := inherited.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	command := func() (*exec.Cmd, *bytes.Buffer) {
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		cmd, out := exec.CommandContext(t.Context(), "/proc/self/exe", hostile, string(text)), &bytes.Buffer{}
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		return cmd, out
	}
	result := func(out *bytes.Buffer) (got map[string]string) {
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return got
	}
	p.Gateway, p.Inherited = p.TCP, 3
	control, out := command()
	control.ExtraFiles = []*os.File{file}
	if u := someone(); u != nil {
		control.SysProcAttr = attributesOf(*u)
	}
	if err := control.Run(); err != nil {
		t.Fatal(err)
	}
	free := result(out)
	// Whoever starts chaperone may leave descriptors open to all that it starts.
	p.Inherited, err = unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p.Inherited)
	p.Gateway = "gateway.test:8443"
	cmd, out := command()
	err = Run(t.Context(), cmd, Config{Reach: []Address{{"gateway.test", 8443}}, Folder: folder(t), User: someone(),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != p.Gateway {
				return nil, fmt.Errorf("asked for %s", address)
			}
			return new(net.Dialer).DialContext(ctx, network, p.TCP)
		}})
	if err != nil {
		t.Fatal(err)
	}
	isolated := result(out)
	for name := range p.attempts() {
		switch name {
		case "the gateway", "a pair of streams":
			if isolated[name] != "" {
				t.Errorf("the twin, %s: %s", name, isolated[name])
			}
		default:
			if isolated[name] == "" {
				t.Errorf("%s works", name)
			}
		}
		switch name { // what this machine may refuse to everybody, or to this user
		case "io_uring", "a key that the kernel looks up", "a raw socket", "tracing", "memory of another", "a descriptor of another", "vsock":
		default:
			if free[name] != "" {
				t.Errorf("the control, %s: %s", name, free[name])
			}
		}
	}
	for name, want := range map[string]string{"io_uring": unix.ENOSYS.Error(), "typing into the terminal": unix.EPERM.Error(), "pasting into the console": unix.EPERM.Error(),
		"a unix socket": unix.EACCES.Error(), "vsock": unix.EACCES.Error(), "loopback": unix.ECONNREFUSED.Error(), "an address of the host": unix.ENETUNREACH.Error()} {
		if !strings.Contains(isolated[name], want) {
			t.Errorf("%s: %s, not %s", name, isolated[name], want)
		}
	}
}
