package approval

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
)

// A receiver checks the signature of what it gets and keeps it.
type receiver struct {
	*httptest.Server
	secret access.Secret
	answer func(n int) int // status of the nth request

	mu     sync.Mutex
	n      int
	bodies []string
	faults []error
}

func newReceiver(t *testing.T, answer func(n int) int) *receiver {
	r := &receiver{secret: access.NewSecret("hook secret"), answer: answer}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	want := Signature(r.secret, req.Header.Get("Chaperone-Timestamp"), body)
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := req.Header.Get("Chaperone-Signature"); err != nil || got != want || req.Header.Get("Chaperone-Timestamp") == "" {
		r.faults = append(r.faults, fmt.Errorf("signature %q of %q, %v", got, body, err))
	}
	r.n++
	status := r.answer(r.n)
	if status < 300 {
		r.bodies = append(r.bodies, string(body))
	}
	if status == http.StatusFound {
		w.Header().Set("Location", "/elsewhere")
	}
	w.WriteHeader(status)
}

func (r *receiver) states(id string) (states []access.ApprovalState, all string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, body := range r.bodies {
		var told Told
		if err := json.Unmarshal([]byte(body), &told); err != nil {
			r.faults = append(r.faults, err)
		}
		if told.ID == id {
			states = append(states, told.State)
			all += body
		}
	}
	for _, err := range r.faults {
		all += err.Error()
	}
	return states, all
}

func fine(int) int { return http.StatusNoContent }

func TestWebhook(t *testing.T) {
	t.Parallel()
	short, full := newReceiver(t, fine), newReceiver(t, fine)
	p := newPair(t, embeddedStores(t), func(c *Config) {
		c.Webhooks = []Webhook{{URL: short.URL, Secret: short.secret}, {URL: full.URL, Secret: full.secret, FullText: true}}
	}).run(t)
	ask := func(n string) access.Approval {
		a, err := p.one.Ask(t.Context(), newAsk(n, false, access.ApprovalTerms{}))
		ok(t, err)
		return a
	}
	used := ask("1")
	_, err := p.two.Answer(t.Context(), used.ID, reviewer("bob"), true, "secret comment")
	ok(t, err)
	ok(t, p.one.Consume(t.Context(), used.ID, used.Digest))
	refused, left, expired := ask("2"), ask("3"), ask("4")
	_, err = p.two.Answer(t.Context(), refused.ID, reviewer("bob"), false, "")
	ok(t, err)
	ok(t, p.one.Abandon(t.Context(), left.ID))
	p.clock.Advance(time.Hour)
	isState(t, p.one, expired.ID, access.Expired)
	for id, want := range map[string][]access.ApprovalState{
		used.ID:    {access.Pending, access.Granted, access.Consumed},
		refused.ID: {access.Pending, access.Refused},
		left.ID:    {access.Pending, access.Abandoned},
		expired.ID: {access.Pending, access.Expired},
	} {
		for _, r := range []*receiver{short, full} {
			var all string
			clocktest.Eventually(t, func() error {
				var got []access.ApprovalState
				got, all = r.states(id)
				slices.Sort(got) // steps of two replicas may overtake one another
				sorted := slices.Clone(want)
				slices.Sort(sorted)
				if !slices.Equal(got, sorted) {
					return fmt.Errorf("told %v, want %v; %s", got, want, all)
				}
				return nil
			})
			if strings.Contains(all, "secret comment") || strings.Contains(all, "sha256:token") {
				t.Errorf("told too much: %s", all)
			}
			if leaked := strings.Contains(all, "4111111111111111"); leaked != (r == full) {
				t.Errorf("full text %v, value in it %v: %s", r == full, leaked, all)
			}
		}
	}
	_, all := short.states(used.ID)
	for _, want := range []string{`"effect":"UPDATE public.orders"`, `"user":"alice@example.com"`, `"subagent":"orders-agent"`, `"resource":"orders"`, `"rule":"orders-agents/fix-an-order"`, `"reviewer":"bob@example.com"`} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is not in %s", want, all)
		}
	}
}

