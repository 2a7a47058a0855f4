package approval

import (
	"fmt"
	"strings"
	"unicode"

	"chaperone.dev/chaperone/internal/access"
)

// maxEffect bounds the summary, in bytes.
const maxEffect = 300

// Effect says in one short line what an action would do, without any value in
// it: no literals, no parameters, no body, no query, no part of a path that
// could be one. It is plain text without control characters.
func Effect(a access.Action) string {
	text := "unknown action"
	switch {
	case a.SQL != nil:
		text = sqlEffect(a.SQL)
	case a.HTTP != nil:
		text = a.HTTP.Method + " " + pathShape(a.HTTP.Path)
		if a.HTTP.BodyBytes > 0 {
			text += fmt.Sprintf(" with a body of %d bytes", a.HTTP.BodyBytes)
		}
	case a.K8s != nil:
		text = k8sEffect(a.K8s)
	case a.SSH != nil:
		text = a.SSH.Shape()
	}
	return line(text)
}

func sqlEffect(q *access.SQL) string {
	text := q.Command
	if text == "" {
		text = "unknown statement"
	}
	switch {
	case len(q.Writes) > 0:
		text += " " + strings.Join(q.Writes, ", ")
	case len(q.Tables) > 0:
		text += " " + strings.Join(q.Tables, ", ")
	}
	if (q.Command == "UPDATE" || q.Command == "DELETE" || q.Command == "MERGE") && !q.HasWhere {
		text += " without WHERE"
	}
	if len(q.Unknown) > 0 {
		text += " (partly unknown)"
	}
	return text
}

// k8sEffect names the object too: what it is called is no value.
func k8sEffect(k *access.K8s) string {
	shape := *k
	shape.Path = pathShape(k.Path)
	text := shape.String()
	if k.DryRun {
		text += " (dry run)"
	}
	if len(k.Powers) > 0 {
		text += " [" + strings.Join(k.Powers, ", ") + "]"
	}
	return text
}

// pathShape keeps the words of a path and hides what may be a value.
func pathShape(path string) string {
	path, _, _ = strings.Cut(path, "?")
	segments := strings.Split(path, "/")
	for i, s := range segments {
		word := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_' }
		version := len(s) == 2 && s[0] == 'v' && s[1] >= '0' && s[1] <= '9'
		if len(s) > 32 || !version && strings.ContainsFunc(s, func(r rune) bool { return !word(r) }) {
			segments[i] = "*"
		}
	}
	return strings.Join(segments, "/")
}

// line makes text safe to show anywhere and cuts it.
func line(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, strings.ToValidUTF8(text, "\uFFFD"))
	if len(text) > maxEffect {
		text = strings.ToValidUTF8(text[:maxEffect], "") + "…"
	}
	return text
}
