package kube

import (
	"encoding/base64"
	"mime"
	"net/http"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
)

// An Answer says how the answer to a request is read, for whoever masks it.
type Answer struct {
	Objects bool `json:"objects,omitempty"` // JSON with objects of the API in it
	Secrets bool `json:"secrets,omitempty"` // they are Secrets, whose values are masked
	Lines   bool `json:"lines,omitempty"`   // a watch: JSON documents one after another
	One     bool `json:"one,omitempty"`     // the answer itself is an object, or a table of one
	Schema  bool `json:"schema,omitempty"`  // it describes the API, and nothing in it is masked
	Quiet   bool `json:"quiet,omitempty"`   // a watch, or a log that is followed: nothing may come for long
}

// AnswerTo says what the answer to k is. What describes the API shows nothing of
// its objects: older clients take it in protobuf alone.
func AnswerTo(k *access.K8s) Answer {
	objects := k.Resource != "" && k.Subresource != "log" && !IsStream(k)
	several := k.Verb == "list" || k.Verb == "watch" || k.Verb == "deletecollection"
	return Answer{Objects: objects, Secrets: objects && k.Group == "" && k.Resource == "secrets",
		Lines: objects && k.Verb == "watch", One: objects && !several,
		Schema: k.Resource == "" && k.ReadOnly && strings.HasPrefix(k.Path, "/openapi/"),
		Quiet:  k.Verb == "watch" || k.Subresource == "log" && set(k.Query["follow"])}
}

// places are where objects stand in an answer: the answer itself, the items of
// a list, the rows of a table, the object of a watch event, or its table's rows.
var places = []string{"", "/items/*", "/rows/*/object", "/object", "/object/rows/*/object"}

// binaryMark is the mask of a value that is written in base64: it decodes to
// the mask, so that clients can still read the object.
var binaryMark = base64.StdEncoding.EncodeToString([]byte(mask.Mark))

// Masker returns what masks an answer of that status: policy's masks, whose JSON
// pointers are relative to each object, and the values of Secrets but for those
// of the types that policy excepts.
func (a Answer) Masker(masks []access.Mask, status int) (*mask.Masker, error) {
	if a.Schema {
		return mask.Compile(nil)
	}
	var own []access.Mask // of one object
	var shown []string    // types of Secrets
	detectors := make([]access.Mask, 0, len(masks))
	for _, m := range masks {
		switch {
		case len(m.SecretsExcept) > 0:
			shown = m.SecretsExcept
		case m.JSON == "":
			detectors = append(detectors, m)
		case a.Objects:
			own = append(own, m)
		}
	}
	all := detectors
	for _, place := range places {
		for _, m := range own {
			m.JSON = place + m.JSON
			all = append(all, m)
		}
	}
	if !a.Secrets && len(own) == 0 {
		return mask.Compile(all)
	}
	one, err := mask.Compile(append(own, detectors...))
	if err != nil {
		return nil, err
	}
	if a.Secrets {
		if one, err = one.With(values("")); err != nil {
			return nil, err
		}
	}
	m, err := mask.Compile(all)
	if err != nil {
		return nil, err
	}
	return m.With(a.fields(one, status), a.exemptions(shown)...)
}

// values are those of the Secret at place.
func values(place string) []mask.Field {
	return []mask.Field{{Pointer: place + "/data/*", Mark: binaryMark, Exempt: true}, {Pointer: place + "/stringData/*", Exempt: true}}
}

// fields are the places that Kubernetes itself has values in. one masks a single
// object. It masks the annotation of a Secret that is excepted, too.
func (a Answer) fields(one *mask.Masker, status int) (fields []mask.Field) {
	annotation := "/metadata/annotations/" + strings.ReplaceAll(lastApplied, "/", "~1")
	for _, place := range places {
		if a.Secrets {
			fields = append(fields, values(place)...)
		}
		fields = append(fields, mask.Field{Pointer: place + annotation, Within: one})
	}
	if status == http.StatusUnprocessableEntity { // quotes the values that it finds wrong
		fields = append(fields, mask.Field{Pointer: "/message"}, mask.Field{Pointer: "/details/causes/*/message"})
	}
	return fields
}

// exemptions spare Secrets of the types. What stands around several Secrets is
// itself none: only the answer to a request for one object may be one.
func (a Answer) exemptions(types []string) (spared []mask.Exemption) {
	if !a.Secrets || len(types) == 0 {
		return nil
	}
	for _, place := range places {
		if place != "" || a.One {
			spared = append(spared, mask.Exemption{Pointer: place, Member: "type", Values: types})
		}
	}
	return spared
}

// Accept is what of a client's Accept header the API server is told: the forms
// of JSON. plain leaves tables out, whose cells say which fields of an object
// only their server knows.
func Accept(values []string, plain bool) string {
	var kept []string
	for _, value := range values {
		for one := range strings.SplitSeq(value, ",") {
			media, parameters, err := mime.ParseMediaType(one)
			if err == nil && media == jsonType && !(plain && parameters["as"] == "Table") {
				kept = append(kept, strings.TrimSpace(one))
			}
		}
	}
	if len(kept) == 0 {
		return jsonType
	}
	return strings.Join(kept, ",")
}
