package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A teller runs the story's commands in a shell, prints each with its answer,
// and checks it. The commands are what a person would type: the variables that
// they use are in the environment, and tokens are never printed.
type teller struct {
	*Site
	out     io.Writer
	colour  bool
	env     []string
	tls     bool         // whether psql was built with TLS
	clients bytes.Buffer // everything that subagents' commands received
}

// A beat is one command with what its answer must and must not hold.
type beat struct {
	say    string
	run    string // a shell command
	fails  bool   // it must exit with a status other than 0
	want   []string
	not    []string
	silent bool // run and check without printing: for probes between beats
}

// tell runs beats in order and stops at the first that goes wrong.
func (t *teller) tell(ctx context.Context, beats ...beat) error {
	for _, b := range beats {
		if b.say != "" {
			t.say(b.say)
		}
		if !b.silent {
			t.command(b.run)
		}
		answer, err := t.shell(ctx, b.run)
		if !b.silent {
			t.answer(answer)
		}
		if err := b.check(answer, err); err != nil {
			return fmt.Errorf("%s\n  %w\n  the whole answer: %s", b.run, err, answer)
		}
	}
	return nil
}

func (b beat) check(answer string, err error) error {
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		return err
	case err != nil && !b.fails:
		return fmt.Errorf("it should have worked: %w", err)
	case err == nil && b.fails:
		return errors.New("it should have failed")
	}
	for _, want := range b.want {
		if !strings.Contains(answer, want) {
			return fmt.Errorf("the answer lacks %q", want)
		}
	}
	for _, not := range b.not {
		if strings.Contains(answer, not) {
			return fmt.Errorf("the answer holds %q", not)
		}
	}
	return nil
}

// shell runs one command and returns what it wrote to both streams.
func (t *teller) shell(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	cmd := t.shellCommand(ctx, command)
	out, err := cmd.CombinedOutput()
	t.clients.Write(out)
	return string(out), err
}

func (t *teller) shellCommand(ctx context.Context, command string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env, cmd.Dir = t.env, t.Dir
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// A running command's output can be read while it runs.
type running struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	buf  bytes.Buffer
	done chan error
}

// Write keeps what the command printed.
func (r *running) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(b)
}

// Output is what it printed so far.
func (r *running) Output() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

// assignments are the variables set before a command's name.
var assignments = regexp.MustCompile(`^(\w+=\S+ )*`)

// begin prints and starts a command, and waits until its output matches until.
func (t *teller) begin(ctx context.Context, say, command string, until *regexp.Regexp) (*running, []string, error) {
	t.say(say)
	t.command(command + " &")
	r := &running{done: make(chan error, 1)}
	// exec: a signal must reach the client, not a shell around it.
	r.cmd = t.shellCommand(ctx, assignments.ReplaceAllString(command, "${0}exec "))
	r.cmd.Stdout, r.cmd.Stderr = r, r
	if err := r.cmd.Start(); err != nil {
		return nil, nil, err
	}
	go func() { r.done <- r.cmd.Wait() }()
	var match []string
	err := Eventually(ctx, startWithin, func() error {
		if match = until.FindStringSubmatch(r.Output()); match == nil {
			return fmt.Errorf("%s\n  printed %q, not yet %s", command, r.Output(), until)
		}
		return nil
	})
	if err != nil {
		_ = r.cmd.Process.Kill() // the error is what matters
		return nil, nil, err
	}
	t.answer(r.Output())
	return r, match, nil
}

// end waits for a command and checks its whole output.
func (t *teller) end(ctx context.Context, r *running, b beat) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	var err error
	select {
	case err = <-r.done:
	case <-ctx.Done():
		_ = r.cmd.Process.Kill() // it hangs: that is the error
		return fmt.Errorf("%s does not end: %s", b.say, r.Output())
	}
	t.clients.WriteString(r.Output())
	t.say(b.say)
	t.answer(r.Output())
	if err := b.check(r.Output(), err); err != nil {
		return fmt.Errorf("%w\n  the whole answer: %s", err, r.Output())
	}
	return nil
}

func (t *teller) title(n int, text string) { t.paint("1;36", fmt.Sprintf("\n%d. %s\n", n, text)) }
func (t *teller) say(text string)          { t.paint("2", "  # "+text+"\n") }
func (t *teller) command(text string) {
	t.paint("1", "  $ "+strings.ReplaceAll(text, "\n", "\n    ")+"\n")
}

func (t *teller) answer(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintln(t.out, "    "+line)
	}
}

func (t *teller) paint(code, text string) {
	if t.colour {
		text = "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	fmt.Fprint(t.out, text)
}

// tokens gets everyone's tokens and writes them where the printed commands
// read them.
func (t *teller) tokens(ctx context.Context) error {
	get := map[string]func() (string, error){
		"ADA":      func() (string, error) { return t.Dex.Token(ctx, Ada) },
		"OMAR":     func() (string, error) { return t.Dex.Token(ctx, Omar) },
		"TOM":      func() (string, error) { return t.Dex.Token(ctx, Tom) },
		"RHEA":     func() (string, error) { return t.Dex.Token(ctx, Rhea) },
		"EXPIRED":  func() (string, error) { return t.Short.Token(ctx, Ada) },
		"OTHER":    func() (string, error) { return t.Dex.TokenForAgent(ctx, Ada) },
		"ADASELF":  func() (string, error) { return t.Dex.TokenForPerson(ctx, Ada) },
		"REPORTER": func() (string, error) { return t.Dex.Token(ctx, Reporter) },
		"GRACE":    func() (string, error) { return t.Dex.TokenForPerson(ctx, Grace) },
		"ALAN":     func() (string, error) { return t.Dex.TokenForPerson(ctx, Alan) },
		"SOFIA":    func() (string, error) { return t.Dex.TokenForPerson(ctx, Sofia) },
		"TOMSELF":  func() (string, error) { return t.Dex.TokenForPerson(ctx, Tom) },
		// The requesting user's own, as a person: she may review, but not her own.
		"RHEASELF": func() (string, error) { return t.Dex.TokenForPerson(ctx, Rhea) },
	}
	t.env = append(os.Environ(), "ORDERS="+t.ConnString(t.tls), "PLAIN="+t.ConnString(false), "GW="+t.URL(), "CA="+t.path("ca.crt"), "NO_COLOR=1", "XDG_CACHE_HOME="+t.path("run", "cache"), "PAGER=cat", "PSQL_PAGER=",
		"PATH="+strings.Join([]string{t.bin(), os.Getenv("PATH")}, ":"), "CHAPERONE_GATEWAY="+t.URL(), "CHAPERONE_CA="+t.path("ca.crt"),
		"PGOPTIONS=", "PGCONNECT_TIMEOUT=20", "PSQLRC=/dev/null", "DIRECT="+strings.Replace(t.Database.Addr, ":", " port=", 1), "BILLING="+t.Billing.URL)
	if t.Host != nil {
		t.env = append(t.env, "HOST=-p "+strconv.Itoa(t.Host.Port)+" "+t.Host.Account+"@127.0.0.1")
	}
	if t.Cluster != nil {
		t.env = append(t.env, "KUBECONFIG="+t.path("kubeconfig"), "KUBECACHEDIR="+t.path("run", "kube"))
	}
	for name, f := range get {
		token, err := f()
		if err != nil {
			return err
		}
		if err := write(t.path("tokens", strings.ToLower(name)), token, 0o600); err != nil {
			return err
		}
		t.env = append(t.env, name+"="+token)
	}
	return nil
}
