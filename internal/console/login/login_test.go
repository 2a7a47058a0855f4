package login

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/authcode"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/identity"
	"chaperone.dev/chaperone/internal/store"
)

const public = "https://gateway.test:8443"

var (
	noon        = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	errRejected = errors.New("rejected")
	errSeen     = errors.New("seen")
	errNoRole   = &access.Denial{Reason: access.DeniedByRule, Message: "no role"}
)

// A world is a Service with a provider of each kind, and a browser.
type world struct {
	*Service
	clock    *clocktest.Clock
	provider *httptest.Server

	mu      sync.Mutex
	nonce   string            // of the ID token that is given next
	asked   url.Values        // the last request for a token
	as      string            // issuer of the tokens, in place of the right one
	revoked bool              // whoever it is
	fault   error             // of the verifier
	seen    map[string]bool   // assertions
	jar     map[string]string // the browser's cookies
	flags   map[string]*http.Cookie
}

func (w *world) principal(issuer string) access.Principal {
	return access.Principal{Issuer: issuer, Subject: "s-1", User: "grace@example.com", Subagent: "console",
		Token: access.TokenRef{ID: "tok_1", IssuedAt: noon, ExpiresAt: noon.Add(time.Hour)}}
}

func (w *world) verdict() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.revoked {
		return errRejected
	}
	return w.fault
}

func (w *world) Verify(_ context.Context, token access.Secret) (access.Principal, error) {
	issuer, _, _ := strings.Cut(token.Reveal(), ".")
	return w.principal(cmp.Or(w.as, issuer)), w.verdict()
}

func (w *world) Stands(context.Context, access.Principal) error { return w.verdict() }

func (w *world) SAMLRequest(_ context.Context, provider, id, recipient string) (string, error) {
	return "https://idp.test/sso?" + url.Values{"id": {id}, "recipient": {recipient}}.Encode(), w.verdict()
}

// VerifyLogin takes "ID RECIPIENT" for an assertion that answers that.
func (w *world) VerifyLogin(_ context.Context, assertion access.Secret, provider, id, recipient string) (identity.Asserted, error) {
	if assertion.Reveal() != id+" "+recipient {
		return identity.Asserted{}, errRejected
	}
	return identity.Asserted{Principal: w.principal(provider), Once: id, Until: noon.Add(5 * time.Minute)}, w.verdict()
}

