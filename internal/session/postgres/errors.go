package postgres

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// The SQLSTATE codes that the gateway itself answers with.
const (
	sqlstateAuthentication = "28P01" // invalid_password
	sqlstateAuthorization  = "28000" // invalid_authorization_specification
	sqlstateNoDatabase     = "3D000" // invalid_catalog_name
	sqlstateDenied         = "42501" // insufficient_privilege
	sqlstateUnsupported    = "0A000" // feature_not_supported
	sqlstateSyntax         = "42601" // syntax_error
	sqlstateNotGranted     = "57014" // query_canceled
	sqlstateKilled         = "57P01" // admin_shutdown
	sqlstateLimit          = "53400" // configuration_limit_exceeded
	sqlstateTooMany        = "53300" // too_many_connections
	sqlstateLost           = "08006" // connection_failure
	sqlstateUnavailable    = "58000" // system_error
	sqlstateStale          = "40001" // serialization_failure: repeat it
	sqlstateProtocol       = "08P01" // protocol_violation
	sqlstateNoStatement    = "26000" // invalid_sql_statement_name
	sqlstateNoPortal       = "34000" // invalid_cursor_name
	sqlstateDupStatement   = "42P05" // duplicate_prepared_statement
	sqlstateDupPortal      = "42P03" // duplicate_cursor
	sqlstateNoParameter    = "42P02" // undefined_parameter
	sqlstateFailed         = "25P02" // in_failed_sql_transaction
	sqlstateEncoding       = "22021" // character_not_in_repertoire
)

// sqlstate is the code of a denial for which the statement's judge named none.
func sqlstate(r access.Reason) string {
	switch r {
	case access.Unauthenticated:
		return sqlstateAuthentication
	case access.UnknownResource:
		return sqlstateNoDatabase
	case access.Unsupported:
		return sqlstateUnsupported
	case access.Unreadable:
		return sqlstateSyntax
	case access.ApprovalRequired, access.ApprovalRefused, access.ApprovalExpired:
		return sqlstateNotGranted
	case access.LimitExceeded:
		return sqlstateLimit
	case access.SessionEnded:
		return sqlstateKilled
	case access.Unavailable:
		return sqlstateUnavailable
	default:
		return sqlstateDenied
	}
}

// A refusal is a "no" on its way to the client: a denial with what PostgreSQL
// adds to one, or, with denial nil, a plain error of the protocol that needs no
// evidence (an unknown prepared statement, say).
type refusal struct {
	denial   *access.Denial
	state    string
	text     string // of a plain error
	position int    // 1-based character in the client's text
	cause    string // for operators
	asked    string // the text that was refused, where no decision holds it
	before   []access.Event
	// recorded says that the events of the refusal are in the recording, or in
	// the session's queue for it, already.
	recorded bool
}

func refuse(d *access.Denial, cause string) *refusal {
	return &refusal{denial: d, state: sqlstate(d.Reason), cause: cause}
}

func plainError(state, format string, args ...any) *refusal {
	return &refusal{state: state, text: fmt.Sprintf(format, args...), recorded: true}
}

// response renders the refusal. Severity is ERROR or FATAL.
func (r *refusal) response(severity string) *pgproto3.ErrorResponse {
	e := &pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: r.state, Message: r.text}
	if r.denial != nil {
		e.Message, e.Detail, e.Hint = r.denial.Message, r.denial.Detail(), r.denial.Hint
	}
	if r.position > 0 && r.position < 1<<31 {
		e.Position = int32(r.position)
	}
	return e
}

// errorText is what a recording keeps of an error.
func errorText(e *pgproto3.ErrorResponse) string {
	return "SQLSTATE " + e.Code + ": " + e.Message
}

// fatalError ends a session; the client gets a FATAL that tells r.
type fatalError struct {
	r   *refusal
	err error // for the log
}

func (e *fatalError) Error() string {
	switch {
	case e.err != nil:
		return e.err.Error()
	case e.r.denial != nil:
		return e.r.denial.Message
	default:
		return e.r.text
	}
}

func (e *fatalError) Unwrap() error { return e.err }

// errClientLeft ends a session without a word: nobody listens.
var errClientLeft = errors.New("client left")

// errTargetClosed ends a session whose target said a FATAL of its own, which
// the client has got.
var errTargetClosed = errors.New("the target closed the connection")

// filterError removes from an error or notice of the target what may hold
// values of masked columns: DETAIL, HINT, WHERE and the internal query. The
// message stays, for masked columns are replaced before anything evaluates them.
func filterError(e *pgproto3.ErrorResponse) {
	e.Detail, e.Hint, e.Where, e.InternalQuery = "", "", "", ""
	e.InternalPosition = 0
	e.UnknownFields = nil
}

// isFatal reports whether the target closes the connection after e.
func isFatal(e *pgproto3.ErrorResponse) bool {
	severity := e.SeverityUnlocalized
	if severity == "" {
		severity = e.Severity
	}
	return severity == "FATAL" || severity == "PANIC"
}
