package access

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// A Reason is the class of a denial: a machine reads it to know what kind of
// no it got.
type Reason string

// The reason classes.
const (
	Unauthenticated  Reason = "unauthenticated"   // no, bad or expired token; deliberately no finer
	UnknownResource  Reason = "unknown-resource"  // no such resource, or none that this principal may know of
	NoRule           Reason = "no-rule"           // nothing allows it
	DeniedByRule     Reason = "denied-by-rule"    // a rule forbids it
	MaskedField      Reason = "masked-field"      // it would compute on a masked column or field
	Unsupported      Reason = "unsupported"       // the gateway does not handle this form
	Unreadable       Reason = "unreadable"        // it cannot be parsed, bound or bounded
	ApprovalRequired Reason = "approval-required" // ask a reviewer, then repeat it
	ApprovalRefused  Reason = "approval-refused"
	ApprovalExpired  Reason = "approval-expired"
	LimitExceeded    Reason = "limit-exceeded"
	SessionEnded     Reason = "session-ended" // killed, revoked, expired
	Unavailable      Reason = "unavailable"   // the gateway cannot decide, record or reach the target
)

// A Denial is the one form in which every protocol says no. It is an error and
// holds nothing that the caller may not see.
type Denial struct {
	RequestID   string `json:"request_id"`
	Reason      Reason `json:"reason"`
	Rule        string `json:"rule,omitempty"` // policy/rule, or default-deny
	Message     string `json:"message"`        // one sentence: what was refused and why
	Requestable bool   `json:"requestable"`    // whether a reviewer could let it through
	Hint        string `json:"hint,omitempty"` // what to do now
	Resource    string `json:"resource,omitempty"`
	Revision    string `json:"revision,omitempty"`
	// Limit names the limit over several requests that is used up, and Frees
	// when it is free again; zero: not in this session.
	Limit string    `json:"limit,omitempty"`
	Frees time.Time `json:"frees,omitzero"`
}

// Error returns the message.
func (d *Denial) Error() string { return d.Message }

// Detail is the second line of a denial in protocols that have one:
// "rule orders/read; reason no-rule; requestable no; request req_…".
func (d *Denial) Detail() string {
	parts := make([]string, 0, 4)
	if d.Rule != "" {
		parts = append(parts, "rule "+d.Rule)
	}
	parts = append(parts, "reason "+string(d.Reason))
	if d.Requestable {
		parts = append(parts, "requestable yes")
	} else {
		parts = append(parts, "requestable no")
	}
	return strings.Join(append(parts, "request "+d.RequestID), "; ")
}

// Text renders the denial for a terminal, one to three lines, no newline at
// the end.
func (d *Denial) Text() string {
	text := "denied: " + d.Message + "\n  " + d.Detail()
	if d.Hint != "" {
		text += "\n  hint: " + d.Hint
	}
	return text
}

// Status is the HTTP status code that carries the denial.
func (d *Denial) Status() int {
	switch d.Reason {
	case Unauthenticated:
		return http.StatusUnauthorized
	case UnknownResource:
		return http.StatusNotFound
	case LimitExceeded:
		if d.Limit != "" {
			return http.StatusTooManyRequests
		}
		return http.StatusRequestEntityTooLarge
	case Unavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusForbidden
	}
}

// ProblemType is the media type of Problem (RFC 9457).
const ProblemType = "application/problem+json"

// Problem renders the denial as a problem document (RFC 9457) with the
// denial's members as extensions. status is usually d.Status().
func (d *Denial) Problem(status int) []byte {
	b, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		*Denial
	}{"urn:chaperone:denial:" + string(d.Reason), http.StatusText(status), status, d.Message, d})
	if err != nil { // strings, bools and ints always encode
		panic("access: problem document: " + err.Error())
	}
	return append(b, '\n')
}

// DenialOf turns a deny Decision on req into its Denial.
func DenialOf(req Request, d Decision) *Denial {
	denial := &Denial{
		RequestID: req.ID, Reason: d.Reason, Rule: d.Rule(), Message: d.Message,
		Requestable: d.Effect == Approve || d.Nearest != nil && d.Reason == ApprovalRequired,
		Hint:        d.Hint, Resource: req.Resource.Name, Revision: d.Revision,
	}
	if denial.Reason == "" {
		denial.Reason = NoRule
	}
	if denial.Hint == "" && len(d.Rules) > 0 {
		denial.Hint = "no reviewer can lift this; ask whoever keeps the policy " + d.Rules[0].Policy
	}
	if denial.Message == "" {
		denial.Message = "no policy allows this on " + req.Resource.Name
	}
	return denial
}
