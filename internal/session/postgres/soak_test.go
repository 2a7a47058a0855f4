package postgres

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

var soakFor = flag.Duration("soak", time.Second, "how long TestSoak goes on")

// soakScript reads a masked column and a row of the load's own tables.
const soakScript = `\set id random(1, 1000)
select id, ssn from people where id = :id;
select abalance from pgbench_accounts where aid = :id;
`

// soakExpected is all that pgbench may say of clients whose sessions are ended.
var soakExpected = regexp.MustCompile(`killed by operator|terminating connection|connection to the (target|server)|server closed the connection|Run was aborted|reason session-ended|ask the operator|` +
	`this probably means|before or while processing|tell the operator the request id|reason unavailable|client \d+ aborted|^\s*$|terminated abnormally|the target closed|progress:|pgbench|could not connect`)

// TestSoak is mixed load of pgbench (both protocols, TPC-B and reads) and of
// clients that send whatever they like, while sessions are killed, clients
// die and the target ends connections. Nobody else notices, no answer goes to
// another, the accounts add up, and in the end nothing is left: no goroutine, no
// memory, no role, no connection. make soak runs it for MINUTES, with the race
// detector.
func TestSoak(t *testing.T) {
	p := profile(t, "18", "soak")
	onLoopback(p.gateway, nil, nil)
	soakLoad(t, p)
	p.policy.setMasks(access.Mask{Column: "public.people.ssn"})
	p.policy.set(func(r access.Request) access.Decision {
		if d := denyWord("DELETE")(r); d.Effect == access.Deny {
			return d
		}
		return allowed(access.Obligations{Masks: []access.Mask{{Column: "public.people.ssn"}}})
	})
	soakRound(t, p, 0) // what is made once and kept
	before := p.left(t)
	end := time.Now().Add(*soakFor)
	rounds, worst := 0, before
	for ; rounds == 0 || time.Now().Before(end); rounds++ {
		soakRound(t, p, uint64(rounds+1))
		after := p.left(t)
		worst.goroutines, worst.heap = max(worst.goroutines, after.goroutines), max(worst.heap, after.heap)
		if t.Failed() {
			break
		}
	}
	after := p.left(t)
	t.Logf("%d rounds; before %+v, after %+v, at worst %+v", rounds, before, after, worst)
	const spareGoroutines, spareHeap = 20, 16 << 20
	if after.goroutines > before.goroutines+spareGoroutines || after.heap > before.heap+spareHeap {
		t.Errorf("something leaks: before %+v, after %+v", before, after)
	}
	if got := p.asked(t, `select (sum(abalance) = (select sum(bbalance) from pgbench_branches) and sum(abalance) = (select sum(tbalance) from pgbench_tellers)
		and sum(abalance) = (select coalesce(sum(delta), 0) from pgbench_history))::text from pgbench_accounts`); got != "true" {
		t.Error("the accounts do not add up")
	}
}

// soakLoad makes the tables of the load.
func soakLoad(t *testing.T, p *profiled) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(p.pg.Bin, "pgbench"), "-i", "-q", p.pg.DSN("postgres", p.pg.Password, p.db)).CombinedOutput()
	if err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	err = p.pg.Exec(t.Context(), p.db, fmt.Sprintf(`CREATE TABLE people (id int PRIMARY KEY, ssn text); INSERT INTO people SELECT i, '123-45-' || i FROM generate_series(1, 1000) i;
		GRANT SELECT, INSERT, UPDATE ON pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history TO "%[1]s"; GRANT SELECT (id) ON people TO "%[1]s"`, p.profile))
	if err != nil {
		t.Fatal(err)
	}
}

// A residue is what is there when nobody is connected.
type residue struct {
	goroutines int
	heap       uint64
}

// left waits until no session, role or connection of one is left.
func (p *profiled) left(t *testing.T) residue {
	t.Helper()
	eventually(t, "no session is left", func() bool {
		p.registry.mu.Lock()
		defer p.registry.mu.Unlock()
		return len(p.registry.live) == 0
	})
	roles := ""
	for end := time.Now().Add(30 * time.Second); ; <-time.After(20 * time.Millisecond) {
		roles = p.asked(t, `select coalesce(string_agg(rolname, ' '), '') from pg_roles r where pg_has_role(r.oid, $1, 'MEMBER') and rolname like 'chaperone\_%'
			and not exists (select from pg_stat_activity where usename = rolname and application_name like 'chaperone%')`, p.profile)
		if roles == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("roles are left: %s\n%s", roles, p.log)
		}
	}
	p.recorder.mu.Lock()
	p.recorder.events = nil
	p.recorder.mu.Unlock()
	p.registry.mu.Lock()
	clear(p.registry.closed)
	p.registry.mu.Unlock()
	p.policy.mu.Lock()
	p.policy.asked = nil
	p.policy.mu.Unlock()
	var r residue
	for range 50 { // what has been told to end ends
		if r.goroutines = runtime.NumGoroutine(); r.goroutines < 60 {
			break
		}
		runtime.Gosched()
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	r.heap = m.HeapAlloc
	return r
}

