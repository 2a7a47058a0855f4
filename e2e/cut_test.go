package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// A longClient is an ordinary client in the middle of something long.
type longClient struct {
	who, resource string
	start         func(t *testing.T, tok string) *exec.Cmd // not started; the first thing it prints says that it works
	stdin         string
	late          bool // starts fast enough to be opened in the last second of a token
}

func longClients(t *testing.T, s *demo.Site, namespace string) map[string]longClient {
	t.Helper()
	_, direct, _ := kubernetes(t)
	runningPod(t, direct, namespace)
	ca := filepath.Join(s.Dir, "ca.crt")
	ssh := func(args ...string) func(*testing.T, string) *exec.Cmd {
		return func(t *testing.T, tok string) *exec.Cmd {
			cmd, _, _ := connecting(t, s, tok).command(t.Context(), "ssh", args...)
			cmd.Stdout, cmd.Stderr = nil, nil
			return cmd
		}
	}
	kubectl := func(args ...string) func(*testing.T, string) *exec.Cmd {
		return func(t *testing.T, tok string) *exec.Cmd {
			tool, err := localserver.Tool("kubectl")
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			cmd := exec.CommandContext(t.Context(), tool, append([]string{"--kubeconfig", "/dev/null", "--cache-dir", dir, "--server", s.URL() + "/k8s/cluster",
				"--certificate-authority", ca, "--token", tok, "-n", namespace}, args...)...)
			cmd.Env = []string{"HOME=" + dir}
			return cmd
		}
	}
	return map[string]longClient{
		"psql": {who: demo.Ada, resource: "orders", late: true, start: func(t *testing.T, tok string) *exec.Cmd {
			// The psql in use may have been built without TLS, and is on loopback.
			cmd := exec.CommandContext(t.Context(), filepath.Join(s.Database.Bin, "psql"), "-X", fmt.Sprintf("host=localhost port=%d user=agent dbname=orders sslmode=disable", s.PGPort),
				"-Atc", "select 1", "-c", "select pg_sleep(60)")
			cmd.Env = append(os.Environ(), "PGPASSWORD="+tok)
			return cmd
		}},
		"curl": {who: demo.Ada, resource: "billing", late: true, start: func(t *testing.T, tok string) *exec.Cmd {
			return exec.CommandContext(t.Context(), "curl", "-sSN", "--cacert", ca, "-H", "Authorization: Bearer "+tok, s.URL()+"/http/billing/events")
		}},
		"ssh":            {who: demo.Omar, resource: "web", start: ssh("web", ": free; echo started; sleep 60")},
		"ssh, terminal":  {who: demo.Omar, resource: "web", start: ssh("-tt", "web"), stdin: "echo started\n"},
		"kubectl exec":   {who: demo.Alan, resource: "cluster", start: kubectl("exec", "web", "--", "sh", "-c", "echo started; sleep 60")},
		"kubectl watch":  {who: demo.Alan, resource: "cluster", start: kubectl("get", "pods", "--watch", "-o", "name")},
		"kubectl follow": {who: demo.Alan, resource: "cluster", start: kubectl("exec", "-i", "web", "--", "cat"), stdin: "started\n"},
	}
}

// running starts the client and waits until it works. The channel gets the
// moment of its end.
func (c longClient) running(t *testing.T, tok string) <-chan time.Time {
	t.Helper()
	cmd := c.start(t, tok)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs := &lockedBuffer{}
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, c.stdin); err != nil {
		t.Fatal(err)
	}
	if n, err := stdout.Read(make([]byte, 1024)); n == 0 {
		t.Fatalf("it does not work: %v %s", err, errs)
	}
	ended := make(chan time.Time, 1)
	go func() {
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
		ended <- time.Now()
		stdin.Close()
	}()
	return ended
}

// TestKillCutsClients: whatever a client is in the middle of, a kill ends it.
// The figures are in the log of the test; its bound leaves room for a busy
// machine.
func TestKillCutsClients(t *testing.T) {
	t.Parallel()
	s := site(t)
	alan := person(t, s, demo.Alan)
	for name, c := range longClients(t, s, "cut") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			subject := token(t, s, c.who)
			tok := exchanged(t, s, subject, "", "audience", c.resource) // like no other
			ended, bystander := c.running(t, tok), c.running(t, exchanged(t, s, subject, "", "audience", c.resource))
			began := time.Now()
			if res := request(t, s, "POST", "/api/v1/kill", alan, `{"token": "`+tokenID(tok)+`"}`); res.StatusCode != http.StatusOK {
				t.Fatalf("kill: %s", res.Status)
			}
			took := (<-ended).Sub(began)
			t.Logf("cut after %s", took)
			if took > 3*time.Second {
				t.Errorf("it was cut after %s", took)
			}
			select {
			case <-bystander:
				t.Error("another's has ended, too")
			default:
			}
		})
	}
}

// TestExpiryCutsClients: a session ends when its token does, whatever it is in
// the middle of, and however late it was opened.
func TestExpiryCutsClients(t *testing.T) {
	t.Parallel()
	s := site(t)
	for name, c := range longClients(t, s, "expiry") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tok := exchanged(t, s, token(t, s, c.who), "", "audience", c.resource, "authorization_details", `[{"type":"chaperone","expires_in":10}]`)
			expires := expiry(t, tok)
			if c.late {
				eventually(t, func() error {
					if left := time.Until(expires); left > time.Second {
						return fmt.Errorf("%s are left", left)
					}
					return nil
				})
			}
			after := (<-c.running(t, tok)).Sub(expires)
			t.Logf("cut %s after its token", after)
			if after < 0 || after > 3*time.Second {
				t.Errorf("it was cut %s after its token", after)
			}
		})
	}
}
