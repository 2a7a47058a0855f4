package parser

import (
	"context"
	"errors"
	"log/slog"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says how a Pool runs its workers. Zero values take the defaults.
type Config struct {
	Command    []string      // program and arguments of a worker; it must call Work
	Nursery    string        // or the folder of a Nursery, which also settles Workers
	Workers    int           // statements parsed at once; 2
	Spares     int           // warm workers that wait to replace a lost one; 1
	Queue      int           // statements that may wait for a worker; 64
	Timeout    time.Duration // for one statement, waiting not included; 2s
	MaxBytes   int           // length of a statement; 64 KiB
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// ErrUnavailable wraps every reason for which no verdict on the text was
// reached: the queue is full, no worker is ready, the pool is closed.
var ErrUnavailable = errors.New("the SQL parser is not available")

// An Error is a verdict on the text: it is not SQL, or out of bounds.
type Error struct {
	Message  string
	Position int    // 1-based character, 0 when unknown
	SQLState string // 42601 syntax error, 54001 too complex, 22021 bad encoding, …
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// A Result is a parsed text. It belongs to the caller.
type Result struct {
	Tree   *pg.ParseResult
	Tokens []Token // in order, comments included
}

// A Token is one lexical token; Start and End are byte offsets.
type Token struct {
	Start, End int32
	Kind       pg.Token
	Keyword    pg.KeywordKind
}

// Parse parses text in a worker. The error is an *Error when the text is at
// fault, wraps ErrUnavailable when the pool is, and is ctx's when it ended. It
// blocks while workers start or are busy, a minute at most for the former, and then
// for Config.Timeout.
func (p *Pool) Parse(ctx context.Context, text string) (*Result, error) { return p.parse(ctx, text) }
