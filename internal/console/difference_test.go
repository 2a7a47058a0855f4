package console

import (
	"slices"
	"strings"
	"testing"
)

func TestChanges(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a b ", 20_000)
	other := strings.ReplaceAll(long, "a", "c")
	for _, c := range []struct {
		from, to string
		want     []change
	}{
		{"", "", nil},
		{"a b c", "a b c", nil},
		{"a b c", "a x c", []change{{"b", "x"}}},
		{"a", "", []change{{"a", ""}}},
		{"", "a", []change{{"", "a"}}},
		{"one, two; three", "one, 2; three, four", []change{{"two", "2"}, {"", ", four"}}},
		{"ü;x", "x;ü", []change{{"ü;", ""}, {"", ";ü"}}},
		{"same " + long + "y", "same " + other + "y", []change{{strings.TrimSuffix(long, " b "), strings.TrimSuffix(other, " b ")}}},
	} {
		if got := changesOf(c.from, c.to); !slices.Equal(got, c.want) {
			t.Errorf("%.40q to %.40q: got %.200q", c.from, c.to, got)
		}
	}
}
