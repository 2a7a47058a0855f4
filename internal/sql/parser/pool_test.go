package parser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// workerBinary is built once for the whole test binary, without the race
// detector: under it the grammar takes minutes to compile.
var workerBinary string

// shared is the pool of the tests that do it no harm.
var shared *Pool

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "parserworker")
	if err != nil {
		panic(err)
	}
	workerBinary = filepath.Join(dir, "parserworker")
	build := exec.Command("go", "build", "-o", workerBinary, "./parserworker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("build the worker: %v\n%s", err, out))
	}
	os.Setenv("CHAPERONE_TEST_SECRET", "s3cret") // no worker may see it
	if shared, err = NewPool(Config{Command: []string{workerBinary}, Workers: 2}); err != nil {
		panic(err)
	}
	code := m.Run()
	shared.Close()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func startPool(t testing.TB, c Config) *Pool {
	t.Helper()
	if c.Command == nil && c.Nursery == "" {
		c.Command = []string{workerBinary}
	}
	p, err := NewPool(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func parse(t testing.TB, p *Pool, text string) *Result {
	t.Helper()
	r, err := p.Parse(t.Context(), text)
	if err != nil {
		t.Fatalf("parse %.60q: %v", text, err)
	}
	return r
}

// freshAnswers are those of a worker that saw nothing else.
func freshAnswers(t *testing.T, texts ...string) []frame {
	t.Helper()
	var in, out bytes.Buffer
	for i, text := range texts {
		if err := writeFrame(&in, frame{id: uint64(i), kind: frameParse, payload: []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
	worker := exec.CommandContext(t.Context(), workerBinary)
	worker.Stdin, worker.Stdout = &in, &out
	if err := worker.Run(); err != nil {
		t.Fatal(err)
	}
	answers := make([]frame, 0, len(texts))
	for i := range 1 + len(texts) { // the first says ready
		f, err := readFrame(&out, maxAnswer)
		if err != nil || i > 0 && f.kind != frameTree {
			t.Fatalf("answer %d: kind %q, %v", i, f.kind, err)
		}
		answers = append(answers, f)
	}
	return answers[1:]
}

func TestParse(t *testing.T) {
	t.Parallel()
	p := shared
	r := parse(t, p, "select é from t -- x")
	if len(r.Tree.GetStmts()) != 1 || len(r.Tokens) != 5 {
		t.Errorf("got %d statements and %d tokens", len(r.Tree.GetStmts()), len(r.Tokens))
	}
	for _, c := range []struct {
		name, text, state, message string
		position                   int
	}{
		{"syntax", "select é from from", "42601", `syntax error at or near "from"`, 15},
		{"unterminated", "select 'é", "42601", "unterminated quoted string", 8},
		{"bad escape", `select E'\xff'`, "42601", "invalid byte sequence", 0},
		{"nul", "select 'a\x00b'", "22021", "NUL", 0},
		{"utf-8", "select '\xff'", "22021", "UTF-8", 0},
		{"bytes", "select '" + strings.Repeat("x", 64<<10) + "'", "54000", "bytes long", 0},
		{"operators", "select 1" + strings.Repeat("+1", 4000), "54001", "too complex", 0},
		{"nested", "select " + strings.Repeat("(", 300) + "1" + strings.Repeat(")", 300), "54001", "nesting", 0},
		{"case", "select " + strings.Repeat("case when a then ", 150) + "1" + strings.Repeat(" end", 150), "54001", "nesting", 0},
		{"tokens", "select 1" + strings.Repeat(",1", 12000), "54001", "tokens", 0},
		{"long name", "select " + strings.Repeat("é", 32) + " from t", "42622", "longer than 63", 8},
		{"long quoted name", `select "` + strings.Repeat("x", 64) + `" from t`, "42622", "longer than 63", 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := p.Parse(t.Context(), c.text)
			var e *Error
			if !errors.As(err, &e) || e.SQLState != c.state || !strings.Contains(e.Message, c.message) || e.Position != c.position {
				t.Errorf("got %#v", err)
			}
		})
	}
	for _, text := range []string{
		`select "` + strings.Repeat("x", 63) + `", "` + strings.Repeat(`""`, 63) + `"`,
		"select 1" + strings.Repeat("+1", 900),
		"select 1 in (1" + strings.Repeat(",1", 9000) + ")",
		"", "-- nothing", ";",
	} {
		parse(t, p, text)
	}
}

// hostile statements are at or beyond what breaks an unguarded grammar.
func hostile() []string {
	return []string{
		"select 1" + strings.Repeat("+1", 4000),
		"select 1" + strings.Repeat("+1", 1490),
		strings.Repeat("select (", 95) + "select 1" + strings.Repeat(")", 95),
		strings.Repeat("select (", 500) + "select 1" + strings.Repeat(")", 500),
		"select " + strings.Repeat("not ", 5000) + "a",
		"select 1" + strings.Repeat(" union all select 1", 740),
		"select 1 from a" + strings.Repeat(" cross join a", 740),
		"select '" + strings.Repeat("x", 60000),
	}
}

func TestHostileAmongInnocent(t *testing.T) {
	t.Parallel()
	p := shared
	var innocent []string
	for i := range 20 {
		innocent = append(innocent, fmt.Sprintf("select a%d, 'secret %d' from s%d.t where x = %d order by 1", i, i, i, i))
	}
	fresh := freshAnswers(t, append(innocent, canary)...)
	// The pool serves nothing unless every worker's answer to the canary is the
	// one in the source: this says what it is when the grammar changes.
	if got := digest(fresh[len(innocent)].payload); got != canaryDigest {
		t.Errorf("canary digest is %s; a new grammar needs a new constant", got)
	}
	var want [][]byte
	for i, f := range fresh[:len(innocent)] {
		_, tree, err := parseTree(innocent[i], f.payload)
		r := &Result{}
		if err = errors.Join(err, r.decode(tree)); err != nil {
			t.Fatal(err)
		}
		want = append(want, canonical(t, r))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 40 {
				if g < 3 {
					text := hostile()[(g+i)%len(hostile())]
					if _, err := p.Parse(t.Context(), text); errors.Is(err, ErrUnavailable) {
						t.Errorf("hostile: %v", err)
					}
					continue
				}
				n := (g*40 + i) % len(innocent)
				r, err := p.Parse(t.Context(), innocent[n])
				if err != nil {
					t.Errorf("innocent %d: %v", n, err)
					continue
				}
				if !bytes.Equal(canonical(t, r), want[n]) {
					t.Errorf("innocent %d was parsed differently among hostile statements", n)
				}
			}
		})
	}
	wg.Wait()
}

func TestLostWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	p := startPool(t, Config{Workers: 1, Spares: 1})
	parse(t, p, "select 1")
	testSilentWorker(t, p)
	w := awaitIdle(t, p)
	if err := syscall.Kill(w.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Dead while idle: at worst one statement is refused, the next is served.
	_, err := p.Parse(t.Context(), "select 2")
	var e *Error
	if err != nil && !errors.As(err, &e) {
		t.Fatal(err)
	}
	parse(t, p, "select 3")
	last := awaitIdle(t, p).pid
	p.Close()
	if err := syscall.Kill(last, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("a worker outlived its pool: %v", err)
	}
}

func awaitIdle(t *testing.T, p *Pool) *worker {
	t.Helper()
	for {
		p.idle.mu.Lock()
		workers, wake := append([]*worker(nil), p.idle.workers...), p.idle.wake
		p.idle.mu.Unlock()
		if len(workers) > 0 {
			return workers[0]
		}
		select {
		case <-wake:
		case <-time.After(60 * time.Second):
			t.Fatal("no worker became idle")
		}
	}
}

// A worker that is stopped never answers: its statement is refused within the
// deadline and the worker replaced.
func testSilentWorker(t *testing.T, p *Pool) {
	t.Helper()
	w := awaitIdle(t, p)
	if err := syscall.Kill(w.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The signal is sent, but until every thread has taken it the worker answers.
	if err := unix.Waitid(unix.P_PID, w.pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	_, err := p.run(mustTake(t, p, w), "select 2")
	var e *Error
	if !errors.As(err, &e) || e.SQLState != "54001" {
		t.Fatalf("a stopped worker: %v", err)
	}
	<-w.ended
	parse(t, p, "select 3")
}

func mustTake(t *testing.T, p *Pool, w *worker) *worker {
	t.Helper()
	p.idle.remove(w)
	return w
}

func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	p := startPool(t, Config{Command: []string{"/nonexistent"}, Workers: 1, Spares: 1, Queue: 1})
	for range cap(p.queue) {
		p.queue <- struct{}{} // as if others were waiting
	}
	if _, err := p.Parse(t.Context(), "select 2"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a full queue answered %v", err)
	}
	<-p.queue // there is room: this one waits for a worker
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errTest)
	defer cancel()
	if _, err := p.Parse(ctx, "select 3"); !errors.Is(err, errTest) {
		t.Errorf("a queue with room answered %v", err)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	t.Parallel()
	p := startPool(t, Config{Command: []string{"/bin/sh", "-c", "read x"}, Workers: 1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Parse(ctx, "select 1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A worker that answers out of frame, with another id, or wrongly never serves.
func TestLyingWorkerNeverServes(t *testing.T) {
	t.Parallel()
	for _, command := range [][]string{
		{"/bin/sh", "-c", "echo hello; read x"},
		{"/bin/sh", "-c", `printf '\000\000\000\015\000\000\000\000\000\000\000\000R\000\000\000\001'; read x; printf '\000\000\000\015\000\000\000\000\000\000\000\001T\000\000\000\000'; read x`},
		{"/nonexistent"},
	} {
		p := startPool(t, Config{Command: command, Workers: 1, Spares: 1, Timeout: 100 * time.Millisecond})
		ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errTest)
		if _, err := p.Parse(ctx, "select 1"); !errors.Is(err, errTest) {
			t.Errorf("%q answered %v", command, err)
		}
		cancel()
		p.Close()
	}
}

var errTest = errors.New("the test waited long enough")

func TestWorkerEnvironment(t *testing.T) {
	t.Parallel()
	parse(t, shared, "select 1")
	pid := awaitIdle(t, shared).pid
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || len(environ) != 0 {
		t.Errorf("environment %q, %v", environ, err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Max core file size 0 0", "Max file size 0 0", "Max address space 10737418240 10737418240"} {
		if !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), want) {
			t.Errorf("limits lack %q:\n%s", want, limits)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if !strings.HasPrefix(target, "pipe:") && !strings.HasPrefix(target, "anon_inode:") && target != "/dev/null" &&
			!strings.HasPrefix(target, "/sys/fs/cgroup/") { // its own runtime reads the CPU quota
			t.Errorf("the worker holds %s", target)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{{}, {Command: []string{"x"}, Workers: -1}, {Command: []string{"x"}, MaxBytes: 2 << 20}, {Command: []string{"x"}, Timeout: -1}} {
		if p, err := NewPool(c); err == nil {
			p.Close()
			t.Errorf("%+v was accepted", c)
		}
	}
}

func canonical(t *testing.T, r *Result) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Tree)
	if err != nil {
		t.Error(err)
	}
	return b
}

func BenchmarkParse(b *testing.B) {
	p := shared
	parse(b, p, "select 1")
	for b.Loop() {
		parse(b, p, "select id, name, email from customers c where c.id = 7 order by name limit 10")
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 'T'})
	f.Add([]byte{0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 1, 'T', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := readFrame(bytes.NewReader(b), 1<<16)
		if err != nil {
			return
		}
		_, _ = parseRefused(fr.payload)
		tokens, _, err := parseTree("select 1", fr.payload)
		if err == nil {
			if _, e := checkTokens("select 1", tokens); e != nil && e.Message == "" {
				t.Error("an empty verdict")
			}
		}
	})
}
