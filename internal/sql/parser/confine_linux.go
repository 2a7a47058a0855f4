package parser

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a worker may use. The address space is mostly reserved, never touched:
// the grammar's memory reserves 4 GiB.
const (
	addressSpace    = 10 << 30
	writableData    = 2 << 30
	openFiles       = 64
	cpuPerStatement = 5 * time.Second
)

// confine limits this process. It runs before anything hostile does.
func confine() error {
	for resource, limit := range map[int]uint64{
		unix.RLIMIT_AS: addressSpace, unix.RLIMIT_DATA: writableData, unix.RLIMIT_CORE: 0,
		unix.RLIMIT_FSIZE: 0, unix.RLIMIT_NOFILE: openFiles,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limit resource %d: %w", resource, err)
		}
	}
	return nil
}

// boundNextStatement lets the kernel end this process when the next statement
// takes too much CPU, should the pool's own deadline fail.
func boundNextStatement() {
	var used unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &used) != nil {
		return
	}
	spent := time.Duration(used.Utime.Nano() + used.Stime.Nano())
	limit := uint64((spent + cpuPerStatement) / time.Second)
	_ = unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: limit, Max: unix.RLIM_INFINITY})
}

// workerAttributes has the kernel kill a worker when the thread that started it
// ends, and keeps a terminal's signals from it.
func workerAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
