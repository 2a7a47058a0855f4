package access

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"
)

// An ApprovalState is where a held request stands.
type ApprovalState string

// pending → granted | refused | expired | abandoned; granted → consumed |
// expired | abandoned.
const (
	Pending   ApprovalState = "pending"
	Granted   ApprovalState = "granted"
	Refused   ApprovalState = "refused"
	Expired   ApprovalState = "expired"
	Abandoned ApprovalState = "abandoned"
	Consumed  ApprovalState = "consumed"
)

// An Ask is what a protocol puts before the reviewers. Its digest (AskDigest)
// is what a grant is bound to.
type Ask struct {
	Request  Request  `json:"request"`
	Decision Decision `json:"decision"`
	// Settings are the session settings that change what the action means
	// (search_path, role, …), and anything else the protocol binds.
	Settings map[string]string `json:"settings,omitempty"`
	// Leased asks die with their client: nobody is left to run them. An HTTP
	// 202 leaves its ask behind on purpose.
	Leased bool `json:"leased"`
	// Trace is the W3C traceparent of the span that waits, for the reviewer's
	// own trace to link to. No grant depends on it.
	Trace string `json:"trace,omitempty"`
	// Preview is what the target expects of it, for reviewers. No grant depends
	// on it. Nil: the target was not asked.
	Preview *Preview `json:"preview,omitempty"`
}

// An Approval is an Ask and what became of it.
type Approval struct {
	ID      string        `json:"id"` // the request id of the ask
	Digest  string        `json:"digest"`
	State   ApprovalState `json:"state"`
	Ask     Ask           `json:"ask"`
	Opened  time.Time     `json:"opened"`
	Expires time.Time     `json:"expires"`
	Answers []Answer      `json:"answers,omitempty"`
}

// An Answer is one reviewer's word.
type Answer struct {
	Reviewer Principal `json:"reviewer"`
	Grant    bool      `json:"grant"`
	Comment  string    `json:"comment,omitempty"`
	Time     time.Time `json:"time"`
}

// NotGranted is why an act may not happen whose approval ended without a grant,
// and the words for its client.
func (a Approval) NotGranted() (Reason, string) {
	switch a.State {
	case Refused:
		message := "a reviewer refused " + a.ID
		if n := len(a.Answers); n > 0 && a.Answers[n-1].Comment != "" {
			message += ": " + Printable(a.Answers[n-1].Comment, 200)
		}
		return ApprovalRefused, message
	case Expired:
		return ApprovalExpired, "nobody answered " + a.ID + " in time"
	default:
		return ApprovalExpired, "the approval " + a.ID + " is " + string(a.State)
	}
}

// AskDigest binds a grant to exactly one thing: the principal with its chain,
// the resource, the action as it would be forwarded with its bound values, the
// settings and the hash of the rule that decided. Request id, session, time,
// tokens, estimates and the preview are left out, so that the same request repeated has the
// same digest.
func AskDigest(a Ask) string {
	p := a.Request.Principal
	p.Token, p.Chain = TokenRef{}, slices.Clone(p.Chain)
	for i := range p.Chain {
		p.Chain[i].Parent, p.Chain[i].ActorToken = "", ""
	}
	action := a.Request.Action
	if action.HTTP != nil {
		call := *action.HTTP
		call.Body = nil // BodyDigest stands for it
		action.HTTP = &call
	}
	if action.K8s != nil {
		call := *action.K8s
		call.Body = nil
		if call.LeavesHTTP() {
			// One act, by whatever method: kubectl asks by GET, and by POST when that is
			// refused.
			call.Method, call.Verb = "", ""
		}
		action.K8s = &call
	}
	if action.SQL != nil {
		statement := *action.SQL
		statement.EstimatedRows, statement.EstimatedBytes, statement.Plan = nil, nil, ""
		action.SQL = &statement
	}
	if len(a.Settings) == 0 {
		a.Settings = nil // as it comes back from a store
	}
	if len(a.Decision.Rules) == 0 {
		a.Decision.Rules = nil
	}
	b, err := json.Marshal(struct {
		Principal Principal
		Resource  Resource
		Action    Action
		Settings  map[string]string
		Rules     []RuleRef
	}{p, a.Request.Resource, action, a.Settings, a.Decision.Rules})
	if err != nil { // only strings, numbers and maps of strings
		panic("access: ask digest: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
