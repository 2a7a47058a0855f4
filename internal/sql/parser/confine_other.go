//go:build !linux

package parser

import (
	"syscall"
	"time"
)

// confine does nothing here: deadlines and the death of the pipe still bound a
// worker.
func confine() error { return nil }

type cpuBound struct{}

func newCPUBound() (*cpuBound, error) { return &cpuBound{}, nil }

func (*cpuBound) next(time.Duration) error { return nil }

func workerAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
