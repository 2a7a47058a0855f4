//go:build tools

// Package jaeger pins the trace collector of the tests in a module of its own.
package jaeger

import _ "github.com/jaegertracing/jaeger/cmd/all-in-one"
