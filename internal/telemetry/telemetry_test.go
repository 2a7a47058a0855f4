package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chaperone.dev/chaperone/internal/access"
)

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestLoggerRedacts(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-value"
	for name, attr := range map[string]slog.Attr{
		"secret type":       slog.Any("x", access.NewSecret(secret)),
		"secret in struct":  slog.Any("x", struct{ S access.Secret }{access.NewSecret(secret)}),
		"token":             slog.String("token", secret),
		"access_token":      slog.String("access_token", secret),
		"Password":          slog.String("Password", secret),
		"Authorization":     slog.String("Authorization", secret),
		"bytes":             slog.Any("password", []byte(secret)),
		"group":             slog.Group("request", slog.String("authorization", secret)),
		"in a secret group": slog.Group("token", slog.Group("inner", slog.String("value", secret))),
		"header":            slog.Any("headers", http.Header{"Authorization": {secret}}),
		"other header":      slog.Any("headers", map[string][]string{"proxy-authorization": {secret}}),
		"map":               slog.Any("m", map[string]string{"X-Api-Key": secret}),
		"loose map":         slog.Any("m", map[string]any{"client_secret": secret}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b bytes.Buffer
			log := Logger(&b, slog.LevelInfo)
			log.Info("said", attr)
			log.With(attr).WithGroup("g").Info("said", attr)
			if strings.Contains(b.String(), secret) || strings.Contains(b.String(), "czNjcj") {
				t.Errorf("written: %s", b.String())
			}
			if strings.Count(b.String(), redacted) < 3 {
				t.Errorf("not even marked: %s", b.String())
			}
		})
	}
}

