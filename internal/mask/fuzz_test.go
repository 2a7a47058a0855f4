package mask_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/mask"
)

// reference masks a tree the slow and obvious way: pointers are lists of names,
// each redacted or partial.
func reference(value any, pointers map[string]bool, path []string) any {
	if partial, ok := match(pointers, path); ok && value != nil {
		if s, isString := value.(string); isString && partial {
			if r := []rune(s); len(r) >= 8 {
				return mask.Mark + string(r[len(r)-4:])
			}
		}
		return mask.Mark
	}
	switch v := value.(type) {
	case []member:
		object := []member{}
		for _, m := range v {
			object = append(object, member{m.name, reference(m.value, pointers, append(path[:len(path):len(path)], m.name))})
		}
		return object
	case []any:
		array := []any{}
		for i, e := range v {
			array = append(array, reference(e, pointers, append(path[:len(path):len(path)], strconv.Itoa(i))))
		}
		return array
	}
	return value
}

func match(pointers map[string]bool, path []string) (partial, ok bool) {
	partial = true
	for pointer, p := range pointers {
		names := strings.Split(pointer, "/")[1:]
		same := len(names) == len(path) && len(path) > 0
		for i := 0; same && i < len(names); i++ {
			same = names[i] == "*" || names[i] == path[i]
		}
		if same {
			ok, partial = true, partial && p
		}
	}
	return partial, ok
}

// FuzzJSONMask: the outcome is the same however the text is split; what is
// accepted is JSON to encoding/json too, and nothing that encoding/json accepts
// in UTF-8 is refused within the bounds; the result is what masking the decoded
// document gives; and a secret at a masked place is nowhere in the result.
func FuzzJSONMask(f *testing.F) {
	for _, s := range []string{
		`{"a":1}`, `{"ssn":"SECRETSECRET","b":[1,{"a":"SECRETSECRET"}]}`, `[[1,2],[3,null]]`, `{"a":{"ssn":{"b":"SECRETSECRET"}}}`,
		`{"\u0061":"\ud83d\ude00\ud800x","a":-1.5e+10}`, `"x"`, ` 12 `, "\"\xff\"", `{"a":true,"b":false,"c":null}`, `[{"ssn":1},2,"\\\"\/"]`,
	} {
		f.Add([]byte(s), uint8(3), uint8(7))
	}
	pointers := map[string]bool{"/ssn": false, "/*/ssn": false, "/a": true, "/a/*": false, "/1/a": true, "/b/1": false}
	var masks []string
	for pointer, partial := range pointers {
		if partial {
			pointer += " partial"
		}
		masks = append(masks, pointer)
	}
	m, all := compile(f, masks...), compile(f, strings.Join(mask.Detectors(), ","))
	f.Fuzz(func(t *testing.T, text []byte, a, b uint8) {
		checkJSON(t, m, pointers, text, int(a), int(b))
		// With the text as a value at a masked place no trace of it is left.
		if value, err := json.Marshal(string(text) + "SECRETSECRET"); err == nil {
			for _, form := range []string{`{"ssn":%s}`, `[0,{"ssn":%s}]`, `{"b":[0,%s]}`, `{"ssn":{"x":[%s]}}`, `{"ss\u006e":1,"ssn":%s}`} {
				out, err := run(m.NewJSON(), fmt.Appendf(nil, form, value), int(a), int(b))
				if err != nil || strings.Contains(out, "SECRET") {
					t.Fatalf("%s: %q, %v", form, out, err)
				}
			}
		}
		whole, wholeErr := run(all.NewJSON(), text)
		split, splitErr := run(all.NewJSON(), text, int(a), int(b))
		if (wholeErr == nil) != (splitErr == nil) || wholeErr == nil && whole != split {
			t.Fatalf("detectors: whole %q, %v; split %q, %v", whole, wholeErr, split, splitErr)
		}
		if wholeErr == nil && !json.Valid([]byte(whole)) {
			t.Fatalf("detectors: not JSON: %q", whole)
		}
	})
}

func checkJSON(t *testing.T, m *mask.Masker, pointers map[string]bool, text []byte, a, b int) {
	whole, wholeErr := run(m.NewJSON(), text)
	split, splitErr := run(m.NewJSON(), text, a, b)
	if (wholeErr == nil) != (splitErr == nil) || wholeErr == nil && whole != split {
		t.Fatalf("whole %q, %v; split %q, %v", whole, wholeErr, split, splitErr)
	}
	valid := json.Valid(text) && utf8.Valid(text)
	if wholeErr == nil && !valid {
		t.Fatalf("accepted what is not JSON: %q", text)
	}
	if wholeErr != nil {
		if valid && bytes.Count(text, []byte("["))+bytes.Count(text, []byte("{")) <= 128 && len(text) < 64<<10 {
			t.Fatalf("refused JSON: %v", wholeErr)
		}
		return
	}
	in, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := parse([]byte(whole))
	if err != nil {
		t.Fatalf("%q: %v", whole, err)
	}
	if want := reference(in, pointers, nil); !reflect.DeepEqual(out, want) {
		t.Fatalf("got %v\nwant %v", out, want)
	}
}

