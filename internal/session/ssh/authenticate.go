package ssh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ingress"
)

// The algorithms that are spoken, towards clients and targets. Ciphers are AEADs
// whose counter no one else moves: what was cut out of the beginning of a
// connection (Terrapin) fails the first message after it, also with a peer
// without strict key exchange.
var algorithms = gossh.Config{
	KeyExchanges: []string{gossh.KeyExchangeMLKEM768X25519, gossh.KeyExchangeCurve25519},
	Ciphers:      []string{gossh.CipherAES128GCM, gossh.CipherAES256GCM},
	MACs:         []string{gossh.HMACSHA256ETM, gossh.HMACSHA512ETM}, // named, never used: GCM has its own
}

const serverVersion = "SSH-2.0-chaperone"

const maxLogin = 128 // bytes of a user name

// An identity is what the connection finally authenticated as.
type identity struct {
	principal access.Principal
	user      string // account at the target
	resource  string
}

// identityKey is where it stands in the permissions of the connection.
type identityKey struct{}

// errNoCredential wraps what is wrong with a credential before and after others
// have a look at it.
var errNoCredential = errors.New("no valid credential")

// authentication is one connection before its session.
type authentication struct {
	*Service
	ctx    context.Context
	source net.Addr
	permit *Permit // of the authorizer; nil: the client has yet to say who it is

	login  string
	denial *access.Denial // of the last credential that was offered
	cause  error
}

// A link is an authenticated client.
type link struct {
	conn     *gossh.ServerConn
	channels <-chan gossh.NewChannel
	requests <-chan *gossh.Request
}

// handshake takes the client through key exchange and authentication.
func (a *authentication) handshake(conn *ingress.Conn) (*gossh.ServerConn, <-chan gossh.NewChannel, <-chan *gossh.Request, error) {
	config := &gossh.ServerConfig{
		Config: algorithms,
		PublicKeyAuthAlgorithms: []string{gossh.KeyAlgoED25519, gossh.KeyAlgoSKED25519,
			gossh.KeyAlgoECDSA256, gossh.KeyAlgoECDSA384, gossh.KeyAlgoECDSA521, gossh.KeyAlgoSKECDSA256},
		ServerVersion:             serverVersion,
		PublicKeyCallback:         a.certificate,
		VerifiedPublicKeyCallback: a.certified,
		PasswordCallback:          a.password,
	}
	if a.permit != nil { // then that is who it is, and no credential can make it somebody else
		config.NoClientAuth, config.NoClientAuthCallback = true, a.permitted
		config.PublicKeyCallback, config.VerifiedPublicKeyCallback, config.PasswordCallback = nil, nil, nil
	}
	hosts, err := a.deps.Keys.Hosts(a.deps.HostNames(), a.deps.Clock())
	if err != nil {
		return nil, nil, nil, err
	}
	for _, key := range hosts {
		config.AddHostKey(key)
	}
	if err := conn.SetDeadline(time.Now().Add(a.cfg.StartupTimeout)); err != nil {
		return nil, nil, nil, err
	}
	client, channels, requests, err := gossh.NewServerConn(conn, config)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		client.Close()
		return nil, nil, nil, err
	}
	return client, channels, requests, nil
}

// who is what finally authenticated: no other callback's result counts.
func (a *authentication) who(client *gossh.ServerConn) identity {
	return client.Permissions.ExtraData[identityKey{}].(identity)
}

// certificate reads a certificate that the client offers, before it has shown
// that it holds the key.
func (a *authentication) certificate(meta gossh.ConnMetadata, key gossh.PublicKey) (*gossh.Permissions, error) {
	a.login = meta.User()
	cert, ok := key.(*gossh.Certificate)
	if !ok { // clients offer whatever keys they have: no word about those
		return nil, fmt.Errorf("%w: a key without a certificate", errNoCredential)
	}
	grant, err := a.deps.Keys.Read(cert, a.deps.Clock())
	if err != nil {
		return nil, a.refuse(err, access.Unauthenticated, "the certificate is not valid here (any more)", "get a new one: chaperone ssh-cert")
	}
	user, resource := splitLogin(meta.User())
	if resource == "" && len(grant.Resources) == 1 {
		resource = grant.Resources[0]
	}
	if !slices.Contains(grant.Resources, resource) {
		return nil, a.refuse(fmt.Errorf("%w: the certificate is for %v", errNoCredential, grant.Resources), access.Unauthenticated,
			"the certificate is not for "+access.Printable(cmp.Or(resource, "a resource that the user name names"), 100), "get one for it: chaperone ssh-cert RESOURCE")
	}
	return permit(identity{principal: grant.Principal, user: user, resource: resource}), nil
}

// certified comes once the client has shown that it holds the key.
func (a *authentication) certified(_ gossh.ConnMetadata, _ gossh.PublicKey, permissions *gossh.Permissions, _ string) (*gossh.Permissions, error) {
	return a.current(permissions, "the certificate is not valid here (any more)", "get a new one: chaperone ssh-cert")
}