func TestLoggerWritesTheRest(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log := Logger(&b, slog.LevelInfo)
	log.Debug("not this")
	log.Info("said", "token_id", "tok_1", "tokens", 3, "headers", http.Header{"Accept": {"*/*"}, "Cookie": {"x"}})
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, b.String())
	}
	delete(got, "time")
	want := map[string]any{
		"level": "INFO", "msg": "said", "token_id": "tok_1", "tokens": 3.0,
		"headers": map[string]any{"Accept": []any{"*/*"}, "Cookie": []any{redacted}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A collector is an OTLP collector that can be told to refuse.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	addr string
	got  chan *tracepb.ResourceSpans

	mu      sync.Mutex
	refuse  bool
	refused chan struct{}
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{addr: l.Addr().String(), got: make(chan *tracepb.ResourceSpans, 100), refused: make(chan struct{}, 100)}
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, c)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *collector) Export(_ context.Context, in *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse {
		c.refused <- struct{}{}
		return nil, status.Error(codes.PermissionDenied, "no")
	}
	for _, spans := range in.GetResourceSpans() {
		c.got <- spans
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func (c *collector) refusing(refuse bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = refuse
}

func TestTracingExports(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newCollector(t)
	provider, shutdown, err := Tracing(ctx, Config{Endpoint: c.addr, Insecure: true, Service: "chaperone"})
	if err != nil {
		t.Fatal(err)
	}
	unsampled := strings.TrimSuffix(traceparent, "01") + "00"
	_, span := provider.Tracer("test").Start(ParentOf(ctx, unsampled), "decide", trace.WithLinks(Links(traceparent)...))
	span.SetAttributes(attribute.String("chaperone.rule", "orders/read"), attribute.String("long", strings.Repeat("x", 5000)))
	span.End()
	if err := shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	spans := <-c.got
	if name := spans.GetResource().GetAttributes()[0].GetValue().GetStringValue(); name != "chaperone" {
		t.Errorf("service %q", name)
	}
	got := spans.GetScopeSpans()[0].GetSpans()[0]
	if got.GetName() != "decide" || !bytes.Equal(got.GetParentSpanId(), []byte("\xb7\xad\x6b\x71\x69\x20\x33\x31")) {
		t.Errorf("span %v", got)
	}
	if len(got.GetLinks()) != 1 {
		t.Errorf("links %v", got.GetLinks())
	}
	if long := got.GetAttributes()[1].GetValue().GetStringValue(); len(long) != maxAttributeText {
		t.Errorf("an attribute of %d characters", len(long))
	}
}

// A collector that refuses or is away is told of once, and holds nobody up.
func TestTracingSurvivesItsCollector(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newCollector(t)
	c.refusing(true)
	var lines lockedBuffer
	provider, shutdown, err := Tracing(ctx, Config{
		Endpoint: c.addr, Insecure: true, Service: "chaperone", Log: slog.New(slog.NewTextHandler(&lines, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	tracer := provider.Tracer("test")
	began := time.Now()
	for range 3 * maxQueuedSpans {
		_, span := tracer.Start(ctx, "lost")
		span.End()
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("spans waited for the collector: %s", took)
	}
	<-c.refused
	<-c.refused
	c.refusing(false)
	_, span := tracer.Start(ctx, "kept")
	span.End()
	<-c.got
	if err := shutdown(ctx); err != nil {
		t.Error(err)
	}
	if n := strings.Count(lines.String(), "cannot be sent"); n != 1 {
		t.Errorf("said %d times:\n%s", n, lines.String())
	}
	if n := strings.Count(lines.String(), "can be sent again"); n != 1 {
		t.Errorf("said %d times:\n%s", n, lines.String())
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestTracingWithoutCollector(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	provider, shutdown, err := Tracing(ctx, Config{})
	if err != nil {
		t.Fatal(err)
	}
	_, span := provider.Tracer("test").Start(ctx, "nothing")
	if span.IsRecording() {
		t.Error("records all the same")
	}
	if err := shutdown(ctx); err != nil {
		t.Error(err)
	}
	if _, _, err := Tracing(ctx, Config{Endpoint: "no port"}); err == nil {
		t.Error("an endpoint without a port is taken")
	}
}

func TestPropagation(t *testing.T) {
	t.Parallel()
	ctx := Parent(context.Background(), map[string]string{"traceparent": traceparent, "tracestate": "a=b"})
	want := map[string]string{"traceparent": traceparent, "tracestate": "a=b"}
	if got := Inject(ctx); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	if got := Traceparent(ParentOf(context.Background(), traceparent)); got != traceparent {
		t.Errorf("got %q", got)
	}
	for _, bad := range []string{"", "x", traceparent + "-00", strings.Replace(traceparent, "0af7651916cd43dd8448eb211c80319c", strings.Repeat("0", 32), 1)} {
		if got := Traceparent(ParentOf(context.Background(), bad)); got != "" {
			t.Errorf("%q gives %q", bad, got)
		}
		if Links(bad) != nil {
			t.Errorf("%q gives a link", bad)
		}
	}
	if got := Inject(context.Background()); len(got) != 0 {
		t.Errorf("without a span: %v", got)
	}
}

func TestDecisionAttributes(t *testing.T) {
	t.Parallel()
	req := access.Request{
		ID: "req_1", Session: "ses_1", Resource: access.Resource{Name: "orders", Kind: access.Postgres},
		Principal: access.Principal{Issuer: "dex", Subject: "s", User: "alice@example.com", Subagent: "agent", Workflow: "nightly"},
		Action:    access.Action{SQL: &access.SQL{Text: "select 'hidden'"}},
	}
	d := access.Decision{Effect: access.Allow, Rules: []access.RuleRef{{Policy: "orders", Rule: "read"}}, Revision: "r7"}
	got := map[string]string{}
	for _, kv := range DecisionAttributes(req, d) {
		got[string(kv.Key)] = kv.Value.AsString()
	}
	want := map[string]string{
		"chaperone.rule": "orders/read", "chaperone.effect": "allow", "chaperone.principal": "dex/s",
		"chaperone.user": "alice@example.com", "chaperone.subagent": "agent", "chaperone.workflow": "nightly",
		"chaperone.resource": "orders", "chaperone.session": "ses_1", "chaperone.request": "req_1", "chaperone.revision": "r7",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := DecisionAttributes(access.Request{}, access.Decision{}); len(got) != 2 || got[1].Value.AsString() != "deny" {
		t.Errorf("of nothing: %v", got)
	}
}

func TestMetricsAreServed(t *testing.T) {
	t.Parallel()
	registry, handler := Metrics()
	ours := prometheus.NewCounter(prometheus.CounterOpts{Name: "chaperone_test_total", Help: "Of this test."})
	registry.MustRegister(ours)
	ours.Inc()
	server := httptest.NewServer(handler)
	defer server.Close()
	res, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"chaperone_test_total 1", "go_goroutines", "process_open_fds"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %s", want)
		}
	}
}
