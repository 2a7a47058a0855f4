package xds

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/prometheus/client_golang/prometheus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"chaperone.dev/chaperone/envoy/envoytest"
	"chaperone.dev/chaperone/internal/access"
)

// A plane is a Server on a socket.
type plane struct {
	*Server
	log     *syncBuffer
	metrics *prometheus.Registry
	socket  string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newPlane(t *testing.T, first *Snapshot) *plane {
	t.Helper()
	p := &plane{log: &syncBuffer{}, metrics: prometheus.NewRegistry(), socket: filepath.Join(envoytest.SocketDir(t), "ads.sock")}
	var err error
	p.Server, err = NewServer(ServerConfig{Logger: slog.New(slog.NewTextHandler(p.log, nil)), Metrics: p.metrics}, first)
	if err != nil {
		t.Fatal(err)
	}
	l := envoytest.Listen(t, p.socket)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return p
}

// An agent is one Envoy, as the stream shows it.
type agent struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node   *corev3.Node
}

func (p *plane) dial(t *testing.T) discoveryv3.AggregatedDiscoveryServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:ads", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.socket)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
}

func (p *plane) connect(t *testing.T, id string) *agent {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	stream, err := p.dial(t).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &agent{t, stream, &corev3.Node{Id: id}}
}

func (a *agent) send(req *discoveryv3.DeltaDiscoveryRequest) {
	a.t.Helper()
	req.Node, a.node = a.node, nil // on the first message only
	if err := a.stream.Send(req); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) receive() *discoveryv3.DeltaDiscoveryResponse {
	a.t.Helper()
	resp, err := a.stream.Recv()
	if err != nil {
		a.t.Fatal(err)
	}
	return resp
}

// fetch subscribes to a type and accepts what comes.
func (a *agent) fetch(typ string, names ...string) *discoveryv3.DeltaDiscoveryResponse {
	a.t.Helper()
	a.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesSubscribe: names})
	resp := a.receive()
	a.ack(resp)
	return resp
}

func (a *agent) ack(r *discoveryv3.DeltaDiscoveryResponse) {
	a.t.Helper()
	a.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

func (a *agent) nack(r *discoveryv3.DeltaDiscoveryResponse, detail string) {
	a.t.Helper()
	a.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(),
		ErrorDetail: &rpcstatus.Status{Code: int32(codes.Internal), Message: detail}})
}

func names(r *discoveryv3.DeltaDiscoveryResponse) []string {
	var out []string
	for _, x := range r.GetResources() {
		out = append(out, x.GetName())
	}
	slices.Sort(out)
	return out
}

// everything fetches all that a full snapshot has.
func (a *agent) everything() {
	a.t.Helper()
	a.fetch(resourcev3.ClusterType)
	a.fetch(resourcev3.ListenerType)
	a.fetch(resourcev3.RouteType, "https")
	a.fetch(resourcev3.SecretType, "clients", "gateway", "http/billing/credential", "http/cluster/certificate", "http/mail/credential")
}

// eventually polls for what the server learns from a stream in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(10 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func (p *plane) only(t *testing.T) NodeStatus {
	t.Helper()
	nodes := p.Status().Nodes
	if len(nodes) != 1 {
		t.Fatalf("%d nodes", len(nodes))
	}
	return nodes[0]
}

func TestDelta(t *testing.T) {
	t.Parallel()
	c := full(t)
	first := build(t, c)
	p := newPlane(t, first)
	a := p.connect(t, "envoy-1")
	if got := names(a.fetch(resourcev3.ClusterType)); !slices.Equal(got, []string{
		"chaperone-api", "chaperone-kubernetes", "chaperone-postgres", "chaperone-services", "chaperone-ssh", "chaperone-ssh-connect", "http/billing", "http/cluster", "http/mail", "http/wiki", "otlp"}) {
		t.Errorf("clusters %v", got)
	}
	a.fetch(resourcev3.ListenerType)
	a.fetch(resourcev3.RouteType, "https")
	if p.only(t).InSync {
		t.Error("in sync without the secrets")
	}
	a.fetch(resourcev3.SecretType, "clients", "gateway", "http/billing/credential", "http/cluster/certificate", "http/mail/credential")
	eventually(t, "in sync", func() bool { return p.only(t).InSync })

	// Only what changed is sent.
	c.Revision = "r2"
	c.HTTP[1].Credential = &Credential{Header: "X-Api-Key", Value: access.NewSecret("golden-rotated")}
	next := build(t, c)
	if err := p.Set(next); err != nil {
		t.Fatal(err)
	}
	changed := a.receive()
	if changed.GetTypeUrl() != resourcev3.SecretType || !slices.Equal(names(changed), []string{"http/billing/credential"}) {
		t.Fatalf("sent %s %v", changed.GetTypeUrl(), names(changed))
	}
	if n := p.only(t); n.InSync {
		t.Errorf("in sync before the answer: %+v", n)
	}
	a.ack(changed)
	eventually(t, "in sync again", func() bool { return p.only(t).InSync })
	st := p.Status()
	if st.Revision != "r2" || !maps.Equal(st.Nodes[0].Acked, st.Versions) || st.Nodes[0].ID != "envoy-1" || st.Nodes[0].Connected.IsZero() {
		t.Errorf("status %+v", st)
	}
}

