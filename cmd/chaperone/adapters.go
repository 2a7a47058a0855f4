package main

import (
	"context"
	"errors"
	"iter"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
	"chaperone.dev/chaperone/internal/console"
	"chaperone.dev/chaperone/internal/record"
)

// approvalsAPI gives people the approval service, with errors that they can act
// on.
type approvalsAPI struct{ *approval.Service }

// Get returns one approval whole.
func (a approvalsAPI) Get(ctx context.Context, id string) (access.Approval, error) {
	got, err := a.Service.Get(ctx, id)
	return got, approvalDenial(id, err)
}

// List returns the approvals that are kept, the newest first.
func (a approvalsAPI) List(ctx context.Context) ([]access.Approval, error) {
	return a.Service.List(ctx, approval.Filter{})
}

// Answer takes a reviewer's word.
func (a approvalsAPI) Answer(ctx context.Context, id string, who access.Principal, grant bool, comment string) (access.Approval, error) {
	got, err := a.Service.Answer(ctx, id, who, grant, comment)
	return got, approvalDenial(id, err)
}

// MayAnswer says whether it would be taken.
func (a approvalsAPI) MayAnswer(ctx context.Context, id string, who access.Principal) error {
	return approvalDenial(id, a.Service.MayAnswer(ctx, id, who))
}

// approvalDenial says what an error of the approval service means to a person.
func approvalDenial(id string, err error) error {
	var state *approval.StateError
	d := &access.Denial{Reason: access.DeniedByRule, Rule: "approvals"}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &state):
		d.Reason, d.Message, d.Hint = access.ApprovalExpired, state.Error(), "nothing was run; who asked may ask again"
		if state.State == access.Refused {
			d.Reason = access.ApprovalRefused
		}
	case errors.Is(err, approval.ErrNotFound):
		d.Reason, d.Message, d.Hint = access.UnknownResource, "there is no approval "+id, "chaperone approvals list"
	case errors.Is(err, approval.ErrOwnRequest):
		d.Message, d.Hint = "nobody reviews their own request", "ask somebody else of the rule's groups"
	case errors.Is(err, approval.ErrNotReviewer):
		d.Message, d.Hint = "you are not a reviewer of this request", "the rule names the groups: chaperone approvals show "+id
	case errors.Is(err, approval.ErrAnswered):
		d.Message, d.Hint = "you have answered this request already", "another reviewer is needed"
	default:
		return err
	}
	return d
}

// recordings gives people the recordings of this replica.
type recordings struct{ *record.Reader }

// Sessions lists what was recorded, oldest first.
func (r recordings) Sessions(ctx context.Context) ([]console.SessionSummary, error) {
	all, err := r.Reader.Sessions(ctx, record.SessionFilter{})
	if err != nil {
		return nil, err
	}
	list := make([]console.SessionSummary, len(all))
	for i, s := range all {
		list[i] = console.SessionSummary{
			Session: access.Session{ID: s.ID, Principal: s.Principal, Resource: s.Resource, Client: s.Client, Opened: s.Opened},
			Cause:   s.Cause, Requests: s.Requests, Denied: s.Denied, Approved: s.Approved,
		}
		if !s.Closed.IsZero() {
			list[i].Closed = s.Closed.Format(time.RFC3339)
		}
	}
	return list, nil
}

// Events reads one session.
func (r recordings) Events(ctx context.Context, id string) iter.Seq2[access.Event, error] {
	return r.Session(ctx, id)
}
