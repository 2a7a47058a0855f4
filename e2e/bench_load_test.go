package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"chaperone.dev/chaperone/examples/demo"
)

// An httpLoad sends requests of one subagent over connections that stay open.
type httpLoad struct {
	client *http.Client
	token  string
}

func newHTTPLoad(s *demo.Site, token string) (*httpLoad, error) {
	client, err := s.Client()
	if err != nil {
		return nil, err
	}
	transport := client.Transport.(*http.Transport)
	transport.DisableKeepAlives = false
	transport.MaxIdleConnsPerHost, transport.MaxConnsPerHost = benchClients, benchClients
	return &httpLoad{client: client, token: token}, nil
}

func (l *httpLoad) close() { l.client.CloseIdleConnections() }

func (l *httpLoad) get(ctx context.Context, url string, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+l.token)
	res, err := l.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if n, err := io.Copy(to, res.Body); err != nil || n == 0 {
		return fmt.Errorf("%s: %d bytes of body: %w", url, n, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, res.Status)
	}
	return nil
}

var cardNumber = regexp.MustCompile(`\b4\d{15}\b`)

// check asks once and looks at the answer.
func (l *httpLoad) check(ctx context.Context, url string, plain bool) error {
	var body strings.Builder
	if err := l.get(ctx, url, &body); err != nil {
		return err
	}
	if cardNumber.MatchString(body.String()) != plain {
		return fmt.Errorf("%s answers %s", url, body.String())
	}
	return nil
}

// run sends n requests from clients at once, for one customer after the other.
func (l *httpLoad) run(ctx context.Context, url string, clients, n int) error {
	var sent atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range min(clients, n) {
		group.Go(func() error {
			for {
				i := sent.Add(1)
				if i > int64(n) {
					return nil
				}
				if err := l.get(ctx, url+strconv.FormatInt(1+i%40, 10), io.Discard); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// pgbenchTables makes pgbench's tables straight at the database, readable for
// the role that the gateway injects.
func (s *bench) pgbenchTables(b *testing.B) {
	b.Helper()
	db := s.site.Database
	cmd := exec.CommandContext(b.Context(), filepath.Join(db.Bin, "pgbench"), "-i", "-q", "-s", "1", "-h", "127.0.0.1", "-p", strconv.Itoa(db.Port), "-U", "postgres", "orders")
	cmd.Env = append(os.Environ(), "PGPASSWORD="+db.Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	// The demo's database logs every statement, which is for its tests.
	for _, sql := range []string{"grant select (aid, bid, abalance) on pgbench_accounts to chaperone_app", "grant select on pgbench_branches to chaperone_app", "alter database orders set log_statement = 'none'"} {
		if err := db.Exec(b.Context(), "orders", sql); err != nil {
			b.Fatal(err)
		}
	}
}

// A pgRoute is a way to the database. It is without TLS on either route.
type pgRoute struct {
	port           int
	user, password string
}

var (
	processed = regexp.MustCompile(`number of transactions actually processed: (\d+)/(\d+)`)
	tps       = regexp.MustCompile(`tps = ([0-9.]+) \(without initial connection time\)`)
)

// run has each of clients run each transactions, and returns how long they took
// without connecting, and how many they were.
func (r pgRoute) run(ctx context.Context, pgbench string, clients, each int) (time.Duration, int, error) {
	cmd := exec.CommandContext(ctx, pgbench, "-S", "-M", "prepared", "-n", "-c", strconv.Itoa(clients), "-j", "2", "-t", strconv.Itoa(each),
		"-h", "127.0.0.1", "-p", strconv.Itoa(r.port), "-U", r.user, "orders")
	cmd.Env = append(os.Environ(), "PGPASSWORD="+r.password, "PGSSLMODE=disable")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	done, rate := processed.FindSubmatch(out), tps.FindSubmatch(out)
	if done == nil || rate == nil || string(done[1]) != string(done[2]) {
		return 0, 0, fmt.Errorf("pgbench did not run to its end:\n%s", out)
	}
	n, err := strconv.Atoi(string(done[1]))
	perSecond, err2 := strconv.ParseFloat(string(rate[1]), 64)
	if err := errors.Join(err, err2); err != nil || perSecond <= 0 {
		return 0, 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	return time.Duration(float64(n) / perSecond * float64(time.Second)), n, nil
}
