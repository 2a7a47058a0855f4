package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// Extras are what the gateway says of a caller beside user and groups, behind
// chaperone.dev/.
var Extras = []string{"request", "session", "subject", "subagent", "workflow", "job", "chain"}

// Needs are what the gateway's account has to be able to do.
type Needs struct {
	Impersonates bool
	Prefix       string
	Groups       []string // of the callers, without the prefix
}

// groups are the names of those that the account has to act as.
func (n Needs) groups() []string {
	out := []string{n.Prefix + "callers"}
	for _, g := range n.Groups {
		out = append(out, n.Prefix+g)
	}
	return out
}

// An Examination is what the gateway's account at an API server can do.
type Examination struct {
	Version   string   `json:"version"`
	Account   string   `json:"account"`
	Groups    []string `json:"groups"`
	Anonymous bool     `json:"anonymous"` // requests without a credential are answered
	Missing   []string `json:"missing"`   // what it needs and may not
	Excess    []string `json:"excess"`    // what it may and does not need
	Risks     []string `json:"risks"`     // what is as it should be, and still to be known
}

// Narrow reports whether the account can do what it needs, and nothing else.
func (x *Examination) Narrow() bool { return len(x.Missing) == 0 && len(x.Excess) == 0 }

// Examine asks the API server as the gateway's account, and without any
// credential. It changes nothing.
func (t Target) Examine(ctx context.Context, needs Needs) (*Examination, error) {
	e := &examiner{conn: t.Connect(nil), needs: needs, found: &Examination{Groups: []string{}, Missing: []string{}, Excess: []string{}, Risks: []string{}}}
	defer e.conn.Close()
	if err := e.self(ctx); err != nil {
		return nil, err
	}
	nobody := t
	nobody.Token, nobody.TLS = access.Secret{}, t.TLS.Clone()
	nobody.TLS.Certificates = nil
	if err := e.anonymous(ctx, nobody); err != nil {
		return nil, err
	}
	return e.found, errors.Join(e.rules(ctx), e.impersonation(ctx))
}

type examiner struct {
	conn  *Conn
	needs Needs
	found *Examination
}

// post asks one of the reviews of oneself, which store nothing.
func (e *examiner) post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	got, err := e.conn.do(ctx, call{method: http.MethodPost, path: path, contentType: "application/json", body: body})
	if err != nil {
		return err
	}
	if got.status != http.StatusCreated || json.Unmarshal(got.body, out) != nil {
		return fmt.Errorf("the API server answers %s with %s", path[strings.LastIndexByte(path, '/')+1:], http.StatusText(got.status))
	}
	return nil
}

// self learns the version of the API server and who the account is.
func (e *examiner) self(ctx context.Context) error {
	got, err := e.conn.do(ctx, call{method: http.MethodGet, path: "/version"})
	if err != nil {
		return err
	}
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	switch {
	case got.status == http.StatusUnauthorized:
		return errors.New("the API server does not take the credential")
	case json.Unmarshal(got.body, &version) != nil || version.GitVersion == "":
		return fmt.Errorf("what is there says no version of Kubernetes (%s)", http.StatusText(got.status))
	}
	e.found.Version = version.GitVersion
	var review struct {
		Status struct {
			UserInfo struct {
				Username string   `json:"username"`
				Groups   []string `json:"groups"`
			} `json:"userInfo"`
		} `json:"status"`
	}
	err = e.post(ctx, "/apis/authentication.k8s.io/v1/selfsubjectreviews",
		map[string]string{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}, &review)
	e.found.Account, e.found.Groups = review.Status.UserInfo.Username, append(e.found.Groups, review.Status.UserInfo.Groups...)
	if slices.Contains(e.found.Groups, "system:masters") {
		e.found.Excess = append(e.found.Excess, "it is in the group system:masters, which RBAC does not bind")
	}
	return err
}

// anonymous finds out what anybody may do.
func (e *examiner) anonymous(ctx context.Context, t Target) error {
	conn := t.Connect(nil)
	defer conn.Close()
	for _, path := range []string{"/version", "/api/v1/namespaces", "/api/v1/secrets", "/api/v1/nodes"} {
		got, err := conn.do(ctx, call{method: http.MethodGet, path: path, query: map[string][]string{"limit": {"1"}}})
		if err != nil {
			return err
		}
		e.found.Anonymous = e.found.Anonymous || got.status != http.StatusUnauthorized
		if got.status == http.StatusOK && path != "/version" {
			e.found.Excess = append(e.found.Excess, "anybody may, without a credential, get "+path)
		}
	}
	if e.found.Anonymous {
		e.found.Risks = append(e.found.Risks, "anonymous access is on: whoever reaches the API server gets what RBAC gives system:unauthenticated")
	}
	return nil
}

// A resourceRule is one of RBAC.
type resourceRule struct {
	Verbs         []string `json:"verbs"`
	APIGroups     []string `json:"apiGroups"`
	Resources     []string `json:"resources"`
	ResourceNames []string `json:"resourceNames"`
}

func (r resourceRule) String() string {
	what := strings.Join(r.Verbs, ",") + " " + strings.Join(r.Resources, ",")
	if groups := strings.Join(r.APIGroups, ","); groups != "" {
		what += " of " + groups
	}
	if len(r.ResourceNames) > 0 {
		what += " " + strings.Join(r.ResourceNames, ",")
	}
	return what
}

// everybodys are the rules that Kubernetes gives everybody who has signed in.
var everybodys = []string{"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews", "clustertrustbundles"}

