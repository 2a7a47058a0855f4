package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
)

const (
	// estimateTimeout bounds one plan at the target, and estimateWithin
	// everything: waiting for one's turn, connecting, planning.
	estimateTimeout = 2 * time.Second
	estimateWithin  = 4 * time.Second
	// estimateAge is how long an estimate is taken for the current one, and
	// maxEstimates how many are kept for one catalog.
	estimateAge  = 30 * time.Second
	maxEstimates = 1000
	// maxPlan bounds the plan that is read, in bytes.
	maxPlan = 8 << 20
)

// An estimate is how much the target's planner expects of a statement: what it
// returns or what it changes, whichever is more. nil is not known.
type estimate struct {
	rows, bytes int64
	plan        string
}

// setOn makes e the estimate that conditions and reviewers see.
func (e *estimate) setOn(action *access.SQL) {
	action.EstimatedRows, action.EstimatedBytes, action.Plan = nil, nil, ""
	if e != nil {
		action.EstimatedRows, action.EstimatedBytes, action.Plan = &e.rows, &e.bytes, e.plan
	}
}

// An estimator plans statements, one at a time, over a connection of its own
// beside that of the catalog: a slow plan holds up no judge.
type estimator struct {
	logins logins
	busy   chan struct{} // holds a value while conn is in use
	conn   *pgx.Conn
	end    func() // of the login of conn
	mu     sync.Mutex
	known  map[estimateKey]knownEstimate // when full it starts again
}

type estimateKey struct {
	text    [sha256.Size]byte
	version string // of the catalog
}

type knownEstimate struct {
	estimate *estimate // nil: the target has none
	at       time.Time
}

func newEstimator(all logins) *estimator {
	return &estimator{logins: all, busy: make(chan struct{}, 1), known: map[estimateKey]knownEstimate{}}
}

func (e *estimator) recall(key estimateKey, now time.Time) (*estimate, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	k, ok := e.known[key]
	age := now.Sub(k.at)
	return k.estimate, ok && age >= 0 && age < estimateAge
}

func (e *estimator) remember(key estimateKey, found *estimate, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.known) >= maxEstimates {
		clear(e.known)
	}
	e.known[key] = knownEstimate{found, now}
}

// close must not run beside estimate.
func (e *estimator) close() {
	if e.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	e.conn.Close(ctx)
	e.conn = nil
	e.end()
}

// estimable reports whether EXPLAIN takes the statement, and whether nothing
// can run while it is planned but what somebody vouches for: planning computes
// IMMUTABLE and STABLE functions of constants.
func estimable(st *sql.Statement) bool {
	if st.Refusal != nil || len(st.Action.Unknown) > 0 || strings.HasPrefix(st.Action.Command, "EXPLAIN") {
		return false
	}
	return st.Kind == sql.KindQuery || st.Kind == sql.KindChange || st.Kind == sql.KindDeclare
}

// estimate asks the target for its plan of text, which is what st would be
// forwarded as. nil means that there is none to be had; ctx ending is no error
// of its own.
func (s *session) estimate(ctx context.Context, st *statement, text string) *estimate {
	if !estimable(st.judged) {
		return nil
	}
	e := s.catalog.entry.estimates
	key := estimateKey{sha256.Sum256([]byte(text)), st.view.snapshot.Version()}
	if found, ok := e.recall(key, s.deps.Clock()); ok {
		s.metrics.estimates.WithLabelValues("kept").Inc()
		return found
	}
	ctx, cancel := context.WithTimeout(ctx, estimateWithin)
	defer cancel()
	select {
	case e.busy <- struct{}{}:
		defer func() { <-e.busy }()
	case <-ctx.Done():
		s.metrics.estimates.WithLabelValues("busy").Inc()
		return nil
	}
	if err := e.connect(ctx, s.resource); err != nil {
		s.metrics.estimates.WithLabelValues("failed").Inc()
		s.log.Warn("statements have no estimate", "error", err)
		return nil
	}
	found, err := e.plan(ctx, text, st.judged.Parameters > 0)
	outcome := "planned"
	var answered *pgconn.PgError
	switch {
	case errors.As(err, &answered) && answered.Code == sqlstateNotGranted: // query_canceled, by the timeout
		outcome = "timeout"
	case err != nil:
		outcome = "failed"
	}
	s.metrics.estimates.WithLabelValues(outcome).Inc()
	if err != nil {
		s.log.Debug("a statement has no estimate", "error", err)
	}
	if err == nil || answered != nil { // what the target said, it would say again
		e.remember(key, found, s.deps.Clock())
	}
	return found
}

