package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"chaperone.dev/chaperone/internal/localserver"
)

// A browser is the one Chromium of the run, which its driver starts.
type browser struct {
	cmd *exec.Cmd
	in  io.WriteCloser

	mu      sync.Mutex
	next    int
	waiting map[int]chan browserAnswer
}

type browserAnswer struct {
	ID     int
	Result string
	Error  string
}

var chromium struct {
	once    sync.Once
	browser *browser
	err     error
}

func startBrowser() (*browser, error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, fmt.Errorf("chromium is not installed: run tools/install browser")
	}
	b := &browser{cmd: exec.Command("node", "testdata/browser.js"), waiting: map[int]chan browserAnswer{}}
	b.cmd.Env = append(os.Environ(), "CHROMIUM="+path, "PLAYWRIGHT="+filepath.Join(localserver.ToolsDir(), "playwright", "package"))
	b.cmd.Stderr = os.Stderr
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := b.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		return nil, fmt.Errorf("the browser does not start: %w", err)
	}
	go b.listen(lines)
	return b, nil
}

// listen hands answers out until the driver ends.
func (b *browser) listen(lines *bufio.Reader) {
	for {
		line, err := lines.ReadString('\n')
		var answer browserAnswer
		if err == nil {
			err = json.Unmarshal([]byte(line), &answer)
		}
		b.mu.Lock()
		if err != nil {
			for id, waiting := range b.waiting {
				waiting <- browserAnswer{ID: id, Error: "the browser has gone"}
			}
			b.waiting = nil
			b.mu.Unlock()
			return
		}
		b.waiting[answer.ID] <- answer
		delete(b.waiting, answer.ID)
		b.mu.Unlock()
	}
}

// closeBrowser ends it, if it was started.
func closeBrowser() {
	if b := chromium.browser; b != nil {
		b.in.Close()
		_ = b.cmd.Wait()
	}
}

// A tab is one page with cookies of its own.
type tab struct{ name string }

// newTab is somebody's browser.
func newTab(t *testing.T) tab {
	t.Helper()
	chromium.once.Do(func() { chromium.browser, chromium.err = startBrowser() })
	if chromium.err != nil {
		t.Fatal(chromium.err)
	}
	return tab{fmt.Sprintf("%s-%p", t.Name(), new(int))}
}

// try runs a script with page (of Playwright), said (what the page wrote, asked
// or complained of), context and the pairs of args.
func (p tab) try(t *testing.T, script string, args ...string) (string, error) {
	t.Helper()
	b, named := chromium.browser, map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		named[args[i]] = args[i+1]
	}
	answer := make(chan browserAnswer, 1)
	b.mu.Lock()
	b.next++
	line, err := json.Marshal(map[string]any{"id": b.next, "name": p.name, "script": script, "args": named})
	if err == nil && b.waiting != nil {
		b.waiting[b.next] = answer
		_, err = b.in.Write(append(line, '\n'))
	}
	b.mu.Unlock()
	if err != nil {
		return "", err
	}
	select {
	case a := <-answer:
		if a.Error != "" {
			return "", fmt.Errorf("%s", a.Error)
		}
		return a.Result, nil
	case <-t.Context().Done():
		return "", t.Context().Err()
	}
}

// do is try for what must not fail.
func (p tab) do(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := p.try(t, script, args...)
	if err != nil {
		where, _ := p.try(t, `return page.url() + "\n" + said.join("\n") + "\n" + await page.locator("body").innerText()`)
		t.Fatalf("%v\n%s", err, where)
	}
	return out
}
