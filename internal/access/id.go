package access

import (
	"crypto/rand"
	"strconv"
	"strings"
)

// NewRequestID returns a fresh request id: "req_" and 26 random characters.
func NewRequestID() string { return "req_" + strings.ToLower(rand.Text()) }

// NewSessionID returns a fresh session id: "ses_" and 26 random characters.
func NewSessionID() string { return "ses_" + strings.ToLower(rand.Text()) }

func joinLengthPrefixed(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(strconv.Itoa(len(p)))
		b.WriteByte(':')
		b.WriteString(p)
	}
	return b.String()
}
