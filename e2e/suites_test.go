package e2e

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/examples/demo"
)

var whole = flag.Bool("suites", false, "run the own test suites of PostgreSQL's drivers whole, not the parts of them that take seconds")

// suitesPolicy lets everything through on a resource where nothing is masked.
const suitesPolicy = `
policy: suites
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "suites"'
rules:
  - {name: all, when: 'true', effect: allow}
`

// withSuites adds the resource of the suites, which some role of their own owns.
func withSuites(text string) string {
	address := regexp.MustCompile(`kind: postgres\n    address: (\S+)`).FindStringSubmatch(text)[1]
	return strings.Replace(text, "resources:\n", `resources:
  - name: suites
    kind: postgres
    address: `+address+`
    labels: {env: test}
    postgres: {database: suites, unwalled: true, tls: {mode: disable}, credential: {user: suites, password: {file: secrets/orders}}}
`, 1)
}

// A reach is a way to the database of a suite.
type reach struct {
	name, host, port, password, database string
	ca                                   string // of the gateway; "" is no TLS
}

func (r reach) dsn() string {
	dsn := fmt.Sprintf("host=%s port=%s user=suites password=%s dbname=%s ", r.host, r.port, r.password, r.database)
	if r.ca == "" {
		return dsn + "sslmode=disable"
	}
	return dsn + "sslmode=verify-full sslrootcert=" + r.ca
}

func (r reach) jdbc() string {
	url := fmt.Sprintf("jdbc:postgresql://%s:%s/%s?", r.host, r.port, r.database)
	if r.ca == "" {
		return url + "sslmode=disable"
	}
	return url + "sslmode=verify-full&sslrootcert=" + r.ca
}

// environment is what each suite finds its database by. Those of pgx test how
// the variables of libpq are read, too.
func (r reach) environment(suite string) []string {
	env := append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") }), "PGX_TEST_DATABASE="+r.dsn())
	if strings.HasPrefix(suite, "pgx") || slices.Contains(pgxSuites, suite) {
		return env
	}
	env = append(env, "PGHOST="+r.host, "PGPORT="+r.port, "PGUSER=suites", "PGPASSWORD="+r.password, "PGDATABASE="+r.database,
		"PSYCOPG2_TESTDB="+r.database, "JDBC_URL="+r.jdbc(), "CA="+r.ca)
	if suite == "pq" { // its tests of TLS have servers of their own
		env = append(env, "PGSSLMODE=disable")
	}
	return env
}

var pgxSuites = []string{"pgx", "pgconn", "pgtype", "pgxpool", "stdlib"}

// A driverSuite is a suite of tests that a driver, or this folder, brings.
type driverSuite struct {
	name  string
	dir   string   // where it runs, in the folder of the suites
	quick []string // what chooses the part that takes seconds; nil runs all of it always
	argv  []string
}

func driverSuites(t *testing.T) []driverSuite {
	t.Helper()
	home := filepath.Join(tools(t), "suites")
	here, err := filepath.Abs(filepath.Join("testdata", "suites"))
	if err != nil {
		t.Fatal(err)
	}
	python := filepath.Join(tools(t), "python", "bin", "python3")
	inGo := func(name, dir, quick string) driverSuite {
		return driverSuite{name, filepath.Join(home, dir), []string{"-test.run", quick}, []string{filepath.Join(home, "bin", name), "-test.v", "-test.timeout", "15m"}}
	}
	psycopg2 := []string{python, "-m", "unittest", "-v"}
	if *whole {
		psycopg2 = append(psycopg2, "tests.test_suite")
	}
	return []driverSuite{
		inGo("pgx", "pgx", "^TestConnCopy|^TestTransaction|^TestConnSendBatch(Query|With)|^TestLargeObject"),
		inGo("pgconn", "pgx/pgconn", "^TestPipeline|^TestConnCopy"),
		inGo("pgtype", "pgx/pgtype", "^Test(Enum|Composite|Hstore)Codec"),
		inGo("pgxpool", "pgx/pgxpool", "^TestPool(Exec|Query|SendBatch|CopyFrom)$"),
		inGo("stdlib", "pgx/stdlib", "^Test(ConnTx|Transaction|ConnBeginTx)"),
		inGo("pq", "pq", "^TestCopy|^TestTxOptions|^TestReturning|^TestByteaOutput|^TestMultipleResult"),
		{"psycopg2", filepath.Join(home, "psycopg2"), []string{"tests.test_transaction", "tests.test_lobject", "tests.test_with"}, psycopg2},
		{"jdbc", here, nil, []string{"java", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(home, "postgresql.jar"), "Drivers.java"}},
		{"node", here, nil, []string{"node", "drivers.js"}},
	}
}

// run runs the suite, or its quick part, and returns which of its tests passed.
// A test that ends the whole program in panic is left out of another run.
func (d driverSuite) run(t *testing.T, r reach) map[string]bool {
	t.Helper()
	outcomes := map[string]bool{}
	var skip []string
	for range 6 {
		out := d.once(t, r, skip)
		maps.Copy(outcomes, passed(out))
		before, _, panicked := strings.Cut(out, "\npanic: ")
		failed := failure.FindAllStringSubmatch(before, -1)
		if !panicked || len(failed) == 0 {
			break
		}
		last := failed[len(failed)-1][1]
		outcomes[last], skip = false, append(skip, last)
	}
	return outcomes
}

var failure = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

func (d driverSuite) once(t *testing.T, r reach, skip []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 16*time.Minute)
	defer cancel()
	argv := slices.Clone(d.argv)
	if !*whole {
		argv = append(argv, d.quick...)
	}
	if len(skip) > 0 {
		argv = append(argv, "-test.skip", "^("+strings.Join(skip, "|")+")$")
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = d.dir
	cmd.Env = append(r.environment(d.name), "NODE_PATH="+filepath.Join(tools(t), "suites", "node_modules"))
	out, _ := cmd.CombinedOutput() // what passed is in it
	if dir := os.Getenv("SUITES_OUTPUT"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, d.name+"-"+r.name), out, 0o600); err != nil {
			t.Error(err)
		}
	}
	return string(out)
}

var (
	goOutcome     = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)
	ownOutcome    = regexp.MustCompile(`^(ok|FAIL) ([^:]+)`)
	pythonTest    = regexp.MustCompile(`^(test\w+) \(([\w.]+)\)`)
	pythonOutcome = regexp.MustCompile(`\.\.\. (ok|FAIL|ERROR|skipped .*)$`)
	numbered      = regexp.MustCompile(`\d{6,}`)
)

// passed reads the outcome of each test from what a suite prints: go test's
// words, unittest's, or those of the programs of this folder.
func passed(out string) map[string]bool {
	outcomes, python := map[string]bool{}, ""
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		if m := goOutcome.FindStringSubmatch(line); m != nil {
			outcomes[numbered.ReplaceAllString(m[2], "N")] = m[1] == "PASS"
			continue
		}
		if m := pythonTest.FindStringSubmatch(line); m != nil {
			python = strings.TrimPrefix(m[2], "tests.")
		}
		if m := pythonOutcome.FindStringSubmatch(line); m != nil && python != "" {
			outcomes[python], python = m[1] == "ok", ""
			continue
		}
		if m := ownOutcome.FindStringSubmatch(line); m != nil {
			outcomes[m[2]] = m[1] == "ok"
		}
	}
	return outcomes
}

// TestSuites: what passes straight at the database passes through the gateway
// under a policy that allows everything, or docs/postgres-compatibility.md says
// why it does not.
func TestSuites(t *testing.T) {
	t.Parallel()
	s := site(t)
	if err := s.Database.Exec(t.Context(), "postgres", `create role suites superuser login password '`+s.DBPassword+`'`); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`create role " tricky, ' } "" \ test user " superuser`, "create database suites_direct owner suites", "create database suites owner suites"} {
		if err := s.Database.Exec(t.Context(), "postgres", text); err != nil {
			t.Fatal(err)
		}
	}
	for _, database := range []string{"suites_direct", "suites"} {
		if err := s.Database.Exec(t.Context(), database, "create extension hstore; create extension ltree; create domain uint64 as numeric(20,0)"); err != nil {
			t.Fatal(err)
		}
	}
	host, port, _ := strings.Cut(s.Database.Addr, ":")
	direct := reach{"direct", host, port, s.DBPassword, "suites_direct", ""}
	through := reach{"through", "localhost", strconv.Itoa(s.PGPort), token(t, s, demo.Ada), "suites", filepath.Join(s.Dir, "ca.crt")}
	known := differences(t)
	for _, d := range driverSuites(t) {
		t.Run(d.name, func(t *testing.T) {
			var want, got map[string]bool
			if *whole { // beside one another they would be slower, and some tests know what is slow
				want, got = d.run(t, direct), d.run(t, through)
			} else {
				var both sync.WaitGroup
				both.Go(func() { want = d.run(t, direct) })
				both.Go(func() { got = d.run(t, through) })
				both.Wait()
			}
			compareSuite(t, d.name, want, got, known)
		})
	}
}

func compareSuite(t *testing.T, suite string, want, got map[string]bool, known []difference) {
	t.Helper()
	n := 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !want[name] || hasParts(want, name) {
			continue
		}
		n++
		if !got[name] && !slices.ContainsFunc(known, func(d difference) bool { return d.covers(suite, name) }) {
			t.Errorf("%s passes straight and not through the gateway", name)
		}
	}
	t.Logf("%d tests pass straight, %d of all fail there", n, len(want)-n)
	if n == 0 {
		t.Error("no test passes straight")
	}
	for _, d := range known {
		for _, name := range d.Tests[suite] {
			if passes, ran := want[name]; *whole && !ran || passes && got[name] && !d.Sometimes {
				t.Errorf("%s does not differ as it is said to", name)
			}
		}
	}
}

// hasParts reports whether a test of Go has others within it.
func hasParts(all map[string]bool, name string) bool {
	for other := range all {
		if strings.HasPrefix(other, name+"/") {
			return true
		}
	}
	return false
}
