package e2e

import (
	"bufio"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// TestLogin: a person logs in at a real Dex, with us as the browser, and is who
// they are at the gateway.
func TestLogin(t *testing.T) {
	t.Parallel()
	s := site(t)
	env := append(os.Environ(), "XDG_CACHE_HOME="+t.TempDir(), "CHAPERONE_GATEWAY="+s.URL(), "CHAPERONE_CA="+filepath.Join(s.Dir, "ca.crt"), "CHAPERONE_TOKEN=")
	cmd := exec.CommandContext(t.Context(), program, "login", "--no-browser", "--issuer", s.Dex.Issuer, "--client", "cli",
		"--scope", "openid email profile groups audience:server:client_id:chaperone")
	cmd.Env = env
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var address string
	lines := bufio.NewScanner(said)
	for address == "" && lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); strings.HasPrefix(line, "http") {
			address = line
		}
	}
	to, err := url.Parse(address)
	if err != nil || to.Query().Get("code_challenge_method") != "S256" {
		t.Fatalf("%q %v", address, err)
	}
	// Somebody else's answer to the open port is not taken.
	forged := to.Query().Get("redirect_uri") + "?code=stolen&state=guessed"
	if status, _ := ask(t, certified(t, s), "GET", forged, "", ""); status != 400 {
		t.Errorf("a forged answer: %d", status)
	}
	page, err := localserver.LogIn(t.Context(), address, url.Values{"login": {demo.Alan}, "password": {localserver.DexPassword}}, nil)
	if err != nil || !strings.Contains(page, "close this window") {
		t.Fatalf("%v %s", err, page)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	live := exec.CommandContext(t.Context(), program, "check", "--live")
	live.Env = env
	if out, err := live.CombinedOutput(); err != nil || !strings.Contains(string(out), "rev") {
		t.Errorf("as the operator: %v %s", err, out)
	}
	if out, err := cli(t, s, "", "sessions", "list"); err == nil {
		t.Errorf("somebody else is logged in, too: %s", out)
	}
}
