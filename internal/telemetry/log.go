// Package telemetry is how chaperone is seen from outside: JSON logs that keep
// secrets, OpenTelemetry traces and Prometheus metrics. It owns their set-up and
// the names of the attributes. It refuses to be evidence: what must not be lost
// is in the recording. Nothing here is global; what is made is handed on.
package telemetry

import (
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
)

const redacted = "[redacted]"

// secretNames end the names of attributes whose values are never written.
var secretNames = [...]string{"token", "password", "authorization", "secret", "cookie", "api_key", "api-key"}

// Logger writes JSON lines to w, from level on. A value is written as
// "[redacted]" when it is an access.Secret, or when its name, the name of a
// group around it or its key in a map of text ends in token, password,
// authorization, secret, cookie or api_key, in any case.
func Logger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: redact}))
}

func redact(groups []string, a slog.Attr) slog.Attr {
	if secretName(a.Key) || slices.ContainsFunc(groups, secretName) {
		return slog.String(a.Key, redacted)
	}
	switch m := a.Value.Any().(type) {
	case http.Header:
		return slog.Any(a.Key, redactMap(m, []string{redacted}))
	case map[string][]string:
		return slog.Any(a.Key, redactMap(m, []string{redacted}))
	case map[string]string:
		return slog.Any(a.Key, redactMap(m, redacted))
	case map[string]any:
		return slog.Any(a.Key, redactMap(m, redacted))
	}
	return a
}

func redactMap[V any](m map[string]V, with V) map[string]V {
	out := make(map[string]V, len(m))
	for k, v := range m {
		if secretName(k) {
			v = with
		}
		out[k] = v
	}
	return out
}

func secretName(name string) bool {
	name = strings.ToLower(name)
	for _, s := range secretNames {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}
