package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// works reports whether a read by both protocols is answered, masked.
func works(ctx context.Context, t *testing.T, s *demo.Site, tok string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.DSN(tok))
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	if got, err := read(ctx, conn, "select ssn from customers where id = 1"); got != "***|" {
		return fmt.Errorf("psql's protocol: %q %w", got, err)
	}
	code, body, err := get(ctx, s, tok)
	if err == nil && (code != http.StatusOK || !strings.Contains(body, `"ssn":"***"`)) {
		err = fmt.Errorf("HTTP: %d %s", code, body)
	}
	return err
}

// get asks billing for a customer.
func get(ctx context.Context, s *demo.Site, tok string) (int, string, error) {
	client, err := s.Client()
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/http/billing/customers/1", nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+tok)
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// refuses waits until new work is refused by both protocols.
func refuses(t *testing.T, s *demo.Site, tok string) {
	t.Helper()
	ssn, _ := secretsOf(t, s)
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		code, body, err := get(ctx, s, tok)
		if strings.Contains(body, ssn) {
			t.Fatal("an unmasked answer")
		}
		if err == nil && code == http.StatusOK {
			return errors.New("HTTP still answers")
		}
		conn, err := pgx.Connect(ctx, s.DSN(tok))
		if err != nil {
			return nil
		}
		defer conn.Close(context.Background())
		if got, err := read(ctx, conn, "select ssn from customers where id = 1"); err == nil {
			return errors.New("psql's protocol still answers " + got)
		}
		return nil
	})
}

// recovers waits until both protocols work again, unaided.
func recovers(t *testing.T, s *demo.Site, tok string) {
	t.Helper()
	eventually(t, func() error { return works(t.Context(), t, s, tok) })
}

// TestStoreGone: with the store away new work is refused and the open session
// ends; it comes back unaided.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	redis, err := localserver.StartRedis(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { redis.Close() })
	s := own(t, demo.Options{Config: func(text string) string {
		url := filepath.Join(t.TempDir(), "redis-url")
		if err := os.WriteFile(url, []byte(redis.URL()), 0o600); err != nil {
			t.Fatal(err)
		}
		return strings.Replace(text, "store: {embedded: {dir: data}}", "store: {redis: {url: {file: "+url+"}}}", 1)
	}})
	tok := token(t, s, demo.Ada)
	if err := works(t.Context(), t, s, tok); err != nil {
		t.Fatal(err)
	}
	open := connect(t, s, tok)
	redis.Kill()
	began := time.Now()
	eventually(t, func() error {
		if _, err := read(t.Context(), open, "select 1"); err == nil {
			return errors.New("the open session goes on")
		}
		return nil
	})
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the open session ended after %s", took)
	}
	refuses(t, s, tok)
	if err := redis.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	recovers(t, s, tok)
}

// TestDiskFull: no disk, no service.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{Wrap: []string{"unshare", "--mount", "--map-root-user", "sh", "-c",
		`mkdir -p data/recordings && mount -t tmpfs -o size=4m,mode=0700 tmpfs data/recordings && exec "$@"`, "sh"}})
	tok := token(t, s, demo.Ada)
	if err := works(t.Context(), t, s, tok); err != nil {
		t.Fatal(err)
	}
	pid, err := s.Gateway.PID("serve")
	if err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join("/proc", strconv.Itoa(pid), "root", s.Dir, "data", "recordings", "fill")
	f, err := os.Create(fill)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	f.Close()
	refuses(t, s, tok)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	recovers(t, s, tok)
}

// TestProviderGone: tokens that are known keep serving.
func TestProviderGone(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	tok, fresh := token(t, s, demo.Ada), token(t, s, demo.Rhea)
	if err := works(t.Context(), t, s, tok); err != nil {
		t.Fatal(err)
	}
	s.Dex.Kill()
	for _, known := range []string{tok, fresh} {
		if err := works(t.Context(), t, s, known); err != nil {
			t.Errorf("with the provider gone: %v", err)
		}
	}
}

// TestParserWorkerKilled: the statement of the moment may be refused, the next
// ones are judged by a spare.
func TestParserWorkerKilled(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	tok := token(t, s, demo.Ada)
	if err := works(t.Context(), t, s, tok); err != nil {
		t.Fatal(err)
	}
	pid, err := s.Gateway.PID("run")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "pgrep", "-P", strconv.Itoa(pid), "-f", "parser-worker").Output()
	workers := strings.Fields(string(out))
	if err != nil || len(workers) == 0 {
		t.Fatalf("no parser workers: %v", err)
	}
	for _, w := range workers {
		n, err := strconv.Atoi(w)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	recovers(t, s, tok)
}

// TestServeHangs: a control plane that neither answers nor closes.
func TestServeHangs(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	tok := token(t, s, demo.Ada)
	if err := works(t.Context(), t, s, tok); err != nil {
		t.Fatal(err)
	}
	pid, err := s.Gateway.PID("serve")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	refuses(t, s, tok)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	recovers(t, s, tok)
}

// TestWebhookHangs: a receiver that never answers delays no approval.
func TestWebhookHangs(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := own(t, demo.Options{Config: func(text string) string {
		at := strings.Index(text, `url: "http://127.0.0.1:`)
		end := at + strings.Index(text[at:], "/hook")
		return text[:at] + `url: "http://` + l.Addr().String() + text[end:]
	}})
	id, done, _ := hold(t, s, token(t, s, demo.Ada), "update orders set status = 'swift' where id = 5")
	if out, err := cli(t, s, person(t, s, demo.Grace), "approvals", "approve", id); err != nil {
		t.Fatalf("approve: %v\n%s", err, out)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestKillEndsWhatRuns at the target too, held or running, and only that.
func TestKillEndsWhatRuns(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	bystander := connect(t, s, token(t, s, demo.Rhea))
	victim := connect(t, s, token(t, s, demo.Ada))
	done := make(chan error, 1)
	go func() {
		_, err := victim.Exec(context.Background(), "select pg_sleep(60)")
		done <- err
	}()
	const sleeping = "select count(*)::text from pg_stat_activity where state = 'active' and query like '%pg_sleep%' and pid <> pg_backend_pid()"
	eventually(t, func() error {
		if got := value(t, s, sleeping); got != "1" {
			return fmt.Errorf("%s statements sleep", got)
		}
		return nil
	})
	heldID, held, _ := hold(t, s, token(t, s, demo.Ada), "update orders set status = 'held' where id = 6")
	if out, err := cli(t, s, person(t, s, demo.Grace), "sessions", "kill", "--user", demo.Ada); err == nil {
		t.Errorf("a reviewer killed: %s", out)
	}
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--user", demo.Ada, "--cause", "test"); err != nil {
		t.Fatalf("kill: %v\n%s", err, out)
	}
	for _, ended := range []<-chan error{done, held} {
		if err := <-ended; err == nil {
			t.Error("a killed statement ended well")
		}
	}
	eventually(t, func() error {
		if got := value(t, s, sleeping); got != "0" {
			return fmt.Errorf("%s statements still sleep at the target", got)
		}
		return nil
	})
	if out, err := cli(t, s, person(t, s, demo.Grace), "approvals", "approve", heldID); err == nil {
		t.Errorf("the killed session's request was granted: %s", out)
	}
	if got, err := read(t.Context(), bystander, "select count(*) from orders"); got != "120|" {
		t.Errorf("somebody else's session: %q %v", got, err)
	}
}
