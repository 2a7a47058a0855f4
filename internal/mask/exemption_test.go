package mask_test

import (
	"reflect"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/mask"
)

// sparing masks /data/* and /items/*/data/* but for objects of type "open"; a
// policy masks /data/policy there, too.
func sparing(t testing.TB) *mask.Masker {
	t.Helper()
	places := []string{"", "/items/*"}
	var policy []string
	var fields []mask.Field
	var spared []mask.Exemption
	for _, place := range places {
		policy = append(policy, place+"/data/policy")
		fields = append(fields, mask.Field{Pointer: place + "/data/*", Mark: "MASKED", Exempt: true})
		spared = append(spared, mask.Exemption{Pointer: place, Member: "type", Values: []string{"open", "ajar"}})
	}
	m, err := compile(t, policy...).With(fields, spared...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestExemptions: the object's own member decides, once and as text, wherever it
// stands in it; what is masked otherwise stays so, and nothing else changes.
func TestExemptions(t *testing.T) {
	t.Parallel()
	m := sparing(t)
	for name, c := range map[string]struct{ in, out string }{
		"spared, member last":   {`{"data":{"a":"x"},"type":"open"}`, ""},
		"spared, member first":  {`{"type":"ajar", "data":{"a":"x", "b":[1,{"c":null}]}}`, ""},
		"spared, escaped":       {`{"data":{"a":"x"},"\u0074ype":"\u006fpen"}`, ""},
		"another type":          {`{"data":{"a":"x"},"type":"opened"}`, `{"data":{"a":"MASKED"},"type":"opened"}`},
		"other letters":         {`{"data":{"a":"x"},"Type":"open"}`, `{"data":{"a":"MASKED"},"Type":"open"}`},
		"no type":               {`{"data":{"a":"x"}}`, `{"data":{"a":"MASKED"}}`},
		"no text":               {`{"data":{"a":"x"},"type":["open"]}`, `{"data":{"a":"MASKED"},"type":["open"]}`},
		"null":                  {`{"data":{"a":"x"},"type":null}`, `{"data":{"a":"MASKED"},"type":null}`},
		"twice":                 {`{"type":"open","data":{"a":"x"},"type":"open"}`, `{"type":"open","data":{"a":"MASKED"},"type":"open"}`},
		"twice, first no text":  {`{"type":1,"data":{"a":"x"},"type":"open"}`, `{"type":1,"data":{"a":"MASKED"},"type":"open"}`},
		"in the data":           {`{"data":{"a":"x","type":"open"}}`, `{"data":{"a":"MASKED","type":"MASKED"}}`},
		"deeper":                {`{"data":{"a":"x"},"metadata":{"type":"open"}}`, `{"data":{"a":"MASKED"},"metadata":{"type":"open"}}`},
		"behind a comma of it":  {`{"a":{"type":"open"},"b":"open","data":{"a":"x"}}`, `{"a":{"type":"open"},"b":"open","data":{"a":"MASKED"}}`},
		"policy's mask stays":   {`{"data":{"a":"x","policy":"x"},"type":"open"}`, `{"data":{"a":"x","policy":"MASKED"},"type":"open"}`},
		"each of a list":        {`{"items":[{"data":{"a":"x"},"type":"open"},{"data":{"a":"x"},"type":"no"},{"data":{"a":"x"}}, {"data":{"a":"x"},"type":"ajar"}]}`, `{"items":[{"data":{"a":"x"},"type":"open"},{"data":{"a":"MASKED"},"type":"no"},{"data":{"a":"MASKED"}}, {"data":{"a":"x"},"type":"ajar"}]}`},
		"the list's own spares": {`{"type":"open","data":{"b":"x"},"items":[{"data":{"a":"x"},"type":"no"}]}`, `{"type":"open","data":{"b":"x"},"items":[{"data":{"a":"MASKED"},"type":"no"}]}`},
		"no object":             {`"open"`, ""},
		"an array":              {`[{"data":{"a":"x"},"type":"open"}]`, ""},
	} {
		if c.out == "" {
			c.out = c.in
		}
		got, err := everySplit(t, func() mask.Writer { return m.NewJSON() }, []byte(c.in))
		if err != nil || got != c.out {
			t.Errorf("%s: %s became %s, want %s: %v", name, c.in, got, c.out, err)
		}
	}
	lines := "{\"data\":{\"a\":\"x\"},\"type\":\"open\"}\n{\"data\":{\"a\":\"x\"}}\n{\"type\":\"open\",\"data\":{\"a\":\"x\"}}\n"
	got, err := everySplit(t, func() mask.Writer { return m.NewJSONLines() }, []byte(lines))
	if want := strings.Replace(lines, `{"data":{"a":"x"}}`, `{"data":{"a":"MASKED"}}`, 1); err != nil || got != want {
		t.Errorf("lines: %s: %v", got, err)
	}
	for _, broken := range []string{`{"type":"open","data":{"a":"x"}`, `{"type":"open","data":{"a":"x"}},`, `{"type":"open","data":{"a":x}}`} {
		if got, err := everySplit(t, func() mask.Writer { return m.NewJSON() }, []byte(broken)); err == nil || strings.Contains(got, "x") {
			t.Errorf("%s: %q %v", broken, got, err)
		}
	}
}

// TestExemptionOfLongObject: what is too long to be held is masked, in every
// piece of it.
func TestExemptionOfLongObject(t *testing.T) {
	t.Parallel()
	m := sparing(t)
	for _, filler := range []int{2 << 20, 4 << 20} {
		in := `{"items":[{"data":{"a":"value-of-it"},"other":"` + strings.Repeat("-", filler) + `","type":"open"},{"data":{"a":"value-of-it"},"type":"open"}]}`
		got, err := run(m.NewJSON(), []byte(in), 100_000)
		want := in
		if filler > 3<<20 {
			want = strings.Replace(in, "value-of-it", "MASKED", 1)
		}
		if err != nil || got != want {
			t.Errorf("%d: %d bytes became %d, the value shows %d times: %v", filler, len(in), len(got), strings.Count(got, "value-of-it"), err)
		}
	}
}

// spare masks a tree the slow and obvious way. root is the document.
func spare(v any, root bool) any {
	object, ok := v.([]member)
	if !ok {
		return v
	}
	types, open := 0, false
	for _, m := range object {
		if m.name == "type" {
			types++
			open = m.value == "open" || m.value == "ajar"
		}
	}
	open = open && types == 1
	out := []member{}
	for _, m := range object {
		switch {
		case m.name == "data":
			m.value = each(m.value, func(name string, v any) any {
				if v != nil && (!open || name == "policy") {
					return "MASKED"
				}
				return v
			})
		case m.name == "items" && root:
			m.value = each(m.value, func(_ string, v any) any { return spare(v, false) })
		}
		out = append(out, m)
	}
	return out
}

func each(v any, do func(name string, v any) any) any {
	switch v := v.(type) {
	case []member:
		out := []member{}
		for _, m := range v {
			out = append(out, member{m.name, do(m.name, m.value)})
		}
		return out
	case []any:
		out := []any{}
		for _, e := range v {
			out = append(out, do("", e))
		}
		return out
	}
	return v
}

// FuzzExemption: the outcome is the same however the text is split, and what
// deciding over the decoded document gives.
func FuzzExemption(f *testing.F) {
	for _, s := range []string{`"b":1`, `"type":"no"`, `"type":{"type":"open"}`, `"a":[{"type":"open"}]`, `"items":[{"type":"open"}]`, `"":"\"type\":\"open\""`, `"type":"open","data":[1]`} {
		f.Add(s, uint8(3))
	}
	m := sparing(f)
	f.Fuzz(func(t *testing.T, members string, n uint8) {
		for _, form := range []string{`{"data":{"a":"SECRET"},%s}`, `{%s,"data":{"a":"SECRET","policy":1}}`, `{"items":[{%s,"data":{"a":"SECRET"}}]}`, `{"items":[{"data":{"a":"SECRET"},%s,"type":"open"}]}`} {
			text := strings.Replace(form, "%s", members, 1)
			out, err := run(m.NewJSON(), []byte(text), int(n))
			whole, wholeErr := run(m.NewJSON(), []byte(text))
			if (err == nil) != (wholeErr == nil) || err == nil && out != whole {
				t.Fatalf("%s: split %q %v, whole %q %v", text, out, err, whole, wholeErr)
			}
			if err != nil {
				continue
			}
			in, inErr := parse([]byte(text))
			got, gotErr := parse([]byte(out))
			if want := spare(in, true); inErr != nil || gotErr != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: got %v, want %v: %v %v", text, got, want, inErr, gotErr)
			}
		}
	})
}
