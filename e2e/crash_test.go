package e2e

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/record"
)

// counting lets Ada's agent write down numbers, so that what ran can be counted.
const counting = `
policy: e2e-counting
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "orders"'
rules:
  - name: count
    when: 'sql.command == "INSERT" && sql.writes == ["public.ran"]'
    effect: allow
`

// rounds of the kill -9 loop; ROUNDS in the environment changes it.
func rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("ROUNDS")
	if text == "" {
		return 100
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestKill9Loop kills serve again and again while agents write numbers, and
// then compares what the database has with what the recording says was
// forwarded: nothing ran that is not recorded. A round is mostly one process
// starting, so that three gateways share the rounds.
func TestKill9Loop(t *testing.T) {
	t.Parallel()
	all, loops := rounds(t), 3
	for i := range loops {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			killLoop(t, (all+i)/loops)
		})
	}
}

func killLoop(t *testing.T, rounds int) {
	policies, err := demo.Policies()
	if err != nil {
		t.Fatal(err)
	}
	policies["counting.yaml"] = counting
	// One parser: the start of more takes seconds of CPU.
	s := own(t, demo.Options{Policies: policies, Config: func(text string) string { return text + "parsers: 1\n" }})
	if err := s.Database.Exec(t.Context(), "orders", "create table ran (n bigint); grant insert on ran to chaperone_app"); err != nil {
		t.Fatal(err)
	}
	tok := token(t, s, demo.Ada)
	ctx, stop := context.WithCancel(t.Context())
	var next, ran counter
	var agents sync.WaitGroup
	for range 3 {
		agents.Go(func() { insertForever(ctx, s, tok, &next, &ran) })
	}
	for i := range rounds {
		before := ran.get()
		eventually(t, func() error { // load is on
			if now := ran.get(); now < before+3 {
				return fmt.Errorf("round %d: %d inserts so far", i, now)
			}
			return nil
		})
		// Inserts of the round before may be counted late: serve is then not
		// yet there again.
		eventually(t, func() error { return s.Gateway.Kill9("serve") })
	}
	stop()
	agents.Wait()
	eventually(t, func() error { return s.Ready(t.Context()) })
	report, err := record.Verify(filepath.Join(s.Dir, "data", "recordings"))
	if err != nil {
		t.Fatalf("the recording is not whole: %v", err)
	}
	forwarded := recordedInserts(t, filepath.Join(s.Dir, "data", "recordings"))
	rows, err := direct(t, s).Query(t.Context(), "select n from ran")
	if err != nil {
		t.Fatal(err)
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		if !forwarded[n] {
			t.Errorf("%d ran and is not recorded", n)
		}
	}
	if len(numbers) < rounds {
		t.Errorf("only %d inserts ran: there was no load", len(numbers))
	}
	t.Logf("%d kills, %d inserts ran, %d recorded, %d events", rounds, len(numbers), len(forwarded), report.Events())
}

type counter struct {
	mu sync.Mutex
	n  int64
}

func (c *counter) add() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func (c *counter) get() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// insertForever connects and inserts fresh numbers, over and over, whatever
// breaks.
func insertForever(ctx context.Context, s *demo.Site, tok string, next, ran *counter) {
	pause := time.NewTicker(50 * time.Millisecond)
	defer pause.Stop()
	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, s.DSN(tok))
		for err == nil {
			if _, err = conn.Exec(ctx, "insert into ran (n) values ($1)", next.add()); err == nil {
				ran.add()
			}
		}
		if conn != nil {
			conn.Close(context.Background())
		}
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

// recordedInserts are the numbers that the recording says were forwarded.
func recordedInserts(t *testing.T, dir string) map[int64]bool {
	t.Helper()
	reader, err := record.OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[int64]bool{}
	for ev, err := range reader.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Executed == nil || !strings.HasPrefix(ev.Executed.SQL, "insert into ran") || len(ev.Executed.Parameters) != 1 {
			continue
		}
		n, err := number(ev.Executed.Parameters[0].Value, ev.Executed.Parameters[0].Binary)
		if err != nil {
			t.Fatal(err)
		}
		found[n] = true
	}
	return found
}

// number reads a bound bigint, which pgx sends in binary.
func number(value string, binaryForm bool) (int64, error) {
	if !binaryForm {
		return strconv.ParseInt(value, 10, 64)
	}
	b, err := base64.StdEncoding.DecodeString(value)
	if err != nil || len(b) != 8 {
		return 0, errors.New("not a binary bigint")
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}
