package tapsink_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/tapsink"
)

// memory is a recorder that can be told to fail.
type memory struct {
	mu      sync.Mutex
	events  []access.Event
	refuse  func(n int, ev access.Event) error // n events were stored before; nil never refuses
	changed chan struct{}                      // closed and replaced at each event
	durable map[string]access.Durability       // by type of event
}

func newMemory() *memory {
	return &memory{changed: make(chan struct{}), durable: map[string]access.Durability{}}
}

func (m *memory) Append(_ context.Context, d access.Durability, evs ...access.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ev := range evs {
		if m.refuse != nil {
			if err := m.refuse(len(m.events), ev); err != nil {
				return err
			}
		}
	}
	for _, ev := range evs {
		m.durable[ev.Type()] = d
	}
	m.events = append(m.events, evs...)
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}

// wait returns the events once done is content with them.
func (m *memory) wait(t *testing.T, done func([]access.Event) bool) []access.Event {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		events, changed := append([]access.Event(nil), m.events...), m.changed
		m.mu.Unlock()
		if done(events) {
			return events
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("events: %s", show(events))
		}
	}
}

func show(events []access.Event) string {
	b, err := json.Marshal(events)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func hasEnded(events []access.Event) bool { return endOf(events) != nil }

func endOf(events []access.Event) *access.Ended {
	for _, ev := range events {
		if ev.Ended != nil {
			return ev.Ended
		}
	}
	return nil
}

// text is the body as it was recorded.
func text(events []access.Event) string {
	var b strings.Builder
	for _, ev := range events {
		if ev.Body != nil {
			b.WriteString(ev.Body.Text)
			b.Write(ev.Body.Bytes)
		}
	}
	return b.String()
}

// socket returns a path short enough for a unix socket.
func socket(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if len(path) > 100 {
		t.Fatalf("socket path %s is too long", path)
	}
	return path
}

// serve runs a Server on a unix socket until the test ends.
func serve(t testing.TB, cfg tapsink.Config) (path string, stop func()) {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := tapsink.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return serveAny(t, s, s.Close)
}

func serveAny(t testing.TB, s extprocv3.ExternalProcessorServer, wait func()) (path string, stop func()) {
	t.Helper()
	path = socket(t, "p")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(g, s)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	stop = sync.OnceFunc(func() {
		g.Stop()
		wait()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return path, stop
}

// A stream is Envoy's side of one response.
type stream struct {
	t *testing.T
	extprocv3.ExternalProcessor_ProcessClient
	cancel   context.CancelFunc
	metadata *corev3.Metadata
	sent     bool
}

func dial(t testing.TB, path string) extprocv3.ExternalProcessorClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return extprocv3.NewExternalProcessorClient(conn)
}

// open begins a response that was decided with the given masks.
func open(t *testing.T, path string, obligations access.Obligations) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	c, err := dial(t, path).Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &stream{t: t, ExternalProcessor_ProcessClient: c, cancel: cancel, metadata: decided(t, obligations)}
}

func decided(t testing.TB, obligations access.Obligations) *corev3.Metadata {
	t.Helper()
	b, err := json.Marshal(obligations)
	if err != nil {
		t.Fatal(err)
	}
	return metadata(t, map[string]any{"request": "req_1", "session": "ses_1", "resource": "billing", "obligations": string(b)})
}

func metadata(t testing.TB, fields map[string]any) *corev3.Metadata {
	t.Helper()
	s, err := structpb.NewStruct(map[string]any{tapsink.MetadataKey: fields})
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{tapsink.DefaultNamespace: s}}
}

// exchange sends a message and returns the answer.
func (s *stream) exchange(in *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	s.t.Helper()
	in.MetadataContext = s.metadata
	if !s.sent {
		s.sent = true
		in.ProtocolConfig = &extprocv3.ProtocolConfiguration{ResponseBodyMode: filterv3.ProcessingMode_STREAMED}
	}
	if err := s.Send(in); err != nil {
		_, err = s.Recv()
		return nil, err
	}
	return s.Recv()
}

func headersMessage(end bool, pairs ...string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
		ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap(pairs...), EndOfStream: end}}}
}

func bodyMessage(end bool, body string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
		ResponseBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: end}}}
}

func trailersMessage(pairs ...string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{
		ResponseTrailers: &extprocv3.HttpTrailers{Trailers: headerMap(pairs...)}}}
}

func headerMap(pairs ...string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for i := 0; i < len(pairs); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return m
}

// must is exchange that has to be answered.
func (s *stream) must(in *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	s.t.Helper()
	out, err := s.exchange(in)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// json begins a 200 with a JSON body.
func (s *stream) json() *extprocv3.ProcessingResponse {
	s.t.Helper()
	return s.must(headersMessage(false, ":status", "200", "content-type", "application/json"))
}

// body sends a piece of the body and returns what the client gets of it.
func (s *stream) body(end bool, body string) string {
	s.t.Helper()
	out := s.must(bodyMessage(end, body)).GetResponseBody().GetResponse()
	if out.GetBodyMutation() == nil {
		return body
	}
	return string(out.GetBodyMutation().GetBody())
}

// end demands that the stream ends well.
func (s *stream) end() {
	s.t.Helper()
	if err := s.CloseSend(); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.Recv(); err == nil || err.Error() != "EOF" {
		s.t.Errorf("stream ended with %v, want OK", err)
	}
}

func redact(pointers ...string) access.Obligations {
	var o access.Obligations
	for _, p := range pointers {
		m := access.Mask{With: access.Redact}
		if strings.HasPrefix(p, "/") {
			m.JSON = p
		} else {
			m.Detect = []string{p}
		}
		o.Masks = append(o.Masks, m)
	}
	return o
}
