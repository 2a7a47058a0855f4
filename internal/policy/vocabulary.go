package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"chaperone.dev/chaperone/internal/access"
)

// A field is one name that a condition may read. read turns the part of the
// request that it stands for into a CEL value, or into the plain value of a
// decoded JSON body.
type field struct {
	name string
	kind *cel.Type
	doc  string
	read func(source any, box boxer) any
}

// An objectType is one of the things that conditions read from. Its fields are
// fixed, so that a misspelt field is an error when the policy is loaded.
type objectType struct {
	variable string // as conditions name it
	celType  *cel.Type
	fields   []field
	index    map[string]int
}

func newObjectType(variable, typeName string, fields ...field) *objectType {
	t := &objectType{variable: variable, celType: cel.ObjectType(typeName), fields: fields, index: map[string]int{}}
	for i, f := range fields {
		t.index[f.name] = i
	}
	return t
}

// names lists the fields, for messages.
func (t *objectType) names() string {
	names := make([]string, len(t.fields))
	for i, f := range t.fields {
		names[i] = f.name
	}
	return strings.Join(names, ", ")
}

// A vocabulary is everything that conditions can name.
type vocabulary struct {
	principal, hop, resource, sql, http, ssh, k8s, k8sObject, request *objectType
}

func newVocabulary() *vocabulary {
	strs := cel.ListType(cel.StringType)
	hop := newObjectType("chain", "chaperone.Hop",
		field{"issuer", cel.StringType, "configured name of the issuer", ofHop(func(h *access.Hop) string { return h.Issuer })},
		field{"subject", cel.StringType, "who delegated", ofHop(func(h *access.Hop) string { return h.Subject })},
		field{"user", cel.StringType, "the person, when known", ofHop(func(h *access.Hop) string { return h.User })},
		field{"actor", cel.StringType, "who was allowed to act", ofHop(func(h *access.Hop) string { return h.Actor })},
	)
	k8sObject := k8sObjectType(strs)
	return &vocabulary{
		hop:       hop,
		principal: principalType(hop),
		resource: newObjectType("resource", "chaperone.Resource",
			field{"name", cel.StringType, "name of the target", ofResource(func(r *access.Resource, box boxer) any { return box.str(r.Name) })},
			field{"kind", cel.StringType, "postgres, http, ssh or kubernetes", ofResource(func(r *access.Resource, box boxer) any { return box.str(string(r.Kind)) })},
			field{"labels", cel.MapType(cel.StringType, cel.StringType), "labels of the target", ofResource(func(r *access.Resource, box boxer) any {
				return types.NewStringStringMap(box.adapter, r.Labels)
			})},
		),
		sql:       sqlType(strs),
		http:      httpType(strs),
		ssh:       sshType(strs),
		k8s:       k8sType(strs, k8sObject),
		k8sObject: k8sObject,
		request: newObjectType("request", "chaperone.Request",
			field{"time", cel.TimestampType, "when the request arrived", func(source any, _ boxer) any {
				return types.Timestamp{Time: source.(*access.Request).Time}
			}},
		),
	}
}

func (v *vocabulary) objectTypes() []*objectType {
	return []*objectType{v.principal, v.hop, v.resource, v.sql, v.http, v.ssh, v.k8s, v.k8sObject, v.request}
}

