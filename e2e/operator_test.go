package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
)

// TestCheckLive: an operator sees which revision serves and what Envoy took,
// also when a later edit was refused; nobody else does.
func TestCheckLive(t *testing.T) {
	t.Parallel()
	s := own(t, demo.Options{})
	alan := person(t, s, demo.Alan)
	eventually(t, func() error {
		out, err := cli(t, s, alan, "check", "--live")
		if err == nil && (!strings.Contains(out, "rev_") || !strings.Contains(out, "in sync") || strings.Contains(out, "NOT")) {
			err = errors.New(out)
		}
		return err
	})
	if out, err := cli(t, s, person(t, s, demo.Grace), "check", "--live"); err == nil {
		t.Errorf("a reviewer saw it: %s", out)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "policies", "broken.yaml"), []byte("policy: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		out, err := cli(t, s, alan, "check", "--live")
		if err == nil || !strings.Contains(out, "broken.yaml") {
			return errors.New("the refused edit is not shown: " + out)
		}
		return nil
	})
}

// TestRunEndsWithoutARevision: there is no last good one that could serve.
func TestRunEndsWithoutARevision(t *testing.T) {
	t.Parallel()
	s := site(t)
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "p.yaml"), []byte("policy: p\nprincipal: 'true'\nresource: 'resource.nmae == \"x\"'\nrules: [{name: r, effect: allow}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(s.Dir, "chaperone.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.Dir, "broken.yaml")
	text = regexp.MustCompile(`(?m)^policies: .*$`).ReplaceAll(text, []byte("policies: "+broken))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, "run", "--config", file).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "p.yaml:3:20") {
		t.Errorf("run: %v\n%s", err, out)
	}
}

// scrape reads the metrics.
func scrape(ctx context.Context, s *demo.Site) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(s.MetricsPort)+"/metrics", nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// TestMetrics: what operators alarm on is there, and no secret or token is.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := token(t, s, demo.Ada)
	if err := works(t.Context(), t, s, tok); err != nil {
		t.Fatal(err)
	}
	text := ""
	eventually(t, func() error { // a response is counted when it is over, which may be after the client has it
		var err error
		text, err = scrape(t.Context(), s)
		for _, name := range []string{"chaperone_xds_nacks_total", "chaperone_record_available 1", "chaperone_extauthz_checks_total", "chaperone_identity_tokens_total", "chaperone_tap_responses_total"} {
			if !strings.Contains(text, name) {
				err = errors.Join(err, errors.New("the metrics lack "+name))
			}
		}
		return err
	})
	for what, secret := range map[string]string{"the password": s.DBPassword, "the API key": s.APIKey, "a token": tok} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in the metrics", what)
		}
	}
}
