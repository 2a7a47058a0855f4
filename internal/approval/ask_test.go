package approval

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/store"
)

// What cannot be bound, shown or answered is not filed.
func TestAskRefuses(t *testing.T) {
	t.Parallel()
	p := newPair(t, embeddedStores(t), nil)
	http := func(a *access.Ask, call access.HTTPCall) {
		a.Request.Resource = access.Resource{Name: "billing", Kind: access.HTTP}
		a.Request.Action = access.Action{HTTP: &call}
	}
	for name, test := range map[string]struct {
		change func(a *access.Ask)
		fine   bool
	}{
		"as it is":       {func(*access.Ask) {}, true},
		"no terms":       {func(a *access.Ask) { a.Decision.Obligations.Approval = nil }, false},
		"not approve":    {func(a *access.Ask) { a.Decision.Effect = access.Allow }, false},
		"no groups":      {func(a *access.Ask) { a.Decision.Obligations.Approval.Groups = nil }, false},
		"no end":         {func(a *access.Ask) { a.Decision.Obligations.Approval.Expires = 0 }, false},
		"bad id":         {func(a *access.Ask) { a.Request.ID = "../x" }, false},
		"no id":          {func(a *access.Ask) { a.Request.ID = "" }, false},
		"broken text":    {func(a *access.Ask) { a.Request.Action.SQL.Text = "select '\xff'" }, false},
		"broken value":   {func(a *access.Ask) { a.Request.Action.SQL.Parameters[0].Value = "\xfe" }, false},
		"broken setting": {func(a *access.Ask) { a.Settings["x"] = "\xff" }, false},
		"empty settings": {func(a *access.Ask) { a.Settings = map[string]string{} }, true},
		"no settings":    {func(a *access.Ask) { a.Settings = nil }, true},
		"no rules":       {func(a *access.Ask) { a.Decision.Rules = []access.RuleRef{} }, true},
		"too large":      {func(a *access.Ask) { a.Request.Action.SQL.Text = strings.Repeat("x", store.MaxValue) }, false},
		"html in text":   {func(a *access.Ask) { a.Request.Action.SQL.Text = "select '<&>\u2028\ufffd'" }, true},
		"http":           {func(a *access.Ask) { http(a, access.HTTPCall{Method: "POST", Path: "/x"}) }, true},
		"http bound body": {func(a *access.Ask) {
			http(a, access.HTTPCall{Method: "POST", Path: "/x", BodyState: access.BodyWhole, Body: map[string]any{"n": 1}, BodyDigest: "sha256:1"})
		}, true},
		"http loose body": {func(a *access.Ask) { http(a, access.HTTPCall{Method: "POST", Path: "/x", BodyState: access.BodyWhole}) }, false},
		"http unread body": {func(a *access.Ask) {
			http(a, access.HTTPCall{Method: "POST", Path: "/x", BodyState: access.BodyUnread})
		}, false},
		"http raw query": {func(a *access.Ask) { http(a, access.HTTPCall{Query: map[string][]string{"q": {"\xff"}}}) }, false},
	} {
		ask := newAsk(name, false, access.ApprovalTerms{})
		test.change(&ask)
		digest := access.AskDigest(ask)
		a, err := p.one.Ask(t.Context(), ask)
		if (err == nil) != test.fine {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			_, err := p.one.Answer(t.Context(), a.ID, reviewer("bob"), true, "")
			ok(t, err)
			if err := p.two.Consume(t.Context(), a.ID, digest); err != nil {
				t.Errorf("%s: consume: %v", name, err)
			}
		}
	}
}

// The same request id twice: the same question, or an error.
func TestAskTwice(t *testing.T) {
	t.Parallel()
	p := newPair(t, embeddedStores(t), nil)
	ask := newAsk("1", true, access.ApprovalTerms{})
	a, err := p.one.Ask(t.Context(), ask)
	ok(t, err)
	again, err := p.one.Ask(t.Context(), ask)
	if err != nil || again.ID != a.ID {
		t.Fatalf("%+v, %v", again, err)
	}
	recorded(t, p.recorder, a.ID, access.Pending)
	other := newAsk("2", true, access.ApprovalTerms{})
	other.Request.ID = ask.Request.ID
	_, err = p.one.Ask(t.Context(), other)
	wants(t, err, ErrDigest)
	ok(t, p.one.Abandon(t.Context(), a.ID))
	_, err = p.one.Ask(t.Context(), ask)
	wantsState(t, err, access.Abandoned)
}

// Of many identical asks at once, at both replicas, one is filed.
func TestIdenticalAsksAtOnce(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open stores) {
		p := newPair(t, open(t), nil).run(t)
		var wg sync.WaitGroup
		ids := make([]string, 16)
		for i := range ids {
			wg.Go(func() {
				a, err := []*Service{p.one, p.two}[i%2].Ask(t.Context(), newAsk("1", false, access.ApprovalTerms{}))
				if err != nil {
					t.Error(err)
				}
				ids[i] = a.ID
			})
		}
		wg.Wait()
		for _, id := range ids {
			if id != ids[0] {
				t.Fatalf("asks share %v", ids)
			}
		}
		recorded(t, p.recorder, ids[0], access.Pending)
	})
}

