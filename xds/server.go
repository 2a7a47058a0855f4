package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	deltav3 "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// KeepaliveInterval is how often Envoy asks a gRPC service of chaperone whether
// it is alive, and how long it waits for the answer.
const KeepaliveInterval = 5 * time.Second

// ServerOptions are what a gRPC server needs to serve an Envoy configured by
// this package: it must bear the keepalive pings, which grpc-go otherwise
// punishes by closing the connection, must not bound concurrent streams below
// the number of requests held and responses open, and must take a Check with a
// body of MaxKubernetesBody.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: KeepaliveInterval / 2, PermitWithoutStream: true}),
		grpc.MaxConcurrentStreams(manyRequests),
		grpc.MaxRecvMsgSize(MaxKubernetesBody + 1<<20 + 4*maxHeadersKB<<10),
	}
}

// everyNode gives all Envoys the same snapshot.
const everyNode = "*"

type sameForAll struct{}

// ID ignores the node.
func (sameForAll) ID(*corev3.Node) string { return everyNode }

// ServerConfig is what a Server needs besides its first snapshot.
type ServerConfig struct {
	Logger  *slog.Logger          // nil means silent
	Metrics prometheus.Registerer // nil means none
	Now     func() time.Time      // nil means time.Now
}

// A Server gives every Envoy that connects the current snapshot, and each new
// one as it is set, over one delta stream. It is safe for concurrent use.
type Server struct {
	cache cachev3.SnapshotCache
	nodes *nodes

	mu      sync.RWMutex
	current *Snapshot
}

// NewServer returns a Server that serves first. There is no server without a
// snapshot: one that came up empty would take from Envoy what it has.
func NewServer(cfg ServerConfig, first *Snapshot) (*Server, error) {
	if first == nil {
		return nil, errors.New("xds: a server needs a snapshot to serve")
	}
	n, err := newNodes(cfg)
	if err != nil {
		return nil, err
	}
	s := &Server{cache: cachev3.NewSnapshotCache(true, sameForAll{}, silent{}), nodes: n}
	if err := s.Set(first); err != nil {
		return nil, err
	}
	return s, nil
}

// Set replaces the snapshot whole. Every connected Envoy is sent what changed;
// Set does not wait for their answers.
func (s *Server) Set(next *Snapshot) error {
	if next == nil {
		return errors.New("xds: there is no snapshot to set")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.cache.SetSnapshot(context.Background(), everyNode, next.cache); err != nil {
		return fmt.Errorf("xds: set snapshot: %w", err)
	}
	s.current = next
	return nil
}

// Serve answers on l until ctx ends, and closes l. Whoever can connect to l
// gets every secret of the snapshot: l is a socket of mode 0600 or demands
// client certificates.
func (s *Server) Serve(ctx context.Context, l net.Listener, opts ...grpc.ServerOption) error {
	opts = append(append(ServerOptions(), grpc.StreamInterceptor(s.nodes.recovering)), opts...)
	g := grpc.NewServer(opts...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, &ads{delta: deltav3.NewServer(ctx, s.cache, s.nodes)})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		g.Stop() // streams never end by themselves
	}()
	err := g.Serve(l)
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	return fmt.Errorf("xds: serve: %w", err)
}

// ads serves the delta form alone: the state-of-the-world form sends a rejected
// snapshot again without end.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	delta deltav3.Server
}

// DeltaAggregatedResources is one Envoy's stream.
func (a *ads) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return a.delta.DeltaStreamHandler(stream, resourcev3.AnyType)
}

// recovering ends the stream of a handler that panics; Envoy keeps what it has.
func (n *nodes) recovering(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			n.log.Error("xds stream panicked", "panic", p, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "internal error")
		}
	}()
	return handler(srv, ss)
}

// silent is the log of the cache: what it says of watches helps nobody.
type silent struct{}

func (silent) Debugf(string, ...any) {}
func (silent) Infof(string, ...any)  {}
func (silent) Warnf(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
