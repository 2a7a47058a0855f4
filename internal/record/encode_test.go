package record

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// byReflection is what a line held before events were encoded by hand.
func byReflection(ev access.Event) ([]byte, error) {
	return encodeAny(struct {
		access.Event
		Seq *struct{} `json:"seq,omitempty"` // hides the event's own
	}{Event: ev})
}

// A filler gives every member that it can reach a value that depends on its
// source, empty ones among them, so that a member that the encoder does not
// know shows.
type filler struct {
	rand *rand.Rand
	text string // appears in some of the texts
	full bool   // nothing is left empty
}

func (f *filler) fill(v reflect.Value) {
	if !f.full && f.rand.IntN(4) == 0 {
		return
	}
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		zone := time.FixedZone("", f.rand.IntN(86400)-43200)
		v.Set(reflect.ValueOf(time.Unix(f.rand.Int64N(4e9), f.rand.Int64N(1e9)).In(zone)))
		return
	case reflect.TypeFor[json.RawMessage]():
		v.Set(reflect.ValueOf(json.RawMessage(`{"a": [1, "<b>"]}`)))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+f.rand.IntN(3), 4))
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 1 + f.rand.IntN(12) {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(key)
			f.fill(value)
			v.SetMapIndex(key, value)
		}
	case reflect.String:
		texts := []string{"a", `"\` + "\b\f\n\r\t\x00\x1f\x7f", "<&>", "ü\u2028\u2029\U0001f600", "\xff\xc3", f.text, strings.Repeat("x", f.rand.IntN(50)) + f.text}
		v.SetString(texts[f.rand.IntN(len(texts))])
		if f.full && v.String() == "" {
			v.SetString("b")
		}
	case reflect.Bool:
		v.SetBool(f.full || f.rand.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(f.rand.Int64() - 1<<62)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(1 + uint64(f.rand.IntN(100)))
	case reflect.Interface:
		v.Set(reflect.ValueOf(map[string]any{"n": json.Number("1.50"), "s": f.text}))
	default:
		panic("nothing to fill " + v.Type().String() + " with")
	}
}

func encodesAlike(t *testing.T, ev access.Event) {
	t.Helper()
	want, wrong := byReflection(ev)
	got, err := appendPayload([]byte("before"), &ev)
	switch {
	case (err == nil) != (wrong == nil):
		t.Fatalf("error %v, want %v", err, wrong)
	case err != nil && string(got) != "before":
		t.Fatalf("%d bytes were left after an error", len(got))
	case err == nil && !bytes.Equal(got, append([]byte("before"), want...)):
		t.Fatalf("encoded\n%s\nwant\n%s", got[len("before"):], want)
	}
}

// What is encoded by hand is what encoding/json would have made of it, for
// every member of every event.
func TestEncodesAsReflectionWould(t *testing.T) {
	t.Parallel()
	for i := range 500 {
		f := filler{rand: rand.New(rand.NewPCG(1, uint64(i))), text: "it's", full: i%10 == 0}
		var ev access.Event
		f.fill(reflect.ValueOf(&ev).Elem())
		encodesAlike(t, ev)
	}
	var nothing access.Event
	encodesAlike(t, nothing)
	for _, ev := range []access.Event{
		{Decided: &access.Decided{Request: access.Request{Action: access.Action{HTTP: &access.HTTPCall{Body: func() {}}}}}},
		{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), Ended: &access.Ended{Tag: "SELECT 1"}},
		{Rows: &access.Rows{Rows: [][]*string{nil, {}}}},
		{Decided: &access.Decided{Decision: access.Decision{Obligations: access.Obligations{Masks: []access.Mask{}}}}},
		{Decided: &access.Decided{Decision: access.Decision{Effect: 7, Obligations: access.Obligations{WriteMasked: []string{}}}}},
	} {
		encodesAlike(t, ev)
	}
}

func FuzzEncodesAsReflectionWould(f *testing.F) {
	f.Add(uint64(1), "text", true)
	f.Add(uint64(2), "\u2028\xff\x00\"", false)
	f.Fuzz(func(t *testing.T, seed uint64, text string, full bool) {
		fill := filler{rand: rand.New(rand.NewPCG(2, seed)), text: text, full: full}
		var ev access.Event
		fill.fill(reflect.ValueOf(&ev).Elem())
		encodesAlike(t, ev)
	})
}

func BenchmarkEncode(b *testing.B) {
	ev := ask("ses_0123456789", "req_0123456789")
	buf := []byte{}
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = appendPayload(buf[:0], &ev); err != nil {
			b.Fatal(err)
		}
	}
}
