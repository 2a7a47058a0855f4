package login

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

const (
	prefix = "console/"
	owner  = "console" // of the leases: any replica goes on with a session
	// perPerson bounds the sessions of one person; one more ends the oldest.
	perPerson = 8
)

// ErrNone is a browser without a session, or with one that is over.
var ErrNone = errors.New("not logged in")

// A Session is a browser that is somebody's.
type Session struct {
	Principal access.Principal
	CSRF      string // what forms must bring along: only pages of this session know it
	Until     time.Time
	key       string
}

// A kept is a session as the store has it. The store alone, without the cookie,
// gives nobody a token or a session.
type kept struct {
	Opened time.Time `json:"opened"`
	Sealed []byte    `json:"sealed"`
}

// An owned is what is sealed: a token, to be verified each time, or whom an
// assertion named, which nobody can show again.
type owned struct {
	Token    string            `json:"token,omitempty"`
	Asserted *access.Principal `json:"asserted,omitempty"`
	Until    time.Time         `json:"until"`
}

// A handle is a session's cookie: who has it, by digest, so that one person's
// sessions can be counted, and a secret.
type handle struct{ person, secret string }

func (h handle) value() string { return h.person + "." + h.secret }

// key names the session in the store. It does not give the secret away.
func (h handle) key() string {
	sum := sha256.Sum256([]byte("chaperone console session\x00" + h.secret))
	return prefix + h.person + "/" + hex.EncodeToString(sum[:])
}

func (h handle) derived(purpose string) (key [32]byte) {
	b, err := hkdf.Key(sha256.New, []byte(h.secret), nil, "chaperone console "+purpose, len(key))
	if err != nil {
		panic("login: " + err.Error()) // the length is right
	}
	return [32]byte(b)
}

func readHandle(r *http.Request) (handle, error) {
	value, err := only(r, sessionCookie)
	if err != nil {
		return handle{}, err
	}
	person, secret, ok := strings.Cut(value, ".")
	if b, err := hex.DecodeString(person); err != nil || !ok || len(b) != 16 {
		return handle{}, errCookie
	}
	if b, err := decode(secret); err != nil || len(b) != 32 {
		return handle{}, errCookie
	}
	return handle{person, secret}, nil
}

// open gives the browser a session that lasts no longer than what it is from.
func (s *Service) open(w http.ResponseWriter, r *http.Request, who access.Principal, token access.Secret) error {
	now := s.Clock()
	until := now.Add(s.Life)
	if who.Token.ExpiresAt.Before(until) {
		until = who.Token.ExpiresAt
	}
	if !now.Before(until) {
		return refused("what the provider says of you is over already")
	}
	content := owned{Token: token.Reveal(), Until: until}
	if token.Empty() {
		content.Asserted = &who
	}
	person := sha256.Sum256([]byte(who.Key()))
	h := handle{hex.EncodeToString(person[:16]), newID()}
	b, err := json.Marshal(content)
	if err != nil {
		return err
	}
	value, err := json.Marshal(kept{now.UTC(), seal(h.derived("session"), b)})
	if err != nil {
		return err
	}
	if err := s.makeRoom(r.Context(), prefix+h.person+"/"); err != nil {
		return fmt.Errorf("open a session: %w", err)
	}
	// A browser that was logged in before is not any more.
	if old, err := readHandle(r); err == nil {
		if err := s.Leases.Release(r.Context(), owner, old.key()); err != nil {
			return fmt.Errorf("open a session: %w", err)
		}
	}
	if err := s.Leases.Acquire(r.Context(), h.key(), owner, value, s.Idle); err != nil {
		return fmt.Errorf("open a session: %w", err)
	}
	http.SetCookie(w, cookie(sessionCookie, h.value(), until.Sub(now)))
	return nil
}

// makeRoom ends the oldest of a person's sessions until one more may be.
func (s *Service) makeRoom(ctx context.Context, of string) error {
	page, err := s.Leases.Holders(ctx, of, "", store.MaxPage)
	if err != nil {
		return err
	}
	for items := page.Items; len(items) >= perPerson; {
		oldest, at := time.Time{}, 0
		for i, l := range items {
			var k kept
			if err := json.Unmarshal(l.Value, &k); err != nil {
				k.Opened = time.Time{} // nobody can use it
			}
			if i == 0 || k.Opened.Before(oldest) {
				oldest, at = k.Opened, i
			}
		}
		if err := s.Leases.Release(ctx, owner, items[at].Key); err != nil {
			return err
		}
		items = append(items[:at], items[at+1:]...)
	}
	return nil
}

// Session returns whose the browser is, or an error that wraps ErrNone. Who they
// are is verified anew, as with a bearer token: expiry, revocation, the issuer
// and its keys. active says that the person does something, and puts off the end
// of a session that idles.
func (s *Service) Session(r *http.Request, active bool) (*Session, error) {
	h, err := readHandle(r)
	if err != nil {
		return nil, ErrNone
	}
	ctx := r.Context()
	lease, err := s.Leases.Holder(ctx, h.key())
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("read a session: %w", err)
	}
	content, err := h.read(lease)
	if err != nil {
		return nil, fmt.Errorf("read a session: %w", err)
	}
	who, err := s.verify(ctx, content)
	if err != nil && !s.Rejected(err) {
		return nil, err
	}
	if err != nil || !s.Clock().Before(content.Until) {
		s.Logger.Info("a session of the console is over", "error", err)
		return nil, errors.Join(ErrNone, s.Leases.Release(ctx, owner, h.key()))
	}
	if active {
		lost, err := s.Leases.Renew(ctx, owner, h.key())
		if err != nil {
			return nil, fmt.Errorf("go on with a session: %w", err)
		}
		if len(lost) > 0 { // ended meanwhile
			return nil, ErrNone
		}
	}
	csrf := h.derived("form")
	return &Session{Principal: who, CSRF: encode(csrf[:]), Until: content.Until, key: h.key()}, nil
}

func (h handle) read(lease store.Lease) (content owned, err error) {
	var k kept
	if err := json.Unmarshal(lease.Value, &k); err != nil {
		return content, err
	}
	b, err := unseal(h.derived("session"), k.Sealed)
	if err != nil {
		return content, err
	}
	return content, json.Unmarshal(b, &content)
}

func (s *Service) verify(ctx context.Context, content owned) (access.Principal, error) {
	if content.Asserted != nil {
		return *content.Asserted, s.Verifier.Stands(ctx, *content.Asserted)
	}
	return s.Verifier.Verify(ctx, access.NewSecret(content.Token))
}

// Fits reports whether a form was made for this session.
func (s *Session) Fits(csrf string) bool { return hmac.Equal([]byte(csrf), []byte(s.CSRF)) }

// End ends a session, and has the browser drop its cookie.
func (s *Service) End(w http.ResponseWriter, r *http.Request, session *Session) error {
	if err := s.Leases.Release(r.Context(), owner, session.key); err != nil {
		return fmt.Errorf("end a session: %w", err)
	}
	c := cookie(sessionCookie, "", 0)
	c.MaxAge = -1
	http.SetCookie(w, c)
	return nil
}

// EndAll ends every session, of every replica.
func (s *Service) EndAll(ctx context.Context) error {
	for after := ""; ; {
		page, err := s.Leases.Holders(ctx, prefix, after, store.MaxPage)
		if err != nil {
			return fmt.Errorf("end the console's sessions: %w", err)
		}
		for _, l := range page.Items {
			if err := s.Leases.Release(ctx, owner, l.Key); err != nil {
				return fmt.Errorf("end the console's sessions: %w", err)
			}
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}
