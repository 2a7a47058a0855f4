//go:build amd64 || arm64

package isolate

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// prepared is what the stage says with its listeners.
const prepared = "prepared"

// outside is the descriptor of the socket to Run.
const outside = 3

// Inside prepares the namespaces that it was started in, by Run, and becomes the
// command: it returns only when that fails. args are what follows Stage.
func Inside(args []string) error {
	// Capabilities and filters are a thread's, and execve keeps those of its own.
	runtime.LockOSThread()
	listeners, err := prepare(args)
	if err != nil {
		return errors.Join(err, unix.Send(outside, []byte(err.Error()), unix.MSG_NOSIGNAL))
	}
	var fds []int
	for _, f := range listeners {
		fds = append(fds, int(f.Fd()))
	}
	if err := unix.Sendmsg(outside, []byte(prepared), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("isolate: %w", err)
	}
	return fmt.Errorf("isolate: %s: %w", args[1], syscall.Exec(args[1], args[2:], os.Environ()))
}

func prepare(args []string) ([]*os.File, error) {
	if len(args) < 3 {
		return nil, errors.New("this is for chaperone itself")
	}
	var do instructions
	if err := json.Unmarshal([]byte(args[0]), &do); err != nil {
		return nil, err
	}
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("close inherited files: %w", err)
	}
	if err := loopback(do.Addresses); err != nil {
		return nil, err
	}
	// Nothing that is mounted here shows outside.
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	if err := unix.Mount(do.Hosts, hostsFile, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount %s: %w", hostsFile, err)
	}
	files, err := open(do.Listen)
	if err != nil {
		return nil, err
	}
	return files, errors.Join(dropPrivileges(), filter())
}

// open makes the listeners.
func open(at []netip.AddrPort) ([]*os.File, error) {
	var files []*os.File
	for _, a := range at {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
		if err != nil {
			return nil, err
		}
		f, err := l.File()
		if err = errors.Join(err, l.Close()); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// loopback brings it up, with more addresses.
func loopback(addresses []netip.Addr) error {
	four, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(four)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(four, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	for _, a := range addresses {
		if err := add(lo.Name(), a); err != nil {
			return fmt.Errorf("loopback, address %s: %w", a, err)
		}
	}
	return nil
}

// add gives loopback an address, by rtnetlink(7): it is there when this returns.
func add(loopback string, a netip.Addr) error {
	const ack = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
	device, err := net.InterfaceByName(loopback)
	if err != nil {
		return err
	}
	family := byte(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	bytes := a.AsSlice()
	length := unix.SizeofNlMsghdr + unix.SizeofIfAddrmsg + unix.SizeofRtAttr + len(bytes)
	order := binary.NativeEndian
	m := order.AppendUint32(nil, uint32(length))
	m = order.AppendUint16(m, unix.RTM_NEWADDR)
	m = order.AppendUint16(m, ack)
	m = append(m, make([]byte, 8)...) // sequence and port
	m = append(m, family, byte(a.BitLen()), unix.IFA_F_NODAD, unix.RT_SCOPE_HOST)
	m = order.AppendUint32(m, uint32(device.Index))
	m = order.AppendUint16(m, uint16(unix.SizeofRtAttr+len(bytes)))
	m = append(order.AppendUint16(m, unix.IFA_LOCAL), bytes...)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return errors.New("netlink: no answer")
	}
	if errno := int32(order.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(-errno)
	}
	return nil
}

// dropPrivileges leaves this thread, and what it executes, none, for good.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	for c := range uintptr(64) { // more than there are
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