func (w *world) once(_ context.Context, key string, _ time.Duration) error {
	if w.seen[key] {
		return errSeen
	}
	w.seen[key] = true
	return nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{clock: clocktest.New(noon), seen: map[string]bool{}, jar: map[string]string{}, flags: map[string]*http.Cookie{}}
	w.provider = httptest.NewServer(http.HandlerFunc(w.answer))
	t.Cleanup(w.provider.Close)
	leases, err := store.OpenEmbedded(store.EmbeddedConfig{Path: filepath.Join(t.TempDir(), "db"), Key: store.NewKey(), Clock: w.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { leases.Close() })
	ways := []Way{
		{Name: "oidc", OIDC: &authcode.Client{Issuer: w.provider.URL, ID: "console", Secret: access.NewSecret("hush hush"), Scope: "openid", HTTP: w.provider.Client(), Clock: w.clock.Now}},
		{Name: "access", Access: true, OIDC: &authcode.Client{Issuer: w.provider.URL, ID: "console", Scope: "openid", HTTP: w.provider.Client(), Clock: w.clock.Now}},
		{Name: "saml"},
	}
	w.Service = New(Config{Public: func() string { return public }, Ways: func() []Way { return ways }, Key: [32]byte{1}, Leases: leases, Verifier: w,
		Rejected: func(err error) bool { return errors.Is(err, errRejected) }, Once: w.once, Seen: func(err error) bool { return errors.Is(err, errSeen) },
		Admit: func(_ context.Context, who access.Principal) error {
			if who.User == "" {
				return errNoRole
			}
			return nil
		}, Logger: slog.New(slog.DiscardHandler), Clock: w.clock.Now})
	return w
}

// answer is the provider.
func (w *world) answer(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/token" {
		fmt.Fprintf(rw, `{"issuer": %q, "authorization_endpoint": %q, "token_endpoint": %q}`, w.provider.URL, w.provider.URL+"/auth", w.provider.URL+"/token")
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = r.ParseForm()
	w.asked = r.PostForm
	user, password, _ := r.BasicAuth()
	w.asked.Set("basic", user+":"+password)
	claims := base64.RawURLEncoding.EncodeToString([]byte(`{"nonce": "` + w.nonce + `"}`))
	fmt.Fprintf(rw, `{"id_token": "oidc.%s.x", "access_token": "access.%s.x"}`, claims, claims)
}

// do sends a request as the browser does, with its cookies, and keeps those of
// the answer.
func (w *world) do(r *http.Request, serve func(http.ResponseWriter, *http.Request) error) (*httptest.ResponseRecorder, error) {
	for name, value := range w.jar {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	rec := httptest.NewRecorder()
	err := serve(rec, r)
	for _, c := range rec.Result().Cookies() {
		w.flags[c.Name] = c
		if w.jar[c.Name] = c.Value; c.MaxAge < 0 {
			delete(w.jar, c.Name)
		}
	}
	return rec, err
}

// start begins a login and returns where the browser is sent.
func (w *world) start(t *testing.T, way string) url.Values {
	t.Helper()
	rec, err := w.do(httptest.NewRequest("GET", "/", nil), func(rw http.ResponseWriter, r *http.Request) error {
		return w.Start(rw, r, way, "/console/sessions?q=x")
	})
	if err != nil || rec.Code != http.StatusSeeOther {
		t.Fatalf("%d %v", rec.Code, err)
	}
	to, err := url.Parse(rec.Header().Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	return to.Query()
}

// callback answers with a code, as the provider has the browser do.
func (w *world) callback(way string, q url.Values) (*httptest.ResponseRecorder, error) {
	return w.do(httptest.NewRequest("GET", "/callback?"+q.Encode(), nil), func(rw http.ResponseWriter, r *http.Request) error { return w.Finish(rw, r, way) })
}

func (w *world) deliver(way, assertion string) (*httptest.ResponseRecorder, error) {
	r := httptest.NewRequest("POST", "/acs", strings.NewReader(url.Values{"SAMLResponse": {assertion}}.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return w.do(r, func(rw http.ResponseWriter, r *http.Request) error { return w.Finish(rw, r, way) })
}

func (w *world) logIn(t *testing.T, way string) {
	t.Helper()
	to := w.start(t, way)
	w.nonce = to.Get("nonce")
	if rec, err := w.callback(way, url.Values{"state": {to.Get("state")}, "code": {"c"}}); err != nil || rec.Header().Get("Location") != "/console/sessions?q=x" {
		t.Fatalf("%d %v %v", rec.Code, err, rec.Header())
	}
}

func (w *world) session(active bool) (*Session, error) {
	var got *Session
	_, err := w.do(httptest.NewRequest("GET", "/", nil), func(_ http.ResponseWriter, r *http.Request) (err error) {
		got, err = w.Session(r, active)
		return err
	})
	return got, err
}

func TestLoginWithACode(t *testing.T) {
	t.Parallel()
	for way, want := range map[string]struct{ basic, client, issuer string }{"oidc": {"console:hush+hush", "", "oidc"}, "access": {":", "console", "access"}} {
		w := newWorld(t)
		to := w.start(t, way)
		if to.Get("redirect_uri") != public+"/console/login/"+way+"/callback" || to.Get("code_challenge_method") != "S256" || len(to.Get("state")) < 26 || len(to.Get("nonce")) < 26 {
			t.Errorf("%s: sent to %v", way, to)
		}
		if c := w.flags[pendingCookie]; !c.HttpOnly || !c.Secure || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode || c.MaxAge != 600 || strings.Contains(c.Value, to.Get("state")) {
			t.Errorf("%s: the cookie %+v", way, c)
		}
		w.nonce = to.Get("nonce")
		if _, err := w.callback(way, url.Values{"state": {to.Get("state")}, "code": {"c0de"}, "iss": {w.provider.URL}}); err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		if w.asked.Get("code") != "c0de" || w.asked.Get("basic") != want.basic || w.asked.Get("client_id") != want.client || w.asked.Get("code_verifier") == "" {
			t.Errorf("%s: asked %v", way, w.asked)
		}
		if c := w.flags[sessionCookie]; !c.HttpOnly || !c.Secure || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode || c.MaxAge != 3600 || len(c.Value) < 64 {
			t.Errorf("%s: the cookie %+v", way, c)
		}
		if s, err := w.session(true); err != nil || s.Principal.Issuer != want.issuer || s.Until != noon.Add(time.Hour) {
			t.Errorf("%s: %+v %v", way, s, err)
		}
		if _, kept := w.jar[pendingCookie]; kept {
			t.Errorf("%s: the login under way is kept", way)
		}
	}
}

func TestAnswersOfOthersAreRefused(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(*world, url.Values) (*httptest.ResponseRecorder, error){
		"another state": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			return w.callback("oidc", url.Values{"state": {"guessed"}, "code": {"c"}})
		},
		"no cookie": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			clear(w.jar)
			return w.callback("oidc", q)
		},
		"a forged cookie": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			w.jar[pendingCookie] = encode([]byte(`{"way": "oidc"}`))
			return w.callback("oidc", q)
		},
		"another provider's page": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) { return w.callback("access", q) },
		"another provider's name": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			q.Set("iss", "https://evil.test")
			return w.callback("oidc", q)
		},
		"too late": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			w.clock.Advance(within)
			return w.callback("oidc", q)
		},
		"another nonce": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			w.nonce = "replayed"
			return w.callback("oidc", q)
		},
		"a refusal": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			q.Del("code")
			q.Set("error", "access_denied")
			return w.callback("oidc", q)
		},
		"a token that is no good": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			w.revoked = true
			return w.callback("oidc", q)
		},
		"a token of another provider": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) {
			w.as = "other"
			return w.callback("oidc", q)
		},
		"an assertion for a code": func(w *world, q url.Values) (*httptest.ResponseRecorder, error) { return w.deliver("oidc", "x") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			to := w.start(t, "oidc")
			w.nonce = to.Get("nonce")
			_, err := do(w, url.Values{"state": {to.Get("state")}, "code": {"c"}})
			var denial *access.Denial
			if !errors.As(err, &denial) || w.jar[sessionCookie] != "" {
				t.Errorf("%v, cookies %v", err, w.jar)
			}
			if _, err := w.session(true); !errors.Is(err, ErrNone) {
				t.Errorf("a session: %v", err)
			}
		})
	}
}

