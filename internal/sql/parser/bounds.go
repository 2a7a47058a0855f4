package parser

import (
	"fmt"
	"strings"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// What the grammar was clean with (measured): 3,000 operators of any one kind,
// 500 levels of any one nesting, 40,000 tokens. The bounds keep a margin of two
// to five.
const (
	maxTokens     = 20000
	maxStructural = 1500 // tokens that may nest: operators and keywords, not literals, names and commas
	maxDepth      = 100  // open parentheses, brackets and CASEs
	maxIdentifier = 63   // bytes; longer ones are truncated by the server
	minMaxBytes   = 1 << 10
	maxMaxBytes   = 1 << 20
)

// A text beyond these is judged by the canary before its tree is believed.
const (
	plainStructural = 200
	plainDepth      = 30
)

// The grammar writes trees as JSON up to here: its writer uses more stack than
// the one of protobuf, and was clean with five times of either.
const (
	lightStructural = 100
	lightDepth      = 20
)

// checkText refuses what must not reach the grammar at all.
func checkText(text string, maxBytes int) *Error {
	if len(text) > maxBytes {
		return &Error{
			Message:  fmt.Sprintf("the statement is %d bytes long; the limit is %d", len(text), maxBytes),
			SQLState: "54000",
		}
	}
	if strings.IndexByte(text, 0) >= 0 {
		return &Error{Message: "the statement contains a NUL byte", SQLState: "22021"}
	}
	if !utf8.ValidString(text) {
		return &Error{Message: "the statement is not valid UTF-8", SQLState: "22021"}
	}
	return nil
}

// A shape is what the tokens say about how deep a parse may go.
type shape struct {
	tokens, structural, depth int
}

func (s shape) plain() bool { return s.structural <= plainStructural && s.depth <= plainDepth }

func (s shape) light() bool { return s.structural <= lightStructural && s.depth <= lightDepth }

// checkTokens measures the tokens and refuses what is out of bounds. The text
// holds no NUL, and offsets were checked to lie inside it.
func checkTokens(text string, tokens []Token) (shape, *Error) {
	s := shape{tokens: len(tokens)}
	if len(tokens) > maxTokens {
		return s, tooComplex("%d tokens; the limit is %d", len(tokens), maxTokens)
	}
	depth := 0
	for _, t := range tokens {
		switch t.Kind {
		case pg.Token_ASCII_40, pg.Token_ASCII_91, pg.Token_CASE: // ( [
			depth++
			s.depth = max(s.depth, depth)
		case pg.Token_ASCII_41, pg.Token_ASCII_93, pg.Token_END_P: // ) ]
			depth = max(0, depth-1)
		case pg.Token_IDENT, pg.Token_UIDENT:
			if identifierBytes(text[t.Start:t.End]) > maxIdentifier {
				return s, &Error{
					Message:  fmt.Sprintf("a name is longer than %d bytes, which the server would cut", maxIdentifier),
					Position: charPosition(text, t.Start), SQLState: "42622",
				}
			}
		}
		if !leaf(t.Kind) {
			s.structural++
		}
	}
	if s.structural > maxStructural {
		return s, tooComplex("%d operators and keywords; the limit is %d", s.structural, maxStructural)
	}
	if s.depth > maxDepth {
		return s, tooComplex("%d levels of nesting; the limit is %d", s.depth, maxDepth)
	}
	return s, nil
}

func tooComplex(format string, args ...any) *Error {
	return &Error{Message: "the statement is too complex: it has " + fmt.Sprintf(format, args...), SQLState: "54001"}
}

// leaf reports whether a token of this kind cannot by itself make the tree
// deeper. Everything not named here counts as if it could.
func leaf(kind pg.Token) bool {
	switch kind {
	case pg.Token_IDENT, pg.Token_UIDENT, pg.Token_FCONST, pg.Token_SCONST, pg.Token_USCONST, pg.Token_BCONST,
		pg.Token_XCONST, pg.Token_ICONST, pg.Token_PARAM, pg.Token_SQL_COMMENT, pg.Token_C_COMMENT,
		pg.Token_NULL_P, pg.Token_TRUE_P, pg.Token_FALSE_P, pg.Token_DEFAULT,
		// Keywords that stand in a list or in what is counted already: a CASE, a
		// JOIN, a UNION, a pair of parentheses.
		pg.Token_AS, pg.Token_FROM, pg.Token_WHERE, pg.Token_WHEN, pg.Token_THEN, pg.Token_ELSE, pg.Token_END_P, pg.Token_ON,
		pg.Token_BY, pg.Token_ASC, pg.Token_DESC, pg.Token_SELECT,
		pg.Token_ASCII_40, pg.Token_ASCII_41, pg.Token_ASCII_91, pg.Token_ASCII_93, // ( ) [ ]
		pg.Token_ASCII_44, pg.Token_ASCII_46, pg.Token_ASCII_59: // , . ;
		return true
	}
	return false
}

// identifierBytes is the length of the name that the token spells, at most.
func identifierBytes(token string) int {
	n := len(token)
	if i := strings.IndexByte(token, '"'); i >= 0 {
		n -= i + 2
		n -= strings.Count(token[i+1:max(i+1, len(token)-1)], `""`)
	}
	return n
}

// charPosition is the 1-based character at a byte offset.
func charPosition(text string, offset int32) int {
	if offset < 0 || int(offset) > len(text) {
		return 0
	}
	return utf8.RuneCountInString(text[:offset]) + 1
}
