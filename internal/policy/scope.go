package policy

import (
	"hash/maphash"
	"maps"
	"slices"

	"chaperone.dev/chaperone/internal/access"
)

// A target is what the set's policies say about one resource value: which of
// them cover it, indexed by what their principal conditions plainly need.
type target struct {
	resource access.Resource
	object   *object
	small    bool
	covering []coveringPolicy // in file order
	byAtom   map[atom][]int   // positions in covering
	rest     []int            // those that no atom leads to
}

// A coveringPolicy is one whose resource condition holds, or failed.
type coveringPolicy struct {
	policy *policy
	fault  error
}

// A scope is what the set's policies say about one principal on one resource.
type scope struct {
	target     *target
	principal  access.Principal
	object     *object
	small      bool
	candidates []candidate // in file order
	joined     joinedMasks
}

// A candidate is a policy that is about the principal and the resource. When
// volatile, its principal condition reads the time and is evaluated at each
// decision.
type candidate struct {
	policy   *policy
	volatile bool
	fault    error
}

// scope finds or makes the scope of a principal on a resource.
func (s *Set) scope(p *access.Principal, r *access.Resource) *scope {
	key := s.scopeKey(p, r)
	if sc, aged, ok := s.scopes.get(key); ok && sc.is(p, r) {
		if aged {
			s.scopes.put(key, sc, sc.weight())
		}
		return sc
	}
	sc := s.newScope(p, s.target(r))
	s.scopes.put(key, sc, sc.weight())
	return sc
}

func (sc *scope) weight() int {
	return entryWeight + len(sc.candidates) + len(sc.principal.Groups) + len(sc.principal.Chain)
}

// is compares everything that conditions can read.
func (sc *scope) is(p *access.Principal, r *access.Resource) bool {
	q := &sc.principal
	return q.Issuer == p.Issuer && q.Subject == p.Subject && q.User == p.User &&
		q.Subagent == p.Subagent && q.Instance == p.Instance && q.Workflow == p.Workflow && q.Job == p.Job &&
		slices.Equal(q.Groups, p.Groups) && slices.Equal(q.Chain, p.Chain) && sc.target.is(r)
}

func (t *target) is(r *access.Resource) bool {
	return t.resource.Name == r.Name && t.resource.Kind == r.Kind && maps.Equal(t.resource.Labels, r.Labels)
}

// scopeKey hashes enough to tell principals apart; scope.is compares the rest.
func (s *Set) scopeKey(p *access.Principal, r *access.Resource) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, part := range [...]string{r.Name, p.Issuer, p.Subject, p.User, p.Subagent, p.Instance, p.Workflow, p.Job} {
		h.WriteString(part)
		h.WriteByte(0)
	}
	for _, g := range p.Groups {
		h.WriteString(g)
		h.WriteByte(0)
	}
	return h.Sum64()
}

// target finds or makes the target of a resource.
func (s *Set) target(r *access.Resource) *target {
	key := maphash.String(s.seed, r.Name)
	if t, aged, ok := s.targets.get(key); ok && t.is(r) {
		if aged {
			s.targets.put(key, t, t.weight())
		}
		return t
	}
	t := s.newTarget(r)
	s.targets.put(key, t, t.weight())
	return t
}

func (t *target) weight() int { return entryWeight + len(t.covering) + len(t.byAtom) }

func (s *Set) newTarget(r *access.Resource) *target {
	t := &target{
		resource: access.Resource{Name: r.Name, Kind: r.Kind, Labels: maps.Clone(r.Labels)},
		byAtom:   map[atom][]int{},
	}
	t.object = newObject(s.env.vocabulary.resource, &t.resource, s.env.box).filled()
	t.small = isSmallName(r.Name) && len(r.Labels) <= smallList
	for k, v := range r.Labels {
		t.small = t.small && isSmallName(k) && isSmallName(v)
	}
	e := s.begin()
	e.resource = t.object
	for _, p := range s.policies {
		e.spent = 0 // each policy is bounded by itself: this is not one decision's work
		out, err := e.run(p.resource)
		if out == no {
			continue
		}
		i := len(t.covering)
		t.covering = append(t.covering, coveringPolicy{p, err})
		if !p.needs.known {
			t.rest = append(t.rest, i)
			continue
		}
		for _, a := range p.needs.atoms {
			t.byAtom[a] = append(t.byAtom[a], i)
		}
	}
	s.end(e)
	return t
}

func (s *Set) newScope(p *access.Principal, t *target) *scope {
	sc := &scope{target: t, principal: *p}
	sc.principal.Token = access.TokenRef{}
	sc.principal.Groups, sc.principal.Chain = slices.Clone(p.Groups), slices.Clone(p.Chain)
	sc.object = newObject(s.env.vocabulary.principal, &sc.principal, s.env.box).filled()
	sc.small = t.small && isSmallPrincipal(&sc.principal)

	indexed := map[int]bool{} // reached by an atom
	positions := slices.Clone(t.rest)
	for _, fact := range factsOf(&sc.principal) {
		for _, i := range t.byAtom[fact] {
			if !indexed[i] {
				indexed[i] = true
				positions = append(positions, i)
			}
		}
	}
	slices.Sort(positions)

	e := s.begin()
	e.principal = sc.object
	for _, i := range positions {
		covering := t.covering[i]
		c := candidate{policy: covering.policy, fault: covering.fault}
		condition := c.policy.principal
		switch {
		case c.policy.needs.exact && indexed[i]:
		case condition.reads.has(readsTime):
			c.volatile = true
		default:
			e.spent = 0
			out, err := e.run(condition)
			if out == no {
				continue
			}
			if c.fault == nil {
				c.fault = err
			}
		}
		sc.candidates = append(sc.candidates, c)
	}
	s.end(e)
	return sc
}