// decideForward gets the decision and the text to forward. Rules that read the
// estimate decide on the estimate of that text: the masks of any rule give the
// first guess at it, those of the decision the second, and where it still
// differs there is none.
func (s *session) decideForward(ctx context.Context, st *statement, v *verdict) error {
	action := v.request.Action.SQL
	reads := estimable(st.judged) && s.deps.Decider.ReadsEstimate(ctx, v.request)
	text := ""
	if reads {
		if text = s.guessForward(ctx, st); text != "" {
			s.estimate(ctx, st, text).setOn(action)
		}
	}
	for tries := 0; ; tries++ {
		v.decision, v.asked = s.deps.Decider.Decide(ctx, v.request), true
		if v.refused = s.applyDecision(ctx, st, v); v.refused != nil {
			return nil
		}
		if err := s.mask(ctx, st, v); err != nil || v.refused != nil {
			return err
		}
		if !reads || text == st.forward.Text || action.EstimatedRows == nil && tries > 0 {
			return nil
		}
		var found *estimate
		if text = st.forward.Text; tries == 0 {
			found = s.estimate(ctx, st, text)
		}
		found.setOn(action)
	}
}

// estimateCard gives reviewers the estimate that no rule needed.
func (s *session) estimateCard(ctx context.Context, st *statement, v *verdict) {
	if v.request.Action.SQL.EstimatedRows != nil {
		return
	}
	if n := s.left(st); n != nil {
		st = n.statement
	}
	s.estimate(ctx, st, st.forwardText()).setOn(v.request.Action.SQL)
}

// guessForward is what st is forwarded as when every mask of the resource
// applies; "" when that is refused. The true columns are never estimated: how
// many rows have a value would tell of it.
func (s *session) guessForward(ctx context.Context, st *statement) string {
	masks := s.deps.Decider.Masks(ctx, s.info.Principal, s.resource.Access)
	if !hasColumnMask(masks) {
		return st.text
	}
	forward, err := s.resource.Analyzer.Mask(ctx, st.judged, st.view.snapshot, access.Obligations{Masks: masks})
	if err != nil || forward == nil {
		return ""
	}
	return forward.Text
}

// connect sees to a connection with the injected role and the sessions'
// search_path.
func (e *estimator) connect(ctx context.Context, r Resource) error {
	if e.conn != nil && !e.conn.IsClosed() {
		return nil
	}
	e.close() // what died
	var err error
	e.conn, e.end, err = connectBeside(ctx, e.logins, r, map[string]string{
		"application_name": "chaperone estimate", "default_transaction_read_only": "on",
		"statement_timeout": fmt.Sprint(estimateTimeout.Milliseconds()),
	})
	return err
}

// plan explains text without running it. The transaction is rolled back, so
// that no lock of the parser outlives it.
func (e *estimator) plan(ctx context.Context, text string, generic bool) (*estimate, error) {
	if _, err := e.conn.Exec(ctx, "BEGIN READ ONLY", pgx.QueryExecModeExec); err != nil {
		e.close()
		return nil, err
	}
	plan, err := e.explain(ctx, text, generic)
	if _, fault := e.conn.Exec(ctx, "ROLLBACK", pgx.QueryExecModeExec); fault != nil {
		e.close()
		err = errors.Join(err, fault)
	}
	if err != nil {
		return nil, err
	}
	return readPlans(plan)
}

