package sql

import (
	"context"
	"fmt"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

type body struct{}

type splice struct{}

func clientPosition(_ []splice, position int) int { return position }

func newAnalyzer(c Config) (*Analyzer, error) {
	return &Analyzer{parser: c.Parser, curated: map[string]bool{}}, nil
}

func (a *Analyzer) analyze(ctx context.Context, text string, cat *catalog.Snapshot) (*Statement, error) {
	return nil, fmt.Errorf("analyze: %w", parser.ErrUnavailable)
}

func (a *Analyzer) mask(context.Context, *Statement, *catalog.Snapshot, []access.Mask) (*Forward, error) {
	return nil, fmt.Errorf("mask: %w", parser.ErrUnavailable)
}
