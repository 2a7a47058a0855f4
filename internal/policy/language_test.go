package policy

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/debug"
)

// generatedParser returns the language of whenSite's environment, which parses
// with the parser that CEL's grammar is generated into.
func generatedParser(tb testing.TB, env *environment) *cel.Env {
	tb.Helper()
	slow, err := env.sites[whenSite].env.Extend(
		cel.EnableMacroCallTracking(),
		cel.ParserExpressionSizeLimit(maxConditionSize),
		cel.ParserRecursionLimit(maxConditionDepth),
		cel.ExpressionNodeLimit(maxConditionNodes),
	)
	if err != nil {
		tb.Fatal(err)
	}
	return slow
}

// agrees fails when the two parsers read text differently. One of them may
// refuse what nests deeply, for they count depth differently.
func agrees(tb testing.TB, env *environment, slow *cel.Env, text string) bool {
	tb.Helper()
	fast, _, faults := env.sites[whenSite].parse(text)
	tree, issues := slow.Parse(text)
	if faults != nil || issues.Err() != nil {
		return false
	}
	if got, want := debug.ToDebugString(fast.Expr()), debug.ToDebugString(tree.NativeRep().Expr()); got != want {
		tb.Errorf("%q is read as\n%s\nand by the generated parser as\n%s", text, got, want)
	}
	return true
}

// The parser in use reads conditions as the generated one does: grouping,
// precedence, escapes, macros.
func TestParsersAgree(t *testing.T) {
	t.Parallel()
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	slow := generatedParser(t, env)
	texts := append(conditionSeeds(),
		`1 + 2 * 3 - 4 / 2 % 5 == -7 || !true && !!false ? 1 < 2 : 2 >= 1`,
		`true ? (false ? true : false) : true ? false : true`,
		`- -1 == 1 && -(1) == -1 && --sql.statements == 1 && 1 - -1 == 2`,
		`"\x41\u00e9\U0001F600\101\n\"" == 'a' + r"\d" + """x"y""" + b"\xff".size()`,
		`a.b[?"c"].?d.orValue({"x": [1, 2u, 0x1f, 1.5e3, null]})`,
		`[1, ?a.?b].exists_one(x, x in [1, 2] && has(a.b.c)) == .sql.ddl`,
		"sql.read_only // a comment\n && true || \t false",
		`sql.tables.all(t, sql.columns.exists(c, c.startsWith(t))).f(1, 2).g`,
		"a.`b-c` == 9223372036854775807 && -9223372036854775808 < 0",
		`a && b && c && d || e || f && (g || h) && i`,
	)
	for _, text := range texts {
		if !agrees(t, env, slow, text) {
			t.Errorf("%q is refused by one of them", text)
		}
	}
	quoted := regexp.MustCompile("'[^'\n]+'|`[^`\n]+`")
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, name := range pages {
		page, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range quoted.FindAllString(string(page), -1) {
			if agrees(t, env, slow, text[1:len(text)-1]) {
				read++
			}
		}
	}
	if read < 100 {
		t.Errorf("only %d expressions were found on the pages", read)
	}
}

func FuzzParsersAgree(f *testing.F) {
	for _, seed := range conditionSeeds() {
		f.Add(seed)
	}
	env, err := newEnvironment()
	if err != nil {
		f.Fatal(err)
	}
	slow := generatedParser(f, env)
	f.Fuzz(func(t *testing.T, text string) { agrees(t, env, slow, text) })
}
