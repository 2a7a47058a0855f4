package e2e

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pires/go-proxyproto"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// A fleet is three replicas of the gateway on one Redis: the first is the Site's
// own, behind its Envoy; the others are spoken to as their Envoys would.
type fleet struct {
	site    *demo.Site
	redis   *localserver.Redis
	sockets []string // of the second and the third
	token   string
}

func newFleet(t testing.TB, config func(string) string) *fleet {
	t.Helper()
	f := &fleet{}
	var err error
	if f.redis, err = localserver.StartRedis(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.redis.Close() })
	url := filepath.Join(t.TempDir(), "redis-url")
	if err := os.WriteFile(url, []byte(f.redis.URL()), 0o600); err != nil {
		t.Fatal(err)
	}
	f.site = own(t, demo.Options{Config: func(text string) string {
		return config(strings.Replace(text, "store: {embedded: {dir: data}}", "store: {key: data/store.key, redis: {url: {file: "+url+"}}}", 1))
	}})
	for _, name := range []string{"second", "third"} {
		replica(t, f.site, name)
		f.sockets = append(f.sockets, filepath.Join(f.site.Dir, name, "postgres.sock"))
	}
	if f.token, err = f.site.Dex.Token(t.Context(), demo.Ada); err != nil {
		t.Fatal(err)
	}
	return f
}

// replica starts serve with the site's configuration, but with sockets,
// recordings and metrics of its own.
func replica(t testing.TB, s *demo.Site, name string) *exec.Cmd {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "chaperone.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.NewReplacer("recording: {dir: data/recordings", "sockets: "+name+"\nrecording: {dir: data/"+name,
		"metrics: 127.0.0.1:"+strconv.Itoa(s.MetricsPort), "log: info").Replace(string(text))
	file := filepath.Join(s.Dir, name+".yaml")
	if err := os.WriteFile(file, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(s.Dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "serve", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			b, err := os.ReadFile(log.Name())
			t.Logf("the %s replica's log: %s %v", name, tail(string(b), 20), err)
		}
	})
	return cmd
}

// dial opens a session at one of the replicas.
func (f *fleet) dial(ctx context.Context, at int) (*pgconn.PgConn, error) {
	config, err := pgconn.ParseConfig(f.site.DSN(f.token))
	if err != nil {
		return nil, err
	}
	if at > 0 {
		config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", f.sockets[at-1])
			if err != nil {
				return nil, err
			}
			client := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5432}
			_, err = proxyproto.HeaderProxyFromAddrs(2, client, client).WriteTo(c)
			return c, err
		}
	}
	return pgconn.ConnectConfig(ctx, config)
}

// open opens n sessions, spread over the replicas.
func (f *fleet) open(t testing.TB, n int) []*pgconn.PgConn {
	t.Helper()
	conns := make([]*pgconn.PgConn, n)
	var wg sync.WaitGroup
	few := make(chan struct{}, 8)
	for i := range conns {
		wg.Go(func() {
			few <- struct{}{}
			defer func() { <-few }()
			// A replica that has just started may not listen yet.
			if err := demo.Eventually(t.Context(), time.Minute, func() (err error) {
				conns[i], err = f.dial(t.Context(), i%3)
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		for _, c := range conns {
			c.Conn().Close()
		}
	})
	return conns
}

// cut does something and returns how long after its beginning each session was
// cut, the slowest last.
func cut(t testing.TB, conns []*pgconn.PgConn, do func()) []time.Duration {
	t.Helper()
	took := make([]time.Duration, len(conns))
	var wg sync.WaitGroup
	var began time.Time
	start := make(chan struct{})
	for i, c := range conns {
		wg.Go(func() {
			<-start
			// The farewell comes first; a cut is when nothing more can come.
			if err := c.Conn().SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Error(err)
			}
			b := make([]byte, 4096)
			for {
				if _, err := c.Conn().Read(b); err != nil {
					break
				}
			}
			took[i] = time.Since(began)
		})
	}
	began = time.Now()
	close(start)
	do()
	wg.Wait()
	slices.Sort(took)
	return took
}

func p99(took []time.Duration) time.Duration { return took[(len(took)*99+99)/100-1] }

// killer ends the sessions that a selector names, as sessions kill does.
func (f *fleet) killer(t testing.TB) func(selector string) {
	t.Helper()
	operator, err := f.site.Dex.TokenForPerson(t.Context(), demo.Alan)
	if err != nil {
		t.Fatal(err)
	}
	client, err := f.site.Client()
	if err != nil {
		t.Fatal(err)
	}
	return func(selector string) {
		req, err := http.NewRequestWithContext(t.Context(), "POST", f.site.URL()+"/api/v1/kill", strings.NewReader("{"+selector+`,"cause":"a drill"}`))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+operator)
		res, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("kill: %s", res.Status)
		}
	}
}

