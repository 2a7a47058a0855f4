package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/console"
)

// TestSSHCommands: the stock client, straight to sshd and through the gateway,
// with the same outcome.
func TestSSHCommands(t *testing.T) {
	t.Parallel()
	s := site(t)
	through, control := hosts(t, s, demo.Omar), toHost(t, s)
	binary := strings.Repeat("\x00\xff\xfe binary \r\n", 100_000)
	for name, c := range map[string]struct {
		stdin string
		args  []string
	}{
		"status":   {"", []string{"web", ": free; exit 3"}},
		"signal":   {"", []string{"web", ": free; kill -TERM $$"}},
		"streams":  {"", []string{"web", ": free; echo out; echo err >&2; exit 1"}},
		"stdin":    {binary, []string{"web", ": free; cat"}},
		"no stdin": {"", []string{"-n", "web", ": free; cat"}},
		"large":    {"", []string{"web", ": free; head -c 5000000 /dev/zero"}},
		"variable": {"", []string{"-o", "SendEnv=LC_ALL", "web", ": free; echo $LC_ALL"}},
		"terminal": {"", []string{"-tt", "web", ": free; tty >/dev/null && echo terminal $TERM; exit 2"}},
		"early":    {binary, []string{"web", ": free; head -c 5; exec cat >/dev/null"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, errs, status := through.run(t, c.stdin, "ssh", c.args...)
			wantOut, wantErrs, wantStatus := control.run(t, c.stdin, "ssh", c.args...)
			if out != wantOut || status != wantStatus || plainErrors(errs) != plainErrors(wantErrs) {
				t.Errorf("through: %d, %d bytes %.100q, %q\nstraight: %d, %d bytes %.100q, %q", status, len(out), out, errs, wantStatus, len(wantOut), wantOut, wantErrs)
			}
		})
	}
}

// plainErrors leaves out the name by which the host was called.
func plainErrors(text string) string {
	return strings.NewReplacer("127.0.0.1", "HOST", "localhost", "HOST").Replace(text)
}

// TestSSHPolicy: what no rule allows never reaches the host, and says so.
func TestSSHPolicy(t *testing.T) {
	t.Parallel()
	s := site(t)
	c := hosts(t, s, demo.Omar)
	home := filepath.Join(s.Host.Dir, "home")
	if out, errs, status := c.ssh(t, "web", "cat "+home+"/app.log"); status != 0 || !strings.Contains(out, "09:30 started\n09:31 card ***1111 refused\n") || errs != "" {
		t.Errorf("what is allowed: %d %q %q", status, out, errs)
	}
	for name, command := range map[string]string{
		"another program":    "dd of=" + home + "/evil",
		"a second command":   "cat " + home + "/app.log; touch " + home + "/evil",
		"a substitution":     "cat $(touch " + home + "/evil)",
		"another shell":      "sh -c 'touch " + home + "/evil'",
		"a write by a shell": "cat " + home + "/app.log > " + home + "/evil",
		"a new line":         "true\ntouch " + home + "/evil",
		"a removal":          "rm -f " + home + "/app.log",
	} {
		out, errs, status := c.ssh(t, "web", command)
		if status != 77 || out != "" || !strings.Contains(errs, "chaperone: denied: ") || !strings.Contains(errs, "request req_") {
			t.Errorf("%s: %d %q %q", name, status, out, errs)
		}
	}
	if _, err := os.Stat(home + "/evil"); err == nil {
		t.Error("a refused command ran")
	}
	if out, _, status := toHost(t, s).ssh(t, "web", "touch "+home+"/evil && rm "+home+"/evil && cat "+home+"/app.log"); status != 0 || !strings.Contains(out, "4111 1111 1111 1111") {
		t.Errorf("control: %d %q", status, out)
	}
}

