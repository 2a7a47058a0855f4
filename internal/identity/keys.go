package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
)

const (
	maxKeys       = 100  // that one issuer may publish
	maxCandidates = 4    // keys of one kid that are tried on a token
	minRSABits    = 2048 // below, a signature proves little
	maxRSABits    = 8192 // above, verifying costs too much
)

// errUnknownKey is a fault of the token only when the keys are known to be the
// issuer's present ones.
var errUnknownKey = fmt.Errorf("%w: its key is not among those of its issuer", ErrTokenRejected)

// A keyID is the digest of a public key: a key is the same key whatever name it
// is published under.
type keyID [sha256.Size]byte

// A publicKey is one key that an issuer signs with.
type publicKey struct {
	id  keyID
	kid string // "" when published without
	alg jwa.SignatureAlgorithm
	key crypto.PublicKey
}

// A keySet is what an issuer published at one moment. It is immutable.
type keySet struct {
	keys    []publicKey
	login   *url.URL // of a SAML provider: where browsers log in; nil when it does not say
	fetched reading
}

func (s *keySet) has(id keyID) bool {
	return slices.ContainsFunc(s.keys, func(k publicKey) bool { return k.id == id })
}

// verify checks the signature of t and returns the key that made it.
func (s *keySet) verify(t *token) (keyID, error) {
	keys := s.candidates(t)
	if len(keys) == 0 {
		return keyID{}, errUnknownKey
	}
	if t.kid == "" && len(keys) > 1 {
		return keyID{}, rejected("it names no key (kid) and its issuer has several")
	}
	if len(keys) > maxCandidates {
		return keyID{}, rejected("its key name (kid) stands for too many keys")
	}
	verifier, err := jws.NewVerifier(t.alg)
	if err != nil {
		return keyID{}, fmt.Errorf("verify %s: %w", t.alg, err)
	}
	for _, k := range keys {
		if verifier.Verify([]byte(t.signed), t.signature, k.key) == nil {
			return k.id, nil
		}
	}
	return keyID{}, rejected("its signature does not verify")
}

// candidates are the keys that t may be signed with.
func (s *keySet) candidates(t *token) []publicKey {
	var out []publicKey
	for _, k := range s.keys {
		if (t.kid == "" || k.kid == t.kid) && (k.alg == "" || k.alg == t.alg) && fits(k.key, t.alg) {
			out = append(out, k)
		}
	}
	return out
}

// fits reports whether alg is made with keys like key (RFC 7518, section 3.1).
func fits(key crypto.PublicKey, alg jwa.SignatureAlgorithm) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return slices.Contains([]jwa.SignatureAlgorithm{
			jwa.RS256, jwa.RS384, jwa.RS512, jwa.PS256, jwa.PS384, jwa.PS512,
		}, alg)
	case *ecdsa.PublicKey:
		switch key.Curve.Params().BitSize {
		case 256:
			return alg == jwa.ES256
		case 384:
			return alg == jwa.ES384
		case 521:
			return alg == jwa.ES512
		}
	case ed25519.PublicKey:
		return alg == jwa.EdDSA
	}
	return false
}

// parseKeySet reads a JWK set (RFC 7517, section 5). Keys of kinds that are not
// used here are passed over; a set without any usable key is still the issuer's
// word on which keys are good: none.
func parseKeySet(b []byte) (*keySet, error) {
	document, err := decodeObject(b)
	if err != nil {
		return nil, fmt.Errorf("the key set %w", err)
	}
	list, ok := document["keys"].([]any)
	if !ok {
		return nil, errors.New("the key set has no list of keys")
	}
	if len(list) > maxKeys {
		return nil, fmt.Errorf("the key set holds %d keys, more than %d", len(list), maxKeys)
	}
	set := &keySet{}
	for _, one := range list {
		members, ok := one.(map[string]any)
		if !ok {
			return nil, errors.New("the key set holds something that is not a key")
		}
		if key, ok := parseKey(members); ok {
			set.keys = append(set.keys, key)
		}
	}
	return set, nil
}

// parseKey reads one JWK and reports whether it is a sound public key for
// signatures.
func parseKey(members map[string]any) (publicKey, bool) {
	if use, present := members["use"]; present && use != "sig" {
		return publicKey{}, false
	}
	if ops, present := members["key_ops"]; present {
		if list, ok := ops.([]any); !ok || !slices.Contains(list, any("verify")) {
			return publicKey{}, false
		}
	}
	if _, private := members["d"]; private {
		return publicKey{}, false // published, so no longer anybody's
	}
	bare := map[string]any{} // nothing else can have an effect then
	for _, name := range []string{"kty", "n", "e", "crv", "x", "y", "kid", "alg"} {
		if value, present := members[name]; present {
			bare[name] = value
		}
	}
	b, err := json.Marshal(bare)
	if err != nil {
		return publicKey{}, false
	}
	parsed, err := jwk.ParseKey(b)
	if err != nil {
		return publicKey{}, false
	}
	var raw any
	if err := parsed.Raw(&raw); err != nil || !sound(raw) {
		return publicKey{}, false
	}
	der, err := x509.MarshalPKIXPublicKey(raw)
	if err != nil {
		return publicKey{}, false
	}
	return publicKey{
		id: sha256.Sum256(der), kid: parsed.KeyID(), key: raw,
		alg: jwa.SignatureAlgorithm(parsed.Algorithm().String()),
	}, true
}

// sound refuses keys that are too weak, too costly, or no keys at all.
func sound(raw any) bool {
	switch key := raw.(type) {
	case *rsa.PublicKey:
		bits := key.N.BitLen()
		return bits >= minRSABits && bits <= maxRSABits && key.N.Bit(0) == 1 &&
			key.E >= 3 && key.E < 1<<31 && key.E&1 == 1
	case *ecdsa.PublicKey:
		_, err := key.ECDH() // the point is on its curve, which is a NIST one
		return err == nil
	case ed25519.PublicKey:
		return len(key) == ed25519.PublicKeySize
	}
	return false
}
