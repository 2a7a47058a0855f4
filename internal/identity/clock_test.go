package identity

import (
	"context"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// A machine has a wall clock that may jump and a steady one that may not.
type machine struct {
	wall   time.Time
	passed time.Duration
}

func (m *machine) pass(d time.Duration) { m.wall, m.passed = m.wall.Add(d), m.passed+d }
func (m *machine) jump(d time.Duration) { m.wall = m.wall.Add(d) }

func (m *machine) look() (time.Time, time.Duration) {
	passed := m.passed
	m.passed = 0
	return m.wall, passed
}

func TestClockJumps(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	for _, c := range []struct {
		name        string
		do          func(m *machine, read func() reading)
		early, late time.Duration // from noon
	}{
		{"still", func(*machine, func() reading) {}, 0, 0},
		{"time passes", func(m *machine, _ func() reading) { m.pass(hour) }, hour, hour},
		{"slewed", func(m *machine, _ func() reading) { m.pass(hour); m.jump(time.Second) }, hour + time.Second, hour + time.Second},
		{"forward", func(m *machine, _ func() reading) { m.jump(hour) }, 0, hour},
		{"back", func(m *machine, _ func() reading) { m.jump(-hour) }, -hour, 0},
		{"forward and back", func(m *machine, read func() reading) { m.jump(hour); read(); m.pass(time.Second); m.jump(-hour) }, time.Second, time.Second},
		{"back and forward", func(m *machine, read func() reading) { m.jump(-hour); read(); m.pass(time.Second); m.jump(hour) }, time.Second, time.Second},
		{"forward, nearly settled", func(m *machine, read func() reading) { m.jump(hour); read(); m.pass(settleForward - 1) }, settleForward - 1, hour + settleForward - 1},
		{"forward, settled", func(m *machine, read func() reading) { m.jump(hour); read(); m.pass(settleForward) }, hour + settleForward, hour + settleForward},
		{"back, nearly settled", func(m *machine, read func() reading) { m.jump(-hour); read(); m.pass(settleBack - 1) }, settleBack - 1 - hour, settleBack - 1},
		{"back, settled", func(m *machine, read func() reading) { m.jump(-hour); read(); m.pass(settleBack) }, settleBack - hour, settleBack - hour},
		{"another jump starts anew", func(m *machine, read func() reading) {
			m.jump(hour)
			read()
			m.pass(settleForward - 1)
			m.jump(hour)
			read()
			m.pass(settleForward - 1)
		}, 2 * (settleForward - 1), 2*hour + 2*(settleForward-1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := &machine{wall: noon}
			clk := &clock{look: m.look}
			clk.read()
			c.do(m, clk.read)
			got := clk.read()
			if early, late := got.early.Sub(noon), got.late.Sub(noon); early != c.early || late != c.late {
				t.Errorf("between %s and %s, want %s and %s", early, late, c.early, c.late)
			}
		})
	}
}

// What a clock that has gone back says is older than it seems.
func TestAgeOutlivesAJumpBack(t *testing.T) {
	t.Parallel()
	m := &machine{wall: noon}
	clk := &clock{look: m.look}
	first := clk.read()
	m.jump(-time.Hour)
	clk.read()
	m.pass(settleBack)
	if age := clk.read().since(first); age != settleBack {
		t.Errorf("age %s, want %s", age, settleBack)
	}
	m.jump(2 * time.Hour) // as after a sleep
	if age := clk.read().since(first); age < time.Hour {
		t.Errorf("age %s, want an hour at least", age)
	}
}

// The real clock does not jump in this test, so both readings are one.
func TestClockOfThisMachine(t *testing.T) {
	t.Parallel()
	clk := newClock(time.Now)
	first := clk.read()
	second := clk.read()
	if !second.early.Equal(second.late) || second.steady < first.steady {
		t.Errorf("%+v then %+v", first, second)
	}
}

// No jump of the clock lets a token in, and all is well again afterwards. Where
// the verdict hangs on which of two times is right there is none.
func TestClockJumpsGrantNothing(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	at := func(changes map[string]any) access.Secret { return key.token(p.claims(changes)) }
	after := func(d time.Duration) int64 { return noon.Add(d).Unix() }
	expired := at(map[string]any{"iat": nil, "exp": after(-time.Minute)})
	bare := at(map[string]any{"iat": nil, "exp": after(2 * time.Hour)})
	fresh := at(map[string]any{"iat": after(0), "exp": after(2 * time.Hour)})
	future := at(map[string]any{"nbf": after(40 * time.Minute), "exp": after(2 * time.Hour)})
	for _, c := range []struct {
		name    string
		jump    time.Duration
		good    access.Secret // used all along
		jumped  [3]string     // verdicts on expired, good and future
		settled [3]string     // when the clock stays there
	}{
		{
			"back", -time.Hour, bare,
			[3]string{"none", "accepted", "rejected"}, [3]string{"accepted", "accepted", "rejected"},
		},
		{ // what the issuer has signed tells that the clock is wrong
			"back, with proof", -time.Hour, fresh,
			[3]string{"rejected", "accepted", "rejected"}, [3]string{"rejected", "accepted", "rejected"},
		},
		{
			"forward", time.Hour, fresh,
			[3]string{"rejected", "accepted", "none"}, [3]string{"rejected", "accepted", "accepted"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			config := p.config("dex")
			config.KeyAge = 3 * time.Hour
			v := newVerifier(t, Config{Issuers: []Issuer{config}})
			m := &machine{wall: noon}
			*v.clock = clock{look: m.look}
			check := func(when string, want [3]string) {
				t.Helper()
				for i, token := range []access.Secret{expired, c.good, future} {
					if got := verdict(v, token); got != want[i] {
						t.Errorf("%s: token %d is %s, want %s", when, i, got, want[i])
					}
				}
			}
			sane := [3]string{"rejected", "accepted", "rejected"}
			check("before", sane)
			m.jump(c.jump)
			check("after the jump", c.jumped)
			m.jump(-c.jump)
			check("after the return", sane)
			m.jump(c.jump)
			check("after the second jump", c.jumped)
			m.pass(settleBack)
			check("settled", c.settled)
		})
	}
}

// Even a clock that has gone back for good cannot revive what had expired before
// the issuer's newest token.
func TestNewestTokenBoundsTheClock(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	clock := newFakeClock()
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}, Clock: clock.Now})
	expired := key.token(p.claims(map[string]any{"exp": noon.Add(time.Minute).Unix()}))
	mustAccept(t, v, expired)
	clock.Advance(10 * time.Minute)
	mustAccept(t, v, key.token(p.claims(map[string]any{"iat": noon.Add(10 * time.Minute).Unix()})))

	clock.Advance(-time.Hour)
	v.clock.read()
	clock.Advance(settleBack)
	if r := v.clock.read(); !r.early.Equal(r.late) {
		t.Fatal("the clock has not settled")
	}
	if _, err := v.Verify(context.Background(), expired); !errors.Is(err, ErrTokenRejected) {
		t.Errorf("revived: %v", err)
	}
}

// A jump must neither stop the fetching of keys nor make old keys new.
func TestClockJumpsAndKeys(t *testing.T) {
	t.Parallel()
	key := newES256(t, "k1")
	p := newProvider(t, key)
	v := newVerifier(t, Config{Issuers: []Issuer{p.config("dex")}})
	m := &machine{wall: noon}
	*v.clock = clock{look: m.look}
	token := key.token(p.claims(map[string]any{"iat": noon.Add(-3 * time.Hour).Unix(), "exp": noon.Add(5 * time.Hour).Unix()}))
	mustAccept(t, v, token)
	p.publish(newES256(t, "k2"))
	m.jump(-time.Hour)
	m.pass(removedKeyLife)
	if got := verdict(v, token); got != "rejected" {
		t.Errorf("after a jump back a removed key is %s", got)
	}
}
