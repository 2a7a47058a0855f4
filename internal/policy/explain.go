package policy

import (
	"fmt"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// An Explanation is the whole evaluation of one request: what every policy and
// rule came to, and the decision. Everything is evaluated, without the index
// and the memory that Decide uses, so that the two can be compared.
type Explanation struct {
	Decision access.Decision `json:"decision"`
	Policies []PolicyTrace   `json:"policies"`
}

// A PolicyTrace is what one policy came to. Rules is empty unless it applies.
type PolicyTrace struct {
	Policy    string      `json:"policy"`
	File      string      `json:"file"`
	Applies   bool        `json:"applies"`
	Principal []TermTrace `json:"principal"`
	Resource  []TermTrace `json:"resource"`
	Error     string      `json:"error,omitempty"` // why the policy could not be evaluated
	Rules     []RuleTrace `json:"rules,omitempty"`
}

// A RuleTrace is what one rule came to.
type RuleTrace struct {
	Rule    access.RuleRef `json:"rule"`
	At      string         `json:"at"` // file:line:column
	Effect  access.Effect  `json:"effect"`
	Matched bool           `json:"matched"`
	Decides bool           `json:"decides"`
	Skipped string         `json:"skipped,omitempty"` // why the condition was not evaluated
	Error   string         `json:"error,omitempty"`
	Terms   []TermTrace    `json:"terms,omitempty"`
}

// A TermTrace is one conjunct of a condition: true, false, unknown or error.
type TermTrace struct {
	Text  string `json:"text"`
	Value string `json:"value"`
	Error string `json:"error,omitempty"`
}

// Explain evaluates every policy for req as of now, and decides.
func (s *Set) Explain(req access.Request, now time.Time) (x Explanation) {
	x.Decision = s.Decide(req, now)
	if s.empty() {
		return x
	}
	defer func() {
		if recover() != nil {
			x.Policies = nil // the decision says so
		}
	}()
	t := &target{resource: req.Resource}
	t.object = newObject(s.env.vocabulary.resource, &t.resource, s.env.box).filled()
	sc := &scope{target: t, principal: req.Principal}
	sc.object = newObject(s.env.vocabulary.principal, &sc.principal, s.env.box).filled()
	e := s.begin()
	e.of(&req, sc, now)
	deciding := map[string]bool{}
	for _, ref := range x.Decision.Rules {
		deciding[ref.String()] = true
	}
	for _, p := range s.policies {
		e.spent = 0 // an explanation covers policies that a decision would not touch
		x.Policies = append(x.Policies, e.tracePolicy(p, deciding))
	}
	s.end(e)
	return x
}

func (e *evaluation) tracePolicy(p *policy, deciding map[string]bool) PolicyTrace {
	t := PolicyTrace{Policy: p.name, File: p.file, Principal: e.terms(p.principal), Resource: e.terms(p.resource)}
	whose, err := e.run(p.principal)
	which, err2 := e.run(p.resource)
	if err == nil {
		err = err2
	}
	if whose == no || which == no {
		return t
	}
	if err != nil {
		t.Error = err.Error()
		return t
	}
	t.Applies = true
	for _, r := range p.rules {
		t.Rules = append(t.Rules, e.traceRule(r, deciding))
	}
	return t
}

func (e *evaluation) traceRule(r *rule, deciding map[string]bool) RuleTrace {
	t := RuleTrace{Rule: r.ref(), At: r.at.String(), Effect: r.effect, Decides: deciding[r.ref().String()]}
	if t.Skipped = r.passedOver(e.req.Action); t.Skipped != "" {
		return t
	}
	out, err := e.run(r.when)
	if err != nil {
		t.Error = err.Error()
	}
	t.Matched = out == yes || out == unknown && r.effect == access.Deny
	t.Terms = e.terms(r.when)
	return t
}

func (e *evaluation) terms(c *condition) []TermTrace {
	if c.always {
		return []TermTrace{{Text: "true", Value: yes.String()}}
	}
	var terms []TermTrace
	for _, o := range e.conjuncts(c) {
		t := TermTrace{Text: o.text, Value: o.outcome.String()}
		if o.err != nil {
			t.Error = o.err.Error()
		}
		terms = append(terms, t)
	}
	return terms
}

// String renders the explanation for a terminal: the decision, then the
// policies that apply with all their rules, then those that do not.
func (x Explanation) String() string {
	var b strings.Builder
	d := x.Decision
	fmt.Fprintf(&b, "%s by %s (revision %s)\n", d.Effect, d.Rule(), d.Revision)
	for _, line := range []string{d.Message, d.Hint} {
		if line != "" {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	x.writeObligations(&b)
	for _, p := range x.Policies {
		if p.Applies {
			p.write(&b, d)
		}
	}
	for _, p := range x.Policies {
		if !p.Applies {
			p.write(&b, d)
		}
	}
	return b.String()
}

// writeObligations says what the enforcer must do.
func (x Explanation) writeObligations(b *strings.Builder) {
	if x.Decision.Effect == access.Deny {
		return
	}
	o := x.Decision.Obligations
	for _, m := range o.Masks {
		fmt.Fprintf(b, "  masks %s\n", describeMask(m))
	}
	if limits := asWritten(o.Limits); limits != "{}" {
		fmt.Fprintf(b, "  limits %s\n", limits)
	}
	for _, column := range o.WriteMasked {
		fmt.Fprintf(b, "  may write %s although it is masked\n", column)
	}
	if o.SessionMax > 0 {
		fmt.Fprintf(b, "  session until %s after its opening\n", o.SessionMax)
	}
	if o.Approval != nil {
		fmt.Fprintf(b, "  approval %s\n", asWritten(*o.Approval))
	}
}

func (p PolicyTrace) write(b *strings.Builder, d access.Decision) {
	state := "applies"
	if !p.Applies {
		state = "does not apply"
	}
	if p.Error != "" {
		state = "could not be evaluated: " + p.Error
	}
	fmt.Fprintf(b, "policy %s (%s) %s\n", p.Policy, p.File, state)
	if !p.Applies {
		writeTerms(b, "  principal", p.Principal)
		writeTerms(b, "  resource", p.Resource)
	}
	for _, r := range p.Rules {
		state := "does not match"
		switch {
		case r.Error != "":
			state = "could not be evaluated: " + r.Error
		case r.Skipped != "":
			state = "is passed over: " + r.Skipped
		case r.Decides:
			state = "matches and decides"
		case r.Matched && r.Effect > d.Effect:
			state = fmt.Sprintf("matches, but %s beats %s", d.Effect, r.Effect)
		case r.Matched:
			state = "matches"
		}
		fmt.Fprintf(b, "  rule %s (%s) %s\n", r.Rule.Rule, r.Effect, state)
		writeTerms(b, "   ", r.Terms)
	}
}

func writeTerms(b *strings.Builder, label string, terms []TermTrace) {
	for _, t := range terms {
		fmt.Fprintf(b, "%s %-7s %s", label, t.Value, t.Text)
		if t.Error != "" {
			fmt.Fprintf(b, " (%s)", t.Error)
		}
		fmt.Fprintln(b)
	}
}
