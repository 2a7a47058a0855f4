package console

import (
	"regexp"
	"strings"
)

// maxCompared bounds the work of comparing two texts, in pairs of words.
const maxCompared = 4 << 20

// A change is a piece of a text and what stands in its place in another.
type change struct{ removed, added string }

var textWord = regexp.MustCompile(`(?s)\w+|\s+|.`)

// changesOf lists how to differs from from, word by word, in order. Texts that
// differ in too many words are one change.
func changesOf(from, to string) []change {
	a, b := textWord.FindAllString(from, -1), textWord.FindAllString(to, -1)
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	if len(a) == 0 && len(b) == 0 {
		return nil
	}
	if len(a)*len(b) > maxCompared {
		return []change{{strings.Join(a, ""), strings.Join(b, "")}}
	}
	return compare(a, b)
}

// compare follows a longest common subsequence.
func compare(a, b []string) (changes []change) {
	common := make([][]int32, len(a)+1) // of a[i:] and b[j:]
	for i := range common {
		common[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var open change
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			if open != (change{}) {
				changes, open = append(changes, open), change{}
			}
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			open.removed += a[i]
			i++
		default:
			open.added += b[j]
			j++
		}
	}
	if open != (change{}) {
		changes = append(changes, open)
	}
	return changes
}

// difference shows how to differs from from. Every line begins with - or +, so
// that no text can pass for a change that is not there.
func difference(from, to string) string {
	var lines []string
	for _, c := range changesOf(from, to) {
		for _, side := range [...]struct{ mark, text string }{{"- ", c.removed}, {"+ ", c.added}} {
			if side.text == "" {
				continue
			}
			for l := range strings.SplitSeq(visibleLines(side.text), "\n") {
				lines = append(lines, side.mark+l)
			}
		}
	}
	return strings.Join(lines, "\n")
}