func TestAskBounds(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	s := embeddedStores(t)
	p := newPair(t, s, func(c *Config) {
		c.MaxPending, c.MaxPendingPerPrincipal, c.MaxAsksPerMinute = 4, 3, 30
		if c.Replica == "one" {
			c.Registerer = registry
		}
	}).run(t)
	ask := func(service *Service, n, user string) (access.Approval, error) {
		a := newAsk(n, false, access.ApprovalTerms{})
		a.Request.Principal.User = user
		return service.Ask(t.Context(), a)
	}
	var first access.Approval
	for i := range 3 {
		a, err := ask(p.one, fmt.Sprint(i), "alice")
		ok(t, err)
		if i == 0 {
			first = a
		}
	}
	_, err := ask(p.one, "4", "alice")
	wants(t, err, ErrTooMany)
	clocktest.Eventually(t, func() error { // the other replica learns it
		if n := p.two.live.pendingCount(); n != 3 {
			return fmt.Errorf("%d pending", n)
		}
		return nil
	})
	_, err = ask(p.two, "4", "alice")
	wants(t, err, ErrTooMany)
	_, err = ask(p.two, "4", "zoe")
	ok(t, err)
	clocktest.Eventually(t, func() error {
		if n := p.one.live.pendingCount(); n != 4 {
			return fmt.Errorf("%d pending", n)
		}
		return nil
	})
	_, err = ask(p.one, "5", "yves")
	wants(t, err, ErrTooMany)
	if again, err := ask(p.one, "0", "alice"); err != nil || again.ID != first.ID {
		t.Fatalf("an identical ask at the bound: %v", err)
	}
	_, err = p.one.Answer(t.Context(), first.ID, reviewer("bob"), false, "") // makes room for one
	ok(t, err)
	_, err = ask(p.one, "5", "yves")
	ok(t, err)
	families, err := registry.Gather()
	ok(t, err)
	if len(families) < 2 {
		t.Fatalf("metrics %v", families)
	}
	fast := newPair(t, embeddedStores(t), func(c *Config) { c.MaxAsksPerMinute = 30 })
	for i := 0; ; i++ {
		a, err := ask(fast.one, fmt.Sprint(i), "alice")
		if err == nil {
			ok(t, fast.one.Abandon(t.Context(), a.ID))
			continue
		}
		wants(t, err, ErrTooMany)
		if i < 10 {
			t.Fatalf("only %d questions", i)
		}
		break
	}
}

// A replica that is gone for good: its leased asks end by themselves, noticed
// by the other replica, on the real time of leases.
func TestLeaseEnds(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open stores) {
		p := newPair(t, open(t), func(c *Config) { c.LeaseTTL = 2 * time.Second })
		run(t, p.two)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { p.one.renew(ctx) })
		a, err := p.one.Ask(t.Context(), newAsk("1", true, access.ApprovalTerms{}))
		ok(t, err)
		waited := make(chan error, 1)
		began := time.Now()
		go func() {
			got, err := p.two.Wait(t.Context(), a.ID)
			if err == nil && got.State != access.Abandoned {
				err = fmt.Errorf("it is %s", got.State)
			}
			waited <- err
		}()
		hold := time.NewTimer(3 * time.Second) // it is renewed as long as its replica lives
		select {
		case err := <-waited:
			t.Fatalf("ended after %s: %v", time.Since(began), err)
		case <-hold.C:
		}
		cancel() // kill -9: nothing is released
		running.Wait()
		ok(t, <-waited)
		_, err = p.two.Answer(t.Context(), a.ID, reviewer("bob"), true, "")
		wantsState(t, err, access.Abandoned)
	})
}

// A service that stops gives its leases up at once.
func TestStop(t *testing.T) {
	t.Parallel()
	p := newPair(t, embeddedStores(t), nil)
	stop := run(t, p.one)
	a, err := p.one.Ask(t.Context(), newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	stop()
	isState(t, p.two, a.ID, access.Abandoned)
}

// Old approvals are removed, the newest kept, open ones always.
func TestTidy(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open stores) {
		p := newPair(t, open(t), func(c *Config) { c.MaxKept, c.Retention = 2, time.Hour })
		file := func(n string, end bool) string {
			a, err := p.one.Ask(t.Context(), newAsk(n, false, access.ApprovalTerms{Expires: 5 * time.Hour}))
			ok(t, err)
			if end {
				ok(t, p.one.Abandon(t.Context(), a.ID))
			}
			p.clock.Advance(time.Second)
			return a.ID
		}
		ids := []string{file("0", true), file("1", false), file("2", true), file("3", true), file("4", true)}
		exist := func(want ...bool) {
			t.Helper()
			for i, id := range ids {
				_, err := p.two.Get(t.Context(), id)
				if errors.Is(err, ErrNotFound) == want[i] {
					t.Fatalf("approval %d: %v", i, err)
				}
			}
		}
		ok(t, p.two.tidy(t.Context()))
		exist(false, true, false, true, true)
		p.clock.Advance(2 * time.Hour)
		ok(t, p.one.tidy(t.Context()))
		exist(false, true, false, false, false)
		page, err := p.stores[0].List(t.Context(), samePrefix, "", 100)
		if err != nil || len(page.Items) != 1 {
			t.Fatalf("%d pointers, %v", len(page.Items), err)
		}
	})
}
