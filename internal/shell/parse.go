package shell

import (
	"reflect"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// A simple is a simple command with its words as the shell would pass them on.
// When dynamic is set some word is not known.
type simple struct {
	words     []string
	redirects []redirect
	assigns   bool
	tilde     bool // some word begins with a ~ that is quoted
	dynamic   bool
}

// plain reports whether it is nothing but its words.
func (s *simple) plain() bool {
	return !s.dynamic && !s.assigns && len(s.redirects) == 0 && len(s.words) > 0
}

type redirect struct {
	path string
	how  touch
}

// variants are the grammars that must agree on what a text is.
func variants() []syntax.LangVariant {
	return []syntax.LangVariant{syntax.LangBash, syntax.LangPOSIX, syntax.LangMirBSDKorn, syntax.LangZsh}
}

// parse reads text as each of the shells would.
func (j *judge) parse(text string) []simple {
	var first *reading
	for _, variant := range variants() {
		file, err := syntax.NewParser(syntax.Variant(variant), syntax.KeepComments(true)).Parse(strings.NewReader(text), "")
		if err != nil {
			j.dunno("not every shell can read it: %s", quoted(err.Error()))
			return nil
		}
		r := &reading{text: text}
		r.comments(file.Last)
		r.statements(file.Stmts)
		if first == nil {
			first = r
			continue
		}
		if !reflect.DeepEqual(first.lines, r.lines) || !reflect.DeepEqual(first.unknown, r.unknown) {
			j.dunno("shells read it differently")
			return nil
		}
	}
	for _, why := range first.unknown {
		j.dunno("%s", why)
	}
	return first.lines
}

// A reading is a text as one shell understands it.
type reading struct {
	text    string
	lines   []simple
	unknown []string
}

func (r *reading) dunno(format string, args ...any) { r.unknown = reason(r.unknown, format, args) }

// source is the text of a node, as written.
func (r *reading) source(n syntax.Node) string {
	from, to := n.Pos().Offset(), n.End().Offset()
	if from >= to || to > uint(len(r.text)) {
		return ""
	}
	return quoted(r.text[from:to])
}

func (r *reading) comments(list []syntax.Comment) {
	if len(list) > 0 {
		r.dunno("it has a comment")
	}
}

func (r *reading) statements(list []*syntax.Stmt) {
	for _, s := range list {
		r.statement(s)
	}
}

func (r *reading) statement(s *syntax.Stmt) {
	r.comments(s.Comments)
	if s.Coprocess || s.Disown {
		r.dunno("it leaves a process behind in a way of some shells")
	}
	switch c := s.Cmd.(type) {
	case *syntax.CallExpr:
		r.call(c, s.Redirs)
	case *syntax.BinaryCmd:
		if c.Op != syntax.AndStmt && c.Op != syntax.OrStmt && c.Op != syntax.Pipe || len(s.Redirs) > 0 {
			r.dunno("%s is not known to every shell", c.Op)
		}
		r.statement(c.X)
		r.statement(c.Y)
	case nil:
		r.dunno("a redirection without a command")
	default:
		r.dunno("a compound command: %s", r.source(s))
	}
}

// call reads a simple command.
func (r *reading) call(c *syntax.CallExpr, redirs []*syntax.Redirect) {
	var s simple
	for _, a := range c.Assigns {
		s.assigns = true
		r.assignment(a, &s)
	}
	for i, w := range c.Args {
		word, ok := r.word(w)
		if !ok {
			s.dynamic = true
			continue
		}
		if i == 0 && !isCommandWord(r.source(w)) {
			r.dunno("shells may take %s for something else than a program", r.source(w))
		}
		s.tilde = s.tilde || word != "" && word[0] == '~' && r.text[w.Pos().Offset()] != '~'
		s.words = append(s.words, word)
	}
	for _, redir := range redirs {
		r.redirection(redir, &s)
	}
	r.lines = append(r.lines, s)
}

// isCommandWord reports whether a word in the command position is a name to
// every shell, judged by how it begins.
func isCommandWord(source string) bool {
	if source == "" {
		return false
	}
	c := source[0]
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(`_/.~'"\`, rune(c))
}

func (r *reading) assignment(a *syntax.Assign, s *simple) {
	if a.Append || a.Naked || a.Name == nil || a.Index != nil || a.Array != nil {
		r.dunno("an assignment: %s", r.source(a))
		return
	}
	value := ""
	if a.Value != nil {
		var ok bool
		if value, ok = r.word(a.Value); !ok {
			s.dynamic = true
			return
		}
	}
	if name := a.Name.Value; !harmless(name) || !plainValue.MatchString(value) || !isUTF8Locale(name, value) {
		r.dunno("the variable %s may change what runs", quoted(name))
	}
}

func (r *reading) redirection(redir *syntax.Redirect, s *simple) {
	if redir.N != nil && (len(redir.N.Value) != 1 || redir.N.Value[0] < '0' || redir.N.Value[0] > '9') {
		r.dunno("a redirection of %s", quoted(redir.N.Value))
		return
	}
	target, ok := r.word(redir.Word)
	if !ok {
		return
	}
	switch redir.Op {
	case syntax.RdrOut, syntax.AppOut, syntax.RdrIn:
		if target != "" && target[0] == '~' && r.text[redir.Word.Pos().Offset()] != '~' {
			r.dunno("a file whose name begins with ~")
			return
		}
	}
	switch redir.Op {
	case syntax.RdrOut, syntax.AppOut:
		s.redirects = append(s.redirects, redirect{target, writes})
	case syntax.RdrIn:
		s.redirects = append(s.redirects, redirect{target, reads})
	case syntax.DplOut:
		if len(target) != 1 || target[0] < '0' || target[0] > '9' {
			r.dunno("a redirection to %s, which shells read differently", quoted(target))
		}
	case syntax.Hdoc, syntax.DashHdoc:
		r.dunno("a here-document")
	default:
		r.dunno("%s is not known to every shell", redir.Op)
	}
}
