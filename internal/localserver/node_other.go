//go:build !linux

package localserver

import "errors"

// A Node is what a kubelet is to an API server; there is one on Linux only.
type Node struct{ Port int }

// StartNode says that there is none.
func StartNode() (*Node, error) {
	return nil, errors.New("the stand-in for a Kubernetes node needs Linux")
}

// Close does nothing.
func (n *Node) Close() error { return nil }
