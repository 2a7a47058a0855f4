package record

import (
	"strings"
	"unicode/utf8"
)

// maxColumn is the width up to which columns are aligned; a longer cell moves
// the rest of its row.
const maxColumn = 48

// A table lines up the rows of one result, which may come in several pieces:
// columns never become narrower.
type table struct {
	widths []int
}

// add returns the lines of one piece, made inert. columns is empty for all
// but the first.
func (t *table) add(columns []string, rows [][]*string) []string {
	if len(columns) > 0 {
		*t = table{}
	}
	cells := make([][]string, 0, len(rows)+1)
	if len(columns) > 0 {
		head := make([]string, len(columns))
		for i, c := range columns {
			head[i] = Visible(c)
		}
		cells = append(cells, head)
	}
	for _, row := range rows {
		line := make([]string, len(row))
		for i, cell := range row {
			line[i] = "NULL"
			if cell != nil {
				line[i] = Visible(*cell)
			}
		}
		cells = append(cells, line)
	}
	for _, row := range cells {
		t.widen(row)
	}
	lines := make([]string, 0, len(cells)+1)
	for i, row := range cells {
		lines = append(lines, t.line(row))
		if i == 0 && len(columns) > 0 {
			lines = append(lines, t.rule(len(columns)))
		}
	}
	return lines
}

func (t *table) widen(row []string) {
	for i, cell := range row {
		if i == len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[i] = max(t.widths[i], min(utf8.RuneCountInString(cell), maxColumn))
	}
}

func (t *table) line(row []string) string {
	var b strings.Builder
	for i, cell := range row {
		if i > 0 {
			b.WriteString(" | ")
		}
		b.WriteString(cell)
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", max(0, t.widths[i]-utf8.RuneCountInString(cell))))
		}
	}
	return b.String()
}

func (t *table) rule(columns int) string {
	parts := make([]string, columns)
	for i := range parts {
		parts[i] = strings.Repeat("-", max(1, t.widths[i]))
	}
	return strings.Join(parts, "-+-")
}
