package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// TestExecIsolated: psql, curl and kubectl run unchanged in a network that has
// the gateway in it and nothing else. The control of each attack is the same
// command without --isolate.
func TestExecIsolated(t *testing.T) {
	t.Parallel()
	s, _, through := kubernetes(t)
	ada := []string{"CHAPERONE_TOKEN=" + token(t, s, demo.Ada)}
	omar := []string{"CHAPERONE_TOKEN=" + token(t, s, demo.Omar)}
	repository := filepath.Join(free(t, s), "repo.git")
	if out, err := exec.Command("sh", "-c", `git init -q --bare "$0" && cd "$0" && git -c user.name=x -c user.email=x@x commit-tree -m x $(git mktree </dev/null) | xargs git update-ref HEAD`, repository).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	run := func(env []string, args ...string) (string, error) {
		env = append(env, "HOME=/nonexistent", "HTTPS_PROXY=http://127.0.0.1:9", "NO_PROXY=localhost")
		return client(t, s, t.TempDir(), env, append([]string{"exec"}, args...)...)
	}
	isolate := []string{"--isolate"}
	if os.Getuid() == 0 {
		isolate = append(isolate, "--user", "nobody")
		if out, err := run(ada, "orders", "--isolate", "--", "echo", "ran"); err == nil || out != "" || !strings.Contains(err.Error(), "--user") {
			t.Errorf("as root: %q %v", out, err)
		}
	}
	// What root writes while the command runs is out of the command's reach.
	if out, err := run(ada, append(isolate[:len(isolate):len(isolate)], "orders", "--", "sh", "-c", `d=$(dirname "$PGPASSFILE"); mv "$d" "$d.gone" 2>/dev/null || touch "$d/mine" 2>/dev/null || echo kept`)...); os.Getuid() == 0 && (err != nil || out != "kept\n") {
		t.Errorf("the folder: %q %v", out, err)
	}
	curl := `curl -sS -H @"$CHAPERONE_HEADER_FILE" "${CHAPERONE_BILLING_URL}customers/1"`
	for name, c := range map[string]struct {
		env  []string
		args []string
		want string
	}{
		"psql":    {ada, []string{"orders", "--", "psql", "sslmode=disable", "-Atc", "select count(*) from orders"}, "120\n"},
		"curl":    {ada, []string{"billing", "--", "sh", "-c", curl}, `"ssn":"***"`},
		"ssh":     {omar, []string{"web", "--", "sh", "-c", `ssh -F "$CHAPERONE_SSH_CONFIG" web ": free; echo there"`}, "there\n"},
		"git":     {omar, []string{"web", "--", "git", "ls-remote", "web:" + repository}, "HEAD"},
		"kubectl": {through.env, []string{"cluster", "--", filepath.Join(localserver.ToolsDir(), "bin", "kubectl"), "get", "namespace", "default", "-o", "name"}, "namespace/default\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if out, err := run(c.env, append(isolate[:len(isolate):len(isolate)], c.args...)...); err != nil || !strings.Contains(out, c.want) {
				t.Errorf("%q %v", out, err)
			}
		})
	}
	_, database, _ := strings.Cut(s.Database.Addr, ":")
	for name, port := range map[string]string{"the database behind the gateway": database, "a service of this machine": strconv.Itoa(s.MetricsPort)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			attack := []string{"orders", "--", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/" + port + " && echo reached"}
			if out, err := run(ada, attack...); err != nil || out != "reached\n" {
				t.Errorf("the control: %q %v", out, err)
			}
			if out, err := run(ada, append(isolate[:len(isolate):len(isolate)], attack...)...); err == nil || out != "" || !strings.Contains(err.Error(), "refused") {
				t.Errorf("%q %v", out, err)
			}
		})
	}
}
