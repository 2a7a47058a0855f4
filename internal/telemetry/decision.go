package telemetry

import (
	"go.opentelemetry.io/otel/attribute"

	"chaperone.dev/chaperone/internal/access"
)

// DecisionAttributes say on a span what was decided on req: chaperone.rule,
// .effect, .reason, .principal (issuer/subject), .user, .subagent, .workflow,
// .chain (its actors), .resource, .session, .request and .revision. What is empty is left out. The
// action itself is not among them: it may hold values that only the recording,
// which masks them, may keep.
func DecisionAttributes(req access.Request, d access.Decision) []attribute.KeyValue {
	p := req.Principal
	principal := ""
	if p.Subject != "" {
		principal = p.Issuer + "/" + p.Subject
	}
	all := []attribute.KeyValue{
		attribute.String("chaperone.rule", d.Rule()),
		attribute.String("chaperone.effect", d.Effect.String()),
		attribute.String("chaperone.reason", string(d.Reason)),
		attribute.String("chaperone.principal", principal),
		attribute.String("chaperone.user", p.User),
		attribute.String("chaperone.subagent", p.Subagent),
		attribute.String("chaperone.workflow", p.Workflow),
		attribute.String("chaperone.chain", p.Through()),
		attribute.String("chaperone.resource", req.Resource.Name),
		attribute.String("chaperone.session", req.Session),
		attribute.String("chaperone.request", req.ID),
		attribute.String("chaperone.revision", d.Revision),
	}
	set := all[:0]
	for _, kv := range all {
		if kv.Value.AsString() != "" {
			set = append(set, kv)
		}
	}
	return set
}
