package demo

import (
	"runtime"
	"syscall"
)

// childAttr lets the gateway die with the demo, however the demo ends.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
}

// run starts the process and waits for it on one thread: the parent-death
// signal is tied to the thread that started the child.
func (g *Gateway) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(g.ended)
	err := g.cmd.Start()
	started <- err
	if err == nil {
		g.result = g.cmd.Wait()
	}
}
