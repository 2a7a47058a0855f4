package postgres

import (
	"context"
	"errors"
	"fmt"

	"chaperone.dev/chaperone/internal/access"
)

// A login is how one connection to a target logs in: with the credential of the
// resource, or with a role that was made for this connection alone.
type login struct {
	user     string
	password access.Secret
	auth     string // what the server may ask for (require_auth)
	end      func() // the connection is closed: the role goes
}

// logins gives out logins. It is safe for concurrent use.
type logins struct {
	made *sessionRoles
}

// take returns how to log in to r, once.
func (l logins) take(ctx context.Context, r Resource) (*login, error) {
	if r.Profile != "" {
		one, err := l.made.make(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("a role in %s: %w", r.Profile, err)
		}
		return one, nil
	}
	return r.own(ctx)
}

// own is the login with the resource's own credential: a password, or the
// client certificate in its TLS configuration. The server must not ask for
// anything else.
func (r Resource) own(ctx context.Context) (*login, error) {
	if r.Password == nil {
		if r.TLS != nil && len(r.TLS.Certificates) > 0 {
			return &login{user: r.User, auth: "none", end: func() {}}, nil
		}
		return nil, errors.New(r.Access.Name + " has no credential")
	}
	password, err := r.Password(ctx)
	if err != nil {
		return nil, fmt.Errorf("credential of %s: %w", r.Access.Name, err)
	}
	return &login{user: r.User, password: password, auth: "scram-sha-256", end: func() {}}, nil
}

// Role is the role with whose rights sessions run.
func (r Resource) Role() string {
	if r.Profile != "" {
		return r.Profile
	}
	return r.User
}