// permitted takes a client by the authorizer's word alone.
func (a *authentication) permitted(meta gossh.ConnMetadata) (*gossh.Permissions, error) {
	a.login = meta.User()
	user, resource := splitLogin(meta.User())
	if resource != "" && resource != a.permit.Resource {
		return nil, a.refuse(fmt.Errorf("%w: the connection is for %s", errNoCredential, a.permit.Resource), access.Unauthenticated,
			"this connection is for "+access.Printable(a.permit.Resource, 100), "CONNECT to the resource that the user name names")
	}
	return a.current(permit(identity{principal: a.permit.Principal, user: user, resource: a.permit.Resource}),
		"the token of this connection is not valid (any more)", "connect again with a fresh token")
}

// current refuses an identity that was taken back since it was vouched for.
func (a *authentication) current(permissions *gossh.Permissions, gone, hint string) (*gossh.Permissions, error) {
	who := permissions.ExtraData[identityKey{}].(identity)
	if !a.deps.KnownIssuer(who.principal.Issuer) {
		return nil, a.refuse(fmt.Errorf("%w: issuer %s is not configured any more", errNoCredential, who.principal.Issuer), access.Unauthenticated, gone, hint)
	}
	ctx, cancel := context.WithTimeout(a.ctx, a.cfg.StartupTimeout)
	defer cancel()
	revoked, err := a.deps.Sessions.Revoked(ctx, who.principal)
	switch {
	case err != nil:
		return nil, a.refuse(err, access.Unavailable, "the gateway cannot check who you are now", "try again in a moment")
	case revoked:
		return nil, a.refuse(fmt.Errorf("%w: its token was revoked", errNoCredential), access.Unauthenticated, gone, hint)
	}
	return permissions, nil
}

// password takes a token. OpenSSH cuts what is typed at 1,023 bytes; other
// clients do not.
func (a *authentication) password(meta gossh.ConnMetadata, password []byte) (*gossh.Permissions, error) {
	a.login = meta.User()
	user, resource := splitLogin(meta.User())
	if len(password) == 0 {
		return nil, fmt.Errorf("%w: empty password", errNoCredential)
	}
	ctx, cancel := context.WithTimeout(a.ctx, a.cfg.StartupTimeout)
	defer cancel()
	p, err := a.deps.Verifier.Verify(ctx, access.NewSecret(string(password)))
	if err == nil && !p.Token.ExpiresAt.After(a.deps.Clock()) {
		err = fmt.Errorf("%w: it has expired", errNoCredential)
	}
	switch {
	case err == nil:
		return permit(identity{principal: p, user: user, resource: resource}), nil
	case !errors.Is(err, errNoCredential) && !a.deps.Rejected(err):
		return nil, a.refuse(err, access.Unavailable, "the gateway cannot check tokens now", "try again in a moment")
	}
	hint := "use a certificate: chaperone ssh-cert"
	if len(password) == 1023 {
		hint += "; OpenSSH cuts passwords at 1023 bytes, and this one was as long"
	}
	return nil, a.refuse(err, access.Unauthenticated, "no valid token was given as the password", hint)
}

func permit(who identity) *gossh.Permissions {
	return &gossh.Permissions{ExtraData: map[any]any{identityKey{}: who}}
}

// refuse notes why a credential is refused and tells the client in a banner.
func (a *authentication) refuse(cause error, reason access.Reason, message, hint string) error {
	_, resource := splitLogin(a.login)
	a.cause = cause
	a.denial = &access.Denial{RequestID: access.NewRequestID(), Reason: reason, Rule: ruleDefault, Message: message, Hint: hint, Resource: access.Printable(resource, 100)}
	return &gossh.BannerError{Err: cause, Message: a.denial.Text() + "\r\n"}
}

// ruleDefault stands where no rule decided.
const ruleDefault = "default-deny"

// fail ends a connection that did not authenticate: the reason goes to the log
// and, when a credential was refused, to the recording.
func (a *authentication) fail(err error) {
	reason := "handshake"
	if a.denial != nil {
		reason = string(a.denial.Reason)
		event := access.Event{Request: a.denial.RequestID, Denied: &access.Denied{
			Denial: *a.denial, Cause: a.cause.Error(), Resource: a.denial.Resource, Client: a.source.String()}}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), recordWithin)
		defer cancel()
		if err := a.deps.Recorder.Append(ctx, access.Synced, event); err != nil {
			a.deps.Log.Error("ssh denial not recorded", "error", err, "request", a.denial.RequestID)
		}
		err = a.cause
	}
	a.metrics.refused.WithLabelValues(reason).Inc()
	a.deps.Log.Info("ssh connection ended before its session", "client", a.source.String(), "login", access.Printable(a.login, maxLogin), "reason", reason, "error", err)
}

// recordWithin bounds evidence that is written while something ends.
const recordWithin = 5 * time.Second

// splitLogin takes a user name apart: the account at the target, and behind the
// last @ the resource.
func splitLogin(login string) (user, resource string) {
	if at := strings.LastIndexByte(login, '@'); at >= 0 {
		return login[:at], login[at+1:]
	}
	return login, ""
}
