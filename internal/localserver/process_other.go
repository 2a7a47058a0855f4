//go:build !linux

package localserver

import "os/exec"

func dieWithParent(*exec.Cmd) {}

func (p *process) run(started chan<- error) {
	defer close(p.done)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.err = p.cmd.Wait()
	}
}
