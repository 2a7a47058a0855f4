package extauthz

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"chaperone.dev/chaperone/internal/access"
)

// metrics carry no names of people, resources or rules.
type metrics struct{ checks *prometheus.CounterVec }

func (m *metrics) register(r prometheus.Registerer, h *holds) error {
	m.checks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chaperone_extauthz_checks_total",
		Help: "Checks by outcome: allow, accepted (waits without its client), or the reason class of the refusal."}, []string{"outcome"})
	if r == nil {
		return nil
	}
	holding := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "chaperone_extauthz_holds", Help: "Requests that wait for a reviewer."}, h.count)
	return errors.Join(r.Register(m.checks), r.Register(holding))
}

func (m *metrics) count(outcome string) { m.checks.WithLabelValues(outcome).Inc() }

// annotate writes the outcome on the span of the call. The gRPC server's stats
// handler made it, as a child of the one that Envoy made for the Check.
func annotate(ctx context.Context, c *check) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attribute.String("chaperone.request", c.id),
		attribute.String("chaperone.session", c.request.Session),
		attribute.String("chaperone.resource", c.request.Resource.Name),
		attribute.String("chaperone.subject", c.request.Principal.Subject),
		attribute.String("chaperone.user", c.request.Principal.User),
		attribute.String("chaperone.subagent", c.request.Principal.Subagent),
		attribute.String("chaperone.chain", c.request.Principal.Through()),
		attribute.String("chaperone.rule", c.rule),
		attribute.String("chaperone.outcome", c.outcome),
	)
}

// startHold begins the span of a wait for reviewers; end ends it.
func startHold(ctx context.Context, id string) (_ context.Context, end func(access.ApprovalState)) {
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer("chaperone.dev/chaperone/extauthz")
	ctx, span := tracer.Start(ctx, "hold", trace.WithAttributes(attribute.String("chaperone.approval", id)))
	return ctx, func(s access.ApprovalState) {
		span.SetAttributes(attribute.String("chaperone.approval.state", string(s)))
		span.End()
	}
}
