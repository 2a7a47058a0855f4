package tapsink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/quota"
)

// The bounds that Config leaves to us.
const (
	DefaultRecordBytes = 1 << 20
	DefaultIdle        = 15 * time.Minute
	DefaultMaxStreams  = 4096
)

const (
	endTimeout = 5 * time.Second // to record the end of a response whose client has left
	maxMaskers = 256             // compiled sets of masks kept for the next response
)

// A Recorder stores events. After an error of Append what they tell of must
// not happen.
type Recorder interface {
	Append(ctx context.Context, d access.Durability, evs ...access.Event) error
}

// Config is what a Server needs. Recorder is required.
type Config struct {
	Recorder   Recorder
	Clock      func() time.Time      // nil means time.Now
	Logger     *slog.Logger          // nil means silent
	Registerer prometheus.Registerer // nil means none

	// Namespace is the one of the dynamic metadata with the decision; "" means
	// DefaultNamespace.
	Namespace string
	// RecordBytes is how much of the body of one response is recorded; of the
	// rest only the length is. 0 means DefaultRecordBytes.
	RecordBytes int64
	// Idle ends a response in which nothing happened for this long; 0 means
	// DefaultIdle. A watch of Kubernetes, or a log that is followed, ends with
	// its session only.
	Idle time.Duration
	// MaxStreams is how many responses may be under way; more are refused. 0
	// means DefaultMaxStreams.
	MaxStreams int
	// Literals returns the secrets of a resource that no response may show,
	// whatever policy says: its credential. nil means none.
	Literals func(resource string) *mask.Literals
	// Watch returns a context that ends when the session does, and a function
	// to call when the response is over: until then the session is in use. The
	// response
	// ends with it, and its cause is recorded. nil means that sessions are not
	// watched.
	Watch func(session string) (ended context.Context, release func())
	// Usage counts for limits of a session and of an hour; without it answers
	// to requests with such a limit are withheld.
	Usage Usage
}

// Usage counts what answers use of the limits that hold beyond one of them:
// *quota.Service.
type Usage interface {
	Resume(session, account string, limits access.Limits) *quota.Use
}

// A Server answers Envoy's ext_proc filter (envoy.service.ext_proc.v3). It is
// safe for concurrent use.
type Server struct {
	extprocv3.UnimplementedExternalProcessorServer
	cfg     Config
	log     *slog.Logger
	metrics metrics
	slots   chan struct{}
	readers sync.WaitGroup

	mu      sync.Mutex
	maskers map[string]*mask.Masker // by the text that they were compiled from
}

// New checks cfg and returns a Server.
func New(cfg Config) (*Server, error) {
	if cfg.Recorder == nil {
		return nil, errors.New("tapsink: a recorder is required")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Namespace == "" {
		cfg.Namespace = DefaultNamespace
	}
	if cfg.RecordBytes <= 0 {
		cfg.RecordBytes = DefaultRecordBytes
	}
	if cfg.Idle <= 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = DefaultMaxStreams
	}
	s := &Server{cfg: cfg, log: cfg.Logger, slots: make(chan struct{}, cfg.MaxStreams), maskers: map[string]*mask.Masker{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.metrics.register(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("tapsink: %w", err)
	}
	return s, nil
}

// Close waits for what the streams have left running. Stop the gRPC server
// first: only then do they end.
func (s *Server) Close() { s.readers.Wait() }

// errWithheld is all that Envoy learns; the reason is in the log and in the
// recording.
var errWithheld = status.Error(codes.Aborted, "response withheld")

// Process handles one response. It returns nil only after the whole response
// was answered: before that, OK would let the rest through unmasked.
func (s *Server) Process(stream extprocv3.ExternalProcessor_ProcessServer) (err error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.metrics.responses.WithLabelValues("refused").Inc()
		return status.Error(codes.ResourceExhausted, "too many responses")
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()

	r := &response{server: s, started: s.cfg.Clock()}
	defer func() {
		if fault := recover(); fault != nil {
			s.log.Error("panic while processing a response", "panic", fault, "request", r.decision.request, "stack", string(debug.Stack()))
			err = errors.New("internal fault")
		}
		err = r.finish(stream.Context(), err)
	}()
	return s.serve(stream, r)
}

// serve passes messages to r and its answers back until the stream ends.
func (s *Server) serve(stream extprocv3.ExternalProcessor_ProcessServer, r *response) error {
	messages := s.receive(stream)
	idle := time.NewTimer(s.cfg.Idle)
	defer idle.Stop()
	session, release := context.Background(), func() {}
	defer func() { release() }()
	for {
		var in received
		select {
		case in = <-messages:
		case <-stream.Context().Done():
			in.err = context.Cause(stream.Context())
		case <-idle.C:
			return fmt.Errorf("nothing happened for %v", s.cfg.Idle)
		case <-session.Done():
			return fmt.Errorf("session ended: %w", context.Cause(session))
		}
		if in.err != nil {
			return fmt.Errorf("%w: %w", errLeft, in.err)
		}
		out, err := r.handle(stream.Context(), in.message)
		if err != nil {
			return err
		}
		if r.decision.session != "" && s.cfg.Watch != nil && !r.watched {
			r.watched = true
			session, release = s.cfg.Watch(r.decision.session)
		}
		if session.Err() != nil { // before this, or meanwhile
			return fmt.Errorf("session ended: %w", context.Cause(session))
		}
		if err := stream.Send(out); err != nil {
			return fmt.Errorf("%w: %w", errLeft, err)
		}
		// Only what was sent counts: a response whose last answer did not
		// reach Envoy is not over, and OK would let its last piece through.
		r.answered = r.phase == ended || r.phase == refused
		if r.decision.quiet() && r.watched { // its session ends it
			idle.Stop()
		} else {
			idle.Reset(s.cfg.Idle)
		}
	}
}

// errLeft says that Envoy ended the stream, as it does when the client leaves.
var errLeft = errors.New("cut before its end")

type received struct {
	message *extprocv3.ProcessingRequest
	err     error
}

// receive reads the stream until it ends, which it does at the latest when
// Process has returned. The channel holds nothing: at most one message waits.
func (s *Server) receive(stream extprocv3.ExternalProcessor_ProcessServer) <-chan received {
	messages := make(chan received)
	s.readers.Go(func() {
		for {
			message, err := stream.Recv()
			select {
			case messages <- received{message, err}:
			case <-stream.Context().Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return messages
}

// masker compiles the masks of an answer of that status, or finds them compiled.
func (s *Server) masker(d decision, status int) (*mask.Masker, error) {
	text, compile := d.masksOf(status)
	s.mu.Lock()
	m := s.maskers[text]
	s.mu.Unlock()
	if m != nil {
		return m, nil
	}
	m, err := compile()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.maskers) >= maxMaskers {
		clear(s.maskers)
	}
	s.maskers[text] = m
	return m, nil
}
