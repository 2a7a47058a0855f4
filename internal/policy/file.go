package policy

import (
	"errors"
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"

	"chaperone.dev/chaperone/internal/access"
)

// A policyFile is one policy as it stands in its file. Schema is generated from
// these structs: doc becomes the description of a key, need marks the keys that
// must be there, and oneof and pattern bound the values.
type policyFile struct {
	Policy      string            `yaml:"policy" need:"yes" pattern:"^[a-z0-9-]+$" doc:"Name of the policy, unique among all policies."`
	Description string            `yaml:"description" doc:"What the policy is for."`
	Principal   source            `yaml:"principal" need:"yes" doc:"Condition (CEL) on who asks; 'true' for everybody. Reads principal, request and now."`
	Resource    source            `yaml:"resource" need:"yes" doc:"Condition (CEL) on the target; 'true' for every target. Reads resource."`
	Conditions  map[string]source `yaml:"conditions" doc:"Conditions (CEL) by name, which conditions of this policy call as condition(\"name\")."`
	Rules       []ruleFile        `yaml:"rules" need:"yes" doc:"The rules. Deny beats approve beats allow; what no rule allows is denied."`
}

// A conditionsFile is a conditions.yaml.
type conditionsFile struct {
	Conditions map[string]source `yaml:"conditions" need:"yes" doc:"Conditions (CEL) by name, for the policies of this folder and the folders in it, which call them as condition(\"name\")."`
}

type ruleFile struct {
	Name        string        `yaml:"name" need:"yes" pattern:"^[a-z0-9-]+$" doc:"Name of the rule, unique in its policy."`
	When        source        `yaml:"when" doc:"Condition (CEL) on the request; left out, the rule always matches."`
	Effect      string        `yaml:"effect" need:"yes" oneof:"allow,approve,deny" doc:"What the rule says about a request that matches."`
	Message     string        `yaml:"message" doc:"What callers are told when this rule decides."`
	Mask        []access.Mask `yaml:"mask" doc:"What to hide in answers. Masks of all matching rules add up."`
	Approval    *approvalFile `yaml:"approval" doc:"Who must grant the request; only with effect approve."`
	Limits      *limitsFile   `yaml:"limits" doc:"Bounds on one request. The smallest of all matching rules holds."`
	Session     *sessionFile  `yaml:"session" doc:"What the rule grants to the session that the request is in."`
	WriteMasked []string      `yaml:"write_masked" doc:"Columns, schema.table.column, that may be written although they are masked. Those of all matching rules add up."`
}

type sessionFile struct {
	Max *time.Duration `yaml:"max" need:"yes" doc:"How long after its opening a PostgreSQL session may do this though its token has expired. The shortest of all matching rules holds, and a rule without it grants nothing."`
}

// max is what the file grants; nothing when it is left out.
func (s *sessionFile) max() time.Duration {
	if s == nil {
		return 0
	}
	return valueOf(s.Max)
}

type approvalFile struct {
	Groups        []string       `yaml:"groups" need:"yes" doc:"Groups whose members may grant it."`
	Count         *int           `yaml:"count" doc:"Reviewers needed; 1 when left out."`
	Expires       *time.Duration `yaml:"expires" doc:"How long the question stands; 15m when left out."`
	Window        *time.Duration `yaml:"window" doc:"How long a grant serves repeated identical requests; left out, it serves once."`
	InTransaction bool           `yaml:"in_transaction" doc:"Hold the request even inside an open transaction, whose locks are held too."`
}

type limitsFile struct {
	RowsRead    *int64         `yaml:"rows_read" doc:"Rows that one request may return."`
	RowsChanged *int64         `yaml:"rows_changed" doc:"Rows that one request may change."`
	Bytes       *int64         `yaml:"bytes" doc:"Bytes that one request may return."`
	Time        *time.Duration `yaml:"time" doc:"How long one request may run."`
	PerSession  *quotaFile     `yaml:"per_session" doc:"Bounds on the requests of one session together."`
	PerHour     *quotaFile     `yaml:"per_hour" doc:"Bounds on the requests of one principal on one resource in an hour (UTC) together."`
}

