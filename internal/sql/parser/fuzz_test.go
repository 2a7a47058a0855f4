package parser

import (
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// FuzzTranscoder holds the transcoder against protobuf's own reader of JSON: it
// may refuse more, but what both take is the same tree.
func FuzzTranscoder(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"version":170007,"stmts":[]}`,
		`{"version":170007,"stmts":[{"stmt":{"SelectStmt":{"targetList":[{"ResTarget":{"val":{"A_Const":{"isnull":true,"location":7}},"location":-1}},{}],"op":"SETOP_NONE"}},"stmt_len":8}]}`,
		`{"stmts":[{"stmt":{"String":{"sval":"a\\b\"\u0001\u003cé"}}},{"stmt":{"Integer":{"ival":-2147483648}}},{"stmt":{"Boolean":{"boolval":false}}}]}`,
	} {
		f.Add(text)
	}
	trees := newTranscoder()
	f.Fuzz(func(t *testing.T, text string) {
		tree, err := trees.tree(text)
		if err != nil {
			return
		}
		var got, want pg.ParseResult
		if err := proto.Unmarshal(tree, &got); err != nil {
			t.Fatalf("%q becomes %x: %v", text, tree, err)
		}
		if protojson.Unmarshal([]byte(text), &want) == nil && !proto.Equal(&got, &want) {
			t.Fatalf("%q becomes %v", text, &got)
		}
	})
}
