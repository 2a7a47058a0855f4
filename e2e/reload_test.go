package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

const serves = "revision serves"

// live is what check --live says, as JSON.
type live struct {
	Revision string
	Replicas []struct{ Replica, Revision, Failed string }
}

func liveOf(t *testing.T, s *demo.Site, tok string) (l live, err error) {
	t.Helper()
	out, err := cli(t, s, tok, "check", "--live", "-o", "json")
	start := strings.Index(out, "{")
	if start < 0 || json.NewDecoder(strings.NewReader(out[start:])).Decode(&l) != nil {
		return l, fmt.Errorf("%w: %s", err, out)
	}
	return l, err
}

// TestHangup: SIGHUP, to the parent or to serve, has the files read anew and
// ends nothing.
func TestHangup(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	tok := token(t, s, demo.Ada)
	conn := connect(t, s, tok)
	before, err := s.Gateway.PID("serve")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"run", "serve"} {
		logged := strings.Count(s.Gateway.Log(), serves)
		pid, err := s.Gateway.PID(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if strings.Count(s.Gateway.Log(), serves) == logged {
				return errors.New("after SIGHUP to " + name + " the files were not read")
			}
			return nil
		})
	}
	if _, err := conn.Exec(t.Context(), "select 1"); err != nil {
		t.Errorf("the open session: %v", err)
	}
	if after, err := s.Gateway.PID("serve"); err != nil || after != before {
		t.Errorf("serve is process %d, was %d; %v", after, before, err)
	}
}

// TestConfigMapSwap: policies as Kubernetes mounts them, replaced by a swap of
// a symbolic link: whole or not at all, on sessions that are open.
func TestConfigMapSwap(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	ada, alan := token(t, s, demo.Ada), person(t, s, demo.Alan)
	folder := filepath.Join(s.Dir, "policies")
	original, err := os.ReadFile(filepath.Join(folder, "orders-agents.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	version := 0
	swap := func(edit func(string) string) {
		t.Helper()
		version++
		name := "..v" + strconv.Itoa(version)
		if err := errors.Join(
			os.Mkdir(filepath.Join(folder, name), 0o755),
			os.WriteFile(filepath.Join(folder, name, "orders-agents.yaml"), []byte(edit(string(original))), 0o644),
			os.Symlink(name, filepath.Join(folder, "..tmp")),
			os.Rename(filepath.Join(folder, "..tmp"), filepath.Join(folder, "..data")),
		); err != nil {
			t.Fatal(err)
		}
	}
	same := func(text string) string { return text }
	conn := connect(t, s, ada)
	first, err := liveOf(t, s, alan)
	if err != nil {
		t.Fatal(err)
	}
	swap(same) // without the other policies: another revision
	eventually(t, func() error {
		l, err := liveOf(t, s, alan)
		if err == nil && l.Revision == first.Revision {
			err = errors.New("the old revision serves")
		}
		return err
	})
	ask := func() error { _, err := conn.Exec(t.Context(), "select id from orders limit 1"); return err }
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	swap(func(text string) string { return strings.Replace(text, `["public.orders", `, "[", 1) })
	eventually(t, func() error {
		if err := ask(); err == nil || !strings.Contains(err.Error(), "no rule allows") {
			return fmt.Errorf("the narrower policy does not serve: %w", err)
		}
		return nil
	})
	swap(func(text string) string { return strings.Replace(text, "sql.read_only", "sql.read_olny", 1) })
	eventually(t, func() error {
		l, err := liveOf(t, s, alan)
		if err == nil || len(l.Replicas) != 1 || !strings.Contains(l.Replicas[0].Failed, filepath.Join(folder, "orders-agents.yaml")+":7:") {
			return fmt.Errorf("the broken version is not shown: %+v", l)
		}
		return nil
	})
	if err := ask(); err == nil || !strings.Contains(err.Error(), "no rule allows") {
		t.Errorf("with the broken version: %v", err)
	}
	swap(same)
	eventually(t, ask)
}

// TestReplicasAreSeen: check --live shows what every replica runs, fails while
// they differ, and forgets one that is gone.
func TestReplicasAreSeen(t *testing.T) {
	t.Parallel()
	redis, err := localserver.StartRedis(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { redis.Close() })
	url := filepath.Join(t.TempDir(), "redis-url")
	if err := os.WriteFile(url, []byte(redis.URL()), 0o600); err != nil {
		t.Fatal(err)
	}
	s := own(t, demo.Options{Config: func(text string) string {
		return strings.Replace(text, "store: {embedded: {dir: data}}", "store: {key: data/store.key, redis: {url: {file: "+url+"}}}", 1)
	}})
	alan := person(t, s, demo.Alan)
	second := replica(t, s, "second")
	eventually(t, func() error {
		l, err := liveOf(t, s, alan)
		if len(l.Replicas) != 2 || err == nil { // the second has another configuration
			return fmt.Errorf("%+v %w", l, err)
		}
		if l.Replicas[0].Revision != l.Replicas[1].Revision || l.Replicas[0].Replica == l.Replicas[1].Replica {
			t.Errorf("got %+v", l.Replicas)
		}
		return nil
	})
	if err := second.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		l, err := liveOf(t, s, alan)
		if err == nil && len(l.Replicas) != 1 {
			err = fmt.Errorf("%+v", l)
		}
		return err
	})
}