func principalType(hop *objectType) *objectType {
	text := func(name, doc string, read func(*access.Principal) string) field {
		return field{name, cel.StringType, doc, func(source any, box boxer) any {
			return box.str(read(source.(*access.Principal)))
		}}
	}
	return newObjectType("principal", "chaperone.Principal",
		text("issuer", "configured name of the issuer that vouched", func(p *access.Principal) string { return p.Issuer }),
		text("subject", "the token's subject", func(p *access.Principal) string { return p.Subject }),
		text("user", "the person it acts for", func(p *access.Principal) string { return p.User }),
		text("subagent", "the program", func(p *access.Principal) string { return p.Subagent }),
		text("instance", "which running copy of the program", func(p *access.Principal) string { return p.Instance }),
		text("workflow", "the workflow it runs in", func(p *access.Principal) string { return p.Workflow }),
		text("job", "the job it runs in", func(p *access.Principal) string { return p.Job }),
		field{"groups", cel.ListType(cel.StringType), "groups it is a member of", func(source any, box boxer) any {
			return box.list(source.(*access.Principal).Groups)
		}},
		field{"depth", cel.IntType, "how many delegations stand behind it", func(source any, _ boxer) any {
			return types.Int(len(source.(*access.Principal).Chain))
		}},
		field{"chain", cel.ListType(hop.celType), "delegation, first delegator first", func(source any, box boxer) any {
			chain := source.(*access.Principal).Chain
			hops := make([]ref.Val, len(chain))
			for i := range chain {
				hops[i] = newObject(hop, &chain[i], box).filled()
			}
			return types.NewRefValList(box.adapter, hops)
		}},
	)
}

func sqlType(strs *cel.Type) *objectType {
	lists := func(name, doc string, read func(*access.SQL) []string) field {
		return field{name, strs, doc, ofSQL(func(s *access.SQL, box boxer) any {
			if len(s.Unknown) > 0 {
				return box.unknown["sql."+name]
			}
			return box.list(read(s))
		})}
	}
	flag := func(name, doc string, read func(*access.SQL) bool) field {
		return field{name, cel.BoolType, doc, ofSQL(func(s *access.SQL, _ boxer) any { return types.Bool(read(s)) })}
	}
	// A flag that describes an effect is known to be false only when
	// everything about the statement is known.
	effect := func(name, doc string, read func(*access.SQL) bool) field {
		return field{name, cel.BoolType, doc, ofSQL(func(s *access.SQL, box boxer) any {
			if !read(s) && len(s.Unknown) > 0 {
				return box.unknown["sql."+name]
			}
			return types.Bool(read(s))
		})}
	}
	estimate := func(name, doc string, read func(*access.SQL) *int64) field {
		return field{name, cel.IntType, doc, ofSQL(func(s *access.SQL, box boxer) any {
			if n := read(s); n != nil && len(s.Unknown) == 0 {
				return types.Int(*n)
			}
			return box.unknown["sql."+name]
		})}
	}
	return newObjectType("sql", "chaperone.SQL",
		field{"text", cel.StringType, "the statement as the client sent it", ofSQL(func(s *access.SQL, box boxer) any { return box.str(s.Text) })},
		field{"command", cel.StringType, "SELECT, UPDATE, DROP TABLE, …; empty when unknown", ofSQL(func(s *access.SQL, box boxer) any { return box.str(s.Command) })},
		flag("read_only", "everything in it is known to change nothing", func(s *access.SQL) bool { return s.ReadOnly && len(s.Unknown) == 0 }),
		lists("tables", "schema.table, read or written", func(s *access.SQL) []string { return s.Tables }),
		lists("reads", "schema.table that it reads", func(s *access.SQL) []string { return s.Reads }),
		lists("writes", "schema.table that it writes", func(s *access.SQL) []string { return s.Writes }),
		lists("columns", "schema.table.column, read or written", func(s *access.SQL) []string { return s.Columns }),
		lists("functions", "functions that it calls", func(s *access.SQL) []string { return s.Functions }),
		lists("channels", "channels of LISTEN and NOTIFY", func(s *access.SQL) []string { return s.Channels }),
		flag("has_where", "it has a WHERE clause", func(s *access.SQL) bool { return s.HasWhere }),
		field{"statements", cel.IntType, "statements in the message it came in", ofSQL(func(s *access.SQL, _ boxer) any { return types.Int(s.Statements) })},
		effect("locks", "it takes locks beyond those of a read", func(s *access.SQL) bool { return s.Locks }),
		effect("ddl", "it changes the schema", func(s *access.SQL) bool { return s.DDL }),
		effect("privilege", "it changes who may do what: GRANT, roles, owners, row security", func(s *access.SQL) bool { return s.Privilege }),
		effect("session", "it changes the session: SET, BEGIN, …", func(s *access.SQL) bool { return s.Session }),
		flag("in_transaction", "a transaction is open", func(s *access.SQL) bool { return s.InTransaction }),
		estimate(rowsField, "rows that the planner expects it to return or change", func(s *access.SQL) *int64 { return s.EstimatedRows }),
		estimate(bytesField, "bytes of those rows", func(s *access.SQL) *int64 { return s.EstimatedBytes }),
		field{"unknown", strs, "what could not be established about it", ofSQL(func(s *access.SQL, box boxer) any { return box.list(s.Unknown) })},
	)
}

