package extauthz

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"chaperone.dev/chaperone/internal/access"
)

// MetadataKey is the member of the dynamic metadata, in the namespace of
// Envoy's ext_authz filter, under which an allowed request tells the processor
// of its response what was decided. Its members are
//
//	request      the request id
//	session      the session id
//	resource     the resource's name
//	obligations  access.Obligations as JSON text
//	kubernetes   kube.Answer as JSON text; only when the target is an API server
const MetadataKey = "chaperone"

// retryAfter is how soon a client that does not wait may ask again.
const retryAfter = 5 * time.Second

// allowed is the answer that lets the request through. What the client sent for
// the gateway's eyes, and what nobody judged, comes off; who it is goes on.
func (c *check) allowed(d access.Decision) *authv3.CheckResponse {
	c.outcome = "allow"
	obligations, err := json.Marshal(d.Obligations)
	if err != nil {
		return c.denied(unavailable("the gateway cannot say what is to be masked"))
	}
	told := map[string]any{"request": c.id, "session": c.request.Session, "resource": c.request.Resource.Name, "obligations": string(obligations)}
	if k := c.request.Action.K8s; k != nil {
		return c.allowedKubernetes(k, d, told)
	}
	metadata, err := structpb.NewStruct(map[string]any{MetadataKey: told})
	if err != nil {
		return c.denied(unavailable("the gateway cannot say what is to be masked"))
	}
	ok := &authv3.OkHttpResponse{HeadersToRemove: []string{"authorization", "proxy-authorization", "cookie"}}
	if kept, consumed := c.message.preferences(); consumed {
		if kept == "" {
			ok.HeadersToRemove = append(ok.HeadersToRemove, "prefer")
		} else {
			ok.Headers = append(ok.Headers, set("prefer", kept))
		}
	}
	p := c.request.Principal
	for _, h := range []struct{ name, value string }{
		{"x-chaperone-request-id", c.id}, {"x-chaperone-session-id", c.request.Session}, {"x-chaperone-issuer", p.Issuer},
		{"x-chaperone-subject", p.Subject}, {"x-chaperone-user", p.User}, {"x-chaperone-subagent", p.Subagent},
		{"x-chaperone-workflow", p.Workflow}, {"x-chaperone-job", p.Job},
	} {
		if h.value != "" {
			ok.Headers = append(ok.Headers, set(h.name, headerValue(h.value)))
		}
	}
	return &authv3.CheckResponse{
		Status:          &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: metadata,
	}
}

// denied is the answer that refuses.
func (c *check) denied(f *fault) *authv3.CheckResponse {
	c.complete(&f.Denial)
	c.outcome = string(f.Reason)
	status := f.status
	if status == 0 {
		status = f.Status()
	}
	media, body := access.ProblemType, f.Problem(status)
	if c.message.kind() == access.Kubernetes {
		media, body = "application/json", f.KubernetesStatus(status)
	}
	headers := []*corev3.HeaderValueOption{set("content-type", media)}
	if wait := f.Frees.Sub(c.now()); wait > 0 {
		headers = append(headers, set("retry-after", strconv.Itoa(int(wait.Seconds())+1)))
	}
	code := codes.PermissionDenied
	if f.Reason == access.Unauthenticated {
		code = codes.Unauthenticated
		headers = append(headers, set("www-authenticate", "Bearer"))
	}
	return answer(code, status, body, headers...)
}

// accepted is the 202 of a request that waits for a reviewer without its client.
func (c *check) accepted(a access.Approval) *authv3.CheckResponse {
	c.outcome = "accepted"
	body, err := json.Marshal(struct {
		RequestID string    `json:"request_id"`
		Status    string    `json:"status"`
		Message   string    `json:"message"`
		Hint      string    `json:"hint"`
		Resource  string    `json:"resource"`
		Expires   time.Time `json:"expires,omitzero"`
	}{a.ID, string(access.Pending), "a reviewer has been asked; nothing was forwarded",
		"send the same request again once it is granted: it then runs, once", c.request.Resource.Name, a.Expires})
	if err != nil {
		return c.denied(unavailable("the gateway cannot word its answer"))
	}
	return answer(codes.PermissionDenied, http.StatusAccepted, append(body, '\n'),
		set("content-type", "application/json"), set("preference-applied", respondAsync),
		set("retry-after", strconv.Itoa(int(retryAfter.Seconds()))))
}

// answer is a response that Envoy gives in place of the target's.
func answer(code codes.Code, status int, body []byte, headers ...*corev3.HeaderValueOption) *authv3.CheckResponse {
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(code)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(status)},
			Headers: append(headers, set("cache-control", "no-store")),
			Body:    string(body),
		}},
	}
}

// set is a header that replaces any of its name.
func set(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// headerValue writes a claim so that it is one plain header value whatever is
// in it: bytes other than printable ASCII, and the percent sign, are
// percent-encoded.
func headerValue(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c > ' ' && c < 0x7f && c != '%' || c == ' ' && i > 0 && i < len(s)-1 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
