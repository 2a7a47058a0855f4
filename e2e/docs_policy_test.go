package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// TestDocsPolicyTools runs every command of the page on trying policies, in a
// folder with the packs, a proposed change and a recording of real traffic. None
// may fail but those that are gates, and of these only for what they found.
func TestDocsPolicyTools(t *testing.T) {
	t.Parallel()
	s := site(t)
	ada, dir := token(t, s, demo.Ada), t.TempDir()
	res := request(t, s, "GET", "/http/billing/customers/1", ada, "")
	res.Body.Close()
	id := decidedID(t, filepath.Join(s.Dir, "data", "recordings"))
	for to, from := range map[string]string{"policies": "../policies", "proposed": filepath.Join(s.Dir, "policies")} {
		if err := os.CopyFS(filepath.Join(dir, to), os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.WriteFile(filepath.Join(dir, "token"), []byte(ada), 0o600), os.Symlink(filepath.Join(s.Dir, "data"), filepath.Join(dir, "data")))
	if err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("req_…", id, "https://chaperone.internal", s.URL(), "--config chaperone.yaml", "--config "+filepath.Join(s.Dir, "chaperone.yaml"))
	sofia := person(t, s, demo.Sofia)
	ran := map[string]int{}
	for _, shownAs := range shown(t, "../docs/policy-tools.md") {
		if !strings.HasPrefix(shownAs, "chaperone policy ") {
			continue
		}
		verb := strings.Fields(shownAs)[2]
		ran[verb]++
		cmd := exec.CommandContext(t.Context(), "sh", "-c", `"$PROGRAM" `+strings.TrimPrefix(here.Replace(shownAs), "chaperone "))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PROGRAM="+program, "CHAPERONE_TOKEN="+sofia, "CHAPERONE_CA="+filepath.Join(s.Dir, "ca.crt"))
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		var exit *exec.ExitError
		gate := (verb == "replay" || verb == "lint") && errors.As(err, &exit) && exit.ExitCode() == 1
		if err != nil && !gate || strings.Contains(errs.String(), "chaperone:") || len(out) == 0 {
			t.Errorf("%s: %v\n%s%s", shownAs, err, out, errs.String())
		}
	}
	for _, verb := range []string{"test", "export", "lint", "explain", "replay"} {
		if ran[verb] < 2 {
			t.Errorf("%d commands of %s were run", ran[verb], verb)
		}
	}
}

// decidedID is the id of a request whose decision is on record.
func decidedID(t *testing.T, recordings string) (id string) {
	t.Helper()
	eventually(t, func() error {
		segments, err := filepath.Glob(filepath.Join(recordings, "segment-*.ndjson"))
		if err != nil {
			return err
		}
		for _, segment := range segments {
			b, err := os.ReadFile(segment)
			if err != nil {
				return err
			}
			if m := regexp.MustCompile(`"decided":\{"request":\{"id":"(req_[a-z0-9]+)"`).FindSubmatch(b); m != nil {
				id = string(m[1])
				return nil
			}
		}
		return errors.New("no decision is recorded")
	})
	return id
}
