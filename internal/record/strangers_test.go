package record

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/clocktest"
)

// TestStrangersAreBounded: a flood of refusals without an identity is told in
// numbers; those of known callers, and whatever else, are recorded one by one.
func TestStrangersAreBounded(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "recording")
	clock := clocktest.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	r, err := Open(Config{Dir: dir, Clock: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	refusal := func(reason access.Reason, session string) access.Event {
		return access.Event{Session: session, Denied: &access.Denied{Denial: access.Denial{Reason: reason}}}
	}
	flood := func(n int, e access.Event) {
		t.Helper()
		for range n {
			if err := r.Append(t.Context(), access.Written, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	began := clock.Now()
	flood(strangersBurst+700, refusal(access.Unauthenticated, ""))
	flood(3, refusal(access.Unauthenticated, "ses"))
	flood(3, refusal(access.UnknownResource, ""))
	clock.Advance(time.Second)
	flood(strangersPerSecond+5, refusal(access.Unauthenticated, ""))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var one int
	var told []StrangersOmitted
	for _, e := range read(t, dir) {
		if e.Denied != nil {
			one++
			continue
		}
		var o StrangersOmitted
		if e.Admin == nil || e.Admin.Act != "recording.strangers" || json.Unmarshal(e.Admin.Input, &o) != nil {
			t.Fatalf("%+v", e)
		}
		told = append(told, o)
	}
	if one != strangersBurst+3+3+strangersPerSecond {
		t.Errorf("%d refusals are recorded one by one", one)
	}
	if len(told) != 2 || told[0] != (StrangersOmitted{700, began}) || told[1] != (StrangersOmitted{5, began.Add(time.Second)}) {
		t.Errorf("told of %+v", told)
	}
	mustVerify(t, dir)
}

// TestStrangersAreRefusedWithoutADisk: what is only counted fails like the rest.
func TestStrangersAreRefusedWithoutADisk(t *testing.T) {
	t.Parallel()
	r, err := Open(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for range strangersBurst {
		r.strangers.admit(time.Now())
	}
	stranger := access.Event{Denied: &access.Denied{Denial: access.Denial{Reason: access.Unauthenticated}}}
	if err := r.Append(t.Context(), access.Synced, stranger); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 * strangersPerSecond {
		if r.Append(t.Context(), access.Synced, stranger) == nil {
			t.Fatal("a closed recorder takes it")
		}
	}
}
