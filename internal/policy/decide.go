package policy

import (
	"fmt"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// Decide answers req as of now. It never fails: whatever goes wrong denies.
// Conditions that read the time get now; a zero req.Time counts as now. The
// slices of the decision are shared and must not be written.
func (s *Set) Decide(req access.Request, now time.Time) (d access.Decision) {
	defer func() {
		if r := recover(); r != nil {
			d = s.broken("evaluating the policies failed")
		}
		d.Time = now
	}()
	if s.empty() {
		return s.broken("no policies are loaded")
	}
	if len(kindsOf(req.Action)) != 1 {
		return access.Decision{Effect: access.Deny, Reason: access.Unsupported, Message: "the request holds no single action", Revision: s.revision}
	}
	if d, beyond := s.beyondDelegation(&req); beyond {
		return d
	}
	sc := s.scope(&req.Principal, &req.Resource)
	e := s.begin()
	e.of(&req, sc, now)
	d = s.decide(e, sc)
	s.end(e)
	if req.Action.SQL != nil && d.Effect != access.Deny {
		boundRows(&d.Obligations.Limits, req.Principal.Rows())
	}
	return d
}

// broken is the decision when there is nothing to decide by.
func (s *Set) broken(message string) access.Decision {
	d := access.Decision{Effect: access.Deny, Reason: access.Unavailable, Message: message, Revision: "rev_none"}
	if s != nil && s.revision != "" {
		d.Revision = s.revision
	}
	return d
}

// decide evaluates every rule that could match, in file order.
func (s *Set) decide(e *evaluation, sc *scope) access.Decision {
	var failure *access.Decision
	fail := func(p *policy, r *rule, err error) {
		if failure == nil {
			failure = s.failure(p, r, err)
		}
	}
	for i := range sc.candidates {
		c := &sc.candidates[i]
		applies, err := e.applies(c)
		if err != nil {
			fail(c.policy, nil, err)
		}
		if !applies {
			continue
		}
		for _, r := range c.policy.rules {
			if r.passedOver(e.req.Action) != "" {
				continue
			}
			out, err := e.run(r.when)
			switch {
			case err != nil:
				fail(c.policy, r, err)
			case out == yes:
				e.matched[r.effect] = append(e.matched[r.effect], r)
			case out == unknown && r.effect == access.Deny:
				e.suspects = append(e.suspects, r)
			}
		}
	}
	denies, approvals, allows := e.matched[access.Deny], e.matched[access.Approve], e.matched[access.Allow]
	switch {
	case len(denies) > 0:
		return s.forbidden(e, denies)
	case failure != nil:
		return *failure
	case len(e.suspects) > 0:
		return s.suspected(e)
	case len(approvals) > 0:
		return s.held(e, sc, approvals, allows)
	case len(allows) > 0:
		return access.Decision{Effect: access.Allow, Rules: refsOf(allows), Message: allows[0].message, Revision: s.revision, Obligations: sc.obligations(nil, allows)}
	}
	return s.unmatched(e, sc)
}

// applies reports whether the candidate's policy is about this request.
func (e *evaluation) applies(c *candidate) (bool, error) {
	if !c.volatile {
		return c.fault == nil, c.fault
	}
	out, err := e.run(c.policy.principal)
	if err != nil || out == yes && c.fault != nil {
		if c.fault != nil {
			err = c.fault
		}
		return false, err
	}
	return out == yes, nil
}

func refsOf(rules []*rule) []access.RuleRef {
	if len(rules) == 1 {
		return rules[0].refs
	}
	refs := make([]access.RuleRef, len(rules))
	for i, r := range rules {
		refs[i] = r.ref()
	}
	return refs
}

// failure is the decision when a condition could not be evaluated; r is nil
// when it is one of the policy's own.
func (s *Set) failure(p *policy, r *rule, err error) *access.Decision {
	d := &access.Decision{Effect: access.Deny, Reason: access.DeniedByRule, Revision: s.revision}
	if r != nil {
		d.Rules = r.refs
		d.Message = fmt.Sprintf("the condition of rule %s could not be evaluated: %s", r.ref(), err)
	} else {
		d.Message = fmt.Sprintf("the conditions of policy %s could not be evaluated: %s", p.name, err)
	}
	d.Hint = "a condition that fails denies; ask the owners of policy " + p.name
	return d
}

func (s *Set) forbidden(e *evaluation, denies []*rule) access.Decision {
	d := access.Decision{Effect: access.Deny, Rules: refsOf(denies), Reason: access.DeniedByRule, Message: denies[0].message, Revision: s.revision}
	if d.Message == "" {
		d.Message = fmt.Sprintf("rule %s forbids %s", denies[0].ref(), describe(&e.req))
	}
	return d
}

// suspected is the decision when rules that deny depend on what is not known
// about the request: what cannot be ruled out denies.
func (s *Set) suspected(e *evaluation) access.Decision {
	ref := e.suspects[0].ref()
	return access.Decision{
		Effect: access.Deny, Rules: refsOf(e.suspects), Reason: access.Unreadable, Revision: s.revision,
		Message: fmt.Sprintf("it cannot be ruled out that rule %s forbids %s%s", ref, describe(&e.req), whyUnknown(&e.req)),
		Hint:    "ask for it in a form that can be read whole, or ask the owners of policy " + ref.Policy,
	}
}

func (s *Set) held(e *evaluation, sc *scope, approvals, allows []*rule) access.Decision {
	d := access.Decision{
		Effect: access.Approve, Rules: refsOf(approvals), Reason: access.ApprovalRequired, Message: approvals[0].message,
		Revision: s.revision, Obligations: sc.obligations(approvals, allows),
	}
	if d.Message == "" {
		d.Message = "rule " + approvals[0].ref().String() + " holds " + describe(&e.req) + " until " + granters(d.Obligations.Approval) + " it"
	}
	return d
}

// granters says who must grant: "a member of dba grants".
func granters(terms *access.ApprovalTerms) string {
	groups := strings.Join(terms.Groups, " or ")
	if terms.Count == 1 {
		return "a member of " + groups + " grants"
	}
	return fmt.Sprintf("%d members of %s grant", terms.Count, groups)
}

// describe names the action and its resource in a few words.
func describe(req *access.Request) string {
	what := "this"
	switch a := req.Action; {
	case a.SQL != nil && a.SQL.Command != "":
		what = a.SQL.Command
	case a.SQL != nil:
		what = "this statement"
	case a.HTTP != nil:
		what = a.HTTP.Method + " " + shortened(a.HTTP.Path)
	case a.SSH != nil:
		what = shortened(a.SSH.String())
	case a.K8s != nil:
		what = shortened(a.K8s.String())
	}
	return what + " on " + req.Resource.Name
}

const maxQuoted = 300 // characters of a condition or a path in a message

func shortened(text string) string {
	if runes := []rune(text); len(runes) > maxQuoted {
		return string(runes[:maxQuoted]) + "…"
	}
	return text
}
