package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "chaperone.dev/chaperone/"

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath string
	Imports    []string
}

// TestImports enforces the import rules of the layout: the vocabulary imports
// nothing of ours, internal packages know neither the top-level ones nor
// Envoy's types, the top-level ones do not know each other, and only this
// command joins them.
func TestImports(t *testing.T) {
	t.Parallel()
	packages := list(t)
	for _, p := range packages {
		for _, imported := range p.Imports {
			if why := forbidden(strings.TrimPrefix(p.ImportPath, module), imported); why != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, imported, why)
			}
		}
	}
	if len(packages) < 15 {
		t.Errorf("only %d packages were looked at", len(packages))
	}
}

// TestImportRulesRefuse shows that the rules can fail.
func TestImportRulesRefuse(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{
		{"internal/access", "github.com/jackc/pgx/v5"},
		{"internal/access", module + "internal/config"},
		{"internal/policy", module + "xds"},
		{"internal/policy", "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"},
		{"xds", module + "extauthz"},
		{"tapsink", module + "cmd/chaperone"},
	} {
		if forbidden(c[0], c[1]) == "" {
			t.Errorf("%s may import %s", c[0], c[1])
		}
	}
}

func forbidden(from, imported string) string {
	ours, isOurs := strings.CutPrefix(imported, module)
	top := func(p string) string { first, _, _ := strings.Cut(p, "/"); return first }
	switch {
	case from == "internal/access" && strings.Contains(top(imported), "."):
		return "access imports the standard library only"
	case strings.HasPrefix(from, "internal/") && strings.HasPrefix(imported, "github.com/envoyproxy/"):
		return "internal packages know no Envoy types"
	case !isOurs:
		return ""
	case top(ours) == "cmd":
		return "nothing imports a command"
	case top(from) == "cmd" || top(from) == "examples" || top(from) == "e2e" || strings.HasPrefix(ours, "internal/") || top(from) == top(ours):
		return ""
	case strings.HasPrefix(from, "internal/"):
		return "internal packages import no top-level package"
	}
	return "top-level packages do not import each other"
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "../../...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var packages []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
