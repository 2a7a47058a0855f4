package envoy

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// tie makes the child die with the thread that starts it, and keeps a
// terminal's Ctrl-C from it: that reaches the supervisor alone, which decides.
func tie(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// raiseFileLimit gives the child every descriptor it may have: the Go runtime
// lowers the limit of its children to what it was before the runtime raised it.
func (s *Supervisor) raiseFileLimit(pid int) {
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		s.log.Warn("the file limit of envoy cannot be read", "error", err)
		return
	}
	limit.Cur = limit.Max
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		s.log.Warn("the file limit of envoy cannot be raised", "error", err)
	}
	if limit.Max < 2*DefaultMaxConnections {
		s.log.Warn("envoy has few file descriptors for its connection limit", "limit", limit.Max)
	}
}

// beforeBind gives the socket the mode that its file is to have: Linux creates
// the one with the mode of the other. A chmod after the bind would leave it
// open for a moment.
func beforeBind(fd int) error { return unix.Fchmod(fd, 0o600) }

// afterBind has nothing left to do.
func afterBind(string) error { return nil }
