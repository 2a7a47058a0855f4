// Package envoy finds a stock Envoy binary, writes the bootstrap it starts
// from, checks configurations with it, and supervises it as a child that never
// outlives its parent. It also makes the unix sockets on which Envoy and
// chaperone meet.
//
// It knows nothing of listeners, routes or targets: those are the business of
// the control plane that the bootstrap points at. It refuses to run Envoy with
// log levels that print headers, for these hold tokens.
package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// tested are the versions that the tests run against.
var tested = []string{"1.40.0"}

// A Binary is an Envoy executable.
type Binary struct {
	Path    string
	Version string // for example 1.40.0
}

// Tested reports whether this version is one that chaperone is tested with.
func (b Binary) Tested() bool { return slices.Contains(tested, b.Version) }

// Options say where Find looks.
type Options struct {
	Env      func(string) string // nil means os.Getenv
	ToolsDir string              // "" means ToolsDir(Env)
	Logger   *slog.Logger        // nil means silent
}

// ErrNotFound is returned by Find when there is no Envoy in any place.
var ErrNotFound = errors.New("no envoy found: set ENVOY_BIN, put envoy on PATH, or run tools/install envoy")

// ToolsDir is the folder into which tools/install puts the pinned binaries:
// $CHAPERONE_TOOLS, else /var/cache/chaperone/tools for root, else
// chaperone/tools in the user's cache folder.
func ToolsDir(env func(string) string) string {
	if dir := env("CHAPERONE_TOOLS"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/cache/chaperone/tools"
	}
	if dir := env("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "chaperone", "tools")
	}
	return filepath.Join(env("HOME"), ".cache", "chaperone", "tools")
}

// Find returns the first Envoy of ENVOY_BIN, PATH and the tools folder, and
// asks it for its version. An ENVOY_BIN that does not work is an error, not a
// reason to look further. A version that chaperone is not tested with is
// logged as a warning.
func Find(ctx context.Context, o Options) (Binary, error) {
	env := o.Env
	if env == nil {
		env = os.Getenv
	}
	if path := env("ENVOY_BIN"); path != "" {
		b, err := inspect(ctx, path)
		if err != nil {
			return Binary{}, fmt.Errorf("ENVOY_BIN: %w", err)
		}
		warnUntested(o.Logger, b)
		return b, nil
	}
	tools := o.ToolsDir
	if tools == "" {
		tools = ToolsDir(env)
	}
	for _, dir := range append(filepath.SplitList(env("PATH")), filepath.Join(tools, "bin")) {
		path := filepath.Join(dir, "envoy")
		if dir == "" || !executable(path) {
			continue
		}
		b, err := inspect(ctx, path)
		if err != nil {
			if o.Logger != nil {
				o.Logger.WarnContext(ctx, "passing over what is called envoy", "path", path, "error", err)
			}
			continue
		}
		warnUntested(o.Logger, b)
		return b, nil
	}
	return Binary{}, ErrNotFound
}

func warnUntested(log *slog.Logger, b Binary) {
	if log != nil && !b.Tested() {
		log.Warn("this version of Envoy is not tested with chaperone",
			"path", b.Path, "version", b.Version, "tested", strings.Join(tested, ", "))
	}
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// versionLine is "envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL".
var versionLine = regexp.MustCompile(`version: [0-9a-f]+/([0-9]+\.[0-9]+\.[0-9]+[^/\s]*)/`)

func inspect(ctx context.Context, path string) (Binary, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Binary{}, fmt.Errorf("%s --version: %w", path, err)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return Binary{}, fmt.Errorf("%s --version: not an Envoy version", path)
	}
	return Binary{Path: path, Version: string(m[1])}, nil
}
