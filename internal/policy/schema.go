package policy

import (
	"encoding/json"
	"reflect"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// Schema returns the JSON Schema (2020-12) of a policy file, for editors. It
// knows the keys and plain values; conditions are checked by Load.
func Schema() []byte { return schemaOf(reflect.TypeFor[policyFile](), "chaperone policy") }

// ConditionsSchema returns the JSON Schema of a conditions.yaml.
func ConditionsSchema() []byte {
	return schemaOf(reflect.TypeFor[conditionsFile](), "chaperone named conditions")
}

// TestsSchema returns the JSON Schema of a tests.yaml.
func TestsSchema() []byte { return schemaOf(reflect.TypeFor[testsFile](), "chaperone policy tests") }

func schemaOf(t reflect.Type, title string) []byte {
	schema := schemaNode(t)
	schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	schema["title"] = title
	b, err := json.MarshalIndent(schema, "", "  ")
	if err != nil { // maps of strings and lists
		panic("policy: schema: " + err.Error())
	}
	return append(b, '\n')
}

func schemaNode(t reflect.Type) map[string]any {
	switch t {
	case reflect.TypeFor[source]():
		return map[string]any{"type": "string", "minLength": 1, "maxLength": maxConditionSize}
	case reflect.TypeFor[time.Duration]():
		return map[string]any{"type": "string", "pattern": `^([0-9]+d|([0-9.]+(ns|us|µs|ms|s|m|h))+)$`}
	case reflect.TypeFor[instant]():
		return map[string]any{"type": "string", "format": "date-time"}
	case reflect.TypeFor[access.Mask]():
		return maskSchema()
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaNode(t.Elem())
	case reflect.Struct:
		return structSchema(t)
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaNode(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaNode(t.Elem())}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return map[string]any{"type": "integer", "minimum": 1}
	case reflect.Interface:
		return map[string]any{}
	default:
		return map[string]any{"type": "string"}
	}
}

func structSchema(t reflect.Type) map[string]any {
	properties, required := map[string]any{}, []string{}
	for f := range t.Fields() {
		name := f.Tag.Get("yaml")
		node := schemaNode(f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			node["description"] = doc
		}
		if pattern := f.Tag.Get("pattern"); pattern != "" {
			node["pattern"] = pattern
		}
		if f.Tag.Get("zero") != "" {
			node["minimum"] = 0
		}
		if values, ok := f.Tag.Lookup("oneof"); ok {
			node["enum"] = strings.Split(values, ",")
		}
		if f.Tag.Get("need") != "" {
			required = append(required, name)
			if node["type"] == "array" {
				node["minItems"] = 1
			}
		}
		properties[name] = node
	}
	schema := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		schema["required"] = required
	}
	return schema
}

func maskSchema() map[string]any {
	schema := structSchema(reflect.TypeFor[access.Mask]())
	describe := func(name, doc string, more map[string]any) {
		node := schema["properties"].(map[string]any)[name].(map[string]any)
		node["description"] = doc
		for k, v := range more {
			node[k] = v
		}
	}
	describe("column", "schema.table.column", map[string]any{"pattern": `^[^.\s]+\.[^.\s]+\.[^.\s]+$`})
	describe("json", "JSON pointer; * stands for any one name or index", map[string]any{"pattern": "^/"})
	describe("detect", "kinds of value to look for", map[string]any{"items": map[string]any{"enum": detectors()}})
	describe("secrets_except", "types of Secrets whose values are not masked; one of these that the object itself has", map[string]any{"minItems": 1, "items": map[string]any{"type": "string", "pattern": secretType.String()}})
	describe("with", "redact leaves nothing, partial the last four characters", map[string]any{"enum": []string{string(access.Redact), string(access.Partial)}})
	schema["oneOf"] = []any{
		map[string]any{"required": []string{"column"}},
		map[string]any{"required": []string{"json"}},
		map[string]any{"required": []string{"detect"}},
		map[string]any{"required": []string{"secrets_except"}, "properties": map[string]any{"with": false}},
	}
	return schema
}