// all ends every session.
func (f *fleet) all(t testing.TB) func() {
	t.Helper()
	kill := f.killer(t)
	return func() { kill(`"all":true`) }
}

// TestKillReachesEveryReplica: a kill cuts the sessions of three replicas, and
// so does the loss of what would bring it. The figures are the benchmark's; the
// bounds here leave room for a busy machine.
func TestKillReachesEveryReplica(t *testing.T) {
	t.Parallel()
	f := newFleet(t, func(text string) string { return text + "parsers: 1\n" })
	conns := f.open(t, 30)
	took := cut(t, conns, f.all(t))
	t.Logf("killed: median %s, p99 %s", took[len(took)/2], p99(took))
	if p99(took) > 2*time.Second {
		t.Errorf("a session was cut %s after the kill", p99(took))
	}
	took = cut(t, f.open(t, 9), func() {
		if err := f.redis.Pause(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("without the store: first %s, last %s", took[0], took[len(took)-1])
	if last := took[len(took)-1]; last > 5*time.Second {
		t.Errorf("without the store a session lived for %s", last)
	}
	if err := f.redis.Resume(); err != nil {
		t.Error(err)
	}
}

// BenchmarkKill measures how soon sessions are cut at three replicas with 1,000
// of them: one that is named, beside which the others live on, then all of them
// at once, and 300 when the store is cut off.
func BenchmarkKill(b *testing.B) {
	f := newFleet(b, func(text string) string { return text })
	for range b.N {
		f.token = f.subject(b)
		conns, kill := f.open(b, 990), f.killer(b)
		var one []time.Duration
		for i := range 90 {
			f.token = f.subject(b) // the session's own: so is what names it
			c, err := f.dial(b.Context(), i%3)
			if err != nil {
				b.Fatal(err)
			}
			one = append(one, cut(b, []*pgconn.PgConn{c}, func() { kill(`"token":"` + tokenID(f.token) + `"`) })...)
			c.Conn().Close()
		}
		slices.Sort(one)
		b.ReportMetric(milliseconds(one[len(one)/2]), "one-p50-ms")
		b.ReportMetric(milliseconds(p99(one)), "one-p99-ms")
		took := cut(b, conns, f.all(b))
		b.ReportMetric(milliseconds(took[len(took)/2]), "all-p50-ms")
		b.ReportMetric(milliseconds(p99(took)), "all-p99-ms")
		b.ReportMetric(milliseconds(took[len(took)-1]), "all-max-ms")
	}
	f.token = f.subject(b)
	took := cut(b, f.open(b, 300), func() {
		if err := f.redis.Pause(); err != nil {
			b.Error(err)
		}
	})
	if err := f.redis.Resume(); err != nil {
		b.Error(err)
	}
	b.ReportMetric(milliseconds(took[len(took)-1]), "storeless-max-ms")
}

// subject gets a token that nothing else was opened with.
func (f *fleet) subject(t testing.TB) string {
	t.Helper()
	token, err := f.site.Dex.Token(t.Context(), demo.Ada)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
