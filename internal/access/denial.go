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
	// Recourse says how a requestable action is let through; nil when it is not
	// requestable.
	Recourse *Recourse `json:"recourse,omitempty"`
}

// A Recourse is what a machine does about a denial that a reviewer could lift:
// have the approval granted, then repeat the same action.
type Recourse struct {
	// Approval is the open question; empty: repeating the action files one.
	Approval  string    `json:"approval,omitempty"`
	Reviewers []string  `json:"reviewers,omitempty"` // groups whose members may grant it
	Count     int       `json:"count,omitempty"`     // of them that must
	Until     time.Time `json:"until,omitzero"`      // the open question stands until
}

// RecourseOf returns the recourse that terms leave; the approval is set while
// it is open.
func RecourseOf(terms *ApprovalTerms, open *Approval) *Recourse {
	r := &Recourse{}
	if terms != nil {
		r.Reviewers, r.Count = terms.Groups, terms.Count
	}
	if open != nil && open.State == Pending {
		r.Approval, r.Until = open.ID, open.Expires
	}
	return r
}

// Error returns the message.
func (d *Denial) Error() string { return d.Message }

// Detail is the second line of a denial in protocols that have one:
// "rule orders/read; reason no-rule; requestable no; request req_…".
func (d *Denial) Detail() string {
	parts := make([]string, 0, 5)
	if d.Rule != "" {
		parts = append(parts, "rule "+d.Rule)
	}
	parts = append(parts, "reason "+string(d.Reason))
	if d.Requestable {
		parts = append(parts, "requestable yes")
	} else {
		parts = append(parts, "requestable no")
	}
	if r := d.Recourse; r != nil && len(r.Reviewers) > 0 {
		parts = append(parts, "reviewers "+strings.Join(r.Reviewers, ", "))
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

// ExitCode is the exit status that carries the denial to the user of an SSH
// client (sysexits.h): 75 when the same may pass later, 77 when it will not.
func (d *Denial) ExitCode() int {
	switch d.Reason {
	case ApprovalRequired, Unavailable:
		return 75 // EX_TEMPFAIL
	case LimitExceeded:
		if d.Limit != "" && !d.Frees.IsZero() {
			return 75
		}
	}
	return 77 // EX_NOPERM
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

// KubernetesStatus renders the denial as a Status object (Kubernetes API,
// meta/v1), whose details carry the denial whole.
func (d *Denial) KubernetesStatus(status int) []byte {
	type cause struct {
		Type    string `json:"reason"`
		Message string `json:"message"`
	}
	reason := strings.ReplaceAll(http.StatusText(status), " ", "")
	switch status { // where the API's own word is another
	case http.StatusTooManyRequests, http.StatusForbidden, http.StatusUnauthorized, http.StatusNotFound, http.StatusServiceUnavailable, http.StatusRequestEntityTooLarge:
	default:
		reason = "Forbidden"
	}
	whole, err := json.Marshal(d)
	if err != nil { // strings, bools, ints and times always encode
		panic("access: status object: " + err.Error())
	}
	b, err := json.Marshal(struct {
		Kind       string   `json:"kind"`
		APIVersion string   `json:"apiVersion"`
		Metadata   struct{} `json:"metadata"`
		Status     string   `json:"status"`
		Message    string   `json:"message"`
		Reason     string   `json:"reason"`
		Code       int      `json:"code"`
		Details    struct {
			Causes []cause `json:"causes"`
		} `json:"details"`
	}{Kind: "Status", APIVersion: "v1", Status: "Failure", Message: d.Text(), Reason: reason, Code: status,
		Details: struct {
			Causes []cause `json:"causes"`
		}{[]cause{{"chaperone", string(whole)}}}})
	if err != nil {
		panic("access: status object: " + err.Error())
	}
	return append(b, '\n')
}

// MCPCode is the JSON-RPC error code of a denial: the first of those that the
// specification leaves to implementations.
const MCPCode = -32000

// MCPError renders the denial as the JSON-RPC 2.0 error response to the message
// with this id (raw JSON; nil when it had none), as MCP carries errors. The
// data member is the denial whole.
func (d *Denial) MCPError(id json.RawMessage) []byte {
	if id == nil {
		id = json.RawMessage("null")
	}
	type rpcError struct {
		Code    int     `json:"code"`
		Message string  `json:"message"`
		Data    *Denial `json:"data"`
	}
	b, err := json.Marshal(struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Error   rpcError        `json:"error"`
	}{"2.0", id, rpcError{MCPCode, d.Message, d}})
	if err != nil { // the id is the caller's own JSON
		panic("access: MCP error: " + err.Error())
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
	if denial.Requestable {
		denial.Recourse = RecourseOf(d.Obligations.Approval, nil)
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

// Printable makes text of clients, targets and people safe to show in a message
// or a log line: control characters become spaces, what is not UTF-8 question
// marks, and what is longer than limit characters is cut.
func Printable(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > limit {
		s = string(runes[:limit]) + "…"
	}
	return s
}
