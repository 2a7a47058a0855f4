package postgres

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// A witness stands between the gateway and the target. It keeps a model of what
// the gateway may say there: known messages, names that were made before, and
// only what was decided and recorded. It can lie to the gateway, too.
type witness struct {
	g    *gateway
	addr string

	mu     sync.Mutex
	lie    func(frame []byte) [][]byte // what comes in the place of a message; nil: the truth
	faults []string
}

// watched is the application_name of sessions that a witness looks at; other
// connections, the gateway's own among them, pass.
const watched = "watched"

func newWitness(t testing.TB, g *gateway) *witness {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &witness{g: g, addr: l.Addr().String()}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(conn)
		}
	}()
	target := g.pg.Addr
	g.setResource("orders", func(r *Resource) { r.Address = w.addr })
	t.Cleanup(func() { g.setResource("orders", func(r *Resource) { r.Address = target }) })
	return w
}

func (w *witness) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// lies has lie take the place of what the target says; nil is the truth. A
// connection of before may still be at work.
func (w *witness) lies(lie func(frame []byte) [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lie = lie
}

func (w *witness) lying() func(frame []byte) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lie
}

// told returns the faults since it was asked last.
func (w *witness) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	faults := w.faults
	w.faults = nil
	return faults
}

func (w *witness) carry(gateway net.Conn) {
	defer gateway.Close()
	target, err := net.Dial("tcp", w.g.pg.Addr)
	if err != nil {
		return
	}
	defer target.Close()
	startup := make([]byte, 4)
	if _, err := io.ReadFull(gateway, startup); err != nil {
		return
	}
	size := int(binary.BigEndian.Uint32(startup))
	body, err := readBody(gateway, nil, size-4)
	if err != nil {
		return
	}
	target.Write(append(startup, body...))
	if !bytes.Contains(body, []byte("application_name\x00"+watched+"\x00")) {
		go func() {
			io.Copy(target, gateway)
			target.Close()
		}()
		io.Copy(gateway, target)
		return
	}
	go func() {
		defer target.Close()
		w.listen(gateway, target)
	}()
	w.speak(target, gateway)
}

// listen reads what the gateway says and holds it against the model.
func (w *witness) listen(gateway io.Reader, target io.Writer) {
	statements, portals, ran := map[string]string{}, map[string]string{}, map[string]int{}
	for {
		typ, size, err := readHeader(gateway, 32<<20)
		if err != nil {
			return
		}
		body, err := readBody(gateway, nil, size)
		if err != nil {
			return
		}
		switch typ {
		case 'p', 'S', 'H', 'X', 'd', 'c', 'f', 'D', 'C':
		case 'P':
			var m pgproto3.Parse
			if err := m.Decode(slices.Clone(body)); err != nil {
				w.fault("a Parse that cannot be read: %v", err)
			}
			statements[m.Name] = m.Query
		case 'B':
			var m pgproto3.Bind
			if err := m.Decode(slices.Clone(body)); err != nil {
				w.fault("a Bind that cannot be read: %v", err)
			}
			text, known := statements[m.PreparedStatement]
			if !known {
				w.fault("Bind of the statement %q, which was never prepared", m.PreparedStatement)
			}
			portals[m.DestinationPortal] = text
		case 'E':
			var m pgproto3.Execute
			if err := m.Decode(slices.Clone(body)); err != nil {
				w.fault("an Execute that cannot be read: %v", err)
			}
			w.executes(m.Portal, portals, ran)
		default:
			if typ != 'Q' || string(body) != "-- ping\x00" { // of pgconn, when a session opens
				w.fault("a message of type %q for the target", typ)
			}
		}
		if _, err := target.Write(appendFrame(nil, typ, body)); err != nil {
			return
		}
	}
}

// executes sees to it that what runs was recorded, as often as it runs.
func (w *witness) executes(portal string, portals map[string]string, ran map[string]int) {
	text, known := portals[portal]
	switch {
	case !known:
		w.fault("Execute of the portal %q, which was never bound", portal)
	case portal == ownName || strings.TrimSpace(strings.Trim(text, "; ")) == "":
		return
	}
	ran[text]++
	prepares := strings.HasPrefix(text, "prepare ") // runs nothing, and is recorded as decided
	recorded := w.g.recorder.count(func(e access.Event) bool {
		if d := e.Decided; prepares && d != nil && d.Decision.Effect == access.Allow {
			return cmp.Or(d.Request.Action.SQL.Forward, d.Request.Action.SQL.Text) == text
		}
		return e.Executed != nil && e.Executed.SQL == text
	})
	if recorded < ran[text] {
		w.fault("%q runs for the %d. time and was recorded %d times", text, ran[text], recorded)
	}
}

