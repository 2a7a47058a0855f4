package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

func (v *validation) identity(id *Identity) {
	if id.Skew == nil {
		skew := 30 * time.Second
		id.Skew = &skew
	}
	v.skew("identity.skew", *id.Skew)
	if id.KeyAge == 0 {
		id.KeyAge = time.Hour
	}
	if id.KeyAge < 10*time.Second || id.KeyAge > 24*time.Hour {
		v.fault("identity.key_age", "is %s; it must be from 10s to 24h", id.KeyAge)
	}
	setDefault(&id.Life, 24*time.Hour)
	if id.Life < time.Minute || id.Life > 7*24*time.Hour {
		v.fault("identity.token_life", "is %s; it must be from 1m to 168h", id.Life)
	}
	if len(id.Issuers) == 0 {
		v.fault("identity.issuers", "at least one issuer is needed")
	}
	names, urls := map[string]bool{}, map[string]bool{}
	for i := range id.Issuers {
		issuer, path := &id.Issuers[i], fmt.Sprintf("identity.issuers[%d]", i)
		if !resourceName.MatchString(issuer.Name) {
			v.fault(path+".name", "must be lower-case letters, digits and dashes")
		}
		if names[issuer.Name] {
			v.fault(path+".name", "is used twice")
		}
		names[issuer.Name] = true
		if issuer.Skew == nil {
			issuer.Skew = id.Skew
		}
		v.skew(path+".skew", *issuer.Skew)
		v.claims(&issuer.Claims)
		url := ""
		switch kinds := issuer.kinds(); {
		case len(kinds) != 1:
			v.fault(path, "needs exactly one of oidc, saml and spiffe")
			continue
		case issuer.OIDC != nil:
			url = issuer.OIDC.Issuer
			v.oidc(path+".oidc", issuer.OIDC)
		case issuer.SAML != nil:
			url = "saml " + issuer.SAML.EntityID // which may be the iss of its OpenID Connect, too
			v.saml(path+".saml", issuer.SAML)
		case issuer.SPIFFE != nil:
			url = "spiffe://" + issuer.SPIFFE.TrustDomain
			v.spiffe(path+".spiffe", issuer.SPIFFE)
		}
		if issuer.LookUp != nil {
			v.lookUp(path, issuer)
		}
		if urls[url] {
			v.fault(path, "is the same provider as another one")
		}
		urls[url] = true
	}
}

