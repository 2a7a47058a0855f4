// Package bearer reads the caller of an HTTP request from its one bearer token
// (RFC 6750), or without any from the client certificate that was shown. It
// refuses requests with several tokens, or another scheme.
package bearer

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// A Gate tells who calls. All members are required.
type Gate struct {
	Name   string // of what it guards, in the log
	Verify func(ctx context.Context, token access.Secret) (access.Principal, error)
	// Rejected tells a verdict on a token from the lack of one.
	Rejected func(error) bool
	Log      *slog.Logger
}

// Authenticate returns the caller, or the denial, which has no request id.
func (g Gate) Authenticate(r *http.Request) (access.Principal, *access.Denial) {
	err := errors.New("several Authorization headers")
	var p access.Principal
	rejected := true
	switch values := r.Header.Values("Authorization"); len(values) {
	case 0: // a client certificate may do
		p, err = g.Verify(r.Context(), access.Secret{})
		rejected = err == nil || g.Rejected(err)
	case 1:
		scheme, token, _ := strings.Cut(values[0], " ")
		err = errors.New("the authorization scheme is not Bearer")
		if strings.EqualFold(scheme, "Bearer") && token != "" {
			p, err = g.Verify(r.Context(), access.NewSecret(token))
			rejected = err == nil || g.Rejected(err)
		}
	}
	switch {
	case err == nil:
		return p, nil
	case rejected:
		g.Log.Info(g.Name+" refused", "error", err)
		return p, &access.Denial{Reason: access.Unauthenticated, Message: "a valid token is needed",
			Hint: "send one header Authorization: Bearer TOKEN with a fresh token for this gateway"}
	}
	g.Log.Warn(g.Name+" cannot check a token", "error", err)
	return p, &access.Denial{Reason: access.Unavailable, Message: "the gateway cannot check tokens now", Hint: "try again in a moment"}
}

// Refuse answers with a denial as a problem document.
func Refuse(w http.ResponseWriter, denial *access.Denial) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", access.ProblemType)
	if denial.Reason == access.Unauthenticated {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(denial.Status())
	_, _ = w.Write(denial.Problem(denial.Status())) // the client may have left
}
