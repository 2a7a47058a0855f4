package mask_test

import (
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
)

// compile compiles masks given as JSON pointers (with a leading /) or detector
// names; a trailing " partial" keeps the last four characters.
func compile(t testing.TB, masks ...string) *mask.Masker {
	t.Helper()
	var list []access.Mask
	for _, m := range masks {
		what, with, _ := strings.Cut(m, " ")
		a := access.Mask{With: access.MaskWith(with)}
		if strings.HasPrefix(what, "/") {
			a.JSON = what
		} else {
			a.Detect = strings.Split(what, ",")
		}
		list = append(list, a)
	}
	masker, err := mask.Compile(list)
	if err != nil {
		t.Fatal(err)
	}
	return masker
}

func TestCompile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mask access.Mask
		err  string // "" for none
	}{
		"column":            {access.Mask{Column: "public.customers.ssn"}, ""},
		"pointer":           {access.Mask{JSON: "/customers/*/ssn", With: access.Redact}, ""},
		"escapes":           {access.Mask{JSON: "/a~1b/c~0d"}, ""},
		"empty name":        {access.Mask{JSON: "/"}, ""},
		"detectors":         {access.Mask{Detect: mask.Detectors(), With: access.Partial}, ""},
		"nothing":           {access.Mask{With: access.Redact}, "exactly one"},
		"two":               {access.Mask{JSON: "/a", Column: "a.b.c"}, "exactly one"},
		"three":             {access.Mask{JSON: "/a", Column: "a.b.c", Detect: []string{"SSN"}}, "exactly one"},
		"types of Secrets":  {access.Mask{SecretsExcept: []string{"a"}}, ""},
		"and a field":       {access.Mask{SecretsExcept: []string{"a"}, JSON: "/a"}, "exactly one"},
		"no slash":          {access.Mask{JSON: "customers"}, "does not begin with /"},
		"many levels":       {access.Mask{JSON: "/**/ssn"}, "cannot be part"},
		"glob":              {access.Mask{JSON: "/cust*/ssn"}, "cannot be part"},
		"lone tilde":        {access.Mask{JSON: "/a~2"}, "~0"},
		"last tilde":        {access.Mask{JSON: "/a~"}, "~0"},
		"too deep":          {access.Mask{JSON: strings.Repeat("/a", 129)}, "names"},
		"unknown detector":  {access.Mask{Detect: []string{"SSN", "ssn"}}, `"ssn" is not one of API_KEY`},
		"unknown treatment": {access.Mask{JSON: "/a", With: "hash"}, "not redact or partial"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := mask.Compile([]access.Mask{c.mask})
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("Compile = %v, want %q", err, c.err)
			}
		})
	}
	if _, err := mask.Compile([]access.Mask{{JSON: "a"}, {JSON: "b"}}); err == nil ||
		!strings.Contains(err.Error(), "mask 0") || !strings.Contains(err.Error(), "mask 1") {
		t.Errorf("Compile = %v, want both faults", err)
	}
}

func TestMaskerSaysWhatItHolds(t *testing.T) {
	t.Parallel()
	m, err := mask.Compile(nil)
	if err != nil || !m.Empty() || m.Fields() || m.Detects() || m.Columns() {
		t.Errorf("empty: %+v, %v", m, err)
	}
	if m, err = mask.Compile([]access.Mask{{Column: "a.b.c"}}); err != nil || m.Empty() || !m.Columns() {
		t.Errorf("column: %+v, %v", m, err)
	}
	if m = compile(t, "/a"); m.Empty() || !m.Fields() || m.Detects() {
		t.Errorf("field: %+v", m)
	}
	if m = compile(t, "SSN"); m.Empty() || m.Fields() || !m.Detects() {
		t.Errorf("detector: %+v", m)
	}
}

func TestContainsMask(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		value any
		want  bool
	}{
		"redacted": {"***", true},
		"partial":  {"***1234", true},
		"within":   {[]byte("card ***1234 of"), true},
		"nested":   {map[string]any{"a": []any{1.0, map[string]any{"b": "***"}}}, true},
		"name":     {map[string]any{"***": 1.0}, true},
		"none":     {map[string]any{"a": []any{"**", 1.0, nil, true}}, false},
		"nothing":  {nil, false},
	} {
		if got := mask.ContainsMask(c.value); got != c.want {
			t.Errorf("%s: ContainsMask(%v) = %v", name, c.value, got)
		}
	}
}
