package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/kube"
	"chaperone.dev/chaperone/internal/strictyaml"
)

// A Report is how the cases of a folder came out.
type Report struct {
	Cases []CaseResult `json:"cases"`
	// Untested are the rules that decided no case.
	Untested []access.RuleRef `json:"untested,omitempty"`
	// Coverage is every rule, in file order.
	Coverage []RuleCoverage `json:"coverage"`
}

// A RuleCoverage is how many cases a rule decided, alone or with others.
type RuleCoverage struct {
	Rule  access.RuleRef `json:"rule"`
	At    string         `json:"at"` // file:line:column
	Cases int            `json:"cases"`
}

// Covered is the percentage of rules that decided a case; 100 when there are no
// rules.
func (r Report) Covered() float64 {
	if len(r.Coverage) == 0 {
		return 100
	}
	return 100 * float64(len(r.Coverage)-len(r.Untested)) / float64(len(r.Coverage))
}

// A CaseResult is one case. It passed when Wrong is empty.
type CaseResult struct {
	Name     string          `json:"name"`
	At       string          `json:"at"` // file:line:column
	Wrong    []Difference    `json:"wrong,omitempty"`
	Request  access.Request  `json:"request"`
	Decision access.Decision `json:"decision"`
}

// A Difference is one thing that a case expects and the decision does not have.
type Difference struct {
	What string `json:"what"` // effect, rule, reason, masks, limits, session, write_masked, groups or count
	Want string `json:"want"`
	Got  string `json:"got"`
}

// String returns "what: want x, got y".
func (d Difference) String() string { return fmt.Sprintf("%s: want %s, got %s", d.What, d.Want, d.Got) }

// Passed reports whether every case passed.
func (r Report) Passed() bool {
	return !slices.ContainsFunc(r.Cases, func(c CaseResult) bool { return len(c.Wrong) > 0 })
}

// RunTests runs every tests.yaml in dir and its folders against s. An error
// means that the cases could not be read; it may be strictyaml.Faults.
func RunTests(s *Set, dir string) (Report, error) {
	return runTests(s, os.DirFS(dir), func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) })
}

func runTests(s *Set, fsys fs.FS, shown func(string) string) (Report, error) {
	var report Report
	var faults strictyaml.Faults
	decided := map[string]int{}
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name != "." && strings.HasPrefix(path.Base(name), ".") && entry.IsDir() {
			return fs.SkipDir
		}
		if entry.IsDir() || path.Base(name) != testsName {
			return nil
		}
		data, err := readFile(fsys, name)
		if err != nil {
			return err
		}
		f, found := decodeCases(shown(name), data)
		faults = append(faults, found...)
		if len(found) > 0 {
			return nil
		}
		for i := range f.file.Tests {
			result := f.run(s, i)
			for _, ref := range result.Decision.Rules {
				decided[ref.String()]++
			}
			report.Cases = append(report.Cases, result)
		}
		return nil
	})
	if err != nil {
		return Report{}, fmt.Errorf("read tests: %w", err)
	}
	if len(faults) > 0 {
		sortFaults(faults)
		return Report{}, faults
	}
	for _, p := range s.policies {
		for _, r := range p.rules {
			cases := decided[r.ref().String()]
			report.Coverage = append(report.Coverage, RuleCoverage{r.ref(), r.at.String(), cases})
			if cases == 0 {
				report.Untested = append(report.Untested, r.ref())
			}
		}
	}
	return report, nil
}

// A casesFile is one decoded tests.yaml.
type casesFile struct {
	file testsFile
	doc  *strictyaml.Document
}

