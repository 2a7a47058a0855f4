// Package kube reads HTTP requests to a Kubernetes API server as what they ask
// for (access.K8s), and says how their answers are masked.
//
// A path becomes verb, resource, subresource, namespace and name by Kubernetes'
// own parser, the one that its authorization stands on; a body is decoded whole
// by its own types. The package refuses what that parser and the API server
// could read differently, what it cannot read whole it says is unknown, and the
// requests that open a stream into a container it knows by name.
package kube