// A receiver that hangs delays nothing; one that fails is asked again, and not
// for ever; a redirect is not followed.
func TestWebhookFaults(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(hanging.Close)
	t.Cleanup(func() { close(release) })
	flaky := newReceiver(t, func(n int) int {
		if n%3 == 0 {
			return http.StatusOK
		}
		return []int{http.StatusFound, http.StatusInternalServerError}[n%2]
	})
	broken := newReceiver(t, func(int) int { return http.StatusBadGateway })
	p := newPair(t, embeddedStores(t), func(c *Config) {
		c.MaxPending, c.MaxPendingPerPrincipal, c.MaxAsksPerMinute = 1000, 1000, 3000
		c.Webhooks = []Webhook{{URL: hanging.URL, Secret: access.NewSecret("s")}, {URL: flaky.URL, Secret: flaky.secret}, {URL: broken.URL, Secret: broken.secret}}
	})
	for _, h := range p.one.hooks {
		h.pause = time.Millisecond
	}
	stop := run(t, p.one)
	began := time.Now()
	var first string
	for i := range hookQueue + 10 { // more than the queue of the one that hangs holds
		a, err := p.one.Ask(t.Context(), newAsk(fmt.Sprint(i), false, access.ApprovalTerms{}))
		ok(t, err)
		if i == 0 {
			first = a.ID
		}
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("filing took %s", took)
	}
	clocktest.Eventually(t, func() error {
		if got, all := flaky.states(first); len(got) != 1 {
			return fmt.Errorf("the flaky receiver got %v; %s", got, all)
		}
		broken.mu.Lock()
		defer broken.mu.Unlock()
		if broken.n < 2*hookTries { // it went on to the next
			return fmt.Errorf("the broken receiver was asked %d times", broken.n)
		}
		return nil
	})
	began = time.Now()
	stop()
	if took := time.Since(began); took > hookTimeout {
		t.Errorf("stopping took %s", took)
	}
}

func TestWebhookRefuses(t *testing.T) {
	t.Parallel()
	s := embeddedStores(t)
	for name, w := range map[string]Webhook{
		"no secret": {URL: "https://chat.internal/hook"},
		"no url":    {Secret: access.NewSecret("s")},
		"file":      {URL: "file:///etc/passwd", Secret: access.NewSecret("s")},
		"no host":   {URL: "https:///hook", Secret: access.NewSecret("s")},
	} {
		_, err := New(Config{Store: s[0], Recorder: &memoryRecorder{}, Webhooks: []Webhook{w}})
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	h, err := newHook(Webhook{URL: "http://127.0.0.1:1/token-in-path", Secret: access.NewSecret("s")}, Config{Clock: time.Now}.withDefaults(), &metrics{})
	ok(t, err)
	if err := h.post(t.Context(), nil); err == nil || strings.Contains(err.Error(), "token-in-path") {
		t.Errorf("a failed delivery says %v", errors.Unwrap(err))
	}
}

func TestEffect(t *testing.T) {
	t.Parallel()
	for want, action := range map[string]access.Action{
		"unknown action":                     {},
		"UPDATE public.orders":               {SQL: &access.SQL{Command: "UPDATE", Tables: []string{"public.a", "public.orders"}, Writes: []string{"public.orders"}, HasWhere: true}},
		"DELETE public.orders without WHERE": {SQL: &access.SQL{Command: "DELETE", Writes: []string{"public.orders"}, Text: "delete from orders"}},
		"unknown statement (partly unknown)": {SQL: &access.SQL{Unknown: []string{"x"}, Text: "secret"}},
		"SELECT public.orders":               {SQL: &access.SQL{Command: "SELECT", Tables: []string{"public.orders"}}},
		"UPDATE public.a\uFFFD[31mb":         {SQL: &access.SQL{Command: "UPDATE", Writes: []string{"public.a\x1b[31mb"}, HasWhere: true}},
		"POST /v1/customers/*/notes":         {HTTP: &access.HTTPCall{Method: "POST", Path: "/v1/customers/123-45-6789/notes?ssn=123-45-6789"}},
		"PUT /a/*/* with a body of 9 bytes":  {HTTP: &access.HTTPCall{Method: "PUT", Path: "/a/bob@example.com/%34%31", BodyBytes: 9, Body: "secret"}},
	} {
		if got := Effect(action); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	long := Effect(access.Action{SQL: &access.SQL{Command: "DROP TABLE", Writes: []string{strings.Repeat("ü", 1000)}}})
	if len(long) > maxEffect+4 || !strings.HasSuffix(long, "…") {
		t.Errorf("long effect of %d bytes", len(long))
	}
}
