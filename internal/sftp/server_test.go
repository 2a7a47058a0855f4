package sftp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// In these tests the stock sftp client runs this test's binary in place of a
// server, and that puts a Filter before the stock server.

const betweenEnv = "CHAPERONE_TEST_SFTP_LOG"

func TestMain(m *testing.M) {
	if log := os.Getenv(betweenEnv); log != "" {
		if err := between(log); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// between is the process between client and server. It writes what was asked and
// how it ended to the file.
func between(log string) error {
	path, err := serverPath()
	if err != nil {
		return err
	}
	server := exec.Command(path)
	server.Stderr = os.Stderr
	in, err := server.StdinPipe()
	if err != nil {
		return err
	}
	out, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	c := &clerk{refuse: []string{"secret"}}
	f := New(c, os.Stdout, in)
	var wait sync.WaitGroup
	var fromClient, fromServer error
	wait.Go(func() { fromClient = f.FromClient(context.Background(), os.Stdin); in.Close() })
	wait.Go(func() { fromServer = f.FromServer(out) })
	wait.Wait()
	f.Close()
	for _, err := range []error{fromClient, fromServer, server.Wait()} {
		if err != nil {
			return err
		}
	}
	text, err := json.Marshal(noted{c.asked, c.results})
	if err != nil {
		return err
	}
	return os.WriteFile(log, text, 0o600)
}

type noted struct {
	Asked   []access.SSHCall
	Results map[string]Result
}

// serverPath finds OpenSSH's server, which is on no PATH.
func serverPath() (string, error) {
	for _, path := range []string{"/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("OpenSSH's sftp-server is not installed: run tools/install openssh")
}

// batch has the stock client do the commands in dir.
func batch(t *testing.T, dir string, commands ...string) (output string, n noted, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.CommandContext(t.Context(), "sftp", "-b", "-", "-D", self)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), betweenEnv+"="+log)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	text, readErr := os.ReadFile(log)
	if readErr != nil || json.Unmarshal(text, &n) != nil {
		t.Fatalf("%v: %s", readErr, out)
	}
	return string(out), n, err
}

func TestStockClient(t *testing.T) {
	t.Parallel()
	if _, err := serverPath(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	content := make([]byte, 3<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(content)
	if err := os.WriteFile(filepath.Join(dir, "up"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	output, n, err := batch(t, dir, "put up there", "get there back", "ls -l", "mkdir d", "rename there d/there", "ln -s "+dir+"/up l", "ln up hard", "chmod 600 d/there", "df", "rm d/there", "rmdir d", "-get missing", "cd "+dir, "pwd")
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if back, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || !bytes.Equal(back, content) {
		t.Errorf("what comes back differs (%v)", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "d")); err == nil {
		t.Error("the folder is still there")
	}
	sum := sha256.Sum256(content)
	want := Content{Bytes: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	var read, written bool
	for text, r := range n.Results {
		read = read || strings.HasPrefix(text, "read ") && r.Read == want
		written = written || strings.HasPrefix(text, "write ") && r.Written == want
		if r.Cut {
			t.Errorf("%s was cut", text)
		}
	}
	if !read || !written {
		t.Errorf("read %v, written %v: %+v", read, written, n.Results)
	}
	var operations []string
	for _, call := range n.Asked {
		operations = append(operations, call.Operation)
		if len(call.UnknownPaths) > 0 {
			t.Errorf("%s: %q", call.Command, call.UnknownPaths)
		}
	}
	for _, operation := range []string{"read", "write", opList, opStat, opMkdir, opRename, opSymlink, extHardlink, opSetstat, opRemove, opRmdir, opRealpath} {
		if !slices.Contains(operations, operation) {
			t.Errorf("nobody asked for %s: %q", operation, operations)
		}
	}
}

// The refused is not done, and what is near it is.
func TestStockClientRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"secret", "plain"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	output, n, err := batch(t, dir, "-get secret s", "-rm secret", "-put plain secret2", "-rename plain secret3", "get plain p", "rm plain")
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range left {
		names = append(names, entry.Name())
	}
	if got := strings.Join(names, " "); got != "p secret" || !strings.Contains(output, "ermission denied") || len(n.Asked) < 6 {
		t.Errorf("left are %s; the client says %s", got, output)
	}
}
