package ssh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
	sessions "chaperone.dev/chaperone/internal/session"
)

// begin starts a command and returns its session once it prints something.
func begin(t testing.TB, c *gossh.Client, command string) (*gossh.Session, *safeBuffer) {
	t.Helper()
	session, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs safeBuffer
	session.Stderr = &errs
	if err := session.Start(command); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("%v: %s", err, &errs)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return session, &errs
}

// A kill tells the client why, ends the act at the host, and the connection.
func TestKill(t *testing.T) {
	t.Parallel()
	g := start(t)
	client := g.connect(t)
	mark := evil(t)
	session, errs := begin(t, client, ": free; echo $$ > "+mark+"; echo started; while sleep 0.05; do echo tick; done")
	written, err := os.ReadFile(mark)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(written)))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if n, err := g.registry.Kill(t.Context(), sessions.Selector{Resource: "web"}, "enough", access.Principal{User: "op"}); n != 1 || err != nil {
		t.Fatalf("%d %v", n, err)
	}
	err = session.Wait()
	took := time.Since(began)
	exit, ok := err.(*gossh.ExitError)
	if !ok || exit.ExitStatus() != 77 || !strings.Contains(errs.String(), "an operator ended this session: enough") {
		t.Errorf("%v %s", err, errs)
	}
	_ = client.Wait()
	if took > 2*time.Second { // the bound of 250 ms is measured on an idle machine
		t.Errorf("it took %s", took)
	}
	// It is killed, or, where sshd takes no signals (of root's commands), it has
	// nobody to write to.
	eventually(t, "the process at the host ends", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	eventually(t, "the end is recorded", func() bool {
		return len(g.recorder.find(func(e access.Event) bool { return e.Closed != nil && strings.Contains(e.Closed.Cause, "enough") })) == 1
	})
	ended := g.recorder.find(func(e access.Event) bool { return e.Ended != nil })
	if len(ended) != 1 || !strings.Contains(ended[0].Ended.Error, "enough") {
		t.Errorf("recorded %+v", ended)
	}
}

// A client that reads nothing does not keep its session alive.
func TestKillWithZeroWindow(t *testing.T) {
	t.Parallel()
	g := start(t)
	client := g.connect(t)
	ch, requests, err := client.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go gossh.DiscardRequests(requests)
	if ok, err := ch.SendRequest("exec", true, gossh.Marshal(struct{ Text string }{": free; cat /dev/zero"})); !ok || err != nil {
		t.Fatal(ok, err)
	}
	eventually(t, "the window is full", func() bool {
		n := len(g.recorder.find(func(e access.Event) bool { return e.Executed != nil }))
		return n == 1
	})
	if _, err := g.registry.Kill(t.Context(), sessions.Selector{All: true}, "", access.Principal{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session is over", func() bool {
		return len(g.recorder.find(func(e access.Event) bool { return e.Closed != nil })) == 1
	})
}