// secrets are one of each kind, fit to stand between spaces.
var secrets = []string{
	"4111111111111111", "4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "3782 822463 10005",
	"123-45-6789", "GB82WEST12345698765432", "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000",
	"alice@example.com", "a.b+c@sub.example.co.uk", "+49 30 901820", "(212) 555-0123", "212-555-0123",
	"AKIAIOSFODNN7EXAMPLE", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "sk-proj-4f9dK2mZx81QwLpT7vRb", "xoxb-17653672481-19874698323",
	"AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe", "glpat-Zx81QwLpT7vRb4f9dK2m", "npm_4f9dK2mZx81QwLpT7vRb4f9dK2mZx81Qw",
	"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
	"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v\n-----END PRIVATE KEY-----",
}

// FuzzDetect: the outcome is the same however the text is split, text without
// findings is unchanged, and whatever surrounds it, a secret does not get out.
func FuzzDetect(f *testing.F) {
	for i, s := range secrets {
		f.Add([]byte("see "+s+" and"), uint8(i), uint8(5), uint8(9))
		f.Add([]byte(s[:len(s)/2]), uint8(i), uint8(1), uint8(1))
	}
	f.Add([]byte("token=abc key: \"q8Zt3LmP0xYv7Rk2\" postgres://u:p@ss@h/ -----BEGIN RSA PRIVATE KEY-----"), uint8(0), uint8(2), uint8(11))
	f.Add([]byte("eyJ-eyJ%20eyJa\\neyJ.a@b.c@d.ee@\x80\x80"), uint8(0), uint8(2), uint8(11))
	m := compile(f, strings.Join(mask.Detectors(), ","))
	partial := compile(f, strings.Join(mask.Detectors(), ",")+" partial")
	f.Fuzz(func(t *testing.T, text []byte, pick, a, b uint8) {
		text = bytes.ReplaceAll(text, []byte{0}, nil)
		secret := secrets[int(pick)%len(secrets)]
		for _, in := range [][]byte{text, []byte(string(text) + " " + secret + " " + string(text))} {
			for _, m := range []*mask.Masker{m, partial} {
				whole, _ := m.Text(in)
				split, err := run(m.NewText(), in, int(a), int(b))
				if err != nil || split != string(whole) {
					t.Fatalf("whole %q\nsplit %q, %v", whole, split, err)
				}
			}
		}
		out, _ := m.Text([]byte(string(text) + " " + secret + " " + string(text)))
		if strings.Contains(string(out), secret) && !strings.Contains(string(text), secret) {
			t.Fatalf("%q is in %q", secret, out)
		}
		if len(secret) > 30 && strings.Contains(string(out), secret[:30]) && !strings.Contains(string(text), secret[:30]) {
			t.Fatalf("the beginning of %q is in %q", secret, out)
		}
	})
}

// FuzzEventStream: the outcome is the same however the text is split, and a
// secret at a masked place of a payload does not get out.
func FuzzEventStream(f *testing.F) {
	f.Add([]byte("data: {\"ssn\":1}\n\n"), uint8(1), uint8(2))
	f.Add([]byte(": c\r\nevent: x\rdata: {\r\ndata: }\r\n\r\n"), uint8(1), uint8(2))
	m := compile(f, "/ssn", "EMAIL,SSN")
	f.Fuzz(func(t *testing.T, text []byte, a, b uint8) {
		whole, wholeErr := run(m.NewEventStream(), text)
		split, splitErr := run(m.NewEventStream(), text, int(a), int(b))
		if (wholeErr == nil) != (splitErr == nil) || wholeErr == nil && whole != split {
			t.Fatalf("whole %q, %v; split %q, %v", whole, wholeErr, split, splitErr)
		}
		event := append(text[:len(text):len(text)], "\n\ndata: {\"ssn\":\ndata: \"SECRET\"}\n\n"...)
		if out, _ := run(m.NewEventStream(), event, int(a), int(b)); strings.Contains(out, "SECRET") && !bytes.Contains(text, []byte("SECRET")) {
			t.Fatalf("secret in %q", out)
		}
	})
}
