package tapsink_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/tapsink"
)

// cluster begins the answer of an API server, which the authorizer described.
func cluster(t *testing.T, m *memory, obligations access.Obligations, answer string) *stream {
	t.Helper()
	return answering(t, tapsink.Config{Recorder: m}, obligations, answer)
}

func answering(t *testing.T, cfg tapsink.Config, obligations access.Obligations, answer string) *stream {
	t.Helper()
	path, _ := serve(t, cfg)
	s := open(t, path, obligations)
	fields := s.metadata.GetFilterMetadata()[tapsink.DefaultNamespace].AsMap()[tapsink.MetadataKey].(map[string]any)
	fields["kubernetes"] = answer
	s.metadata = metadata(t, fields)
	return s
}

// TestKubernetesWatch: each event leaves as soon as it is whole, masked though
// policy has no mask.
func TestKubernetesWatch(t *testing.T) {
	t.Parallel()
	m := newMemory()
	s := cluster(t, m, access.Obligations{}, `{"objects":true,"secrets":true,"lines":true}`)
	s.json()
	for _, name := range []string{"a", "b", "c"} {
		event := `{"type":"ADDED","object":{"metadata":{"name":"` + name + `"},"data":{"p":"aHVudGVyMg=="}}}` + "\n"
		if got, want := s.body(false, event), strings.Replace(event, "aHVudGVyMg==", "Kioq", 1); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	s.body(true, "")
	s.end()
	if events := m.wait(t, hasEnded); strings.Contains(show(events), "aHVudGVyMg") || endOf(events).Masked != 3 {
		t.Errorf("recorded %s", show(events))
	}
}

// TestKubernetesQuiet: a watch in which nothing happens lasts as long as its
// session, and ends with it. The control is another answer, which is cut.
func TestKubernetesQuiet(t *testing.T) {
	t.Parallel()
	m := newMemory()
	session, end := context.WithCancelCause(t.Context())
	cfg := tapsink.Config{Recorder: m, Idle: 100 * time.Millisecond, Watch: func(string) (context.Context, func()) { return session, func() {} }}
	watch, list := answering(t, cfg, access.Obligations{}, `{"objects":true,"lines":true,"quiet":true}`), answering(t, cfg, access.Obligations{}, `{"objects":true}`)
	watch.json()
	list.json()
	if out, err := list.Recv(); err == nil {
		t.Errorf("a list without a byte goes on: %v", out)
	}
	for range 3 { // as long again
		other := answering(t, cfg, access.Obligations{}, `{"objects":true}`)
		other.json()
		if out, err := other.Recv(); err == nil {
			t.Errorf("a list without a byte goes on: %v", out)
		}
	}
	const event = `{"type":"ADDED","object":{}}` + "\n"
	if got := watch.body(false, event); got != event {
		t.Errorf("after a while the watch says %q", got)
	}
	end(errors.New("killed"))
	if out, err := watch.Recv(); err == nil {
		t.Errorf("after its session the watch says %v", out)
	}
}

// TestKubernetesWithholds: what cannot be masked is a Status object instead. A
// stream is withheld whatever there is to mask.
func TestKubernetesWithholds(t *testing.T) {
	t.Parallel()
	const secrets, others = `{"objects":true,"secrets":true}`, `{"objects":true}`
	for name, c := range map[string]struct {
		answer  string
		headers []string
		passes  bool
	}{
		"JSON":                 {secrets, []string{":status", "200", "content-type", "application/json"}, true},
		"protobuf":             {secrets, []string{":status", "200", "content-type", "application/vnd.kubernetes.protobuf"}, false},
		"YAML":                 {secrets, []string{":status", "200", "content-type", "application/yaml"}, false},
		"a stream":             {others, []string{":status", "101", "upgrade", "websocket"}, false},
		"protobuf of no value": {others, []string{":status", "200", "content-type", "application/vnd.kubernetes.protobuf"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := cluster(t, newMemory(), access.Obligations{}, c.answer)
			instead := s.must(headersMessage(false, c.headers...)).GetImmediateResponse()
			if (instead == nil) != c.passes || instead != nil && !strings.Contains(string(instead.GetBody()), `"kind":"Status"`) {
				t.Errorf("answered %v", instead)
			}
		})
	}
	s := cluster(t, newMemory(), access.Obligations{}, `{"surprise":true}`)
	if out, err := s.exchange(headersMessage(false, ":status", "200", "content-type", "application/json")); err == nil {
		t.Errorf("what is not understood passes: %v", out)
	}
}
