package sql

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

var (
	differentialStatements = flag.Int("differential", 4000, "statements of the differential test, half for each server: make differential runs 100,000")
	differentialSeed       = flag.Int64("seed", 1, "of the differential test's statements")
)

// batchSize is how many statements are judged and run between two observations.
const batchSize = 500

// TestDifferential runs what was judged read-only on real servers, as a role
// that may change nearly everything, and looks whether anything changed.
func TestDifferential(t *testing.T) {
	t.Parallel()
	for i, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			d := startDifferential(t, version)
			seed := *differentialSeed + int64(i)
			t.Logf("PostgreSQL %s, seed %d", version, seed)
			run := &differentialRun{differential: d, analyzer: newTestAnalyzer(t), mutants: newMutants(), counts: map[string]int{}}
			w := newWriter(d.vocabulary(t), seed)
			t.Run("detector", d.testDetector)
			d.user = "app"
			d.reconnect(t)
			run.offerHostile(t)
			run.statements(t, *differentialStatements/2, w.statement)
			run.sessions(t)
			t.Log(run)
			t.Logf("read by one of the two alone:\n%s", strings.Join(run.unlike[:min(10, len(run.unlike))], "\n"))
			if n := run.total; run.counts["ran"] < n/4 || run.counts["succeeded"] < n/8 || run.counts["1 statement"] < n/2 || run.counts["0 statements"] == 0 || run.counts["several"] < n/100 {
				t.Errorf("the generator does not try: %v", run)
			}
			t.Run("mutants", run.testMutants)
			d.user = "postgres" // who may create what the texts create
			d.reconnect(t)
			t.Run("counts", run.testCounts)
		})
	}
}

// A differentialRun is one server's part of the test.
type differentialRun struct {
	*differential
	analyzer *Analyzer
	mutants  []*mutant
	settings []*Statement // judged read-only: they change the session and nothing else
	total    int
	counts   map[string]int
	unlike   []string // what one of the two grammars alone reads
}

func (r *differentialRun) String() string {
	return fmt.Sprintf("%d statements: %v", r.total, r.counts)
}

// statements judges n statements and runs those that were judged read-only.
func (r *differentialRun) statements(t *testing.T, n int, next func() string) {
	t.Helper()
	before, err := r.observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for r.total < n && !t.Failed() {
		texts := make([]string, min(batchSize, n-r.total))
		for i := range texts {
			texts[i] = next()
		}
		before = r.batch(t, texts, before)
	}
}

