package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/lestrrat-go/jwx/v2/jwa"
)

// maxKeyName bounds a kid.
const maxKeyName = 256

// A token is a compact JWS (RFC 7515, section 7.1), read strictly and not yet
// believed.
type token struct {
	signed    string // header.claims, as the issuer signed it
	signature []byte
	alg       jwa.SignatureAlgorithm
	kid       string // "" when absent
	typ       string // as mediaType gives it; "" when absent
	issuer    string // what iss says
	claims    map[string]any
}

// headerNames are the header parameters with a meaning for us (RFC 7515, RFC
// 7516, RFC 7797); in any other case they would have one for somebody else.
var headerNames = []string{
	"alg", "kid", "typ", "cty", "crit", "jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "b64", "enc", "zip",
}

// claimNames are the claims with a meaning for us, besides the mapped ones.
var claimNames = []string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "act", "may_act", "cnf", "email_verified", "_claim_names", "hasgroups",
}

func checkSize(raw string) error {
	switch {
	case raw == "":
		return rejected("there is none")
	case len(raw) > MaxTokenBytes:
		return rejected("it is too long")
	}
	return nil
}

// parse reads a compact JWS. Everything that it returns is checked for form and
// nothing of it is verified.
func parse(raw string) (*token, error) {
	if err := checkSize(raw); err != nil {
		return nil, err
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, rejected("it does not have three parts")
	}
	header, err := part(parts[0], "header")
	if err != nil {
		return nil, err
	}
	t := &token{signed: signedPart(raw)}
	if err := t.readHeader(header); err != nil {
		return nil, err
	}
	if parts[2] == "" {
		return nil, rejected("it is not signed")
	}
	if t.signature, err = decodeBase64(parts[2]); err != nil {
		return nil, rejected("its signature is not strict base64url")
	}
	if t.claims, err = part(parts[1], "claims"); err != nil {
		return nil, err
	}
	if miscased(t.claims, claimNames...) {
		return nil, rejected("its claims part " + errMiscased.Error())
	}
	issuer, ok := t.claims["iss"].(string)
	if !ok || issuer == "" {
		return nil, rejected("it has no iss claim that is text")
	}
	t.issuer = issuer
	return t, nil
}

// part decodes one base64url-encoded JSON object.
func part(encoded, what string) (map[string]any, error) {
	b, err := decodeBase64(encoded)
	if err != nil {
		return nil, rejected("its " + what + " part is not strict base64url")
	}
	object, err := decodeObject(b)
	if err != nil {
		return nil, rejected("its " + what + " part " + err.Error())
	}
	return object, nil
}

// decodeBase64 reads base64url without padding (RFC 7515, section 2), each value
// in its one spelling: no line breaks, which the decoder would skip, and no bits
// set that belong to no byte.
func decodeBase64(s string) ([]byte, error) {
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		return nil, base64.CorruptInputError(i)
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

func (t *token) readHeader(header map[string]any) error {
	if miscased(header, headerNames...) {
		return rejected("its header part " + errMiscased.Error())
	}
	for _, name := range []string{"jku", "jwk", "x5u", "x5c"} {
		if _, present := header[name]; present {
			return rejected("its header brings its own key (" + name + ")")
		}
	}
	for _, name := range []string{"crit", "b64", "enc", "zip"} {
		if _, present := header[name]; present {
			return rejected("its header asks for an extension (" + name + ")")
		}
	}
	alg, ok := header["alg"].(string)
	if !ok {
		return rejected("its header has no alg that is text")
	}
	if err := t.readAlgorithm(alg); err != nil {
		return err
	}
	if value, present := header["kid"]; present {
		if t.kid, ok = value.(string); !ok || !saneKeyName(t.kid) {
			return rejected("its kid header is not a short printable text")
		}
	}
	if value, present := header["typ"]; present {
		typ, ok := value.(string)
		if !ok || typ == "" {
			return rejected("its typ header is not text")
		}
		t.typ = mediaType(typ)
	}
	return nil
}

func (t *token) readAlgorithm(alg string) error {
	t.alg = jwa.SignatureAlgorithm(alg)
	switch {
	case strings.EqualFold(alg, "none"):
		return rejected("it is unsigned (alg none)")
	case len(alg) >= 2 && strings.EqualFold(alg[:2], "HS"):
		return rejected("its signature is symmetric (alg HS*)")
	case !slices.Contains(asymmetric, t.alg):
		return rejected("its signature algorithm is not known")
	}
	return nil
}

func saneKeyName(kid string) bool {
	return kid != "" && len(kid) <= maxKeyName &&
		!strings.ContainsFunc(kid, func(r rune) bool { return r <= ' ' || r > '~' })
}

// mediaType is the comparable form of a typ header (RFC 7515, section 4.1.9).
func mediaType(typ string) string {
	return strings.TrimPrefix(strings.ToLower(typ), "application/")
}

func signedPart(raw string) string {
	if i := strings.LastIndexByte(raw, '.'); i >= 0 {
		return raw[:i]
	}
	return raw
}

func tokenID(signed string) string {
	sum := sha256.Sum256([]byte(signed))
	return "tok_" + hex.EncodeToString(sum[:16])
}
