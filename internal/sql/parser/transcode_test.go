//go:build !race

// Under the race detector the grammar takes minutes to compile.

package parser

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"strings"
	"testing"

	grammar "github.com/wasilibs/go-pgquery/parser"
)

// sameTree compares the transcoder with the grammar's own protobuf, and tells
// whether text is SQL.
func sameTree(t *testing.T, trees *transcoder, text string) bool {
	t.Helper()
	tokens, err := scan(text)
	if err != nil {
		return false
	}
	if s, e := checkTokens(text, tokens); e != nil || !s.light() {
		return false
	}
	want, err := grammar.ParseToProtobuf(text)
	parsed, jsonErr := grammar.ParseToJSON(text)
	if (err == nil) != (jsonErr == nil) {
		t.Fatalf("%q: %v as protobuf, %v as JSON", text, err, jsonErr)
	}
	if err != nil {
		return false
	}
	got, err := trees.tree(parsed)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%q: %v\n%x\n%x", text, err, got, want)
	}
	return true
}

// TestTranscoderAgreesWithTheGrammar compares them over every statement of
// PostgreSQL's own tests and documentation; over some of them when short.
func TestTranscoderAgreesWithTheGrammar(t *testing.T) {
	packed, err := os.Open("../testdata/postgresql.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	r, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	corpus, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	statements := strings.FieldsFunc(string(corpus), func(c rune) bool { return c == '\x1e' || c == '\f' })
	trees, parsed := newTranscoder(), 0
	for _, statement := range statements {
		if sameTree(t, trees, strings.ToValidUTF8(statement, "?")) {
			parsed++
		}
	}
	if parsed < len(statements)*3/4 {
		t.Fatalf("only %d of %d are SQL", parsed, len(statements))
	}
}

// TestLightTextsLeaveTheStackAMargin nests what can nest deeper than a light
// text may.
func TestLightTextsLeaveTheStackAMargin(t *testing.T) {
	deep := func(before, middle, after string, times int) string {
		return strings.Repeat(before, times) + middle + strings.Repeat(after, times)
	}
	for _, text := range []string{ // by operators and keywords
		"select 1" + strings.Repeat("+1", 5*lightStructural), "select " + strings.Repeat("not ", 5*lightStructural) + "a",
		"select " + strings.Repeat("- ", 5*lightStructural) + "1", "select 1" + strings.Repeat("::int", 5*lightStructural),
		"select 1" + strings.Repeat(" union select 1", 5*lightStructural), "select * from t" + strings.Repeat(" cross join t", 5*lightStructural),
		// by depth
		"select " + deep("(select ", "1", ")", 5*lightDepth), "select * from " + deep("(select * from ", "t", ") x", 5*lightDepth),
		"select " + deep("case when a then ", "1", " end", 5*lightDepth), "select " + deep("f(", "1", ")", 5*lightDepth),
		"select " + deep("array[", "1", "]", 5*lightDepth), "select " + deep("a in (", "1", ")", 5*lightDepth),
		"select " + deep("a and (b or ", "c", ")", 5*lightDepth), deep("with x as (", "select 1", ") select 1", 5*lightDepth),
	} {
		want, err := grammar.ParseToProtobuf(text)
		if err != nil {
			t.Fatalf("%.60s: %v", text, err)
		}
		tree, err := grammar.ParseToJSON(text)
		if err != nil {
			t.Fatalf("%.60s: %v", text, err)
		}
		if got, err := newTranscoder().tree(tree); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%.60s: another tree, %v", text, err)
		}
	}
}

func TestTranscoderRefusesWhatItDoesNotKnow(t *testing.T) {
	trees := newTranscoder()
	for _, text := range []string{
		``, `{`, `[]`, `{}x`, `{"version":1,}`, `{"version":"1"}`, `{"version":4294967296}`, `{"version":true}`, `{"nothing":1}`,
		`{"stmts":{}}`, `{"stmts":[{}`, `{"stmts":[{"stmt":{"SelectStmt":{"op":"SETOP_OTHER"}}}]}`, `{"stmts":[{"stmt":{"String":{"sval":"\x"}}}]}`,
		"{\"stmts\":[{\"stmt\":{\"String\":{\"sval\":\"\xff\"}}}]}", `{"stmts":[{"stmt":{"Boolean":{"boolval":1}}}]}`, `{ }`,
	} {
		if b, err := trees.tree(text); err == nil {
			t.Errorf("%q is taken, as %x", text, b)
		}
	}
	if b, err := trees.tree(`{"version":170007,"stmts":[]}`); err != nil || len(b) == 0 {
		t.Error("the twin is refused:", err)
	}
}