// explain returns the plan as the target writes it. The extended protocol takes
// one statement, whatever text is, but wants a value for each parameter, and
// plans for that value. For a generic plan it only proves that text is one
// statement; a simple query then explains it.
func (e *estimator) explain(ctx context.Context, text string, generic bool) ([]byte, error) {
	conn := e.conn.PgConn()
	if !generic {
		result := conn.ExecParams(ctx, "EXPLAIN (FORMAT JSON) "+text, nil, nil, nil, nil)
		plan := readRows(result)
		_, err := result.Close()
		return plan, err
	}
	text = "EXPLAIN (FORMAT JSON, GENERIC_PLAN) " + text
	if _, err := conn.Prepare(ctx, "", text, nil); err != nil {
		return nil, err
	}
	var plan []byte
	results := conn.Exec(ctx, text)
	for results.NextResult() {
		plan = append(plan, readRows(results.ResultReader())...)
	}
	return plan, results.Close()
}

// readRows joins the first column of a result, up to maxPlan.
func readRows(result *pgconn.ResultReader) (text []byte) {
	for result.NextRow() {
		if len(text) < maxPlan {
			text = append(text, result.Values()[0]...)
		}
	}
	return text
}

// A planNode is the part of a plan's node that says how much comes out of it,
// and its shape.
type planNode struct {
	Type      string     `json:"Node Type"`
	Parent    string     `json:"Parent Relationship"`
	Rows      float64    `json:"Plan Rows"`
	Width     float64    `json:"Plan Width"`
	Operation string     `json:"Operation"`
	Join      string     `json:"Join Type"`
	Table     string     `json:"Relation Name"`
	Index     string     `json:"Index Name"`
	Plans     []planNode `json:"Plans"`
}

// shape writes the plan without its numbers.
func (n *planNode) shape(to io.Writer) {
	fmt.Fprintf(to, "(%q %q %q %q %q %q", n.Type, n.Parent, n.Operation, n.Join, n.Table, n.Index)
	for i := range n.Plans {
		n.Plans[i].shape(to)
	}
	io.WriteString(to, ")")
}

// readPlans reads the output of EXPLAIN (FORMAT JSON). Rules can make several
// statements of one: all count.
func readPlans(text []byte) (*estimate, error) {
	var plans []struct {
		Plan *planNode `json:"Plan"`
	}
	if err := json.Unmarshal(text, &plans); err != nil {
		return nil, fmt.Errorf("read a plan: %w", err)
	}
	var returned, changed amount
	shape := sha256.New()
	for _, p := range plans {
		if p.Plan == nil {
			return nil, errors.New("read a plan: there is none for a part of the statement")
		}
		returned.add(p.Plan)
		p.Plan.changes(&changed)
		p.Plan.shape(shape)
	}
	if len(plans) == 0 {
		return nil, errors.New("read a plan: it is empty")
	}
	return &estimate{whole(max(returned.rows, changed.rows)), whole(max(returned.bytes, changed.bytes)), hex.EncodeToString(shape.Sum(nil)[:8])}, nil
}

type amount struct{ rows, bytes float64 }

func (a *amount) add(n *planNode) {
	a.rows += n.Rows
	a.bytes += n.Rows * n.Width
}

// changes adds up what goes into each INSERT, UPDATE, DELETE and MERGE of the
// plan, those within WITH included.
func (n *planNode) changes(sum *amount) {
	for i := range n.Plans {
		below := &n.Plans[i]
		if n.Type == "ModifyTable" && below.Parent == "Outer" {
			sum.add(below)
		}
		below.changes(sum)
	}
}

// whole is f as an integer, as large as one can be.
func whole(f float64) int64 {
	if f >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(f)
}
