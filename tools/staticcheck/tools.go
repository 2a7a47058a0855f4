//go:build tools

// Package staticcheck pins the checker of that name in a module of its own.
package staticcheck

import _ "honnef.co/go/tools/cmd/staticcheck"
