package e2e

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write docs/postgres-compatibility.md anew")

// A difference is what drivers see through the gateway and not straight, with
// the tests of their suites that see it.
type difference struct {
	Title   string              `yaml:"title"`
	Why     string              `yaml:"why"`
	Instead string              `yaml:"instead"`
	Tests   map[string][]string `yaml:"tests"` // by suite; of Go a test stands for those within it
	// Sometimes says that the tests pass at times: they measure time.
	Sometimes bool `yaml:"sometimes"`
}

func (d difference) covers(suite, name string) bool {
	return slices.ContainsFunc(d.Tests[suite], func(listed string) bool { return listed == name || strings.HasPrefix(name, listed+"/") })
}

func differences(t *testing.T) []difference {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "suites", "differences.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []difference
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(&all); err != nil {
		t.Fatal(err)
	}
	return all
}

const compatibilityHead = `# PostgreSQL drivers: what differs through the gateway

The drivers' own test suites run twice, straight at a PostgreSQL 18 and through Envoy and chaperone under a policy that allows
everything on a resource where nothing is masked: pgx 5.12.0 (with pgconn, pgtype, pgxpool and its database/sql driver), lib/pq
1.12.3, psycopg2 2.9.13, and programs with pgjdbc 42.7.8 and node-postgres 8.23.1 that prepare, send batches, fetch in portions,
copy, cancel, listen, call functions and work on large objects. Every test that passes straight passes through the gateway,
but for those on this page, which is written from the list that the comparison itself uses. ` + "`make suites`" + ` repeats it;
` + "`make test`" + ` runs a part of it.

Where something is masked more differs, on purpose: [every statement and form](sql-forms.md).
`

// TestGoldenCompatibility: the page says what the comparison of the suites
// accepts, no more and no less.
func TestGoldenCompatibility(t *testing.T) {
	t.Parallel()
	var page strings.Builder
	page.WriteString(compatibilityHead)
	for _, d := range differences(t) {
		if d.Title == "" || d.Why == "" || d.Instead == "" || len(d.Tests) == 0 {
			t.Errorf("%q lacks something", d.Title)
		}
		fmt.Fprintf(&page, "\n## %s\n\n%s\n\n*Instead:* %s\n\n", d.Title, strings.TrimSpace(d.Why), strings.TrimSpace(d.Instead))
		if d.Sometimes {
			page.WriteString("These pass at times:\n\n")
		}
		for _, suite := range slices.Sorted(maps.Keys(d.Tests)) {
			fmt.Fprintf(&page, "- %s: `%s`\n", suite, strings.Join(d.Tests[suite], "`, `"))
		}
	}
	const file = "../docs/postgres-compatibility.md"
	if *update {
		if err := os.WriteFile(file, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if is, err := os.ReadFile(file); err != nil || string(is) != page.String() {
		t.Errorf("%s is not what testdata/suites/differences.yaml says: run make golden (%v)", file, err)
	}
}
