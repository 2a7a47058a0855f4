package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds on what one Replay remembers, however long the recording is.
const (
	maxFlipGroups = 10_000
	maxDecidedIDs = 1 << 15 // of a generation, of which two are kept
	maxRevisions  = 100
	maxReasons    = 100
)

// A Replay decides recorded requests again by another Set, as of the time of
// the first decision, and compares. It serves one goroutine. What it remembers
// is bounded.
type Replay struct {
	set         *Set
	report      ReplayReport
	groups      map[flipKey]*Flip
	notReplayed map[string]int
	revisions   map[string]bool
	// decided are requests that were seen with their input: a refusal of one of
	// them says nothing new about policy.
	decided, before map[string]struct{}
}

// A ReplayReport is what came of a Replay.
type ReplayReport struct {
	Revision  string   `json:"revision"`  // of the set that was tried
	Recorded  []string `json:"recorded"`  // revisions that decided then
	Decisions int      `json:"decisions"` // that were decided again
	Flipped   int      `json:"flipped"`   // of them
	// OtherRule counts the decisions that came to the same by another rule, or
	// by a rule with another text. They are no flips.
	OtherRule   int           `json:"other_rule"`
	Flips       []Flip        `json:"flips"` // the most frequent first
	Omitted     int           `json:"omitted,omitempty"`
	NotReplayed []NotReplayed `json:"not_replayed,omitempty"`
}

// A Flip is all decisions of one principal on one resource that changed from
// one outcome to another.
type Flip struct {
	Principal Caller    `json:"principal"`
	Resource  string    `json:"resource"`
	From      Outcome   `json:"from"`
	To        Outcome   `json:"to"`
	Changed   []string  `json:"changed"` // effect, masks, limits, approval
	Count     int       `json:"count"`
	Example   string    `json:"example"` // request id of the first
	Detail    []string  `json:"detail"`  // what changed in it, in words
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
}

// A Caller is what a report tells principals apart by.
type Caller struct {
	Issuer   string `json:"issuer"`
	Subject  string `json:"subject"`
	User     string `json:"user,omitempty"`
	Subagent string `json:"subagent,omitempty"`
	Workflow string `json:"workflow,omitempty"`
}

// String is the person, the program and the workflow, or the subject.
func (c Caller) String() string {
	name := cmp.Or(c.User, c.Subject)
	if c.Subagent != "" {
		name += " by " + c.Subagent
	}
	if c.Workflow != "" {
		name += " in " + c.Workflow
	}
	return name
}

// An Outcome is an effect and the rule that gave it.
type Outcome struct {
	Effect access.Effect `json:"effect"`
	Rule   string        `json:"rule"` // policy/rule, or default-deny
}

// String returns "allow by policy/rule".
func (o Outcome) String() string { return o.Effect.String() + " by " + o.Rule }

// A NotReplayed is a number of refusals whose decision cannot be made again.
type NotReplayed struct {
	Why   string `json:"why"`
	Count int    `json:"count"`
}

type flipKey struct {
	principal Caller
	resource  string
	from, to  Outcome
	changed   string
}

// NewReplay returns a Replay of s.
func NewReplay(s *Set) *Replay {
	return &Replay{
		set: s, groups: map[flipKey]*Flip{}, notReplayed: map[string]int{}, revisions: map[string]bool{},
		decided: map[string]struct{}{}, report: ReplayReport{Revision: s.Revision()},
	}
}

// ReplayTypes are the types of event that Add takes; it ignores others.
func ReplayTypes() []string { return []string{"decided", "denied"} }

// Add takes one recorded event, in the order of the recording.
func (r *Replay) Add(ev access.Event) {
	switch {
	case ev.Decided != nil:
		r.remember(ev.Request)
		r.decide(ev.Decided)
	case ev.Denied != nil:
		if !r.knows(ev.Request) && !r.knows(ev.Denied.Denial.RequestID) {
			r.skip("recorded without the input of a decision: " + string(ev.Denied.Denial.Reason))
		}
	}
}

func (r *Replay) skip(why string) {
	if _, known := r.notReplayed[why]; !known && len(r.notReplayed) >= maxReasons {
		why = "for other reasons"
	}
	r.notReplayed[why]++
}

func (r *Replay) remember(id string) {
	if len(r.decided) == maxDecidedIDs {
		r.decided, r.before = map[string]struct{}{}, r.decided
	}
	r.decided[id] = struct{}{}
}

func (r *Replay) knows(id string) bool {
	_, now := r.decided[id]
	_, before := r.before[id]
	return now || before
}

