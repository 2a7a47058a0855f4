package mask_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/mask"
)

// run puts body through w in pieces of the given sizes, the last size repeated.
func run(w mask.Writer, body []byte, sizes ...int) (string, error) {
	var out bytes.Buffer
	for len(body) > 0 {
		n := len(body)
		if len(sizes) > 0 {
			n = min(max(sizes[0], 1), n)
			if len(sizes) > 1 {
				sizes = sizes[1:]
			}
		}
		b, err := w.Write(body[:n])
		if err != nil {
			return out.String(), err
		}
		out.Write(b)
		body = body[n:]
	}
	b, err := w.Close()
	out.Write(b)
	return out.String(), err
}

// everySplit demands the same outcome for the whole, for single bytes and for
// every cut in two. It returns the outcome of the whole.
func everySplit(t testing.TB, writer func() mask.Writer, body []byte) (string, error) {
	t.Helper()
	whole, wholeErr := run(writer(), body)
	check := func(sizes ...int) {
		t.Helper()
		got, err := run(writer(), body, sizes...)
		if (err == nil) != (wholeErr == nil) || err == nil && got != whole {
			t.Fatalf("pieces %v of %.200q:\n got %.200q, %v\nwant %.200q, %v", sizes, body, got, err, whole, wholeErr)
		}
	}
	check(1)
	if len(body) <= 2048 {
		for cut := 1; cut < len(body); cut++ {
			check(cut, len(body))
		}
	}
	return whole, wholeErr
}

