package extauthz

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// parseTarget reads a request target as the route will forward it: without
// prefix. The path comes back percent-decoded, once, so that a condition sees
// what the target will look up, however the client spelled it. Whatever two
// programs could read differently is refused: a segment that is . or .. or
// empty, an encoded slash, backslash, percent sign, semicolon or control
// character, path parameters, anything that is not UTF-8.
func parseTarget(target, prefix string) (path string, query map[string][]string, f *fault) {
	raw, rawQuery, _ := strings.Cut(target, "?")
	rest, ok := strings.CutPrefix(raw, prefix)
	if !ok || prefix == "" || rest != "" && rest[0] != '/' {
		return "", nil, unreadable("the path is not below that of its resource")
	}
	if rest == "" {
		rest = "/"
	}
	for i := 0; i < len(rest); i++ {
		if !pathByte(rest[i]) {
			return "", nil, unreadable("the path has a character that must be percent-encoded, or a semicolon")
		}
	}
	path, err := url.PathUnescape(rest)
	if err != nil {
		return "", nil, unreadable("the path has a percent sign that encodes nothing")
	}
	if !utf8.ValidString(path) || strings.IndexFunc(path, isControl) >= 0 {
		return "", nil, unreadable("the path has encoded control characters, or is not UTF-8")
	}
	if strings.ContainsAny(path, `%\;`) || strings.Count(path, "/") != strings.Count(rest, "/") {
		return "", nil, unreadable("the path has an encoded slash, backslash, percent sign or semicolon")
	}
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		if s == "." || s == ".." || s == "" && i < len(segments)-1 {
			return "", nil, unreadable("the path has an empty, . or .. segment")
		}
	}
	query, f = parseQuery(rawQuery)
	return path, query, f
}

// pathByte reports whether b may stand in a path: pchar of RFC 3986, section
// 3.3, and the slash, but for the semicolon, which some targets cut at.
func pathByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' ||
		strings.IndexByte("-._~!$&'()*+,=:@%/", b) >= 0
}

// isControl reports whether r is a control character of ASCII or Latin-1.
func isControl(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }

func parseQuery(raw string) (map[string][]string, *fault) {
	if raw == "" {
		return nil, nil
	}
	if strings.IndexFunc(raw, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }) >= 0 {
		return nil, unreadable("the query has a character that must be percent-encoded")
	}
	query, err := url.ParseQuery(raw) // refuses semicolons and broken escapes
	if err != nil {
		return nil, unreadable("the query cannot be read in one way only")
	}
	for name, values := range query {
		for _, s := range append(values, name) {
			if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
				return nil, unreadable("the query has values that are not UTF-8")
			}
		}
	}
	return query, nil
}
