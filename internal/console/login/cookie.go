package login

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"time"
)

// The cookies. The prefix has browsers take them only over TLS, from this very
// host, for all of it: no neighbour can set them.
const (
	sessionCookie = "__Host-chaperone-session"
	pendingCookie = "__Host-chaperone-login"
)

func cookie(name, value string, life time.Duration) *http.Cookie {
	return &http.Cookie{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(life / time.Second)}
}

// forget has the browser drop the login under way. Both kinds are dropped so.
func forget(w http.ResponseWriter) {
	c := cookie(pendingCookie, "", 0)
	c.MaxAge, c.SameSite = -1, http.SameSiteNoneMode
	http.SetCookie(w, c)
}

var errCookie = errors.New("no cookie, or several of one name")

// only returns the value of the one cookie of that name.
func only(r *http.Request, name string) (string, error) {
	found := r.CookiesNamed(name)
	if len(found) != 1 || found[0].Value == "" || len(found[0].Value) > 4<<10 {
		return "", errCookie
	}
	return found[0].Value, nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func decode(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }

func gcm(key [32]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("login: " + err.Error()) // the key has a right length
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("login: " + err.Error())
	}
	return aead
}

// seal encrypts and authenticates.
func seal(key [32]byte, text []byte) []byte { return gcm(key).Seal(nil, nil, text, nil) }

func unseal(key [32]byte, sealed []byte) ([]byte, error) { return gcm(key).Open(nil, nil, sealed, nil) }

// newID is a name that nobody can guess: 256 bits.
func newID() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return encode(b)
}