// rulesIn are the namespaces in which the account's rules are looked at: the
// rules of cluster roles hold in any.
var rulesIn = []string{"default", "kube-system"}

// rules finds what the account may do beyond impersonation.
func (e *examiner) rules(ctx context.Context) error {
	for _, namespace := range rulesIn {
		var review struct {
			Status struct {
				Rules      []resourceRule `json:"resourceRules"`
				Incomplete bool           `json:"incomplete"`
			} `json:"status"`
		}
		err := e.post(ctx, "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", map[string]any{
			"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": map[string]string{"namespace": namespace}}, &review)
		if err != nil {
			return err
		}
		if review.Status.Incomplete {
			e.risk("the API server does not know all that the account may do: one of its authorizers does not tell")
		}
		for _, r := range review.Status.Rules {
			if r.needed() || !e.needs.Impersonates {
				continue
			}
			text := "in the namespace " + namespace + " it may " + r.String()
			if slices.Contains(r.Verbs, "*") && slices.Contains(r.Resources, "*") {
				text = "it may do everything in the namespace " + namespace + ": " + r.String()
			}
			e.found.Excess = append(e.found.Excess, text)
		}
	}
	e.risk("its rules were looked at in the namespaces " + strings.Join(rulesIn, " and ") + "; a role of another namespace would not show")
	return nil
}

func (e *examiner) risk(text string) {
	if !slices.Contains(e.found.Risks, text) {
		e.found.Risks = append(e.found.Risks, text)
	}
}

// needed reports whether the rule gives nothing but impersonation, which is
// looked at by itself, or what everybody has.
func (r resourceRule) needed() bool {
	if slices.Equal(r.Verbs, []string{"impersonate"}) {
		return true
	}
	return !slices.ContainsFunc(r.Resources, func(name string) bool { return !slices.Contains(everybodys, name) })
}

// may asks whether the account may impersonate.
func (e *examiner) may(ctx context.Context, group, resource, subresource, name string) (bool, error) {
	var review struct {
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	err := e.post(ctx, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": map[string]any{"resourceAttributes": map[string]string{
			"verb": "impersonate", "group": group, "resource": resource, "subresource": subresource, "name": name}}}, &review)
	return review.Status.Allowed, err
}

// impersonation compares as whom the account may act with what it needs.
func (e *examiner) impersonation(ctx context.Context) error {
	type question struct{ group, resource, subresource, name, text string }
	var needed, excess []question
	if e.needs.Impersonates {
		needed = append(needed, question{"", "users", "", e.needs.Prefix + "dex:somebody", "impersonate users"})
		for _, g := range e.needs.groups() {
			needed = append(needed, question{"", "groups", "", g, "impersonate the group " + g})
		}
		for _, extra := range Extras {
			needed = append(needed, question{"authentication.k8s.io", "userextras", "chaperone.dev/" + extra, "x", "impersonate userextras/chaperone.dev/" + extra})
		}
	} else {
		excess = append(excess, question{"", "users", "", "somebody", "impersonate users"})
		e.risk("without impersonate it acts itself for everybody: RBAC and the audit log see one account")
	}
	excess = append(excess, question{"", "groups", "", "system:masters", "impersonate the group system:masters: it may do everything"},
		question{"", "groups", "", "somebody", "impersonate any group"}, question{"", "serviceaccounts", "", "default", "impersonate service accounts"},
		question{"authentication.k8s.io", "uids", "", "x", "impersonate uids"},
		question{"authentication.k8s.io", "userextras", "scopes", "x", "impersonate any extra"})
	for i, q := range append(needed, excess...) {
		ok, err := e.may(ctx, q.group, q.resource, q.subresource, q.name)
		switch {
		case err != nil:
			return err
		case i < len(needed) && !ok:
			e.found.Missing = append(e.found.Missing, "it may not "+q.text)
		case i >= len(needed) && ok:
			e.found.Excess = append(e.found.Excess, "it may "+q.text)
		}
	}
	if e.needs.Impersonates {
		e.risk("it may act as any user: RBAC has no patterns; where the callers are known, name them in resourceNames")
	}
	return nil
}

// Manifest is the RBAC that would suffice for the account, as YAML.
func (n Needs) Manifest(account string) string {
	if !n.Impersonates {
		return ""
	}
	quoted := func(list []string) string {
		b, err := json.Marshal(list) // which is YAML too
		if err != nil {
			return "[]"
		}
		return strings.ReplaceAll(string(b), `","`, `", "`)
	}
	extras := make([]string, len(Extras))
	for i, name := range Extras {
		extras[i] = "userextras/chaperone.dev/" + name
	}
	one := func(name string) string { return strings.Trim(quoted([]string{name}), "[]") }
	subject := fmt.Sprintf("{apiGroup: rbac.authorization.k8s.io, kind: User, name: %s}", one(account))
	if rest, ok := strings.CutPrefix(account, "system:serviceaccount:"); ok {
		namespace, name, _ := strings.Cut(rest, ":")
		subject = fmt.Sprintf("{kind: ServiceAccount, namespace: %s, name: %s}", one(namespace), one(name))
	}
	return `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: chaperone}
rules:
  - {apiGroups: [""], resources: [users], verbs: [impersonate]}
  - {apiGroups: [""], resources: [groups], verbs: [impersonate], resourceNames: ` + quoted(n.groups()) + `}
  - apiGroups: [authentication.k8s.io]
    resources: ` + quoted(extras) + `
    verbs: [impersonate]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: chaperone}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: chaperone}
subjects: [` + subject + `]
`
}
