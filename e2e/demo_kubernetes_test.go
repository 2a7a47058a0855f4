package e2e

import (
	"bytes"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// TestDemoKubernetes tells the demo's chapter on Kubernetes, which checks each of
// its steps.
func TestDemoKubernetes(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{Kubernetes: true, Policies: map[string]string{}})
	var out bytes.Buffer
	if err := demo.TellKubernetes(t.Context(), s, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
}