// kinds are the kinds of provider that the issuer is said to be.
func (is *Issuer) kinds() (kinds []string) {
	for kind, set := range map[string]bool{"oidc": is.OIDC != nil, "saml": is.SAML != nil, "spiffe": is.SPIFFE != nil} {
		if set {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

func (v *validation) lookUp(path string, is *Issuer) {
	l := is.LookUp
	path += ".look_up"
	if is.OIDC == nil || (l.Google == nil) == (l.Entra == nil) {
		v.fault(path, "is for oidc, and needs exactly one of google and entra")
		return
	}
	setDefault(&l.Fresh, 5*time.Minute)
	if l.Fresh < 10*time.Second || l.Fresh > time.Hour {
		v.fault(path+".fresh", "is %s; it must be from 10s to 1h", l.Fresh)
	}
	v.certificates(path+".ca", &l.CA)
	if g := l.Google; g != nil {
		l.By, g.API = cmp.Or(l.By, "email"), cmp.Or(g.API, "https://admin.googleapis.com")
		v.secret(path+".google.service_account", &g.Account, true)
		v.secureURL(path+".google.api", g.API)
		if g.Admin == "" {
			v.fault(path+".google.admin", "is needed")
		}
		return
	}
	e := l.Entra
	l.By, e.Login, e.API = cmp.Or(l.By, "oid"), cmp.Or(e.Login, "https://login.microsoftonline.com"), cmp.Or(e.API, "https://graph.microsoft.com")
	v.secret(path+".entra.secret", &e.Secret, true)
	v.secureURL(path+".entra.login", e.Login)
	v.secureURL(path+".entra.api", e.API)
	if e.Tenant == "" || e.Client == "" {
		v.fault(path+".entra", "tenant and client are needed")
	}
}

// spiffe leaves what a trust domain and a path may be to the package that reads
// them, which judges the whole configuration before it serves.
func (v *validation) spiffe(path string, s *SPIFFE) {
	if s.TrustDomain == "" {
		v.fault(path+".trust_domain", "is needed")
	}
	v.secret(path+".bundle", &s.Bundle, true)
	v.certificates(path+".bundle", &s.Bundle)
	setDefault(&s.MaxLife, min(24*time.Hour, v.config.Identity.Life))
	if s.MaxLife < time.Minute || s.MaxLife > v.config.Identity.Life {
		v.fault(path+".max_life", "is %s; it must be from 1m to identity.token_life, %s", s.MaxLife, v.config.Identity.Life)
	}
	if len(s.IDs) == 0 {
		v.fault(path+".ids", "at least one path is needed")
	}
	for i, id := range s.IDs {
		if !strings.HasPrefix(id.Path, "/") {
			v.fault(fmt.Sprintf("%s.ids[%d].path", path, i), "must begin with a slash")
		}
		if slices.Contains(id.Groups, "") {
			v.fault(fmt.Sprintf("%s.ids[%d].groups", path, i), "a group name is empty")
		}
	}
}

func (v *validation) skew(path string, skew time.Duration) {
	if skew > time.Minute {
		v.fault(path, "is %s; 60s at most", skew)
	}
}

func (v *validation) claims(c *Claims) {
	for field, name := range map[*string]string{&c.User: "email", &c.Subagent: "azp", &c.Groups: "groups"} {
		if *field == "" {
			*field = name
		}
	}
}

// saml leaves the metadata to the package that reads it.
func (v *validation) saml(path string, s *SAML) {
	t := v.config.Tokens
	if t == nil {
		v.fault(path, "needs tokens: assertions are exchanged there")
		return
	}
	if s.EntityID == "" {
		v.fault(path+".entity_id", "is needed")
	}
	if s.Metadata.Set() == (s.MetadataURL != "") {
		v.fault(path, "needs exactly one of metadata and metadata_url")
	}
	v.secret(path+".metadata", &s.Metadata, false)
	if s.MetadataURL != "" {
		v.secureURL(path+".metadata_url", s.MetadataURL)
	}
	v.certificates(path+".ca", &s.CA)
	s.Audience, s.Recipient = cmp.Or(s.Audience, t.Issuer), cmp.Or(s.Recipient, t.Issuer+"/oauth/token")
	if len(s.Algorithms) == 0 {
		s.Algorithms = []string{"RS256"}
	}
	for i, alg := range s.Algorithms {
		if !slices.Contains([]string{"RS256", "RS384", "RS512"}, alg) {
			v.fault(fmt.Sprintf("%s.algorithms[%d]", path, i), "must be RS256, RS384 or RS512")
		}
	}
}

func (v *validation) oidc(path string, o *OIDC) {
	v.secureURL(path+".issuer", o.Issuer)
	if o.JWKS != "" {
		v.secureURL(path+".jwks", o.JWKS)
	}
	if len(o.Audiences) == 0 || slices.Contains(o.Audiences, "") {
		v.fault(path+".audiences", "at least one audience is needed, and none may be empty")
	}
	if len(o.Algorithms) == 0 {
		o.Algorithms = []string{"RS256", "ES256"}
	}
	known := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	for i, alg := range o.Algorithms {
		if !slices.Contains(known, alg) {
			v.fault(fmt.Sprintf("%s.algorithms[%d]", path, i), "must be one of %s", strings.Join(known, ", "))
		}
	}
	v.certificates(path+".ca", &o.CA)
}