// decide makes one decision again.
func (r *Replay) decide(recorded *access.Decided) {
	old := recorded.Decision
	if old.Reason == access.Unavailable {
		r.skip("the gateway could not decide then: " + old.Message)
		return
	}
	if len(r.revisions) < maxRevisions {
		r.revisions[old.Revision] = true
	}
	r.report.Decisions++
	decision := r.set.Decide(recorded.Request, DecidedAt(recorded))
	changed, detail := compareDecisions(old, decision)
	if len(changed) == 0 {
		if !slices.Equal(old.Rules, decision.Rules) {
			r.report.OtherRule++
		}
		return
	}
	r.flip(recorded, decision, changed, detail)
}

// DecidedAt is the time that conditions had as now in a recorded decision.
func DecidedAt(recorded *access.Decided) time.Time {
	if t := recorded.Decision.Time; !t.IsZero() {
		return t
	}
	return recorded.Request.Time
}

func (r *Replay) flip(recorded *access.Decided, decision access.Decision, changed, detail []string) {
	r.report.Flipped++
	p, at := &recorded.Request.Principal, DecidedAt(recorded)
	key := flipKey{
		principal: Caller{p.Issuer, p.Subject, p.User, p.Subagent, p.Workflow}, resource: recorded.Request.Resource.Name,
		from: outcomeIn(recorded.Decision), to: outcomeIn(decision), changed: strings.Join(changed, " "),
	}
	f := r.groups[key]
	if f == nil {
		if len(r.groups) == maxFlipGroups {
			r.report.Omitted++
			return
		}
		f = &Flip{Principal: key.principal, Resource: key.resource, From: key.from, To: key.to, Changed: changed,
			Example: recorded.Request.ID, Detail: detail, First: at, Last: at}
		r.groups[key] = f
	}
	f.Count++
	if at.Before(f.First) {
		f.First = at
	}
	if at.After(f.Last) {
		f.Last = at
	}
}

func outcomeIn(d access.Decision) Outcome { return Outcome{d.Effect, d.Rule()} }

// Report is what came of everything added so far.
func (r *Replay) Report() ReplayReport {
	report := r.report
	report.Recorded = slices.Sorted(maps.Keys(r.revisions))
	report.Flips = make([]Flip, 0, len(r.groups))
	for _, f := range r.groups {
		report.Flips = append(report.Flips, *f)
	}
	slices.SortFunc(report.Flips, func(a, b Flip) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Principal.String(), b.Principal.String()),
			cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.From.String(), b.From.String()),
			cmp.Compare(a.To.String(), b.To.String()), cmp.Compare(a.Example, b.Example))
	})
	for _, why := range slices.Sorted(maps.Keys(r.notReplayed)) {
		report.NotReplayed = append(report.NotReplayed, NotReplayed{why, r.notReplayed[why]})
	}
	return report
}

// compareDecisions lists what an enforcer would do otherwise. Rules, messages
// and hints do not count, nor what a denial would have obliged to.
func compareDecisions(old, decision access.Decision) (changed, detail []string) {
	note := func(what, format string, args ...any) {
		if !slices.Contains(changed, what) {
			changed = append(changed, what)
		}
		detail = append(detail, fmt.Sprintf(format, args...))
	}
	if old.Effect != decision.Effect {
		note("effect", "%s becomes %s", old.Effect, decision.Effect)
	}
	if old.Effect == access.Deny || decision.Effect == access.Deny {
		return changed, detail
	}
	a, b := old.Obligations, decision.Obligations
	for _, m := range masksBut(a.Masks, b.Masks) {
		note("masks", "no longer masked: %s", describeMask(m))
	}
	for _, m := range masksBut(b.Masks, a.Masks) {
		note("masks", "now masked: %s", describeMask(m))
	}
	if asJSON(a.Limits) != asJSON(b.Limits) {
		note("limits", "limits %s become %s", asWritten(a.Limits), asWritten(b.Limits))
	}
	if !slices.Equal(a.WriteMasked, b.WriteMasked) {
		note("write_masked", "masked columns that may be written: %s become %s", asJSON(a.WriteMasked), asJSON(b.WriteMasked))
	}
	if a.SessionMax != b.SessionMax {
		note("session", "a session may go on for %s, not %s", b.SessionMax, a.SessionMax)
	}
	if a.Approval != nil && b.Approval != nil && asJSON(a.Approval) != asJSON(b.Approval) {
		note("approval", "approval %s becomes %s", asWritten(*a.Approval), asWritten(*b.Approval))
	}
	return changed, detail
}

// masksBut returns the masks of a that are not in b.
func masksBut(a, b []access.Mask) []access.Mask {
	var rest []access.Mask
	for _, m := range a {
		if !slices.ContainsFunc(b, func(other access.Mask) bool { return equalMasks(m, other) }) {
			rest = append(rest, m)
		}
	}
	return rest
}

func describeMask(m access.Mask) string {
	what := m.What()
	if m.With == access.Partial {
		what += " (all but the end)"
	}
	return what
}

// asJSON renders v for a comparison or a message.
func asJSON(v any) string {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