func TestJSON(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		masks    []string
		in, want string
	}{
		"nothing to mask":       {nil, ` {"a" : [1, 2.50e+1, "x"] }`, ` {"a" : [1, 2.50e+1, "x"] }`},
		"a field":               {[]string{"/ssn"}, `{"ssn":"123-45-6789","b":1}`, `{"ssn":"***","b":1}`},
		"white space kept":      {[]string{"/ssn"}, "{\n\t\"ssn\" :  \"1\" ,\r\n \"b\": 1.0 }\n", "{\n\t\"ssn\" :  \"***\" ,\r\n \"b\": 1.0 }\n"},
		"any index":             {[]string{"/c/*/ssn"}, `{"c":[{"ssn":1},{"ssn":2,"n":3}]}`, `{"c":[{"ssn":"***"},{"ssn":"***","n":3}]}`},
		"any name":              {[]string{"/c/*/ssn"}, `{"c":{"x":{"ssn":1},"y":{"ssn":2}}}`, `{"c":{"x":{"ssn":"***"},"y":{"ssn":"***"}}}`},
		"an index":              {[]string{"/1"}, `[1,2,3]`, `[1,"***",3]`},
		"index as name":         {[]string{"/1"}, `{"1":2,"01":3}`, `{"1":"***","01":3}`},
		"only at its place":     {[]string{"/a/ssn"}, `{"ssn":1,"a":{"b":{"ssn":2},"ssn":3}}`, `{"ssn":1,"a":{"b":{"ssn":2},"ssn":"***"}}`},
		"escaped name":          {[]string{"/ssn"}, `{"\u0073s\u006E":"1"}`, `{"\u0073s\u006E":"***"}`},
		"escaped slash in name": {[]string{"/a~1b"}, `{"a\/b":"1","a~1b":2}`, `{"a\/b":"***","a~1b":2}`},
		"tilde":                 {[]string{"/~01"}, `{"~1":1}`, `{"~1":"***"}`},
		"surrogates in name":    {[]string{"/😀"}, `{"\uD83D\ude00":1}`, `{"\uD83D\ude00":"***"}`},
		"other case":            {[]string{"/ssn"}, `{"SSN":1}`, `{"SSN":1}`},
		"repeated name":         {[]string{"/a"}, `{"a":1,"a":2,"\u0061":3}`, `{"a":"***","a":"***","\u0061":"***"}`},
		"empty name":            {[]string{"/"}, `{"":1,"a":{"":2}}`, `{"":"***","a":{"":2}}`},
		"object":                {[]string{"/a"}, `{"a":{"b":[1,{"c":"}]"}]},"d":2}`, `{"a":"***","d":2}`},
		"array":                 {[]string{"/a"}, `{"a":[[],[{}]],"d":2}`, `{"a":"***","d":2}`},
		"number":                {[]string{"/a"}, `{"a":-1.5E-7}`, `{"a":"***"}`},
		"booleans":              {[]string{"/*"}, `[true,false]`, `["***","***"]`},
		"null stays":            {[]string{"/*"}, `{"a":null,"b":{"c":null}}`, `{"a":null,"b":"***"}`},
		"two ways to a field":   {[]string{"/a/b partial", "/*/b"}, `{"a":{"b":"123456789"}}`, `{"a":{"b":"***"}}`},
		"redact wins":           {[]string{"/a", "/a partial"}, `{"a":"123456789"}`, `{"a":"***"}`},
		"partial":               {[]string{"/a partial"}, `{"a":"4111111111111111"}`, `{"a":"***1111"}`},
		"partial, short":        {[]string{"/a partial"}, `{"a":"1234567"}`, `{"a":"***"}`},
		"partial, eight":        {[]string{"/a partial"}, `{"a":"12345678"}`, `{"a":"***5678"}`},
		"partial, characters":   {[]string{"/a partial"}, `{"a":"ääääöü\u00df😀"}`, `{"a":"***öüß😀"}`},
		"partial, seven wide":   {[]string{"/a partial"}, `{"a":"ääääöüß"}`, `{"a":"***"}`},
		"partial, escapes":      {[]string{"/a partial"}, `{"a":"abcdefg\"\n\\<"}`, `{"a":"***\"\n\\\u003c"}`},
		"partial of a number":   {[]string{"/a partial"}, `{"a":4111111111111111}`, `{"a":"***"}`},
		"partial of an object":  {[]string{"/a partial"}, `{"a":{"b":"123456789"}}`, `{"a":"***"}`},
		"parent and child":      {[]string{"/a", "/a/b partial"}, `{"a":{"b":"123456789"}}`, `{"a":"***"}`},
		"root scalar":           {[]string{"/a"}, ` 12 `, ` 12 `},
		"root string":           {[]string{"/a"}, `"x"`, `"x"`},
		"detector":              {[]string{"SSN"}, `{"note":"is 123-45-6789."}`, `{"note":"is ***."}`},
		"detector, escaped":     {[]string{"SSN"}, `["\u0031\u00323-45-6789"]`, `["***"]`},
		"detector, in a name":   {[]string{"SSN"}, `{"123-45-6789":{"a":1}}`, `{"***":{"a":1}}`},
		"detector, rest kept":   {[]string{"SSN"}, `["<\u00e9\n\ud800>","<123-45-6789>"]`, `["<\u00e9\n\ud800>","\u003c***\u003e"]`},
		"detector, partial":     {[]string{"CREDIT_CARD partial"}, `["4111 1111 1111 1111"]`, `["***1111"]`},
		"detector, numbers":     {[]string{"CREDIT_CARD"}, `[4111111111111111]`, `[4111111111111111]`},
		"field and detector":    {[]string{"/a", "SSN"}, `{"a":"x","b":"123-45-6789"}`, `{"a":"***","b":"***"}`},
		"name of a credential":  {[]string{"API_KEY"}, `{"api_key":"q8Zt3LmP0xYv7Rk2","page":"q8Zt3LmP0xYv7Rk2"}`, `{"api_key":"***","page":"q8Zt3LmP0xYv7Rk2"}`},
		"credential, not one":   {[]string{"API_KEY"}, `{"key":{"page":"q8Zt3LmP0xYv7Rk2"},"token":"none"}`, `{"key":{"page":"q8Zt3LmP0xYv7Rk2"},"token":"none"}`},
		"credential, neighbour": {[]string{"API_KEY"}, `[{"token":"x"},"q8Zt3LmP0xYv7Rk2"]`, `[{"token":"x"},"q8Zt3LmP0xYv7Rk2"]`},
		"detector, hidden":      {[]string{"/a", "SSN"}, `{"a":{"123-45-6789":"123-45-6789"}}`, `{"a":"***"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := compile(t, c.masks...)
			got, err := everySplit(t, func() mask.Writer { return m.NewJSON() }, []byte(c.in))
			if err != nil || got != c.want {
				t.Errorf("got %s, %v\nwant %s", got, err, c.want)
			}
		})
	}
}

func TestJSONRefusals(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"nothing":                "",
		"blank":                  " \n",
		"text":                   "hello",
		"cut":                    `{"a":1`,
		"cut string":             `"a`,
		"cut number":             `-`,
		"cut literal":            `tru`,
		"byte order mark":        "\xEF\xBB\xBF{}",
		"UTF-16":                 "{\x00}\x00",
		"trailing text":          `{} x`,
		"two documents":          `{}{}`,
		"two documents, lines":   "{}\n{}",
		"trailing comma":         `[1,]`,
		"trailing comma, object": `{"a":1,}`,
		"leading comma":          `[,1]`,
		"missing comma":          `[1 2]`,
		"missing colon":          `{"a" 1}`,
		"bare name":              `{a:1}`,
		"single quotes":          `{'a':1}`,
		"comment":                `[/* */1]`,
		"NaN":                    `[NaN]`,
		"Infinity":               `[-Infinity]`,
		"leading zero":           `[01]`,
		"leading plus":           `[+1]`,
		"no digits":              `[1.]`,
		"no exponent":            `[1e]`,
		"mismatch":               `[1}`,
		"extra end":              `1]`,
		"control character":      "[\"a\nb\"]",
		"invalid UTF-8":          "[\"\xff\"]",
		"overlong":               "[\"\xc0\xaf\"]",
		"encoded surrogate":      "[\"\xed\xa0\x80\"]",
		"above U+10FFFF":         "[\"\xf4\x90\x80\x80\"]",
		"cut character":          "[\"\xc3\"]",
		"escape in a character":  "[\"\xc3\\n\"]",
		"unknown escape":         `["\x41"]`,
		"short escape":           `["\u12"]`,
		"capital literal":        `[True]`,
		"too deep":               strings.Repeat("[", 129) + strings.Repeat("]", 129),
		"long name":              `{"` + strings.Repeat("a", 64<<10+1) + `":1}`,
		"invalid, hidden":        `{"a":{"b":}}`,
		"bad UTF-8, hidden":      "{\"a\":\"\xff\"}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, m := range []*mask.Masker{compile(t, "/a"), compile(t, "SSN"), compile(t)} {
				if got, err := everySplit(t, func() mask.Writer { return m.NewJSON() }, []byte(in)); err == nil {
					t.Errorf("accepted: %.100q", got)
				}
			}
		})
	}
}

