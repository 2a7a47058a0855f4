package record

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// maxSessions bounds the answer of Sessions.
const maxSessions = 10_000

// A SessionSummary is a session in one line.
type SessionSummary struct {
	ID        string           `json:"id"`
	Principal access.Principal `json:"principal"`
	Resource  access.Resource  `json:"resource"`
	Client    string           `json:"client,omitempty"`
	Opened    time.Time        `json:"opened,omitzero"` // zero when its beginning was removed
	Closed    time.Time        `json:"closed,omitzero"` // zero when no end is recorded
	Cause     string           `json:"cause,omitempty"`
	Requests  int              `json:"requests"`
	Denied    int              `json:"denied"`   // of the requests
	Approved  int              `json:"approved"` // grants
	Events    int              `json:"events"`
	First     uint64           `json:"first"` // events
	Last      uint64           `json:"last"`
	LastTime  time.Time        `json:"last_time"` // of the last event
}

// A SessionFilter chooses sessions; what is zero chooses all.
type SessionFilter struct {
	User     string
	Subagent string
	Workflow string
	Resource string
	Since    time.Time // sessions with events at or after this
	Until    time.Time // sessions opened before this
	Open     bool      // only those without a recorded end
	Limit    int       // at most this many, the newest; 0 or too many: 10,000
}

func (f SessionFilter) match(s SessionSummary) bool {
	fits := func(want, got string) bool { return want == "" || want == got }
	return fits(f.User, s.Principal.User) && fits(f.Subagent, s.Principal.Subagent) &&
		fits(f.Workflow, s.Principal.Workflow) && fits(f.Resource, s.Resource.Name) &&
		(f.Since.IsZero() || !s.LastTime.Before(f.Since)) &&
		(f.Until.IsZero() || s.Opened.Before(f.Until)) &&
		(!f.Open || s.Closed.IsZero())
}

// Sessions sums up the sessions that f chooses, the one opened last first.
func (r *Reader) Sessions(ctx context.Context, f SessionFilter) ([]SessionSummary, error) {
	if f.Limit <= 0 || f.Limit > maxSessions {
		f.Limit = maxSessions
	}
	var found []SessionSummary
	unopened := map[string]SessionSummary{} // their beginning is in an older segment
	err := r.index.each(ctx, func(_ uint64, si *segmentIndex, _ bool) bool {
		var opened []SessionSummary
		for id, p := range si.parts {
			s := p.summary
			if newer, ok := unopened[id]; ok {
				s = joined(s, newer)
				delete(unopened, id)
			} else {
				s.Requests += len(p.open)
			}
			if s.Opened.IsZero() {
				unopened[id] = s
			} else if f.match(s) {
				opened = append(opened, s)
			}
		}
		// Whatever was opened in an older segment was opened before these.
		found = append(found, newestFirst(opened)...)
		return len(found) < f.Limit
	})
	if err != nil {
		return nil, err
	}
	if len(found) < f.Limit { // every segment was read: the rest has lost its beginning
		rest := slices.DeleteFunc(slices.Collect(maps.Values(unopened)), func(s SessionSummary) bool { return !f.match(s) })
		found = append(found, newestFirst(rest)...)
	}
	return found[:min(len(found), f.Limit)], nil
}

func newestFirst(s []SessionSummary) []SessionSummary {
	slices.SortFunc(s, func(a, b SessionSummary) int { return cmp.Compare(b.First, a.First) })
	return s
}

// joined sums up two parts of a session.
func joined(older, newer SessionSummary) SessionSummary {
	s := older
	s.Requests += newer.Requests
	s.Denied += newer.Denied
	s.Approved += newer.Approved
	s.Events += newer.Events
	s.Last, s.LastTime = newer.Last, newer.LastTime
	if s.Resource.Name == "" {
		s.Principal, s.Resource = newer.Principal, newer.Resource
	}
	if !newer.Closed.IsZero() {
		s.Closed, s.Cause = newer.Closed, newer.Cause
	}
	return s
}
