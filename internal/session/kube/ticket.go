package kube

import (
	"net/http"

	"chaperone.dev/chaperone/internal/access"
)

// A Permit is a request that was let through and is on record: what the API
// server is asked for, as whom, and what is to be done to the answer.
type Permit struct {
	Request  access.Request // its action is of Kubernetes
	Decision access.Decision
	// Impersonate are the headers by which the API server acts as the caller.
	Impersonate http.Header
}
