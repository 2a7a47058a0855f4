package postgres

import (
	"context"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/quota"
)

// Usage counts what statements use of the limits that hold beyond one of them:
// *quota.Service.
type Usage interface {
	Begin(ctx context.Context, session, account string, limits access.Limits) (*quota.Use, error)
}

// endUseTimeout bounds giving back what a statement did not use.
const endUseTimeout = 2 * time.Second

// beginUse counts the statement before it leaves. Without limits beyond one
// statement the Use is nil.
func (s *session) beginUse(ctx context.Context, v *verdict) (*quota.Use, *refusal) {
	limits := v.decision.Obligations.Limits
	if limits.Session == (access.Quota{}) && limits.Hour == (access.Quota{}) {
		return nil, nil
	}
	if s.deps.Usage == nil {
		return nil, s.refuseUnavailable(v, "the gateway cannot count what this would use", nil)
	}
	use, err := s.deps.Usage.Begin(ctx, v.request.Session, quota.Account(v.request.Principal, v.request.Resource), limits)
	if err != nil {
		return nil, refuse(quota.DenialOf(err, v.request.ID, s.resource.Access.Name, v.decision), err.Error())
	}
	return use, nil
}

// usedUp is the refusal of an execution that ran into a limit under way.
func (s *session) usedUp(e *execution, err error) *refusal {
	return refuse(quota.DenialOf(err, e.request.ID, s.resource.Access.Name, e.decision), err.Error())
}

// endUse counts the time that the execution took.
func (s *session) endUse(e *execution, took time.Duration) {
	if e.use == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endUseTimeout) // also of a session that is over
	defer cancel()
	if err := e.use.End(ctx, took); err != nil {
		s.log.Warn("the use of a statement is counted too high", "request", e.request.ID, "error", err)
	}
}
