package e2e

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestKubectlLogs: what a container prints comes at once, masked, for as long as
// it is followed.
func TestKubectlLogs(t *testing.T) {
	t.Parallel()
	_, direct, through := kubernetes(t)
	n := runningPod(t, direct, "logs")
	if got := direct.must(t, "", "-n", "logs", "logs", "web"); !strings.Contains(got, maskedCard) {
		t.Errorf("there is nothing to mask: %q", got)
	}
	if got := through.must(t, "", "-n", "logs", "logs", "web"); got != "began with card ***\n" {
		t.Errorf("the log is %q", got)
	}
	cmd, out := through.start(t, "-n", "logs", "logs", "-f", "web")
	lines := bufio.NewReader(out)
	next := func(want string) {
		t.Helper()
		if line, err := lines.ReadString('\n'); line != want || err != nil {
			t.Errorf("the log goes on with %q, %v; want %q", line, err, want)
		}
	}
	next("began with card ***\n")
	for range 3 { // each comes before the next is printed
		n.Log <- "card " + maskedCard + ".\n"
		next("card ***.\n")
	}
	close(n.Log)
	if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
		t.Errorf("and ends with %q, %v", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestKubectlOlder runs older versions of kubectl: 1.33, the oldest that may be
// used with this API server, and 1.28, which streams by SPDY alone. Their output
// through the gateway is that straight at the cluster, but for masks.
func TestKubectlOlder(t *testing.T) {
	t.Parallel()
	_, direct, through := kubernetes(t)
	for _, version := range []string{"1.33", "1.28"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			direct, through := direct, through
			direct.tool, through.tool = "kubectl-"+version, "kubectl-"+version
			namespace := "older-" + strings.ReplaceAll(version, ".", "-")
			runningPod(t, direct, namespace)
			if got := through.must(t, "", "version"); !strings.Contains(got, "v"+version+".") {
				t.Errorf("it is %q", got)
			}
			for _, c := range []struct{ stdin, command string }{
				{manifests["web.yaml"], "apply -f -"}, {manifests["web.yaml"], "apply --server-side --force-conflicts -f -"}, {manifests["secret.yaml"], "apply -f -"},
				{"", "create configmap settings --from-literal=a=1"}, {"", `patch configmap settings -p {"data":{"a":"2"}}`}, {"", "scale deployment web --replicas 2"},
			} {
				through.must(t, c.stdin, append([]string{"-n", namespace}, strings.Fields(c.command)...)...)
			}
			for _, c := range []struct{ stdin, command string }{
				{"", "get deployment web -o json"}, {"", "get pods -o wide"}, {"", "get secrets -o yaml"}, {"", "get configmaps --watch --request-timeout 1s"},
				{"", "describe configmap settings"}, {"", "api-resources"}, {"hello\n", "exec -i web -- tr a-z A-Z"}, {"", "exec web -- false"}, {"", "get nothing"},
			} {
				args := append([]string{"-n", namespace}, strings.Fields(c.command)...)
				want, wantErr := direct.run(t.Context(), c.stdin, args...)
				got, err := through.run(t.Context(), c.stdin, args...)
				want = strings.ReplaceAll(want, "aHVudGVyMg==", "Kioq")
				if ages.ReplaceAllString(got, " ") != ages.ReplaceAllString(want, " ") || fmt.Sprint(err) != fmt.Sprint(wantErr) {
					t.Errorf("%s\ndirect:  %s %v\nthrough: %s %v", c.command, want, wantErr, got, err)
				}
			}
			copies(t, through, namespace)
			forwards(t, through, namespace)
			through.must(t, "", "-n", namespace, "delete", "configmap", "settings")
		})
	}
}
