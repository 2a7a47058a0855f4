package envoy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	connlimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// DefaultMaxConnections is how many client connections Envoy accepts when
// Config says nothing. Each costs up to two file descriptors.
const DefaultMaxConnections = 8192

// stuckTime is how long a thread of Envoy may not come back to its loop.
const stuckTime = 30 * time.Second

// adsCluster is the one static cluster: the way to the control plane.
const adsCluster = "chaperone-ads"

// Config is what an Envoy needs to know before it meets its control plane.
type Config struct {
	NodeID  string // unique among the Envoys of one control plane
	Cluster string // "" means "chaperone"
	ADS     ADS

	// AdminSocket is the path of Envoy's admin interface, a unix socket of
	// mode 0600. "" means no admin interface.
	AdminSocket string

	MaxConnections int    // client connections; 0 means DefaultMaxConnections
	MaxHeapBytes   uint64 // above it Envoy takes no new requests; 0 means no limit
}

// ADS is where the control plane listens: Socket, or Address with TLS. A TCP
// control plane without mutual TLS is refused: its stream carries private keys.
type ADS struct {
	Socket  string // path of a unix socket
	Address string // host:port
	TLS     *ClientTLS
}

// ClientTLS names the files of a mutual TLS client; Envoy reads them itself.
type ClientTLS struct {
	CAFile, CertFile, KeyFile string
	ServerName                string // verified against the server's certificate; "" means the host of the address
}

// Bootstrap returns the configuration file, as JSON, of an Envoy that takes
// everything else from the control plane by delta ADS. It has no listeners and
// holds no secrets.
func Bootstrap(c Config) ([]byte, error) {
	if c.NodeID == "" {
		return nil, errors.New("bootstrap: a node id is required")
	}
	ads, err := c.ADS.cluster()
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	overload, err := c.overload()
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	name := c.Cluster
	if name == "" {
		name = "chaperone"
	}
	b := &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: c.NodeID, Cluster: name},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
						ClusterName: adsCluster,
						// By default the pause before the next attempt grows to half a minute.
						RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
							BaseInterval: durationpb.New(100 * time.Millisecond), MaxInterval: durationpb.New(2 * time.Second)}},
					}}}},
			},
			CdsConfig: fromADS(),
			LdsConfig: fromADS(),
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{ads}},
		OverloadManager: overload,
		// An Envoy that is stuck ends itself, and its supervisor starts another.
		Watchdogs: &bootstrapv3.Watchdogs{
			MainThreadWatchdog: &bootstrapv3.Watchdog{KillTimeout: durationpb.New(stuckTime)},
			WorkerWatchdog:     &bootstrapv3.Watchdog{KillTimeout: durationpb.New(stuckTime)},
		},
	}
	if c.AdminSocket != "" {
		b.Admin = &bootstrapv3.Admin{Address: pipe(c.AdminSocket, 0o600)}
	}
	return marshal(b)
}

// fromADS asks for a resource type on the aggregated stream. Envoy waits for
// the first answer as long as it takes: it must not come up half configured.
func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(0),
	}
}

func (a ADS) cluster() (*clusterv3.Cluster, error) {
	options, err := anypb.New(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						// A control plane that hangs is noticed and dialled anew.
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Interval: durationpb.New(5 * time.Second), Timeout: durationpb.New(5 * time.Second)},
					}}}}})
	if err != nil {
		return nil, err
	}
	cluster := &clusterv3.Cluster{
		Name:           adsCluster,
		ConnectTimeout: durationpb.New(2 * time.Second),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
	}
	var address *corev3.Address
	switch {
	case a.Socket != "" && a.Address != "":
		return nil, errors.New("the control plane has a socket or an address, not both")
	case a.Socket != "":
		address = pipe(a.Socket, 0)
		cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	case a.Address == "":
		return nil, errors.New("the control plane needs a socket or an address")
	case a.TLS == nil:
		return nil, errors.New("a control plane on TCP needs mutual TLS")
	default:
		host, port, err := splitAddress(a.Address)
		if err != nil {
			return nil, fmt.Errorf("control plane address: %w", err)
		}
		if cluster.TransportSocket, err = a.TLS.socket(host); err != nil {
			return nil, err
		}
		address = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
		cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS}
		cluster.DnsLookupFamily = clusterv3.Cluster_ALL
		if _, err := netip.ParseAddr(host); err == nil {
			cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		}
	}
	cluster.LoadAssignment = &endpointv3.ClusterLoadAssignment{
		ClusterName: adsCluster,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}}}}}},
	}
	return cluster, nil
}

func (t *ClientTLS) socket(host string) (*corev3.TransportSocket, error) {
	if t.CAFile == "" || t.CertFile == "" || t.KeyFile == "" {
		return nil, errors.New("mutual TLS to the control plane needs a CA, a certificate and a key")
	}
	name := t.ServerName
	if name == "" {
		name = host
	}
	san := &tlsv3.SubjectAltNameMatcher{
		SanType: tlsv3.SubjectAltNameMatcher_DNS,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}},
	}
	context := &tlsv3.UpstreamTlsContext{Sni: name}
	if _, err := netip.ParseAddr(name); err == nil {
		san.SanType, context.Sni = tlsv3.SubjectAltNameMatcher_IP_ADDRESS, ""
	}
	context.CommonTlsContext = &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{ // as a client Envoy does not go beyond 1.2 by itself
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: file(t.CertFile), PrivateKey: file(t.KeyFile)}},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: file(t.CAFile), MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san}}},
	}
	any, err := anypb.New(context)
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: any}}, nil
}

func (c Config) overload() (*overloadv3.OverloadManager, error) {
	limit := c.MaxConnections
	if limit <= 0 {
		limit = DefaultMaxConnections
	}
	connections, err := anypb.New(&connlimitv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: int64(limit)})
	if err != nil {
		return nil, err
	}
	m := &overloadv3.OverloadManager{
		RefreshInterval: durationpb.New(250 * time.Millisecond),
		ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name:       "envoy.resource_monitors.global_downstream_max_connections",
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: connections},
		}},
	}
	if c.MaxHeapBytes == 0 {
		return m, nil
	}
	const monitor = "envoy.resource_monitors.fixed_heap"
	heap, err := anypb.New(&heapv3.FixedHeapConfig{MaxHeapSizeBytes: c.MaxHeapBytes})
	if err != nil {
		return nil, err
	}
	m.ResourceMonitors = append(m.ResourceMonitors, &overloadv3.ResourceMonitor{
		Name: monitor, ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: heap}})
	for _, a := range []struct {
		action string
		at     float64
	}{{"envoy.overload_actions.shrink_heap", 0.9}, {"envoy.overload_actions.stop_accepting_requests", 0.95}} {
		m.Actions = append(m.Actions, &overloadv3.OverloadAction{Name: a.action, Triggers: []*overloadv3.Trigger{{
			Name:         monitor,
			TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: a.at}}}}})
	}
	return m, nil
}

func pipe(path string, mode uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path, Mode: mode}}}
}

func file(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

func splitAddress(hostport string) (string, uint32, error) {
	host, p, err := net.SplitHostPort(hostport)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 || host == "" {
		return "", 0, fmt.Errorf("%q is not host:port", hostport)
	}
	return host, uint32(port), nil
}

// marshal writes m as JSON that is the same for the same m: protojson alone
// varies its white space on purpose.
func marshal(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
