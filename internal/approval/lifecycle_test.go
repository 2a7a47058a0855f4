package approval

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/store"
)

// One approval from question to end, seen by two replicas.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open stores) {
		tests := map[string]func(*testing.T, *pair){
			"granted and run once":             testGranted,
			"refused":                          testRefused,
			"two reviewers":                    testTwoReviewers,
			"expires":                          testExpires,
			"a grant expires":                  testGrantExpires,
			"the client leaves":                testAbandon,
			"a replica dies":                   testReplicaDies,
			"leased asks are private":          testLeasedArePrivate,
			"identical asks share":             testIdentical,
			"detached":                         testDetach,
			"window":                           testWindow,
			"the digest binds":                 testDigest,
			"nothing happens unrecorded":       testUnrecorded,
			"clock jumps":                      testClockJumps,
			"wrong clock of another replica":   testWrongClock,
			"waiting ends with its context":    testWaitEnds,
			"reviewed and shown as it was put": testShown,
		}
		for name, test := range tests {
			t.Run(name, func(t *testing.T) { t.Parallel(); test(t, newPair(t, open(t), nil).run(t)) })
		}
	})
}

func testGranted(t *testing.T, p *pair) {
	ctx := t.Context()
	a, err := p.one.Ask(ctx, newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	if a.State != access.Pending || !a.Expires.Equal(p.clock.Now().Add(15*time.Minute)) {
		t.Fatalf("filed %+v", a)
	}
	wantsState(t, p.one.Consume(ctx, a.ID, a.Digest), access.Pending)
	waited := make(chan access.Approval, 1)
	go func() {
		got, err := p.one.Wait(ctx, a.ID)
		if err != nil {
			t.Error(err)
		}
		waited <- got
	}()
	granted, err := p.two.Answer(ctx, a.ID, reviewer("bob"), true, "looks right")
	ok(t, err)
	if granted.State != access.Granted {
		t.Fatalf("answered: %s", granted.State)
	}
	if got := <-waited; got.State != access.Granted || got.Answers[0].Comment != "looks right" {
		t.Fatalf("waited for %+v", got)
	}
	ok(t, p.one.Consume(ctx, a.ID, a.Digest))
	wantsState(t, p.one.Consume(ctx, a.ID, a.Digest), access.Consumed)
	wantsState(t, p.two.Consume(ctx, a.ID, a.Digest), access.Consumed)
	_, err = p.two.Answer(ctx, a.ID, reviewer("dora"), true, "")
	wantsState(t, err, access.Consumed)
	ok(t, p.one.Abandon(ctx, a.ID)) // when the session closes; too late
	isState(t, p.two, a.ID, access.Consumed)
	recorded(t, p.recorder, a.ID, access.Pending, access.Granted, access.Consumed)
	again, err := p.one.Ask(ctx, newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	if again.ID == a.ID || again.State != access.Pending {
		t.Fatalf("asked again: %+v", again)
	}
}

func testRefused(t *testing.T, p *pair) {
	ctx := t.Context()
	ask := newAsk("1", false, access.ApprovalTerms{Count: 2})
	a, err := p.one.Ask(ctx, ask)
	ok(t, err)
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	refused, err := p.two.Answer(ctx, a.ID, reviewer("dora"), false, "no \x1b[31mway")
	ok(t, err)
	if refused.State != access.Refused || refused.Answers[1].Comment != "no \uFFFD[31mway" {
		t.Fatalf("refused: %+v", refused)
	}
	if got, err := p.one.Wait(ctx, a.ID); err != nil || got.State != access.Refused {
		t.Fatalf("waited: %s, %v", got.State, err)
	}
	wantsState(t, p.one.Consume(ctx, a.ID, a.Digest), access.Refused)
	_, err = p.two.Answer(ctx, a.ID, reviewer("erin"), true, "")
	wantsState(t, err, access.Refused)
	recorded(t, p.recorder, a.ID, access.Pending, access.Pending, access.Refused)
	ask.Request.ID = access.NewRequestID()
	again, err := p.one.Ask(ctx, ask)
	ok(t, err)
	if again.ID == a.ID || again.State != access.Pending {
		t.Fatalf("a repeat after a refusal: %+v", again)
	}
}

func testTwoReviewers(t *testing.T, p *pair) {
	ctx := t.Context()
	a, err := p.one.Ask(ctx, newAsk("1", true, access.ApprovalTerms{Count: 2}))
	ok(t, err)
	first, err := p.one.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	if first.State != access.Pending {
		t.Fatalf("one of two grants made it %s", first.State)
	}
	wantsState(t, p.one.Consume(ctx, a.ID, a.Digest), access.Pending)
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	wants(t, err, ErrAnswered)
	second, err := p.two.Answer(ctx, a.ID, reviewer("dora"), true, "")
	ok(t, err)
	if second.State != access.Granted {
		t.Fatalf("two of two grants made it %s", second.State)
	}
	ok(t, p.one.Consume(ctx, a.ID, a.Digest))
}

func testExpires(t *testing.T, p *pair) {
	ctx := t.Context()
	a, err := p.one.Ask(ctx, newAsk("1", true, access.ApprovalTerms{Expires: time.Minute}))
	ok(t, err)
	waited := make(chan access.Approval, 1)
	go func() {
		got, err := p.one.Wait(ctx, a.ID)
		if err != nil {
			t.Error(err)
		}
		waited <- got
	}()
	p.clock.Advance(time.Minute)
	if got := <-waited; got.State != access.Expired {
		t.Fatalf("waited: %s", got.State)
	}
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	wantsState(t, err, access.Expired)
	wantsState(t, p.one.Consume(ctx, a.ID, a.Digest), access.Expired)
	recorded(t, p.recorder, a.ID, access.Pending, access.Expired)
}

func testGrantExpires(t *testing.T, p *pair) {
	ctx := t.Context()
	a, err := p.one.Ask(ctx, newAsk("1", false, access.ApprovalTerms{Expires: time.Minute}))
	ok(t, err)
	p.clock.Advance(50 * time.Second)
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	p.clock.Advance(50 * time.Second) // the question would be over, the grant stands a minute
	isState(t, p.one, a.ID, access.Granted)
	p.clock.Advance(10 * time.Second)
	wantsState(t, p.one.Consume(ctx, a.ID, a.Digest), access.Expired)
	recorded(t, p.recorder, a.ID, access.Pending, access.Granted, access.Expired)
}

func testAbandon(t *testing.T, p *pair) {
	for _, granted := range []bool{false, true} {
		a, err := p.one.Ask(t.Context(), newAsk("1", true, access.ApprovalTerms{}))
		ok(t, err)
		if granted {
			_, err = p.two.Answer(t.Context(), a.ID, reviewer("bob"), true, "")
			ok(t, err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		ok(t, p.one.Abandon(gone, a.ID)) // the client's context is over by then
		ok(t, p.one.Abandon(gone, a.ID))
		_, err = p.two.Answer(t.Context(), a.ID, reviewer("dora"), true, "")
		wantsState(t, err, access.Abandoned)
		wantsState(t, p.one.Consume(t.Context(), a.ID, a.Digest), access.Abandoned)
		if _, err := p.stores[1].Holder(t.Context(), leasePrefix+a.ID); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("its lease: %v", err)
		}
	}
	ok(t, p.one.Abandon(t.Context(), "req_none"))
}

func testReplicaDies(t *testing.T, p *pair) {
	ctx := t.Context()
	var ids []string
	for i := range 2 {
		a, err := p.one.Ask(ctx, newAsk(fmt.Sprint(i), true, access.ApprovalTerms{}))
		ok(t, err)
		ids = append(ids, a.ID)
	}
	left, err := p.one.Ask(ctx, newAsk("left behind", false, access.ApprovalTerms{}))
	ok(t, err)
	granted, err := p.two.Answer(ctx, ids[1], reviewer("bob"), true, "")
	ok(t, err)
	// The replica dies: nothing renews its leases, and they end.
	p.one.mu.Lock()
	clear(p.one.held)
	p.one.mu.Unlock()
	ok(t, p.stores[0].Release(ctx, p.one.owner, leasePrefix+ids[0], leasePrefix+ids[1]))
	_, err = p.two.Answer(ctx, ids[0], reviewer("bob"), true, "")
	wantsState(t, err, access.Abandoned)
	wantsState(t, p.one.Consume(ctx, ids[1], granted.Digest), access.Abandoned)
	isState(t, p.two, left.ID, access.Pending)
}

func testLeasedArePrivate(t *testing.T, p *pair) {
	ctx := t.Context()
	a, err := p.one.Ask(ctx, newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	b, err := p.two.Ask(ctx, newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	c, err := p.two.Ask(ctx, newAsk("1", false, access.ApprovalTerms{}))
	ok(t, err)
	if a.ID == b.ID || a.ID == c.ID || a.Digest != b.Digest {
		t.Fatalf("three clients share %s, %s, %s", a.ID, b.ID, c.ID)
	}
	_, err = p.one.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	wantsState(t, p.two.Consume(ctx, b.ID, b.Digest), access.Pending)
	ok(t, p.one.Abandon(ctx, a.ID))
	isState(t, p.two, b.ID, access.Pending)
}

func testIdentical(t *testing.T, p *pair) {
	ctx := t.Context()
	a, err := p.one.Ask(ctx, newAsk("1", false, access.ApprovalTerms{}))
	ok(t, err)
	again := func(s *Service, leased bool, change func(*access.Ask)) access.Approval {
		t.Helper()
		ask := newAsk("1", leased, access.ApprovalTerms{})
		ask.Request.Session, ask.Request.Principal.Token.ID = "ses_2", "sha256:another token"
		if change != nil {
			change(&ask)
		}
		got, err := s.Ask(ctx, ask)
		ok(t, err)
		return got
	}
	if got := again(p.two, false, nil); got.ID != a.ID {
		t.Fatalf("the identical ask made %s", got.ID)
	}
	for name, change := range map[string]func(*access.Ask){
		"another user":     func(a *access.Ask) { a.Request.Principal.User = "mallory@example.com" },
		"another text":     func(a *access.Ask) { a.Request.Action.SQL.Text += " or true" },
		"another rule":     func(a *access.Ask) { a.Decision.Rules[0].Hash = "h2" },
		"another resource": func(a *access.Ask) { a.Request.Resource.Name = "billing" },
	} {
		if got := again(p.two, false, change); got.ID == a.ID {
			t.Errorf("%s got the same approval", name)
		}
	}
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	if got := again(p.two, true, nil); got.ID != a.ID || got.State != access.Granted {
		t.Fatalf("after the grant: %s %s", got.ID, got.State)
	}
	ok(t, p.two.Consume(ctx, a.ID, a.Digest))
	if got := again(p.one, false, nil); got.ID == a.ID || got.State != access.Pending {
		t.Fatalf("after its use: %s %s", got.ID, got.State)
	}
}

func testDetach(t *testing.T, p *pair) {
	ctx := t.Context()
	a, err := p.one.Ask(ctx, newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	ok(t, p.one.Detach(ctx, a.ID))
	ok(t, p.one.Detach(ctx, a.ID))
	if _, err := p.stores[1].Holder(ctx, leasePrefix+a.ID); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("its lease: %v", err)
	}
	isState(t, p.two, a.ID, access.Pending)
	again, err := p.two.Ask(ctx, newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	if again.ID != a.ID || again.Ask.Leased {
		t.Fatalf("the client that came back got %+v", again)
	}
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	ok(t, p.two.Consume(ctx, a.ID, a.Digest))
	recorded(t, p.recorder, a.ID, access.Pending, access.Granted, access.Consumed)
	wantsState(t, p.one.Detach(ctx, a.ID), access.Consumed)
}

func testWindow(t *testing.T, p *pair) {
	ctx := t.Context()
	terms := access.ApprovalTerms{Window: 10 * time.Minute}
	a, err := p.one.Ask(ctx, newAsk("1", true, terms))
	ok(t, err)
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	ok(t, p.one.Consume(ctx, a.ID, a.Digest))
	ok(t, p.one.Abandon(ctx, a.ID)) // the session ends; the window does not
	next, err := p.two.Ask(ctx, newAsk("1", true, terms))
	ok(t, err)
	if next.ID != a.ID || next.State != access.Granted {
		t.Fatalf("within the window: %s %s", next.ID, next.State)
	}
	ok(t, p.two.Consume(ctx, a.ID, a.Digest))
	wants(t, p.two.Consume(ctx, a.ID, access.AskDigest(newAsk("2", true, terms))), ErrDigest)
	p.clock.Advance(10 * time.Minute)
	wantsState(t, p.two.Consume(ctx, a.ID, a.Digest), access.Expired)
	recorded(t, p.recorder, a.ID, access.Pending, access.Granted, access.Consumed, access.Consumed, access.Expired)

	unused, err := p.one.Ask(ctx, newAsk("1", true, terms))
	ok(t, err)
	_, err = p.two.Answer(ctx, unused.ID, reviewer("bob"), true, "")
	ok(t, err)
	ok(t, p.one.Abandon(ctx, unused.ID)) // left before it ran anything
	isState(t, p.two, unused.ID, access.Abandoned)
}

// Whatever the digest covers, changed between grant and use, does not run.
func testDigest(t *testing.T, p *pair) {
	ctx := t.Context()
	a, err := p.one.Ask(ctx, newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	for name, change := range map[string]func(*access.Ask){
		"text":      func(a *access.Ask) { a.Request.Action.SQL.Text += " " },
		"forwarded": func(a *access.Ask) { a.Request.Action.SQL.Forward = "drop table orders" },
		"value":     func(a *access.Ask) { a.Request.Action.SQL.Parameters[0].Value = "2" },
		"type":      func(a *access.Ask) { a.Request.Action.SQL.Parameters[0].Type = 25 },
		"null":      func(a *access.Ask) { a.Request.Action.SQL.Parameters[0].Null = true },
		"setting":   func(a *access.Ask) { a.Settings["search_path"] = "evil" },
		"resource":  func(a *access.Ask) { a.Request.Resource.Name = "billing" },
		"user":      func(a *access.Ask) { a.Request.Principal.User = "bob@example.com" },
		"chain":     func(a *access.Ask) { a.Request.Principal.Chain = nil },
		"rule":      func(a *access.Ask) { a.Decision.Rules[0].Hash = "h2" },
	} {
		other := newAsk("1", true, access.ApprovalTerms{})
		other.Request.Action.SQL.Parameters = append([]access.BoundParameter{}, other.Request.Action.SQL.Parameters...)
		change(&other)
		if err := p.one.Consume(ctx, a.ID, access.AskDigest(other)); !errors.Is(err, ErrDigest) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	wants(t, p.one.Consume(ctx, a.ID, ""), ErrDigest)
	same := newAsk("1", false, access.ApprovalTerms{})
	same.Request.Session, same.Request.Principal.Token.ID = "ses_2", "sha256:other"
	ok(t, p.one.Consume(ctx, a.ID, access.AskDigest(same)))
}

// Every step fails when it cannot be recorded, and has then not happened.
func testUnrecorded(t *testing.T, p *pair) {
	ctx := t.Context()
	full := errors.New("disk full")
	failing := func(states ...access.ApprovalState) {
		p.recorder.failWith(func(e access.Event) error {
			for _, s := range states {
				if e.Approval.State == s {
					return full
				}
			}
			return nil
		})
	}
	failing(access.Pending)
	_, err := p.one.Ask(ctx, newAsk("1", true, access.ApprovalTerms{}))
	wants(t, err, full)
	if all, err := p.two.List(ctx, Filter{}); err != nil || len(all) != 0 {
		t.Fatalf("listed %v, %v", all, err)
	}
	failing(access.Granted, access.Consumed, access.Expired)
	a, err := p.one.Ask(ctx, newAsk("1", false, access.ApprovalTerms{}))
	ok(t, err)
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	wants(t, err, full)
	isState(t, p.one, a.ID, access.Pending)
	failing(access.Consumed, access.Expired)
	_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
	ok(t, err)
	wants(t, p.one.Consume(ctx, a.ID, a.Digest), full)
	isState(t, p.one, a.ID, access.Granted)
	p.clock.Advance(time.Hour) // over, even if that cannot be written down
	isState(t, p.two, a.ID, access.Expired)
	wants(t, p.one.Consume(ctx, a.ID, a.Digest), full)
	p.clock.Advance(-time.Hour)
	isState(t, p.two, a.ID, access.Expired)
	failing()
	wantsState(t, p.one.Consume(ctx, a.ID, a.Digest), access.Expired)
}

// A clock that jumps by an hour neither grants, revives nor runs twice.
func testClockJumps(t *testing.T, p *pair) {
	ctx := t.Context()
	pending, err := p.one.Ask(ctx, newAsk("1", false, access.ApprovalTerms{}))
	ok(t, err)
	used, err := p.one.Ask(ctx, newAsk("2", false, access.ApprovalTerms{}))
	ok(t, err)
	granted, err := p.one.Ask(ctx, newAsk("3", false, access.ApprovalTerms{}))
	ok(t, err)
	for _, a := range []access.Approval{used, granted} {
		_, err = p.two.Answer(ctx, a.ID, reviewer("bob"), true, "")
		ok(t, err)
	}
	ok(t, p.one.Consume(ctx, used.ID, used.Digest))
	p.clock.Advance(-time.Hour)
	isState(t, p.one, pending.ID, access.Pending)
	wantsState(t, p.two.Consume(ctx, used.ID, used.Digest), access.Consumed)
	p.clock.Advance(2 * time.Hour)
	for _, a := range []access.Approval{pending, granted} {
		isState(t, p.two, a.ID, access.Expired)
	}
	p.clock.Advance(-2 * time.Hour)
	for _, a := range []access.Approval{pending, granted} {
		for _, s := range []*Service{p.one, p.two} {
			isState(t, s, a.ID, access.Expired)
			_, err = s.Answer(ctx, a.ID, reviewer("dora"), true, "")
			wantsState(t, err, access.Expired)
			wantsState(t, s.Consume(ctx, a.ID, a.Digest), access.Expired)
		}
	}
	wantsState(t, p.two.Consume(ctx, used.ID, used.Digest), access.Consumed)
}

// An approval asked by a replica whose clock is far ahead still has no more
// time here than its rule gives.
func testWrongClock(t *testing.T, p *pair) {
	ahead := newPair(t, p.stores, nil)
	ahead.clock.Advance(time.Hour)
	a, err := ahead.one.Ask(t.Context(), newAsk("1", false, access.ApprovalTerms{Expires: 50 * time.Millisecond}))
	ok(t, err)
	clocktest.Eventually(t, func() error { // the clocks of the pair stand still
		if got, err := p.two.Get(t.Context(), a.ID); err != nil || got.State != access.Expired {
			return fmt.Errorf("it is %s, %w", got.State, err)
		}
		return nil
	})
}

func testWaitEnds(t *testing.T, p *pair) {
	a, err := p.one.Ask(t.Context(), newAsk("1", true, access.ApprovalTerms{}))
	ok(t, err)
	left := errors.New("client left")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := p.one.Wait(ctx, a.ID)
		done <- err
	}()
	cancel(left)
	wants(t, <-done, left)
	_, err = p.one.Wait(t.Context(), "req_none")
	wants(t, err, ErrNotFound)
	if n := p.one.waiters.n; n != 0 {
		t.Fatalf("%d waiters left", n)
	}
}

func testShown(t *testing.T, p *pair) {
	ctx := t.Context()
	ask := newAsk("1", true, access.ApprovalTerms{})
	a, err := p.one.Ask(ctx, ask)
	ok(t, err)
	got := isState(t, p.two, a.ID, access.Pending)
	if got.Ask.Request.Action.SQL.Text != ask.Request.Action.SQL.Text || got.Digest != access.AskDigest(ask) || access.AskDigest(got.Ask) != got.Digest {
		t.Fatalf("shown %+v", got)
	}
	other := newAsk("2", true, access.ApprovalTerms{})
	other.Request.Principal.User, other.Request.Resource.Name = "zoe@example.com", "billing"
	b, err := p.two.Ask(ctx, other)
	ok(t, err)
	for name, test := range map[string]struct {
		filter Filter
		want   int
	}{
		"all":        {Filter{}, 2},
		"newest":     {Filter{Limit: 1}, 1},
		"pending":    {Filter{States: []access.ApprovalState{access.Pending}}, 2},
		"granted":    {Filter{States: []access.ApprovalState{access.Granted}}, 0},
		"user":       {Filter{User: "ZOE@example.com"}, 1},
		"resource":   {Filter{Resource: "orders"}, 1},
		"both match": {Filter{Resource: "billing", User: b.Ask.Request.Principal.User}, 1},
		"one fails":  {Filter{Resource: "orders", User: b.Ask.Request.Principal.User}, 0},
	} {
		list, err := p.one.List(ctx, test.filter)
		if err != nil || len(list) != test.want {
			t.Errorf("%s: %d approvals, %v", name, len(list), err)
		}
	}
	for _, id := range []string{"", "req_none", "../lock", "a b", "approval/x"} {
		if _, err := p.one.Get(ctx, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("get %q: %v", id, err)
		}
		if _, err := p.one.Answer(ctx, id, reviewer("bob"), true, ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("answer %q: %v", id, err)
		}
	}
}