// batch judges texts, compares their counts with the server's, runs them and
// compares the state before with the state after, which it returns.
func (r *differentialRun) batch(t *testing.T, texts []string, before state) state {
	t.Helper()
	judged := r.judgeAll(t, texts)
	r.total += len(texts)
	r.compareCounts(t, judged)
	var run []*Statement
	for _, st := range judged {
		for _, m := range r.mutants {
			m.offer(st)
		}
		switch {
		case !st.Action.ReadOnly || st.Kind == KindEmpty:
		case st.Action.Session || remembered[st.Kind] != "":
			r.settings = append(r.settings, st)
		default:
			run = append(run, st)
		}
	}
	r.counts["ran"] += len(run)
	r.counts["succeeded"] += r.runAll(t, run)
	now, err := r.observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if changed := before.differences(now); len(changed) > 0 {
		r.explainChange(t, run, changed)
		if now, err = r.observe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return now
}

func (r *differentialRun) judgeAll(t *testing.T, texts []string) []*Statement {
	judged := make([]*Statement, len(texts))
	var judges sync.WaitGroup
	for j := range runtime.NumCPU() {
		judges.Go(func() {
			for i := j; i < len(texts); i += runtime.NumCPU() {
				st, err := r.analyzer.Analyze(t.Context(), texts[i], r.cat)
				if err != nil {
					t.Errorf("%q: %v", texts[i], err)
					st = &Statement{Text: texts[i], Kind: KindRefused, Refusal: &Refusal{SQLState: "54000"}}
				} else {
					checkJudged(t, texts[i], st)
				}
				judged[i] = st
			}
		})
	}
	judges.Wait()
	return judged
}

// runAll runs statements one by one, each in a transaction of its own as a
// client's would be, and returns how many succeeded.
func (r *differentialRun) runAll(t *testing.T, list []*Statement) (succeeded int) {
	t.Helper()
	list = slices.DeleteFunc(slices.Clone(list), func(st *Statement) bool {
		if st.Kind != KindCopyOut {
			return false
		}
		if _, err := r.subject.CopyTo(t.Context(), io.Discard, st.Text); err == nil {
			succeeded++
		}
		return true
	})
	for chunk := range slices.Chunk(list, 50) {
		p := r.subject.StartPipeline(t.Context())
		for _, st := range chunk {
			p.SendQueryParams(st.Text, parametersFor(st), nil, nil, nil)
			p.SendPipelineSync()
		}
		succeeded += r.answers(t, p, len(chunk), nil)
	}
	return succeeded
}

// parametersFor gives every parameter a value that most types read.
func parametersFor(st *Statement) [][]byte {
	values := make([][]byte, st.Parameters)
	for i := range values {
		values[i] = []byte("1")
	}
	return values
}

// answers reads n answers and returns how many were no error; each, when there
// is one, gets the error of each.
func (r *differentialRun) answers(t *testing.T, p *pgconn.Pipeline, n int, each func(i int, err error)) (succeeded int) {
	t.Helper()
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	failed := error(nil)
	for i := 0; i < n; {
		result, err := p.GetResults()
		var pgErr *pgconn.PgError
		switch {
		case errors.As(err, &pgErr):
			failed = err
			continue
		case err != nil:
			t.Fatalf("the session ended: %v", err)
		}
		switch result := result.(type) {
		case *pgconn.ResultReader:
			if _, err := result.Close(); err != nil {
				failed = err
			}
		case *pgconn.PipelineSync:
			if failed == nil {
				succeeded++
			}
			if each != nil {
				each(i, failed)
			}
			failed = nil
			i++
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return succeeded
}

// compareCounts has the server count the statements of each text: it parses
// them, in a transaction that runs nothing any more, and says whether there was
// none, one, or more than one.
func (r *differentialRun) compareCounts(t *testing.T, judged []*Statement) {
	t.Helper()
	for chunk := range slices.Chunk(judged, 50) {
		p := r.parser.StartPipeline(t.Context())
		for _, st := range chunk {
			p.SendPrepare("", strings.ReplaceAll(st.Text, "\x00", ""), nil)
			p.SendPipelineSync()
		}
		r.answers(t, p, len(chunk), func(i int, err error) { r.compareCount(t, chunk[i], err) })
	}
	if r.parser.TxStatus() != 'E' {
		t.Fatalf("the transaction of the parser is %c", r.parser.TxStatus())
	}
}

func (r *differentialRun) compareCount(t *testing.T, st *Statement, err error) {
	server := "1 statement"
	var pgErr *pgconn.PgError
	switch {
	case err == nil && st.Kind != KindTransaction && !strings.Contains(st.Action.Command, "TRANSACTION"): // which are taken even here
		server = "0 statements"
	case err == nil:
	case !errors.As(err, &pgErr):
		t.Fatal(err)
	case pgErr.Code == "25P02":
	case strings.Contains(pgErr.Message, "cannot insert multiple commands"):
		server = "several"
	default:
		server = "unreadable"
	}
	judge := "several"
	switch {
	case st.Kind == KindEmpty:
		judge = "0 statements"
	case st.Action.Statements == 0:
		judge = "unreadable"
	case st.Action.Statements == 1:
		judge = "1 statement"
	}
	r.counts[judge]++
	switch {
	case judge == server:
	case judge == "unreadable" || server == "unreadable":
		r.counts[server+" for the server, "+judge+" for the judge"]++
		r.unlike = append(r.unlike, fmt.Sprintf("%.150q: %v, %v", st.Text, st.Refusal, err))
	default:
		t.Errorf("%q: %s says the judge, %s says the server (%v)", st.Text, judge, server, err)
	}
}

// explainChange finds which of the statements made a difference, and fails.
// What happens once and again has nothing to do with them when only the log
// grew: the server writes to it when it looks at a page for the first time.
func (r *differentialRun) explainChange(t *testing.T, list []*Statement, changed []string) {
	t.Helper()
	if culprits := r.culprits(t, list, 5); len(culprits) > 0 {
		for _, c := range culprits {
			t.Errorf("judged read-only: %s\nit changed %q", c.text, c.changed)
		}
		return
	}
	if slices.Equal(changedNames(changed), []string{"log"}) && r.counts["log alone"] < 20 {
		r.counts["log alone"]++
		t.Logf("the log grew once: %q", changed)
		return
	}
	t.Errorf("one of %d statements changed %q, once", len(list), changed)
}

type culprit struct {
	text    string
	changed []string
}

// culprits runs list again in halves, in a new session each time, to find
// statements that change something, at most limit of them.
func (r *differentialRun) culprits(t *testing.T, list []*Statement, limit int) []culprit {
	t.Helper()
	r.reconnect(t)
	before, err := r.observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.runAll(t, list)
	now, err := r.observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changed := before.differences(now)
	switch {
	case len(changed) == 0:
		return nil
	case len(list) == 1:
		return []culprit{{list[0].Text, changed}}
	}
	found := r.culprits(t, list[:len(list)/2], limit)
	if len(found) < limit {
		found = append(found, r.culprits(t, list[len(list)/2:], limit-len(found))...)
	}
	return found
}

// remembered is what a session keeps of statements that are judged as what they
// prepare: the only change that they may make.
var remembered = map[Kind]string{KindPrepare: "session prepared", KindDeallocate: "session prepared", KindDeclare: "session cursors", KindClose: "session cursors"}

// sessions runs what was judged read-only and changes the session: it must
// change nothing but the one setting that it names, the transaction, or the
// statement or cursor that it names; what lets go of all may change the session.
func (r *differentialRun) sessions(t *testing.T) {
	t.Helper()
	done := map[string]bool{}
	for _, st := range r.settings {
		if done[st.Text] || len(done) >= 150 {
			continue
		}
		done[st.Text] = true
		before, err := r.observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = r.subject.Exec(t.Context(), st.Text).ReadAll() // it may fail: COMMIT of nothing, a time zone that is none
		if st.Kind == KindTransaction && r.subject.TxStatus() != 'I' {
			if _, err := r.subject.Exec(t.Context(), "ROLLBACK").ReadAll(); err != nil {
				t.Fatal(err)
			}
		}
		now, err := r.observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, changed := range before.differences(now) {
			name, _, _ := strings.Cut(changed, ":")
			characteristics := st.Kind == KindTransaction || st.Action.Command == "SET SESSION CHARACTERISTICS"
			lets := (st.Kind == KindReset || st.Kind == KindDiscard) && strings.HasPrefix(name, "session ")
			if lets || name == remembered[st.Kind] || characteristics && strings.HasPrefix(name, "session setting default_transaction_") {
				r.reconnect(t)
				continue
			}
			if st.Setting != nil && strings.EqualFold(name, "session setting "+st.Setting.Name) {
				continue
			}
			t.Errorf("%s changed %s", st.Text, changed)
		}
		if st.Setting != nil && !st.Setting.Show {
			if _, err := r.subject.Exec(t.Context(), "RESET "+st.Setting.Name).ReadAll(); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.counts["session statements"] = len(done)
}

// A mutant is the judge with a rule removed: it takes for read-only what the
// judge refused for that reason alone.
type mutant struct {
	name    string
	removed *regexp.Regexp // matches what the judge says is not known
	locks   bool
	tried   []*Statement
}

func newMutants() []*mutant {
	return []*mutant{
		{name: "locks", removed: regexp.MustCompile(`^$`), locks: true},
		{name: "functions of the server", removed: regexp.MustCompile(`^function pg_catalog\.(nextval|setval|set_config|lo_create|pg_advisory_lock|pg_notify|txid_current) `)},
		{name: "functions of users", removed: regexp.MustCompile(`^function (public|hidden)\.`)},
		{name: "operators", removed: regexp.MustCompile(`^operator .*~~~`)},
		{name: "types", removed: regexp.MustCompile(`^type public\.(tag|label|pair|place)|^the cast from|may be chosen`)},
		{name: "own candidates", removed: regexp.MustCompile(`may be chosen for a value|^the cast from`)},
		{name: "casts", removed: regexp.MustCompile(`^the cast from`)},
		{name: "row security", removed: regexp.MustCompile(`^row security`)},
		{name: "planning", removed: regexp.MustCompile(`^planning a query`)},
		{name: "views", removed: regexp.MustCompile(`^view public\.`)},
	}
}

// offer keeps st if the mutant would let it through.
func (m *mutant) offer(st *Statement) {
	a := st.Action
	if len(m.tried) >= 40 || a.ReadOnly || st.Kind != KindQuery || len(a.Writes) > 0 || a.Locks != m.locks {
		return
	}
	for _, u := range a.Unknown {
		if !m.removed.MatchString(u) {
			return
		}
	}
	m.tried = append(m.tried, st)
}

// offerHostile makes sure that each mutant has something to let through.
func (r *differentialRun) offerHostile(t *testing.T) {
	t.Helper()
	texts := slices.Clone(hostile)
	for _, call := range writing {
		texts = append(texts, "select "+call)
	}
	for _, st := range r.judgeAll(t, texts) {
		for _, m := range r.mutants {
			m.offer(st)
		}
	}
}

// testMutants is the other positive control: with a rule removed, the test
// fails.
func (r *differentialRun) testMutants(t *testing.T) {
	for _, m := range r.mutants {
		r.reconnect(t)
		found := r.culprits(t, m.tried, 1)
		if len(found) == 0 {
			t.Errorf("without the rule about %s nothing would be seen (%d statements tried)", m.name, len(m.tried))
			continue
		}
		t.Logf("without the rule about %s: %s\nchanges %v", m.name, found[0].text, changedNames(found[0].changed))
	}
}
