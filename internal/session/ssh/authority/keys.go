// Package authority owns the keys of the gateway's SSH side and what they sign:
//
//	host        proves the gateway to clients
//	ca          signs the host key's certificate, and the clients' certificates
//	target_ca   signs the certificates that the gateway shows to targets
//
// Targets trust target_ca alone: a client's certificate opens nothing but the
// gateway, and can be used from nowhere else. The package
// refuses keys that others can read, and certificates that it does not
// understand whole.
package authority

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// Names of the key files; each has its public half beside it, with ".pub".
const (
	hostFile     = "host"
	caFile       = "ca"
	targetCAFile = "target_ca"
)

const maxKeyFile = 16 << 10

// Keys are the keys in a folder, which replicas may share. Methods are safe for
// concurrent use.
type Keys struct {
	host, ca, targetCA gossh.Signer

	mu        sync.Mutex
	certified gossh.Signer // the host key with its certificate
	names     string       // that the certificate has
	renew     time.Time
}

// Open opens the folder, which is made for this user alone when it is missing
// and refused when others can reach it. Keys that are missing are made.
func Open(dir string) (*Keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("ssh keys: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("ssh keys: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("ssh keys: others can reach %s; run chmod 700 on it", dir)
	}
	k := &Keys{}
	for name, to := range map[string]*gossh.Signer{hostFile: &k.host, caFile: &k.ca, targetCAFile: &k.targetCA} {
		if *to, err = openKey(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("ssh keys: %w", err)
		}
	}
	return k, nil
}

// openKey reads a private key, after making it when there is none.
func openKey(path string) (gossh.Signer, error) {
	signer, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(path); err != nil {
			return nil, err
		}
		signer, err = readKey(path)
	}
	if err != nil {
		return nil, err
	}
	return signer, os.WriteFile(path+".pub", gossh.MarshalAuthorizedKey(signer.PublicKey()), 0o644)
}

func readKey(path string) (gossh.Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s must be a file that its owner alone can read", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	signer, err := gossh.ParsePrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: not a private key without a passphrase", path) // the error may quote it
	}
	if signer.PublicKey().Type() != gossh.KeyAlgoED25519 {
		return nil, fmt.Errorf("%s: is of type %s; ed25519 is needed", path, signer.PublicKey().Type())
	}
	return signer, nil
}

// makeKey puts a new key in place, unless another replica was faster.
func makeKey(path string) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := gossh.MarshalPrivateKey(private, "chaperone "+filepath.Base(path))
	if err != nil {
		return err
	}
	temporary := path + "." + strings.ToLower(rand.Text()[:8])
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(temporary)
	_, err = f.Write(pem.EncodeToMemory(block))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(temporary, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// CA is the authority of the gateway's host key, as clients pin it.
func (k *Keys) CA() gossh.PublicKey { return k.ca.PublicKey() }

// TargetCA is the authority that targets trust.
func (k *Keys) TargetCA() gossh.PublicKey { return k.targetCA.PublicKey() }

// AuthorizedKey is the one line in which files of OpenSSH hold a key.
func AuthorizedKey(key gossh.PublicKey) string {
	return strings.TrimSuffix(string(gossh.MarshalAuthorizedKey(key)), "\n")
}
