package policy

import (
	"fmt"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// maxNearest bounds how many rules one denial compares.
const maxNearest = 64

// unmatched is the decision when no rule matches: a denial that names the rule
// that came closest to letting the request through, and what kept it from it.
func (s *Set) unmatched(e *evaluation, sc *scope) access.Decision {
	d := access.Decision{Effect: access.Deny, Reason: access.NoRule, Revision: s.revision}
	d.Message = "no rule allows " + describe(&e.req)
	best, about := e.nearest(sc)
	switch {
	case best != nil:
		ref := best.rule.ref()
		d.Nearest = &ref
		d.Hint = best.hint(&e.req)
	case about:
		d.Hint = "no rule of the policies that cover you here is about requests of this kind"
		if ssh := e.req.Action.SSH; ssh != nil && len(ssh.Unknown) > 0 {
			d.Hint = "no rule is about commands of which it is not known what they run" + whyUnknownSSH(ssh)
		}
	default:
		d.Message = fmt.Sprintf("no policy covers you on %s", e.req.Resource.Name)
		d.Hint = "ask its owners for a policy that does"
		if groups := e.req.Principal.Groups; len(groups) > 0 {
			d.Hint += "; your groups are " + shortened(strings.Join(groups, ", "))
		}
	}
	return d
}

// A shortfall is a rule that did not match and what its condition came to.
type shortfall struct {
	rule   *rule
	held   int // conjuncts that are true
	failed []conjunctOutcome
}

type conjunctOutcome struct {
	conjunct
	outcome outcome
	err     error
}

// nearest compares the rules that allow or ask for approval by the share of
// their conjuncts that are true, then by how few are not, then by file order.
// about reports whether any policy is about the principal and the resource.
func (e *evaluation) nearest(sc *scope) (best *shortfall, about bool) {
	compared := 0
	for i := range sc.candidates {
		c := &sc.candidates[i]
		if applies, _ := e.applies(c); !applies {
			continue
		}
		about = true
		for _, r := range c.policy.rules {
			if r.effect == access.Deny || r.passedOver(e.req.Action) != "" {
				continue
			}
			if compared++; compared > maxNearest {
				return best, about
			}
			if f := e.shortfallOf(r); f != nil && f.closerThan(best) {
				best = f
			}
		}
	}
	return best, about
}

func (f *shortfall) closerThan(other *shortfall) bool {
	if other == nil {
		return true
	}
	// held/all compared as fractions, without dividing
	mine, theirs := f.held*(other.held+len(other.failed)), other.held*(f.held+len(f.failed))
	if mine != theirs {
		return mine > theirs
	}
	return len(f.failed) < len(other.failed)
}

// shortfallOf returns nil when the conjuncts cannot be told apart.
func (e *evaluation) shortfallOf(r *rule) *shortfall {
	f := &shortfall{rule: r}
	for _, c := range e.conjuncts(r.when) {
		if c.outcome == yes {
			f.held++
		} else {
			f.failed = append(f.failed, c)
		}
	}
	if len(f.failed) == 0 {
		return nil
	}
	return f
}

// conjuncts evaluates every conjunct of c, also after one that is false.
func (e *evaluation) conjuncts(c *condition) []conjunctOutcome {
	if c.explain == nil {
		return nil
	}
	program, err := c.explain()
	if err != nil {
		return nil
	}
	e.count(true)
	_, details, _ := program.Eval(e.frame) // an error of one conjunct is found in its value
	e.spent += e.tracker.ActualCost()
	if e.spent > maxDecisionCost {
		return nil
	}
	terms := c.conjuncts()
	outcomes := make([]conjunctOutcome, 0, len(terms))
	for _, term := range terms {
		v, found := details.State().Value(term.id)
		if !found {
			return nil
		}
		o := conjunctOutcome{conjunct: term}
		if fault, isError := v.(error); isError {
			o.outcome, o.err = failed, fault
		} else {
			o.outcome, o.err = outcomeOf(v, nil)
		}
		outcomes = append(outcomes, o)
	}
	return outcomes
}

// hint says what would have to be true instead, in the words of the rule.
func (f *shortfall) hint(req *access.Request) string {
	terms := make([]string, 0, len(f.failed))
	uncertain := false
	for _, c := range f.failed {
		terms = append(terms, c.text)
		uncertain = uncertain || c.outcome == unknown
	}
	consequence := "allow it"
	if f.rule.effect == access.Approve {
		consequence = "put it before reviewers"
	}
	hint := fmt.Sprintf("rule %s would %s if: %s", f.rule.ref(), consequence, shortened(strings.Join(terms, " && ")))
	if uncertain {
		hint += " (not known here" + whyUnknown(req) + ")"
	}
	return hint
}

// whyUnknown says what about req is not known, after a colon.
func whyUnknown(req *access.Request) string {
	if sql := req.Action.SQL; sql != nil && len(sql.Unknown) > 0 {
		return ": " + shortened(strings.Join(sql.Unknown, "; "))
	}
	if sql := req.Action.SQL; sql != nil && sql.EstimatedRows == nil {
		return ": the database did not estimate its size"
	}
	if ssh := req.Action.SSH; ssh != nil {
		return whyUnknownSSH(ssh)
	}
	if http := req.Action.HTTP; http != nil {
		return ": the body is " + bodyStateName(http.BodyState)
	}
	if k := req.Action.K8s; k != nil {
		switch {
		case k.Verb == "patch":
			return ": a patch does not say what becomes of the object"
		case k.BodyState != access.BodyWhole:
			return ": the body is " + bodyStateName(k.BodyState)
		}
		return ": the object is of a kind, or has fields, that the gateway does not know"
	}
	return ""
}

func bodyStateName(s access.BodyState) string {
	if s == access.BodyNone {
		return "absent"
	}
	return string(s)
}
