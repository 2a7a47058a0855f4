//go:build tools

// Package helm pins Helm in a module of its own, so that the product does not
// depend on it.
package helm

import _ "helm.sh/helm/v3/cmd/helm"
