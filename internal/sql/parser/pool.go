package parser

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
)

// A canary is parsed by every worker before it serves, after every statement
// that went deep, and now and then. A worker whose answer differs is killed.
const (
	canary       = `WITH w AS (SELECT a.b, count(*) AS n FROM public.t AS a WHERE a.c = 'x' AND a.d IN (1, 2.5, $1) GROUP BY 1) SELECT w.*, CASE WHEN n > 1 THEN 'é'::text END FROM w JOIN u USING (b) ORDER BY 2 DESC`
	canaryDigest = "08775bddf2f1ce343fb4dccf65d6918c12033fef93ea955503d9a07b21b7393c" // of the whole answer
	canaryEvery  = 64                                                                 // statements
)

const (
	warmUp        = 60 * time.Second // for a worker to compile the grammar, on a busy machine
	startPatience = 60 * time.Second // for a statement to wait for a worker that is starting
	firstPause    = 100 * time.Millisecond
	longestPause  = 5 * time.Second
)

// A Pool owns the worker processes. It is safe for concurrent use.
type Pool struct {
	config  Config
	log     *slog.Logger
	metrics metrics

	queue   chan struct{} // one place for each statement admitted
	serving chan struct{} // one place for each statement being parsed
	idle    idleWorkers
	warming chan struct{} // one place for each worker that may start at once

	ctx     context.Context // of the pool's life, for its own goroutines only
	stop    context.CancelFunc
	keepers sync.WaitGroup // one for each worker
	starter starter        // of workers of our own
}

// NewPool starts the workers, or finds those of a Nursery, and returns at once;
// Parse waits for the first to be warm. Close ends its own, and leaves those of
// a Nursery to the next pool.
func NewPool(c Config) (*Pool, error) {
	if (len(c.Command) == 0) == (c.Nursery == "") {
		return nil, errors.New("parser pool: needs the command of workers or the folder of a nursery")
	}
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("parser pool: %w", err)
	}
	kept, err := keptSockets(c.Nursery)
	if err != nil {
		return nil, fmt.Errorf("parser pool: %w", err)
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, fmt.Errorf("parser pool: %w", err)
	}
	if len(kept) > 0 {
		c.Spares = min(c.Spares, len(kept)-1)
		c.Workers = len(kept) - c.Spares
	}
	workers := c.Workers + c.Spares
	ctx, stop := context.WithCancel(context.Background())
	p := &Pool{
		config: c, log: c.Logger, metrics: m, ctx: ctx, stop: stop,
		queue: make(chan struct{}, c.Workers+c.Queue), serving: make(chan struct{}, c.Workers),
		idle: idleWorkers{wake: make(chan struct{})}, starter: starter{requests: make(chan startRequest)},
	}
	p.keepers.Add(workers) // before the starter, which stays for as long as there are keepers
	if len(kept) > 0 {
		p.warming = make(chan struct{}, workers) // the nursery sees to their order
		for _, socket := range kept {
			go p.keepWorker(func() (*worker, error) { return p.visit(socket) })
		}
		return p, nil
	}
	p.starter.done.Add(1)
	go p.starter.run(&p.keepers)
	// One worker warms up at a time: compiling takes a whole core and 250 MB.
	p.warming = make(chan struct{}, 1)
	for range workers {
		go p.keepWorker(p.startWorker)
	}
	return p, nil
}

