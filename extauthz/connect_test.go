package extauthz

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ssh"
	"chaperone.dev/chaperone/internal/session/ticket"
)

// admitted keeps the permits of connections.
type admitted struct{ permits []ssh.Permit }

func (a *admitted) Admit(p ssh.Permit) (string, error) {
	a.permits = append(a.permits, p)
	return "ticket-1", nil
}

// TestConnect: a CONNECT names a host by the name and port that the gateway has
// for it, shows one token, and gets a ticket for who it is. Whatever else it
// names is refused, and nothing is admitted.
func TestConnect(t *testing.T) {
	t.Parallel()
	const good = "Bearer good"
	for name, c := range map[string]struct {
		method, authority string
		headers           []string
		status            int // 0: admitted
	}{
		"for a proxy":             {"CONNECT", "web:22", []string{"proxy-authorization", good}, 0},
		"for a server":            {"CONNECT", "web:22", []string{"authorization", good}, 0},
		"a forged ticket":         {"CONNECT", "web:22", []string{"authorization", good, ticket.Header, "forged"}, 0},
		"both":                    {"CONNECT", "web:22", []string{"authorization", good, "proxy-authorization", good}, http.StatusUnauthorized},
		"two":                     {"CONNECT", "web:22", []string{"proxy-authorization", good, "proxy-authorization", good}, http.StatusUnauthorized},
		"no token":                {"CONNECT", "web:22", nil, http.StatusUnauthorized},
		"a password":              {"CONNECT", "web:22", []string{"proxy-authorization", "Basic Z29vZDpnb29k"}, http.StatusUnauthorized},
		"another port":            {"CONNECT", "web:25", []string{"authorization", good}, http.StatusBadRequest},
		"no port":                 {"CONNECT", "web", []string{"authorization", good}, http.StatusBadRequest},
		"no name":                 {"CONNECT", ":22", []string{"authorization", good}, http.StatusBadRequest},
		"no authority":            {"CONNECT", "", []string{"authorization", good}, http.StatusBadRequest},
		"an address":              {"CONNECT", "127.0.0.1:22", []string{"authorization", good}, http.StatusNotFound},
		"an address of version 6": {"CONNECT", "[::1]:22", []string{"authorization", good}, http.StatusBadRequest},
		"the cloud's metadata":    {"CONNECT", "169.254.169.254:80", []string{"authorization", good}, http.StatusBadRequest},
		"two ports":               {"CONNECT", "web:22:22", []string{"authorization", good}, http.StatusBadRequest},
		"a user":                  {"CONNECT", "x@web:22", []string{"authorization", good}, http.StatusBadRequest},
		"capitals":                {"CONNECT", "WEB:22", []string{"authorization", good}, http.StatusNotFound},
		"a dot at its end":        {"CONNECT", "web.:22", []string{"authorization", good}, http.StatusNotFound},
		"a database":              {"CONNECT", "orders:22", []string{"authorization", good}, http.StatusNotFound},
		"another method":          {"GET", "web:22", []string{"authorization", good}, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, kept := newWorld(), &admitted{}
			s := w.server(t, nil)
			s.Connections = kept
			in := question(map[string]string{contextKind: string(access.SSH)}, "", append([]string{":method", c.method, ":authority", c.authority}, c.headers...)...)
			o := checked(t, s, t.Context(), in)
			if c.status != 0 {
				if o.forwarded || o.status != c.status || len(kept.permits) != 0 || len(w.events) != 1 || w.events[0].Denied == nil {
					t.Errorf("got %+v, permits %+v, recorded %+v", o, kept.permits, w.events)
				}
				return
			}
			if !o.forwarded || o.headers[ticket.Header] != "ticket-1" || !slices.Contains(o.removed, "proxy-authorization") || !slices.Contains(o.removed, "authorization") {
				t.Errorf("got %+v", o)
			}
			if len(kept.permits) != 1 || kept.permits[0].Principal.Subject != "sub-good" || kept.permits[0].Resource != "web" {
				t.Errorf("permits %+v", kept.permits)
			}
		})
	}
}

// TestConnectNeedsPolicy: a host that no rule is about looks like none, and a
// gateway without hosts says so.
func TestConnectNeedsPolicy(t *testing.T) {
	t.Parallel()
	w, kept := newWorld(), &admitted{}
	s := w.server(t, nil)
	in := question(map[string]string{contextKind: string(access.SSH)}, "", ":method", "CONNECT", ":authority", "web:22", "authorization", "Bearer good")
	if o := checked(t, s, t.Context(), in); o.forwarded || !strings.Contains(o.body["message"].(string), "serves no CONNECT") {
		t.Errorf("without a service: %+v", o)
	}
	s.Connections, w.mayConnect = kept, false
	if o := checked(t, s, t.Context(), in); o.forwarded || o.status != http.StatusNotFound || len(kept.permits) != 0 {
		t.Errorf("without a rule: %+v", o)
	}
	// The header for proxies is none for requests that are no CONNECT.
	if o := checked(t, s, t.Context(), question(billing(), "", ":method", "GET", ":path", "/http/billing/", "proxy-authorization", "Bearer good")); o.forwarded {
		t.Errorf("a request: %+v", o)
	}
}
