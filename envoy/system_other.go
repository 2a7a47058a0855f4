//go:build !linux

package envoy

import (
	"os"
	"os/exec"
	"syscall"
)

// tie keeps a terminal's Ctrl-C from the child. There is no parent-death signal
// here: an Envoy outlives a parent that is killed.
func tie(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func (s *Supervisor) raiseFileLimit(int) {}

func beforeBind(int) error { return nil }

// afterBind closes the socket's file to others. Until then its folder has to.
func afterBind(path string) error { return os.Chmod(path, 0o600) }
