package session

import (
	"fmt"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
	"chaperone.dev/chaperone/internal/store/storetest"
)

// Whoever revokes tokens of their own without end stops no operator's kill.
func TestHoldersLeaveRoomForOperators(t *testing.T) {
	t.Parallel()
	e := storetest.Embedded(t)
	p := newPair(t, [2]store.Store{e, e}, nil)
	hostile := p.session("mallory")
	ctx := opened(t, p.one, hostile)
	throwAway := func(n int) access.Principal {
		one := hostile.Principal
		one.Token.ID = fmt.Sprintf("tok_%d", n)
		return one
	}
	ok(t, p.one.RevokeToken(t.Context(), throwAway(0), "")) // the twin
	until := p.clock.Now().Add(time.Hour)
	for n := 1; n < maxByHolders; n++ {
		id := throwAway(n).Token.ID
		p.one.keep(&revocation{ID: id, Selector: Selector{Token: id}, At: p.clock.Now(), Until: until}, p.clock.Now())
	}
	if err := p.one.RevokeToken(t.Context(), throwAway(maxByHolders), ""); err == nil {
		t.Error("a holder takes the operators' room")
	}
	for _, n := range []int{0, 1, maxByHolders - 1} {
		below := p.session("zoe").Principal
		below.Chain = []access.Hop{{Parent: throwAway(n).Token.ID}}
		if revoked, err := p.one.Revoked(t.Context(), below); !revoked || err != nil {
			t.Errorf("what came of token %d is good: %v", n, err)
		}
	}
	if revoked, err := p.one.Revoked(t.Context(), hostile.Principal); revoked || err != nil {
		t.Errorf("a token that nobody revoked: %v %v", revoked, err)
	}
	if n, err := p.one.Kill(t.Context(), Selector{User: "mallory@example.com"}, "", operator); n != 1 || err != nil {
		t.Errorf("the kill: %d %v", n, err)
	}
	ends(t, ctx)
	if revoked, err := p.one.Revoked(t.Context(), hostile.Principal); !revoked || err != nil {
		t.Errorf("the killed token is good: %v", err)
	}
}