// With the recorder gone nothing new happens, and what runs ends before more of
// it passes.
func TestNothingRunsUnrecorded(t *testing.T) {
	t.Parallel()
	g := start(t)
	client, file := g.connect(t), evil(t)
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs safeBuffer
	session.Stdout, session.Stderr = &out, &errs
	if err := session.Start(": free; echo started; cat; echo more"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs", func() bool { return out.String() == "started\n" })
	g.recorder.set(func(m *memory) { m.broken = true })
	if r := exec(t, client, ": free; touch "+file, ""); r.status != 75 || !strings.Contains(r.errs, "cannot record") || exists(file) {
		t.Errorf("a new act: %+v", r)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	exit, ok := session.Wait().(*gossh.ExitError)
	if !ok || exit.ExitStatus() != 75 || strings.Contains(out.String(), "more") {
		t.Errorf("what runs: %v %q %q", exit, &out, &errs)
	}
	g.recorder.set(func(m *memory) { m.broken = false })
	if r := exec(t, client, ": free; touch "+file, ""); r.status != 0 || !exists(file) {
		t.Errorf("the recorder is back: %+v", r)
	}
}

// What leaves has been recorded before.
func TestRecordedBeforeSent(t *testing.T) {
	t.Parallel()
	g := start(t)
	client := g.connect(t)
	blocked, release := make(chan struct{}), make(chan struct{})
	g.recorder.set(func(m *memory) {
		m.before = func(events []access.Event) {
			if slices.ContainsFunc(events, func(e access.Event) bool { return e.Stream != nil }) {
				m.before = nil
				close(blocked)
				<-release
			}
		}
	})
	done := make(chan result, 1)
	go func() { done <- exec(t, client, "echo secret-of-the-host", "") }()
	<-blocked
	select {
	case r := <-done:
		t.Errorf("the client got %+v before it was recorded", r)
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	if r := <-done; r.out != "secret-of-the-host\n" {
		t.Errorf("%+v", r)
	}
}

// The recording holds what passed, without secrets, and sums up the rest.
func TestRecording(t *testing.T) {
	t.Parallel()
	g := start(t)
	client := g.connect(t)
	const key = "AKIAIOSFODNN7EXAMPLE"
	if r := exec(t, client, ": free; cat; echo err >&2; exit 4", "key "+key+" in\n"); r.status != 4 || r.out != "key "+key+" in\n" || r.errs != "err\n" {
		t.Errorf("%+v", r)
	}
	eventually(t, "it ends", func() bool {
		return len(g.recorder.find(func(e access.Event) bool { return e.Ended != nil })) == 1
	})
	for stream, want := range map[string]string{access.Stdin: "key *** in\n", access.Stdout: "key *** in\n", access.Stderr: "err\n"} {
		if got := g.recorder.text(stream); got != want {
			t.Errorf("%s is recorded as %q", stream, got)
		}
	}
	ended := g.recorder.find(func(e access.Event) bool { return e.Ended != nil })[0].Ended
	sum := sha256.Sum256([]byte("key " + key + " in\n"))
	want := access.StreamSum{Name: access.Stdout, Bytes: int64(len("key " + key + " in\n")), SHA256: hex.EncodeToString(sum[:])}
	if ended.Tag != "exit 4" || !slices.Contains(ended.Streams, want) || len(ended.Streams) != 3 {
		t.Errorf("ended %+v", ended)
	}
	var types []string
	for _, e := range g.recorder.find(func(e access.Event) bool { return e.Stream == nil }) {
		types = append(types, e.Type())
	}
	if got := strings.Join(types, " "); got != "opened decided executed ended" {
		t.Errorf("recorded %s", got)
	}
	g2 := start(t, func(_ *gateway, c *Config) { c.RecordedOutput = 1000 })
	if r := exec(t, g2.connect(t), ": free; head -c 100000 /dev/zero | tr '\\0' x; printf '\\000'; echo end", ""); len(r.out) != 100_005 {
		t.Errorf("%d bytes", len(r.out))
	}
	eventually(t, "it ends", func() bool {
		return len(g2.recorder.find(func(e access.Event) bool { return e.Ended != nil })) == 1
	})
	var omitted int64
	for _, e := range g2.recorder.find(func(e access.Event) bool { return e.Stream != nil }) {
		omitted += e.Stream.Omitted
	}
	if n := int64(len(g2.recorder.text(access.Stdout))); n > 1000 || n+omitted != 100_005 {
		t.Errorf("%d kept, %d omitted", n, omitted)
	}
}

func TestHold(t *testing.T) {
	t.Parallel()
	g := start(t, func(_ *gateway, c *Config) { c.ApprovalWait = time.Second })
	client := g.connect(t)
	senior := access.Principal{Issuer: "dex", Subject: "grace", User: "grace@example.com", Groups: []string{"seniors"}}
	pending := func(command string) (id string) {
		eventually(t, "a question is open", func() bool {
			all, err := g.approvals.List(t.Context(), approval.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range all {
				if a.State == access.Pending && a.Ask.Request.Action.SSH.Command == command {
					id = a.ID
				}
			}
			return id != ""
		})
		return id
	}
	answer := func(id string, grant bool) {
		if _, err := g.approvals.Answer(t.Context(), id, senior, grant, "because"); err != nil {
			t.Error(err)
		}
	}
	held := func(command string) <-chan result {
		done := make(chan result, 1)
		go func() { done <- exec(t, client, command, "") }()
		return done
	}
	leased := func(id string) bool {
		a, err := g.approvals.Get(t.Context(), id)
		return err == nil && a.Ask.Leased
	}
	granted := evil(t)
	done := held("touch " + granted)
	id := pending("touch " + granted)
	if !leased(id) {
		t.Error("the question would outlive the gateway")
	}
	if exists(granted) {
		t.Error("it ran before it was granted")
	}
	answer(id, true)
	if r := <-done; r.status != 0 || !exists(granted) || !strings.Contains(r.errs, "waiting for approval "+id) || !strings.Contains(r.errs, "chaperone approvals approve "+id) {
		t.Errorf("granted: %+v", r)
	}
	if err := os.Remove(granted); err != nil {
		t.Fatal(err)
	}
	done = held("touch " + granted) // once is once
	id = pending("touch " + granted)
	answer(id, false)
	if r := <-done; !r.refused("a reviewer refused "+id+": because") || exists(granted) {
		t.Errorf("refused: %+v", r)
	}
	later := evil(t)
	r := <-held("touch " + later)
	if r.status != 75 || !strings.Contains(r.errs, "no reviewer has answered req_") || exists(later) {
		t.Errorf("not answered: %+v", r)
	}
	id = pending("touch " + later)
	if leased(id) {
		t.Error("the question ends though its client was told to come back")
	}
	returning := g.connect(t) // who comes back and leaves again ends nothing
	waiting, err := returning.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := waiting.Start("touch " + later); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits for the same question", func() bool {
		return len(g.recorder.find(func(e access.Event) bool { return e.Notice != nil && e.Request == id })) > 1
	})
	returning.Close()
	eventually(t, "it has left", func() bool {
		return len(g.recorder.find(func(e access.Event) bool { return e.Closed != nil })) > 0
	})
	answer(pending("touch "+later), true)
	if r := exec(t, g.connect(t), "touch "+later, ""); r.status != 0 || !exists(later) {
		t.Errorf("answered later, by another connection: %+v", r)
	}
	left := evil(t)
	leaving := g.connect(t)
	session, err := leaving.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("touch " + left); err != nil {
		t.Fatal(err)
	}
	id = pending("touch " + left)
	leaving.Close()
	eventually(t, "who left asks no more", func() bool {
		a, err := g.approvals.Get(context.Background(), id)
		return err == nil && a.State == access.Abandoned
	})
	if exists(left) {
		t.Error("it ran though its client left")
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	g := start(t)
	client := g.connect(t)
	if r := exec(t, client, ": free; : small; head -c 1000 /dev/zero", ""); len(r.out) != 1000 || r.status != 0 {
		t.Errorf("as much as allowed: %d bytes, %d", len(r.out), r.status)
	}
	if r := exec(t, client, ": free; : small; head -c 1001 /dev/zero", ""); len(r.out) > 1000 || r.status != 77 || !strings.Contains(r.errs, "larger than 1000 bytes, which is the limit of test/") {
		t.Errorf("one more: %d bytes, %+v", len(r.out), r.errs)
	}
	if r := exec(t, client, ": free; : quick; true", ""); r.status != 0 {
		t.Errorf("in time: %+v", r)
	}
	if r := exec(t, client, ": free; : quick; sleep 20", ""); r.status != 77 || !strings.Contains(r.errs, "ran longer than 3s") {
		t.Errorf("too long: %+v", r)
	}
	for i, want := range []int{0, 0, 77} {
		if r := exec(t, client, ": free; : twice; true", ""); r.status != want {
			t.Errorf("time %d: %+v", i, r)
		}
	}
	if r := exec(t, g.connect(t), ": free; : twice; true", ""); r.status != 0 {
		t.Errorf("another session: %+v", r)
	}
}

// Secrets are hidden however they are split, and what cannot be read is refused.
func TestMasks(t *testing.T) {
	t.Parallel()
	g := start(t)
	client := g.connect(t)
	const card = "4111111111111111"
	whole := exec(t, client, ": free; : hidden; echo card "+card+"; echo card "+card+" >&2", "")
	if whole.out != "card ***\n" || whole.errs != "card ***\n" {
		t.Errorf("%+v", whole)
	}
	if r := exec(t, client, ": free; echo card "+card, ""); r.out != "card "+card+"\n" {
		t.Errorf("twin: %+v", r)
	}
	for split := 1; split < len(card); split += 5 {
		r := exec(t, client, ": free; : hidden; printf 'card "+card[:split]+"'; sleep 0.05; printf '"+card[split:]+"\\n'", "")
		if r.out != "card ***\n" {
			t.Errorf("split at %d: %+v", split, r)
		}
	}
	if r := exec(t, client, ": free; : hidden; printf 'a\\000b'", ""); r.status != 77 || strings.Contains(r.out, "b") || !strings.Contains(r.errs, "not text") {
		t.Errorf("what cannot be read: %+v", r)
	}
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.RequestPty("xterm", 24, 80, nil); err != nil {
		t.Fatal(err)
	}
	coloured := perform(session, "", func() error {
		return session.Run(": free; : hidden; printf 'card " + card[:7] + "\\033[31m" + card[7:] + "\\033[m\n'")
	})
	if digits := strings.NewReplacer("\x1b[31m", "", "\x1b[m", "").Replace(coloured.out); digits != "card ***\r\n" {
		t.Errorf("coloured in a terminal: %q", coloured.out)
	}
	if masked := g.recorder.find(func(e access.Event) bool { return e.Ended != nil && e.Ended.Masked > 0 }); len(masked) == 0 {
		t.Error("nobody counts what was masked")
	}
	dir := filepath.Join(t.TempDir(), "free")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if r := exec(t, client, "scp -t "+dir+"/masked", ""); !r.refused("files and connections in transit cannot be masked") {
		t.Errorf("a file on a masked rule: %+v", r)
	}
}

// A terminal is recorded with its size and its resizes; a shell without one is
// another act.
func TestTerminal(t *testing.T) {
	t.Parallel()
	g := start(t)
	client := g.connect(t)
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out safeBuffer
	session.Stdout = &out
	if err := session.RequestPty("xterm", 24, 80, gossh.TerminalModes{gossh.ECHO: 0}); err != nil {
		t.Fatal(err)
	}
	if err := session.Shell(); err != nil {
		t.Fatal(err)
	}
	say := func(text, until string) {
		t.Helper()
		if _, err := io.WriteString(in, text); err != nil {
			t.Fatal(err)
		}
		eventually(t, until, func() bool { return strings.Contains(out.String(), until) })
	}
	say("stty size; echo one\n", "24 80")
	if err := session.WindowChange(50, 132); err != nil {
		t.Fatal(err)
	}
	// What is typed and the size go to the host by two ways: ask until it is there.
	say("until stty size | grep 132; do sleep 0.05; done; echo two\n", "50 132")
	if _, err := io.WriteString(in, "exit 6\n"); err != nil {
		t.Fatal(err)
	}
	if exit, ok := session.Wait().(*gossh.ExitError); !ok || exit.ExitStatus() != 6 {
		t.Errorf("it ends with %v", exit)
	}
	sizes := g.recorder.find(func(e access.Event) bool { return e.Stream != nil && e.Stream.Columns > 0 })
	if len(sizes) != 2 || sizes[0].Stream.Term != "xterm" || sizes[0].Stream.Columns != 80 || sizes[1].Stream.Columns != 132 || sizes[1].Stream.Rows != 50 {
		t.Errorf("sizes %+v", sizes)
	}
	eventually(t, "the terminal is recorded", func() bool { return strings.Contains(g.recorder.text(access.Stdout), "50 132") })
	if typed := g.recorder.text(access.Stdin); !strings.Contains(typed, "echo two") {
		t.Errorf("typed %q", typed)
	}
	plain, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if r := perform(plain, "touch "+evil(t)+"\n", func() error {
		if err := plain.Shell(); err != nil {
			return err
		}
		return plain.Wait()
	}); !r.refused("no-rule") {
		t.Errorf("a shell without a terminal: %+v", r)
	}
}

// A session ends with its token, unless a fresh one came.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	g := start(t)
	client := g.connect(t)
	if r := exec(t, client, "echo in", ""); r.out != "in\n" {
		t.Fatalf("%+v", r)
	}
	fresh := agent()
	fresh.Token = access.TokenRef{ID: "tok_2", ExpiresAt: time.Now().Add(3 * time.Hour)}
	if err := g.registry.Renew(t.Context(), fresh, "10.1.2.3:99"); err != nil {
		t.Fatal(err)
	}
	g.ahead.Store(int64(2 * time.Hour))
	if r := exec(t, client, "echo in", ""); r.out != "in\n" {
		t.Errorf("renewed: %+v", r)
	}
	last := g.recorder.find(func(e access.Event) bool { return e.Decided != nil })
	if id := last[len(last)-1].Decided.Request.Principal.Token.ID; id != "tok_2" {
		t.Errorf("judged with %s", id)
	}
	g.ahead.Store(int64(4 * time.Hour))
	eventually(t, "the session ends", func() bool {
		return len(g.recorder.find(func(e access.Event) bool {
			return e.Closed != nil && strings.Contains(e.Closed.Cause, "token has expired")
		})) == 1
	})
}

// An idle session is small: this counts the client's side too.
func TestIdleSessionsAreSmall(t *testing.T) {
	const many, most = 100, 240 << 10 // both sides of a connection are alike
	g := start(t, func(_ *gateway, c *Config) { c.MaxWaitingPerSource = many })
	signer := certified(t, agent(), nil)
	var before, after runtime.MemStats
	g.connect(t)
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range many {
		if _, err := g.login(t, host.Account+"@web", gossh.PublicKeys(signer)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are open", func() bool { return len(g.live) == many+1 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (after.HeapInuse + after.StackInuse - before.HeapInuse - before.StackInuse) / many
	t.Logf("%d KiB", each>>10)
	if each > most {
		t.Errorf("an idle session takes %d KiB with its client", each>>10)
	}
}
