package datapath_test

import (
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/xds"
)

// A collector takes the spans that Envoy sends.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*tracev1.Span
}

func (c *collector) Export(_ context.Context, in *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range in.GetResourceSpans() {
		for _, s := range r.GetScopeSpans() {
			c.spans = append(c.spans, s.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// of returns the spans of one trace by span id.
func (c *collector) of(trace string) map[string]*tracev1.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]*tracev1.Span{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.GetTraceId()) == trace {
			out[hex.EncodeToString(s.GetSpanId())] = s
		}
	}
	return out
}

// TestTrace: Envoy's span, the decision and the hold are in the trace that the
// client began, and it cannot ask not to be traced.
func TestTrace(t *testing.T) {
	t.Parallel()
	c := &collector{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	t.Cleanup(func() { provider.Shutdown(context.Background()) })

	target := newTarget(t, nil)
	w := newWorld()
	w.decide = approveAll
	g := newGateway(t, parts{auth: w.server(t, time.Minute), edit: func(c *xds.Config) { c.OTLP = l.Addr().String() },
		options: []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{})))},
	}, xds.HTTPResource{Name: "t", Address: target.URL})

	const trace, root = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	w.answered <- access.Granted
	got := g.must("GET", "/http/t/x", "", "Authorization", "Bearer good", "Traceparent", "00-"+trace+"-"+root+"-00")
	if got.status != http.StatusOK {
		t.Fatalf("got %+v", got)
	}
	// The span of Check, and the hold below it.
	var check, hold tracetest.SpanStub
	eventually(t, "chaperone's spans", func() bool {
		for _, s := range exporter.GetSpans() {
			switch s.Name {
			case "envoy.service.auth.v3.Authorization/Check":
				check = s
			case "hold":
				hold = s
			}
		}
		return check.Name != "" && hold.Name != ""
	})
	if check.SpanContext.TraceID().String() != trace || hold.Parent.SpanID() != check.SpanContext.SpanID() {
		t.Errorf("check is in %s, hold below %s", check.SpanContext.TraceID(), hold.Parent.SpanID())
	}
	attributes := map[string]string{}
	for _, a := range check.Attributes {
		attributes[string(a.Key)] = a.Value.String()
	}
	for name, want := range map[string]string{"chaperone.rule": "test/ask", "chaperone.resource": "t", "chaperone.session": "ses_test",
		"chaperone.subagent": "agent", "chaperone.user": "ann@example.com", "chaperone.outcome": "allow", "chaperone.request": w.take()[0].Request} {
		if attributes[name] != want {
			t.Errorf("%s is %q", name, attributes[name])
		}
	}
	// Envoy's spans: the client's is above its server span, which is above
	// that of the Check that chaperone continued.
	eventually(t, "Envoy's spans", func() bool {
		spans := c.of(trace)
		mine := spans[check.Parent.SpanID().String()]
		if mine == nil {
			return false
		}
		above := spans[hex.EncodeToString(mine.GetParentSpanId())]
		return above != nil && above.GetKind() == tracev1.Span_SPAN_KIND_SERVER && hex.EncodeToString(above.GetParentSpanId()) == root
	})
}
