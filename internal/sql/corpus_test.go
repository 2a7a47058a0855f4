package sql

import (
	"bytes"
	"compress/gzip"
	"context"
	"flag"
	"io"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

var corpusPattern = flag.String("corpus", "^regress/(select|subselect|with)$", "which files of PostgreSQL's own statements to run: make corpus runs more")

// A corpusFile is the statements of one of PostgreSQL 15's regression tests, or
// those of its documentation, in order, without psql's commands and COPY data.
type corpusFile struct {
	name       string
	statements []string
}

func corpus(t *testing.T) []corpusFile {
	t.Helper()
	packed, err := os.ReadFile("testdata/postgresql.gz")
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var files []corpusFile
	for part := range strings.SplitSeq(strings.TrimPrefix(string(text), "\f"), "\n\f") {
		name, body, _ := strings.Cut(part, "\n")
		files = append(files, corpusFile{name, strings.Split(body, "\n\x1e\n")})
	}
	if len(files) < 200 {
		t.Fatalf("only %d files", len(files))
	}
	return files
}

// unsettling are statements that a run of others does not survive, or that
// take what later ones look at.
var unsettling = regexp.MustCompile(`(?is)^\s*(drop|rollback|abort|alter\s+(system|database)|reindex|vacuum|cluster|checkpoint|prepare\s+transaction|begin|start\s+transaction|commit|end\b|set\s|reset|savepoint|release|create\s+(database|tablespace|role|user|group|subscription|event\s+trigger)|alter\s+(role|user)|discard|copy\b.*(stdin|stdout)|listen|lock)|pg_sleep|pg_(terminate|cancel)_backend|generate_series\s*\(\s*1\s*,\s*\d{6}|\bLOAD\b`)

// TestCorpus runs what the judge takes for read-only of PostgreSQL's own
// statements, on what they themselves create, and looks whether anything
// changed; the server counts the statements of each text.
func TestCorpus(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(*corpusPattern)
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			d := startDifferential(t, version)
			d.user = "postgres"
			r := &differentialRun{differential: d, analyzer: newTestAnalyzer(t), counts: map[string]int{}}
			for _, f := range corpus(t) {
				switch {
				case path.Base(f.name) == "test_setup", path.Base(f.name) == "create_table", path.Base(f.name) == "create_function_sql", path.Base(f.name) == "create_index":
					r.create(t, f)
				}
				if pattern.MatchString(f.name) && !t.Failed() {
					r.create(t, f)
					r.file(t, f)
				}
			}
			t.Log(r)
			if r.counts["ran"] < 100 || r.counts["succeeded"] < r.counts["ran"]/2 {
				t.Errorf("too little was run: %v", r)
			}
		})
	}
}

// create runs every statement of a file that may be there for others, and cares
// for no error: many are there to fail.
func (r *differentialRun) create(t *testing.T, f corpusFile) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.pg.DSN("postgres", r.pg.Password, "shop")+"&statement_timeout=1000&lock_timeout=500&search_path=public")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, text := range f.statements {
		if unsettling.MatchString(text) || !strings.HasPrefix(strings.ToLower(text), "create") && !strings.HasPrefix(strings.ToLower(text), "insert") && !strings.HasPrefix(strings.ToLower(text), "alter table") {
			continue
		}
		if _, err := conn.Exec(ctx, text, pgx.QueryExecModeSimpleProtocol); err != nil && conn.IsClosed() {
			t.Fatalf("%s: %v", text, err)
		}
	}
}

// file judges and runs the statements of one file.
func (r *differentialRun) file(t *testing.T, f corpusFile) {
	t.Helper()
	_ = r.pg.Exec(t.Context(), "shop", "VACUUM (FREEZE)") // so that reading a page later does not change it
	if err := r.watcher.QueryRow(t.Context(), digestQuery).Scan(&r.digest); err != nil {
		t.Fatal(err)
	}
	r.reconnect(t)
	before, err := r.observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// What was found once, and has nothing to do with the file, counts once.
	r.counts["log alone"] = 0
	r.batch(t, f.statements, before)
}
