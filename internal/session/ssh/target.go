package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
)

// A targetLink is the one connection of a session to its target. It is dialled
// for the first act that may pass.
type targetLink struct {
	mu     sync.Mutex
	client *gossh.Client
	closed bool
	ending sync.WaitGroup // acts that the target may have to end still
}

// endGrace is how long a target has to end an act before its connection closes:
// a connection that closes at once may take the word that ends it along.
const endGrace = 500 * time.Millisecond

// endAct says that the target was told to end an act, and waits until it has.
func (t *targetLink) endAct(done <-chan struct{}) {
	defer t.ending.Done()
	select {
	case <-done:
	case <-time.After(endGrace):
	}
}

// errHostKey is a target that does not prove itself.
var errHostKey = errors.New("the host's key is none of those that are pinned")

// reach returns the connection, dialled if there is none. A failure is tried
// again by the next act.
func (s *session) reach(ctx context.Context) (*gossh.Client, error) {
	t := &s.target
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, context.Canceled
	case t.client != nil:
		return t.client, nil
	}
	client, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	t.client = client
	go func() { // ends with the connection
		_ = client.Wait()
		s.stop(errTargetLeft)
	}()
	return client, nil
}

// dial connects to the target as the session's account, with a key that is made
// for it.
func (s *session) dial(ctx context.Context) (*gossh.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	signer, err := s.deps.Keys.ForTarget(s.user, s.info.ID+" "+access.Printable(s.info.Principal.Subject, 64), s.deps.Clock())
	if err != nil {
		return nil, fmt.Errorf("key for the target: %w", err)
	}
	return s.resource.login(ctx, s.user, s.deps.Clock, gossh.PublicKeys(signer))
}

// login connects to the target as an account.
func (r Resource) login(ctx context.Context, user string, clock func() time.Time, auth ...gossh.AuthMethod) (*gossh.Client, error) {
	dial := r.Dial
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: aliveEvery}).DialContext
	}
	conn, err := dial(ctx, "tcp", r.Address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	config := &gossh.ClientConfig{Config: algorithms, User: user, Auth: auth,
		HostKeyCallback: r.checkHost(clock), HostKeyAlgorithms: r.hostAlgorithms(), ClientVersion: serverVersion}
	client, channels, requests, err := gossh.NewClientConn(conn, r.Address, config)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return gossh.NewClient(client, channels, requests), nil // channels that the target opens are refused
}

// checkHost takes a pinned key, or one that a pinned authority certified for the
// host of the address.
func (r Resource) checkHost(clock func() time.Time) gossh.HostKeyCallback {
	is := func(other gossh.PublicKey) func(gossh.PublicKey) bool {
		return func(k gossh.PublicKey) bool { return bytes.Equal(k.Marshal(), other.Marshal()) }
	}
	return func(address string, remote net.Addr, key gossh.PublicKey) error {
		if cert, ok := key.(*gossh.Certificate); ok && slices.ContainsFunc(r.HostCAs, is(cert.SignatureKey)) {
			checker := gossh.CertChecker{Clock: clock, IsHostAuthority: func(authority gossh.PublicKey, _ string) bool {
				return slices.ContainsFunc(r.HostCAs, is(authority))
			}}
			if len(cert.ValidPrincipals) == 0 {
				return fmt.Errorf("%w: a certificate for no host in particular", errHostKey)
			}
			if err := checker.CheckHostKey(address, remote, key); err != nil {
				return fmt.Errorf("%w: %w", errHostKey, err)
			}
			return nil
		}
		if slices.ContainsFunc(r.HostKeys, is(key)) {
			return nil
		}
		return fmt.Errorf("%w: %s %s", errHostKey, key.Type(), gossh.FingerprintSHA256(key))
	}
}

// hostAlgorithms asks the target for a key that can be checked.
func (r Resource) hostAlgorithms() (names []string) {
	add := func(more ...string) {
		for _, name := range more {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(r.HostCAs) > 0 {
		add(gossh.CertAlgoED25519v01, gossh.CertAlgoECDSA256v01, gossh.CertAlgoECDSA384v01, gossh.CertAlgoECDSA521v01,
			gossh.CertAlgoRSASHA512v01, gossh.CertAlgoRSASHA256v01)
	}
	for _, key := range r.HostKeys {
		if key.Type() == gossh.KeyAlgoRSA {
			add(gossh.KeyAlgoRSASHA512, gossh.KeyAlgoRSASHA256)
			continue
		}
		add(key.Type())
	}
	return names
}

// close ends the connection for good, once its acts have ended, or had the time.
func (t *targetLink) close() {
	t.ending.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.client != nil {
		_ = t.client.Close() // it may be closed already
	}
}