func TestReconnectIsRecognised(t *testing.T) {
	t.Parallel()
	s := build(t, full(t))
	p := newPlane(t, s)
	a := p.connect(t, "envoy-1")
	for _, typ := range served {
		req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ, InitialResourceVersions: s.cache.GetVersionMap(typ)}
		if typ == resourcev3.RouteType || typ == resourcev3.SecretType {
			req.ResourceNamesSubscribe = slices.Collect(maps.Keys(req.InitialResourceVersions))
		}
		a.send(req)
	}
	for range 2 { // clusters and listeners are answered, with nothing in them
		resp := a.receive()
		if len(resp.GetResources())+len(resp.GetRemovedResources()) != 0 {
			t.Errorf("sent again: %s %v", resp.GetTypeUrl(), names(resp))
		}
		a.ack(resp)
	}
	eventually(t, "in sync", func() bool { return p.only(t).InSync })
}

func TestNACK(t *testing.T) {
	t.Parallel()
	c := full(t)
	c.HTTP[0].Host, c.HTTP[2].Host = "wiki", "mail" // so that the routes stay as they are
	p := newPlane(t, build(t, c))
	a := p.connect(t, "envoy-1")
	a.everything()
	eventually(t, "in sync", func() bool { return p.only(t).InSync })

	c.HTTP[0].Address, c.HTTP[2].Address = "http://a.internal", "http://b.internal"
	bad := build(t, c)
	if err := p.Set(bad); err != nil {
		t.Fatal(err)
	}
	resp := a.receive()
	a.nack(resp, "Error adding/updating cluster(s) http/wiki: it smells"+strings.Repeat(" a lot", 1000))
	eventually(t, "the rejection shows", func() bool { return len(p.only(t).Rejected) == 1 })
	r := p.only(t).Rejected[0]
	if r.Type != "Cluster" || !slices.Equal(r.Resources, []string{"http/mail", "http/wiki"}) || !strings.Contains(r.Detail, "it smells") ||
		len(r.Detail) > maxDetail || r.Version != bad.versions[resourcev3.ClusterType] || p.only(t).InSync {
		t.Errorf("rejection %+v", r)
	}
	if log := p.log.String(); !strings.Contains(log, "resource=http/wiki") || strings.Contains(log, "resource=http/mail") {
		t.Errorf("the log does not name what was rejected, or names more: %s", log)
	}
	if got := p.nacks(t); got != 1 {
		t.Errorf("%v counted", got)
	}

	c.HTTP[0].Address, c.HTTP[2].Address = "http://c.internal", "http://d.internal"
	if err := p.Set(build(t, c)); err != nil {
		t.Fatal(err)
	}
	a.ack(a.receive())
	eventually(t, "the rejection goes", func() bool { n := p.only(t); return len(n.Rejected) == 0 && n.InSync })
}

func (p *plane) nacks(t *testing.T) (sum float64) {
	t.Helper()
	families, err := p.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "chaperone_xds_nacks_total" {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// TestRejectedIsNotSentAgain: the state-of-the-world form would send it without
// end.
func TestRejectedIsNotSentAgain(t *testing.T) {
	t.Parallel()
	p := newPlane(t, build(t, full(t)))
	a := p.connect(t, "envoy-1")
	a.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	a.nack(a.receive(), "no")
	// What comes next is the answer to the next question.
	a.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ListenerType})
	if resp := a.receive(); resp.GetTypeUrl() != resourcev3.ListenerType {
		t.Errorf("sent %s", resp.GetTypeUrl())
	}
}

func TestOnlyDeltaIsServed(t *testing.T) {
	t.Parallel()
	p := newPlane(t, build(t, full(t)))
	stream, err := p.dial(t).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v", err)
	}
}

func TestNodesComeAndGo(t *testing.T) {
	t.Parallel()
	p := newPlane(t, build(t, full(t)))
	b, a := p.connect(t, "b"), p.connect(t, "a")
	b.everything()
	a.everything()
	eventually(t, "both", func() bool {
		n := p.Status().Nodes
		return len(n) == 2 && n[0].ID == "a" && n[1].ID == "b" && n[0].InSync && n[1].InSync
	})
	if err := b.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.stream.Recv(); err != io.EOF {
		t.Errorf("got %v", err)
	}
	eventually(t, "one", func() bool { n := p.Status().Nodes; return len(n) == 1 && n[0].ID == "a" })
}

func TestServerNeedsASnapshot(t *testing.T) {
	t.Parallel()
	if _, err := NewServer(ServerConfig{}, nil); err == nil {
		t.Error("a server without a snapshot would empty the Envoys that connect")
	}
	s, err := NewServer(ServerConfig{}, build(t, full(t)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Set(nil); err == nil {
		t.Error("a missing snapshot is set")
	}
}

func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	n, err := newNodes(ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(maxNodes) {
		if err := n.OnDeltaStreamOpen(t.Context(), i, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.OnDeltaStreamOpen(t.Context(), maxNodes, ""); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	n.OnDeltaStreamClosed(0, nil)
	if err := n.OnDeltaStreamOpen(t.Context(), maxNodes, ""); err != nil {
		t.Error(err)
	}
}

func TestPanicEndsTheStream(t *testing.T) {
	t.Parallel()
	n, err := newNodes(ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	err = n.recovering(nil, nil, nil, func(any, grpc.ServerStream) error { panic("x") })
	if status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
}