func decodeCases(name string, data []byte) (*casesFile, strictyaml.Faults) {
	f := &casesFile{}
	var faults strictyaml.Faults
	if f.doc, faults = strictyaml.Decode(name, data, &f.file); len(faults) > 0 {
		return f, faults
	}
	if len(f.file.Tests) == 0 {
		faults = append(faults, f.doc.Fault("tests", "there are no cases"))
	}
	for i := range f.file.Tests {
		c, at := &f.file.Tests[i], fmt.Sprintf("tests[%d]", i)
		fault := func(key, format string, args ...any) {
			faults = append(faults, f.doc.Fault(at+key, format, args...))
		}
		if c.Name == "" {
			fault(".name", "a case needs a name")
		}
		if _, ok := f.file.Principals[c.Who]; !ok {
			fault(".who", "there is no principal %q under principals", c.Who)
		}
		if _, ok := f.file.Resources[c.On]; !ok {
			fault(".on", "there is no resource %q under resources", c.On)
		}
		if len(kindsOf(c.action())) != 1 {
			fault("", "a case needs exactly one of sql, http, ssh and k8s")
		}
		if _, err := parseEffect(c.Expect.Effect); err != nil {
			fault(".expect.effect", "%s", err)
		}
		if c.SQL != nil && (isNegative(c.SQL.EstimatedRows) || isNegative(c.SQL.EstimatedBytes)) {
			fault(".sql", "an estimate cannot be below 0")
		}
		if c.HTTP != nil {
			if err := c.HTTP.valid(); err != nil {
				fault(".http", "%s", err)
			}
		}
		if c.SSH != nil {
			if err := c.SSH.valid(); err != nil {
				fault(".ssh", "%s", err)
			}
		}
		if c.K8s != nil {
			if _, err := c.K8s.call(); err != nil {
				fault(".k8s", "%s", err)
			}
		}
	}
	return f, faults
}

func isNegative(n *int64) bool { return n != nil && *n < 0 }

// run decides case i and compares.
func (f *casesFile) run(s *Set, i int) CaseResult {
	c := &f.file.Tests[i]
	req, at := f.request(i)
	d := s.Decide(req, at)
	return CaseResult{
		Name: c.Name, At: f.doc.At(fmt.Sprintf("tests[%d]", i)).String(),
		Wrong: c.Expect.compare(d), Request: req, Decision: d,
	}
}

// request is what case i asks, and when.
func (f *casesFile) request(i int) (access.Request, time.Time) {
	c := &f.file.Tests[i]
	at := c.At.Time
	if at.IsZero() {
		at = time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	}
	p, r := f.file.Principals[c.Who], f.file.Resources[c.On]
	req := access.Request{
		ID: fmt.Sprintf("case-%d", i), Time: at, Principal: p.principal(),
		Resource: access.Resource{Name: c.On, Kind: access.Kind(r.Kind), Labels: r.Labels},
	}
	req.Action = c.action()
	return req, at
}

// action is what the case asks of the resource.
func (c *caseFile) action() (a access.Action) {
	if c.SQL != nil {
		a.SQL = c.SQL.statement()
	}
	if c.HTTP != nil {
		a.HTTP = c.HTTP.call()
	}
	if c.K8s != nil {
		if a.K8s, _ = c.K8s.call(); a.K8s == nil {
			a.K8s = &access.K8s{} // decodeCases reports why
		}
	}
	if c.SSH != nil {
		a.SSH = c.SSH.call()
	}
	return a
}

// compare lists what differs; only what the case names is compared.
func (x *expectFile) compare(d access.Decision) []Difference {
	var wrong []Difference
	differs := func(what string, want, got any) {
		wrong = append(wrong, Difference{what, fmt.Sprint(want), fmt.Sprint(got)})
	}
	if x.Effect != d.Effect.String() {
		differs("effect", x.Effect, d.Effect)
	}
	if x.Rule != "" && x.Rule != d.Rule() {
		differs("rule", x.Rule, d.Rule())
	}
	if x.Reason != "" && x.Reason != string(d.Reason) {
		differs("reason", x.Reason, d.Reason)
	}
	o := d.Obligations
	if want := mergeMasks(x.Masks); x.Masks != nil && !slices.EqualFunc(want, o.Masks, equalMasks) {
		differs("masks", asJSON(want), asJSON(o.Masks))
	}
	if want := x.Limits.limits(); x.Limits != nil && want != o.Limits {
		differs("limits", asJSON(want), asJSON(o.Limits))
	}
	if want := x.Session.max(); x.Session != nil && want != o.SessionMax {
		differs("session", want, o.SessionMax)
	}
	if want := sorted(x.WriteMasked); x.WriteMasked != nil && !slices.Equal(want, o.WriteMasked) {
		differs("write_masked", asJSON(want), asJSON(o.WriteMasked))
	}
	terms := o.Approval
	if terms == nil {
		terms = &access.ApprovalTerms{}
	}
	if x.Groups != nil && !slices.Equal(x.Groups, terms.Groups) {
		differs("groups", x.Groups, terms.Groups)
	}
	if x.Count != nil && *x.Count != terms.Count {
		differs("count", *x.Count, terms.Count)
	}
	return wrong
}

