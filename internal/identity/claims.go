package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"chaperone.dev/chaperone/internal/access"
)

const (
	maxText      = 1024 // bytes of one claim that names somebody
	maxGroups    = 1000
	maxAudiences = 100
	maxHops      = 8
)

// A claim is where a member of a principal comes from.
type claim struct {
	name string   // as configured, for messages
	path []string // nil: not mapped
}

type mapping struct {
	user, subagent, instance, workflow, job, groups claim
}

func newMapping(c Claims) (mapping, error) {
	var m mapping
	for _, one := range []struct {
		member string
		name   string
		to     *claim
	}{
		{"user", c.User, &m.user}, {"subagent", c.Subagent, &m.subagent}, {"instance", c.Instance, &m.instance},
		{"workflow", c.Workflow, &m.workflow}, {"job", c.Job, &m.job}, {"groups", c.Groups, &m.groups},
	} {
		path, err := claimPath(one.name)
		if err != nil {
			return mapping{}, fmt.Errorf("claims: %s: %w", one.member, err)
		}
		*one.to = claim{name: one.name, path: path}
	}
	return m, nil
}

// claimPath reads a claim name, or a JSON pointer.
func claimPath(name string) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	if !strings.HasPrefix(name, "/") {
		return []string{name}, nil
	}
	path := strings.Split(name[1:], "/")
	if len(path) > maxNesting {
		return nil, fmt.Errorf("the pointer %q is too long", name)
	}
	for i, segment := range path {
		rest := strings.NewReplacer("~0", "", "~1", "").Replace(segment)
		if segment == "" || strings.Contains(rest, "~") {
			return nil, fmt.Errorf("%q is not a JSON pointer", name)
		}
		path[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(segment)
	}
	return path, nil
}

// read maps verified claims onto a principal. nameOf gives an issuer's
// configured name by its URL.
func (is *issuer) read(t *token, nameOf func(url string) string) (*verified, error) {
	if err := is.checkAudience(t.claims["aud"]); err != nil {
		return nil, err
	}
	when, err := readTimes(t.claims, is.maxLife)
	if err != nil {
		return nil, err
	}
	p := access.Principal{Issuer: is.name}
	if p.Subject, err = text(t.claims, claim{name: "sub", path: []string{"sub"}}); err != nil {
		return nil, err
	}
	if p.Subject == "" {
		return nil, rejected("it has no sub claim")
	}
	if err := is.claims.fill(&p, t.claims); err != nil {
		return nil, err
	}
	if is.own {
		if p.Issuer, err = origin(t.claims, nameOf); err != nil {
			return nil, err
		}
	}
	if p.Chain, err = is.chain(t.claims, nameOf); err != nil {
		return nil, err
	}
	if is.own && len(p.Chain) == 0 && !asserted(t.claims) {
		return nil, rejected("it has no act claim, which each of our own has")
	}
	p.Token = access.TokenRef{ID: tokenID(t.signed), ExpiresAt: time.Unix(when.expires, 0).UTC()}
	if p.Token.Bound, err = confirmation(t.claims); err != nil {
		return nil, err
	}
	if when.hasIssued {
		p.Token.IssuedAt = time.Unix(when.issued, 0).UTC()
	}
	known := &verified{issuer: is, times: when, who: p}
	if is.lookUp != nil {
		known.lookUp, err = text(t.claims, is.lookUpBy)
	}
	return known, err
}

// checkAudience wants one of the configured audiences among those of the token.
func (is *issuer) checkAudience(aud any) error {
	if aud == nil {
		return rejected("it has no aud claim")
	}
	audiences, ok := texts(aud)
	if !ok || len(audiences) > maxAudiences {
		return rejected("its aud claim is not text, or a short list of texts")
	}
	if !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(is.audiences, a) }) {
		return rejected("it is for another audience")
	}
	return nil
}

func (m mapping) fill(p *access.Principal, claims map[string]any) error {
	for _, one := range []struct {
		claim claim
		to    *string
	}{
		{m.user, &p.User}, {m.subagent, &p.Subagent}, {m.instance, &p.Instance},
		{m.workflow, &p.Workflow}, {m.job, &p.Job},
	} {
		var err error
		if *one.to, err = text(claims, one.claim); err != nil {
			return err
		}
	}
	if m.user.name == "email" && p.User != "" {
		if err := checkEmail(claims); err != nil {
			return err
		}
	}
	var err error
	p.Groups, err = m.readGroups(claims)
	return err
}

// checkEmail refuses an address that the provider says it has not verified:
// anybody may have typed it. (Some providers write the claim as text.)
func checkEmail(claims map[string]any) error {
	switch claims["email_verified"] {
	case nil, true, "true":
		return nil
	}
	return rejected("its email address is not verified")
}

