package ticket

import (
	"testing"
	"time"
)

// A ticket serves once, in time, and no other.
func TestDesk(t *testing.T) {
	t.Parallel()
	now := time.Now()
	d := NewDesk[string](func() time.Time { return now })
	admit := func() string {
		id, err := d.Admit("permit")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	used := admit()
	if p, ok := d.Redeem(used); !ok || p != "permit" {
		t.Errorf("a fresh ticket: %q %v", p, ok)
	}
	late := admit()
	for name, id := range map[string]string{"used": used, "made up": "AAAA", "empty": "", "what Envoy writes for nothing": "-"} {
		if _, ok := d.Redeem(id); ok {
			t.Errorf("a ticket is taken that is %s", name)
		}
	}
	now = now.Add(life)
	if _, ok := d.Redeem(late); ok {
		t.Error("an old ticket is taken")
	}
}

// What nobody redeems makes room once it is old.
func TestDeskIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	d := NewDesk[int](func() time.Time { return now })
	for range maxOpen {
		if _, err := d.Admit(0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Admit(0); err == nil {
		t.Error("there is no bound")
	}
	now = now.Add(life)
	if _, err := d.Admit(0); err != nil {
		t.Errorf("old tickets make no room: %v", err)
	}
}
