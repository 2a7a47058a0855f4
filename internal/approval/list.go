package approval

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// MaxList bounds the approvals that List returns.
const MaxList = 1000

// A Filter chooses approvals; its zero value chooses all. Members that are set
// must all match.
type Filter struct {
	States   []access.ApprovalState
	User     string // of the requester, whatever the case
	Resource string
	Limit    int // the newest so many; 0 and more than MaxList are MaxList
}

func (f Filter) match(a access.Approval) bool {
	return (len(f.States) == 0 || slices.Contains(f.States, a.State)) &&
		(f.User == "" || strings.EqualFold(f.User, a.Ask.Request.Principal.User)) &&
		(f.Resource == "" || f.Resource == a.Ask.Request.Resource.Name)
}

// List returns the approvals that the filter chooses, the newest first. It may
// show an approval as pending up to a second after its client has gone.
func (s *Service) List(ctx context.Context, filter Filter) ([]access.Approval, error) {
	if filter.Limit <= 0 || filter.Limit > MaxList {
		filter.Limit = MaxList
	}
	newest := func(a, b access.Approval) int {
		return cmp.Or(b.Opened.Compare(a.Opened), strings.Compare(a.ID, b.ID))
	}
	var found []access.Approval
	err := s.each(ctx, func(e *entry) {
		if !e.final() && s.live.deadline(e).Passed() {
			e.Approval.State = access.Expired
		}
		if !filter.match(e.Approval) {
			return
		}
		if found = append(found, e.Approval); len(found) >= 2*filter.Limit {
			slices.SortFunc(found, newest)
			found = slices.Delete(found, filter.Limit, len(found))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", err)
	}
	slices.SortFunc(found, newest)
	return found[:min(len(found), filter.Limit)], nil
}
