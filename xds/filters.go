package xds

import (
	"time"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	skipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	statevaluev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	"chaperone.dev/chaperone/internal/session/ticket"
)

const (
	extAuthzFilter = "envoy.filters.http.ext_authz"
	extProcFilter  = "envoy.filters.http.ext_proc"

	setFilterStateFilter = "envoy.filters.http.set_filter_state"
)

// messageTimeout bounds the processor's answer to one piece of a response: it
// includes writing the piece to disk.
const messageTimeout = 10 * time.Second

// strippedPrefixes and strippedHeaders never get past the first moment of a
// request: they speak in the name of a proxy, change the method or the path
// for some targets, or (range) ask for a piece of a document that cannot be
// masked without the rest of it.
var (
	strippedPrefixes = []string{"x-chaperone-", "x-envoy-", "x-forwarded-"}
	strippedHeaders  = []string{
		"forwarded", "x-original-url", "x-original-uri", "x-rewrite-url", "x-real-ip", "x-client-ip", "true-client-ip",
		"x-http-method-override", "x-http-method", "x-method-override",
		"x-request-id", "x-client-trace-id", "range", "if-range",
	}
)

// headerRules are applied before anything else looks at the request.
func headerRules() []*corev3.TypedExtensionConfig {
	var ms []*rulesv3.HeaderMutation
	for _, prefix := range strippedPrefixes {
		ms = append(ms, &rulesv3.HeaderMutation{Action: &rulesv3.HeaderMutation_RemoveOnMatch_{
			RemoveOnMatch: &rulesv3.HeaderMutation_RemoveOnMatch{
				KeyMatcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}}}}})
	}
	for _, name := range strippedHeaders {
		ms = append(ms, &rulesv3.HeaderMutation{Action: &rulesv3.HeaderMutation_Remove{Remove: name}})
	}
	// The processor reads plain text; a compressed answer would be refused.
	ms = append(ms, &rulesv3.HeaderMutation{Action: &rulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: "accept-encoding", Value: "identity"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}}})
	return []*corev3.TypedExtensionConfig{
		extension("envoy.http.early_header_mutation.header_mutation", &earlyv3.HeaderMutation{Mutations: ms})}
}

// httpFilters decide, then process what comes back. Neither is ever allowed to
// fail open.
func httpFilters(hold time.Duration) []*hcmv3.HttpFilter {
	return []*hcmv3.HttpFilter{
		httpFilter(extAuthzFilter, &extauthzv3.ExtAuthz{
			TransportApiVersion: corev3.ApiVersion_V3,
			Services:            &extauthzv3.ExtAuthz_GrpcService{GrpcService: within(toCluster(servicesCluster), hold+holdMargin)},
			FailureModeAllow:    false,
			StatusOnError:       &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
			EncodeRawHeaders:    true, // else duplicates are joined and bytes replaced
			// Which bodies are read, and how much of them, routes say; that
			// they come as bytes, and not with ! for whatever is not UTF-8,
			// Envoy takes from here alone.
			WithRequestBody:   &extauthzv3.BufferSettings{MaxRequestBytes: MaxBody, PackAsBytes: true},
			ValidateMutations: true,
			StatPrefix:        "chaperone",
		}),
		ticketFilter(),
		httpFilter(extProcFilter, exceptLocalReplies(processing())),
		httpFilter("envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true}),
	}
}

// ticketState is under which a connection to a session service has its ticket,
// from which the PROXY header of that connection is written.
const ticketState = "chaperone.ticket"

// ticketFilter keeps the ticket that the authorizer gave to a CONNECT. It is off
// but for the route of those. The ticket counts when connections are pooled (that
// is what a hashable string is for), so no client gets another's.
func ticketFilter() *hcmv3.HttpFilter {
	f := httpFilter(setFilterStateFilter, &setstatev3.Config{OnRequestHeaders: []*statevaluev3.FilterStateValue{{
		Key:                &statevaluev3.FilterStateValue_ObjectKey{ObjectKey: ticketState},
		FactoryKey:         "envoy.hashable_string",
		Value:              &statevaluev3.FilterStateValue_FormatString{FormatString: text("%REQ(" + ticket.Header + ")%")},
		SharedWithUpstream: statevaluev3.FilterStateValue_ONCE,
	}}})
	f.Disabled = true
	return f
}

// text is a format string that yields nothing else than what is in it.
func text(format string) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: format}}}}
}

func processing() *extprocv3.ExternalProcessor {
	return &extprocv3.ExternalProcessor{
		GrpcService:      toCluster(servicesCluster),
		FailureModeAllow: false,
		StatusOnError:    &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		MessageTimeout:   seconds(messageTimeout),
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:   extprocv3.ProcessingMode_SKIP,
			RequestBodyMode:     extprocv3.ProcessingMode_NONE,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
			ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
			ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
		},
		AllowModeOverride: false,
		// What the authorizer decided reaches the processor this way.
		MetadataOptions: &extprocv3.MetadataOptions{
			ForwardingNamespaces: &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{extAuthzFilter}}},
		StatPrefix: "chaperone",
	}
}

// exceptLocalReplies keeps the processor away from answers that Envoy or the
// authorizer made: they hold nothing of a target, and a request that Envoy
// cannot even parse would end before the processor had answered, and so
// without an answer. Only what the matcher is sure of is skipped.
func exceptLocalReplies(config proto.Message) *matchingv3.ExtensionWithMatcher {
	return &matchingv3.ExtensionWithMatcher{
		ExtensionConfig: extension(extProcFilter, config),
		XdsMatcher: &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{
			MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
				Input: xdsExtension("envoy.matching.inputs.local_reply", &matcherv3.HttpResponseLocalReplyMatchInput{}),
				TreeType: &xdsmatcherv3.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{
					Map: map[string]*xdsmatcherv3.Matcher_OnMatch{"true": {OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
						Action: xdsExtension("skip", &skipv3.SkipFilter{})}}}}},
			}}},
	}
}

func xdsExtension(name string, m proto.Message) *xdscorev3.TypedExtensionConfig {
	return &xdscorev3.TypedExtensionConfig{Name: name, TypedConfig: pack(m)}
}

func httpFilter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(config)}}
}

func within(s *corev3.GrpcService, d time.Duration) *corev3.GrpcService {
	s.Timeout = seconds(d)
	return s
}