type quotaFile struct {
	Statements  *int64         `yaml:"statements" doc:"Statements, or HTTP requests."`
	RowsRead    *int64         `yaml:"rows_read" doc:"Rows that they may return."`
	RowsChanged *int64         `yaml:"rows_changed" doc:"Rows that they may change."`
	Bytes       *int64         `yaml:"bytes" doc:"Bytes that they may return."`
	Time        *time.Duration `yaml:"time" doc:"How long they may run."`
}

// quota returns what the file gives, 0 for the rest.
func (q *quotaFile) quota() access.Quota {
	if q == nil {
		return access.Quota{}
	}
	return access.Quota{
		Statements: valueOf(q.Statements), RowsRead: valueOf(q.RowsRead), RowsChanged: valueOf(q.RowsChanged),
		Bytes: valueOf(q.Bytes), Time: valueOf(q.Time),
	}
}

func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// A testsFile holds cases that stand beside policies, in tests.yaml.
type testsFile struct {
	Principals map[string]principalFile `yaml:"principals" doc:"Principals that cases name in who."`
	Resources  map[string]resourceFile  `yaml:"resources" doc:"Targets that cases name in on."`
	Tests      []caseFile               `yaml:"tests" need:"yes" doc:"The cases."`
}

type principalFile struct {
	Issuer   string    `yaml:"issuer"`
	Subject  string    `yaml:"subject"`
	User     string    `yaml:"user"`
	Subagent string    `yaml:"subagent"`
	Instance string    `yaml:"instance"`
	Workflow string    `yaml:"workflow"`
	Job      string    `yaml:"job"`
	Groups   []string  `yaml:"groups"`
	Chain    []hopFile `yaml:"chain"`
}

type hopFile struct {
	Issuer  string `yaml:"issuer"`
	Subject string `yaml:"subject"`
	User    string `yaml:"user"`
	Actor   string `yaml:"actor"`

	Attenuation *access.Attenuation `yaml:"attenuation" doc:"what this hop gave up"`
}

type resourceFile struct {
	Kind   string            `yaml:"kind" need:"yes" oneof:"postgres,http,ssh,kubernetes"`
	Labels map[string]string `yaml:"labels"`
}

type caseFile struct {
	Name   string     `yaml:"name" need:"yes" doc:"What the case shows."`
	Who    string     `yaml:"who" need:"yes" doc:"One of principals."`
	On     string     `yaml:"on" need:"yes" doc:"One of resources."`
	At     instant    `yaml:"at" doc:"The time of the request (RFC 3339); noon UTC of 2026-01-05, a Monday, when left out."`
	SQL    *sqlFile   `yaml:"sql" doc:"A statement, as the gateway judged it."`
	HTTP   *httpFile  `yaml:"http" doc:"An HTTP request."`
	SSH    *sshFile   `yaml:"ssh" doc:"An act on a host, as the gateway judged it."`
	K8s    *k8sFile   `yaml:"k8s" doc:"A request to a Kubernetes API server; the gateway's judge reads it."`
	Expect expectFile `yaml:"expect" need:"yes" doc:"What policy must answer."`
}

type sqlFile struct {
	Text          string   `yaml:"text"`
	Command       string   `yaml:"command"`
	ReadOnly      bool     `yaml:"read_only"`
	Tables        []string `yaml:"tables" doc:"Left out, it is reads and writes together."`
	Reads         []string `yaml:"reads"`
	Writes        []string `yaml:"writes"`
	Columns       []string `yaml:"columns"`
	Functions     []string `yaml:"functions"`
	Channels      []string `yaml:"channels"`
	HasWhere      bool     `yaml:"has_where"`
	Statements    int      `yaml:"statements" doc:"1 when left out."`
	Locks         bool     `yaml:"locks"`
	DDL           bool     `yaml:"ddl"`
	Privilege     bool     `yaml:"privilege"`
	Session       bool     `yaml:"session"`
	InTransaction bool     `yaml:"in_transaction"`

	EstimatedRows  *int64 `yaml:"estimated_rows" zero:"yes" doc:"Not known when left out."`
	EstimatedBytes *int64 `yaml:"estimated_bytes" zero:"yes" doc:"Not known when left out."`

	Unknown []string `yaml:"unknown" doc:"What the gateway could not establish."`
}

