package policy

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/strictyaml"
)

const (
	defaultExpires = 15 * time.Minute
	maxExpires     = 30 * 24 * time.Hour
	maxWindow      = 7 * 24 * time.Hour
	maxSession     = 7 * 24 * time.Hour
	maxReviewers   = 20
	maxRules       = 1000 // in one policy
	maxMasks       = 1000 // in one rule
	maxMessage     = 1000 // characters
)

// A validator collects the faults of one policy file.
type validator struct {
	doc    *strictyaml.Document
	faults strictyaml.Faults
}

func newValidator(doc *strictyaml.Document) *validator {
	return &validator{doc: doc}
}

func (v *validator) fault(path, format string, args ...any) {
	v.faults = append(v.faults, v.doc.Fault(path, format, args...))
}

// policy checks everything but the conditions.
func (v *validator) policy(p *policyFile) {
	v.name("policy", p.Policy)
	if p.Policy == delegation || p.Policy == "default-deny" {
		v.fault("policy", "%q is what the gateway's own denials are called; choose another name", p.Policy)
	}
	if !p.Principal.given() {
		v.missing("principal", "is missing; write principal: 'true' for everybody")
	}
	if !p.Resource.given() {
		v.missing("resource", "is missing; write resource: 'true' for every target")
	}
	v.conditions(p.Conditions)
	if len(p.Rules) == 0 {
		v.fault("rules", "a policy needs at least one rule")
	}
	if len(p.Rules) > maxRules {
		v.fault("rules", "there are %d rules; the limit is %d in one policy", len(p.Rules), maxRules)
	}
	seen := map[string]bool{}
	for i := range p.Rules {
		r, path := &p.Rules[i], fmt.Sprintf("rules[%d]", i)
		if r.Name != "" && seen[r.Name] {
			v.fault(path+".name", "rule %q is defined twice", r.Name)
		}
		seen[r.Name] = true
		v.rule(r, path)
	}
}

// shared checks a conditions.yaml.
func (v *validator) shared(f *conditionsFile) {
	if len(f.Conditions) == 0 {
		v.fault("conditions", "there are no conditions")
	}
	v.conditions(f.Conditions)
}

func (v *validator) conditions(named map[string]source) {
	if len(named) > maxNamed {
		v.fault("conditions", "there are %d conditions; the limit is %d in one file", len(named), maxNamed)
	}
	for name := range named {
		v.name("conditions."+name, name)
	}
}

// missing reports a key that is not there; one that is there but does not
// decode has been reported already.
func (v *validator) missing(path, message string) {
	if v.doc.At(path) == v.doc.At("") {
		v.fault(path, "%s", message)
	}
}

func (v *validator) name(path, name string) {
	switch {
	case name == "":
		v.fault(path, "a name is missing")
	case !isName(name):
		v.fault(path, "must be small letters, digits and hyphens, not %q", name)
	case len(name) > 100:
		v.fault(path, "is longer than 100 characters")
	}
}

// isName reports whether name is what the schema's pattern says.
func isName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (v *validator) rule(r *ruleFile, path string) {
	v.name(path+".name", r.Name)
	effect, err := parseEffect(r.Effect)
	if err != nil {
		v.fault(path+".effect", "%s", err)
		return
	}
	if len(r.Message) > maxMessage {
		v.fault(path+".message", "is longer than %d characters", maxMessage)
	}
	if effect == access.Approve && r.Approval == nil {
		v.fault(path+".approval", "a rule that asks for approval must say from which groups")
	}
	if r.Approval != nil {
		if effect != access.Approve {
			v.fault(path+".approval", "belongs to rules with effect approve, not %s", effect)
		}
		v.approval(r.Approval, path+".approval")
	}
	if effect == access.Deny && len(r.Mask) > 0 {
		v.fault(path+".mask", "a rule that denies has nothing to mask")
	}
	if len(r.Mask) > maxMasks {
		v.fault(path+".mask", "there are %d masks; the limit is %d in one rule", len(r.Mask), maxMasks)
	}
	excepts := 0
	for i := range r.Mask {
		v.mask(&r.Mask[i], fmt.Sprintf("%s.mask[%d]", path, i))
		if len(r.Mask[i].SecretsExcept) > 0 {
			excepts++
		}
	}
	if excepts > 1 {
		v.fault(path+".mask", "secrets_except stands there %d times: name all types in one", excepts)
	}
	if r.Limits != nil {
		if effect == access.Deny {
			v.fault(path+".limits", "a rule that denies has nothing to limit")
		}
		v.limits(r.Limits, path+".limits")
	}
	if effect == access.Deny && len(r.WriteMasked) > 0 {
		v.fault(path+".write_masked", "a rule that denies has nothing to grant")
	}
	if len(r.WriteMasked) > maxMasks {
		v.fault(path+".write_masked", "there are %d columns; the limit is %d in one rule", len(r.WriteMasked), maxMasks)
	}
	for i, column := range r.WriteMasked {
		v.column(column, fmt.Sprintf("%s.write_masked[%d]", path, i))
	}
	if r.Session != nil {
		if effect == access.Deny {
			v.fault(path+".session", "a rule that denies has nothing to grant")
		}
		if max := r.Session.max(); max < time.Second || max > maxSession {
			v.fault(path+".session.max", "must be from 1s to 7d")
		}
	}
}