// readGroups returns the groups, sorted and each once.
func (m mapping) readGroups(claims map[string]any) ([]string, error) {
	if m.groups.path == nil {
		return nil, nil
	}
	// Groups left out of a token are as bad as wrong ones: a rule that forbids
	// something to a group would not find its members.
	elsewhere, _ := claims["_claim_names"].(map[string]any)
	if _, overage := elsewhere[m.groups.path[0]]; overage || m.groups.name == "groups" && claims["hasgroups"] != nil {
		return nil, rejected("its groups are too many for it and kept elsewhere; have the provider send fewer")
	}
	value, err := member(claims, m.groups.path)
	if err != nil {
		return nil, rejected("its " + m.groups.name + " claim " + err.Error())
	}
	if value == nil {
		return nil, nil
	}
	groups, ok := texts(value)
	if !ok {
		return nil, rejected("its " + m.groups.name + " claim is not a list of texts")
	}
	if len(groups) > maxGroups {
		return nil, rejected("its " + m.groups.name + " claim holds too many groups")
	}
	for _, g := range groups {
		if !saneText(g) {
			return nil, rejected("its " + m.groups.name + " claim holds an unprintable or overlong name")
		}
	}
	groups = slices.Clone(groups)
	slices.Sort(groups)
	return slices.Compact(groups), nil
}

// groups asks the directory, and believes of it what would be believed of a token.
func (is *issuer) groups(ctx context.Context, who string) ([]string, error) {
	groups, err := is.lookUp.Groups(ctx, who)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look up groups: %w", err)
	case len(groups) > maxGroups || slices.ContainsFunc(groups, func(g string) bool { return !saneText(g) }):
		return nil, errors.New("look up groups: too many, or odd names")
	}
	return slices.Clone(groups), nil
}

// chain reads nested act claims (RFC 8693, section 4.1): the outermost is who
// acts now, the innermost who was the first to be allowed to.
func (is *issuer) chain(claims map[string]any, nameOf func(string) string) ([]access.Hop, error) {
	var hops []access.Hop
	value, present := claims["act"]
	for present {
		act, ok := value.(map[string]any)
		if !ok {
			return nil, rejected("its act claim is not an object")
		}
		if miscased(act, claimNames...) {
			return nil, rejected("its act claim " + errMiscased.Error())
		}
		if len(hops) == maxHops {
			return nil, rejected("its delegation chain is too long")
		}
		hop, err := is.hop(act, nameOf)
		if err != nil {
			return nil, err
		}
		hops = append(hops, hop)
		value, present = act["act"]
	}
	slices.Reverse(hops)
	return hops, nil
}

func (is *issuer) hop(act map[string]any, nameOf func(string) string) (access.Hop, error) {
	hop := access.Hop{Issuer: is.name}
	var err error
	if hop.Subject, err = text(act, claim{name: "act sub", path: []string{"sub"}}); err != nil {
		return access.Hop{}, err
	}
	if hop.Subject == "" {
		return access.Hop{}, rejected("its act claim names nobody")
	}
	if value, present := act["iss"]; present {
		url, ok := value.(string)
		if !ok || !saneText(url) {
			return access.Hop{}, rejected("its act claim has an iss that is not text")
		}
		if hop.Issuer = nameOf(url); hop.Issuer == "" {
			if !strings.Contains(url, "://") { // could pass for a configured name
				return access.Hop{}, rejected("its act claim has an iss that is not a URL")
			}
			hop.Issuer = url
		}
	}
	if is.own {
		err = ownHop(&hop, act)
		return hop, err
	}
	if len(is.claims.user.path) == 1 {
		if hop.User, err = text(act, is.claims.user); err != nil {
			return access.Hop{}, err
		}
	}
	hop.Actor = hop.Subject
	if len(is.claims.subagent.path) == 1 {
		actor, err := text(act, is.claims.subagent)
		if err != nil {
			return access.Hop{}, err
		}
		if actor != "" {
			hop.Actor = actor
		}
	}
	return hop, nil
}

// text reads a claim that is text or absent ("").
func text(claims map[string]any, c claim) (string, error) {
	if c.path == nil {
		return "", nil
	}
	value, err := member(claims, c.path)
	if err != nil {
		return "", rejected("its " + c.name + " claim " + err.Error())
	}
	if value == nil {
		return "", nil
	}
	s, ok := value.(string)
	if !ok {
		return "", rejected("its " + c.name + " claim is not text")
	}
	if s != "" && !saneText(s) {
		return "", rejected("its " + c.name + " claim is unprintable or overlong")
	}
	return s, nil
}

// texts reads one text or a list of texts.
func texts(value any) ([]string, bool) {
	if s, ok := value.(string); ok {
		return []string{s}, true
	}
	list, ok := value.([]any)
	if !ok {
		return nil, false
	}
	out := make([]string, len(list))
	for i, one := range list {
		if out[i], ok = one.(string); !ok {
			return nil, false
		}
	}
	return out, true
}

// saneText refuses what would look like something else to a reviewer, or like a
// separator to a program.
func saneText(s string) bool {
	return s != "" && len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029'
	})
}
