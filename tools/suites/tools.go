//go:build tools

// Package suites pins the Go drivers whose own tests run straight at a server
// and through the gateway, in a module of its own, so that the product does not
// depend on them.
package suites

import (
	_ "github.com/jackc/pgx/v5"
	_ "github.com/lib/pq"
	_ "github.com/stretchr/testify/require"
)
