package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
)

// outcome of one Verify.
func verdict(v *Verifier, token access.Secret) string {
	_, err := v.Verify(context.Background(), token)
	switch {
	case err == nil:
		return "accepted"
	case errors.Is(err, ErrTokenRejected):
		return "rejected"
	}
	return "none"
}

func wantVerdict(t *testing.T, v *Verifier, token access.Secret, want string) {
	t.Helper()
	_, err := v.Verify(context.Background(), token)
	if got := verdict(v, token); got != want {
		t.Fatalf("verdict %s (%v), want %s", got, err, want)
	}
}

// A provider that misbehaves from the start gives no verdict, never a rejection,
// and nothing that it says makes anybody ask elsewhere. Once it behaves, it is
// believed again.
func TestHostileProvider(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(other.Close)
	html := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<html><body>Sign in</body></html>")
	}
	redirect := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) }
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	// An endless answer: it is cut, not waited for.
	endless := func(w http.ResponseWriter, _ *http.Request) {
		block := []byte(strings.Repeat(" ", 64<<10))
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	manyKeys := `{"keys":[` + strings.Repeat(`{"kty":"oct"},`, maxKeys) + `{"kty":"oct"}]}`

	for _, c := range []struct {
		name      string
		discovery func(p *provider) http.HandlerFunc
		jwks      http.HandlerFunc
		want      string // in the error
	}{
		{"discovery hangs", func(*provider) http.HandlerFunc { return hang }, nil, "deadline"},
		{"discovery is HTML", func(*provider) http.HandlerFunc { return html }, nil, "not a JSON object"},
		{"discovery redirects", func(*provider) http.HandlerFunc { return redirect }, nil, "redirects are not followed"},
		{"discovery is gone", func(*provider) http.HandlerFunc { return status(404) }, nil, "status 404"},
		{"discovery is endless", func(*provider) http.HandlerFunc { return endless }, nil, "longer than"},
		{"discovery of another issuer", func(p *provider) http.HandlerFunc {
			return jsonAnswer(fmt.Sprintf(`{"issuer":"https://evil.example","jwks_uri":%q}`, p.URL+"/keys"))
		}, nil, "another issuer"},
		{"discovery names two issuers", func(p *provider) http.HandlerFunc {
			return jsonAnswer(fmt.Sprintf(`{"issuer":"https://evil.example","issuer":%q,"jwks_uri":%q}`, p.URL, p.URL+"/keys"))
		}, nil, "holds a name twice"},
		{"discovery points elsewhere", func(p *provider) http.HandlerFunc {
			return jsonAnswer(fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, p.URL, other.URL))
		}, nil, "another origin"},
		{"discovery points into the machine", func(p *provider) http.HandlerFunc {
			return jsonAnswer(fmt.Sprintf(`{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, p.URL))
		}, nil, "another origin"},
		{"discovery has no keys", func(p *provider) http.HandlerFunc {
			return jsonAnswer(fmt.Sprintf(`{"issuer":%q}`, p.URL))
		}, nil, "no jwks_uri"},
		{"keys hang", nil, hang, "deadline"},
		{"keys are HTML", nil, html, "not a JSON object"},
		{"keys redirect", nil, redirect, "redirects are not followed"},
		{"keys are down", nil, status(503), "status 503"},
		{"keys are endless", nil, endless, "longer than"},
		{"keys are too many", nil, jsonAnswer(manyKeys), "more than"},
		{"keys are nested deep", nil, jsonAnswer(strings.Repeat("[", 100_000)), "nests too deep"},
		{"keys are no list", nil, jsonAnswer(`{"keys":{}}`), "no list of keys"},
		{"keys are no keys", nil, jsonAnswer(`{"keys":[1]}`), "not a key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			key := newES256(t, "k1")
			p := newProvider(t, key)
			var discovery http.HandlerFunc
			if c.discovery != nil {
				discovery = c.discovery(p)
			}
			p.answer(discovery, c.jwks)
			clock := newFakeClock()
			v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
			v.issuers[p.URL].keys.source.timeout = time.Second
			token := key.token(p.claims(nil))
			_, err := v.Verify(context.Background(), token)
			if err == nil || errors.Is(err, ErrTokenRejected) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want no verdict for %q", err, c.want)
			}
			p.answer(nil, nil)
			wantVerdict(t, v, token, "none") // not before its time
			clock.Advance(fetchInterval)
			wantVerdict(t, v, token, "accepted")
			if n := elsewhere.Load(); n != 0 {
				t.Errorf("%d requests went elsewhere", n)
			}
		})
	}
}

// An empty set, honestly given, is the issuer's word that no key is good.
func TestEmptyKeySetEndsKnownKeys(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	token := key.token(p.claims(nil))
	wantVerdict(t, v, token, "accepted")
	p.publish()
	clock.Advance(removedKeyLife)
	wantVerdict(t, v, token, "rejected")
}

func TestRotation(t *testing.T) {
	t.Parallel()
	older, newer := newES256(t, "old"), newES256(t, "new")
	p := newProvider(t, older)
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	before, after := older.token(p.claims(nil)), newer.token(p.claims(nil))
	wantVerdict(t, v, before, "accepted")

	p.publish(older, newer)
	clock.Advance(fetchInterval - time.Nanosecond)
	wantVerdict(t, v, after, "rejected") // as often as fetching is allowed
	clock.Advance(time.Nanosecond)
	wantVerdict(t, v, after, "accepted") // within 10 s
	wantVerdict(t, v, before, "accepted")

	p.publish(newer)
	clock.Advance(removedKeyLife)
	wantVerdict(t, v, before, "rejected") // remembered or not
	wantVerdict(t, v, after, "accepted")

	replaced := newES256(t, "new") // under the same name
	p.publish(replaced)
	clock.Advance(fetchInterval)
	wantVerdict(t, v, replaced.token(p.claims(nil)), "accepted")
	wantVerdict(t, v, after, "rejected")
}

// Whatever arrives, an issuer is asked once in ten seconds; while it fails too.
func TestFetchesAreRare(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	storm := func() {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				stranger := signer{kid: fmt.Sprint("stranger", i), alg: "ES256", key: key.key}
				verdict(v, stranger.token(p.claims(nil)))
				verdict(v, access.NewSecret(signedPart(key.token(p.claims(nil)).Reveal())+"."+b64(make([]byte, 64))))
			})
		}
		wg.Wait()
	}
	storm()
	if n := p.count(); n != 1 {
		t.Fatalf("%d fetches, want 1", n)
	}
	clock.Advance(fetchInterval)
	p.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, nil)
	storm()
	storm()
	if n := p.count(); n != 2 {
		t.Fatalf("%d fetches, want 2", n)
	}
	wantVerdict(t, v, key.token(p.claims(nil)), "accepted")
}

func TestConcurrentUseFetchesOnce(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	gate := make(chan struct{})
	p.answer(func(w http.ResponseWriter, r *http.Request) { <-gate; p.honestDiscovery(w, r) }, nil)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	token := key.token(p.claims(nil))
	var accepted atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if verdict(v, token) == "accepted" {
				accepted.Add(1)
			}
		})
	}
	<-p.asked
	close(gate)
	wg.Wait()
	if accepted.Load() != 20 || p.count() != 1 {
		t.Errorf("%d accepted with %d fetches", accepted.Load(), p.count())
	}
}

// However long one fetch takes, there is no second beside it.
func TestOneFetchAtATime(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	p.answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil)
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	v.issuers[p.URL].keys.source.timeout = time.Hour
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if _, err := v.Verify(ctx, key.token(p.claims(nil))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		cancel()
		clock.Advance(fetchInterval)
	}
	<-p.asked
	if n := p.count(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
}

func TestTokenWithoutKeyNameNeedsOneKey(t *testing.T) {
	t.Parallel()
	a, b := newES256(t, "a"), newES256(t, "b")
	p := newProvider(t, a, newEdDSA(t, "other"))
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	token := access.NewSecret(a.sign(`{"alg":"ES256"}`, asJSON(p.claims(nil))))
	wantVerdict(t, v, token, "accepted")
	p.publish(a, b)
	clock.Advance(removedKeyLife)
	v.Invalidate(TokenID(access.NewSecret("none of these")))
	wantVerdict(t, v, token, "accepted") // its key is published still
	v.Invalidate(TokenID(token))
	wantVerdict(t, v, token, "rejected") // but which it was can no longer be told
}

func TestProviderDown(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	config := p.config("dex")
	config.KeyAge = 20 * time.Minute
	clock := newFakeClock()
	var lines logBuffer
	v := newVerifier(t, Config{Issuers: []Issuer{config}, Clock: clock.Now, Log: lines.logger()})
	token := key.token(p.claims(nil))
	wantVerdict(t, v, token, "accepted")
	p.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, nil)

	for range 19 {
		clock.Advance(time.Minute)
		wantVerdict(t, v, token, "accepted") // known keys serve
	}
	stranger := newES256(t, "k2").token(p.claims(nil))
	wantVerdict(t, v, stranger, "none") // it may be a new key
	clock.Advance(time.Minute)
	wantVerdict(t, v, token, "none") // until their age, remembered or not
	if _, err := v.Verify(context.Background(), token); !strings.Contains(err.Error(), "status 502") {
		t.Errorf("the error does not say why: %v", err)
	}
	if text := lines.String(); strings.Count(text, "cannot be fetched") != 1 {
		t.Errorf("logged more than the change:\n%s", text)
	}

	p.answer(nil, nil)
	clock.Advance(fetchInterval)
	wantVerdict(t, v, token, "accepted") // recovers unaided
	wantVerdict(t, v, stranger, "rejected")
	if text := lines.String(); strings.Count(text, "can be fetched again") != 1 {
		t.Errorf("the recovery is not logged:\n%s", text)
	}
}

// While a provider hangs, those whose keys are known wait for it once at most.
func TestHangingProviderDoesNotHoldKnownTokens(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	v.issuers[p.URL].keys.source.timeout = 100 * time.Millisecond
	token := key.token(p.claims(nil))
	wantVerdict(t, v, token, "accepted")
	p.answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil)
	clock.Advance(removedKeyLife)
	wantVerdict(t, v, token, "accepted")

	v.issuers[p.URL].keys.source.timeout = time.Hour // whoever waits now, waits too long
	clock.Advance(fetchInterval)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := v.Verify(ctx, token); err != nil {
		t.Errorf("held: %v", err)
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	p.answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-p.asked; cancel() }()
	_, err := v.Verify(ctx, key.token(p.claims(nil)))
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrTokenRejected) {
		t.Errorf("got %v", err)
	}
}

// Close must end a fetch that would otherwise outlive everything.
func TestCloseEndsFetches(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	p.answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	v.issuers[p.URL].keys.source.timeout = time.Hour
	got := make(chan string)
	go func() { got <- verdict(v, key.token(p.claims(nil))) }()
	<-p.asked
	v.Close()
	if g := <-got; g != "none" {
		t.Errorf("verdict %s", g)
	}
	wantVerdict(t, v, key.token(p.claims(nil)), "none")
}

func TestRunKeepsKeysFresh(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- v.Run(ctx) }()
	<-p.asked // without any token
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestDueKeysAreFetchedBesideTheWork(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	token := key.token(p.claims(nil))
	wantVerdict(t, v, token, "accepted")
	<-p.asked
	gate := make(chan struct{})
	p.answer(func(w http.ResponseWriter, r *http.Request) { <-gate; p.honestDiscovery(w, r) }, nil)
	clock.Advance(refreshAfter)
	wantVerdict(t, v, token, "accepted") // and did not wait for the gate
	<-p.asked
	close(gate)
}

// With the keys' address configured, nothing is discovered.
func TestConfiguredKeysOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p, keys := newProvider(t), newProvider(t, key)
	config := p.config("dex")
	config.JWKSURL = keys.URL + "/keys"
	v := newVerifier(t, Config{Issuers: []Issuer{config}, Clock: newFakeClock().Now})
	wantVerdict(t, v, key.token(p.claims(nil)), "accepted")
	if p.count() != 0 {
		t.Error("discovered all the same")
	}
}

func TestSameOrigin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"https://a.example", "https://a.example/keys", true},
		{"https://a.example/realm", "https://A.example:443/keys", true},
		{"https://a.example", "https://a.example:8443/keys", false},
		{"https://a.example", "https://b.a.example/keys", false},
		{"https://a.example", "http://a.example/keys", false},
		{"https://a.example", "https://a.example@evil.example/keys", false},
		{"https://a.example", "//a.example/keys", false},
		{"https://a.example", "/keys", false},
	} {
		if got := sameOrigin(c.a, c.b); got != c.want {
			t.Errorf("%s and %s: %v", c.a, c.b, got)
		}
	}
}

func TestPrivateAuthority(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := &provider{asked: make(chan struct{}, 100)}
	p.publish(key)
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	t.Cleanup(p.Close)
	config := p.config("dex")
	clock := newFakeClock()
	wantVerdict(t, newVerifier(t, Config{Issuers: []Issuer{config}, Clock: clock.Now}), key.token(p.claims(nil)), "none")
	config.CA = pemOf(p.Certificate().Raw)
	wantVerdict(t, newVerifier(t, Config{Issuers: []Issuer{config}, Clock: clock.Now}), key.token(p.claims(nil)), "accepted")
}

func TestMetricsCountVerdicts(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	registry := prometheus.NewRegistry()
	for range 2 { // a reload registers nothing twice
		v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: newFakeClock().Now, Registerer: registry})
		for range 2 {
			verdict(v, key.token(p.claims(nil)))
		}
		verdict(v, key.token(p.claims(map[string]any{"aud": "other"})))
		verdict(v, access.NewSecret("x"))
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			got[name] = m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{
		"chaperone_identity_tokens_total  rejected":    2,
		"chaperone_identity_tokens_total dex accepted": 4,
		"chaperone_identity_tokens_total dex rejected": 2,
		"chaperone_identity_key_fetches_total dex ok":  2,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
