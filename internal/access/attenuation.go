package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// An Attenuation is what one hop of a delegation gave up (docs/design/identity.md
// says why it has these words and no conditions). An empty member gives up
// nothing. What a principal may do is what every hop of its chain left, and of
// that what policy allows.
type Attenuation struct {
	Resources []string `json:"resources,omitempty" yaml:"resources"` // names
	ReadOnly  bool     `json:"read_only,omitempty" yaml:"read_only"` // what is known to change nothing: SQL, SSH and Kubernetes so judged; GET, HEAD and OPTIONS
	Methods   []string `json:"methods,omitempty" yaml:"methods"`     // of HTTP and Kubernetes
	Paths     []string `json:"paths,omitempty" yaml:"paths"`         // of HTTP and Kubernetes: each with all below it
	Tables    []string `json:"tables,omitempty" yaml:"tables"`       // of SQL: schema.table, or schema.*
	Rows      int64    `json:"rows,omitempty" yaml:"rows"`           // most rows that one statement reads or changes
	Depth     *int     `json:"depth,omitempty" yaml:"depth"`         // hops that may follow; nil bounds nothing
}

// Bounds of an Attenuation: it is in every token below.
const (
	maxAttenuated     = 64 // members of one list
	maxAttenuatedText = 256
)

// Check returns what is wrong with the form of a.
func (a *Attenuation) Check() error {
	for name, list := range map[string][]string{"resources": a.Resources, "methods": a.Methods, "paths": a.Paths, "tables": a.Tables} {
		if len(list) > maxAttenuated {
			return fmt.Errorf("%s has more than %d members", name, maxAttenuated)
		}
		for _, text := range list {
			if text == "" || len(text) > maxAttenuatedText || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				return fmt.Errorf("%s has a member that is empty, too long or unprintable", name)
			}
		}
	}
	for _, m := range a.Methods {
		if strings.ToUpper(m) != m {
			return errors.New("methods are written in capitals")
		}
	}
	for _, p := range a.Paths {
		if !strings.HasPrefix(p, "/") || strings.ContainsAny(p, "%?#*") || strings.Contains(p+"/", "/../") || strings.Contains(p+"/", "/./") {
			return errors.New("paths begin with / and are plain")
		}
	}
	for _, t := range a.Tables {
		if schema, name, ok := strings.Cut(t, "."); !ok || schema == "" || name == "" {
			return errors.New("tables are written schema.table or schema.*")
		}
	}
	if a.Rows < 0 || a.Depth != nil && *a.Depth < 0 {
		return errors.New("rows and depth are not negative")
	}
	return nil
}

// Within returns nil when a allows nothing that outer does not, as far as both
// bound the same thing: what a leaves open it takes over from outer.
func (a *Attenuation) Within(outer *Attenuation) error {
	switch {
	case outer == nil:
		return nil
	case !within(a.Resources, outer.Resources, equal):
		return errors.New("resources")
	case !within(a.Methods, outer.Methods, equal):
		return errors.New("methods")
	case !within(a.Paths, outer.Paths, below):
		return errors.New("paths")
	case !within(a.Tables, outer.Tables, covers):
		return errors.New("tables")
	case outer.Rows > 0 && a.Rows > outer.Rows:
		return errors.New("rows")
	case outer.Depth != nil && a.Depth != nil && *a.Depth >= *outer.Depth:
		return errors.New("depth")
	}
	return nil
}

func within(inner, outer []string, match func(outer, inner string) bool) bool {
	return len(outer) == 0 || !slices.ContainsFunc(inner, func(one string) bool { return !anyMatches(outer, one, match) })
}

func anyMatches(outer []string, one string, match func(outer, inner string) bool) bool {
	return slices.ContainsFunc(outer, func(o string) bool { return match(o, one) })
}

func equal(outer, inner string) bool { return outer == inner }

