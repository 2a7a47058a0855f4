package identity

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"

	"chaperone.dev/chaperone/internal/access"
)

// MaxAssertionLife bounds how long a client's assertion may be good.
const MaxAssertionLife = 5 * time.Minute

// AssertionAlgorithms are those of client assertions.
var AssertionAlgorithms = []string{"ES256", "RS256", "EdDSA"}

// ClientKeys are the public keys that one client signs assertions with. They are
// immutable.
type ClientKeys struct{ set *keySet }

// ParseClientKeys reads a JWK set with at least one usable key.
func ParseClientKeys(jwks []byte) (*ClientKeys, error) {
	set, err := parseKeySet(jwks)
	if err != nil {
		return nil, err
	}
	if len(set.keys) == 0 {
		return nil, errors.New("the key set has no usable key")
	}
	return &ClientKeys{set}, nil
}

// AssertedClient is the iss of an assertion that is not verified yet.
func AssertedClient(assertion access.Secret) (string, error) {
	t, err := parse(assertion.Reveal())
	if err != nil {
		return "", err
	}
	return t.issuer, nil
}

// VerifyAssertion verifies an assertion (RFC 7523, section 3) of the client to
// one of the audiences, and returns what makes it unique and when it ends: the
// caller must refuse to see it twice until then. Errors wrap ErrTokenRejected.
func (k *ClientKeys) VerifyAssertion(assertion access.Secret, client string, audiences []string, now time.Time) (unique string, expires time.Time, err error) {
	t, err := parse(assertion.Reveal())
	if err != nil {
		return "", time.Time{}, err
	}
	if !slices.Contains(AssertionAlgorithms, string(t.alg)) || t.alg == jwa.NoSignature {
		return "", time.Time{}, rejected("its signature algorithm is not one of client assertions")
	}
	if _, err := k.set.verify(t); err != nil {
		return "", time.Time{}, err
	}
	aud, ok := texts(t.claims["aud"])
	switch {
	case t.issuer != client || t.claims["sub"] != client:
		return "", time.Time{}, rejected("its iss and sub are not the client")
	case !ok || len(aud) != 1 || !slices.Contains(audiences, aud[0]):
		return "", time.Time{}, rejected("it is for another audience")
	}
	jti, ok := t.claims["jti"].(string)
	if !ok || !saneText(jti) {
		return "", time.Time{}, rejected("it has no jti claim")
	}
	when, err := readTimes(t.claims, MaxAssertionLife)
	if err != nil {
		return "", time.Time{}, err
	}
	expires = time.Unix(when.expires, 0)
	if !now.Before(expires) || now.Before(time.Unix(max(when.issued, when.notBefore), 0).Add(-MaxSkew)) {
		return "", time.Time{}, rejected("it is not good at this time")
	}
	return fmt.Sprintf("%d:%s:%s", len(client), client, jti), expires, nil
}