func equalMasks(a, b access.Mask) bool {
	return a.Column == b.Column && a.JSON == b.JSON && a.With == b.With && slices.Equal(a.Detect, b.Detect) && slices.Equal(a.SecretsExcept, b.SecretsExcept)
}

func (p principalFile) principal() access.Principal {
	out := access.Principal{
		Issuer: p.Issuer, Subject: p.Subject, User: p.User, Subagent: p.Subagent,
		Instance: p.Instance, Workflow: p.Workflow, Job: p.Job, Groups: p.Groups,
	}
	for _, h := range p.Chain {
		out.Chain = append(out.Chain, access.Hop{Issuer: h.Issuer, Subject: h.Subject, User: h.User, Actor: h.Actor, Attenuation: h.Attenuation})
	}
	return out
}

func (s *sqlFile) statement() *access.SQL {
	out := &access.SQL{
		Text: s.Text, Command: s.Command, ReadOnly: s.ReadOnly, Tables: s.Tables, Reads: s.Reads, Writes: s.Writes,
		Columns: s.Columns, Functions: s.Functions, Channels: s.Channels, HasWhere: s.HasWhere, Statements: s.Statements,
		Locks: s.Locks, DDL: s.DDL, Privilege: s.Privilege, Session: s.Session, InTransaction: s.InTransaction, Unknown: s.Unknown,
		EstimatedRows: s.EstimatedRows, EstimatedBytes: s.EstimatedBytes,
	}
	if out.Statements == 0 {
		out.Statements = 1
	}
	if out.Tables == nil {
		out.Tables = slices.Concat(s.Reads, s.Writes)
		slices.Sort(out.Tables)
		out.Tables = slices.Compact(out.Tables)
	}
	return out
}

func (h *httpFile) valid() error {
	switch {
	case h.Method == "" || !strings.HasPrefix(h.Path, "/"):
		return errors.New("a call needs a method and a path that begins with /")
	case h.BodyJSON != "" && h.Body != nil:
		return errors.New("a call has one body: body or body_json")
	case h.BodyJSON != "" && !json.Valid([]byte(h.BodyJSON)):
		return errors.New("body_json is not JSON")
	case h.BodyState == nil:
		return nil
	}
	switch state := access.BodyState(*h.BodyState); state {
	case access.BodyWhole:
		return nil
	case access.BodyNone, access.BodyUnread, access.BodyUndecodable:
		if h.Body != nil || h.BodyJSON != "" {
			return fmt.Errorf("a body that is %q has no content", bodyStateName(state))
		}
		return nil
	default:
		return fmt.Errorf("body_state must be empty, unread, whole or undecodable, not %q", state)
	}
}

// call has the gateway's judge read the request.
func (k *k8sFile) call() (*access.K8s, error) {
	if k.BodyJSON != "" && k.Body != nil {
		return nil, errors.New("a request has one body: body or body_json")
	}
	r := kube.Request{Method: k.Method, Path: k.Path, Query: k.Query, Recorded: true, Body: kube.Body{Whole: true, Bytes: []byte(k.BodyJSON)}}
	if !strings.HasPrefix(k.Path, "/") {
		return nil, errors.New("a request needs a path that begins with /")
	}
	if k.ContentType != "" {
		r.Body.ContentType = []string{k.ContentType}
	}
	if k.Body != nil {
		var err error
		if r.Body.Bytes, err = json.Marshal(k.Body); err != nil {
			return nil, fmt.Errorf("the body is no JSON: %w", err)
		}
	}
	return kube.Read(r)
}

func (h *httpFile) call() *access.HTTPCall {
	out := &access.HTTPCall{Method: h.Method, Host: h.Host, Path: h.Path, Query: h.Query, Headers: h.Headers}
	switch {
	case h.BodyState != nil:
		out.BodyState = access.BodyState(*h.BodyState)
	case h.Body != nil || h.BodyJSON != "":
		out.BodyState = access.BodyWhole
	}
	if out.BodyState != access.BodyWhole {
		return out
	}
	// The gateway decodes JSON with numbers as json.Number; so does a case.
	encoded, err := []byte(h.BodyJSON), error(nil)
	if h.BodyJSON == "" {
		encoded, err = json.Marshal(h.Body)
	}
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	if err != nil || decoder.Decode(&out.Body) != nil {
		out.BodyState, out.Body = access.BodyUndecodable, nil
	}
	return out
}
