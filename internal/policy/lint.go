package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"chaperone.dev/chaperone/internal/access"
)

// A Severity says how sure it is that a finding is a mistake.
type Severity string

// The severities. Only an error must be a mistake.
const (
	LintError   Severity = "error"
	LintWarning Severity = "warning"
	LintNote    Severity = "note"
)

// A Finding is something in a policy that its author hardly meant.
type Finding struct {
	At       string         `json:"at"` // file:line:column
	Code     string         `json:"code"`
	Severity Severity       `json:"severity"`
	Rule     access.RuleRef `json:"rule"`
	Message  string         `json:"message"` // what is wrong
	Advice   string         `json:"advice"`  // what to do
}

// String returns "file:line:column: severity: rule: message (code)".
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s: %s (%s)", f.At, f.Severity, f.Rule, f.Message, f.Code)
}

// Surroundings are what a configuration tells Lint. A nil member is not known.
type Surroundings struct {
	Resources []access.Resource
	Reviewers []string // groups that may answer approvals at all
}

// maxCompared bounds how many pairs of rules of different policies are compared.
const maxCompared = 200_000

// Lint looks for rules that cannot do what they seem to. That a rule never
// matches, or never lets anything through, is said only when it is proved, for
// requests whose action is of the resource's kind. around may be nil.
func (s *Set) Lint(around *Surroundings) []Finding {
	l := &linter{around: around, against: map[*condition][]clause{}}
	if around != nil && around.Resources != nil {
		l.covering = s.coveringAny(around.Resources)
	}
	for _, p := range s.policies {
		l.policy(p)
	}
	l.shadows()
	slices.SortStableFunc(l.findings, func(a, b Finding) int { return comparePlaces(a.At, b.At) })
	return l.findings
}

type linter struct {
	around   *Surroundings
	covering map[*policy]bool // policies that may be about a configured resource; nil when none are known
	findings []Finding
	live     []*livingRule
	against  map[*condition][]clause // the ways in which each is false
}

// A livingRule is one that may match, and all that is known when it does.
type livingRule struct {
	*rule
	ways  []clause
	texts map[string]bool // conjuncts that are true then
}

func (l *linter) find(r *rule, severity Severity, code, message, advice string) {
	l.findings = append(l.findings, Finding{r.at.String(), code, severity, r.ref(), message, advice})
}

func (l *linter) policy(p *policy) {
	about := both(clausesOf(p.principal, false), clausesOf(p.resource, false))
	if l.covering != nil && !l.covering[p] {
		l.find(p.rules[0], LintWarning, "no-such-resource", "no configured resource fits the policy's resource condition",
			"correct the condition, or configure the resource")
	}
	for _, r := range p.rules {
		ways := l.waysOf(r, about)
		if len(ways) == 0 {
			l.unreachable(r, about)
			continue
		}
		l.live = append(l.live, &livingRule{r, ways, conjunctTexts(p.principal, p.resource, r.when)})
		l.masks(r, ways)
		l.scope(r, both(about, clausesOf(r.when, false)))
		l.reviewers(r)
	}
}

// waysOf are the ways in which r can match. A rule that denies matches what is
// unknown too, so there only what is certain counts.
func (l *linter) waysOf(r *rule, about []clause) []clause {
	when := clausesOf(r.when, r.effect == access.Deny)
	if kind := kindRead(r.when); kind != "" {
		about = both(about, onKind(kind))
	}
	return both(about, when)
}

// kindRead is the kind of resource that has the actions which a condition reads.
func kindRead(c *condition) access.Kind {
	for _, k := range c.reads.kinds() {
		return k.kind
	}
	return ""
}

func onKind(kind access.Kind) []clause {
	return []clause{{fact{term: kindTerm, kind: oneOf, values: []ref.Val{types.String(kind)}}}}
}

func (l *linter) unreachable(r *rule, about []clause) {
	kind := kindRead(r.when)
	switch {
	case len(about) == 0:
		l.find(r, LintError, "unreachable", "the policy's principal and resource conditions cannot hold together", "correct them; every rule of the policy is without effect")
	case kind != "" && len(both(about, onKind(kind))) == 0:
		what := r.when.reads.kinds()[0].variable
		l.find(r, LintError, "other-kind", fmt.Sprintf("it reads %s, and the policy is never about a resource of kind %s", what, kind),
			"read what such a resource has, or move the rule to a policy about "+string(kind))
	default:
		l.find(r, LintError, "unreachable", "its condition contradicts itself or the policy's: no request matches", "correct the condition, or remove the rule")
	}
}

// masks finds masks that no answer can have.
func (l *linter) masks(r *rule, ways []clause) {
	may := func(kind access.Kind) bool { return len(both(ways, onKind(kind))) > 0 }
	for _, m := range r.masks {
		switch {
		case m.Column != "" && !may(access.Postgres):
			l.find(r, LintError, "mask-never", fmt.Sprintf("the mask of column %s is never applied: the rule is not about databases", m.Column),
				"name the field by its JSON pointer: {json: /…}")
		case m.JSON != "" && !may(access.HTTP) && !may(access.Kubernetes):
			l.find(r, LintError, "mask-never", fmt.Sprintf("the mask of JSON field %s belongs to HTTP and Kubernetes, which the rule is not about: the gateway refuses what it lets through", m.JSON),
				"name the column: {column: schema.table.column}")
		case len(m.SecretsExcept) > 0 && !may(access.Kubernetes):
			l.find(r, LintError, "mask-never", "secrets_except is about Kubernetes, and the rule is not", "remove it")
		}
	}
}

