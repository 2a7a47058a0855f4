package postgres

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
)

// startStatementSpan begins the span of one execution. It holds no text and no
// values: those are in the recording.
func (s *session) startStatementSpan(ctx context.Context, id string) (context.Context, trace.Span) {
	ctx, span := s.deps.Tracer.Start(ctx, "postgres statement", trace.WithSpanKind(trace.SpanKindServer))
	if !span.IsRecording() { // nobody will see them
		return ctx, span
	}
	span.SetAttributes(
		attribute.String("db.system.name", "postgresql"),
		attribute.String("chaperone.session", s.info.ID),
		attribute.String("chaperone.request", id),
		attribute.String("chaperone.resource", s.resource.Access.Name),
		attribute.String("chaperone.subject", s.info.Principal.Subject),
	)
	return ctx, span
}

// describeSpan adds what was decided.
func describeSpan(span trace.Span, v *verdict) {
	if !span.IsRecording() {
		return
	}
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
	if !span.IsRecording() {
		span.End()
		return
	}
	span.SetAttributes(attribute.Int64("db.response.returned_rows", ended.Rows))
	if ended.Error != "" {
		span.SetStatus(codes.Error, "failed")
	}
	span.End()
}
