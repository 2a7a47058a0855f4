package main

import (
	"os/exec"
	"runtime"
	"syscall"
)

// startTied runs cmd to its end on one thread that lives as long, so that the
// parent-death signal, which is tied to the thread, comes only when this
// process ends. The end of cmd's context is a SIGTERM.
func startTied(cmd *exec.Cmd, started func(pid int)) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			ended <- err
			return
		}
		started(cmd.Process.Pid)
		ended <- cmd.Wait()
	}()
	return <-ended
}
