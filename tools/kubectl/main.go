// Command kubectl is older versions of kubectl, which the tests run beside the
// newest: one for each file MINOR.mod, in a module of its own, so that the product
// does not depend on them.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() {
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		os.Exit(1)
	}
}