func TestLoginWithAnAssertion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const recipient = public + "/console/login/saml/acs"
	to := w.start(t, "saml")
	if c := w.flags[pendingCookie]; c.SameSite != http.SameSiteNoneMode || !c.Secure || !c.HttpOnly {
		t.Errorf("the answer is posted from another site, with the cookie %+v", c)
	}
	pending := w.jar[pendingCookie]
	if _, err := w.deliver("saml", "_other "+recipient); err == nil {
		t.Error("an answer to another request is taken")
	}
	w.jar[pendingCookie] = pending
	if _, err := w.deliver("saml", to.Get("id")+" "+recipient); err != nil || to.Get("recipient") != recipient {
		t.Fatalf("%v %v", err, to)
	}
	if s, err := w.session(true); err != nil || s.Principal.Issuer != "saml" || s.Principal.User != "grace@example.com" {
		t.Errorf("%+v %v", s, err)
	}
	// The same once more, cookie and all.
	delete(w.jar, sessionCookie)
	w.jar[pendingCookie] = pending
	if _, err := w.deliver("saml", to.Get("id")+" "+recipient); err == nil || w.jar[sessionCookie] != "" {
		t.Errorf("replayed: %v", err)
	}
}

func TestSessionsEnd(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(t *testing.T, w *world){
		"idle": func(t *testing.T, w *world) {
			w.clock.Advance(29 * time.Minute)
			if _, err := w.session(true); err != nil {
				t.Fatal(err)
			}
			w.clock.Advance(29 * time.Minute)
			if _, err := w.session(false); err != nil { // a page that asks by itself
				t.Fatal(err)
			}
			w.clock.Advance(time.Minute)
		},
		"with the token": func(t *testing.T, w *world) {
			for range 3 {
				w.clock.Advance(20*time.Minute - time.Second)
				if _, err := w.session(true); err != nil {
					t.Fatal(err)
				}
			}
			w.clock.Advance(3 * time.Second)
		},
		"revoked":              func(_ *testing.T, w *world) { w.revoked = true },
		"another cookie":       func(_ *testing.T, w *world) { w.jar[sessionCookie] = strings.Repeat("0", 32) + "." + newID() },
		"half of the cookie":   func(_ *testing.T, w *world) { w.jar[sessionCookie] = w.jar[sessionCookie][:40] },
		"all of them":          func(t *testing.T, w *world) { must(t, w.EndAll(t.Context())) },
		"logged out":           func(t *testing.T, w *world) { logOut(t, w) },
		"logged out elsewhere": func(t *testing.T, w *world) { kept := w.jar[sessionCookie]; logOut(t, w); w.jar[sessionCookie] = kept },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.logIn(t, "oidc")
			if _, err := w.session(true); err != nil {
				t.Fatal(err)
			}
			do(t, w)
			if s, err := w.session(true); !errors.Is(err, ErrNone) {
				t.Errorf("%+v %v", s, err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func logOut(t *testing.T, w *world) {
	t.Helper()
	s, err := w.session(true)
	must(t, err)
	_, err = w.do(httptest.NewRequest("POST", "/", nil), func(rw http.ResponseWriter, r *http.Request) error { return w.End(rw, r, s) })
	must(t, err)
}

// A verdict that is not reached refuses, and ends nothing.
func TestNoVerdictIsNoSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.logIn(t, "oidc")
	w.fault = errors.New("no keys")
	if _, err := w.session(true); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
	w.fault = nil
	if _, err := w.session(true); err != nil {
		t.Error(err)
	}
}

func TestOnePersonHasFewSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var cookies []string
	for range perPerson + 1 {
		delete(w.jar, sessionCookie)
		w.logIn(t, "oidc")
		cookies = append(cookies, w.jar[sessionCookie])
		w.clock.Advance(time.Second)
	}
	for i, cookie := range cookies {
		w.jar[sessionCookie] = cookie
		if _, err := w.session(true); (err == nil) != (i > 0) {
			t.Errorf("session %d: %v", i, err)
		}
	}
}

// What is in the store gives nobody a session: neither the key nor the value has
// the cookie's secret, or the token.
func TestStoreAloneIsNoSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.logIn(t, "oidc")
	page, err := w.Leases.Holders(t.Context(), prefix, "", 10)
	if err != nil || len(page.Items) != 1 {
		t.Fatal(page, err)
	}
	_, secret, _ := strings.Cut(w.jar[sessionCookie], ".")
	for _, leak := range []string{secret, "oidc.", "grace"} {
		if text := page.Items[0].Key + string(page.Items[0].Value); strings.Contains(text, leak) {
			t.Errorf("the store has %q: %s", leak, text)
		}
	}
	s, err := w.session(true)
	if err != nil || !s.Fits(s.CSRF) || s.Fits("") || s.Fits(secret) {
		t.Errorf("the form's token: %v", err)
	}
}

func TestThenIsAPageOfTheConsole(t *testing.T) {
	t.Parallel()
	for then, want := range map[string]string{
		"/console/approvals/req_1": "/console/approvals/req_1", "/console/sessions?q=a&live=true": "/console/sessions?q=a&live=true",
		"": "/console/", "https://evil.test/console/": "/console/", "//evil.test/console/": "/console/", "/\\evil.test": "/console/",
		"/console/..\\evil": "/console/", "/console/../http/billing": "/console/", "/console/%2e%2e/http/billing": "/console/", "/console/login/x": "/console/", "/http/billing": "/console/", "javascript:alert(1)": "/console/",
		"/console/" + strings.Repeat("a", 600): "/console/",
	} {
		if got := local(then); got != want {
			t.Errorf("%q: %q", then, got)
		}
	}
}

// Logins ask a provider for its pages once, and leave it alone when it fails.
func TestFewQuestionsToAProvider(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.provider.Close()
	for range 3 {
		_, err := w.do(httptest.NewRequest("GET", "/", nil), func(rw http.ResponseWriter, r *http.Request) error { return w.Start(rw, r, "oidc", "") })
		if !errors.Is(err, errBusy) {
			t.Errorf("%v", err)
		}
	}
	for range atOnce {
		w.asking <- struct{}{}
	}
	if _, err := w.do(httptest.NewRequest("GET", "/", nil), func(rw http.ResponseWriter, r *http.Request) error { return w.Start(rw, r, "saml", "") }); !errors.Is(err, errBusy) {
		t.Errorf("when all places are taken: %v", err)
	}
	if len(w.jar) > 0 {
		t.Errorf("cookies %v", w.jar)
	}
}
