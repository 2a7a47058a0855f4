package postgres

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// call sends a FunctionCall with binary values and returns the answers, with
// the value where there is one.
func (w *wire) call(oid uint32, values ...[]byte) (value []byte, lines []string) {
	w.t.Helper()
	w.send(&pgproto3.FunctionCall{Function: oid, ArgFormatCodes: []uint16{1}, Arguments: values, ResultFormatCode: 1})
	for {
		switch m := w.receive().(type) {
		case *pgproto3.FunctionCallResponse:
			value = slices.Clone(m.Result)
			lines = append(lines, "value")
		case *pgproto3.ErrorResponse:
			lines = append(lines, "ERROR "+m.Code)
		case *pgproto3.ReadyForQuery:
			return value, append(lines, "ready "+string(m.TxStatus))
		default:
			lines = append(lines, "?")
		}
	}
}

func int4(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// Large objects by FunctionCall, as libpq and pgjdbc work on them: where nothing
// is hidden and policy allows it, as at the database; elsewhere not at all.
func TestFunctionCall(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	const readWrite = 0x60000
	for name, w := range map[string]*wire{"through": g.wire(t), "straight": g.straightWire(t)} {
		w.ask("begin")
		oid, lines := w.call(957, int4(readWrite))
		same(t, lines, []string{"value", "ready T"})
		fd, _ := w.call(952, oid, int4(readWrite))
		if n, _ := w.call(955, fd, []byte("some bytes")); binary.BigEndian.Uint32(n) != 10 {
			t.Errorf("%s: wrote %v", name, n)
		}
		w.call(956, fd, int4(5), int4(0))
		if got, _ := w.call(954, fd, int4(100)); string(got) != "bytes" {
			t.Errorf("%s: read %q", name, got)
		}
		_, lines = w.call(952, int4(1), int4(readWrite))
		same(t, lines, []string{"ERROR 42704", "ready E"})
		w.ask("rollback")
	}
	w := g.wire(t)
	for _, oid := range []uint32{1, 764, 765, 1598} { // none, lo_import, lo_export, random
		_, lines := w.call(oid)
		same(t, lines, []string{"ERROR 0A000", "ready I"})
	}
	if !slices.Contains(g.recordedTexts(), "SELECT pg_catalog.lo_open($1, $2)") {
		t.Errorf("recorded: %q", g.recordedTexts())
	}
	g.policy.set(func(access.Request) access.Decision {
		return access.Decision{Effect: access.Deny, Reason: access.DeniedByRule, Message: "a rule denies it", Revision: "r1"}
	})
	_, lines := w.call(957, int4(readWrite))
	same(t, lines, []string{"ERROR 42501", "ready I"})
	g.policy.allowAll()
	g.policy.setMasks(access.Mask{Detect: []string{"CREDIT_CARD"}})
	_, lines = w.call(957, int4(readWrite))
	same(t, lines, []string{"ERROR 0A000", "ready I"})
}

func (g *gateway) recordedTexts() (texts []string) {
	for _, e := range g.recorder.all() {
		if e.Executed != nil {
			texts = append(texts, e.Executed.SQL)
		}
	}
	return texts
}
