// Package access is the vocabulary that every other package shares: who asks
// (Principal), for what (Resource, Action), the answer (Decision, Denial), what
// a reviewer said (Approval) and what was written down (Event). It holds data
// and the few rules that belong to the words themselves. It imports nothing of
// chaperone and nothing outside the standard library.
package access

import (
	"encoding/json"
	"slices"
	"time"
)

// A Principal is an authenticated caller with the chain of those it acts for.
// It never holds the token itself.
type Principal struct {
	Issuer   string   `json:"issuer"`             // configured name of the issuer that vouched
	Subject  string   `json:"subject"`            // the token's sub
	User     string   `json:"user,omitempty"`     // the person it acts for
	Subagent string   `json:"subagent,omitempty"` // the program, for example the token's azp
	Instance string   `json:"instance,omitempty"` // which running copy of the program
	Workflow string   `json:"workflow,omitempty"`
	Job      string   `json:"job,omitempty"`
	Groups   []string `json:"groups,omitempty"`
	Chain    []Hop    `json:"chain,omitempty"` // delegation, first delegator first
	Token    TokenRef `json:"token"`
}

// A Hop is one delegation: Actor was allowed to act by the hop before it.
type Hop struct {
	Issuer     string `json:"issuer"`
	Subject    string `json:"subject"`
	User       string `json:"user,omitempty"`
	Actor      string `json:"actor,omitempty"`
	Parent     string `json:"parent,omitempty"`      // TokenRef.ID of the token that was handed on
	ActorToken string `json:"actor_token,omitempty"` // TokenRef.ID of the actor's own token
	// Attenuation is what this hop gave up; nil is nothing. It is shared and
	// must not be written.
	Attenuation *Attenuation `json:"attenuation,omitempty"`
}

// A TokenRef names a token without being one: ID is a digest of it.
type TokenRef struct {
	ID        string    `json:"id"`
	IssuedAt  time.Time `json:"issued_at,omitzero"`
	ExpiresAt time.Time `json:"expires_at"`
	// Bound is the thumbprint (x5t#S256) of the client certificate without
	// which the token is nothing; "" for a bearer token.
	Bound string `json:"bound,omitempty"`
}

// Key identifies the principal across its tokens: two tokens of the same
// subject, subagent, user and workflow have the same key. Its parts are length
// prefixed, so no claim can be shaped to look like another principal's.
func (p Principal) Key() string {
	return joinLengthPrefixed(p.Issuer, p.Subject, p.User, p.Subagent, p.Workflow)
}

// Attributes are the names that Attribute knows.
func Attributes() []string {
	return []string{"issuer", "subject", "user", "subagent", "instance", "workflow", "job", "groups"}
}

// Attribute is one word about the principal, for a target to tell callers apart
// by; "" when it has none, or for an unknown name. groups is a JSON array,
// sorted.
func (p Principal) Attribute(name string) string {
	switch name {
	case "issuer":
		return p.Issuer
	case "subject":
		return p.Subject
	case "user":
		return p.User
	case "subagent":
		return p.Subagent
	case "instance":
		return p.Instance
	case "workflow":
		return p.Workflow
	case "job":
		return p.Job
	case "groups":
		b, err := json.Marshal(append([]string{}, slices.Compact(slices.Sorted(slices.Values(p.Groups)))...))
		if err != nil { // strings always encode
			panic("access: groups: " + err.Error())
		}
		return string(b)
	}
	return ""
}

// InGroup reports whether the principal is a member of any of groups.
func (p Principal) InGroup(groups ...string) bool {
	return slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(p.Groups, g) })
}

// Identities lists every name by which the principal and those it acts for are
// known: nobody on this list may review what the principal asks for.
func (p Principal) Identities() []string {
	names := []string{p.Issuer + "\x00" + p.Subject}
	if p.User != "" {
		names = append(names, p.User)
	}
	for _, h := range p.Chain {
		names = append(names, h.Issuer+"\x00"+h.Subject)
		if h.User != "" {
			names = append(names, h.User)
		}
	}
	return names
}

// A Kind is a protocol that a resource speaks.
type Kind string

// The kinds of resource that chaperone serves.
const (
	Postgres   Kind = "postgres"
	HTTP       Kind = "http"
	SSH        Kind = "ssh"
	Kubernetes Kind = "kubernetes"
)

// A Resource is a named target. Its address and credential are not part of it:
// no decision depends on them.
type Resource struct {
	Name   string            `json:"name"`
	Kind   Kind              `json:"kind"`
	Labels map[string]string `json:"labels,omitempty"`
}
