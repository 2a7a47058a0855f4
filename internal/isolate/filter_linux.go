//go:build amd64 || arm64

package isolate

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What BPF reads: struct seccomp_data. Arguments are 64 bits wide, of which the
// kernel looks at the low half of those that are filtered here.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// A rule answers calls of one number whose argument is not (or is) among values.
type rule struct {
	number   uint32
	argument int
	mask     uint32
	values   []uint32
	only     bool // values are the good ones, else the bad ones
	errno    unix.Errno
}

// rules cut what goes past a network namespace.
//
// Unix sockets with a name in the file system are the host's: of the Docker
// daemon, of systemd, of an agent that holds keys. Pairs of them are an ordinary
// means of programs and stay, but for datagrams, which can be sent elsewhere. To
// find a key the kernel starts a program outside, which asks name servers.
var rules = []rule{
	{unix.SYS_SOCKET, 0, ^uint32(0), []uint32{unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}, true, unix.EACCES},
	{unix.SYS_SOCKETPAIR, 0, ^uint32(0), []uint32{unix.AF_UNIX}, true, unix.EACCES},
	{unix.SYS_SOCKETPAIR, 1, 0xf, []uint32{unix.SOCK_STREAM, unix.SOCK_SEQPACKET}, true, unix.EACCES},
	{unix.SYS_IO_URING_SETUP, 0, 0, nil, true, unix.ENOSYS},
	{unix.SYS_REQUEST_KEY, 0, 0, nil, true, unix.ENOSYS},
	{unix.SYS_IOCTL, 1, ^uint32(0), []uint32{unix.TIOCSTI, tioclinux}, false, unix.EPERM},
}

// tioclinux pastes into a console.
const tioclinux = 0x541c

// filter installs the rules on this thread and all that comes of it.
func filter() error {
	program := assemble()
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&p))); errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}

// assemble writes the rules as BPF.
func assemble() []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	give := func(answer uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: answer}
	}
	jump := func(test uint16, k uint32, yes, no int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: k, Jt: uint8(yes), Jf: uint8(no)}
	}
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	// Calls by another architecture's numbers (32 bits) end the command.
	program := []unix.SockFilter{load(offsetArch), jump(unix.BPF_JEQ, arch, 1, 0), give(unix.SECCOMP_RET_KILL_PROCESS), load(offsetNumber)}
	if runtime.GOARCH == "amd64" { // numbers of x32
		program = append(program, jump(unix.BPF_JGE, 0x40000000, 0, 1), give(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)))
	}
	for _, r := range rules {
		body := []unix.SockFilter{load(offsetArgs + 8*uint32(r.argument)), {Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: r.mask}}
		for i, v := range r.values { // jumps over those that follow, and over the instruction after them
			body = append(body, jump(unix.BPF_JEQ, v, len(r.values)-i, 0))
		}
		if !r.only {
			body = append(body, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: 1})
		}
		body = append(body, give(unix.SECCOMP_RET_ERRNO|uint32(r.errno)))
		program = append(append(program, load(offsetNumber), jump(unix.BPF_JEQ, r.number, 0, len(body))), body...)
	}
	return append(program, give(unix.SECCOMP_RET_ALLOW))
}
