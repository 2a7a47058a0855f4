package xds

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Bounds on what clients of the stream can make the server remember.
const (
	maxNodes  = 1024
	maxDetail = 4 << 10 // bytes of one rejection
)

// Status is where the snapshot and the connected Envoys stand.
type Status struct {
	Revision string            `json:"revision"`
	Versions map[string]string `json:"versions"` // by short type name: Cluster, Listener, …
	Nodes    []NodeStatus      `json:"nodes"`    // ordered by id, then by the time of connection
}

// A NodeStatus is one connected Envoy.
type NodeStatus struct {
	ID        string            `json:"id"`
	Cluster   string            `json:"cluster,omitempty"`
	Version   string            `json:"envoy_version,omitempty"`
	Connected time.Time         `json:"connected"`
	Acked     map[string]string `json:"acked"`              // by short type name: the last version it accepted
	InSync    bool              `json:"in_sync"`            // it has accepted all of the current snapshot
	Rejected  []Rejection       `json:"rejected,omitempty"` // by type; gone when a later version is accepted
}

// A Rejection is what an Envoy would not take, in its own words. It keeps the
// last version that it did take.
type Rejection struct {
	Type      string    `json:"type"`
	Version   string    `json:"version"`
	Resources []string  `json:"resources"` // those that were in the rejected message
	Detail    string    `json:"detail"`
	Time      time.Time `json:"time"`
}

// Status reports on the Envoys that are connected now.
func (s *Server) Status() Status {
	s.mu.RLock()
	current := s.current
	s.mu.RUnlock()
	st := Status{Revision: current.Revision(), Versions: map[string]string{}}
	for t, v := range current.versions {
		st.Versions[short(t)] = v
	}
	st.Nodes = s.nodes.status(current)
	return st
}

// nodes follows every stream through the callbacks of the delta server.
type nodes struct {
	log   *slog.Logger
	now   func() time.Time
	nacks *prometheus.CounterVec

	mu      sync.Mutex
	streams map[int64]*stream
}

// A stream is what one connected Envoy has said.
type stream struct {
	node      *corev3.Node
	connected time.Time
	types     map[string]*typeState // by type URL
}

// A typeState is one type on one stream. At most one message is under way, for
// the cache waits for its answer.
type typeState struct {
	acked    string            // version of the last message accepted
	held     map[string]string // resource → version that the Envoy has accepted
	rejected *Rejection
	sent     *sent
}

// sent is a message that has not been answered yet.
type sent struct {
	nonce, version string
	resources      map[string]string
	removed        []string
}

func newNodes(cfg ServerConfig) (*nodes, error) {
	n := &nodes{log: cfg.Logger, now: cfg.Now, streams: map[int64]*stream{},
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_xds_nacks_total", Help: "Messages that an Envoy rejected, by resource type."}, []string{"type"})}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if n.now == nil {
		n.now = time.Now
	}
	for _, t := range served {
		n.nacks.WithLabelValues(short(t))
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(n.nacks); err != nil {
			return nil, fmt.Errorf("xds: %w", err)
		}
		connected := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "chaperone_xds_nodes", Help: "Envoys connected to the control plane."}, n.count)
		if err := cfg.Metrics.Register(connected); err != nil {
			return nil, fmt.Errorf("xds: %w", err)
		}
	}
	return n, nil
}

func (n *nodes) count() float64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return float64(len(n.streams))
}

// OnDeltaStreamOpen notes a new stream.
func (n *nodes) OnDeltaStreamOpen(_ context.Context, id int64, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.streams) >= maxNodes {
		return status.Errorf(codes.ResourceExhausted, "more than %d streams", maxNodes)
	}
	n.streams[id] = &stream{connected: n.now(), types: map[string]*typeState{}}
	return nil
}

// OnDeltaStreamClosed forgets the stream.
func (n *nodes) OnDeltaStreamClosed(id int64, node *corev3.Node) {
	n.mu.Lock()
	delete(n.streams, id)
	n.mu.Unlock()
	n.log.Info("envoy disconnected from the control plane", "node", node.GetId())
}

