package extauthz

import (
	"context"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ssh"
	"chaperone.dev/chaperone/internal/session/ticket"
)

// Connections is the session service of SSH, to which every CONNECT leads.
type Connections interface {
	// Admit keeps a permit until its connection arrives with the ticket.
	Admit(p ssh.Permit) (id string, err error)
}

// connectPort is the port by which a CONNECT names a host: RESOURCE:22. The
// gateway knows where the resource is; no client says.
const connectPort = ":22"

// connecting is the resource that a CONNECT names.
func (m *message) connecting() (resource string, f *fault) {
	name, ok := strings.CutSuffix(m.only(":authority"), connectPort)
	if m.method != "CONNECT" || !ok || name == "" || strings.ContainsAny(name, ":[]@/") {
		return "", unreadable("a CONNECT names a host as the gateway calls it, and port 22: RESOURCE:22")
	}
	return name, nil
}

// connect lets a connection through to the session service: for whom and to
// which host stands in the permit, and nothing else that the client says of
// itself there counts. What it then does is judged there.
func (c *check) connect(ctx context.Context) *authv3.CheckResponse {
	if c.Connections == nil {
		return c.refuse(ctx, unsupported("this gateway serves no CONNECT"))
	}
	id, err := c.Connections.Admit(ssh.Permit{Principal: c.request.Principal, Resource: c.request.Resource.Name})
	if err != nil {
		return c.refuse(ctx, unavailable("the gateway takes no more connections now").because(err))
	}
	c.outcome = "allow"
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			HeadersToRemove: []string{"authorization", "proxy-authorization", "cookie"}, Headers: []*corev3.HeaderValueOption{set(ticket.Header, id)}}},
	}
}

// credentials are the values of the headers that hold the token: of a CONNECT
// also that for proxies, which is what the gateway is to it.
func (m *message) credentials() []string {
	values := m.headers["authorization"]
	if m.kind() == access.SSH {
		values = append(values[:len(values):len(values)], m.headers["proxy-authorization"]...)
	}
	return values
}
