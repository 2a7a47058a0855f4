//go:build tools

// Package dex pins the OpenID Connect provider of the demo and the tests in a
// module of its own, so that the product does not depend on it.
package dex

import _ "github.com/dexidp/dex/cmd/dex"
