package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are the files that make promises.
func documents(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	design, err := filepath.Glob("../docs/design/*.md")
	if err != nil {
		t.Fatal(err)
	}
	vocabulary, err := filepath.Glob("../docs/policy/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(slices.Concat(found, design, vocabulary), "../README.md", "../CONTRIBUTING.md")
}

// shown returns the lines of a document that are shown as commands: indented by
// four or more, or fenced.
func shown(t *testing.T, path string) (lines []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fenced := false
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		line := scanner.Text()
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		} else if fenced || strings.HasPrefix(line, "    ") {
			lines = append(lines, strings.TrimPrefix(strings.TrimSpace(line), "$ "))
		}
	}
	return lines
}

var flagWord = regexp.MustCompile(`\s(--[a-z][a-z-]*|-[a-z])\b`)

// TestDocsCommands: every chaperone command line and every make target that a
// document shows exists, with its flags.
func TestDocsCommands(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, path := range documents(t) {
		for _, line := range shown(t, path) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			switch fields[0] {
			case "make":
				checked++
				if !strings.Contains(string(makefile), "\n"+fields[1]+":") {
					t.Errorf("%s: %s: no such target", path, line)
				}
			case "chaperone":
				checked++
				line, _, _ = strings.Cut(line, " | ") // what follows is another program's
				checkCommand(t, path, line, strings.Fields(line)[1:])
			}
		}
	}
	if checked < 15 {
		t.Errorf("only %d commands were found in the documents", checked)
	}
}

// checkCommand asks the command's own help.
func checkCommand(t *testing.T, path, line string, args []string) {
	t.Helper()
	var words []string
	for _, a := range args {
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(a) {
			break
		}
		words = append(words, a)
	}
	// The longest run of words that is a command; the rest are arguments.
	for len(words) > 0 {
		help, err := exec.CommandContext(t.Context(), program, append(slices.Clone(words), "--help")...).CombinedOutput()
		if err == nil && strings.Contains(string(help), "chaperone "+strings.Join(words, " ")) {
			for _, f := range flagWord.FindAllStringSubmatch(line, -1) {
				if !regexp.MustCompile(`(^|[\s,])` + f[1] + `\b`).Match(help) {
					t.Errorf("%s: %s: %s has no flag %s", path, line, strings.Join(words, " "), f[1])
				}
			}
			return
		}
		words = words[:len(words)-1]
	}
	t.Errorf("%s: %s: no such command", path, line)
}

// TestDocsConfiguration: the configuration shown is one that check accepts.
func TestDocsConfiguration(t *testing.T) {
	t.Parallel()
	s := site(t) // for its certificates
	b, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), "```yaml\n")
	text, _, ok2 := strings.Cut(text, "```")
	if !ok || !ok2 {
		t.Fatal("the document shows no configuration")
	}
	dir := t.TempDir()
	files := map[string]string{"chaperone.yaml": text, "secrets/orders": "x", "secrets/hook": "x", "secrets/cluster": "x", "secrets/console": "x"}
	for name, from := range map[string]string{"gateway.crt": "gateway.crt", "gateway.key": "gateway.key", "db-ca.pem": "ca.crt", "k8s-ca.pem": "ca.crt"} {
		content, err := os.ReadFile(filepath.Join(s.Dir, from))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(content)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "policies"), os.DirFS(filepath.Join(s.Dir, "policies"))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "check", "--config", filepath.Join(dir, "chaperone.yaml"))
	cmd.Env = append(os.Environ(), "BILLING_KEY=x")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "accepts it") {
		t.Errorf("check: %v\n%s", err, out)
	}
	twin := exec.CommandContext(t.Context(), program, "check", "--config", filepath.Join(dir, "chaperone.yaml"))
	if out, err := twin.CombinedOutput(); err == nil || !strings.Contains(string(out), "BILLING_KEY") {
		t.Errorf("without its secret the configuration passes: %s", out)
	}
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

// TestDocsLinks: every file that a document links to exists.
func TestDocsLinks(t *testing.T) {
	t.Parallel()
	checked := 0
	for _, path := range documents(t) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			checked++
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
		}
	}
	if checked == 0 {
		t.Error("no links were found")
	}
}

// TestDocsReasons: the page on refusals knows every reason and every member.
func TestDocsReasons(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/denials.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("../internal/access/denial.go")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`Reason = "([a-z-]+)"|json:"([a-z_]+)[,"]`).FindAllStringSubmatch(string(source), -1)
	for _, n := range names {
		name := n[1] + n[2]
		if slices.Contains([]string{"jsonrpc", "id", "error", "code", "data", "kind", "metadata", "causes", "details"}, name) {
			continue // of other forms of the same object
		}
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/denials.md lacks %s", name)
		}
	}
	if len(names) < 25 {
		t.Errorf("only %d names were found", len(names))
	}
}
