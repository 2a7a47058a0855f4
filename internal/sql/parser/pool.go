package parser

import (
	"context"
	"fmt"
	"io"
)

// A Pool owns the worker processes. It is safe for concurrent use.
type Pool struct{}

// NewPool starts the workers and returns at once; Parse waits for the first to
// be warm. Close ends them.
func NewPool(c Config) (*Pool, error) {
	if len(c.Command) == 0 {
		return nil, fmt.Errorf("parser pool: no worker command")
	}
	return &Pool{}, nil
}

// Ready blocks until a worker is warm or ctx ends.
func (p *Pool) Ready(ctx context.Context) error { return fmt.Errorf("not started: %w", ErrUnavailable) }

// Close ends every worker and waits for them. Statements in flight get
// ErrUnavailable.
func (p *Pool) Close() {}

func (p *Pool) parse(context.Context, string) (*Result, error) {
	return nil, fmt.Errorf("not started: %w", ErrUnavailable)
}

// Serve is the worker: it answers requests from in on out until in ends, and
// returns. The caller's process must do nothing else. It limits the process's
// own memory and CPU and asks the kernel to end it with its parent.
func Serve(in io.Reader, out io.Writer) error { return ErrUnavailable }
