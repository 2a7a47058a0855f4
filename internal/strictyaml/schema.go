package strictyaml

import (
	"encoding/json"
	"reflect"
	"strings"
	"time"
)

// A Describer is a type that decodes itself and describes its own forms.
type Describer interface {
	JSONSchema() map[string]any
}

// JSONSchema describes, as JSON Schema 2020-12, what Decode accepts into a
// value of v's type. The tag doc becomes a field's description.
func JSONSchema(title string, v any) []byte {
	schema := schemaOf(reflect.TypeOf(v))
	schema["$schema"], schema["title"] = "https://json-schema.org/draft/2020-12/schema", title
	b, err := json.MarshalIndent(schema, "", "  ")
	if err != nil { // maps, strings and bools only
		panic("strictyaml: schema: " + err.Error())
	}
	return append(b, '\n')
}

func schemaOf(t reflect.Type) map[string]any {
	if d, ok := reflect.New(t).Interface().(Describer); ok && t.Kind() != reflect.Pointer {
		return d.JSONSchema()
	}
	if t == reflect.TypeFor[time.Duration]() {
		return map[string]any{"type": "string", "pattern": `^([0-9]+d|([0-9.]+(ns|us|µs|ms|s|m|h))+)$`}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem())
	case reflect.Struct:
		properties := map[string]any{}
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if name == "-" || !f.IsExported() {
				continue
			}
			if name == "" {
				name = strings.ToLower(f.Name)
			}
			field := schemaOf(f.Type)
			if doc := f.Tag.Get("doc"); doc != "" {
				field["description"] = doc
			}
			properties[name] = field
		}
		return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(t.Elem())}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem())}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Interface:
		return map[string]any{}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	default:
		return map[string]any{"type": "integer"}
	}
}
