package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
	"chaperone.dev/chaperone/internal/store"
	"chaperone.dev/chaperone/internal/store/storetest"
)

// A diary is what HTTP sessions report.
type diary struct {
	mu     sync.Mutex
	opened []string
	closed map[string]string
	fail   error
}

func (d *diary) open(_ context.Context, s access.Session) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	d.opened = append(d.opened, s.ID)
	return nil
}

func (d *diary) close(_ context.Context, s access.Session, cause string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed[s.ID] != "" {
		cause = "closed twice"
	}
	d.closed[s.ID] = cause
}

func (d *diary) cause(id string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed[id]
}

var billing = access.Resource{Name: "billing", Kind: access.HTTP}

func newHTTP(t *testing.T, p *pair) (*HTTPSessions, *diary, func()) {
	t.Helper()
	d := &diary{closed: map[string]string{}}
	h, err := NewHTTPSessions(p.one, HTTPConfig{Idle: 5 * time.Minute, Opened: d.open, Closed: d.close})
	ok(t, err)
	h.look = 10 * time.Millisecond
	return h, d, run(t, h.Run)
}

func TestHTTPSessions(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	h, d, stop := newHTTP(t, p)
	alice := p.principal("alice")
	request := func(who access.Principal, what access.Resource) (string, context.Context, func()) {
		t.Helper()
		id, ctx, release, err := h.For(t.Context(), who, what, "10.0.0.1:5")
		ok(t, err)
		return id, ctx, release
	}
	first, ctx, release := request(alice, billing)
	same, _, releaseSame := request(alice, billing)
	if same != first {
		t.Fatal("two requests of one principal, resource and token are two sessions")
	}
	release()
	release() // counts once
	if ctx.Err() == nil {
		t.Fatal("a request that is over keeps its context")
	}
	otherToken := alice
	otherToken.Token.ID = "sha256:another"
	for name, id := range map[string]string{
		"resource":  first3(request(alice, access.Resource{Name: "orders", Kind: access.HTTP})),
		"token":     first3(request(otherToken, billing)),
		"principal": first3(request(p.principal("zoe"), billing)),
	} {
		if id == first {
			t.Errorf("another %s shares the session", name)
		}
	}
	p.clock.Advance(10 * time.Minute)
	if idle := h.idle(); hasSession(idle, first) {
		t.Fatal("a session in use is idle")
	}
	watched, releaseWatched := h.Watch(first)
	if watched.Err() != nil {
		t.Fatal("a live session is watched as ended")
	}
	unknown, _ := h.Watch("ses_none")
	if d := denialOf(t, context.Cause(unknown)); d.Reason != access.SessionEnded {
		t.Fatalf("an unknown session: %+v", d)
	}
	again, _, releaseAgain := request(alice, billing)
	if again != first {
		t.Fatal("a session in use was closed")
	}
	releaseSame()
	releaseAgain()
	p.clock.Advance(10 * time.Minute)
	if idle := h.idle(); hasSession(idle, first) {
		t.Fatal("a session whose response is still streaming is idle")
	}
	releaseWatched()
	p.clock.Advance(4 * time.Minute)
	if id, _, release := request(alice, billing); id != first {
		t.Fatal("a session was closed before it was idle for five minutes")
	} else {
		release()
	}
	p.clock.Advance(5 * time.Minute)
	clocktest.Eventually(t, func() error {
		if d.cause(first) != "the session is over: idle" {
			return fmt.Errorf("closed: %q", d.cause(first))
		}
		return nil
	})
	next, nextCtx, releaseNext := request(alice, billing)
	defer releaseNext()
	if next == first {
		t.Fatal("an idle session was used again")
	}
	stop()
	if len(h.byID) != 0 {
		t.Fatalf("%d sessions left", len(h.byID))
	}
	if ends(t, nextCtx).Reason != access.SessionEnded || len(d.closed) != len(d.opened) {
		t.Fatalf("opened %v, closed %v", d.opened, d.closed)
	}
	_, _, _, err := h.For(t.Context(), alice, billing, "")
	if d := denialOf(t, err); d.Reason != access.Unavailable {
		t.Fatalf("after the end: %+v", d)
	}
}

func hasSession(groups []*group, id string) bool {
	return slices.ContainsFunc(groups, func(g *group) bool { return g.session.ID == id })
}

func first3(id string, _ context.Context, _ func()) string { return id }

// A kill ends running requests; the next request begins a session, unless the
// token was revoked. A token's end is the session's.
func TestHTTPSessionsEnd(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	h, d, _ := newHTTP(t, p)
	alice := p.principal("alice")
	id, ctx, release, err := h.For(t.Context(), alice, billing, "")
	ok(t, err)
	defer release()
	p.clock.Advance(time.Second)
	_, err = p.two.Kill(t.Context(), Selector{Session: id}, "stop", operator)
	ok(t, err)
	if got := ends(t, ctx); got.Message != "an operator ended this session: stop" {
		t.Fatalf("%+v", got)
	}
	clocktest.Eventually(t, func() error {
		if d.cause(id) != "an operator ended this session: stop" {
			return fmt.Errorf("closed: %q", d.cause(id))
		}
		return nil
	})
	p.clock.Advance(time.Second)
	next, ctx, release, err := h.For(t.Context(), alice, billing, "")
	ok(t, err)
	defer release()
	if next == id {
		t.Fatal("the killed session serves on")
	}
	_, err = p.two.Kill(t.Context(), Selector{Token: alice.Token.ID}, "stolen", operator)
	ok(t, err)
	ends(t, ctx)
	_, _, _, err = h.For(t.Context(), alice, billing, "")
	if got := denialOf(t, err); got.Reason != access.SessionEnded {
		t.Fatalf("a revoked token: %+v", got)
	}
	zoe := p.principal("zoe")
	zoe.Token.ExpiresAt = p.clock.Now().Add(time.Minute)
	_, _, release, err = h.For(t.Context(), zoe, billing, "")
	ok(t, err)
	release()
	p.clock.Advance(2 * time.Minute)
	_, _, _, err = h.For(t.Context(), zoe, billing, "")
	if got := denialOf(t, err); got.Reason != access.SessionEnded {
		t.Fatalf("an expired token: %+v", got)
	}
}

// A session that cannot be recorded does not begin.
func TestHTTPSessionUnrecorded(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	h, d, _ := newHTTP(t, p)
	d.fail = errors.New("disk full")
	_, _, _, err := h.For(t.Context(), p.principal("alice"), billing, "")
	if got := denialOf(t, err); got.Reason != access.Unavailable {
		t.Fatalf("%+v", got)
	}
	d.mu.Lock()
	d.fail = nil
	d.mu.Unlock()
	_, _, release, err := h.For(t.Context(), p.principal("alice"), billing, "")
	ok(t, err)
	release()
	if len(d.opened) != 1 || len(d.closed) != 0 {
		t.Fatalf("opened %v, closed %v", d.opened, d.closed)
	}
}

// Many first requests at once are one session, also when some give up waiting.
func TestHTTPSessionsAtOnce(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	h, d, stop := newHTTP(t, p)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%8 == 1 {
				cancel()
			}
			_, _, release, err := h.For(ctx, p.principal("alice"), billing, "")
			if err == nil {
				release()
			} else if i%8 != 1 {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(d.opened) != 1 {
		t.Fatalf("opened %v", d.opened)
	}
	for _, g := range h.groups {
		if g.users != 0 {
			t.Fatalf("%d users left", g.users)
		}
	}
	stop()
	if len(d.closed) != 1 {
		t.Fatalf("closed %v", d.closed)
	}
}