func TestJSONErrorsStay(t *testing.T) {
	t.Parallel()
	w := compile(t, "/a").NewJSON()
	if _, err := w.Write([]byte("}")); err == nil {
		t.Fatal("accepted }")
	}
	if out, err := w.Write([]byte(`{"b":1}`)); err == nil || len(out) > 0 {
		t.Errorf("Write after an error = %q, %v", out, err)
	}
	if out, err := w.Close(); err == nil || len(out) > 0 {
		t.Errorf("Close after an error = %q, %v", out, err)
	}
	if _, err := compile(t, "/a").NewJSON().Write([]byte(`{"secretname" 12345}`)); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("err = %v: an error must not hold any of the text", err)
	}
}

func TestJSONBounds(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 64<<10)
	m := compile(t, "SSN", "/p partial")
	for name, c := range map[string]struct{ in, want string }{
		"longest string looked into": {`["` + long + `"]`, `["` + long + `"]`},
		"longer is hidden whole":     {`["` + long + `x"]`, `["***"]`},
		"longer partial too":         {`{"p":"` + long + `x"}`, `{"p":"***"}`},
		"deepest":                    {strings.Repeat("[", 128) + strings.Repeat("]", 128), strings.Repeat("[", 128) + strings.Repeat("]", 128)},
	} {
		for _, size := range []int{1, 1000, 1 << 20} {
			if got, err := run(m.NewJSON(), []byte(c.in), size); err != nil || got != c.want {
				t.Errorf("%s, pieces of %d: got %.50q, %v", name, size, got, err)
			}
		}
	}
	// Without detectors a string of any length passes, unbuffered.
	w := compile(t, "/a").NewJSON()
	if out, err := w.Write([]byte(`["abc`)); err != nil || string(out) != `["abc` {
		t.Errorf("Write = %q, %v; want all of it at once", out, err)
	}
}

func TestJSONLines(t *testing.T) {
	t.Parallel()
	m := compile(t, "/ssn", "EMAIL")
	for name, c := range map[string]struct {
		in, want string
		fails    bool
	}{
		"none":             {in: "", want: ""},
		"blank lines":      {in: "\n\n", want: "\n\n"},
		"two":              {in: "{\"ssn\":1}\n{\"ssn\":2}\n", want: "{\"ssn\":\"***\"}\n{\"ssn\":\"***\"}\n"},
		"numbers, no end":  {in: "1\r\n2", want: "1\r\n2"},
		"detector":         {in: "\"a@b.example\"\n", want: "\"***\"\n"},
		"on one line":      {in: "{} {}", fails: true},
		"cut":              {in: "{}\n{", fails: true},
		"record separator": {in: "\x1e{}\n", fails: true},
	} {
		got, err := everySplit(t, func() mask.Writer { return m.NewJSONLines() }, []byte(c.in))
		if (err != nil) != c.fails || !c.fails && got != c.want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	w := m.NewJSONLines()
	if out, err := w.Write([]byte("{\"a\":\"x\"}\n{\"a\":")); err != nil || string(out) != "{\"a\":\"x\"}\n{\"a\":" {
		t.Errorf("Write = %q, %v; want everything at once", out, err)
	}
}

func TestJSONCounts(t *testing.T) {
	t.Parallel()
	w := compile(t, "/a", "SSN").NewJSON()
	if _, err := run(w, []byte(`{"a":[1,2],"b":"123-45-6789 and 123-45-6788","c":1}`)); err != nil || w.Masked() != 3 {
		t.Errorf("Masked = %d, %v; want 3", w.Masked(), err)
	}
}

// A member is one name and its value, in the order of the text.
type member struct {
	name  string
	value any
}

// tree reads a document without losing order or repeated names: an object is a
// []member, an array a []any.
func tree(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		object := []member{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			value, err := tree(d)
			if err != nil {
				return nil, err
			}
			object = append(object, member{name.(string), value})
		}
		_, err = d.Token()
		return object, err
	case json.Delim('['):
		array := []any{}
		for d.More() {
			value, err := tree(d)
			if err != nil {
				return nil, err
			}
			array = append(array, value)
		}
		_, err = d.Token()
		return array, err
	}
	return token, nil
}

func parse(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return tree(d)
}
