package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"chaperone.dev/chaperone/internal/access"
)

// ExportCases writes recorded decisions as a tests.yaml whose cases ask the same
// again and expect the same: beside the policies that decided them, they pass.
// In a case the request's own time is the time of the decision. It is an error
// when a decision cannot be said as a case.
func ExportCases(decided []*access.Decided) ([]byte, error) {
	x := &exporter{principals: map[string]string{}, resources: map[string]access.Resource{}, taken: map[string]bool{}}
	for _, d := range decided {
		if err := x.add(d); err != nil {
			return nil, fmt.Errorf("request %s: %w", d.Request.ID, err)
		}
	}
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	err := encoder.Encode(mappingOf("principals", &x.who, "resources", &x.on, "tests", &x.tests))
	if err = errors.Join(err, encoder.Close()); err != nil {
		return nil, fmt.Errorf("write cases: %w", err)
	}
	return b.Bytes(), proveCases(b.Bytes(), decided)
}

// proveCases reads the cases back: each must be the request that was recorded,
// and expect what was decided.
func proveCases(text []byte, decided []*access.Decided) error {
	f, faults := decodeCases("tests.yaml", text)
	if err := faults.Err(); err != nil {
		return fmt.Errorf("this cannot be said as cases: %w", err)
	}
	for i, d := range decided {
		again, at := f.request(i)
		if got, want := judgedPart(again, at), judgedPart(d.Request, DecidedAt(d)); got != want {
			return fmt.Errorf("request %s cannot be said as a case: %s became %s", d.Request.ID, want, got)
		}
		if wrong := f.file.Tests[i].Expect.compare(d.Decision); len(wrong) > 0 {
			return fmt.Errorf("the decision on %s cannot be said as a case: %v", d.Request.ID, wrong)
		}
	}
	return nil
}

// judgedPart is what conditions can read of a request, to be compared.
func judgedPart(req access.Request, now time.Time) string {
	req.ID, req.Session, req.Time = "", "", now.UTC()
	req.Principal.Token = access.TokenRef{}
	req.Principal.Chain = slices.Clone(req.Principal.Chain)
	for i := range req.Principal.Chain {
		req.Principal.Chain[i].Parent, req.Principal.Chain[i].ActorToken = "", ""
	}
	if req.Action.SQL != nil {
		sql := *req.Action.SQL
		sql.Forward, sql.SearchPath, sql.Parameters, sql.Plan = "", nil, nil, ""
		req.Action.SQL = &sql
	}
	if req.Action.HTTP != nil {
		http := *req.Action.HTTP
		http.BodyDigest, http.BodyBytes = "", 0
		req.Action.HTTP = &http
	}
	if req.Action.K8s != nil {
		k := *req.Action.K8s
		k.BodyDigest, k.BodyBytes = "", 0
		if k.BodyState == access.BodyWhole {
			k.ContentType = cmp.Or(k.ContentType, "application/json")
		}
		req.Action.K8s = &k
	}
	return asJSON(req)
}

// An exporter collects the three parts of a tests.yaml.
type exporter struct {
	who, on, tests yaml.Node
	principals     map[string]string // rendered → its name
	resources      map[string]access.Resource
	taken          map[string]bool // names of principals
}

func (x *exporter) add(d *access.Decided) error {
	r := d.Request
	if known, ok := x.resources[r.Resource.Name]; !ok {
		x.resources[r.Resource.Name] = r.Resource
		put(&x.on, r.Resource.Name, mappingOf("kind", string(r.Resource.Kind), "labels", r.Resource.Labels))
	} else if asJSON(known) != asJSON(r.Resource) {
		return fmt.Errorf("%s had other labels at another request; export it by itself", r.Resource.Name)
	}
	c := mappingOf("name", describe(&r)+" ("+r.ID+")", "who", x.principal(r.Principal), "on", r.Resource.Name,
		"at", DecidedAt(d).UTC().Format(time.RFC3339Nano))
	switch {
	case r.Action.SQL != nil:
		put(c, "sql", sqlNode(r.Action.SQL))
	case r.Action.HTTP != nil:
		put(c, "http", httpNode(r.Action.HTTP))
	case r.Action.SSH != nil:
		put(c, "ssh", sshNode(r.Action.SSH))
	case r.Action.K8s != nil:
		put(c, "k8s", k8sNode(r.Action.K8s))
	}
	put(c, "expect", expectNode(d.Decision))
	x.tests.Kind = yaml.SequenceNode
	x.tests.Content = append(x.tests.Content, c)
	return nil
}

// principal returns the name of p in the file, which is new when p is.
func (x *exporter) principal(p access.Principal) string {
	p.Token = access.TokenRef{}
	key := asJSON(p)
	if name, known := x.principals[key]; known {
		return name
	}
	base := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(cmp.Or(p.User, p.Subject)+" "+p.Subagent), "-"), "-")
	name := cmp.Or(base, "somebody")
	for n := 2; x.taken[name]; n++ {
		name = fmt.Sprintf("%s-%d", cmp.Or(base, "somebody"), n)
	}
	x.taken[name], x.principals[key] = true, name
	node := mappingOf("issuer", p.Issuer, "subject", p.Subject, "user", p.User, "subagent", p.Subagent, "instance", p.Instance,
		"workflow", p.Workflow, "job", p.Job, "groups", p.Groups)
	if len(p.Chain) > 0 {
		hops := &yaml.Node{Kind: yaml.SequenceNode}
		for _, h := range p.Chain {
			hop := mappingOf("issuer", h.Issuer, "subject", h.Subject, "user", h.User, "actor", h.Actor)
			if h.Attenuation != nil {
				put(hop, "attenuation", structNode(*h.Attenuation))
			}
			hops.Content = append(hops.Content, hop)
		}
		put(node, "chain", hops)
	}
	put(&x.who, name, node)
	return name
}

