package shell

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// The differential test: what real shells run, in a folder where every program
// is a stub that only notes its arguments, is never more than what Judge listed,
// and they make no file that it did not list.

// stubs are the programs of the folder. The others that a text may name are the
// shells' own, or not there.
func stubs() []string {
	return []string{"a", "b", "c", "d", "ls", "cat", "rm", "grep", "make", "sudo", "python3", "xargs", "find", "tee", "x", "y"}
}

// real are programs of the host that run others.
func real() []string { return []string{"sh", "bash", "dash", "env", "nice", "nohup", "timeout"} }

const stub = "#!/bin/dash\nprintf '%s\x1f' \"$TAG\" \"${0##*/}\" \"$@\" '\x1e' >>\"$LOG\"\n"

// A sandbox runs texts in one shell.
type sandbox struct {
	dir, bin, log string
}

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	dir := t.TempDir()
	s := &sandbox{dir: dir, bin: filepath.Join(dir, "bin"), log: filepath.Join(dir, "log")}
	if err := os.Mkdir(s.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range stubs() {
		if err := os.WriteFile(filepath.Join(s.bin, name), []byte(stub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range real() {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(s.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// A seen is what one text did: the commands that stubs noted, and new files.
type seen struct {
	commands [][]string
	files    []string
}

// run gives each text to shell -c, in a home directory of its own.
func (s *sandbox) run(t *testing.T, shell string, texts []string) []seen {
	t.Helper()
	var driver strings.Builder
	home := func(i int) string { return filepath.Join(s.dir, "home", fmt.Sprint(i)) }
	for i, text := range texts {
		if err := os.MkdirAll(filepath.Join(home(i), "s"), 0o755); err != nil {
			t.Fatal(err)
		}
		// Descriptor 3 is this test's pipe: it is open as long as anything runs.
		fmt.Fprintf(&driver, "cd %s; TAG=%d HOME=%s %s -c '%s' 3>&1 >/dev/null 2>&1 </dev/null\n",
			home(i), i, home(i), shell, strings.ReplaceAll(text, "'", `'\''`))
	}
	script := filepath.Join(s.dir, "driver")
	if err := os.WriteFile(script, []byte(driver.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/dash", script)
	cmd.Env = []string{"PATH=" + s.bin, "LOG=" + s.log, "LC_ALL=C.UTF-8"}
	var output bytes.Buffer
	cmd.Stdout = &output
	_ = cmd.Run() // the status is that of the last text
	if ctx.Err() != nil {
		t.Fatal("the shell does not end")
	}
	return s.collect(t, texts, home)
}

func (s *sandbox) collect(t *testing.T, texts []string, home func(int) string) []seen {
	t.Helper()
	all := make([]seen, len(texts))
	log, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	for entry := range strings.SplitSeq(string(log), "\x1f\x1e\x1f") {
		words := strings.Split(entry, "\x1f")
		var i int
		if _, err := fmt.Sscan(words[0], &i); err != nil {
			continue // after the last
		}
		for n, w := range words {
			if w == home(i) || strings.HasPrefix(w, home(i)+"/") {
				words[n] = "~" + strings.TrimPrefix(w, home(i))
			}
		}
		all[i].commands = append(all[i].commands, words[1:])
	}
	for i := range texts {
		_ = filepath.WalkDir(home(i), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				all[i].files = append(all[i].files, "~"+strings.TrimPrefix(path, home(i)))
			}
			return nil
		})
	}
	return all
}

// more returns what was seen beyond what was judged; "" when nothing.
func more(call *access.SSHCall, s seen) string {
	for _, ran := range s.commands {
		if !slices.ContainsFunc(call.Commands, func(listed []string) bool {
			return baseName(listed[0]) == ran[0] && slices.Equal(listed[1:], ran[1:])
		}) {
			return fmt.Sprintf("it ran %q", ran)
		}
	}
	for _, name := range s.files {
		if !slices.Contains(call.Writes, name) && !(len(call.UnknownPaths) > 0) {
			return fmt.Sprintf("it made %q", name)
		}
	}
	return ""
}

// leavesFolder finds texts that could name a file outside of their folder.
var leavesFolder = regexp.MustCompile(`(^|[^a-z~.])/|\.\.|~[a-z+-]`)

// A generator makes texts that are nearly simple.
type generator struct{ *rand.Rand }

func (g generator) pick(from ...string) string { return from[g.IntN(len(from))] }

func (g generator) word() string {
	if g.IntN(4) > 0 {
		return g.pick("x", "y", "-l", "-n", "5", "'a b'", `"c d"`, `e\ f`, "~", "~/x", "s/x", `'q'\''r'`, `"\"z"`, "k=v", "a:b", "--", "-", "''", `""`, "'$x'", "'*'", "\"ö\"", "x.y", "'%n'", "PATH", "-x", "@x", "x,y", "x+", "'!'")
	}
	return g.pick("$x", `"$x"`, "${x}", "$(a)", "`b`", "*", "?", "[a]", "{c,d}", `"\$x"`, `'\'`, `"\\"`, "ö", "=", "=a", "%1", "!", "^", "#", "# c", "$", "$'a'", `\n`, `\"`, `\'`, "\\\n", "~x", "k=~/x", "'~/x'", "<(a)", "(", ")", "{", "}", "\"`b`\"", "$((1))")
}

func (g generator) redirection() string {
	if g.IntN(3) > 0 {
		return g.pick(">f", ">>f", " > 'f g'", "2>f", "2>&1", ">&2", "</dev/null", ">~/f", "2>/dev/null", "<f")
	}
	return g.pick("&>f", ">|f", "<>f", ">&f", "<<E\nx\nE\n", "<<<x", "{v}>f", "12>f", ">$x", ">f>g", "3>&-", "<&0")
}

func (g generator) command(depth int) string {
	var b strings.Builder
	if g.IntN(8) == 0 {
		b.WriteString(g.pick("LANG=C ", "LC_ALL=C ", "X=1 ", "PATH=s ", "! ", "time ", "LANG=$x ", "X+=1 "))
	}
	if g.IntN(4) == 0 {
		b.WriteString(g.pick("env ", "nice ", "nice -n 5 ", "timeout 9 ", "command ", "exec ", "sudo -n ", "nohup ", "env LANG=C ", "env X=1 ", "builtin ", "command -v "))
	}
	if depth > 0 && g.IntN(6) == 0 {
		quote := g.pick("'", `"`)
		b.WriteString(g.pick("sh", "bash", "dash") + " -c " + quote + strings.ReplaceAll(g.list(depth-1), quote, "") + quote)
		return b.String()
	}
	b.WriteString(g.pick("a", "b", "c", "ls", "cat", "rm", "grep", "make", "'a'", `"b"`, `\c`, "x", "y", "echo", "printf", "test", "cd s;a", "tee", "find", "true", "./a", "jobs -x", "printf -v", "printf", "python3", "sh", "eval", ".", "[", "if", "d"))
	for range g.IntN(4) {
		b.WriteString(" " + g.word())
	}
	if g.IntN(5) == 0 {
		b.WriteString(" " + g.redirection())
	}
	return b.String()
}

func (g generator) list(depth int) string {
	text := g.command(depth)
	for range g.IntN(3) {
		operator := g.pick("; ", ";", " & ", " && ", " || ", " | ", "\n", "|", "&&")
		if g.IntN(10) == 0 {
			operator = g.pick(" |& ", ";;", " &! ", "&|", "(", ")", " { ", " }", ";&")
		}
		text += operator + g.command(depth)
	}
	return text
}

// mutate changes a few bytes.
func (g generator) mutate(text string) string {
	for range 1 + g.IntN(3) {
		at := g.IntN(len(text) + 1)
		switch g.IntN(3) {
		case 0:
			text = text[:at] + g.pick(" ", "'", `"`, `\`, "$", "`", ";", "&", "|", ">", "<", "(", ")", "{", "}", "*", "#", "!", "\n", "\t", "=", "~", "a", "x", "-", "[", "]", "?", "^", "%", "1", "\u00a0") + text[at:]
		case 1:
			if at < len(text) {
				text = text[:at] + text[at+1:]
			}
		case 2:
			from := g.IntN(at + 1)
			text = text[:at] + text[from:at] + text[at:]
		}
	}
	return text
}

// texts returns n different ones that Judge says it knows.
func (g generator) texts(n int) (texts []string, calls []access.SSHCall) {
	known := map[string]bool{}
	for len(texts) < n {
		text := g.list(2)
		if g.IntN(2) == 0 {
			text = g.mutate(text)
		}
		if known[text] || len(text) > 400 || leavesFolder.MatchString(strings.ReplaceAll(text, "/dev/null", "")) {
			continue
		}
		call := Judge(text, nil)
		scripts := slices.ContainsFunc(call.UnknownPaths, func(why string) bool { return strings.Contains(why, "does is in") })
		if len(call.Unknown) > 0 || scripts {
			continue
		}
		known[text] = true
		texts, calls = append(texts, text), append(calls, call)
	}
	return texts, calls
}

func TestShellsRunNoMoreThanJudged(t *testing.T) {
	t.Parallel()
	for seed, shell := range []string{"bash", "dash"} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			texts, calls := generator{rand.New(rand.NewPCG(9, uint64(seed)))}.texts(1000)
			ran, made := 0, 0
			for i, s := range newSandbox(t).run(t, shell, texts) {
				if beyond := more(&calls[i], s); beyond != "" {
					t.Errorf("%s -c %q: %s, beyond %q", shell, texts[i], beyond, calls[i].Commands)
				}
				ran += len(s.commands)
				made += len(s.files)
			}
			if ran < len(texts)/2 || made < len(texts)/20 {
				t.Errorf("%d texts ran %d commands and made %d files: the test shows little", len(texts), ran, made)
			}
		})
	}
}

// The test above sees what is not listed.
func TestDifferenceIsSeen(t *testing.T) {
	t.Parallel()
	texts := []string{"a x; b 'y z'", "a; b", "a >f", "x=b; $x", "a ~/x"}
	listed := []access.SSHCall{
		{Commands: [][]string{{"a", "x"}, {"b", "y z"}}}, {Commands: [][]string{{"a"}}}, {Commands: [][]string{{"a"}}}, {}, {Commands: [][]string{{"a", "~/x"}}},
	}
	want := []string{"", `it ran ["b"]`, `it made "~/f"`, `it ran ["b"]`, ""}
	for i, s := range newSandbox(t).run(t, "bash", texts) {
		if got := more(&listed[i], s); got != want[i] {
			t.Errorf("%s: got %q, want %q", texts[i], got, want[i])
		}
	}
}