// OnStreamDeltaRequest takes an answer: an ACK, a NACK or a new subscription.
func (n *nodes) OnStreamDeltaRequest(id int64, req *discoveryv3.DeltaDiscoveryRequest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.streams[id]
	if s == nil {
		return status.Error(codes.Internal, "unknown stream")
	}
	if s.node == nil && req.GetNode() != nil {
		s.node = req.GetNode()
		n.log.Info("envoy connected to the control plane", "node", s.node.GetId(), "version", envoyVersion(s.node))
	}
	t := s.state(req.GetTypeUrl())
	if t == nil {
		return nil
	}
	// After a reconnect Envoy says what it has from before.
	maps.Copy(t.held, req.GetInitialResourceVersions())
	last := t.sent
	if last == nil || req.GetResponseNonce() != last.nonce {
		return nil
	}
	t.sent = nil
	if req.GetErrorDetail() == nil {
		t.acked, t.rejected = last.version, nil
		maps.Copy(t.held, last.resources)
		for _, name := range last.removed {
			delete(t.held, name)
		}
		return nil
	}
	detail := req.GetErrorDetail().GetMessage()
	t.rejected = &Rejection{Type: short(req.GetTypeUrl()), Version: last.version, Time: n.now(),
		Resources: slices.Sorted(maps.Keys(last.resources)), Detail: detail[:min(len(detail), maxDetail)]}
	n.surface(s.node.GetId(), *t.rejected)
	return nil
}

// surface logs and counts a rejection.
func (n *nodes) surface(node string, r Rejection) {
	n.nacks.WithLabelValues(r.Type).Inc()
	for _, name := range culprits(r) {
		n.log.Error("envoy rejects a resource and keeps the last good one",
			"node", node, "type", r.Type, "resource", name, "version", r.Version, "detail", r.Detail)
	}
}

// OnStreamDeltaResponse notes what is sent.
func (n *nodes) OnStreamDeltaResponse(id int64, _ *discoveryv3.DeltaDiscoveryRequest, resp *discoveryv3.DeltaDiscoveryResponse) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.streams[id]
	if s == nil {
		return
	}
	t := s.state(resp.GetTypeUrl())
	if t == nil {
		return
	}
	m := &sent{nonce: resp.GetNonce(), version: resp.GetSystemVersionInfo(), removed: resp.GetRemovedResources(),
		resources: make(map[string]string, len(resp.GetResources()))}
	for _, r := range resp.GetResources() {
		m.resources[r.GetName()] = r.GetVersion()
	}
	t.sent = m
}

// state is nil for a type that is not served.
func (s *stream) state(typeURL string) *typeState {
	if !slices.Contains(served, typeURL) {
		return nil
	}
	t := s.types[typeURL]
	if t == nil {
		t = &typeState{held: map[string]string{}}
		s.types[typeURL] = t
	}
	return t
}

// culprits are the resources of a rejected message that Envoy's words name; all
// of them when it names none.
func culprits(r Rejection) []string {
	var named []string
	for _, name := range r.Resources {
		if strings.Contains(r.Detail, name) {
			named = append(named, name)
		}
	}
	if len(named) == 0 {
		return r.Resources
	}
	return named
}

func (n *nodes) status(current *Snapshot) []NodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]NodeStatus, 0, len(n.streams))
	for _, s := range n.streams {
		st := NodeStatus{ID: s.node.GetId(), Cluster: s.node.GetCluster(), Version: envoyVersion(s.node),
			Connected: s.connected, Acked: map[string]string{}, InSync: true}
		for _, typeURL := range served {
			t := s.state(typeURL)
			version := t.acked
			if holds(t.held, current.cache.GetVersionMap(typeURL)) {
				version = current.versions[typeURL]
			} else {
				st.InSync = false
			}
			if version != "" {
				st.Acked[short(typeURL)] = version
			}
			if t.rejected != nil {
				st.Rejected = append(st.Rejected, *t.rejected)
			}
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b NodeStatus) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), a.Connected.Compare(b.Connected))
	})
	return out
}

// holds reports whether held has every resource of want at its version.
func holds(held, want map[string]string) bool {
	for name, version := range want {
		if held[name] != version {
			return false
		}
	}
	return true
}

func envoyVersion(n *corev3.Node) string {
	v := n.GetUserAgentBuildVersion().GetVersion()
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
}

// short is Cluster for type.googleapis.com/envoy.config.cluster.v3.Cluster.
func short(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }
