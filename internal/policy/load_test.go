package policy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"chaperone.dev/chaperone/internal/strictyaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Every fault of every file is reported at once, each where it is.
func TestLoadFaultsGolden(t *testing.T) {
	t.Parallel()
	set, err := Load(os.DirFS("testdata/faults"))
	if set != nil {
		t.Error("a set was loaded in part")
	}
	if FaultsOf(err) == nil {
		t.Fatalf("got %v, want faults", err)
	}
	golden(t, "testdata/faults.golden", err.Error()+"\n")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs (run with -update and compare):\n%s", name, got)
	}
}

// A fault inside a condition is where its first character stands in the file,
// however the condition is quoted.
func TestLoadFaultPosition(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]string{
		"plain":                   "when: size(sql.tables) == 0 && NOPE == 1",
		"plain over lines":        "when: size(sql.tables) == 0 &&\n        sql.read_only\n        && NOPE == 1",
		"single quoted":           "when: 'sql.read_only && NOPE == 1'",
		"single, quotes inside":   "when: 'sql.command == ''SELECT'' && NOPE == 1'",
		"single over lines":       "when: 'sql.read_only &&\n\n      NOPE == 1'",
		"double quoted":           `when: "sql.read_only && NOPE == 1"`,
		"double, escapes":         `when: "sql.command == \"S\x45\u004cECT\" && \t NOPE == 1"`,
		"double, continued":       "when: \"sql.read_only \\\n      && NOPE == 1\"",
		"double, folded":          "when: \"sql.read_only   \n      && NOPE == 1\"",
		"double, newline escaped": `when: "sql.read_only &&\n NOPE == 1"`,
		"literal":                 "when: |\n      sql.read_only &&\n        NOPE == 1",
		"literal, stripped":       "when: |-\n      sql.read_only\n\n      && NOPE == 1",
		"literal, indented":       "when: |2\n        sql.read_only &&\n        NOPE == 1",
		"literal, tab inside":     "when: |\n      sql.read_only &&\n      \tNOPE == 1",
		"folded":                  "when: >\n      sql.read_only &&\n      NOPE == 1",
		"folded, more indented":   "when: >-\n      sql.read_only &&\n\n          sql.has_where &&\n      NOPE == 1",
		"umlauts before":          `when: 'sql.command == "Größe" && NOPE == 1'`,
		"on the next line":        "when:\n      'sql.read_only && NOPE == 1'",
		"two blanks":              "when: 'sql.read_only  &&  NOPE == 1'",
		"tagged":                  "when: !!str 'sql.read_only && NOPE == 1'",
		"at the start":            "when: NOPE == 1 && sql.read_only",
	} {
		for _, ending := range []string{"\n", "\r\n"} {
			t.Run(fmt.Sprintf("%s %q", name, ending), func(t *testing.T) {
				t.Parallel()
				text := "policy: p\nprincipal: 'true'\nresource: 'true'\nrules:\n  - name: r\n    " + when + "\n    effect: allow\n"
				line, column := placeOf(text, "NOPE")
				text = strings.ReplaceAll(text, "\n", ending)
				_, err := Load(files("p.yaml", text))
				faults := FaultsOf(err)
				if len(faults) != 1 || !strings.Contains(faults[0].Message, "NOPE") || faults[0].Path != "rules[0].when" {
					t.Fatalf("got %v", err)
				}
				if faults[0].Line != line || faults[0].Column != column {
					t.Errorf("got %d:%d, want %d:%d", faults[0].Line, faults[0].Column, line, column)
				}
			})
		}
	}
}

func placeOf(text, word string) (line, column int) {
	for i, l := range strings.Split(text, "\n") {
		if before, _, found := strings.Cut(l, word); found {
			return i + 1, len([]rune(before)) + 1
		}
	}
	return 0, 0
}

func TestLoadFindsFiles(t *testing.T) {
	t.Parallel()
	named := func(name string) string {
		return strings.Replace(everybody("  - {name: r, effect: allow}\n"), "policy: p", "policy: "+name, 1)
	}
	set := mustLoad(t,
		"b.yaml", named("b"), "a.yml", named("a"), "team/c.YAML", named("c"),
		"team/tests.yaml", "tests: [{nonsense", "tests.yaml", "nonsense: [", "README.md", "# read me",
		".hidden.yaml", "nonsense: [", "..data/x.yaml", "nonsense: [", ".git/x.yaml", "nonsense: [")
	var got []string
	for _, ref := range set.Rules() {
		got = append(got, ref.String())
	}
	if want := "a/r b/r c/r"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestLoadDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// As Kubernetes mounts a ConfigMap: links to ..data, which is a link to the
	// current version.
	write("..2026_01/p.yaml", everybody("  - {name: r, effect: allow}\n"))
	for link, to := range map[string]string{"..data": "..2026_01", "p.yaml": "..data/p.yaml"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	set, err := LoadDir(dir)
	if err != nil || len(set.Rules()) != 1 {
		t.Fatalf("got %v, %v", set, err)
	}
	write("..2026_01/p.yaml", "policy: p\n")
	_, err = LoadDir(dir)
	if faults := FaultsOf(err); len(faults) == 0 || faults[0].File != filepath.Join(dir, "p.yaml") {
		t.Errorf("faults name another file: %v", err)
	}
	if _, err := LoadDir(filepath.Join(dir, "missing")); err == nil || FaultsOf(err) != nil {
		t.Errorf("a missing directory: %v", err)
	}
}

func TestLoadBounds(t *testing.T) {
	t.Parallel()
	long := everybody("  - {name: r, effect: allow, when: '" + strings.Repeat("sql.read_only && ", 600) + "true'}\n")
	deep := everybody("  - {name: r, effect: allow, when: '" + strings.Repeat("!(", 200) + "true" + strings.Repeat(")", 200) + "'}\n")
	regex := everybody("  - {name: r, effect: allow, when: 'http.path.matches(\"(a{100}){10}\")'}\n")
	rules := everybody(strings.Repeat("  - {name: r, effect: allow}\n", 1001))
	for name, tc := range map[string]struct{ content, want string }{
		"long condition": {long, "is longer than 8192 characters"},
		"deep condition": {deep, "nests deeper than 64 levels"},
		"costly pattern": {regex, "regex"},
		"many rules":     {rules, "the limit is 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(files("p.yaml", tc.content))
			if FaultsOf(err) == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %.300v", err)
			}
		})
	}
	t.Run("large file", func(t *testing.T) {
		t.Parallel()
		if _, err := Load(files("p.yaml", strings.Repeat("#", strictyaml.MaxBytes+1))); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("not a file", func(t *testing.T) {
		t.Parallel()
		fsys := fstest.MapFS{"p.yaml": &fstest.MapFile{Mode: os.ModeNamedPipe}}
		if _, err := Load(fsys); err == nil {
			t.Error("accepted")
		}
	})
}

// Whatever is wrong with conditions, each fault is one message where it is, all
// of them at once, and nothing is loaded in part.
func TestLoadBadConditions(t *testing.T) {
	t.Parallel()
	bad := []struct{ when, place, message string }{
		{`sql.statements == 99999999999999999999`, "9999", "syntax error: invalid int literal"},
		{`1e999 > 1.0`, "1e999", "syntax error: invalid double literal"},
		{`sql.text == "` + strings.Repeat("x", maxConditionSize) + `"`, "'", "is longer than 8192 characters; split it into named conditions or rules"},
		{strings.Repeat("!(", 200) + "true" + strings.Repeat(")", 200), "'", "nests deeper than 64 levels"},
		{strings.Repeat("[", 100) + strings.Repeat("]", 100) + " == []", "'", "nests deeper than 64 levels"},
		{`sql.tables.all(a, sql.columns.all(b, sql.reads.all(c, a == c)))`, "(c,", "all, exists, map and the like may stand at most 2 deep in each other"},
		{`now > timestamp("99999-01-01T00:00:00Z")`, `"99999`, "invalid timestamp argument"},
		{`sql.read_only == 1`, "== 1", "found no matching overload for '_==_' applied to '(bool, int)'"},
		{`condition("r")`, `"r"`, `there is no condition named "r"; there are none here`},
		{`sql.locks &&`, "", "the condition ends too early"},
	}
	var rules strings.Builder
	for i, b := range bad {
		fmt.Fprintf(&rules, "  - {name: r%d, effect: allow, when: '%s'}\n", i, b.when)
	}
	set, err := Load(files("p.yaml", everybody(rules.String()), "q.yaml", strings.Replace(everybody("  - {name: r, effect: allow}\n"), "policy: p", "policy: q", 1)))
	faults := FaultsOf(err)
	if set != nil || len(faults) != len(bad) {
		t.Fatalf("got %d faults, want %d:\n%v", len(faults), len(bad), err)
	}
	lines := strings.Split(everybody(rules.String()), "\n")
	for i, b := range bad {
		f := faults[i]
		line := lines[f.Line-1]
		if f.File != "p.yaml" || f.Path != fmt.Sprintf("rules[%d].when", i) || f.Message != b.message {
			t.Errorf("%.60s: got %v, want %s", b.when, f, b.message)
		}
		if !strings.Contains(line, fmt.Sprintf("name: r%d,", i)) || !strings.HasPrefix(string([]rune(line)[f.Column-1:]), b.place) {
			t.Errorf("%.60s: at column %d of %.60s", b.when, f.Column, line)
		}
	}
}

// The revision and the hashes stand for what the policies say.
func TestRevision(t *testing.T) {
	t.Parallel()
	base := everybody("  - {name: a, effect: allow, when: sql.read_only}\n  - {name: b, effect: deny, when: sql.ddl}\n")
	set := mustLoad(t, "p.yaml", base)
	if r := set.Revision(); !strings.HasPrefix(r, "rev_") || len(r) != 16 {
		t.Errorf("revision %q", r)
	}
	same := mustLoad(t, "p.yaml", "# a comment\n"+strings.ReplaceAll(base, "{name: a, effect: allow, when: sql.read_only}", "{effect: allow, name: a, when: 'sql.read_only'}"))
	if same.Revision() != set.Revision() || same.Rules()[0] != set.Rules()[0] {
		t.Error("layout changes the revision")
	}
	for name, edit := range map[string][2]string{
		"condition": {"sql.ddl", "sql.locks"},
		"effect":    {"effect: deny", "effect: allow"},
		"principal": {"principal: 'true'", "principal: 'principal.user != \"\"'"},
		"resource":  {"resource: 'true'", "resource: 'resource.name != \"\"'"},
		"name":      {"name: b", "name: c"},
		"limit":     {"when: sql.ddl", "when: sql.ddl, message: no"},
	} {
		changed := mustLoad(t, "p.yaml", strings.Replace(base, edit[0], edit[1], 1))
		if changed.Revision() == set.Revision() {
			t.Errorf("%s: the revision is the same", name)
		}
		if changed.Rules()[1].Hash == set.Rules()[1].Hash {
			t.Errorf("%s: the rule's hash is the same", name)
		}
		if name == "condition" && changed.Rules()[0] != set.Rules()[0] {
			t.Error("the hash of another rule changed")
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, seed := range []string{ordersPolicy, everybody("  - {name: a, effect: allow, when: 'http.body.x == 1'}\n")} {
		f.Add(seed)
	}
	entries, err := filepath.Glob("testdata/faults/*.y*ml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range entries {
		content, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(content))
	}
	f.Fuzz(func(t *testing.T, content string) {
		set, err := Load(files("p.yaml", content))
		if err != nil {
			faults, ok := errors.AsType[strictyaml.Faults](err)
			if !ok && len(content) <= strictyaml.MaxBytes {
				t.Fatalf("not faults: %v", err)
			}
			lines := strings.Split(content, "\n")
			for _, fault := range faults {
				if fault.Line < 1 || fault.Line > len(lines)+1 || fault.Column < 1 {
					t.Fatalf("fault outside of the file: %v", fault)
				}
			}
			return
		}
		for _, req := range sampleRequests() {
			d := set.Decide(req, monday())
			if x := set.Explain(req, monday()); x.Decision.Effect != d.Effect {
				t.Fatalf("explained as %s, decided as %s", x.Decision.Effect, d.Effect)
			}
		}
	})
}