// scope finds rules that let through without saying where or whom. ways are the
// conditions' own: that a rule reads sql says nothing about which database.
func (l *linter) scope(r *rule, ways []clause) {
	if r.effect == access.Deny {
		return
	}
	if !mentions(ways, "resource") {
		l.find(r, LintWarning, "any-resource", "it lets through on every resource, also on those that are configured later",
			"say which in the policy's resource condition")
	}
	if !mentions(ways, "principal") {
		l.find(r, LintWarning, "anybody", "it lets everybody through who has a valid token", "say whom in the policy's principal condition")
	}
}

func (l *linter) reviewers(r *rule) {
	if r.approval == nil || l.around == nil || l.around.Reviewers == nil {
		return
	}
	groups := strings.Join(r.approval.Groups, ", ")
	switch {
	case len(l.around.Reviewers) == 0:
		l.find(r, LintError, "no-reviewer", "nobody can grant it: people.reviewer in the configuration is empty", "name the groups of reviewers there")
	case !slices.ContainsFunc(r.approval.Groups, func(g string) bool { return slices.Contains(l.around.Reviewers, g) }):
		l.find(r, LintWarning, "no-reviewer", fmt.Sprintf("none of its groups (%s) is in people.reviewer: only their members who are also in %s can answer", groups, strings.Join(l.around.Reviewers, ", ")),
			"add one of them to people.reviewer, or name other groups")
	}
}

// coveringAny are the policies that may be about one of the resources.
func (s *Set) coveringAny(resources []access.Resource) map[*policy]bool {
	covering := map[*policy]bool{}
	for i := range resources {
		for _, c := range s.newTarget(&resources[i]).covering {
			covering[c.policy] = true
		}
	}
	return covering
}

// shadows finds rules that let nothing through, because another rule denies, or
// holds, all that they match.
func (l *linter) shadows() {
	var stronger []*livingRule
	for _, r := range l.live {
		if r.effect != access.Allow {
			stronger = append(stronger, r)
		}
	}
	compared, noted := 0, false
	for _, r := range l.live {
		if r.effect == access.Deny {
			continue
		}
		by := slices.IndexFunc(stronger, func(by *livingRule) bool {
			if by.effect >= r.effect {
				return false
			}
			if by.policy != r.policy {
				compared++
			}
			return (by.policy == r.policy || compared <= maxCompared) && l.covers(by, r)
		})
		switch {
		case by >= 0:
			l.shadowed(r, stronger[by])
		case compared > maxCompared && !noted:
			noted = true
			l.find(r.rule, LintNote, "not-compared", "from here on rules are compared with those of their own policy only: there are too many", "lint fewer at a time")
		}
	}
}

func (l *linter) shadowed(r, by *livingRule) {
	where := ""
	if by.policy != r.policy {
		where = " (" + by.at.String() + ")"
	}
	if by.effect == access.Approve {
		l.find(r.rule, LintWarning, "shadowed", fmt.Sprintf("rule %s%s asks for approval of all that it matches: it allows nothing by itself, but its masks and limits count", by.ref(), where),
			"narrow one of the two")
		return
	}
	severity := LintWarning // a policy that closes something for a while is meant so
	if by.policy == r.policy {
		severity = LintError
	}
	l.find(r.rule, severity, "shadowed", fmt.Sprintf("rule %s%s denies all that it matches", by.ref(), where), "narrow one of the two, or remove this rule")
}

// covers reports whether by takes effect whenever r matches. A condition of by
// that fails then denies, and so does an unknown one of a rule that denies; one
// that asks for approval must be known to hold.
func (l *linter) covers(by, r *livingRule) bool {
	if by.policy != r.policy && !(l.implied(by.policy.principal, r, true) && l.implied(by.policy.resource, r, true)) {
		return false
	}
	if kind := kindRead(by.when); kind != "" && kindRead(r.when) != kind {
		return false
	}
	return l.implied(by.when, r, by.effect == access.Deny)
}

// implied reports whether c holds whenever r matches. With proof it may be shown
// by contradiction, which says nothing of what is unknown; without, the terms of
// c must stand in r.
func (l *linter) implied(c *condition, r *livingRule, proof bool) bool {
	if c.always {
		return true
	}
	if !slices.ContainsFunc(c.conjuncts(), func(term conjunct) bool { return !r.texts[term.text] }) {
		return true
	}
	if !proof {
		return false
	}
	against, known := l.against[c]
	if !known {
		against = clausesAgainst(c)
		l.against[c] = against
	}
	return len(both(r.ways, against)) == 0
}

func conjunctTexts(conditions ...*condition) map[string]bool {
	texts := map[string]bool{}
	for _, c := range conditions {
		if c.always {
			continue
		}
		for _, term := range c.conjuncts() {
			if term.text != unquotable {
				texts[term.text] = true
			}
		}
	}
	return texts
}

// comparePlaces orders file:line:column by file, then by number.
func comparePlaces(a, b string) int {
	split := func(at string) (file string, line, column int) {
		parts := strings.Split(at, ":")
		if n := len(parts); n >= 3 {
			fmt.Sscan(parts[n-2], &line)
			fmt.Sscan(parts[n-1], &column)
			return strings.Join(parts[:n-2], ":"), line, column
		}
		return at, 0, 0
	}
	fileA, lineA, columnA := split(a)
	fileB, lineB, columnB := split(b)
	return cmp.Or(cmp.Compare(fileA, fileB), cmp.Compare(lineA, lineB), cmp.Compare(columnA, columnB))
}
