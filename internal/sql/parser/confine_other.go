//go:build !linux

package parser

import "syscall"

// confine does nothing here: deadlines and the death of the pipe still bound a
// worker.
func confine() error { return nil }

func boundNextStatement() {}

func workerAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