// speak passes on what the target says, or lies about it once the session is
// open.
func (w *witness) speak(target io.Reader, gateway io.Writer) {
	open := false
	for {
		typ, size, err := readHeader(target, 32<<20)
		if err != nil {
			return
		}
		body, err := readBody(target, nil, size)
		if err != nil {
			return
		}
		frames := [][]byte{appendFrame(nil, typ, body)}
		if lie := w.lying(); open && lie != nil {
			frames = lie(frames[0])
		}
		open = open || typ == 'Z'
		for _, f := range frames {
			if _, err := gateway.Write(f); err != nil {
				return
			}
		}
	}
}

// watch opens a session that the witness looks at.
func (w *witness) watch(t testing.TB) *wire {
	t.Helper()
	c := w.g.startWire(t, map[string]string{"user": "agent", "database": "orders", "application_name": watched})
	c.send(&pgproto3.PasswordMessage{Password: goodToken})
	c.until(1)
	return c
}

var modelTexts = []string{
	"select 1 as one", "select id, ssn from customers order by id limit 3", "select $1::int4 + 1 as sum", "select nothing", "select 1/(id-1) from orders order by id desc limit 3",
	"delete from orders", "select ssn from customers where ssn = 'x'", "begin", "commit", "rollback", "savepoint s", "rollback to s", "", ";", "select", "selec", "copy customers to stdout",
	"update orders set status = status where false", "select generate_series(1, 70) as n", "declare c cursor for select ssn from customers", "fetch 2 from c", "prepare q as select ssn from customers",
	"execute q", "deallocate q", "discard all", "set application_name = 'x'", "show timezone", "drop table orders", "select 1; select 2", "begin; delete from orders; commit", "select pg_sleep(0)",
}

// modelMessages makes one cycle: messages that end with Sync, or a simple query.
func modelMessages(r *rand.Rand) []pgproto3.FrontendMessage {
	names := []string{"", "a", "b"}
	name := func() string { return names[r.IntN(len(names))] }
	text := func() string { return modelTexts[r.IntN(len(modelTexts))] }
	if r.IntN(3) == 0 {
		return []pgproto3.FrontendMessage{&pgproto3.Query{String: text()}}
	}
	var msgs []pgproto3.FrontendMessage
	for range r.IntN(9) {
		var m pgproto3.FrontendMessage
		switch n := r.IntN(13); {
		case n < 4:
			m = parse(name(), text())
		case n < 7:
			b := bind(name(), name())
			if r.IntN(3) == 0 {
				b.Parameters = [][]byte{[]byte("41")}
			}
			m = b
		case n < 10:
			m = &pgproto3.Execute{Portal: name(), MaxRows: uint32(r.IntN(3))}
		case n < 11:
			m = &pgproto3.Describe{ObjectType: "SP"[r.IntN(2)], Name: name()}
		case n < 12:
			m = &pgproto3.Close{ObjectType: "SP"[r.IntN(2)], Name: name()}
		default:
			m = &pgproto3.Flush{}
		}
		msgs = append(msgs, m)
	}
	return append(msgs, syncMessage)
}

// modelAnswer is the form that the answer to one cycle has: one letter for each
// message, in the order of the questions; an error stands in the place of all
// that was not answered before it. Notices, notifications and reported
// settings may come anywhere.
func modelAnswer(msgs []pgproto3.FrontendMessage) *regexp.Regexp {
	const rows, begun = "(?:D*[CIs]|Hd*cC)", "(?:D*|Hd*c?)"
	type form struct{ whole, broken string } // broken: what can come of it before an error
	text := "E?"
	for _, m := range slices.Backward(msgs) {
		var f form
		switch m := m.(type) {
		case *pgproto3.Parse:
			f.whole = "1"
		case *pgproto3.Bind:
			f.whole = "2"
		case *pgproto3.Close:
			f.whole = "3"
		case *pgproto3.Describe:
			f = map[byte]form{'S': {"t[Tn]", "t?"}, 'P': {"[Tn]", ""}}[m.ObjectType]
		case *pgproto3.Execute:
			f = form{rows, begun}
		case *pgproto3.Query:
			f = form{"(?:T?" + rows + ")+", "(?:T?" + rows + ")*T?" + begun}
		default:
			continue
		}
		text = "(?:" + f.whole + text + "|" + f.broken + "E)"
	}
	return regexp.MustCompile("^" + text + "Z$")
}

