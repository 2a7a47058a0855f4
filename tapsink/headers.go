package tapsink

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// A header is one line. Its name is lower case.
type header struct {
	name, value string
}

type headers []header

// readHeaders takes the headers out of Envoy's form. Envoy fills raw_value, so
// that bytes that are not UTF-8 survive.
func readHeaders(m *corev3.HeaderMap) headers {
	hs := make(headers, 0, len(m.GetHeaders()))
	for _, h := range m.GetHeaders() {
		value := h.GetValue()
		if len(h.GetRawValue()) > 0 {
			value = string(h.GetRawValue())
		}
		hs = append(hs, header{strings.ToLower(h.GetKey()), value})
	}
	return hs
}

// all returns the values of a header, in order.
func (hs headers) all(name string) (values []string) {
	for _, h := range hs {
		if h.name == name {
			values = append(values, h.value)
		}
	}
	return values
}

// recorded returns the headers for the recording, without pseudo-headers and
// credentials.
func (hs headers) recorded() map[string][]string {
	m := make(map[string][]string, len(hs))
	for _, h := range hs {
		switch {
		case strings.HasPrefix(h.name, ":"):
		case credential(h.name):
			m[h.name] = append(m[h.name], "[redacted]")
		default:
			m[h.name] = append(m[h.name], strings.ToValidUTF8(h.value, "\uFFFD"))
		}
	}
	return m
}

// credential reports whether a header carries one by its nature.
func credential(name string) bool {
	switch name {
	case "set-cookie", "set-cookie2", "cookie", "authorization", "proxy-authorization",
		"www-authenticate", "proxy-authenticate", "authentication-info", "proxy-authentication-info",
		"x-api-key", "x-auth-token", "x-csrf-token", "x-amz-security-token":
		return true
	}
	return false
}

// describesBody reports whether a header says something of the original body
// that masking makes untrue, or that gives the hidden values away: a length, or
// a digest against which guesses can be checked.
func describesBody(name string) bool {
	switch name {
	case "content-length", "etag", "digest", "repr-digest", "content-digest", "content-md5", "accept-ranges",
		"x-goog-hash", "x-ms-blob-content-md5", "x-ms-content-crc64":
		return true
	}
	return strings.HasPrefix(name, "x-amz-checksum-") || strings.HasPrefix(name, "x-checksum-")
}

// masked has hide rewrite the values. It returns the headers as the client gets
// them, what Envoy has to change for that, and how many values were replaced.
// dropped names headers that go altogether.
func (hs headers) masked(hide func(value string) (string, int64), dropped func(name string) bool) (out headers, change *extprocv3.HeaderMutation, n int64) {
	change = &extprocv3.HeaderMutation{}
	changed := map[string]bool{}
	for _, h := range hs {
		if dropped(h.name) {
			change.RemoveHeaders = append(change.RemoveHeaders, h.name)
			continue
		}
		if !strings.HasPrefix(h.name, ":") {
			if value, found := hide(h.value); found > 0 {
				h.value = value
				changed[h.name] = true
				n += found
			}
		}
		out = append(out, h)
	}
	// A changed header is written anew with all its values: Envoy removes
	// before it adds.
	for name := range changed {
		change.RemoveHeaders = append(change.RemoveHeaders, name)
		for _, value := range out.all(name) {
			change.SetHeaders = append(change.SetHeaders, &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
				AppendAction: corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
			})
		}
	}
	return out, change, n
}
