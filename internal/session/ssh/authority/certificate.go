package authority

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
)

// PrincipalExtension holds the principal of a client as JSON.
const PrincipalExtension = "principal@chaperone.dev"

// sourceAddress is the critical option that says from where a certificate may be
// used, and nowhere is an address from which nobody connects: no sshd takes a
// client's certificate, whomever it trusts. Every server knows the option, and so
// do libraries of clients, which refuse to load what they do not know.
const (
	sourceAddress = "source-address"
	nowhere       = "255.255.255.255/32"
)

// Bounds of certificates.
const (
	// MaxLife is the longest that a client's certificate may live; MinLife the
	// shortest that is worth making.
	MaxLife = time.Hour
	MinLife = 10 * time.Second

	hostLife     = 7 * 24 * time.Hour
	hostRenew    = 24 * time.Hour
	targetLife   = 2 * time.Minute
	early        = time.Minute // how far another clock may be behind
	maxPrincipal = 64 << 10
	maxResources = 64
)

// ErrRejected wraps what is wrong with a client's certificate.
var ErrRejected = errors.New("certificate rejected")

// A Grant is what a client's certificate says: who holds the key, and for which
// resources.
type Grant struct {
	Principal access.Principal
	Resources []string
	Serial    uint64
	Expires   time.Time
}

// userKeys are the types of key that clients may have.
var userKeys = []string{gossh.KeyAlgoED25519, gossh.KeyAlgoSKED25519, gossh.KeyAlgoECDSA256, gossh.KeyAlgoECDSA384, gossh.KeyAlgoECDSA521, gossh.KeyAlgoSKECDSA256}

// ParseUserKey reads the public key of a client from one line.
func ParseUserKey(line string) (gossh.PublicKey, error) {
	key, _, options, rest, err := gossh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one public key in the form of OpenSSH")
	}
	if !slices.Contains(userKeys, key.Type()) {
		return nil, fmt.Errorf("keys of type %q are not taken: make an ed25519 one", key.Type())
	}
	return key, nil
}

// Grant certifies the client's key for life, but not beyond the principal's
// token.
func (k *Keys) Grant(key gossh.PublicKey, p access.Principal, resources []string, now time.Time, life time.Duration) (*gossh.Certificate, error) {
	until := now.Add(min(life, MaxLife))
	if p.Token.ExpiresAt.Before(until) {
		until = p.Token.ExpiresAt
	}
	if until.Sub(now) < MinLife {
		return nil, errors.New("the token has expired, or is about to")
	}
	who, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("principal: %w", err)
	}
	if len(who) > maxPrincipal || len(resources) == 0 || len(resources) > maxResources {
		return nil, errors.New("too much for one certificate")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	cert := &gossh.Certificate{
		Key: key, CertType: gossh.UserCert, Serial: serial, KeyId: p.Token.ID + " " + p.Subject, ValidPrincipals: resources,
		ValidAfter: uint64(now.Add(-early).Unix()), ValidBefore: uint64(until.Unix()),
		Permissions: gossh.Permissions{
			CriticalOptions: map[string]string{sourceAddress: nowhere},
			Extensions:      map[string]string{PrincipalExtension: string(who), "permit-pty": ""}, // the latter for people who read it; policy decides
		},
	}
	return cert, cert.SignCert(rand.Reader, k.ca)
}

// Read verifies a client's certificate in every respect but who holds the key,
// which the protocol does, and whether the token was revoked.
func (k *Keys) Read(cert *gossh.Certificate, now time.Time) (Grant, error) {
	g := Grant{Serial: cert.Serial, Resources: cert.ValidPrincipals, Expires: time.Unix(int64(cert.ValidBefore), 0)}
	who, ok := cert.Extensions[PrincipalExtension]
	switch {
	case cert.CertType != gossh.UserCert:
		return g, fmt.Errorf("%w: not a user's", ErrRejected)
	case !bytes.Equal(cert.SignatureKey.Marshal(), k.ca.PublicKey().Marshal()):
		return g, fmt.Errorf("%w: another authority signed it", ErrRejected)
	case !ok || len(who) > maxPrincipal:
		return g, fmt.Errorf("%w: it names no principal", ErrRejected)
	case len(cert.CriticalOptions) != 1 || cert.CriticalOptions[sourceAddress] != nowhere:
		return g, fmt.Errorf("%w: its critical options are not those of a client's", ErrRejected)
	case len(cert.ValidPrincipals) == 0 || len(cert.ValidPrincipals) > maxResources:
		return g, fmt.Errorf("%w: it names no resource", ErrRejected)
	case !slices.Contains(userKeys, cert.Key.Type()):
		return g, fmt.Errorf("%w: its key is of type %q", ErrRejected, cert.Key.Type())
	case cert.ValidBefore-cert.ValidAfter > uint64((MaxLife+early)/time.Second):
		return g, fmt.Errorf("%w: it lives too long", ErrRejected)
	}
	checker := gossh.CertChecker{SupportedCriticalOptions: []string{sourceAddress}, Clock: func() time.Time { return now }}
	if err := checker.CheckCert(cert.ValidPrincipals[0], cert); err != nil {
		return g, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	decoder := json.NewDecoder(strings.NewReader(who))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&g.Principal); err != nil {
		return g, fmt.Errorf("%w: its principal: %w", ErrRejected, err)
	}
	if g.Principal.Subject == "" || g.Principal.Token.ID == "" || !now.Before(g.Principal.Token.ExpiresAt) {
		return g, fmt.Errorf("%w: its token has expired", ErrRejected)
	}
	return g, nil
}

// Hosts are the keys with which the gateway proves itself under names: the
// certified one, and the bare one for clients that know no certificates.
func (k *Keys) Hosts(names []string, now time.Time) ([]gossh.Signer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	joined := strings.Join(names, " ")
	if k.certified != nil && k.names == joined && now.Before(k.renew) {
		return []gossh.Signer{k.certified, k.host}, nil
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	cert := &gossh.Certificate{Key: k.host.PublicKey(), CertType: gossh.HostCert, Serial: serial, KeyId: "chaperone", ValidPrincipals: names,
		ValidAfter: uint64(now.Add(-early).Unix()), ValidBefore: uint64(now.Add(hostLife).Unix())}
	if err := cert.SignCert(rand.Reader, k.ca); err != nil {
		return nil, fmt.Errorf("host certificate: %w", err)
	}
	if k.certified, err = gossh.NewCertSigner(cert, k.host); err != nil {
		return nil, fmt.Errorf("host certificate: %w", err)
	}
	k.names, k.renew = joined, now.Add(hostRenew)
	return []gossh.Signer{k.certified, k.host}, nil
}

// ForTarget makes a key that nobody else has, and its certificate for one user
// of a target. id is what the target's log shows.
func (k *Keys) ForTarget(user, id string, now time.Time) (gossh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := gossh.NewSignerFromKey(private)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	cert := &gossh.Certificate{Key: signer.PublicKey(), CertType: gossh.UserCert, Serial: serial, KeyId: id, ValidPrincipals: []string{user},
		ValidAfter: uint64(now.Add(-early).Unix()), ValidBefore: uint64(now.Add(targetLife).Unix()),
		// No agent, no X11 and no ~/.ssh/rc: the gateway never asks for them.
		Permissions: gossh.Permissions{Extensions: map[string]string{"permit-pty": "", "permit-port-forwarding": ""}}}
	if err := cert.SignCert(rand.Reader, k.targetCA); err != nil {
		return nil, err
	}
	return gossh.NewCertSigner(cert, signer)
}

func newSerial() (uint64, error) {
	var b [8]byte
	_, err := rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:]) >> 1, err
}
