package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// maxChain bounds the certificates of one client, and their bytes.
const (
	maxChain      = 8
	maxChainBytes = 32 << 10
)

// A Shown is the certificate chain, in DER, leaf first, whose key the caller's
// connection has proven to hold. Nothing else about it is known yet: who showed
// it, if anybody that is believed, is for Verify to find out.
type Shown struct{ chain [][]byte }

// ShownChain is for a connection whose TLS ended here.
func ShownChain(chain []*x509.Certificate) Shown {
	var s Shown
	for _, c := range chain {
		s.chain = append(s.chain, c.Raw)
	}
	return s
}

// ForwardedHeader is where Envoy, where TLS ends, says what the client showed.
// It takes the client's own away first (SANITIZE_SET).
const ForwardedHeader = "x-forwarded-client-cert"

// Forwarded reads the values of ForwardedHeader: none is a client that showed
// nothing, anything but one element with one chain is a fault.
func Forwarded(values []string) (Shown, error) {
	if len(values) == 0 {
		return Shown{}, nil
	}
	if len(values) > 1 || len(values[0]) > 2*maxChainBytes {
		return Shown{}, errors.New("the forwarded client certificate is there twice, or too long")
	}
	const key = `Chain="`
	_, rest, ok := strings.Cut(values[0], key)
	text, rest, closed := strings.Cut(rest, `"`)
	if !ok || !closed || strings.ContainsAny(rest, `,"`) {
		return Shown{}, errors.New("the forwarded client certificate is not one chain")
	}
	raw, err := url.PathUnescape(text) // a plus sign is base64's own
	if err != nil {
		return Shown{}, errors.New("the forwarded client certificate is not encoded")
	}
	var s Shown
	for block, rest := pem.Decode([]byte(raw)); block != nil; block, rest = pem.Decode(rest) {
		s.chain = append(s.chain, block.Bytes)
	}
	if len(s.chain) == 0 {
		return Shown{}, errors.New("the forwarded client certificate is not PEM")
	}
	return s, nil
}

// Empty reports whether no certificate was shown.
func (s Shown) Empty() bool { return len(s.chain) == 0 }

// Thumbprint is the x5t#S256 of the leaf (RFC 8705, section 3.1); "" for none.
func (s Shown) Thumbprint() string {
	if s.Empty() {
		return ""
	}
	sum := sha256.Sum256(s.chain[0])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (s Shown) digest() (out [sha256.Size]byte) {
	h := sha256.New()
	for _, der := range s.chain {
		fmt.Fprintf(h, "%d:", len(der))
		h.Write(der)
	}
	return [sha256.Size]byte(h.Sum(out[:0]))
}

type shownKey struct{}

// WithShown returns a context for the verification of what came over the
// connection on which s was shown. Without it no certificate was shown, and
// whatever needs one is refused.
func WithShown(ctx context.Context, s Shown) context.Context {
	return context.WithValue(ctx, shownKey{}, s)
}

// ShownIn is what WithShown put there.
func ShownIn(ctx context.Context) Shown {
	s, _ := ctx.Value(shownKey{}).(Shown)
	return s
}

// certified returns who the shown certificate names.
func (v *Verifier) certified(ctx context.Context, s Shown) (*verified, error) {
	if len(v.domains) == 0 {
		return nil, rejected("there is none")
	}
	digest := s.digest()
	if known := v.certificates.get(digest); known != nil {
		return known, v.current(ctx, known)
	}
	known, err := v.examineChain(s)
	if err != nil {
		return nil, err
	}
	if err := v.current(ctx, known); err != nil {
		return nil, err
	}
	v.certificates.add(digest, known)
	return known, nil
}

func (v *Verifier) examineChain(s Shown) (*verified, error) {
	size := 0
	var chain []*x509.Certificate
	for _, der := range s.chain {
		size += len(der)
		c, err := x509.ParseCertificate(der)
		if err != nil || size > maxChainBytes || len(chain) == maxChain {
			return nil, rejected("the client certificate cannot be read, or its chain is too long")
		}
		chain = append(chain, c)
	}
	domain, path, err := spiffeID(chain[0])
	if err != nil {
		return nil, err
	}
	trusted := v.domains[domain]
	if trusted == nil {
		return nil, rejected("the trust domain of the client certificate is not configured")
	}
	known, err := trusted.read(chain, path, v.clock.read())
	if err != nil {
		return nil, named(trusted.issuer, err)
	}
	known.who.Token.Bound = s.Thumbprint()
	return known, nil
}

// certificateID is the TokenRef.ID of a certificate as an identity.
func certificateID(der []byte) string {
	sum := sha256.Sum256(der)
	return "tok_" + hex.EncodeToString(sum[:16])
}

// confirmation reads cnf (RFC 7800). The one kind that can be checked here is
// the certificate's thumbprint (RFC 8705); a token that is bound to anything
// else is refused, for it was not meant for whoever merely has it.
func confirmation(claims map[string]any) (thumbprint string, err error) {
	value, present := claims["cnf"]
	if !present {
		return "", nil
	}
	cnf, ok := value.(map[string]any)
	if !ok || miscased(cnf, "x5t#S256") || len(cnf) != 1 {
		return "", rejected("its cnf claim is not one certificate thumbprint")
	}
	thumbprint, ok = cnf["x5t#S256"].(string)
	if b, err := decodeBase64(thumbprint); !ok || err != nil || len(b) != sha256.Size {
		return "", rejected("its cnf claim is not one certificate thumbprint")
	}
	return thumbprint, nil
}

// held refuses a token that is bound to another certificate than was shown.
func held(ctx context.Context, token access.TokenRef) error {
	switch shown := ShownIn(ctx).Thumbprint(); {
	case token.Bound == "" || token.Bound == shown:
		return nil
	case shown == "":
		return rejected("it is bound to a client certificate, and none was shown")
	}
	return rejected("it is bound to another client certificate")
}
