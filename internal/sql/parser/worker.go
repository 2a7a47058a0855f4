package parser

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
	grammar "github.com/wasilibs/go-pgquery/parser"
	"google.golang.org/protobuf/proto"
)

// cpuPerStatement is what the kernel lets a statement use, beyond which the
// worker dies.
const cpuPerStatement = 5 * time.Second

// errWorkerSpent ends a worker whose grammar failed.
var errWorkerSpent = errors.New("the grammar failed: this worker is spent")

// errLink is the end of a connection within a request or an answer.
var errLink = errors.New("the pool left")

// Kept is the argument that makes a process the worker of a Nursery instead of
// a pool's own.
const Kept = "kept"

// Work is all that a worker process does; args are those behind its name.
func Work(args []string) error {
	switch {
	case len(args) == 0:
		return Serve(os.Stdin, os.Stdout)
	case len(args) == 1 && args[0] == Kept:
		return ServeKept(3, os.Stdout)
	}
	return fmt.Errorf("a parser worker takes no argument %q", args)
}

// Serve is the worker of a pool: it answers requests from in on out until in
// ends, and returns nil then. The process must do nothing else: Serve limits its
// memory, CPU and files, and sends what the grammar prints to nowhere the pool
// reads.
func Serve(in io.Reader, out io.Writer) error {
	w, err := warm()
	if err != nil {
		return err
	}
	return w.serve(in, out)
}

// ServeKept is the worker of a Nursery: once warm it says so on out, and then
// serves one connection after the other from the listening socket. How a
// connection ends says nothing of the worker, for pools end at any moment; one
// that a pool distrusts is ended by the nursery, and one whose grammar failed
// ends itself.
func ServeKept(socket int, out io.Writer) error {
	if err := syscall.SetNonblock(socket, false); err != nil { // there is nothing else to do than to wait
		return fmt.Errorf("the listening socket: %w", err)
	}
	w, err := warm()
	if err != nil {
		return err
	}
	if err := writeFrame(out, readyFrame()); err != nil {
		return fmt.Errorf("report warm: %w", err)
	}
	for {
		fd, _, err := syscall.Accept(socket)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		pool := os.NewFile(uintptr(fd), "pool")
		err = w.serve(pool, pool)
		_ = pool.Close()
		if err != nil && !errors.Is(err, errLink) {
			return err
		}
	}
}

// A warmWorker has compiled the grammar and confined its process.
type warmWorker struct {
	trees *transcoder
	bound *cpuBound
}

func warm() (*warmWorker, error) {
	os.Stdout = os.Stderr // the grammar's own standard output must not reach the frames
	if err := confine(); err != nil {
		return nil, fmt.Errorf("confine the parser worker: %w", err)
	}
	bound, err := newCPUBound()
	if err != nil {
		return nil, fmt.Errorf("confine the parser worker: %w", err)
	}
	trees := newTranscoder()
	if f := answer(trees, canary); f.kind != frameTree { // compiles the grammar
		return nil, errWorkerSpent
	}
	debug.FreeOSMemory()  // compiling takes 250 MB, serving 45
	runtime.GOMAXPROCS(1) // one statement at a time: more would only wake one another
	return &warmWorker{trees: trees, bound: bound}, nil
}

// readyFrame says that this process is warm.
func readyFrame() frame {
	return frame{kind: frameReady, payload: binary.BigEndian.AppendUint32(nil, uint32(os.Getpid()))}
}

// serve answers requests until in ends between two of them.
func (w *warmWorker) serve(in io.Reader, out io.Writer) error {
	requests := bufio.NewReader(in)
	if err := writeFrame(out, readyFrame()); err != nil {
		return fmt.Errorf("report ready: %w: %w", errLink, err)
	}
	for {
		req, err := readFrame(requests, maxMaxBytes)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read request: %w: %w", errLink, err)
		}
		if req.kind != frameParse {
			return fmt.Errorf("read request: %w: kind %q", errFrame, req.kind)
		}
		if err := w.bound.next(cpuPerStatement); err != nil {
			return err
		}
		f := answer(w.trees, string(req.payload))
		f.id = req.id
		if err := writeFrame(out, f); err != nil {
			return fmt.Errorf("answer: %w: %w", errLink, err)
		}
		if f.kind == frameFault {
			return errWorkerSpent
		}
	}
}

// answer scans, bounds and parses text. It never panics.
func answer(trees *transcoder, text string) (f frame) {
	defer func() {
		if recover() != nil {
			f = frame{kind: frameFault}
		}
	}()
	tokens, err := scan(text)
	if err != nil {
		return refusal(err)
	}
	s, e := checkTokens(text, tokens)
	if e != nil {
		return frame{kind: frameRefused, payload: refusedPayload(e)}
	}
	tree, err := writeTree(trees, text, s)
	if err != nil {
		return refusal(err)
	}
	return frame{kind: frameTree, payload: treePayload(tokens, tree)}
}

// writeTree returns the tree of a text of shape s, as protobuf.
func writeTree(trees *transcoder, text string, s shape) ([]byte, error) {
	if !s.light() {
		return grammar.ParseToProtobuf(text)
	}
	tree, err := grammar.ParseToJSON(text)
	if err != nil {
		return nil, err
	}
	return trees.tree(tree)
}

func scan(text string) ([]Token, error) {
	b, err := grammar.ScanToProtobuf(text)
	if err != nil {
		return nil, err
	}
	var scanned pg.ScanResult
	if err := proto.Unmarshal(b, &scanned); err != nil {
		return nil, fmt.Errorf("decode tokens: %w", err)
	}
	tokens := make([]Token, len(scanned.GetTokens()))
	for i, t := range scanned.GetTokens() {
		tokens[i] = Token{Start: t.GetStart(), End: t.GetEnd(), Kind: t.GetToken(), Keyword: t.GetKeywordKind()}
	}
	return tokens, inOrder(text, tokens)
}

// refusal tells a fault of the text from a fault of the grammar's machinery. An
// error that does not come from the lexer or the grammar spends the worker.
func refusal(err error) frame {
	var e *grammar.Error
	if !errors.As(err, &e) {
		return frame{kind: frameFault}
	}
	switch file := e.Filename[strings.LastIndexByte(e.Filename, '/')+1:]; file {
	case "scan.l", "gram.y", "gram.c", "src_backend_parser_gram.c", "src_backend_parser_parser.c",
		"src_backend_parser_scan.c", "src_backend_utils_mb_mbutils.c":
	default:
		return frame{kind: frameFault}
	}
	return frame{kind: frameRefused, payload: refusedPayload(&Error{
		Message: e.Message, Position: e.Cursorpos, SQLState: "42601",
	})}
}