// complete fills in the defaults and refuses what makes no sense.
func (c *Config) complete() error {
	for _, d := range []struct {
		name             string
		value            *int
		otherwise, limit int
	}{
		{"workers", &c.Workers, 2, 64},
		{"spares", &c.Spares, 1, 64},
		{"queue", &c.Queue, 64, 1 << 16},
		{"max bytes", &c.MaxBytes, 64 << 10, maxMaxBytes},
	} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
		if *d.value < 0 || *d.value > d.limit {
			return fmt.Errorf("%s %d is not between 1 and %d", d.name, *d.value, d.limit)
		}
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	if c.Timeout < 0 {
		return fmt.Errorf("timeout %s is negative", c.Timeout)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Ready blocks until a worker is warm or ctx ends.
func (p *Pool) Ready(ctx context.Context) error {
	_, err := p.Parse(ctx, "select 1")
	return err
}

// Close ends every worker of its own and waits for them. Statements in flight get
// ErrUnavailable or are refused.
func (p *Pool) Close() {
	p.stop()
	p.keepers.Wait()
	p.starter.done.Wait()
}

func (p *Pool) parse(ctx context.Context, text string) (*Result, error) {
	if e := checkText(text, p.config.MaxBytes); e != nil {
		return nil, e
	}
	select {
	case p.queue <- struct{}{}:
		defer func() { <-p.queue }()
	default:
		p.metrics.refused.Inc()
		return nil, fmt.Errorf("%w: %d statements are waiting", ErrUnavailable, cap(p.queue))
	}
	select {
	case p.serving <- struct{}{}:
		defer func() { <-p.serving }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-p.ctx.Done():
		return nil, fmt.Errorf("%w: closed", ErrUnavailable)
	}
	w, err := p.takeIdle(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	result, err := p.run(w, text)
	p.metrics.seconds.Observe(time.Since(began).Seconds())
	return result, err
}

// takeIdle waits for a warm worker. The caller hands it back by run.
func (p *Pool) takeIdle(ctx context.Context) (*worker, error) {
	patience := time.NewTimer(startPatience)
	defer patience.Stop()
	for {
		w, wake := p.idle.take()
		if w != nil {
			return w, nil
		}
		select {
		case <-wake:
		case <-patience.C:
			return nil, fmt.Errorf("%w: no worker is ready", ErrUnavailable)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-p.ctx.Done():
			return nil, fmt.Errorf("%w: closed", ErrUnavailable)
		}
	}
}

// run parses text in w and hands w back, or kills it when it cannot be trusted
// with another statement. The caller's context does not reach here: a statement
// is short, and stopping half-way would cost the worker.
func (p *Pool) run(w *worker, text string) (*Result, error) {
	tokens, tree, err := p.ask(w, text)
	var verdict *Error
	if err != nil && !errors.As(err, &verdict) {
		return nil, p.lose(w, err)
	}
	p.idle.put(w)
	if err != nil {
		return nil, err
	}
	result := &Result{Tokens: tokens}
	return result, result.decode(tree)
}

func (r *Result) decode(tree []byte) error {
	r.Tree = &pg.ParseResult{}
	if proto.Unmarshal(tree, r.Tree) != nil {
		return &Error{Message: "the statement's tree cannot be read", SQLState: "54001"}
	}
	return nil
}

// ask has w parse text, and the canary after it where that is due.
func (p *Pool) ask(w *worker, text string) ([]Token, []byte, error) {
	payload, err := w.exchange(text, p.config.Timeout)
	var verdict *Error
	if err != nil && !errors.As(err, &verdict) {
		return nil, nil, err
	}
	var tokens []Token
	var tree []byte
	deep := verdict != nil && verdict.SQLState == "54001"
	if verdict == nil {
		if tokens, tree, err = parseTree(text, payload); err != nil {
			return nil, nil, err
		}
		s, e := checkTokens(text, tokens)
		if e != nil {
			return nil, nil, fmt.Errorf("%w: out of bounds", errFrame)
		}
		deep = !s.plain()
	}
	w.statements++
	if deep || w.statements%canaryEvery == 0 {
		if err := p.checkCanary(w); err != nil {
			return nil, nil, err
		}
	}
	if verdict != nil {
		return nil, nil, verdict
	}
	return tokens, tree, nil
}

var errCanary = errors.New("the canary statement was answered wrongly")

func (p *Pool) checkCanary(w *worker) error {
	payload, err := w.exchange(canary, p.config.Timeout)
	if err != nil {
		return fmt.Errorf("%w: %w", errCanary, err)
	}
	if digest(payload) != canaryDigest {
		return errCanary
	}
	return nil
}

func digest(payload []byte) string { return fmt.Sprintf("%x", sha256.Sum256(payload)) }

// lose kills w and says what its statement gets.
func (p *Pool) lose(w *worker, err error) error {
	w.kill()
	p.metrics.lost.Inc()
	p.log.Warn("parser worker killed", "pid", w.pid, "error", err)
	if p.ctx.Err() != nil {
		return fmt.Errorf("%w: closed", ErrUnavailable)
	}
	return &Error{Message: "the statement could not be parsed within the bounds of time and memory", SQLState: "54001"}
}
