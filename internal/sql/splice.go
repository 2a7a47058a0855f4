package sql

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// A splice replaces bytes start to end of the client's text; at and until are
// where its own text lies in what is forwarded.
type splice struct {
	start, end int
	text       string
	at, until  int
	relation   bool // replaces a relation, as against dropping a qualifier
}

// A splicer finds the places to change by the tokens of the client's text.
type splicer struct {
	text    string
	tokens  []parser.Token // without comments
	at      map[int32]int  // start offset → index in tokens
	splices []splice
	refusal *Refusal
}

func newSplicer(text string, tokens []parser.Token) *splicer {
	s := &splicer{text: text, at: map[int32]int{}}
	for _, t := range tokens {
		if t.Kind == pg.Token_SQL_COMMENT || t.Kind == pg.Token_C_COMMENT {
			continue
		}
		s.at[t.Start] = len(s.tokens)
		s.tokens = append(s.tokens, t)
	}
	return s
}

// fail keeps the first reason for which the text cannot be changed.
func (s *splicer) fail(location int32, what, hint string) {
	if s.refusal != nil {
		return
	}
	s.refusal = &Refusal{
		Reason: access.Unsupported, SQLState: "0A000", Message: what, Position: charPosition(s.text, location), Hint: hint,
	}
}

const spellHint = "Write the table's name plainly, as schema.table or table."

// names finds the tokens of a dotted name and checks that they spell it.
func (s *splicer) names(location int32, parts ...string) (first, last int, ok bool) {
	i, ok := s.at[location]
	if !ok {
		return 0, 0, false
	}
	first = i
	for n, part := range parts {
		if n > 0 {
			if i++; i >= len(s.tokens) || s.tokens[i].Kind != pg.Token_ASCII_46 {
				return 0, 0, false
			}
			i++
		}
		if i >= len(s.tokens) || !spells(s.text[s.tokens[i].Start:s.tokens[i].End], part) {
			return 0, 0, false
		}
	}
	return first, i, true
}