// cycle reads the answer to one cycle.
func (w *wire) cycle() (letters string, last []byte, err error) {
	for {
		typ, size, err := readHeader(w.conn, 32<<20)
		if err != nil {
			return letters, last, err
		}
		body, err := readBody(w.conn, nil, size)
		if err != nil {
			return letters, last, err
		}
		switch typ {
		case 'N', 'S', 'A':
			continue
		}
		letters, last = letters+string(typ), body
		if typ == 'Z' {
			return letters, last, nil
		}
	}
}

// TestModel: whatever sensible messages come, in whatever order, each cycle is
// answered once and in order, and the target is asked for nothing that was not
// decided and recorded.
func TestModel(t *testing.T) {
	t.Parallel()
	g := judged(t, "18")
	w := newWitness(t, g)
	_, port, _ := net.SplitHostPort(w.addr)
	control, err := pgconn.Connect(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%s user=app password=%s dbname=orders application_name=%s sslmode=disable", port, rolePassword, watched))
	if err != nil {
		t.Fatal(err)
	}
	if err := control.ExecParams(t.Context(), "select 'nobody decided this'", nil, nil, nil, nil).Read().Err; err != nil || len(w.told()) == 0 {
		t.Errorf("control: the witness sees nothing wrong: %v", err)
	}
	control.Close(t.Context())
	for seed := range uint64(40) {
		if fault := modelled(t, w, seed, 10); fault != "" {
			t.Fatalf("seed %d: %s", seed, fault)
		}
	}
}

// modelled plays a session of a seed, that many times some cycles at once, and
// says what was wrong.
func modelled(t testing.TB, w *witness, seed uint64, times int) string {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 2))
	c := w.watch(t)
	defer c.conn.Close()
	for range times {
		cycles := make([][]pgproto3.FrontendMessage, 1+r.IntN(3))
		var sent []byte
		for i := range cycles {
			cycles[i] = modelMessages(r)
			sent = append(sent, encoded(t, cycles[i])...)
		}
		for rest := sent; len(rest) > 0; { // in pieces
			n := 1 + r.IntN(len(rest))
			if _, err := c.conn.Write(rest[:n]); err != nil {
				return err.Error()
			}
			rest = rest[n:]
		}
		for _, msgs := range cycles {
			letters, last, err := c.cycle()
			if err != nil {
				return fmt.Sprintf("%s: %v after %s", described(msgs), err, letters)
			}
			if form := modelAnswer(msgs); !form.MatchString(letters) || !strings.Contains("ITE", string(last)) {
				return fmt.Sprintf("%s: answered %s, not in the form %s", described(msgs), letters, form)
			}
		}
	}
	if faults := w.told(); len(faults) > 0 {
		return strings.Join(faults, "\n")
	}
	return ""
}

