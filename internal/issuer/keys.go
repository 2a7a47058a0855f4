package issuer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
)

// How keys live. A key is published for publishAhead before it signs, so that
// every verifier knows it, and stays until the last token that it signed has
// expired.
const (
	publishAhead  = 10 * time.Minute
	lookAgain     = 10 * time.Second // how old the folder's listing may be
	maxKeys       = 32
	maxKeyFile    = 16 << 10
	keySuffix     = ".pem"
	DefaultRotate = 30 * 24 * time.Hour
)

// Keys are the signing keys (ES256) in a folder, one file each, that replicas
// may share. The name of a file is its key's kid, and says when it was made.
// Methods are safe for concurrent use.
type Keys struct {
	dir    string
	rotate time.Duration
	life   time.Duration // of the longest token, and a margin
	clock  func() time.Time

	mu     sync.Mutex
	keys   []key // by age, the oldest first
	looked time.Time
}

// A key is one file.
type key struct {
	kid     string
	made    time.Time
	private *ecdsa.PrivateKey
}

// OpenKeys opens the folder, which is made for this user alone when it is
// missing and refused when others can reach it. A first key is made when there
// is none; a new one whenever the newest is older than rotate. life is how long
// the longest token lives.
func OpenKeys(dir string, rotate, life time.Duration, clock func() time.Time) (*Keys, error) {
	if rotate < 2*publishAhead {
		return nil, fmt.Errorf("signing keys: rotate is %s; %s at least", rotate, 2*publishAhead)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	k := &Keys{dir: dir, rotate: rotate, life: life, clock: clock}
	if _, err := k.current(); err != nil {
		return nil, err
	}
	return k, nil
}

// Published is the JWK set (RFC 7517) of the keys that verify.
func (k *Keys) Published() ([]byte, error) {
	keys, err := k.current()
	if err != nil {
		return nil, err
	}
	set := jwk.NewSet()
	for _, one := range keys {
		public, err := jwk.FromRaw(one.private.Public())
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", one.kid, err)
		}
		err = errors.Join(public.Set(jwk.KeyIDKey, one.kid), public.Set(jwk.AlgorithmKey, jwa.ES256),
			public.Set(jwk.KeyUsageKey, jwk.ForSignature), set.AddKey(public))
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", one.kid, err)
		}
	}
	return json.Marshal(set)
}

// signing is the newest key that has been published for long enough; of keys
// that are all new, the oldest.
func (k *Keys) signing() (key, error) {
	keys, err := k.current()
	if err != nil {
		return key{}, err
	}
	return keys[signingAt(keys, k.clock())], nil
}

func signingAt(keys []key, now time.Time) (at int) {
	for i, one := range keys {
		if !now.Before(one.made.Add(publishAhead)) {
			at = i
		}
	}
	return at
}

// current lists the folder, makes a key when one is due and removes those whose
// last token has expired.
func (k *Keys) current() ([]key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock()
	if len(k.keys) > 0 && now.Sub(k.looked) < lookAgain && !now.Before(k.looked) {
		return k.keys, nil
	}
	keys, err := k.list()
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 || now.Sub(keys[len(keys)-1].made) >= k.rotate {
		made, err := k.create(now)
		if err != nil {
			return nil, err
		}
		keys = append(keys, made)
	}
	if keys, err = k.bury(keys, now); err != nil {
		return nil, err
	}
	k.keys, k.looked = keys, now
	return keys, nil
}

// bury removes keys that another one followed so long ago that no token of
// theirs is good.
func (k *Keys) bury(keys []key, now time.Time) ([]key, error) {
	for len(keys) > 1 && !now.Before(keys[1].made.Add(publishAhead+k.life)) {
		if err := os.Remove(filepath.Join(k.dir, keys[0].kid+keySuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("signing keys: %w", err)
		}
		keys = keys[1:]
	}
	return keys, nil
}

func (k *Keys) list() ([]key, error) {
	info, err := os.Stat(k.dir)
	if err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("signing keys: others can reach %s; run chmod 700 on it, and remove the keys if they may have been read", k.dir)
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	var keys []key
	for _, e := range entries {
		kid, isKey := strings.CutSuffix(e.Name(), keySuffix)
		if !isKey {
			continue
		}
		one, err := k.read(kid)
		if errors.Is(err, fs.ErrNotExist) { // another replica has just removed it
			continue
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, one)
	}
	if len(keys) > maxKeys {
		return nil, fmt.Errorf("signing keys: %s holds %d, more than %d", k.dir, len(keys), maxKeys)
	}
	slices.SortFunc(keys, func(a, b key) int {
		if c := a.made.Compare(b.made); c != 0 {
			return c
		}
		return strings.Compare(a.kid, b.kid)
	})
	return keys, nil
}

// read never quotes the file's content.
func (k *Keys) read(kid string) (key, error) {
	path := filepath.Join(k.dir, kid+keySuffix)
	stamp, _, ok := strings.Cut(kid, "-")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if !ok || err != nil {
		return key{}, fmt.Errorf("signing key %s: the name does not say when it was made", path)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return key{}, fmt.Errorf("signing key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || info.Size() > maxKeyFile {
		return key{}, fmt.Errorf("signing key %s must be a small regular file with mode 0600", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return key{}, fmt.Errorf("signing key: %w", err)
	}
	block, rest := pem.Decode(b)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return key{}, fmt.Errorf("signing key %s is not one key in PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, isEC := parsed.(*ecdsa.PrivateKey)
	if err != nil || !isEC || private.Curve != elliptic.P256() {
		return key{}, fmt.Errorf("signing key %s is not a P-256 key", path)
	}
	return key{kid: kid, made: time.Unix(seconds, 0), private: private}, nil
}

// create makes a key. It is whole on disk before it has its name, so that no
// replica reads half of one.
func (k *Keys) create(now time.Time) (key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return key{}, fmt.Errorf("signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return key{}, fmt.Errorf("signing key: %w", err)
	}
	kid := strconv.FormatInt(now.Unix(), 10) + "-" + strings.ToLower(rand.Text()[:10])
	f, err := os.OpenFile(filepath.Join(k.dir, kid+".new"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return key{}, fmt.Errorf("signing key: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(k.dir, kid+keySuffix))
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the error is what matters
		return key{}, fmt.Errorf("signing key: %w", err)
	}
	return key{kid: kid, made: time.Unix(now.Unix(), 0), private: private}, nil
}
