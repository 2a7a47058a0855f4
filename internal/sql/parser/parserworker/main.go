// Command parserworker is a parser worker and nothing else. Tests build it
// without the race detector, under which compiling the grammar takes minutes;
// the product starts its own binary instead.
package main

import (
	"os"

	"chaperone.dev/chaperone/internal/sql/parser"
)

func main() {
	if parser.Work(os.Args[1:]) != nil {
		os.Exit(1)
	}
}
