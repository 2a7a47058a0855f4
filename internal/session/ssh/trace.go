package ssh

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
)

// startActSpan begins the span of one act. It holds no text: that is in the
// recording.
func (s *session) startActSpan(ctx context.Context, call *access.SSHCall) (context.Context, trace.Span) {
	return s.deps.Tracer.Start(ctx, "ssh "+call.Act, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("chaperone.subject", s.info.Principal.Subject)))
}