func encoded(t testing.TB, msgs []pgproto3.FrontendMessage) (b []byte) {
	t.Helper()
	for _, m := range msgs {
		var err error
		if b, err = m.Encode(b); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func described(msgs []pgproto3.FrontendMessage) string {
	var told []string
	for _, m := range msgs {
		told = append(told, fmt.Sprintf("%T%+v", m, m))
	}
	return strings.ReplaceAll(strings.Join(told, " "), "*pgproto3.", "")
}

// bend makes something else of a message: too short, too long, twice, of another
// type, with a length that lies, with other bytes, or nothing.
func bend(r *rand.Rand, frame []byte) [][]byte {
	f := slices.Clone(frame)
	switch r.IntN(8) {
	case 0:
		return nil
	case 1:
		return [][]byte{f, f}
	case 2:
		return [][]byte{f[:r.IntN(len(f))]}
	case 3:
		f[0] = "123tTnDCIsEZHdcGNSAKRWVv!"[r.IntN(25)]
	case 4:
		binary.BigEndian.PutUint32(f[1:], []uint32{0, 3, 4, uint32(len(f)), 1 << 20, 1 << 31, 1<<32 - 1}[r.IntN(7)])
	case 5:
		f[5+r.IntN(max(len(f)-5, 1))-btoi(len(f) == 5)] ^= byte(1 + r.IntN(255))
	case 6:
		return [][]byte{appendFrame(nil, 'Z', []byte{"ITEx"[r.IntN(4)]}), f}
	case 7:
		return [][]byte{appendFrame(nil, 'E', []byte("SERROR\x00C22012\x00Mlie\x00\x00")), f}
	}
	return [][]byte{f}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// impatient gives a target little time that leaves a message unfinished.
func impatient(_ *gateway, c *Config, _ *Deps) { c.LeaveTimeout = 50 * time.Millisecond }

// TestModelWild: a client that sends bent messages, and a target that answers
// with them, can end their own session and no other. The client is told no more
// answers than it asked questions and no row that was not recorded.
func TestModelWild(t *testing.T) {
	t.Parallel()
	g := judged(t, "18", impatient)
	w := newWitness(t, g)
	bystander := g.wire(t)
	for seed := range uint64(60) {
		if fault := wild(t, w, bystander, seed, seed%2 == 0); fault != "" {
			t.Fatalf("seed %d: %s", seed, fault)
		}
	}
}

// wild plays a session of a seed with bent messages of the client, or of the
// target, and says what was wrong.
func wild(t testing.TB, w *witness, bystander *wire, seed uint64, ofClient bool) string {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	w.lies(nil)
	if !ofClient {
		lies := rand.New(rand.NewPCG(seed, 4))
		w.lies(func(frame []byte) [][]byte {
			if lies.IntN(6) > 0 {
				return [][]byte{frame}
			}
			return bend(lies, frame)
		})
	}
	c := w.watch(t)
	defer c.conn.Close()
	before := w.g.recordedCount()
	asked, sent := 0, []byte(nil)
	for range 1 + r.IntN(6) {
		msgs := modelMessages(r)
		asked++
		for _, m := range msgs {
			frames := [][]byte{encoded(t, []pgproto3.FrontendMessage{m})}
			if ofClient && r.IntN(5) == 0 {
				frames = bend(r, frames[0])
				asked += 2
			}
			sent = append(sent, slices.Concat(frames...)...)
		}
	}
	c.conn.Write(sent) // the session may be over before it is all sent
	c.conn.(*net.UnixConn).CloseWrite()
	ready, rows := 0, 0
	for {
		letters, _, err := c.cycle()
		ready, rows = ready+strings.Count(letters, "Z"), rows+strings.Count(letters, "D")+strings.Count(letters, "d")
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "the session hangs"
		}
		if err != nil {
			break
		}
	}
	if ready > asked {
		return fmt.Sprintf("%d cycles are answered, %d were asked", ready, asked)
	}
	if recorded := w.g.recordedCount() - before; rows > recorded {
		return fmt.Sprintf("%d rows are shown and %d recorded", rows, recorded)
	}
	if faults := w.told(); len(faults) > 0 {
		return strings.Join(faults, "\n")
	}
	bystander.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if got := bystander.ask("select 1 as one"); !slices.Equal(got, []string{"columns one", "row 1", "SELECT 1", "ready I"}) {
		return fmt.Sprintf("the bystander gets %q", got)
	}
	return ""
}

// recordedCount counts the rows of results that were recorded.
func (g *gateway) recordedCount() (n int) {
	for _, e := range g.recorder.all() {
		if e.Rows != nil {
			n += len(e.Rows.Rows)
		}
	}
	return n
}

// FuzzModel does what TestModel and TestModelWild do, with other seeds.
func FuzzModel(f *testing.F) {
	f.Add(uint64(1000), byte(0))
	f.Add(uint64(1001), byte(1))
	f.Add(uint64(1002), byte(2))
	g := judged(f, "18", impatient)
	w := newWitness(f, g)
	bystander := g.wire(f)
	f.Fuzz(func(t *testing.T, seed uint64, kind byte) {
		w.lies(nil)
		bystander.t = t
		fault := ""
		if kind%3 == 0 {
			fault = modelled(t, w, seed, 2) // a fuzz target has 10 s, however busy the machine
		} else {
			fault = wild(t, w, bystander, seed, kind%3 == 1)
		}
		if fault != "" {
			t.Error(fault)
		}
	})
}
