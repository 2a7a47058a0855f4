package lookup

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
)

var accountKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// A server is a directory of both kinds, whose answers to look-ups a test decides.
type server struct {
	*httptest.Server
	roots *x509.CertPool
	clock *clocktest.Clock

	mu     sync.Mutex
	answer http.HandlerFunc
	asked  int // look-ups
	tokens int
	strays []string
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{roots: x509.NewCertPool(), clock: clocktest.New(time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC))}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	s.roots.AddCert(s.Certificate())
	return s
}

func (s *server) says(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/token"):
		s.mu.Lock()
		s.tokens++
		s.mu.Unlock()
		if err := r.ParseForm(); err != nil || !s.granted(r) {
			http.Error(w, "{}", http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"access_token":"at","expires_in":3600}`)
	case strings.HasPrefix(r.URL.Path, "/admin/directory/v1/groups"), strings.HasPrefix(r.URL.Path, "/v1.0/users/"):
		s.mu.Lock()
		answer := s.answer
		s.asked++
		s.mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer at" {
			http.Error(w, "{}", http.StatusUnauthorized)
			return
		}
		answer(w, r)
	default:
		s.mu.Lock()
		s.strays = append(s.strays, r.URL.Path)
		s.mu.Unlock()
		http.NotFound(w, r)
	}
}

// granted checks the grants as the two providers do.
func (s *server) granted(r *http.Request) bool {
	if r.PostForm.Get("grant_type") == "client_credentials" {
		return r.PostForm.Get("client_id") == "app" && r.PostForm.Get("client_secret") == "hunter2" && r.URL.Path == "/tenant/oauth2/v2.0/token"
	}
	payload, err := jws.Verify([]byte(r.PostForm.Get("assertion")), jws.WithKey(jwa.RS256, accountKey().Public()))
	var claims map[string]any
	return err == nil && json.Unmarshal(payload, &claims) == nil && claims["sub"] == "admin@example.com" && claims["aud"] == s.URL+"/token" && claims["scope"] == googleScope
}

func (s *server) google(t *testing.T) *Directory {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(accountKey())
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{"client_email": "sa@example.com", "private_key_id": "1", "token_uri": s.URL + "/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewGoogle(Config{Clock: s.clock.Now}, Google{ServiceAccount: access.NewSecret(string(account)), Admin: "admin@example.com", API: s.URL, Roots: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func (s *server) entra(t *testing.T) *Directory {
	t.Helper()
	d, err := NewEntra(Config{Clock: s.clock.Now}, Entra{Tenant: "tenant", Client: "app", Secret: access.NewSecret("hunter2"), Login: s.URL, API: s.URL, Roots: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }
}

func TestGroupsOfBothKinds(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.says(func(w http.ResponseWriter, r *http.Request) {
		switch q := r.URL.Query(); {
		case q.Get("userKey") == "ada@example.com" && q.Get("pageToken") == "":
			fmt.Fprint(w, `{"groups":[{"email":"b@example.com"}],"nextPageToken":"p2"}`)
		case q.Get("userKey") == "ada@example.com" && q.Get("pageToken") == "p2":
			fmt.Fprint(w, `{"groups":[{"email":"a@example.com"},{"email":"b@example.com"}]}`)
		case strings.HasPrefix(r.URL.Path, "/v1.0/users/oid-1/transitiveMemberOf/") && q.Get("$skiptoken") == "":
			// Where the next page is, is not for an answer to say.
			fmt.Fprint(w, `{"value":[{"id":"2"}],"@odata.nextLink":"https://evil.test/steal?$skiptoken=p2"}`)
		case strings.HasPrefix(r.URL.Path, "/v1.0/users/oid-1/transitiveMemberOf/") && q.Get("$skiptoken") == "p2":
			fmt.Fprint(w, `{"value":[{"id":"1"}]}`)
		default:
			http.NotFound(w, r)
		}
	})
	for name, c := range map[string]struct {
		d    *Directory
		who  string
		want []string
	}{
		"google": {s.google(t), "ada@example.com", []string{"a@example.com", "b@example.com"}},
		"entra":  {s.entra(t), "oid-1", []string{"1", "2"}},
	} {
		for range 3 { // from memory, but for the first
			if got, err := c.d.Groups(t.Context(), c.who); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%s: %v %v", name, got, err)
			}
		}
		for _, who := range []string{"tom@example.com", "", "a\nb", strings.Repeat("x", 300)} {
			if got, err := c.d.Groups(t.Context(), who); !errors.Is(err, ErrUnknownUser) {
				t.Errorf("%s, %q: %v %v", name, who, got, err)
			}
		}
	}
	if s.count() != 6 || s.tokens != 2 || len(s.strays) > 0 {
		t.Errorf("asked %d times, with %d tokens; %v", s.count(), s.tokens, s.strays)
	}
}

// TestHostileDirectory: no answer makes groups, hangs the gateway or leads it
// elsewhere.
func TestHostileDirectory(t *testing.T) {
	t.Parallel()
	many := `{"groups":[` + strings.TrimSuffix(strings.Repeat(`{"email":"a@example.com"},`, maxGroups+1), ",") + `]}`
	for name, answer := range map[string]http.HandlerFunc{
		"HTML":             text("<html>"),
		"nothing":          text(""),
		"an odd name":      text(`{"groups":[{"email":"a\u202eb"}]}`),
		"no name":          text(`{"groups":[{}]}`),
		"too many":         text(many),
		"too long":         text(`{"groups":[],"x":"` + strings.Repeat("x", maxBytes) + `"}`),
		"pages for ever":   text(`{"groups":[],"nextPageToken":"again"}`),
		"another type":     text(`{"groups":"a"}`),
		"an error":         func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"a redirect":       func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"refused":          func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"a connection cut": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.says(answer)
			d := s.google(t)
			for range 5 {
				if got, err := d.Groups(t.Context(), "ada@example.com"); err == nil || errors.Is(err, ErrUnknownUser) {
					t.Errorf("%v %v", got, err)
				}
			}
			if s.count() > maxPages || len(s.strays) > 0 {
				t.Errorf("asked %d times; %v", s.count(), s.strays)
			}
		})
	}
}

// TestCacheAges: an answer is fresh, then asked for anew, serves while the
// directory is down, and not for ever; who is gone is gone at once.
func TestCacheAges(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	d := s.google(t)
	groups := func() ([]string, error) { return d.Groups(t.Context(), "ada@example.com") }
	s.says(text(`{"groups":[{"email":"a@example.com"}]}`))
	if got, err := groups(); err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	s.says(text(`{"groups":[]}`))
	s.clock.Advance(4 * time.Minute)
	if got, err := groups(); err != nil || len(got) != 1 || s.count() != 1 {
		t.Errorf("fresh: %v %v", got, err)
	}
	s.clock.Advance(2 * time.Minute)
	if got, err := groups(); err != nil || len(got) != 0 {
		t.Errorf("a group was left: %v %v", got, err)
	}
	s.says(text("<html>"))
	s.clock.Advance(6 * time.Minute)
	for range 3 {
		if got, err := groups(); err != nil || len(got) != 0 {
			t.Errorf("while it is down: %v %v", got, err)
		}
	}
	if s.count() != 3 {
		t.Errorf("asked %d times", s.count())
	}
	s.clock.Advance(10 * time.Minute)
	if got, err := groups(); err == nil {
		t.Errorf("long down: %v", got)
	}
	s.clock.Advance(11 * time.Second)
	s.says(text(`{"groups":[]}`))
	if _, err := groups(); err != nil {
		t.Errorf("up again: %v", err)
	}
	s.clock.Advance(6 * time.Minute)
	s.says(http.NotFound)
	if got, err := groups(); !errors.Is(err, ErrUnknownUser) {
		t.Errorf("gone: %v %v", got, err)
	}
}

// TestOneLookUpAtATime, however many want it; who does not want to wait need not.
func TestOneLookUpAtATime(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	d := s.google(t)
	begun, goOn := make(chan struct{}, 100), make(chan struct{})
	s.says(func(w http.ResponseWriter, _ *http.Request) {
		begun <- struct{}{}
		<-goOn
		fmt.Fprint(w, `{"groups":[{"email":"a@example.com"}]}`)
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got, err := d.Groups(t.Context(), "ada@example.com"); err != nil || len(got) != 1 {
				t.Error(got, err)
			}
		})
	}
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Groups(ctx, "ada@example.com"); !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	close(goOn)
	wg.Wait()
	if s.count() != 1 {
		t.Errorf("asked %d times", s.count())
	}
}

func TestUsersAreBounded(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	d := s.google(t)
	d.mu.Lock()
	for i := range maxUsers + 10 {
		d.user(fmt.Sprint("user", i))
	}
	if len(d.users) != maxUsers || d.recent.Len() != maxUsers || d.users["user0"] != nil {
		t.Errorf("%d users are remembered", len(d.users))
	}
	d.mu.Unlock()
	if _, err := NewGoogle(Config{}, Google{ServiceAccount: access.NewSecret("{}")}); err == nil {
		t.Error("a service account without a key is taken")
	}
	if _, err := NewEntra(Config{}, Entra{}); err == nil {
		t.Error("an application without a secret is taken")
	}
}
