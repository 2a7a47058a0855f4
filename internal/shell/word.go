package shell

import (
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// word returns what a word is passed on as, when that is written out in a way
// that every shell reads alike; else it notes why not. A ~ that stands for the
// home directory is kept.
func (r *reading) word(w *syntax.Word) (value string, ok bool) {
	var b strings.Builder
	for i, part := range w.Parts {
		text, why := "", ""
		switch p := part.(type) {
		case *syntax.Lit:
			text, why = bare(p.Value, i == 0)
		case *syntax.SglQuoted:
			text, why = singleQuoted(p)
		case *syntax.DblQuoted:
			text, why = doubleQuoted(p)
		default:
			why = "is worked out on the host"
		}
		if why != "" {
			r.dunno("%s %s", r.source(part), why)
			return "", false
		}
		b.WriteString(text)
	}
	return b.String(), true
}

const (
	isPattern   = "may be a pattern, which the host expands"
	isDifferent = "is read differently by different shells"
)

// bare reads text outside of quotes. A backslash makes punctuation plain; fish
// takes one before a letter or digit for something else. What is not ASCII is
// left to quotes, for some shells know other blanks there.
func bare(text string, first bool) (value, why string) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\':
			i++
			if i == len(text) || isWordByte(text[i]) || text[i] >= 0x80 || text[i] < ' ' {
				return "", isDifferent
			}
			b.WriteByte(text[i])
			continue
		case first && i == 0 && c == '~' && (len(text) == 1 || text[1] == '/'):
		case first && i == 0 && (c == '=' || c == '%'):
			return "", isDifferent
		case isWordByte(c) || strings.IndexByte("-./:,@%+=", c) >= 0:
		case strings.IndexByte("*?[]", c) >= 0:
			return "", isPattern
		default:
			return "", isDifferent
		}
		b.WriteByte(c)
	}
	return b.String(), ""
}

func isWordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}

// singleQuoted reads '…': everything in it is plain, except that fish knows \\
// and \' there.
func singleQuoted(p *syntax.SglQuoted) (value, why string) {
	if p.Dollar || strings.Contains(p.Value, `\\`) || strings.HasSuffix(p.Value, `\`) {
		return "", isDifferent
	}
	return p.Value, ""
}

// doubleQuoted reads "…" without anything that is worked out on the host.
func doubleQuoted(p *syntax.DblQuoted) (value, why string) {
	if p.Dollar {
		return "", isDifferent
	}
	var b strings.Builder
	for _, part := range p.Parts {
		lit, ok := part.(*syntax.Lit)
		if !ok {
			return "", "is worked out on the host"
		}
		for i := 0; i < len(lit.Value); i++ {
			c := lit.Value[i]
			if c == '$' || c == '`' {
				return "", isDifferent
			}
			if c == '\\' {
				i++
				if i == len(lit.Value) || strings.IndexByte(`"\$`, lit.Value[i]) < 0 {
					return "", isDifferent
				}
				c = lit.Value[i]
			}
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}
