package envoy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ErrRejected wraps what Envoy said about a configuration it would not load.
var ErrRejected = errors.New("envoy rejects the configuration")

// Validate asks Envoy whether it would load the configuration (a bootstrap with
// everything in it, as JSON) without starting any of it. The configuration goes
// through a temporary file of mode 0600, so leave secrets out of it. The error
// is ErrRejected with Envoy's words, or says that no answer was reached.
func (b Binary) Validate(ctx context.Context, configuration []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "chaperone-validate")
	if err != nil {
		return fmt.Errorf("validate: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(path, configuration, 0o600); err != nil {
		return fmt.Errorf("validate: %w", err)
	}
	said := &lines{max: 64}
	cmd := exec.CommandContext(ctx, b.Path, "--mode", "validate", "--disable-hot-restart",
		"--reject-unknown-dynamic-fields", "-l", "error", "--log-format", "%v", "--log-format-escaped", "-c", path)
	cmd.Env = []string{}
	cmd.Stderr = &lineWriter{emit: said.add}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("validate: %w", ctx.Err())
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return fmt.Errorf("%w: %s", ErrRejected, strings.Join(said.all(), "; "))
	default:
		return fmt.Errorf("validate: %w: %s", err, strings.Join(said.all(), "; "))
	}
}
