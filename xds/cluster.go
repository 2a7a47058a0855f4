package xds

import (
	"net/netip"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnscommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	injectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	upstreamcodecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	genericv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	proxyprotov3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"chaperone.dev/chaperone/internal/session/ingress"
)

// Names of the clusters that are chaperone itself.
const (
	servicesCluster = "chaperone-services"
	postgresCluster = "chaperone-postgres"
	sshCluster      = "chaperone-ssh"
	connectCluster  = "chaperone-ssh-connect" // the same service, by CONNECT
	apiCluster      = "chaperone-api"
	otlpCluster     = "otlp"

	kubernetesCluster = "chaperone-kubernetes"
)

// manyRequests bounds what may be under way to chaperone's own services. Held
// requests and open responses count, so the default of 1,024 would let a few
// patient clients lock out all others; the services have bounds of their own.
const manyRequests = 1 << 17

func resourceCluster(name string) string { return "http/" + name }

func certificateSecret(resource string) string { return "http/" + resource + "/certificate" }

func credentialSecret(resource string) string { return "http/" + resource + "/credential" }

func clusters(c Config, from source) []*clusterv3.Cluster {
	var out []*clusterv3.Cluster
	if c.Listen.HTTPS != "" {
		out = append(out, services(c.Sockets.Services))
		for _, r := range c.HTTP {
			out = append(out, r.cluster(c.SystemCAs, from))
		}
		if slices.ContainsFunc(c.HTTP, func(r HTTPResource) bool { return r.Kubernetes }) {
			streams := local(kubernetesCluster, c.Sockets.Kubernetes)
			streams.TypedExtensionProtocolOptions = protocol(http1())
			out = append(out, streams)
		}
		if c.Sockets.API != "" {
			api := local(apiCluster, c.Sockets.API)
			api.TypedExtensionProtocolOptions = protocol(http1())
			out = append(out, api)
		}
	}
	if c.Listen.Postgres != "" {
		out = append(out, sessions(postgresCluster, c.Sockets.Postgres))
	}
	if c.Listen.SSH != "" {
		out = append(out, sessions(sshCluster, c.Sockets.SSH))
	}
	if c.connects() {
		out = append(out, sessions(connectCluster, c.Sockets.SSH, &corev3.TlvEntry{Type: uint32(ingress.TicketTLV), FormatString: text("%FILTER_STATE(" + ticketState + ":PLAIN)%")}))
	}
	if c.OTLP != "" {
		host, port, _ := splitHostPort(c.OTLP) // validate has seen it
		otlp := remote(otlpCluster, host, port)
		otlp.TypedExtensionProtocolOptions = protocol(http2())
		out = append(out, otlp)
	}
	return out
}

// local is a cluster of one unix socket.
func local(name, path string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       seconds(2 * time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:       assignment(name, pipe(path)),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: number(manyRequests), MaxPendingRequests: number(manyRequests), MaxRequests: number(manyRequests)}}},
	}
}

// remote is a cluster of one host, by name or address.
func remote(name, host string, port uint32) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       seconds(5 * time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:       assignment(name, socketAddress(host, port)),
	}
	if _, err := netip.ParseAddr(host); err != nil {
		// The addresses of a name are one host, tried in turn: a dead one of
		// one family does not fail every other request.
		c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.cluster.dns", TypedConfig: pack(&dnsv3.DnsCluster{
				DnsLookupFamily: dnscommonv3.DnsLookupFamily_ALL, RespectDnsTtl: true, AllAddressesInSingleEndpoint: true})}}
	}
	return c
}

func assignment(name string, a *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{ClusterName: name,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}}}}}}}
}

// services carries Check and Process. A chaperone that hangs without closing
// its socket is noticed by the ping, so that held requests end with it.
func services(path string) *clusterv3.Cluster {
	c := local(servicesCluster, path)
	options := http2()
	options.GetExplicitHttpConfig().GetHttp2ProtocolOptions().ConnectionKeepalive = &corev3.KeepaliveSettings{
		Interval: seconds(KeepaliveInterval), Timeout: seconds(KeepaliveInterval)}
	c.TypedExtensionProtocolOptions = protocol(options)
	return c
}

// sessions carries the connections of a session service, each behind a PROXY
// protocol v2 header with the client's address and, beside it, tlvs.
func sessions(name, path string, tlvs ...*corev3.TlvEntry) *clusterv3.Cluster {
	c := local(name, path)
	c.TransportSocket = &corev3.TransportSocket{
		Name: "envoy.transport_sockets.upstream_proxy_protocol",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&proxyprotov3.ProxyProtocolUpstreamTransport{
			Config: &corev3.ProxyProtocolConfig{Version: corev3.ProxyProtocolConfig_V2, AddedTlvs: tlvs},
			TransportSocket: &corev3.TransportSocket{Name: "envoy.transport_sockets.raw_buffer",
				ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawbufferv3.RawBuffer{})}},
		})},
	}
	return c
}

// cluster is the target itself. HTTP/1.1 on purpose: it has no way to carry
// request trailers, which nobody would have judged.
func (r HTTPResource) cluster(systemCAs string, from source) *clusterv3.Cluster {
	t, _ := r.target() // validate has seen it
	c := remote(resourceCluster(r.Name), t.host, t.port)
	options := http1()
	if r.Credential != nil {
		options.HttpFilters = []*hcmv3.HttpFilter{
			upstreamFilter("envoy.filters.http.credential_injector", pack(&injectorv3.CredentialInjector{
				Overwrite: true,
				Credential: extension("envoy.http.injected_credentials.generic", &genericv3.Generic{
					Header:     r.Credential.Header,
					Credential: &tlsv3.SdsSecretConfig{Name: credentialSecret(r.Name), SdsConfig: from.config()},
				}),
			})),
			upstreamFilter("envoy.filters.http.upstream_codec", pack(&upstreamcodecv3.UpstreamCodec{})),
		}
	}
	c.TypedExtensionProtocolOptions = protocol(options)
	if t.tls {
		c.TransportSocket = r.tls(t, systemCAs, from)
	}
	return c
}

func upstreamFilter(name string, config *anypb.Any) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}}
}

// tls verifies the target's chain and its name.
func (r HTTPResource) tls(t target, systemCAs string, from source) *corev3.TransportSocket {
	ca := inline(r.CA)
	if len(r.CA) == 0 {
		ca = &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: systemCAs}}
	}
	san := &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exactly(t.serverName)}
	sni := t.serverName
	if _, err := netip.ParseAddr(t.serverName); err == nil {
		san.SanType, sni = tlsv3.SubjectAltNameMatcher_IP_ADDRESS, ""
	}
	var own []*tlsv3.SdsSecretConfig
	if r.Certificate != nil {
		own = []*tlsv3.SdsSecretConfig{{Name: certificateSecret(r.Name), SdsConfig: from.config()}}
	}
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&tlsv3.UpstreamTlsContext{
			Sni: sni,
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsCertificateSdsSecretConfigs: own,
				TlsParams: &tlsv3.TlsParameters{ // as a client Envoy does not go beyond 1.2 by itself
					TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
				AlpnProtocols: []string{"http/1.1"},
				ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{
					ValidationContext: &tlsv3.CertificateValidationContext{
						TrustedCa: ca, MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san}}},
			},
		})},
	}
}

func exactly(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func protocol(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(o)}
}

func http1() *httpv3.HttpProtocolOptions {
	return explicit(&httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}})
}

func http2() *httpv3.HttpProtocolOptions {
	return explicit(&httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}})
}

func explicit(c *httpv3.HttpProtocolOptions_ExplicitHttpConfig) *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: c}}
}
