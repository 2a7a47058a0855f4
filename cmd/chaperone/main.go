// Command chaperone is an access gateway for subagents: stock Envoy carries
// every byte, and this program decides, holds, masks, injects and records.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/isolate"
	"chaperone.dev/chaperone/internal/sql/parser"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == parserWorker {
		os.Exit(exitCode(os.Stderr, parser.Work(os.Args[2:])))
	}
	if len(os.Args) > 1 && os.Args[1] == isolate.Stage {
		os.Exit(exitCode(os.Stderr, isolate.Inside(os.Args[2:])))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(os.Stderr, err))
}

// parserWorker is the argument that turns this binary into a parser worker.
const parserWorker = "parser-worker"

// errUsage marks a command line that cannot be understood: exit status 2.
var errUsage = errors.New("usage")

// errReported marks a failure that has already been printed.
var errReported = errors.New("reported")

// exitCode prints err and returns 0 done, 1 refused or failed, 2 usage.
func exitCode(stderr io.Writer, err error) int {
	var denial *access.Denial
	var ran *exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ran):
		return ran.status()
	case errors.Is(err, errReported):
		return 1
	case errors.As(err, &denial):
		fmt.Fprintln(stderr, denial.Text())
		return 1
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "chaperone: %v\nRun 'chaperone --help' for usage.\n", err)
		return 2
	default:
		fmt.Fprintf(stderr, "chaperone: %v\n", err)
		return 1
	}
}

// run executes one command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}
