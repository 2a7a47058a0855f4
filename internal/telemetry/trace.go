package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"chaperone.dev/chaperone/internal/access"
)

const (
	maxQueuedSpans   = 2048 // when full, spans are dropped: work never waits for them
	maxBatchedSpans  = 512
	batchEvery       = time.Second
	exportTimeout    = 10 * time.Second
	maxAttributeText = 1024 // characters of one value
)

// Config says where traces go.
type Config struct {
	Endpoint string // host:port of an OTLP collector (gRPC); empty for no traces
	Insecure bool   // no TLS
	Service  string // service.name of the spans
	Log      *slog.Logger
}

// Tracing returns a provider whose spans are sent to the collector in batches,
// and a function that sends the rest and ends it, at the latest with its ctx.
// Every span is sampled, whatever a caller's traceparent asks for: decisions
// are to be seen. A collector that is away costs spans and one line in the log,
// nothing else. Without an endpoint the provider does nothing.
func Tracing(ctx context.Context, c Config) (trace.TracerProvider, func(context.Context) error, error) {
	if c.Endpoint == "" {
		return noop.NewTracerProvider(), func(context.Context) error { return nil }, nil
	}
	if _, _, err := net.SplitHostPort(c.Endpoint); err != nil {
		return nil, nil, fmt.Errorf("trace collector: %w", err)
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(c.Endpoint), otlptracegrpc.WithTimeout(exportTimeout)}
	if c.Insecure {
		options = append(options, otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("trace collector: %w", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxAttributeText
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", c.Service))),
		sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithBatcher(&quietExporter{SpanExporter: exporter, log: c.Log},
			sdktrace.WithMaxQueueSize(maxQueuedSpans),
			sdktrace.WithMaxExportBatchSize(maxBatchedSpans),
			sdktrace.WithBatchTimeout(batchEvery),
			sdktrace.WithExportTimeout(exportTimeout)),
	)
	return provider, provider.Shutdown, nil
}

// A quietExporter tells the log when the collector goes away or comes back, and
// keeps the error from OpenTelemetry's global handler.
type quietExporter struct {
	sdktrace.SpanExporter
	log *slog.Logger

	mu   sync.Mutex
	away bool
}

func (e *quietExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err != nil && !e.away:
		e.log.Warn("traces cannot be sent; spans are lost", "error", err)
	case err == nil && e.away:
		e.log.Info("traces can be sent again")
	}
	e.away = err != nil
	return nil
}

// Parent returns ctx with the remote span that headers name (W3C Trace Context),
// or ctx itself when they name none. Names of headers are lower case.
func Parent(ctx context.Context, headers map[string]string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier(headers))
}

// ParentOf is Parent for a traceparent alone.
func ParentOf(ctx context.Context, traceparent string) context.Context {
	return Parent(ctx, map[string]string{"traceparent": traceparent})
}

// Inject returns the headers that name the span of ctx; none without a span.
func Inject(ctx context.Context) map[string]string {
	headers := map[string]string{}
	propagation.TraceContext{}.Inject(ctx, propagation.MapCarrier(headers))
	return headers
}

// Traceparent names the span of ctx, for a record; "" without a span.
func Traceparent(ctx context.Context) string { return Inject(ctx)["traceparent"] }

// Links returns a link to the span that traceparent names, or none: for work
// that follows from a trace without being part of it, as an approval does.
func Links(traceparent string) []trace.Link {
	span := trace.SpanContextFromContext(ParentOf(context.Background(), traceparent))
	if !span.IsValid() {
		return nil
	}
	return []trace.Link{{SpanContext: span}}
}

// StartSession begins the trace of a session that came by TCP, of which Envoy
// makes no span, and notes it in info. The protocol adds attributes of its own.
func StartSession(ctx context.Context, tracer trace.Tracer, name string, info *access.Session, own ...attribute.KeyValue) (context.Context, trace.Span) {
	ctx, span := tracer.Start(ctx, name, trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(own...),
		trace.WithAttributes(
			attribute.String("chaperone.session", info.ID),
			attribute.String("chaperone.subject", info.Principal.Subject),
			attribute.String("chaperone.user", info.Principal.User),
			attribute.String("chaperone.subagent", info.Principal.Subagent),
			attribute.String("chaperone.workflow", info.Principal.Workflow),
			attribute.String("client.address", info.Client),
		))
	if sc := span.SpanContext(); sc.HasTraceID() {
		info.Trace = sc.TraceID().String()
	}
	return ctx, span
}
