package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"
)

// maxNesting bounds how deep JSON may nest: room for the longest delegation
// chain and little more.
const maxNesting = 16

// The faults of a JSON object. Two parsers must never read different things out
// of one token, so whatever is open to interpretation is a fault.
var (
	errNotObject  = errors.New("is not a JSON object")
	errNotUnicode = errors.New("holds text that is not Unicode")
	errDuplicate  = errors.New("holds a name twice")
	errTooDeep    = errors.New("nests too deep")
	errMiscased   = errors.New("holds a known name in another case")
	errNotNested  = errors.New("points into something that is not an object")
)

// decodeObject reads exactly one JSON object. Numbers stay json.Number.
func decodeObject(b []byte) (map[string]any, error) {
	if tooDeep(b) {
		return nil, errTooDeep
	}
	if !json.Valid(b) {
		return nil, errNotObject
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	value, err := decodeValue(d)
	if err != nil {
		return nil, err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errNotObject
	}
	return object, nil
}

// tooDeep counts brackets outside strings, before anything recurses.
func tooDeep(b []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxNesting {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

func decodeValue(d *json.Decoder) (any, error) {
	tok, err := d.Token()
	if err != nil {
		return nil, errNotObject
	}
	switch tok := tok.(type) {
	case json.Delim:
		if tok == '{' {
			return decodeMembers(d)
		}
		return decodeElements(d)
	case string:
		return tok, whole(tok)
	default:
		return tok, nil
	}
}

func decodeMembers(d *json.Decoder) (any, error) {
	object := map[string]any{}
	for d.More() {
		tok, err := d.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return nil, errNotObject
		}
		if err := whole(name); err != nil {
			return nil, err
		}
		if _, twice := object[name]; twice {
			return nil, errDuplicate
		}
		if object[name], err = decodeValue(d); err != nil {
			return nil, err
		}
	}
	_, err := d.Token() // the closing bracket; json.Valid has seen it
	return object, err
}

func decodeElements(d *json.Decoder) (any, error) {
	array := []any{}
	for d.More() {
		value, err := decodeValue(d)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
	}
	_, err := d.Token()
	return array, err
}

// whole refuses the replacement character: the decoder puts it wherever bytes
// were not UTF-8 or an escape was half of a character, so that different texts
// would become one.
func whole(s string) error {
	if strings.ContainsRune(s, utf8.RuneError) {
		return errNotUnicode
	}
	return nil
}

// miscased reports whether object has one of names in any other case, as the
// folding parsers of other programs would match it ("Exp", but also "iſs").
func miscased(object map[string]any, names ...string) bool {
	for key := range object {
		for _, name := range names {
			if key != name && strings.EqualFold(key, name) {
				return true
			}
		}
	}
	return false
}

// member walks path from object. Absent is nil.
func member(object map[string]any, path []string) (any, error) {
	var value any = object
	for _, name := range path {
		inner, ok := value.(map[string]any)
		if !ok {
			return nil, errNotNested
		}
		if miscased(inner, name) {
			return nil, errMiscased
		}
		if value, ok = inner[name]; !ok {
			return nil, nil
		}
	}
	return value, nil
}
