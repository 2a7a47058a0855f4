package main

import (
	"encoding/base64"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
)

// Whatever a target tells of the credential that it was sent is hidden.
func TestEchoedCredentialIsHidden(t *testing.T) {
	t.Parallel()
	const password = "s3cret:word"
	basic := base64.StdEncoding.EncodeToString([]byte("agent:" + password))
	for _, c := range []struct{ credential, echo, secret string }{
		{"Basic " + basic, "Authorization: Basic " + basic, basic},
		{"Basic " + basic, "bad password " + password + " of agent", password},
		{"basic " + basic, `{"user": "agent", "password": "` + password + `"}`, password},
		{"Basic " + basic, "https://agent:" + password + "@billing/", password},
		{"Bearer to-ken-1234", "token=to-ken-1234", "to-ken-1234"},
		{"key-987654", "x-api-key: key-987654", "key-987654"},
	} {
		hidden := mask.NewLiterals(credentialForms(access.NewSecret(c.credential))...)
		if got, n := hidden.Replace(c.echo); n == 0 || strings.Contains(got, c.secret) {
			t.Errorf("%s with %q: %s", c.credential, c.echo, got)
		}
		if got, n := hidden.Replace("user agent, billing of June"); n != 0 {
			t.Errorf("%s: the answer of a request without it became %q", c.credential, got)
		}
	}
}