func sqlNode(s *access.SQL) *yaml.Node {
	n := mappingOf("text", s.Text, "command", s.Command, "read_only", s.ReadOnly)
	put(n, "tables", s.Tables)
	put(n, "reads", s.Reads)
	put(n, "writes", s.Writes)
	put(n, "columns", s.Columns)
	put(n, "functions", s.Functions)
	put(n, "channels", s.Channels)
	put(n, "has_where", s.HasWhere)
	if s.Statements != 1 {
		put(n, "statements", s.Statements)
	}
	put(n, "locks", s.Locks)
	put(n, "ddl", s.DDL)
	put(n, "privilege", s.Privilege)
	put(n, "session", s.Session)
	put(n, "in_transaction", s.InTransaction)
	put(n, "estimated_rows", s.EstimatedRows)
	put(n, "estimated_bytes", s.EstimatedBytes)
	put(n, "unknown", s.Unknown)
	return n
}

func httpNode(h *access.HTTPCall) *yaml.Node {
	n := mappingOf("method", h.Method, "host", h.Host, "path", h.Path, "query", h.Query, "headers", h.Headers)
	if h.BodyState != access.BodyWhole {
		put(n, "body_state", string(h.BodyState))
		return n
	}
	putBody(n, h.Body)
	return n
}

func k8sNode(k *access.K8s) *yaml.Node {
	n := mappingOf("method", k.Method, "path", k.Path, "query", k.Query)
	if k.BodyState != access.BodyNone {
		put(n, "content_type", k.ContentType)
		putBody(n, k.Body)
	}
	return n
}

// putBody adds a decoded body, as YAML where that says the same.
func putBody(n *yaml.Node, decoded any) {
	text := asJSON(decoded)
	var body any
	if yaml.Unmarshal([]byte(text), &body) == nil && body != nil && asJSON(body) == text {
		put(n, "body", body)
		return
	}
	put(n, "body_json", text)
}

func expectNode(d access.Decision) *yaml.Node {
	n := mappingOf("effect", d.Effect.String(), "rule", d.Rule())
	if d.Effect == access.Deny {
		put(n, "reason", string(d.Reason))
		return n
	}
	masks := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle} // none is said, too
	for _, m := range d.Obligations.Masks {
		masks.Content = append(masks.Content, mappingOf("column", m.Column, "json", m.JSON, "detect", m.Detect, "secrets_except", m.SecretsExcept, "with", string(m.With)))
	}
	if len(masks.Content) > 0 {
		masks.Style = 0
	}
	put(n, "masks", masks)
	put(n, "limits", structNode(d.Obligations.Limits))
	if most := d.Obligations.SessionMax; most > 0 {
		put(n, "session", mappingOf("max", most.String()))
	}
	put(n, "write_masked", d.Obligations.WriteMasked)
	if terms := d.Obligations.Approval; terms != nil {
		put(n, "groups", terms.Groups)
		put(n, "count", terms.Count)
	}
	return n
}

// structNode writes what is not zero in a struct under the names that it has in
// policies.
func structNode(v any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle} // none is said, too
	of := reflect.ValueOf(v)
	for i := range of.NumField() {
		value := of.Field(i).Interface()
		switch t, isTime := value.(time.Duration); {
		case of.Field(i).IsZero():
			continue
		case isTime:
			value = t.String()
		case of.Field(i).Kind() == reflect.Struct:
			value = structNode(value)
		}
		put(n, of.Type().Field(i).Tag.Get("yaml"), value)
	}
	return n
}

// asWritten renders a struct as policies write it, on one line.
func asWritten(v any) string {
	b, err := yaml.Marshal(structNode(v))
	if err != nil {
		return asJSON(v)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// mappingOf makes a mapping of keys and values; see put.
func mappingOf(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i < len(pairs); i += 2 {
		put(n, pairs[i].(string), pairs[i+1])
	}
	return n
}

// put adds a key with a value to a mapping, unless the value is empty.
func put(n *yaml.Node, key string, value any) {
	n.Kind = yaml.MappingNode
	node, ok := value.(*yaml.Node)
	if !ok {
		v := reflect.ValueOf(value)
		if !v.IsValid() || v.IsZero() || v.Kind() == reflect.Map && v.Len() == 0 {
			return
		}
		node = &yaml.Node{}
		if node.Encode(value) != nil { // plain values only; proveCases would find what is lost
			return
		}
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String {
			node.Style = yaml.FlowStyle
		}
	}
	name := &yaml.Node{}
	name.SetString(key)
	n.Content = append(n.Content, name, node)
}
