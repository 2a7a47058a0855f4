package main

import (
	"bytes"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// The card of a held statement says how much it would touch, and what of the
// text is the gateway's.
func TestCardOfStatement(t *testing.T) {
	t.Parallel()
	rows, size := int64(900), int64(28800)
	card := func(s access.SQL) string {
		var b bytes.Buffer
		writeCard(&b, access.Approval{ID: "req_1", Ask: access.Ask{Request: access.Request{Action: access.Action{SQL: &s}}}})
		return b.String()
	}
	const text, forward = "select id, ssn\nfrom customers c", "select id, ssn\nfrom (SELECT id, '***' AS ssn FROM public.customers) c"
	for _, c := range []struct {
		name   string
		sql    access.SQL
		has    []string
		hasNot []string
	}{
		{"rewritten", access.SQL{Text: text, Forward: forward, EstimatedRows: &rows, EstimatedBytes: &size},
			[]string{"estimate:\t900 rows, 28800 bytes\n", "text:\n" + text + "\n", "as forwarded:\n" + forward + "\n",
				"difference:\n+ (SELECT id, '***' AS ssn FROM public.\n+ )\n"}, []string{"unknown"}},
		{"as it is", access.SQL{Text: text}, []string{"estimate:\tunknown\n"}, []string{"forwarded", "difference"}},
		{"hostile", access.SQL{Text: "select 1 /*\n+ x\x1b[2J*/", Forward: "select 2"}, []string{"- 1 /*\n- + x\\x1b[2J*/\n+ 2\n"}, []string{"\x1b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := card(c.sql)
			for _, part := range c.has {
				if !strings.Contains(got, part) {
					t.Errorf("lacks %q:\n%s", part, got)
				}
			}
			for _, part := range c.hasNot {
				if strings.Contains(got, part) {
					t.Errorf("has %q:\n%s", part, got)
				}
			}
		})
	}
}
