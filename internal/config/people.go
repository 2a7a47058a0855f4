package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// People maps groups to roles on the gateway itself. A role needs a token that
// a person got for themselves, through one of Clients: a subagent's token
// carries its user's groups, and must not carry the user's power to review.
type People struct {
	Clients  []string `yaml:"clients" doc:"values of the subagent claim (azp) that stand for people at a keyboard"`
	Logins   []Login  `yaml:"logins" doc:"where people log in to the web console; left out, nobody can"`
	Reviewer []string `yaml:"reviewer" doc:"may answer approvals (a rule's own groups decide which)"`
	Operator []string `yaml:"operator" doc:"may end sessions and see revisions"`
	Auditor  []string `yaml:"auditor" doc:"may read recordings"`
	Viewer   []string `yaml:"viewer" doc:"may list sessions and approvals"`
}

// A Login is one way into the web console: at an OpenID Connect provider, by the
// authorization code flow, or at a SAML identity provider.
type Login struct {
	Issuer string    `yaml:"issuer" doc:"the name of an oidc or saml issuer in identity.issuers"`
	Label  string    `yaml:"label" doc:"what the login page calls it; default the name"`
	Client string    `yaml:"client" doc:"OpenID Connect: the gateway's client id at the provider, one of people.clients"`
	Secret SecretRef `yaml:"secret" doc:"the client's secret; left out for a public client"`
	Scope  string    `yaml:"scope" doc:"what to ask the provider for; default openid email profile groups"`
	Token  string    `yaml:"token" doc:"which token tells who the person is: id (default), or access where only that one is for the gateway (Keycloak, Okta, Entra ID)"`
}

func (v *validation) people(p *People) {
	if slices.Contains(p.Clients, "") {
		v.fault("people.clients", "a client name is empty")
	}
	for role, groups := range map[string][]string{"reviewer": p.Reviewer, "operator": p.Operator, "auditor": p.Auditor, "viewer": p.Viewer} {
		if slices.Contains(groups, "") {
			v.fault("people."+role, "a group name is empty")
		}
		if len(groups) > 0 && len(p.Clients) == 0 {
			v.fault("people.clients", "is needed with %s: the clients through which people log in", role)
		}
	}
}

// logins comes after identity, whose defaults it reads.
func (v *validation) logins(p *People) {
	seen := map[string]bool{}
	for i := range p.Logins {
		l, path := &p.Logins[i], fmt.Sprintf("people.logins[%d]", i)
		at := slices.IndexFunc(v.config.Identity.Issuers, func(is Issuer) bool { return is.Name == l.Issuer })
		if at < 0 || v.config.Identity.Issuers[at].SPIFFE != nil {
			v.fault(path+".issuer", "must be the name of an oidc or saml issuer in identity.issuers")
			continue
		}
		if seen[l.Issuer] {
			v.fault(path+".issuer", "is used twice")
		}
		seen[l.Issuer] = true
		l.Label = cmp.Or(l.Label, l.Issuer)
		if is := v.config.Identity.Issuers[at]; is.SAML != nil {
			v.samlLogin(path, l, is.SAML, p.Clients)
		} else {
			v.oidcLogin(path, l, p.Clients)
		}
	}
}

func (v *validation) samlLogin(path string, l *Login, s *SAML, clients []string) {
	if l.Client != "" || l.Secret.Set() || l.Scope != "" || l.Token != "" {
		v.fault(path, "client, secret, scope and token are for OpenID Connect")
	}
	if s.Subagent != "" && !slices.Contains(clients, s.Subagent) {
		v.fault(path+".issuer", "people with its assertions speak through %q, which is not one of people.clients: they would have no role", s.Subagent)
	}
}

func (v *validation) oidcLogin(path string, l *Login, clients []string) {
	if !slices.Contains(clients, l.Client) || l.Client == "" {
		v.fault(path+".client", "must be one of people.clients: whoever logs in would have no role")
	}
	v.secret(path+".secret", &l.Secret, false)
	l.Scope, l.Token = cmp.Or(l.Scope, "openid email profile groups"), cmp.Or(l.Token, "id")
	if !slices.Contains(strings.Fields(l.Scope), "openid") {
		v.fault(path+".scope", "must have openid")
	}
	if l.Token != "id" && l.Token != "access" {
		v.fault(path+".token", "must be id or access")
	}
}
