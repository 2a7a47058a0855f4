//go:build !linux

package main

import (
	"errors"
	"os/exec"
)

var errNotLinux = errors.New("chaperone run needs Linux: its children must die with it")

func startTied(*exec.Cmd, func(pid int)) error { return errNotLinux }
