//go:build tools

// Package govulncheck pins the checker of that name in a module of its own.
package govulncheck

import _ "golang.org/x/vuln/cmd/govulncheck"
