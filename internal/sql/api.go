package sql

import (
	"context"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// A Parser turns text into a tree. *parser.Pool is the one that serves.
type Parser interface {
	Parse(ctx context.Context, text string) (*parser.Result, error)
}

// Config is what an Analyzer needs.
type Config struct {
	Parser Parser
	// CuratedFunctions are further functions that the operator vouches for: they
	// change nothing and reveal nothing beyond their arguments. schema.name is
	// every function of that name, schema.name(integer, text) the one with these
	// arguments, spelled as psql's \\df does. Built-in functions that change
	// nothing are known without this.
	CuratedFunctions []string
}

// A Kind says how the session has to run a statement.
type Kind uint8

// The kinds of statement. The zero Kind is not run at all.
const (
	KindRefused     Kind = iota // see Statement.Refusal
	KindEmpty                   // no statement in the message: answer EmptyQueryResponse
	KindQuery                   // SELECT, VALUES, TABLE, EXPLAIN: Parse, Bind, Execute
	KindChange                  // INSERT, UPDATE, DELETE
	KindTransaction             // BEGIN, COMMIT, ROLLBACK, SAVEPOINT, …: see Statement.Transaction
	KindSetting                 // SET, RESET, SHOW of an allowed setting: see Statement.Setting
	KindDefinition              // DDL; judged and decided, and run as it came or not at all
	KindDeclare                 // DECLARE CURSOR; judged as its query
	KindFetch                   // FETCH and MOVE: the session knows what the cursor reads
	KindClose                   // CLOSE
	KindPrepare                 // PREPARE; judged as the statement in it
	KindExecute                 // EXECUTE: the session knows what was prepared
	KindDeallocate              // DEALLOCATE
	KindCopyOut                 // COPY … TO STDOUT
	KindCopyIn                  // COPY … FROM STDIN
	KindReset                   // RESET ALL, UNLISTEN and the like: lets go of what the session holds
	KindDiscard                 // DISCARD ALL: the session does what it does, but for what the gateway owns
	KindListen                  // LISTEN
	KindNotify                  // NOTIFY
	KindStraight                // anything else that runs as it came: see Statement.AsItCame
)

// A Statement is one message of SQL as the judge understood it. It is
// immutable.
type Statement struct {
	Text   string // exactly what was analyzed
	Kind   Kind
	Action access.SQL
	// Refusal is set when the gateway cannot bind the statement or does not
	// handle its form. Policy is still asked about Action first, so that a
	// denial by rule is reported as one.
	Refusal *Refusal
	// Straight is what Kind would be if the text were forwarded as it came;
	// KindRefused when it may never be. It matters beside a Refusal only.
	Straight    Kind
	Unbound     *Refusal // of AsItCame: why it could not be judged
	Transaction TransactionCommand
	Setting     *Setting
	// Instead, when it is not empty, is forwarded in place of Text: it has the
	// same effect and answer without touching what the gateway owns.
	Instead     string
	Parameters  int  // the highest $n
	ReturnsRows bool // a SELECT, or a change with RETURNING
	// Name is the cursor of KindDeclare, KindFetch and KindClose and the prepared
	// statement of KindPrepare, KindExecute and KindDeallocate; "" means all of
	// them in KindClose and KindDeallocate. It is the channel of KindListen and
	// KindNotify.
	Name      string
	Hold      bool                    // DECLARE … WITH HOLD
	Binary    bool                    // of DECLARE BINARY and of COPY in that format
	Arguments []access.BoundParameter // of EXECUTE
	// Parts are the statements of a message that has more than one, in order.
	// Such a message is refused as one statement; each part can be analyzed and
	// run by itself.
	Parts []Part

	body *body // the bound tree, for Mask
}

// A Part is one of several statements in a message.
type Part struct {
	Text   string
	Offset int // characters before it in the message
}

// A TransactionCommand is what a KindTransaction statement does.
type TransactionCommand uint8

// The transaction commands. Those that open or end a block are what a session
// counts; the server's ReadyForQuery status stays the truth.
const (
	TxNone TransactionCommand = iota
	TxBegin
	TxCommit
	TxRollback
	TxSavepoint
	TxRelease
	TxRollbackTo
	TxSet // SET TRANSACTION
)

// A Setting is a SET, RESET or SHOW. Its name is lower case and on the allow
// list, and its value has been checked.
type Setting struct {
	Name     string
	Value    string        // text form; "" for RESET, SHOW and SET … TO DEFAULT
	Duration time.Duration // of a timeout, above 0; the session refuses one above its own limit
	Local    bool          // SET LOCAL
	Show     bool
	Reset    bool // RESET, or SET … TO DEFAULT
}

// A Refusal says why the gateway itself cannot let a statement through, apart
// from what policy says. It is an error, and holds nothing that the caller may
// not see.
type Refusal struct {
	Reason   access.Reason // Unreadable, Unsupported or MaskedField
	Message  string        // one sentence
	Hint     string        // what to write instead, or ask for
	Position int           // 1-based character in the client's text; 0 is none
	SQLState string        // for example 42601, 42P01, 42703, 0A000, 42501
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Message }

// A Forward is what the target gets instead of the client's text.
type Forward struct {
	Text   string     // the text to send; equal to the client's when nothing is masked
	Action access.SQL // as judged, with Forward set when the text differs
	Masked []string   // schema.table.column of the columns that were replaced
	// NullMasks are the parameters that are written to masked columns whose mask
	// is NULL: the caller must refuse NULL for them.
	NullMasks []int

	client  string
	splices []splice
}

// ClientPosition maps a 1-based character position in Forward.Text, as the
// target's errors carry it, to the client's text. What lies inside the
// gateway's own text maps to the relation that it replaced. 0 maps to 0.
func (f *Forward) ClientPosition(position int) int { return clientPosition(f, position) }

// An Analyzer parses, binds, judges and rewrites. It is immutable and safe for
// concurrent use.
type Analyzer struct {
	parser  Parser
	library *library
	grammar *grammar
	views   *viewCache
}

// New returns an Analyzer.
func New(c Config) (*Analyzer, error) { return newAnalyzer(c) }

// Analyze judges the whole message against cat. It returns a Statement for
// every text that reached the parser, with Refusal set when the gateway does
// not take it. An error means that no verdict was reached (the parser pool is
// full or down, ctx ended): the caller answers access.Unavailable.
func (a *Analyzer) Analyze(ctx context.Context, text string, cat *catalog.Snapshot) (*Statement, error) {
	return a.analyze(ctx, text, cat)
}

// Mask returns what to forward for st under o. Only o.Masks with a Column and
// o.WriteMasked matter here; the rest is the session's. cat must be the snapshot that
// st was analyzed with. The error is a *Refusal (errors.As) when st would
// compute on a masked column or touches a masked relation in a way that the
// gateway does not prove clean, and otherwise means that no verdict was
// reached. Every rewritten text was parsed and judged again.
func (a *Analyzer) Mask(ctx context.Context, st *Statement, cat *catalog.Snapshot, o access.Obligations) (*Forward, error) {
	return a.mask(ctx, st, cat, o)
}
