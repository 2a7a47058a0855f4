package store

import (
	"testing"
)

// Somebody who can write to the store changes, moves, invents a record. Each
// attack first shows that the unchanged record passes the same way (the twin).
func testForgedRecords(t *testing.T, b *backend) {
	ctx := t.Context()
	_, err := b.one.Put(ctx, "victim", []byte("pending"), 0)
	ok(t, err)
	_, err = b.one.Put(ctx, "other", []byte("granted"), 0)
	ok(t, err)
	genuine := b.rawGet(t, "victim")
	flip := func(s string, at int) string {
		raw := []byte(s)
		raw[at] ^= 1
		return string(raw)
	}
	last := len(genuine) - 1
	attacks := map[string][]string{
		"another record's": b.rawGet(t, "other"),
		"changed":          append(append([]string{}, genuine[:last]...), flip(genuine[last], len(genuine[last])-1)),
		"cut":              append(append([]string{}, genuine[:last]...), genuine[last][:len(genuine[last])/2]),
	}
	if last == 0 { // one blob: version, MAC, value
		attacks["version"] = []string{flip(genuine[0], 7)}
		attacks["empty"] = []string{""}
		attacks["invented"] = []string{string((&Embedded{seal: sealer{key: NewKey(), name: "embedded"}}).encode("victim", 99, []byte("granted")))}
	} else {
		attacks["value"] = []string{genuine[0], "granted", genuine[2]}
		attacks["version"] = []string{"99", genuine[1], genuine[2]}
		attacks["leading zero"] = []string{"0" + genuine[0], genuine[1], genuine[2]}
		attacks["invented"] = []string{genuine[0], "granted", string(sealer{key: NewKey(), name: "redis"}.record("victim", 1, []byte("granted")))}
	}
	for name, raw := range attacks {
		t.Run(name, func(t *testing.T) {
			b.rawPut(t, "victim", genuine)
			if r, err := b.one.Get(ctx, "victim"); err != nil || string(r.Value) != "pending" {
				t.Fatalf("twin: %+v, %v", r, err)
			}
			b.rawPut(t, "victim", raw)
			_, err := b.one.Get(ctx, "victim")
			wants(t, err, ErrForged)
			_, err = b.one.List(ctx, "vic", "", 10)
			wants(t, err, ErrForged)
		})
	}
	b.rawPut(t, "fresh", genuine) // under a key that never was
	_, err = b.one.Get(ctx, "fresh")
	wants(t, err, ErrForged)
	_, err = b.one.List(ctx, "fresh", "", 10)
	wants(t, err, ErrForged)
}

// An older authentic version of the same key, put back, is refused by whoever
// has seen the newer one.
func testOlderRecord(t *testing.T, b *backend) {
	ctx := t.Context()
	v, err := b.one.Put(ctx, "k", []byte("granted"), 0)
	ok(t, err)
	granted := b.rawGet(t, "k")
	_, err = b.one.Put(ctx, "k", []byte("consumed"), v)
	ok(t, err)
	b.rawPut(t, "k", granted)
	_, err = b.one.Get(ctx, "k")
	wants(t, err, ErrForged)
	_, err = b.one.Put(ctx, "k", []byte("consumed again"), v)
	wants(t, err, ErrConflict)
}

// A deleted and re-made record has a newer version than it ever had.
func testVersions(t *testing.T, b *backend) {
	ctx := t.Context()
	v1, err := b.one.Put(ctx, "k", []byte("a"), 0)
	ok(t, err)
	old := b.rawGet(t, "k")
	ok(t, b.one.Delete(ctx, "k", v1))
	v2, err := b.two.Put(ctx, "k", []byte("b"), 0)
	ok(t, err)
	if v2 <= v1 {
		t.Fatalf("version %d after %d", v2, v1)
	}
	if r, err := b.one.Get(ctx, "k"); err != nil || string(r.Value) != "b" {
		t.Fatalf("%+v, %v", r, err)
	}
	b.rawPut(t, "k", old)
	_, err = b.one.Get(ctx, "k")
	wants(t, err, ErrForged)
}

// Changed, removed, moved and invented feed entries. What came before them
// still reads.
func testForgedFeed(t *testing.T, b *backend) {
	ctx := t.Context()
	attacks := map[string]struct {
		change func(at2 []string) []string
		want   error
	}{
		"payload": {func(f []string) []string { return []string{f[0], f[1], "kill nobody"} }, ErrForged},
		"mac":     {func(f []string) []string { return []string{f[0], string(make([]byte, 32)), f[2]} }, ErrForged},
		"removed": {func([]string) []string { return nil }, ErrTrimmed},
	}
	for name, attack := range attacks {
		t.Run(name, func(t *testing.T) {
			topic := "topic-" + name
			var at []Position
			for _, payload := range []string{"one", "two", "three"} {
				p, err := b.one.Publish(ctx, topic, []byte(payload))
				ok(t, err)
				at = append(at, p)
			}
			entries, err := b.two.Read(ctx, topic, 0, 10)
			if err != nil || len(entries) != 3 {
				t.Fatalf("twin: %v, %v", entries, err)
			}
			b.rawEntry(t, topic, at[1], attack.change)
			entries, err = b.two.Read(ctx, topic, 0, 10)
			if err != nil || len(entries) != 1 || string(entries[0].Payload) != "one" {
				t.Fatalf("before the attack: %v, %v", entries, err)
			}
			_, err = b.two.Read(ctx, topic, at[0], 10)
			wants(t, err, attack.want)
			if rest, err := b.two.Read(ctx, topic, at[1], 10); err != nil || len(rest) != 1 {
				t.Fatalf("after it: %v, %v", rest, err)
			}
		})
	}
	_, err := b.one.Publish(ctx, "source", []byte("x"))
	ok(t, err)
	b.rawEntry(t, "source", func() Position { p, _ := b.one.Tail(ctx, "source"); return p }(), func(f []string) []string { return f })
	if entries, err := b.one.Read(ctx, "source", 0, 10); err != nil || len(entries) != 1 {
		t.Fatalf("an entry rewritten unchanged: %v, %v", entries, err)
	}
}
