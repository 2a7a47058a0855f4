package postgres

import (
	"cmp"
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

// movedQuery is what code that nobody looked into can do to the names in statements
// behind it: move the path that finds them, make temporary ones that hide them,
// or take on another role.
const movedQuery = `SELECT pg_catalog.current_setting('search_path'), pg_catalog.pg_my_temp_schema()::pg_catalog.text, CURRENT_USER::pg_catalog.text`

// doubts notes an execution of which something is unknown.
func (s *session) doubts(v *verdict, st *sql.Statement) {
	switch {
	case st.Unsettles():
		s.unsettledBy = cmp.Or(st.Action.Command, "a statement that is not known")
	case len(v.request.Action.SQL.Unknown) > 0 && s.unsettledBy == "":
		s.doubted = cmp.Or(v.request.Action.SQL.Command, "a statement that is not known")
	}
}

// resettle asks the target, once after such executions and before a statement
// that names anything, whether names mean what they did. It reports whether the
// statement must be judged anew, because they do not.
func (s *session) resettle(ctx context.Context, v *verdict, st *statement) (again bool, err error) {
	if s.doubted == "" || v.refused != nil || settledKind(st.judged.Kind) || s.failed() || s.skipping {
		return false, nil
	}
	rows, err := s.own(ctx, movedQuery, s.status == statusIdle && !s.dirty)
	if err != nil {
		return false, err
	}
	path := ownedSettings(s.resource.searchPath())["search_path"]
	if len(rows) != 1 || len(rows[0]) != 3 || rows[0][0] != path || rows[0][1] != "0" || rows[0][2] != st.view.snapshot.User() {
		s.unsettledBy = s.doubted
	}
	s.doubted = ""
	return s.unsettledBy != "", nil
}
