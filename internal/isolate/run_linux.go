//go:build amd64 || arm64

package isolate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// instructions are what the stage inside is told, on its command line. There is
// nothing secret in them.
type instructions struct {
	Addresses []netip.Addr     // of loopback, besides 127.0.0.0/8 and ::1
	Listen    []netip.AddrPort // one per Config.Reach
	Hosts     string           // file to put in the place of /etc/hosts
}

// hostsFile is where names are looked up before anything else.
const hostsFile = "/etc/hosts"

// capabilities of the stage in its own namespaces; the command has none.
var capabilities = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}

// Run is cmd.Run, isolated. It takes cmd's Path, Args and SysProcAttr for itself.
// An error that is not about the command's exit means that it did not run.
func Run(ctx context.Context, cmd *exec.Cmd, c Config) error {
	user, err := c.as()
	if err != nil {
		return err
	}
	if cmd.Err != nil { // there is no such command
		return cmd.Err
	}
	do, err := c.instructions()
	if err != nil {
		return err
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return fmt.Errorf("isolate: %w", err)
	}
	defer ours.Close()
	text, err := json.Marshal(do)
	if err != nil {
		return err
	}
	cmd.Args = append([]string{os.Args[0], Stage, string(text), cmd.Path}, cmd.Args...)
	cmd.Path = "/proc/self/exe" // wherever it is, also where the user may not look
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = attributes(user)
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return unavailable(err)
	}
	files, err := receive(ours, len(c.Reach))
	if err != nil {
		return errors.Join(err, stopped(cmd))
	}
	listeners, err := listen(files)
	if err != nil {
		return errors.Join(err, stopped(cmd))
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx)) // a command that is told to stop may still say goodbye
	var carrying sync.WaitGroup
	for i, l := range listeners {
		to := net.JoinHostPort(c.Reach[i].Host, strconv.Itoa(c.Reach[i].Port))
		carrying.Go(func() {
			carry(serving, l, func(ctx context.Context) (net.Conn, error) { return c.Dial(ctx, "tcp", to) })
		})
	}
	err = cmd.Wait()
	stop()
	carrying.Wait()
	return err
}

// attributes put the stage into namespaces of its own, in which it is the user
// that it is outside, and nobody else exists.
func attributes(user User) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: user.UID, HostID: user.UID, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: user.GID, HostID: user.GID, Size: 1}},
		AmbientCaps: capabilities,
	}
	if os.Getuid() == 0 {
		a.GidMappingsEnableSetgroups = true // to leave root's groups
		a.Credential = &syscall.Credential{Uid: uint32(user.UID), Gid: uint32(user.GID)}
	}
	return a
}

// unavailable tells whoever is refused namespaces what may be in the way.
func unavailable(err error) error {
	return fmt.Errorf("%w: this machine lets you make no namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone or "+
		"kernel.apparmor_restrict_unprivileged_userns, or the container's seccomp profile); root may be able to: %w", ErrUnavailable, err)
}

// stopped ends a stage that will not become the command.
func stopped(cmd *exec.Cmd) error {
	_ = cmd.Process.Kill() // it may have ended by itself
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		return err
	}
	return nil
}

func socketpair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "isolate"), os.NewFile(uintptr(fds[1]), "isolate")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// prepareWithin bounds the stage.
const prepareWithin = 30 * time.Second

// receive takes the listeners that the stage has made, or what went wrong.
func receive(from *net.UnixConn, want int) ([]*os.File, error) {
	text, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*want))
	if err := from.SetReadDeadline(time.Now().Add(prepareWithin)); err != nil {
		return nil, err
	}
	n, oobn, _, _, err := from.ReadMsgUnix(text, rights)
	if err != nil || n == 0 {
		return nil, errors.Join(errors.New("the stage inside says nothing"), err)
	}
	if string(text[:n]) != prepared {
		err := errors.New(string(text[:n]))
		if strings.Contains(err.Error(), unix.EPERM.Error()) || strings.Contains(err.Error(), unix.EACCES.Error()) {
			return nil, unavailable(err)
		}
		return nil, fmt.Errorf("isolate: %w", err)
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(rights[:oobn])
	if err == nil && len(messages) == 1 {
		var fds []int
		if fds, err = unix.ParseUnixRights(&messages[0]); err == nil {
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "listener"))
			}
		}
	}
	if err != nil || len(files) != want {
		return nil, errors.Join(fmt.Errorf("%d listeners came of %d", len(files), want), err)
	}
	return files, nil
}

func listen(files []*os.File) (listeners []net.Listener, err error) {
	for _, f := range files {
		l, failed := net.FileListener(f)
		if failed == nil {
			listeners = append(listeners, l)
		}
		err = errors.Join(err, failed, f.Close())
	}
	return listeners, err
}

// instructions give each host an address inside: its own when it is one, else
// one of loopback, which the hosts file names.
func (c Config) instructions() (do instructions, err error) {
	if len(c.Reach) == 0 || len(c.Reach) > 64 || c.Dial == nil {
		return do, errors.New("isolate: 1 to 64 addresses, and how to reach them")
	}
	names := map[string]netip.Addr{}
	own := "localhost"
	if name, err := os.Hostname(); err == nil {
		own += " " + name // programs look up where they are
	}
	hosts := "127.0.0.1 " + own + "\n::1 localhost\n"
	for _, r := range c.Reach {
		if r.Port < 1 || r.Port > 65535 {
			return do, fmt.Errorf("isolate: there is no port %d", r.Port)
		}
		addr, err := netip.ParseAddr(r.Host)
		switch known, ok := names[r.Host]; {
		case ok:
			addr = known
		case err == nil:
			addr = addr.Unmap()
			if names[r.Host] = addr; !addr.IsLoopback() {
				do.Addresses = append(do.Addresses, addr)
			}
		case r.Host == "" || strings.ContainsAny(r.Host, " \t\r\n#%"):
			return do, fmt.Errorf("isolate: %q is not the name of a host", r.Host)
		default:
			addr = netip.AddrFrom4([4]byte{127, 0, 66, byte(1 + len(names))})
			if r.Host == "localhost" {
				addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
			names[r.Host] = addr
			hosts += addr.String() + " " + r.Host + "\n"
		}
		do.Listen = append(do.Listen, netip.AddrPortFrom(addr, uint16(r.Port)))
	}
	do.Hosts = filepath.Join(c.Folder, "hosts")
	// Nothing that is there already is written to, whoever may write to the folder.
	f, err := os.OpenFile(do.Hosts, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return do, fmt.Errorf("isolate: %w", err)
	}
	_, err = f.WriteString(hosts)
	return do, errors.Join(err, f.Close())
}
