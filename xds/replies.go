package xds

import (
	"fmt"
	"net/http"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chaperone.dev/chaperone/internal/access"
)

// envoyRequestID names a request that chaperone did not get to see, the same in
// the answer and in the access log. Envoy's own request id does not exist yet
// when a request cannot even be parsed.
const envoyRequestID = "req_envoy_%START_TIME(%s%6f)%_%CONNECTION_ID%"

// A reply is how one kind of answer that Envoy makes itself is worded. when is
// a CEL condition on it.
type reply struct {
	when    string
	status  int // in place of Envoy's
	reason  access.Reason
	message string
	hint    string
}

// replies are tried in order; the last one takes what is left.
var replies = []reply{
	{when: `response.code_details.startsWith("ext_authz_error")`, status: http.StatusServiceUnavailable, reason: access.Unavailable,
		message: "the gateway cannot decide now; nothing was forwarded", hint: "try again"},
	{when: `response.code_details.startsWith("ext_proc")`, status: http.StatusServiceUnavailable, reason: access.Unavailable,
		message: "the answer cannot be masked and recorded now, so it was withheld; the target may have acted", hint: "look before you repeat it"},
	{when: `response.code == 400`, status: http.StatusBadRequest, reason: access.Unreadable,
		message: "the request cannot be read in one way only",
		hint:    "send a plain path, without encoded slashes or dots, and header names without underscores"},
	// A credential that is not there yet is 401 to Envoy and would read like
	// a fault of the client's token.
	{when: `response.code == 401`, status: http.StatusServiceUnavailable, reason: access.Unavailable,
		message: "the gateway has no credential for the target yet", hint: "try again"},
	{when: `response.code == 403`, status: http.StatusForbidden, reason: access.Unsupported, message: "upgrades and tunnels are not served here"},
	{when: `response.code == 404`, status: http.StatusNotFound, reason: access.UnknownResource,
		message: "there is nothing at this path", hint: "targets are at /http/<resource>/ and /k8s/<resource>/"},
	{when: `response.code == 408`, status: http.StatusRequestTimeout, reason: access.LimitExceeded, message: "the request took too long to arrive"},
	{when: `response.code == 413`, status: http.StatusRequestEntityTooLarge, reason: access.LimitExceeded,
		message: fmt.Sprintf("the request body is larger than %d bytes (to a Kubernetes API %d), and the gateway has to read it", MaxBody, MaxKubernetesBody)},
	{when: `response.code == 426`, status: http.StatusUpgradeRequired, reason: access.Unsupported, message: "this version of HTTP is not served here"},
	{when: `response.code == 431`, status: http.StatusRequestHeaderFieldsTooLarge, reason: access.LimitExceeded,
		message: "the request headers are too many or too large"},
	{when: `response.code_details.startsWith("upstream_reset_before_response_started{remote_connection_failure") || ` +
		`response.code_details.startsWith("upstream_reset_before_response_started{connection_timeout") || ` +
		`response.code_details in ["no_healthy_upstream", "cluster_not_found"]`, status: http.StatusServiceUnavailable, reason: access.Unavailable,
		message: "the target cannot be reached; nothing was forwarded", hint: "try again"},
	{when: `true`, status: http.StatusServiceUnavailable, reason: access.Unavailable,
		message: "the target gave no usable answer; it may have acted", hint: "look before you repeat it"},
}

// localReplies give Envoy's own answers the form of a denial. An answer that
// already has a content type was worded by chaperone and is left alone.
func localReplies() *hcmv3.LocalReplyConfig {
	config := &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{{
		Filter: when(`"content-type" in response.headers`),
	}}}
	for _, r := range replies {
		config.Mappers = append(config.Mappers, r.kubernetes(), r.mapper())
	}
	return config
}

// mapper writes the members of access.Denial.Problem.
func (r reply) mapper() *hcmv3.ResponseMapper {
	fields := map[string]*structpb.Value{
		"status":      structpb.NewNumberValue(float64(r.status)),
		"request_id":  structpb.NewStringValue(envoyRequestID),
		"requestable": structpb.NewBoolValue(false),
		"type":        structpb.NewStringValue("urn:chaperone:denial:" + string(r.reason)),
		"reason":      structpb.NewStringValue(string(r.reason)),
		"title":       structpb.NewStringValue(http.StatusText(r.status)),
		"message":     structpb.NewStringValue(r.message),
		"detail":      structpb.NewStringValue(r.message),
	}
	if r.hint != "" {
		fields["hint"] = structpb.NewStringValue(r.hint)
	}
	return &hcmv3.ResponseMapper{
		Filter:     when(r.when),
		StatusCode: wrapperspb.UInt32(uint32(r.status)),
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			Format:      &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}},
			ContentType: access.ProblemType,
		},
	}
}

// kubernetes words it for the clients of API servers, once a route to one was
// found.
func (r reply) kubernetes() *hcmv3.ResponseMapper {
	denial := access.Denial{RequestID: envoyRequestID, Reason: r.reason, Message: r.message, Hint: r.hint}
	status := &structpb.Struct{}
	if err := status.UnmarshalJSON(denial.KubernetesStatus(r.status)); err != nil { // it is an object
		panic("xds: " + err.Error())
	}
	return &hcmv3.ResponseMapper{
		Filter:     when(fmt.Sprintf("xds.route_name.startsWith(%q) && (%s)", kubernetesRoute, r.when)),
		StatusCode: wrapperspb.UInt32(uint32(r.status)),
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			Format:      &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: status},
			ContentType: "application/json",
		},
	}
}

func when(expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name: "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{
				TypedConfig: pack(&celfilterv3.ExpressionFilter{Expression: expression})},
		}}}
}