// below reports whether path is prefix or below it.
func below(prefix, path string) bool {
	return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

// covers reports whether pattern, schema.table or schema.*, names the table.
func covers(pattern, table string) bool {
	schema, all := strings.CutSuffix(pattern, ".*")
	return pattern == table || all && strings.HasPrefix(table, schema+".")
}

// safeMethods change nothing (RFC 9110, section 9.2.1).
var safeMethods = []string{"GET", "HEAD", "OPTIONS"}

// Refuses returns why a lets nobody do action on resource, in a few words, or "".
// What is unknown about an action is refused by whatever it could break.
func (a *Attenuation) Refuses(resource Resource, action Action) string {
	if a == nil {
		return ""
	}
	if why := a.RefusesResource(resource); why != "" {
		return why
	}
	switch {
	case action.SQL != nil:
		return a.refusesSQL(action.SQL)
	case action.HTTP != nil:
		return a.refusesHTTP(action.HTTP.Method, action.HTTP.Path, slices.Contains(safeMethods, action.HTTP.Method))
	case action.K8s != nil:
		return a.refusesHTTP(action.K8s.Method, action.K8s.Path, action.K8s.ReadOnly)
	case action.SSH != nil:
		return a.refusesSSH(action.SSH)
	}
	return "nothing is known about the action"
}

// RefusesResource is Refuses before there is an action.
func (a *Attenuation) RefusesResource(resource Resource) string {
	if a != nil && len(a.Resources) > 0 && !slices.Contains(a.Resources, resource.Name) {
		return "it is for other resources"
	}
	return ""
}

func (a *Attenuation) refusesSQL(q *SQL) string {
	switch changes := !q.ReadOnly && !q.Session; {
	case (a.ReadOnly || len(a.Tables) > 0) && len(q.Unknown) > 0:
		return "it is bounded, and what the statement does is not known"
	case a.ReadOnly && (changes || q.DDL || q.Locks || len(q.Writes) > 0):
		return "it is for reading only"
	case !within(q.Tables, a.Tables, covers) || !within(q.Reads, a.Tables, covers) || !within(q.Writes, a.Tables, covers):
		return "it is for other tables"
	case len(a.Tables) > 0 && len(q.Channels) > 0:
		return "it is for rows of tables, not for channels"
	case len(a.Tables) > 0 && q.DDL:
		return "it is for rows of tables, not for their definition"
	}
	return ""
}

func (a *Attenuation) refusesHTTP(method, path string, reads bool) string {
	switch {
	case a.ReadOnly && !reads:
		return "it is for reading only"
	case len(a.Methods) > 0 && !slices.Contains(a.Methods, method):
		return "it is for other methods"
	case len(a.Paths) > 0 && !anyMatches(a.Paths, path, below):
		return "it is for other paths"
	}
	return ""
}

func (a *Attenuation) refusesSSH(s *SSHCall) string {
	if a.ReadOnly && (!s.ReadOnly || len(s.Unknown) > 0 || len(s.UnknownPaths) > 0 || len(s.Writes) > 0 || len(s.Removes) > 0) {
		return "it is for reading only"
	}
	return ""
}

// Text says in one line what a gave up, "" when nothing.
func (a *Attenuation) Text() string {
	if a == nil {
		return ""
	}
	var parts []string
	if a.ReadOnly {
		parts = append(parts, "read only")
	}
	for _, list := range []struct {
		name string
		of   []string
	}{{"resources", a.Resources}, {"methods", a.Methods}, {"paths", a.Paths}, {"tables", a.Tables}} {
		if len(list.of) > 0 {
			parts = append(parts, list.name+" "+strings.Join(list.of, ", "))
		}
	}
	if a.Rows > 0 {
		parts = append(parts, fmt.Sprintf("%d rows", a.Rows))
	}
	if a.Depth != nil {
		parts = append(parts, fmt.Sprintf("%d further hops", *a.Depth))
	}
	return strings.Join(parts, "; ")
}

// OutOfBounds returns the number of the first hop (from 1) whose attenuation
// refuses the request, and why; 0 when none does. A request without an action
// asks for the resource alone.
func (p Principal) OutOfBounds(resource Resource, action Action) (hop int, why string) {
	for i, h := range p.Chain {
		if action == (Action{}) {
			why = h.Attenuation.RefusesResource(resource)
		} else {
			why = h.Attenuation.Refuses(resource, action)
		}
		if why != "" {
			return i + 1, why
		}
	}
	return 0, ""
}

// Through names the actors of the chain, the first delegated to first: "" for a
// principal that acts for itself.
func (p Principal) Through() string {
	actors := make([]string, len(p.Chain))
	for i, h := range p.Chain {
		actors[i] = h.Actor
	}
	return strings.Join(actors, " > ")
}

// Rows returns the least of the rows that the hops allow; 0 is no bound.
func (p Principal) Rows() (rows int64) {
	for _, h := range p.Chain {
		if a := h.Attenuation; a != nil && a.Rows > 0 && (rows == 0 || a.Rows < rows) {
			rows = a.Rows
		}
	}
	return rows
}
