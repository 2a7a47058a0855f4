package postgres

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
)

// startSessionSpan begins the trace of a session; Envoy makes none for TCP.
func (c *connection) startSessionSpan(ctx context.Context, info *access.Session, start *startup) (context.Context, trace.Span) {
	ctx, span := c.deps.Tracer.Start(ctx, "postgres session", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(
			attribute.String("db.system.name", "postgresql"),
			attribute.String("db.namespace", info.Resource.Name),
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

// startStatementSpan begins the span of one execution. It holds no text and no
// values: those are in the recording.
func (s *session) startStatementSpan(ctx context.Context, id string) (context.Context, trace.Span) {
	return s.deps.Tracer.Start(ctx, "postgres statement", trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("db.system.name", "postgresql"),
		attribute.String("chaperone.session", s.info.ID),
		attribute.String("chaperone.request", id),
		attribute.String("chaperone.resource", s.resource.Access.Name),
		attribute.String("chaperone.subject", s.info.Principal.Subject),
	))
}

// describeSpan adds what was decided.
func describeSpan(span trace.Span, v *verdict) {
	if sql := v.request.Action.SQL; sql != nil {
		span.SetAttributes(attribute.String("db.operation.name", sql.Command))
	}
	if v.asked {
		span.SetAttributes(
			attribute.String("chaperone.effect", v.decision.Effect.String()),
			attribute.String("chaperone.rule", v.decision.Rule()),
			attribute.String("chaperone.revision", v.decision.Revision),
		)
	}
	if v.refused != nil {
		span.SetStatus(codes.Error, v.refused.state)
	}
}

// endSpan ends the span of an execution.
func endSpan(span trace.Span, ended *access.Ended) {
	if span == nil {
		return
	}
	span.SetAttributes(attribute.Int64("db.response.returned_rows", ended.Rows))
	if ended.Error != "" {
		span.SetStatus(codes.Error, "failed")
	}
	span.End()
}

// traceparent is the current span as W3C Trace Context writes it, or "".
func traceparent(ctx context.Context) string {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return ""
	}
	return "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + sc.TraceFlags().String()
}
