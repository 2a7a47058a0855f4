package extauthz

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"chaperone.dev/chaperone/internal/access"
)

// A fault is a refusal: what the client may see of it, and the cause, which
// only operators may.
type fault struct {
	access.Denial
	cause  string
	status int // 0 means the denial's own
}

func (f *fault) because(err error) *fault {
	f.cause = err.Error()
	return f
}

func unauthenticated(cause string) *fault {
	return &fault{cause: cause, Denial: access.Denial{
		Reason: access.Unauthenticated, Message: "a valid bearer token is needed",
		Hint: "send one Authorization header: Bearer and a current token issued for this gateway"}}
}

func unknownResource(cause string) *fault {
	return &fault{cause: cause, Denial: access.Denial{
		Reason: access.UnknownResource, Message: "there is no such resource, or none that you may know of"}}
}

func unavailable(message string) *fault {
	return &fault{Denial: access.Denial{Reason: access.Unavailable, Message: message, Hint: "try again"}}
}

func unreadable(message string) *fault {
	return &fault{status: http.StatusBadRequest, Denial: access.Denial{Reason: access.Unreadable, Message: message}}
}

// tooLarge refuses a body of which only the first bytes were sent to be judged.
func tooLarge(bound int) *fault {
	return &fault{status: http.StatusRequestEntityTooLarge, Denial: access.Denial{Reason: access.LimitExceeded,
		Message: fmt.Sprintf("the request body is larger than %d bytes, and the policy of this resource reads it", bound)}}
}

func unsupported(message string) *fault {
	return &fault{Denial: access.Denial{Reason: access.Unsupported, Message: message}}
}

func unrecorded(err error) *fault {
	return unavailable("the gateway cannot record the request, so nothing was forwarded").because(err)
}

// asFault makes a fault of what another part of chaperone said: its denial
// where it is one, otherwise unavailable with message.
func asFault(err error, message string) *fault {
	var d *access.Denial
	if errors.As(err, &d) {
		return &fault{Denial: *d, cause: d.Message}
	}
	f := unavailable(message)
	if err != nil {
		f.cause = err.Error()
	}
	return f
}

// refuse records a refusal that policy did not make and answers with it.
func (c *check) refuse(ctx context.Context, f *fault) *authv3.CheckResponse {
	c.complete(&f.Denial)
	attrs := []any{"request", f.RequestID, "reason", string(f.Reason), "cause", f.cause, "resource", c.message.extensions[contextResource],
		"client", c.message.client, "session", c.request.Session, "issuer", c.request.Principal.Issuer, "subject", c.request.Principal.Subject}
	c.log.InfoContext(ctx, "refused an HTTP request", attrs...)
	err := c.record(ctx, c.event(access.Event{Denied: &access.Denied{
		Denial: f.Denial, Cause: f.cause, Resource: c.message.extensions[contextResource],
		Client: c.message.client, Text: c.message.text(),
	}}))
	if err != nil {
		// It is refused either way; only the reason is not on record.
		c.log.ErrorContext(ctx, "a refusal is not recorded", "request", f.RequestID, "error", err)
	}
	return c.denied(f)
}

// complete fills in what every denial says.
func (c *check) complete(d *access.Denial) {
	if d.RequestID == "" {
		d.RequestID = c.id
	}
	if d.Resource == "" {
		d.Resource = c.request.Resource.Name
	}
}