func (v *validator) approval(a *approvalFile, path string) {
	if len(a.Groups) == 0 {
		v.fault(path+".groups", "name at least one group whose members may approve")
	}
	for i, g := range a.Groups {
		if strings.TrimSpace(g) == "" {
			v.fault(fmt.Sprintf("%s.groups[%d]", path, i), "a group has a name")
		}
	}
	if a.Count != nil && (*a.Count < 1 || *a.Count > maxReviewers) {
		v.fault(path+".count", "must be from 1 to %d, not %d", maxReviewers, *a.Count)
	}
	if a.Expires != nil && (*a.Expires < time.Second || *a.Expires > maxExpires) {
		v.fault(path+".expires", "must be from 1s to 30d")
	}
	if a.Window != nil && (*a.Window < time.Second || *a.Window > maxWindow) {
		v.fault(path+".window", "must be from 1s to 7d; leave it out for a grant that serves once")
	}
}

func (v *validator) limits(l *limitsFile, path string) {
	v.amounts(path, map[string]*int64{"rows_read": l.RowsRead, "rows_changed": l.RowsChanged, "bytes": l.Bytes}, l.Time)
	for key, q := range map[string]*quotaFile{"per_session": l.PerSession, "per_hour": l.PerHour} {
		if q == nil {
			continue
		}
		at := path + "." + key
		v.amounts(at, map[string]*int64{
			"statements": q.Statements, "rows_read": q.RowsRead, "rows_changed": q.RowsChanged, "bytes": q.Bytes,
		}, q.Time)
		if *q == (quotaFile{}) {
			v.fault(at, "limits nothing; give statements, rows_read, rows_changed, bytes or time")
		}
	}
}

func (v *validator) amounts(path string, counts map[string]*int64, t *time.Duration) {
	for key, n := range counts {
		if n != nil && *n < 1 {
			v.fault(path+"."+key, "must be 1 or more; to allow none, write a rule that denies")
		}
	}
	if t != nil && *t < time.Millisecond {
		v.fault(path+".time", "must be 1ms or more")
	}
}

func (v *validator) mask(m *access.Mask, path string) {
	given := 0
	for _, set := range []bool{m.Column != "", m.JSON != "", len(m.Detect) > 0, len(m.SecretsExcept) > 0} {
		if set {
			given++
		}
	}
	if given != 1 {
		v.fault(path, "a mask needs exactly one of column, json, detect and secrets_except")
	}
	switch m.With {
	case "", access.Redact, access.Partial:
	default:
		v.fault(path+".with", "must be redact or partial, not %q", m.With)
	}
	if m.Column != "" {
		v.column(m.Column, path+".column")
	}
	if m.JSON != "" {
		v.pointer(m.JSON, path+".json")
	}
	for i, d := range m.Detect {
		if !isDetector(d) {
			v.fault(fmt.Sprintf("%s.detect[%d]", path, i), "there is no detector %q; known here: %s", d, strings.Join(detectors(), ", "))
		}
	}
	if len(m.SecretsExcept) > 0 && m.With != "" {
		v.fault(path+".with", "secrets_except shows values whole, or not at all")
	}
	for i, t := range m.SecretsExcept {
		if !secretType.MatchString(t) {
			v.fault(fmt.Sprintf("%s.secrets_except[%d]", path, i), "must be one type of Secrets, such as helm.sh/release.v1, not %q", t)
		}
	}
}

// secretType are the names that a type of Secrets may have here.
var secretType = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9./_-]{0,251}[A-Za-z0-9])?$`)

func (v *validator) column(name, path string) {
	parts := strings.Split(name, ".")
	ok := len(parts) == 3
	for _, p := range parts {
		ok = ok && p != "" && !strings.ContainsAny(p, " \t\r\n*\"'`")
	}
	if !ok {
		v.fault(path, "must be schema.table.column, not %q", name)
	}
}

func (v *validator) pointer(pointer, path string) {
	if !strings.HasPrefix(pointer, "/") {
		v.fault(path, "must be a JSON pointer such as /customers/*/ssn, not %q", pointer)
		return
	}
	for segment := range strings.SplitSeq(pointer[1:], "/") {
		rest := strings.ReplaceAll(strings.ReplaceAll(segment, "~0", ""), "~1", "")
		switch {
		case segment == "":
			v.fault(path, "%q has an empty name in it", pointer)
		case strings.Contains(rest, "~"):
			v.fault(path, "in %q, ~ must be written ~0, and / inside a name ~1", pointer)
		case strings.Contains(segment, "*") && segment != "*":
			v.fault(path, "in %q, * stands for a whole name", pointer)
		default:
			continue
		}
		return
	}
}
