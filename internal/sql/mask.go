package sql

import (
	"context"
	"fmt"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

type splice struct{}

func clientPosition(_ []splice, position int) int { return position }

func (a *Analyzer) mask(context.Context, *Statement, *catalog.Snapshot, []access.Mask) (*Forward, error) {
	return nil, fmt.Errorf("mask: %w", parser.ErrUnavailable)
}