// spells reports whether a token is an identifier that means name. Escaped
// identifiers (U&"…") are not understood.
func spells(token, name string) bool {
	if quoted, ok := strings.CutPrefix(token, `"`); ok {
		return strings.ReplaceAll(strings.TrimSuffix(quoted, `"`), `""`, `"`) == name
	}
	lower := []byte(token)
	for i, c := range lower { // as the server folds: ASCII only
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return string(lower) == name
}

func (s *splicer) kind(i int) pg.Token {
	if i < 0 || i >= len(s.tokens) {
		return pg.Token_NUL
	}
	return s.tokens[i].Kind
}

// relation replaces a relation by a subquery.
func (s *splicer) relation(ref *reference, subquery string) {
	var parts []string
	for _, p := range []string{ref.catalog, ref.schema, ref.relation.Name} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	first, last, ok := s.names(ref.location, parts...)
	if !ok {
		s.fail(ref.location, "the name of a table with masked columns is spelled in a way that is not handled", spellHint)
		return
	}
	if s.kind(last+1) == pg.Token_ASCII_42 { // the old "table *"
		last++
	}
	if !ref.inherit {
		if s.kind(first-1) == pg.Token_ASCII_40 && s.kind(last+1) == pg.Token_ASCII_41 { // ONLY (table)
			first, last = first-1, last+1
		}
		if s.kind(first-1) != pg.Token_ONLY {
			s.fail(ref.location, "ONLY is written in a way that is not handled", "Write ONLY table.")
			return
		}
		first--
	}
	if s.kind(first-1) == pg.Token_TABLE {
		first--
		subquery = "SELECT * FROM " + subquery
	}
	if !ref.aliased {
		subquery += " AS " + catalog.QuoteIdentifier(ref.relation.Name)
	}
	s.splices = append(s.splices, splice{
		start: int(s.tokens[first].Start), end: int(s.tokens[last].End), text: subquery, relation: true,
	})
}

// sample cuts TABLESAMPLE out, which has to stand within the subquery, and
// returns it. Its arguments have to be numbers.
func (s *splicer) sample(ref *reference) string {
	if ref.sample == 0 {
		return ""
	}
	method, ok := s.at[ref.sample]
	first := method - 1
	if ok && s.kind(method+1) == pg.Token_ASCII_46 { // pg_catalog.system
		method += 2
	}
	if !ok || s.kind(first) != pg.Token_TABLESAMPLE || method >= len(s.tokens) {
		s.fail(ref.location, "TABLESAMPLE is written in a way that is not handled", sampleHint)
		return ""
	}
	size, last := s.number(method + 1)
	text := " TABLESAMPLE pg_catalog." + s.token(method) + " (" + size + ")"
	if last > 0 && s.kind(last+1) == pg.Token_REPEATABLE {
		size, last = s.number(last + 2)
		text += " REPEATABLE (" + size + ")"
	}
	if last == 0 {
		s.fail(ref.location, "TABLESAMPLE of a table with masked columns takes a number only", sampleHint)
		return ""
	}
	s.splices = append(s.splices, splice{start: int(s.tokens[first].Start), end: int(s.tokens[last].End)})
	return text
}

const sampleHint = "Write TABLESAMPLE bernoulli (10) or system (10), with REPEATABLE (1) where it is to be repeated."

// number reads ( number ) at token i and returns its last token, 0 when it is
// something else.
func (s *splicer) number(i int) (text string, last int) {
	constant := s.kind(i+1) == pg.Token_ICONST || s.kind(i+1) == pg.Token_FCONST
	if s.kind(i) != pg.Token_ASCII_40 || !constant || s.kind(i+2) != pg.Token_ASCII_41 {
		return "", 0
	}
	return s.token(i + 1), i + 2
}

func (s *splicer) token(i int) string { return s.text[s.tokens[i].Start:s.tokens[i].End] }

// grouping puts columns in front of those of GROUP BY.
func (s *splicer) grouping(g *grouping, columns string) {
	if columns == "" {
		return
	}
	i, ok := s.at[g.location]
	if !ok || s.kind(i-1) != pg.Token_BY || s.kind(i-2) != pg.Token_GROUP_P {
		s.fail(g.location, "GROUP BY is written in a way that is not handled", "Name each column in GROUP BY.")
		return
	}
	start := int(s.tokens[i].Start)
	s.splices = append(s.splices, splice{start: start, end: start, text: columns})
}

// unqualify drops the schema of schema.table.column.
func (s *splicer) unqualify(u qualifiedUse) {
	first, _, ok := s.names(u.location, u.schema, u.ref.relation.Name)
	if !ok {
		s.fail(u.location, "a column is qualified in a way that is not handled", "Write table.column.")
		return
	}
	drop := splice{start: int(s.tokens[first].Start), end: int(s.tokens[first+2].Start)}
	if !slices.ContainsFunc(s.splices, func(o splice) bool { return o.start == drop.start }) {
		s.splices = append(s.splices, drop)
	}
}

// spliced is the new text, with the splices in order and their places in it.
func (s *splicer) spliced() string {
	slices.SortFunc(s.splices, func(a, b splice) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end)) })
	var out strings.Builder
	done := 0
	for i := range s.splices {
		p := &s.splices[i]
		if p.start < done {
			s.fail(int32(p.start), "two parts of the statement to change overlap", spellHint)
			return ""
		}
		out.WriteString(s.text[done:p.start])
		p.at = out.Len()
		out.WriteString(p.text)
		p.until = out.Len()
		done = p.end
	}
	out.WriteString(s.text[done:])
	return out.String()
}

// untouched lists the tokens that no splice covers, comments left out.
func untouched(text string, tokens []parser.Token, covered func(parser.Token) bool) []string {
	var list []string
	for _, t := range tokens {
		if t.Kind == pg.Token_SQL_COMMENT || t.Kind == pg.Token_C_COMMENT || covered(t) {
			continue
		}
		list = append(list, t.Kind.String()+" "+text[t.Start:t.End])
	}
	return list
}

// sameTokens reports whether two texts differ in the splices only.
func sameTokens(client string, before []parser.Token, forward string, after []parser.Token, splices []splice) bool {
	was := untouched(client, before, func(t parser.Token) bool {
		return slices.ContainsFunc(splices, func(p splice) bool { return int(t.Start) >= p.start && int(t.End) <= p.end })
	})
	is := untouched(forward, after, func(t parser.Token) bool {
		return slices.ContainsFunc(splices, func(p splice) bool { return int(t.Start) >= p.at && int(t.End) <= p.until })
	})
	return slices.Equal(was, is)
}

// clientPosition maps a character of the forwarded text to the client's.
func clientPosition(f *Forward, position int) int {
	if position <= 0 || len(f.splices) == 0 {
		return max(0, position)
	}
	offset := byteOffset(f.Text, position)
	shift := 0 // what splices before offset added
	for _, p := range f.splices {
		if offset < p.at {
			break
		}
		if offset < p.until || offset == p.at && p.text == "" { // what was dropped begins there
			return charPosition(f.client, int32(p.start))
		}
		shift = p.until - p.end
	}
	return charPosition(f.client, int32(min(offset-shift, len(f.client))))
}

// byteOffset is where the 1-based character of a text begins.
func byteOffset(text string, position int) int {
	offset := 0
	for range position - 1 {
		if offset >= len(text) {
			break
		}
		_, n := utf8.DecodeRuneInString(text[offset:])
		offset += n
	}
	return offset
}
