package postgres

import (
	"context"
	"fmt"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
)

// straighten has a statement that the judge refuses run as it came, where there
// is nothing for the judge to keep: no rule of the resource masks anything for
// this principal, no claims tell its rows apart, and no limit needs its changes
// counted. Policy has allowed it without knowing what it reads or writes. It
// returns why not.
func (s *session) straighten(ctx context.Context, st *statement, v *verdict) *refusal {
	why := st.judged.Refusal
	if why == nil {
		why = st.judged.Unbound
	}
	if why == nil {
		return nil
	}
	free := st.judged
	if st.judged.Refusal != nil {
		if free = st.judged.AsItCame(); free == nil {
			return s.judgeRefused(v, why)
		}
	}
	if !s.open(ctx) {
		return s.judgeRefused(v, why)
	}
	limits := v.decision.Obligations.Limits
	if limits.RowsChanged > 0 || limits.Session.RowsChanged > 0 || limits.Hour.RowsChanged > 0 {
		return s.judgeRefused(v, why)
	}
	st.judged = free
	return nil
}

// open reports whether the resource hides nothing from this principal.
func (s *session) open(ctx context.Context) bool {
	return s.hidesNothing(s.deps.Decider.Masks(ctx, s.info.Principal, s.resource.Access))
}

func (s *session) hidesNothing(masks []access.Mask) bool {
	return len(masks) == 0 && len(s.resource.Claims) == 0
}

// unsettled is what is unknown of every statement once one ran as it came: what
// names mean to the target may no longer be what they mean to the judge.
func (s *session) unsettled(action *access.SQL, kind sql.Kind) {
	if s.unsettledBy == "" || settledKind(kind) {
		return
	}
	action.ReadOnly = false
	action.Unknown = append(append([]string{}, action.Unknown...),
		fmt.Sprintf("names may mean something else since %s in this session: connect again", s.unsettledBy))
}

// settledKind reports whether what a statement does hangs on no name of the
// database.
func settledKind(k sql.Kind) bool {
	switch k {
	case sql.KindEmpty, sql.KindTransaction, sql.KindSetting, sql.KindClose, sql.KindDeallocate, sql.KindReset, sql.KindDiscard, sql.KindListen, sql.KindNotify:
		return true
	}
	return false
}

// maskedSince ends a session in which names may mean something else, when a new
// policy or principal brings masks: they go by name.
func (s *session) maskedSince(v *verdict) error {
	if s.unsettledBy == "" || !s.masked {
		return nil
	}
	d := s.newDenial(access.SessionEnded, "a rule masks columns of "+s.resource.Access.Name+" now, and "+s.unsettledBy+" ran in this session")
	d.RequestID, d.Hint = v.request.ID, "connect again"
	return &fatalError{r: refuse(d, "masks after a statement that ran as it came")}
}
