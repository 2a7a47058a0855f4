package console

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
)

func TestPace(t *testing.T) {
	t.Parallel()
	clock := clocktest.New(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC))
	p := newPace(time.Second, 3, 2, clock.Now)
	taken := func(who string, n int) (got int) {
		for range n {
			if _, ok := p.take(who); ok {
				got++
			}
		}
		return got
	}
	if got := taken("a", 10); got != 3 {
		t.Errorf("%d at once", got)
	}
	if free, _ := p.take("a"); free != clock.Now().Add(time.Second) {
		t.Errorf("free at %s", free)
	}
	if got := taken("b", 1); got != 1 {
		t.Error("another caller has to wait")
	}
	if got := taken("c", 1); got != 0 {
		t.Error("a third is remembered")
	}
	clock.Advance(time.Second)
	if a, c := taken("a", 10), taken("c", 1); a != 1 || c != 1 {
		t.Errorf("a second later: %d, %d of a new caller in b's place", a, c)
	}
	clock.Advance(time.Hour)
	if got := taken("a", 10); got != 3 {
		t.Errorf("an hour later: %d at once", got)
	}
}

// TestRenewIsBounded: who renews all the time is told when to do it again, and
// nothing is recorded for them. Twin: somebody else.
func TestRenewIsBounded(t *testing.T) {
	t.Parallel()
	d, h := newDesk()
	d.people["other"] = access.Principal{Subject: "other"}
	for i := range renewBurst {
		if w := call(h, "agent", "POST", "/api/v1/sessions/renew", ""); w.Code != http.StatusOK {
			t.Fatalf("renewal %d: %d", i, w.Code)
		}
	}
	w := call(h, "agent", "POST", "/api/v1/sessions/renew", "")
	var problem struct {
		Reason string
		Frees  time.Time
	}
	if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil || w.Code != http.StatusTooManyRequests || problem.Reason != "limit-exceeded" || problem.Frees.IsZero() {
		t.Errorf("one too many: %d %s %v", w.Code, w.Body, err)
	}
	if fmt.Sprint(len(d.events), len(d.renewed)) != "0 0" {
		t.Errorf("%d recorded, %d renewed", len(d.events), len(d.renewed))
	}
	if w := call(h, "other", "POST", "/api/v1/sessions/renew", ""); w.Code != http.StatusOK {
		t.Errorf("the twin: %d", w.Code)
	}
}