// TestSSHTransfers: scp by its own protocol, rsync and git, with the same bytes
// either way.
func TestSSHTransfers(t *testing.T) {
	t.Parallel()
	s := site(t)
	for name, c := range map[string]*hostClient{"through": hosts(t, s, demo.Omar), "straight": toHost(t, s)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := free(t, s)
			sum := func(path string) string {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				return fmt.Sprintf("%x", sha256.Sum256(b))
			}
			must := func(name string, args ...string) {
				t.Helper()
				if out, errs, status := c.run(t, "", name, args...); status != 0 {
					t.Fatalf("%s %v: %d %s %s", name, args, status, out, errs)
				}
			}
			up := filepath.Join(c.dir, "up")
			if err := os.WriteFile(up, []byte(strings.Repeat("\x00\x01 a file of any kind\n", 50_000)), 0o640); err != nil {
				t.Fatal(err)
			}
			must("scp", "-q", "-O", "-p", up, "web:"+dir+"/one")
			must("scp", "-q", "-O", "web:"+dir+"/one", filepath.Join(c.dir, "down"))
			must("rsync", "-a", up, "web:"+dir+"/two")
			must("rsync", "-a", "web:"+dir+"/two", filepath.Join(c.dir, "down2"))
			for _, path := range []string{dir + "/one", filepath.Join(c.dir, "down"), dir + "/two", filepath.Join(c.dir, "down2")} {
				if sum(path) != sum(up) {
					t.Errorf("%s differs", path)
				}
			}
			must("git", "init", "-q", "--bare", dir+"/repo.git")
			must("git", "clone", "-q", "web:"+dir+"/repo.git", "clone")
			must("git", "-C", "clone", "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "--allow-empty", "-m", "one")
			must("git", "-C", "clone", "push", "-q", "origin", "HEAD")
			must("git", "clone", "-q", "web:"+dir+"/repo.git", "again")
			must("git", "-C", "again", "log", "--oneline")
		})
	}
}

// TestSFTP: sftp and scp as they are now, with the same bytes either way, each
// operation judged.
func TestSFTP(t *testing.T) {
	t.Parallel()
	s := site(t)
	through := hosts(t, s, demo.Omar)
	content := strings.Repeat("\x00\x01 a file of any kind\n", 50_000)
	for name, c := range map[string]*hostClient{"through": through, "straight": toHost(t, s)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := free(t, s)
			if err := os.WriteFile(filepath.Join(c.dir, "up"), []byte(content), 0o640); err != nil {
				t.Fatal(err)
			}
			batch := strings.Join([]string{"cd " + dir, "put up one", "mkdir d", "rename one d/two", "ls -l d", "get d/two down", "chmod 600 d/two"}, "\n") + "\n"
			if out, errs, status := c.run(t, batch, "sftp", "-q", "-b", "-", "web"); status != 0 {
				t.Fatalf("sftp: %d %s %s", status, out, errs)
			}
			for _, args := range [][]string{{"-q", "-p", "up", "web:" + dir + "/three"}, {"-q", "web:" + dir + "/three", "down3"}, {"-q", "-r", "web:" + dir + "/d", "down4"}} {
				if out, errs, status := c.run(t, "", "scp", args...); status != 0 {
					t.Fatalf("scp %v: %d %s %s", args, status, out, errs)
				}
			}
			for _, path := range []string{filepath.Join(c.dir, "down"), filepath.Join(c.dir, "down3"), filepath.Join(c.dir, "down4", "two"), dir + "/three"} {
				if b, err := os.ReadFile(path); err != nil || string(b) != content {
					t.Errorf("%s: %d bytes %v", path, len(b), err)
				}
			}
		})
	}
	home := filepath.Dir(filepath.Dir(free(t, s)))
	for name, batch := range map[string]string{"a file elsewhere": "get " + home + "/app.log x", "a way out": "get " + home + "/free/../app.log x", "a removal": "rm " + home + "/app.log"} {
		if out, errs, status := through.run(t, batch+"\n", "sftp", "-q", "-b", "-", "web"); status == 0 || !strings.Contains(errs, "chaperone: denied: ") {
			t.Errorf("%s: %d %s %s", name, status, out, errs)
		}
	}
	if out, errs, status := toHost(t, s).run(t, "get "+home+"/free/../app.log x\n", "sftp", "-q", "-b", "-", "web"); status != 0 {
		t.Errorf("control: %d %s %s", status, out, errs)
	}
}

// TestSSHOneConnection: many commands over one connection, judged one by one;
// and a jump through the gateway.
func TestSSHOneConnection(t *testing.T) {
	t.Parallel()
	s := site(t)
	c := hosts(t, s, demo.Omar)
	control := filepath.Join(c.dir, "c")
	shared := func(args ...string) []string {
		return append([]string{"-o", "ControlMaster=auto", "-o", "ControlPath=" + control, "-o", "ControlPersist=30s"}, args...)
	}
	for _, step := range []struct {
		command string
		status  int
	}{{"true", 0}, {"touch /tmp/evil-by-mux", 77}, {": free; exit 9", 9}, {"true", 0}} {
		if out, errs, status := c.ssh(t, shared("web", step.command)...); status != step.status {
			t.Errorf("%s: %d %s %s", step.command, status, out, errs)
		}
	}
	if out, errs, status := c.ssh(t, "-O", "exit", "-o", "ControlPath="+control, "web"); status != 0 {
		t.Errorf("%s %s", out, errs)
	}
	jump := []string{"-o", "ProxyCommand=ssh -F " + c.config + " -W 127.0.0.1:" + fmt.Sprint(s.Host.Port) + " web", "-i", filepath.Join(s.Host.Dir, "operator"),
		"-o", "UserKnownHostsFile=" + filepath.Join(s.Host.Dir, "known_hosts"), "-p", fmt.Sprint(s.Host.Port), s.Host.Account + "@127.0.0.1", "echo there"}
	if out, errs, status := c.ssh(t, jump...); status != 0 || out != "there\n" {
		t.Errorf("a jump: %d %q %s", status, out, errs)
	}
	elsewhere := strings.ReplaceAll(jump[1], "-W 127.0.0.1:", "-W localhost:")
	if out, errs, status := c.ssh(t, append([]string{"-o", elsewhere}, jump[2:]...)...); status == 0 || strings.Contains(out, "there") {
		t.Errorf("a jump where no rule leads: %d %q %s", status, out, errs)
	}
}

