package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/strictyaml"
)

// A Set is every policy of one revision, compiled. It never changes and is safe
// for concurrent use. What it remembers about principals and resources is
// bounded and goes with it.
type Set struct {
	revision string
	policies []*policy // in file order
	// estimates says that some rule reads the estimate of a statement.
	estimates bool
	env       *environment
	seed      maphash.Seed
	targets   *cache[*target]
	scopes    *cache[*scope]
	idle      sync.Pool // of *evaluation
}

// A policy is one compiled file.
type policy struct {
	name        string
	file        string
	description string
	principal   *condition
	resource    *condition
	rules       []*rule
	needs       requirement
}

// A rule is one compiled rule. Its slices are shared with decisions and never
// written again.
type rule struct {
	policy      *policy
	refs        []access.RuleRef // exactly one: itself
	effect      access.Effect
	when        *condition
	message     string
	masks       []access.Mask
	limits      access.Limits
	session     time.Duration // how long a session may outlive its token
	writeMasked []string
	approval    *access.ApprovalTerms
	at          strictyaml.Position
}

func (r *rule) ref() access.RuleRef { return r.refs[0] }

// passedOver returns why the rule cannot be about the action, whatever its
// condition says, or "": a condition on sql never matches an HTTP request, nor
// the other way around; and what a command runs being unknown, only a rule that
// speaks of it (ssh.unknown) lets it through.
func (r *rule) passedOver(a access.Action) string {
	for _, k := range actionKinds() {
		if r.when.reads.has(k.reads) && !k.asked(a) {
			return "its condition is about another kind of request"
		}
	}
	if r.effect == access.Allow && a.SSH != nil && len(a.SSH.Unknown) > 0 && !r.when.reads.has(readsUnknown) {
		return "what the command runs is not known, and its condition does not read ssh.unknown"
	}
	return ""
}

// empty reports whether there is nothing to decide by: no Set, or the zero Set.
func (s *Set) empty() bool { return s == nil || s.env == nil }

// Revision names the set's content: "rev_" and 12 hexadecimal digits. Two sets
// with the same policies have the same revision; comments and layout of the
// files do not count.
func (s *Set) Revision() string { return s.revision }

// Rules names every rule, in file order.
func (s *Set) Rules() []access.RuleRef {
	var refs []access.RuleRef
	for _, p := range s.policies {
		for _, r := range p.rules {
			refs = append(refs, r.ref())
		}
	}
	return refs
}

// newSet joins compiled policies, which are in file order.
func newSet(env *environment, policies []*policy) *Set {
	s := &Set{
		policies: policies,
		env:      env,
		seed:     maphash.MakeSeed(),
		targets:  newCache[*target](maxTargetWeight),
		scopes:   newCache[*scope](maxScopeWeight),
	}
	sum := sha256.New()
	for _, p := range policies {
		fmt.Fprintf(sum, "%q %q %q %q\n", p.name, p.description, p.principal.source, p.resource.source)
		for _, r := range p.rules {
			fmt.Fprintln(sum, r.ref().Hash)
			s.estimates = s.estimates || r.when.reads.has(readsEstimate)
		}
	}
	s.revision = "rev_" + hex.EncodeToString(sum.Sum(nil))[:12]
	s.idle.New = func() any { return newEvaluation(s) }
	return s
}

// ruleHash is the digest of everything that the rule says, its policy's
// conditions and the named ones that they call included. Layout and comments do not count.
func ruleHash(p *policyFile, r *ruleFile, built *rule, named map[string]string) string {
	b, err := json.Marshal(struct {
		Policy, Principal, Resource, Rule, When, Message string
		Effect                                           access.Effect
		Masks                                            []access.Mask
		Limits                                           access.Limits
		Approval                                         *access.ApprovalTerms
		Conditions                                       map[string]string `json:",omitempty"`
		SessionMax                                       time.Duration     `json:",omitempty"`
		WriteMasked                                      []string          `json:",omitempty"`
	}{p.Policy, p.Principal.text, p.Resource.text, r.Name, r.When.text, r.Message, built.effect, r.Mask, built.limits, built.approval, named, built.session, built.writeMasked})
	if err != nil { // only strings, numbers and lists of them
		panic("policy: rule hash: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
