//go:build tools

// Package kubernetes pins the cluster of the tests (etcd, the API server, the
// controller manager) and kubectl in a module of their own, so that the product
// does not depend on them.
package kubernetes

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
