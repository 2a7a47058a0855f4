package xds

import (
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	celfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	connlimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/connection_limit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	samplersv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Bounds on what one client connection, request or listener may take. They are
// for an edge that faces hostile programs.
const (
	maxConnections   = 4096 // for each listener, so that one cannot starve the other
	maxHeadersKB     = 64
	maxHeaders       = 100
	maxStreams       = 100 // HTTP/2, for each connection
	streamWindow     = 64 << 10
	connectionWindow = 1 << 20
	bufferLimit      = 64 << 10
	headersTimeout   = 10 * time.Second
	idleConnection   = time.Hour
	idleSession      = 24 * time.Hour // a connection of a session; chaperone's own deadline is sooner
	holdMargin       = 30 * time.Second
	idleMargin       = 5 * time.Minute
)

// Secrets of the HTTPS listener.
const (
	tlsSecret     = "gateway"
	clientsSecret = "clients" // what certificates of clients must lead to
)

func listeners(c Config, from source) []*listenerv3.Listener {
	var out []*listenerv3.Listener
	if c.Listen.HTTPS != "" {
		l := listener("https", c.Listen.HTTPS, filter("envoy.filters.network.http_connection_manager", connectionManager(c, from)))
		l.FilterChains[0].TransportSocket = downstreamTLS(c, from)
		out = append(out, l)
	}
	if c.Listen.Postgres != "" {
		out = append(out, listener("postgres", c.Listen.Postgres, toSessions("postgres", postgresCluster)))
	}
	if c.Listen.SSH != "" {
		out = append(out, listener("ssh", c.Listen.SSH, toSessions("ssh", sshCluster)))
	}
	return out
}

// toSessions passes connections on to a session service.
func toSessions(name, cluster string) *listenerv3.Filter {
	return filter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
		StatPrefix:       name,
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
		IdleTimeout:      seconds(idleSession),
	})
}

func listener(name, address string, last *listenerv3.Filter) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:             name,
		Address:          listenAddress(address),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		// A client machine that vanished is noticed within three minutes.
		TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveTime: number(60), KeepaliveInterval: number(20), KeepaliveProbes: number(6)},
		PerConnectionBufferLimitBytes: number(bufferLimit),
		FilterChains: []*listenerv3.FilterChain{{
			Name: name,
			Filters: []*listenerv3.Filter{
				filter("envoy.filters.network.connection_limit", &connlimitv3.ConnectionLimit{
					StatPrefix: name, MaxConnections: wrapperspb.UInt64(maxConnections)}),
				last,
			},
		}},
	}
}

func filter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(config)}}
}

func downstreamTLS(c Config, from source) *corev3.TransportSocket {
	t := &tlsv3.DownstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
			AlpnProtocols: []string{"h2", "http/1.1"},
			// By SDS, so that a new certificate does not drain connections.
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: tlsSecret, SdsConfig: from.config()}},
		},
	}
	if c.Listen.ClientCAs != nil {
		t.RequireClientCertificate = wrapperspb.Bool(false) // most bring a token
		t.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: clientsSecret, SdsConfig: from.config()}}
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(t)},
	}
}

// connectionManager reads requests so that what is judged is what the target
// reads: one spelling of the path, no header that another hop would read
// differently, no word of the client about itself.
func connectionManager(c Config, from source) *hcmv3.HttpConnectionManager {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: "https",
		ServerName: "chaperone",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{ // a change of routes does not drain connections
			Rds: &hcmv3.Rds{ConfigSource: from.config(), RouteConfigName: routeConfig}},
		HttpFilters: httpFilters(c.Hold),

		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  seconds(idleConnection),
			MaxHeadersCount:              number(maxHeaders),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        number(maxStreams),
			InitialStreamWindowSize:     number(streamWindow),
			InitialConnectionWindowSize: number(connectionWindow),
		},
		MaxRequestHeadersKb: number(maxHeadersKB),

		// No client is internal, whatever network it comes from: x-envoy-*
		// headers steer Envoy for those that are.
		UseRemoteAddress: wrapperspb.Bool(true),
		InternalAddressConfig: &hcmv3.HttpConnectionManager_InternalAddressConfig{
			CidrRanges: []*corev3.CidrRange{{AddressPrefix: "255.255.255.255", PrefixLen: number(32)}}},
		EarlyHeaderMutationExtensions: headerRules(),

		// What a client says of its certificate is taken off; what it has shown
		// and proven stands there instead.
		ForwardClientCertDetails:    hcmv3.HttpConnectionManager_SANITIZE_SET,
		SetCurrentClientCertDetails: &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Chain: true},

		// The request timeout would count the time that a request is held.
		RequestTimeout:        seconds(0),
		RequestHeadersTimeout: seconds(headersTimeout),
		StreamIdleTimeout:     seconds(c.Hold + idleMargin),

		LocalReplyConfig: localReplies(),
		AccessLog:        []*accesslogv3.AccessLog{ownAnswers()},
		Tracing:          tracing(c.OTLP),
	}
	if from.static {
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes(c)}
	}
	return m
}

// tracing samples every request: a client may join a trace, not leave it.
func tracing(endpoint string) *hcmv3.HttpConnectionManager_Tracing {
	if endpoint == "" {
		return nil
	}
	return &hcmv3.HttpConnectionManager_Tracing{
		RandomSampling:    &typev3.Percent{Value: 100},
		SpawnUpstreamSpan: wrapperspb.Bool(true),
		Provider: &tracev3.Tracing_Http{
			Name: "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: pack(&tracev3.OpenTelemetryConfig{
				GrpcService: toCluster(otlpCluster),
				ServiceName: "chaperone-envoy",
				Sampler:     extension("envoy.tracers.opentelemetry.samplers.always_on", &samplersv3.AlwaysOnSamplerConfig{}),
			})},
		},
	}
}

// ownAnswers logs the requests that Envoy itself had to answer or to cut short:
// what the authorizer refuses is in the recording.
func ownAnswers() *accesslogv3.AccessLog {
	fields := map[string]*structpb.Value{}
	for name, operator := range map[string]string{
		"time": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%PATH(NQ:ORIG_OR_PATH)%",
		"status": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "details": "%RESPONSE_CODE_DETAILS%",
		"request_id": envoyRequestID, "client": "%DOWNSTREAM_REMOTE_ADDRESS%", "route": "%ROUTE_NAME%",
		"upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	} {
		fields[name] = structpb.NewStringValue(operator)
	}
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.stdout",
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
			ExtensionFilter: &accesslogv3.ExtensionFilter{
				Name: "envoy.access_loggers.extension_filters.cel",
				ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: pack(&celfilterv3.ExpressionFilter{
					Expression: `response.flags != 0 && response.code_details != "ext_authz_denied"`})},
			}}},
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&streamv3.StdoutAccessLog{
			AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}}}}})},
	}
}
