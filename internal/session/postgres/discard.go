package postgres

import (
	"context"
	"errors"

	"chaperone.dev/chaperone/internal/access"
)

// discardParts are what DISCARD ALL does (PostgreSQL manual, DISCARD), each in a
// transaction of its own. Left out are SET SESSION AUTHORIZATION DEFAULT, which
// would undo a role that the login brings with it, and DEALLOCATE ALL, which is
// forwarded in its place. RESET ALL goes back to the startup message, where the
// gateway's own settings are.
var discardParts = []string{
	"CLOSE ALL", "RESET ALL", "UNLISTEN *", "SELECT pg_catalog.pg_advisory_unlock_all()", "DISCARD PLANS", "DISCARD TEMP", "DISCARD SEQUENCES",
}

// discardAll does at the target what DISCARD ALL does, before the statement that
// stands for it; the evidence comes first. A session that cannot be cleaned ends.
func (s *session) discardAll(ctx context.Context, e *execution) error {
	evidence := e.before
	e.before = nil
	if err := s.append(ctx, access.Synced, evidence); err != nil {
		return err
	}
	for _, text := range discardParts {
		result := &ownResult{}
		if err := s.ownInto(ctx, text, true, result); err != nil {
			return err
		}
		if result.failed {
			return lostTarget(s.unavailable("the gateway cannot discard what the session holds"), errors.New(text))
		}
	}
	return nil
}
