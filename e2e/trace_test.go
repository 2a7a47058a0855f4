package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// TestTraces: with a real collector. Envoy's span, the decision and the hold of
// a POST are one trace; a held statement has a trace of its own, to which the
// reviewer's answer links.
func TestTraces(t *testing.T) {
	t.Parallel()
	jaeger, err := localserver.StartJaeger(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { jaeger.Close() })
	s := own(t, demo.Options{OTLP: jaeger.OTLP})
	ada, grace := token(t, s, demo.Ada), person(t, s, demo.Grace)

	// The POST is an agent's to which Ada's token was handed on.
	delegated := exchanged(t, s, ada, token(t, s, demo.Reporter), "audience", "billing")
	posted := make(chan int, 1)
	go func() {
		res := request(t, s, "POST", "/http/billing/refunds", delegated, `{"order": 1}`, "Content-Type", "application/json")
		posted <- res.StatusCode
	}()
	post := pending(t, s, grace)
	if out, err := cli(t, s, grace, "approvals", "approve", post); err != nil {
		t.Fatalf("approve: %v\n%s", err, out)
	}
	if code := <-posted; code != http.StatusOK {
		t.Fatalf("the POST answers %d", code)
	}
	held, done, _ := hold(t, s, ada, "update orders set status = 'traced' where id = 1")
	if out, err := cli(t, s, grace, "approvals", "approve", held); err != nil {
		t.Fatalf("approve: %v\n%s", err, out)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		traces, err := jaeger.Spans(t.Context(), "chaperone")
		if err != nil {
			return err
		}
		return errors.Join(oneTrace(traces, post), linkedTrace(traces, held))
	})
}

// oneTrace: the hold, the decision and Envoy's own span, in one trace.
func oneTrace(traces map[string][]localserver.Span, id string) error {
	for _, spans := range traces {
		hold, decision, others := false, false, 0
		for _, sp := range spans {
			switch {
			case sp.Operation == "hold" && sp.Tag("chaperone.approval") == id:
				hold = true
			case sp.Tag("chaperone.request") == id && sp.Tag("chaperone.rule") == "billing-agents/refund" &&
				sp.Tag("chaperone.resource") == "billing" && sp.Tag("chaperone.session") != "" && sp.Tag("chaperone.user") == demo.Ada &&
				sp.Tag("chaperone.chain") == "agent":
				decision = true
			default:
				others++
			}
		}
		if hold && decision && others > 0 {
			return nil
		}
	}
	return fmt.Errorf("no trace has the hold and the decision of %s below Envoy's span", id)
}

// linkedTrace: an answer whose link leads to the trace of the held statement.
func linkedTrace(traces map[string][]localserver.Span, id string) error {
	for _, spans := range traces {
		for _, answer := range spans {
			if answer.Operation != "approval answer" || answer.Tag("chaperone.request") != id {
				continue
			}
			for _, ref := range answer.References {
				for _, sp := range traces[ref.TraceID] {
					if sp.SpanID == ref.SpanID && ref.TraceID != answer.TraceID {
						return nil
					}
				}
			}
		}
	}
	return fmt.Errorf("no answer of a reviewer links to the trace of %s", id)
}

// pending waits for the one approval that is pending.
func pending(t *testing.T, s *demo.Site, reviewer string) (id string) {
	t.Helper()
	eventually(t, func() error {
		out, err := cli(t, s, reviewer, "approvals", "list", "--state", "pending")
		if id = requestID.FindString(out); err == nil && id == "" {
			err = errors.New("nothing is pending")
		}
		return err
	})
	return id
}
