package parser

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

const burnVariable = "CHAPERONE_TEST_BURN"

// TestCPUIsBounded runs itself as a process that would use CPU for much longer
// than its share, and as one that stays within it.
func TestCPUIsBounded(t *testing.T) {
	t.Parallel()
	if burn, err := time.ParseDuration(os.Getenv(burnVariable)); err == nil {
		burnCPU(t, burn)
		return
	}
	for burn, killed := range map[string]bool{"1h": true, "1ms": false} {
		self := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCPUIsBounded$", "-test.parallel=1")
		self.Env = append(os.Environ(), burnVariable+"="+burn)
		out, err := self.CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) != killed {
			t.Fatalf("burning %s: %v\n%s", burn, err, out)
		}
		if killed && exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("burning %s: %v, not killed\n%s", burn, err, out)
		}
	}
}

func burnCPU(t *testing.T, how time.Duration) {
	bound, err := newCPUBound()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second statement has a share of its own
		if err := bound.next(300 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < how; {
		}
	}
}
