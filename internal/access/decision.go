package access

import (
	"fmt"
	"strings"
	"time"
)

// An Effect is what policy says about a Request. The zero Effect denies.
type Effect uint8

const (
	Deny    Effect = iota // refuse
	Approve               // hold until a reviewer answers
	Allow                 // let it through
)

var effectNames = [...]string{"deny", "approve", "allow"}

// String returns deny, approve or allow.
func (e Effect) String() string {
	if int(e) >= len(effectNames) {
		return "deny"
	}
	return effectNames[e]
}

// MarshalText writes the name of the effect.
func (e Effect) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads deny, approve or allow and refuses anything else.
func (e *Effect) UnmarshalText(b []byte) error {
	for i, name := range effectNames {
		if string(b) == name {
			*e = Effect(i)
			return nil
		}
	}
	return fmt.Errorf("effect %q is not deny, approve or allow", b)
}

// A Request is one thing that a principal asks of a resource. ID is unique and
// is what callers quote; Session groups requests.
type Request struct {
	ID        string    `json:"id"`
	Session   string    `json:"session"`
	Time      time.Time `json:"time"`
	Principal Principal `json:"principal"`
	Resource  Resource  `json:"resource"`
	Action    Action    `json:"action"`
}

// A Decision is policy's whole answer to one Request.
type Decision struct {
	Effect      Effect      `json:"effect"`
	Rules       []RuleRef   `json:"rules,omitempty"` // those that gave the effect, the first decides
	Reason      Reason      `json:"reason,omitempty"`
	Message     string      `json:"message,omitempty"` // why, for the caller
	Nearest     *RuleRef    `json:"nearest,omitempty"` // on a denial: the rule that came closest to allowing
	Hint        string      `json:"hint,omitempty"`    // what to do or ask for
	Revision    string      `json:"revision"`
	Time        time.Time   `json:"time,omitzero"` // the now of conditions
	Obligations Obligations `json:"obligations,omitzero"`
}

// Rule returns policy/rule of the rule that decided, or "default-deny".
func (d Decision) Rule() string {
	if len(d.Rules) == 0 {
		return "default-deny"
	}
	return d.Rules[0].String()
}

// A RuleRef names a rule and the exact text it had.
type RuleRef struct {
	Policy string `json:"policy"`
	Rule   string `json:"rule"`
	Hash   string `json:"hash,omitempty"` // digest of the rule as written
}

// String returns policy/rule.
func (r RuleRef) String() string { return r.Policy + "/" + r.Rule }

// Obligations are what the enforcer must do besides letting a request through.
type Obligations struct {
	Masks    []Mask         `json:"masks,omitempty"`
	Limits   Limits         `json:"limits,omitzero"`
	Approval *ApprovalTerms `json:"approval,omitempty"`
	// WriteMasked are columns (schema.table.column) that may be written although
	// they are masked.
	WriteMasked []string `json:"write_masked,omitempty"`
	// SessionMax is how long after its opening a session may still do this
	// though its token has expired; 0 is not at all.
	SessionMax time.Duration `json:"session_max,omitempty"`
	// Account names the counters that the limits of an hour are kept in; the
	// enforcer sets it, not policy.
	Account string `json:"account,omitempty"`
}

// A Mask hides a column (schema.table.column), a JSON field (pointer, * stands
// for any one name or index) or whatever the named detectors find; or it takes
// Secrets of Kubernetes of some types off the mask that their values have
// anyhow. Exactly one of Column, JSON, Detect and SecretsExcept is set.
type Mask struct {
	Column        string   `json:"column,omitempty" yaml:"column"`
	JSON          string   `json:"json,omitempty" yaml:"json"`
	Detect        []string `json:"detect,omitempty" yaml:"detect"`
	SecretsExcept []string `json:"secrets_except,omitempty" yaml:"secrets_except"`
	With          MaskWith `json:"with,omitempty" yaml:"with"`
}

// What names what the mask is about.
func (m Mask) What() string {
	if len(m.SecretsExcept) > 0 {
		return "Secrets except " + strings.Join(m.SecretsExcept, ", ")
	}
	return m.Column + m.JSON + strings.Join(m.Detect, ", ")
}

// A MaskWith says how a mask looks.
type MaskWith string

// The ways to mask. An empty MaskWith is Redact.
const (
	Redact  MaskWith = "redact"  // nothing of the value remains
	Partial MaskWith = "partial" // the last four characters remain
)

// Limits bound what one request may do, and what the requests of a session, and
// of a principal on a resource in an hour, may do together; 0 is no limit.
type Limits struct {
	RowsRead    int64         `json:"rows_read,omitempty" yaml:"rows_read"`
	RowsChanged int64         `json:"rows_changed,omitempty" yaml:"rows_changed"`
	Bytes       int64         `json:"bytes,omitempty" yaml:"bytes"`
	Time        time.Duration `json:"time,omitempty" yaml:"time"`
	Session     Quota         `json:"session,omitzero" yaml:"per_session"`
	Hour        Quota         `json:"hour,omitzero" yaml:"per_hour"`
}

// A Quota bounds what requests may use together; 0 is no limit.
type Quota struct {
	Statements  int64         `json:"statements,omitempty" yaml:"statements"` // or HTTP requests
	RowsRead    int64         `json:"rows_read,omitempty" yaml:"rows_read"`
	RowsChanged int64         `json:"rows_changed,omitempty" yaml:"rows_changed"`
	Bytes       int64         `json:"bytes,omitempty" yaml:"bytes"`
	Time        time.Duration `json:"time,omitempty" yaml:"time"`
}

// ApprovalTerms say who must grant a held request, and for how long the
// question and the grant stand.
type ApprovalTerms struct {
	Groups        []string      `json:"groups" yaml:"groups"`
	Count         int           `json:"count" yaml:"count"`                             // reviewers needed, at least 1
	Expires       time.Duration `json:"expires" yaml:"expires"`                         // pending for this long
	Window        time.Duration `json:"window,omitempty" yaml:"window"`                 // 0: the grant serves once
	InTransaction bool          `json:"in_transaction,omitempty" yaml:"in_transaction"` // may hold inside an open transaction
}
