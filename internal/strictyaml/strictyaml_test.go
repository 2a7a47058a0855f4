package strictyaml

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Name  string            `yaml:"name"`
	Count int               `yaml:"count"`
	Wait  time.Duration     `yaml:"wait" doc:"how long"`
	List  []inner           `yaml:"list"`
	Map   map[string]string `yaml:"map"`
	Maybe *inner            `yaml:"maybe"`
	Inner int               `yaml:"-"`
}

type inner struct {
	On bool `yaml:"on"`
}

func TestDecodeFillsEveryKind(t *testing.T) {
	t.Parallel()
	var s sample
	_, faults := Decode("f.yaml", []byte("name: a\ncount: 3\nwait: 90d\nlist: [{on: true}]\nmap: {k: v}\nmaybe: {on: true}\n"), &s)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	if s.Name != "a" || s.Count != 3 || s.Wait != 90*24*time.Hour || !s.List[0].On || s.Map["k"] != "v" || !s.Maybe.On {
		t.Errorf("decoded %+v", s)
	}
}

func TestDecodeReportsFaultsWithTheirPlace(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ yaml, want string }{
		"unknown key":     {"nmae: a\n", "f.yaml:1:1: nmae: unknown key; known here: name"},
		"duplicate key":   {"name: a\nname: b\n", "f.yaml:2:1: name: is given twice"},
		"wrong kind":      {"name: {a: b}\n", "f.yaml:1:7: name: must be a string, not a mapping"},
		"number for text": {"name: 007\n", "must be a string, not a number; put it in quotes"},
		"text for number": {"count: many\n", "f.yaml:1:8: count: must be a whole number, not a string"},
		"fraction":        {"count: 1.5\n", "must be a whole number"},
		"duration":        {"wait: soon\n", "must be a duration such as 30s"},
		"negative":        {"wait: -5s\n", "must be a duration"},
		"nested path":     {"list:\n  - on: true\n  - off: true\n", "f.yaml:3:5: list[1].off: unknown key"},
		"alias":           {"name: &x a\nmap: {k: *x}\n", "anchors and aliases are not allowed"},
		"merge":           {"maybe:\n  <<: {on: true}\n", "merge keys are not allowed"},
		"two documents":   {"name: a\n---\nname: b\n", "more than one document"},
		"empty":           {"", "is empty"},
		"only a comment":  {"# nothing\n", "is empty"},
		"not yaml":        {"name: [\n", "f.yaml:"},
		"not a mapping":   {"- a\n", "must be a mapping"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, faults := Decode("f.yaml", []byte(c.yaml), &sample{})
			if err := faults.Err(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestDecodeReportsAllFaultsAtOnceAndNoValues(t *testing.T) {
	t.Parallel()
	_, faults := Decode("f.yaml", []byte("name: [hunter2]\ncount: hunter2\nbogus: hunter2\n"), &sample{})
	if len(faults) != 3 {
		t.Errorf("want 3 faults, got %v", faults)
	}
	if strings.Contains(faults.Error(), "hunter2") {
		t.Errorf("a fault repeats a value: %v", faults)
	}
}

func TestDocumentPointsAtParentOfWhatIsMissing(t *testing.T) {
	t.Parallel()
	doc, _ := Decode("f.yaml", []byte("name: a\nmaybe:\n  on: true\n"), &sample{})
	if got := doc.At("maybe.off").String(); got != "f.yaml:3:3" {
		t.Errorf("At = %s", got)
	}
}

func TestSchemaIsClosedAndDescribed(t *testing.T) {
	t.Parallel()
	var schema struct {
		AdditionalProperties bool
		Properties           map[string]struct{ Type, Description string }
	}
	schema.AdditionalProperties = true
	if err := json.Unmarshal(JSONSchema("t", sample{}), &schema); err != nil {
		t.Fatal(err)
	}
	if schema.AdditionalProperties || schema.Properties["wait"].Description != "how long" || len(schema.Properties) != 6 {
		t.Errorf("schema %+v", schema)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name: a\nlist: [{on: true}]\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, faults := Decode("f.yaml", data, &sample{})
		if doc == nil || len(faults) > 0 && faults[0].Line < 1 {
			t.Errorf("no document or a fault without a line: %v", faults)
		}
	})
}
