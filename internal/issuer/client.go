package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/identity"
)

// assertionType is that of RFC 7523, section 2.2.
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

var assertionAlgorithms = identity.AssertionAlgorithms

// A Client authenticates with an assertion that it signs.
type Client struct {
	ID   string
	Keys []byte // JWK set of its public keys
}

type client struct{ keys *identity.ClientKeys }

func newClient(c Client) (*client, error) {
	if c.ID == "" {
		return nil, errors.New("the id is empty")
	}
	keys, err := identity.ParseClientKeys(c.Keys)
	if err != nil {
		return nil, err
	}
	return &client{keys}, nil
}

// authenticateClient returns the id of the client that signed the assertion of
// the form; "" when there is none and none is needed. An assertion is good once.
func (s *Service) authenticateClient(ctx context.Context, in *form) (string, *fault) {
	raw, kind := in.get("client_assertion"), in.get("client_assertion_type")
	switch {
	case raw == "" && kind == "" && len(s.clients) == 0:
		return "", nil
	case in.get("client_secret") != "":
		return "", invalidClient(errors.New("a client secret"))
	case raw == "" || kind != assertionType:
		return "", invalidClient(errors.New("no assertion of the type jwt-bearer"))
	}
	assertion := access.NewSecret(raw)
	id, err := identity.AssertedClient(assertion)
	if err != nil {
		return "", invalidClient(err)
	}
	known := s.clients[id]
	if known == nil || in.get("client_id") != "" && in.get("client_id") != id {
		return "", invalidClient(errors.New("the client is not configured, or not the one of client_id"))
	}
	now := s.Clock()
	unique, expires, err := known.keys.VerifyAssertion(assertion, id, []string{s.config.Issuer, s.config.Issuer + TokenPath}, now)
	if err != nil {
		return "", invalidClient(err)
	}
	sum := sha256.Sum256([]byte(unique))
	switch err := s.Once(ctx, hex.EncodeToString(sum[:]), expires.Sub(now)); {
	case errors.Is(err, ErrSeen):
		return "", invalidClient(err)
	case err != nil:
		return "", unavailable("the gateway cannot check assertions now", err)
	}
	return id, nil
}

// ErrSeen is what Deps.Once returns the second time.
var ErrSeen = errors.New("it was used before")