func httpType(strs *cel.Type) *objectType {
	multimap := cel.MapType(cel.StringType, strs)
	text := func(name, doc string, read func(*access.HTTPCall) string) field {
		return field{name, cel.StringType, doc, ofHTTP(func(h *access.HTTPCall, box boxer) any { return box.str(read(h)) })}
	}
	return newObjectType("http", "chaperone.HTTP",
		text("method", "GET, POST, …", func(h *access.HTTPCall) string { return h.Method }),
		text("host", "host that the target receives", func(h *access.HTTPCall) string { return h.Host }),
		text("path", "path that the target receives", func(h *access.HTTPCall) string { return h.Path }),
		field{"query", multimap, "query parameters, each a list", ofHTTP(func(h *access.HTTPCall, box boxer) any {
			return types.NewDynamicMap(box.adapter, h.Query)
		})},
		field{"headers", multimap, "headers by lower-case name, each a list", ofHTTP(func(h *access.HTTPCall, box boxer) any {
			return types.NewDynamicMap(box.adapter, h.Headers)
		})},
		field{bodyField, cel.DynType, "the decoded JSON body; unknown unless whole", ofHTTP(func(h *access.HTTPCall, box boxer) any {
			if h.BodyState != access.BodyWhole {
				return box.unknown["http.body"]
			}
			return box.adapter.NativeToValue(h.Body)
		})},
		text(bodyStateField, `how much of the body is known: "", "unread", "whole", "undecodable"`, func(h *access.HTTPCall) string { return string(h.BodyState) }),
	)
}

const (
	bodyField      = "body"
	bodyStateField = "body_state"
	rowsField      = "estimated_rows"
	bytesField     = "estimated_bytes"
)

func ofHop(read func(*access.Hop) string) func(any, boxer) any {
	return func(source any, box boxer) any { return box.str(read(source.(*access.Hop))) }
}

func ofResource(read func(*access.Resource, boxer) any) func(any, boxer) any {
	return func(source any, box boxer) any { return read(source.(*access.Resource), box) }
}

func ofSQL(read func(*access.SQL, boxer) any) func(any, boxer) any {
	return func(source any, box boxer) any { return read(source.(*access.SQL), box) }
}

func ofHTTP(read func(*access.HTTPCall, boxer) any) func(any, boxer) any {
	return func(source any, box boxer) any { return read(source.(*access.HTTPCall), box) }
}

func ofK8s(read func(*access.K8s, boxer) any) func(any, boxer) any {
	return func(source any, box boxer) any { return read(source.(*access.K8s), box) }
}

// A boxer turns Go values into CEL values. Strings that some condition names
// literally are boxed once, when the set is loaded: most names in a request
// are among them. It is read-only once the set is loaded.
type boxer struct {
	adapter  types.Adapter
	literals map[string]ref.Val
	unknown  map[string]*types.Unknown
}

func newBoxer(adapter types.Adapter, v *vocabulary) boxer {
	b := boxer{adapter: adapter, literals: map[string]ref.Val{"": types.String("")}, unknown: map[string]*types.Unknown{}}
	names := []string{"sql.tables", "sql.reads", "sql.writes", "sql.columns", "sql.functions", "sql.locks", "sql.ddl", "sql.privilege", "sql.session", "sql." + rowsField, "sql." + bytesField, "http.body", "k8s.body"}
	for _, name := range append(names, sshUnknowable()...) {
		b.unknown[name] = types.NewUnknown(0, types.NewAttributeTrail(name))
	}
	for _, fact := range access.K8sFacts() {
		b.unknown["k8s.object."+fact] = types.NewUnknown(0, types.NewAttributeTrail("k8s.object."+fact))
	}
	return b
}

