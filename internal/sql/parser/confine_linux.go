package parser

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a worker may use. The address space is mostly reserved, never touched:
// the grammar's memory reserves 4 GiB.
const (
	addressSpace = 10 << 30
	writableData = 2 << 30
	openFiles    = 64
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

// A cpuBound has the kernel kill this process once a statement has used too
// much CPU, should the pool's own deadline fail. RLIMIT_CPU would not: Go's
// runtime catches its signal and goes on.
type cpuBound struct{ timer int32 }

func newCPUBound() (*cpuBound, error) {
	event := struct { // sigevent(3type)
		value          uintptr
		signal, notify int32 // notify 0 is SIGEV_SIGNAL
		_              [48]byte
	}{signal: int32(unix.SIGKILL)}
	var b cpuBound
	_, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_PROCESS_CPUTIME_ID, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&b.timer)))
	if errno != 0 {
		return nil, fmt.Errorf("make a CPU timer: %w", errno)
	}
	return &b, nil
}

// next gives the next statement its share, counted from now.
func (b *cpuBound) next(share time.Duration) error {
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(share.Nanoseconds())}
	if _, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(b.timer), 0, uintptr(unsafe.Pointer(&at)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("set the CPU timer: %w", errno)
	}
	return nil
}

// workerAttributes has the kernel kill a worker when the thread that started it
// ends, and keeps a terminal's signals from it.
func workerAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