// TestSSHCertificate: minutes, for one resource, kept while it is fresh, and
// gone with its token.
func TestSSHCertificate(t *testing.T) {
	t.Parallel()
	s := site(t)
	dir := t.TempDir()
	tok := exchanged(t, s, token(t, s, demo.Omar), "", "audience", "web") // like no other
	mine := []string{"CHAPERONE_TOKEN=" + tok}
	keys := filepath.Join(dir, "keys")
	cert := func(args ...string) (string, error) {
		_, err := client(t, s, dir, mine, append([]string{"ssh-cert", "web", "--dir", keys}, args...)...)
		b, readErr := os.ReadFile(filepath.Join(keys, "web-cert.pub"))
		if err == nil {
			err = readErr
		}
		return string(b), err
	}
	first, err := cert()
	if err != nil {
		t.Fatal(err)
	}
	second, err := cert()
	if err != nil || second != first {
		t.Errorf("a fresh certificate is not kept: %v", err)
	}
	if third, err := cert("--refresh"); err != nil || third == first {
		t.Errorf("a new one is not made: %v", err)
	}
	for _, name := range []string{"web", "web-cert.pub", "known_hosts"} {
		if info, err := os.Stat(filepath.Join(keys, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	base := []string{"-F", "/dev/null", "-i", filepath.Join(keys, "web"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=" + filepath.Join(keys, "known_hosts"),
		"-o", "StrictHostKeyChecking=yes", "-p", fmt.Sprint(s.SSHPort)}
	c := &hostClient{dir: dir, config: "/dev/null", env: os.Environ()}
	ssh := func(who string) (string, string, int) {
		return c.run(t, "", "ssh", append(base, who+"@localhost", "true")...)
	}
	if out, errs, status := ssh(s.Host.Account + "@web"); status != 0 {
		t.Errorf("by the name of user, resource and gateway: %d %s %s", status, out, errs)
	}
	if out, errs, status := ssh(s.Host.Account + "@orders"); status != 255 || !strings.Contains(errs, "denied: the certificate is not for orders") {
		t.Errorf("another resource: %d %s %s", status, out, errs)
	}
	// The host itself takes no such certificate.
	straight := []string{"-F", "/dev/null", "-i", filepath.Join(keys, "web"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=" + filepath.Join(s.Host.Dir, "known_hosts"),
		"-p", fmt.Sprint(s.Host.Port), s.Host.Account + "@127.0.0.1", "true"}
	if out, errs, status := c.run(t, "", "ssh", straight...); status != 255 || !strings.Contains(errs, "Permission denied") {
		t.Errorf("straight to the host: %d %s %s", status, out, errs)
	}
	if _, err := client(t, s, dir, mine, "ssh-cert", "orders", "--dir", keys); err == nil || !strings.Contains(err.Error(), "it reaches: web") {
		t.Errorf("a resource out of reach: %v", err)
	}
	if _, err := client(t, s, dir, mine, "ssh-cert", "../web", "--dir", keys); err == nil {
		t.Error("a path for a name is taken")
	}
	if res := request(t, s, "POST", "/oauth/revoke", "", "token="+tok, "Content-Type", "application/x-www-form-urlencoded"); res.StatusCode != 200 {
		t.Fatalf("revoke: %s", res.Status)
	}
	eventually(t, func() error {
		if out, errs, status := ssh(s.Host.Account + "@web"); status != 255 || !strings.Contains(errs, "denied: the certificate is not valid here") {
			return fmt.Errorf("a revoked token: %d %s %s", status, out, errs)
		}
		return nil
	})
}

// TestSSHHeld: the client waits, hears what for, and goes on once it is granted.
func TestSSHHeld(t *testing.T) {
	t.Parallel()
	s := site(t)
	c := hosts(t, s, demo.Omar)
	grace := person(t, s, demo.Grace)
	file := filepath.Join(free(t, s), "release")
	cmd, _, _ := c.command(t.Context(), "ssh", "web", "touch "+file)
	told := &lockedBuffer{}
	cmd.Stderr = told
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var id string
	eventually(t, func() error {
		_, rest, ok := strings.Cut(told.String(), "chaperone approvals approve ")
		if !ok {
			return fmt.Errorf("the client says %q", told)
		}
		id = strings.Fields(rest)[0]
		return nil
	})
	if _, err := os.Stat(file); err == nil {
		t.Error("it ran before it was granted")
	}
	if out, err := cli(t, s, grace, "approvals", "approve", id); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v %s", err, told)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("it did not run")
	}
	if out, errs, status := c.ssh(t, "web", "touch "+filepath.Join(filepath.Dir(file), "brief")); status != 77 || !strings.Contains(errs, "nobody answered req_") {
		t.Errorf("not answered: %d %s %s", status, out, errs)
	}
}

// TestSSHKilled: an operator's word ends a command that runs.
func TestSSHKilled(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := exchanged(t, s, token(t, s, demo.Omar), "", "audience", "web") // like no other
	c := hostsWith(t, s, tok)
	cmd, _, _ := c.command(t.Context(), "ssh", "web", ": free; echo started; sleep 60")
	out, errs := &lockedBuffer{}, &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if out.String() == "" {
			return fmt.Errorf("it has not started: %s", errs)
		}
		return nil
	})
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--token", tokenID(tok), "--cause", "enough"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.ExitCode(); status != 77 || !strings.Contains(errs.String(), "an operator ended this session: enough") {
		t.Errorf("%d %s", status, errs)
	}
}

// TestSSHReplay: what a terminal showed is played back inert, and exported as it
// was, with its size and how it ended.
func TestSSHReplay(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := exchanged(t, s, token(t, s, demo.Omar), "", "audience", "web") // like no other
	c := hostsWith(t, s, tok)
	// The command itself, which is recorded as it was sent, has the number once.
	const shown = `\033]0;replayed\007\033[31mred\033[0m card 4111\033[1m 1111 1111 1111\033[0m end\n`
	if out, errs, status := c.run(t, "", "ssh", "-tt", "web", ": free; printf '"+shown+"'; exit 4"); status != 4 || !strings.Contains(out, "\x1b[31mred") {
		t.Fatalf("%d %q %q", status, out, errs)
	}
	sofia := person(t, s, demo.Sofia)
	session := ended(t, s, sofia, tok)
	replayed, err := cli(t, s, sofia, "sessions", "replay", session, "--speed", "0")
	if err != nil || !strings.Contains(replayed, "red card *** end") || strings.ContainsAny(replayed, "\x1b\x07") || strings.Count(replayed, "1111 1111 1111") != 1 || !strings.Contains(replayed, "exit 4") {
		t.Errorf("replayed (%v):\n%q", err, replayed)
	}
	cast, err := cli(t, s, sofia, "sessions", "export", session)
	if err != nil || !strings.HasPrefix(cast, `{"version":3,"term":{"cols":80,"rows":24`) || !strings.Contains(cast, `\u001b]0;replayed\u0007\u001b[31mred`) ||
		!strings.HasSuffix(cast, `,"x","4"]`+"\n") || strings.Count(cast, "1111 1111 1111") != 1 {
		t.Errorf("exported (%v):\n%s", err, cast)
	}
	if out, err := cli(t, s, sofia, "sessions", "export", session, "--format", "asciicast-v2"); err != nil || !strings.HasPrefix(out, `{"version":2,"width":`) {
		t.Errorf("exported (%v):\n%s", err, out)
	}
	if out, err := cli(t, s, sofia, "sessions", "export", session, "--format", "gif"); err == nil {
		t.Errorf("a format that is not there: %s", out)
	}
}

// ended waits for the end of the session that was opened with a token, and
// returns its id.
func ended(t *testing.T, s *demo.Site, auditor, tok string) (session string) {
	t.Helper()
	eventually(t, func() error {
		out, err := cli(t, s, auditor, "sessions", "list", "-o", "json")
		if err != nil {
			return err
		}
		var list []console.SessionSummary
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		for _, one := range list {
			if one.Principal.Token.ID == tokenID(tok) && !one.Live {
				session = one.ID
				return nil
			}
		}
		return fmt.Errorf("it is not among %d sessions", len(list))
	})
	return session
}
