//go:build !linux || !(amd64 || arm64)

package isolate

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
)

// Run runs nothing here.
func Run(context.Context, *exec.Cmd, Config) error {
	return fmt.Errorf("%w: it takes Linux on amd64 or arm64, this is %s on %s", ErrUnavailable, runtime.GOOS, runtime.GOARCH)
}

// Inside has nothing to prepare.
func Inside([]string) error { return ErrUnavailable }
