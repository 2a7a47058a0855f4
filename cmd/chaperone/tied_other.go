//go:build !linux

package main

import "os/exec"

func startTied(*exec.Cmd, func(pid int)) error { return errNotLinux }