// soakRound is a few seconds of load.
func soakRound(t *testing.T, p *profiled, seed uint64) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "soak.sql")
	writeFile(t, script, soakScript)
	r := rand.New(rand.NewPCG(seed, 6))
	over := make(chan struct{})
	var others sync.WaitGroup
	var asked atomic.Int64
	bystander := p.wire(t)
	defer bystander.conn.Close()
	others.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-over:
				return
			default:
			}
			bystander.conn.SetDeadline(time.Now().Add(time.Minute))
			text := fmt.Sprintf("select %d as n, ssn from people where id = %d", n, 1+n%1000)
			bystander.Send(&pgproto3.Query{String: text})
			if err := bystander.Flush(); err != nil {
				t.Errorf("the bystander: %v", err)
				return
			}
			letters, row, err := bystander.cycleRow()
			if err != nil || letters != "TDCZ" || !bytes.Contains(row, []byte(fmt.Sprint(n))) || !bytes.HasSuffix(row, []byte("***")) {
				t.Errorf("the bystander asks %q and gets %s %q %v", text, letters, row, err)
				return
			}
			asked.Add(1)
		}
	})
	var loads sync.WaitGroup
	for _, args := range [][]string{{"-M", "simple"}, {"-M", "prepared", "-S"}, {"-M", "extended", "-f", script}, {"-M", "prepared", "-C"}} {
		loads.Go(func() { soakPgbench(t, p, args) })
	}
	for i := range uint64(2) {
		loads.Go(func() {
			for n := range uint64(10) {
				soakWild(t, p, seed*100+i*10+n)
			}
		})
	}
	done := make(chan struct{})
	go func() { loads.Wait(); close(done) }()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-tick.C:
			p.disturb(t, r)
		}
	}
	close(over)
	others.Wait()
	if asked.Load() == 0 {
		t.Error("the bystander was never answered")
	}
}

// soakPgbench runs pgbench for a moment. Its clients may lose their sessions,
// and notice nothing else.
func soakPgbench(t *testing.T, p *profiled, args []string) {
	args = append(args, "-n", "-c", "3", "-T", "2", p.plainDSN(goodToken)+" application_name=soak")
	out, err := exec.CommandContext(t.Context(), filepath.Join(p.pg.Bin, "pgbench"), args...).CombinedOutput()
	if err == nil {
		return
	}
	for line := range strings.Lines(string(out)) {
		if (strings.Contains(line, "ERROR") || strings.Contains(line, "FATAL") || strings.Contains(line, "error:")) && !soakExpected.MatchString(line) {
			t.Errorf("pgbench %v: %v\n%s", args, err, out)
			return
		}
	}
}

// soakWild sends one session's worth of messages and leaves, in the middle of an
// answer when it pleases. An answer that is complete has the form that it must.
func soakWild(t *testing.T, p *profiled, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	conn, err := p.dialSocket(p.source)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	w := &wire{t: t, conn: conn, Frontend: pgproto3.NewFrontend(conn, conn)}
	w.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "agent", "database": "orders", "application_name": "soak"}})
	w.Send(&pgproto3.PasswordMessage{Password: goodToken})
	if w.Flush() != nil {
		return
	}
	if letters, _, err := w.cycle(); err != nil || strings.Contains(letters, "E") {
		return // killed so early
	}
	for range 5 {
		msgs := modelMessages(r)
		if _, err := conn.Write(encoded(t, msgs)); err != nil || r.IntN(20) == 0 {
			return
		}
		letters, _, err := w.cycle()
		if err != nil {
			return
		}
		if form := modelAnswer(msgs); !form.MatchString(letters) {
			t.Errorf("seed %d: %s: answered %s, not in the form %s", seed, described(msgs), letters, form)
			return
		}
	}
}

// cycleRow is cycle with the last row in the answer.
func (w *wire) cycleRow() (letters string, row []byte, err error) {
	for {
		typ, size, err := readHeader(w.conn, 1<<20)
		if err != nil {
			return letters, row, err
		}
		body, err := readBody(w.conn, nil, size)
		if err != nil {
			return letters, row, err
		}
		switch typ {
		case 'N', 'S', 'A':
			continue
		case 'D':
			row = body
		}
		if letters += string(typ); typ == 'Z' {
			return letters, row, nil
		}
	}
}

// disturb kills some sessions at the gateway, or ends some connections at the
// target. The bystander, which is called otherwise, is spared.
func (p *profiled) disturb(t *testing.T, r *rand.Rand) {
	t.Helper()
	if r.IntN(3) == 0 {
		p.asked(t, `select count(pg_terminate_backend(pid))::text from (select pid from pg_stat_activity where application_name = 'soak' and datname = current_database() order by random() limit 2) x`)
		return
	}
	opened := map[string]bool{}
	for _, e := range p.recorder.all() {
		if e.Opened != nil && e.Opened.Session.Client != "127.0.0.1:999" {
			opened[e.Session] = true
		}
	}
	p.registry.mu.Lock()
	defer p.registry.mu.Unlock()
	var ids []string
	for id := range p.registry.live {
		if opened[id] {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for range min(2, len(ids)) {
		p.registry.live[ids[r.IntN(len(ids))]](&access.Denial{RequestID: access.NewRequestID(), Reason: access.SessionEnded, Message: "killed by operator", Hint: "ask the operator"})
	}
}
