package access

import "log/slog"

// A Secret is a value that prints as "[redacted]" everywhere: fmt, log/slog,
// JSON, YAML, %#v. Reveal is the only way to the value. A Secret is safe for
// concurrent use.
//
// The value stands behind a pointer because fmt cannot call methods on an
// unexported field: inside such a field it prints what the struct holds, which
// is then an address.
type Secret struct{ value *string }

const redacted = "[redacted]"

// NewSecret wraps value.
func NewSecret(value string) Secret { return Secret{&value} }

// Reveal returns the value. Call it only where it is used, never to keep it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// Empty reports whether there is no value.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// String returns "[redacted]".
func (s Secret) String() string { return redacted }

// GoString returns "[redacted]", so that %#v does too.
func (s Secret) GoString() string { return redacted }

// MarshalText returns "[redacted]": JSON, XML and most encoders use it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalYAML returns "[redacted]".
func (s Secret) MarshalYAML() (any, error) { return redacted, nil }

// LogValue returns "[redacted]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
