package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"chaperone.dev/chaperone/internal/access"
)

// Drivers work on large objects by FunctionCall, which names a function by its
// OID. Of those functions the gateway makes the SELECT that calls it, which is
// judged, decided and recorded as any other, and answers as FunctionCall does.
//
//	FunctionCall 952 (16400, 262144) ──► SELECT pg_catalog.lo_open($1, $2) ──► Parse Bind Execute
//	◄ FunctionCallResponse  ◄─────────────────────────────────────────────────  DataRow

// A calledFunction is one that FunctionCall may name.
type calledFunction struct {
	name      string
	arguments []uint32
}

// calledFunctions are the large object functions of a server that libpq and
// pgjdbc call; their OIDs are the same in every server.
var calledFunctions = map[uint32]calledFunction{
	715:  {"lo_create", []uint32{pgtype.OIDOID}},
	952:  {"lo_open", []uint32{pgtype.OIDOID, pgtype.Int4OID}},
	953:  {"lo_close", []uint32{pgtype.Int4OID}},
	954:  {"loread", []uint32{pgtype.Int4OID, pgtype.Int4OID}},
	955:  {"lowrite", []uint32{pgtype.Int4OID, pgtype.ByteaOID}},
	956:  {"lo_lseek", []uint32{pgtype.Int4OID, pgtype.Int4OID, pgtype.Int4OID}},
	957:  {"lo_creat", []uint32{pgtype.Int4OID}},
	958:  {"lo_tell", []uint32{pgtype.Int4OID}},
	964:  {"lo_unlink", []uint32{pgtype.OIDOID}},
	1004: {"lo_truncate", []uint32{pgtype.Int4OID, pgtype.Int4OID}},
	3170: {"lo_lseek64", []uint32{pgtype.Int4OID, pgtype.Int8OID, pgtype.Int4OID}},
	3171: {"lo_tell64", []uint32{pgtype.Int4OID}},
	3172: {"lo_truncate64", []uint32{pgtype.Int4OID, pgtype.Int8OID}},
}

// functionCall serves FunctionCall.
func (s *session) functionCall(ctx context.Context, body []byte) error {
	var msg pgproto3.FunctionCall
	if err := msg.Decode(body); err != nil {
		return s.inboxFault(ctx, malformed("FunctionCall"))
	}
	if len(s.steps) > 0 { // a pipeline without its Sync comes first
		if err := s.drain(ctx); err != nil || s.discarding {
			return err
		}
	}
	f, known := calledFunctions[msg.Function]
	if !known || len(msg.Arguments) != len(f.arguments) {
		d := s.newDenial(access.Unsupported, fmt.Sprintf("FunctionCall messages for the function with OID %d are not supported", msg.Function))
		d.Hint = "call the function in a SELECT"
		if err := s.refuse(ctx, refuse(d, "message type"), nil); err != nil {
			return err
		}
		return s.sync(ctx)
	}
	bind := &pgproto3.Bind{ParameterFormatCodes: formats(msg.ArgFormatCodes), Parameters: msg.Arguments, ResultFormatCodes: []int16{int16(msg.ResultFormatCode)}}
	params, r := boundParameters(bind, f.arguments)
	if r != nil {
		if err := s.refuse(ctx, r, nil); err != nil {
			return err
		}
		return s.sync(ctx)
	}
	s.forget("")
	delete(s.portals, "")
	places := make([]string, len(f.arguments))
	for i := range places {
		places[i] = fmt.Sprintf("$%d", i+1)
	}
	st := &statement{text: "SELECT pg_catalog." + f.name + "(" + strings.Join(places, ", ") + ")", types: f.arguments, count: 1}
	p := &portal{statement: st, params: params, formats: bind.ResultFormatCodes, types: s.types, last: true, call: bind}
	if err := s.runPortal(ctx, p, 0, true); err != nil {
		return err
	}
	return s.sync(ctx)
}

func formats(codes []uint16) []int16 {
	all := make([]int16, len(codes))
	for i, c := range codes {
		all[i] = int16(c)
	}
	return all
}

// appendCallResponse answers a FunctionCall with the value of a DataRow, which
// has one.
func appendCallResponse(dst []byte, row []byte) []byte {
	const count = 2
	value := binary.BigEndian.AppendUint32(nil, ^uint32(0)) // NULL
	if len(row) >= count+4 {
		value = slices.Clone(row[count:])
	}
	return appendFrame(dst, 'V', value)
}