func (b boxer) str(s string) ref.Val {
	if v, ok := b.literals[s]; ok {
		return v
	}
	return types.String(s)
}

func (b boxer) list(values []string) ref.Val {
	boxed := make([]ref.Val, len(values))
	for i, s := range values {
		boxed[i] = b.str(s)
	}
	return types.NewRefValList(b.adapter, boxed)
}

// An object is a value of an objectType. Fields are read from its source when
// first asked for. It serves one goroutine, unless it is filled.
type object struct {
	kind   *objectType
	source any
	box    boxer
	values []any
}

func newObject(kind *objectType, source any, box boxer) *object {
	return &object{kind: kind, source: source, box: box, values: make([]any, len(kind.fields))}
}

// reset makes o stand for another source.
func (o *object) reset(source any, box boxer) {
	o.source, o.box = source, box
	clear(o.values)
}

// filled reads every field, after which o is safe for concurrent use.
func (o *object) filled() *object {
	for i := range o.values {
		o.get(i)
	}
	return o
}

func (o *object) get(i int) any {
	if o.values[i] == nil {
		o.values[i] = o.kind.fields[i].read(o.source, o.box)
	}
	return o.values[i]
}

// ConvertToNative, ConvertToType, Equal, Type and Value make an object a CEL
// value, so that it can be the element of a list.

// ConvertToNative always fails: nothing outside conditions reads an object.
func (o *object) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("%s cannot be converted to %s", o.kind.celType, t)
}

// ConvertToType always fails.
func (o *object) ConvertToType(t ref.Type) ref.Val {
	return types.NewErr("%s cannot be converted to %s", o.kind.celType, t)
}

// Equal is identity.
func (o *object) Equal(other ref.Val) ref.Val { return types.Bool(other == ref.Val(o)) }

// Type returns the object's CEL type.
func (o *object) Type() ref.Type { return o.kind.celType }

// Value returns the object itself: field access starts from it.
func (o *object) Value() any { return o }

// A provider tells CEL's checker and planner about the vocabulary and leaves
// everything else to CEL's own registry.
type provider struct {
	types.Provider
	objects map[string]*objectType
}

func newProvider(base types.Provider, v *vocabulary) *provider {
	p := &provider{base, map[string]*objectType{}}
	for _, t := range v.objectTypes() {
		p.objects[t.celType.TypeName()] = t
	}
	return p
}

// FindStructType implements types.Provider.
func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if t, ok := p.objects[name]; ok {
		return types.NewTypeTypeWithParam(t.celType), true
	}
	return p.Provider.FindStructType(name)
}

// FindStructFieldNames implements types.Provider.
func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	if t, ok := p.objects[name]; ok {
		return strings.Split(t.names(), ", "), true
	}
	return p.Provider.FindStructFieldNames(name)
}

// FindStructFieldType implements types.Provider.
func (p *provider) FindStructFieldType(name, fieldName string) (*types.FieldType, bool) {
	t, ok := p.objects[name]
	if !ok {
		return p.Provider.FindStructFieldType(name, fieldName)
	}
	i, ok := t.index[fieldName]
	if !ok {
		return nil, false
	}
	return &types.FieldType{
		Type:  t.fields[i].kind,
		IsSet: func(any) bool { return true },
		GetFrom: func(target any) (any, error) {
			o, ok := target.(*object)
			if !ok || o.kind != t {
				return nil, fmt.Errorf("%T has no field %s", target, fieldName)
			}
			return o.get(i), nil
		},
	}, true
}

// detectors are the kinds of value that a mask can look for.
func detectors() []string {
	return []string{"CREDIT_CARD", "SSN", "IBAN", "EMAIL", "PHONE", "API_KEY", "JWT", "PRIVATE_KEY"}
}

func isDetector(name string) bool { return slices.Contains(detectors(), name) }

// decisionTime is the value of now.
func decisionTime(t time.Time) ref.Val { return types.Timestamp{Time: t.UTC()} }
