package ssh

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
)

// startSessionSpan begins the trace of a session; Envoy makes none for TCP.
func (s *Service) startSessionSpan(ctx context.Context, info *access.Session, user string) (context.Context, trace.Span) {
	ctx, span := s.deps.Tracer.Start(ctx, "ssh session", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(
			attribute.String("network.protocol.name", "ssh"),
			attribute.String("chaperone.resource", info.Resource.Name),
			attribute.String("chaperone.account", user),
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

// startActSpan begins the span of one act. It holds no text: that is in the
// recording.
func (s *session) startActSpan(ctx context.Context, id string, call *access.SSHCall) (context.Context, trace.Span) {
	return s.deps.Tracer.Start(ctx, "ssh "+call.Act, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("chaperone.session", s.info.ID),
		attribute.String("chaperone.request", id),
		attribute.String("chaperone.resource", s.resource.Access.Name),
		attribute.String("chaperone.subject", s.info.Principal.Subject),
	))
}

// describeSpan adds what was decided.
func describeSpan(span trace.Span, d access.Decision) {
	span.SetAttributes(
		attribute.String("chaperone.effect", d.Effect.String()),
		attribute.String("chaperone.rule", d.Rule()),
		attribute.String("chaperone.revision", d.Revision),
	)
}

// traceparent is the current span as W3C Trace Context writes it, or "".
func traceparent(ctx context.Context) string {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return ""
	}
	return "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + sc.TraceFlags().String()
}