type httpFile struct {
	Method    string              `yaml:"method" need:"yes"`
	Host      string              `yaml:"host"`
	Path      string              `yaml:"path" need:"yes"`
	Query     map[string][]string `yaml:"query"`
	Headers   map[string][]string `yaml:"headers"`
	BodyState *string             `yaml:"body_state" oneof:",unread,whole,undecodable" doc:"whole when there is a body, else empty."`
	Body      any                 `yaml:"body" doc:"The body as it would decode from JSON."`
	BodyJSON  string              `yaml:"body_json" doc:"The body as JSON text, where YAML would change its numbers."`
}

type k8sFile struct {
	Method      string              `yaml:"method" need:"yes"`
	Path        string              `yaml:"path" need:"yes"`
	Query       map[string][]string `yaml:"query"`
	ContentType string              `yaml:"content_type" doc:"application/json when left out; of a patch its kind."`
	Body        any                 `yaml:"body" doc:"The object or the patch."`
	BodyJSON    string              `yaml:"body_json" doc:"The body as JSON text, where YAML would change its numbers."`
}

type expectFile struct {
	Effect      string        `yaml:"effect" need:"yes" oneof:"allow,approve,deny"`
	Rule        string        `yaml:"rule" doc:"policy/rule that decides, or default-deny."`
	Reason      string        `yaml:"reason" doc:"Class of the denial, for example no-rule."`
	Masks       []access.Mask `yaml:"masks" doc:"All masks that are imposed, in any order."`
	Limits      *limitsFile   `yaml:"limits" doc:"All limits that are imposed."`
	Session     *sessionFile  `yaml:"session" doc:"What is granted to the session."`
	WriteMasked []string      `yaml:"write_masked" doc:"All masked columns that may be written, in any order."`
	Groups      []string      `yaml:"groups" doc:"Groups that may grant it."`
	Count       *int          `yaml:"count" doc:"Reviewers needed."`
}

// An instant is a time that YAML may hold with or without quotes.
type instant struct{ time.Time }

// DecodeNode implements strictyaml.NodeDecoder.
func (i *instant) DecodeNode(n *yaml.Node) error {
	t, err := time.Parse(time.RFC3339, n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		return errors.New("must be a time such as 2026-01-05T12:00:00Z")
	}
	i.Time = t
	return nil
}

// terms returns the approval terms with their defaults.
func (a *approvalFile) terms() access.ApprovalTerms {
	t := access.ApprovalTerms{Groups: a.Groups, Count: 1, Expires: defaultExpires, InTransaction: a.InTransaction}
	if a.Count != nil {
		t.Count = *a.Count
	}
	if a.Expires != nil {
		t.Expires = *a.Expires
	}
	if a.Window != nil {
		t.Window = *a.Window
	}
	return t
}

// limits returns what the file gives, 0 for the rest.
func (l *limitsFile) limits() access.Limits {
	if l == nil {
		return access.Limits{}
	}
	return access.Limits{
		RowsRead: valueOf(l.RowsRead), RowsChanged: valueOf(l.RowsChanged), Bytes: valueOf(l.Bytes), Time: valueOf(l.Time),
		Session: l.PerSession.quota(), Hour: l.PerHour.quota(),
	}
}

// parseEffect reads allow, approve or deny.
func parseEffect(name string) (access.Effect, error) {
	var e access.Effect
	if name == "" {
		return e, errors.New("is missing; it is allow, approve or deny")
	}
	if err := e.UnmarshalText([]byte(name)); err != nil {
		return e, fmt.Errorf("must be allow, approve or deny, not %q", name)
	}
	return e, nil
}
