package ssh

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"sync"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds of what a client may say before its act.
const (
	maxCommand   = 64 << 10
	maxVariables = 32
	maxVariable  = 128 // bytes of a value
	maxTerm      = 64
	maxModes     = 1 << 10
	maxSide      = 10_000 // columns and rows of a terminal
)

// A channel is one session channel (RFC 4254, section 6): what the client sets
// up, then one act.
type channel struct {
	*session
	ch     gossh.Channel
	acting sync.WaitGroup // on everything that the act does

	environment map[string]string
	terminal    *terminal
	started     bool

	mu sync.Mutex
	up gossh.Channel // at the target, once the act runs there
	on *relay        // records its resizes
}

// A terminal is what a pty-req asks for.
type terminal struct {
	Term                         string
	Columns, Rows, Width, Height uint32
	Modes                        string
}

// shellChannel serves a session channel until the client closes it.
func (s *session) shellChannel(ctx context.Context, incoming gossh.NewChannel) {
	ch, requests, err := incoming.Accept()
	if err != nil {
		s.log.Debug("ssh channel not opened", "error", err)
		return
	}
	c := &channel{session: s, ch: ch, environment: map[string]string{}}
	ctx, cancel := context.WithCancelCause(ctx)
	for request := range requests {
		ok, then := c.take(ctx, request)
		if request.WantReply {
			if err := request.Reply(ok, nil); err != nil {
				break
			}
		}
		if then != nil { // after the answer: a client that has none yet takes an end for a fault
			then()
		}
	}
	cancel(errClientLeft)
	c.acting.Wait()
	_ = ch.Close() // it is closed already when the act ended
}

// take handles one request and reports whether it was granted, and what is to be
// done once the client knows. An act is granted before it is decided, for only
// then does a client listen to why it is refused.
func (c *channel) take(ctx context.Context, request *gossh.Request) (ok bool, then func()) {
	switch request.Type {
	case "env":
		return c.set(request.Payload), nil
	case "pty-req":
		return c.openTerminal(request.Payload), nil
	case "window-change":
		return c.resize(ctx, request.Payload), nil
	case "signal":
		return c.signal(request.Payload), nil
	case "shell", "exec", "subsystem":
		then = c.begin(ctx, request)
		return then != nil, then
	case "auth-agent-req@openssh.com":
		return c.sideways(ctx, access.ActAgent), nil
	case "x11-req":
		return c.sideways(ctx, access.ActX11), nil
	}
	return false, nil // as sshd answers what it does not know
}

// usualVariables may always be set; sshd on Debian and its kin take them too.
var usualVariables = regexp.MustCompile(`^(LANG|LC_[A-Z]{1,20}|COLORTERM|NO_COLOR)$`)

// harmlessValue has nothing that a shell, a loader or a format would read as
// more than a word.
var harmlessValue = regexp.MustCompile(`^[A-Za-z0-9_.,:=@+-]*$`)

// set takes a variable. Clients send whatever they were told to and do not mind
// that some are not taken; git's is its protocol version.
func (c *channel) set(payload []byte) bool {
	var v struct{ Name, Value string }
	if c.started || c.refused != nil || gossh.Unmarshal(payload, &v) != nil || len(v.Value) > maxVariable || !harmlessValue.MatchString(v.Value) {
		return false
	}
	if !usualVariables.MatchString(v.Name) && v.Name != "GIT_PROTOCOL" && !slices.Contains(c.resource.Environment, v.Name) {
		return false
	}
	if _, known := c.environment[v.Name]; !known && len(c.environment) >= maxVariables {
		return false
	}
	c.environment[v.Name] = v.Value
	return true
}

func (c *channel) openTerminal(payload []byte) bool {
	t := &terminal{}
	if c.started || c.terminal != nil || gossh.Unmarshal(payload, t) != nil || len(t.Term) > maxTerm || !harmlessValue.MatchString(t.Term) ||
		len(t.Modes) > maxModes || max(t.Columns, t.Rows) > maxSide {
		return false
	}
	c.terminal = t
	return true
}

func (c *channel) resize(ctx context.Context, payload []byte) bool {
	var size struct{ Columns, Rows, Width, Height uint32 }
	if c.terminal == nil || gossh.Unmarshal(payload, &size) != nil || max(size.Columns, size.Rows) > maxSide {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.terminal.Columns, c.terminal.Rows, c.terminal.Width, c.terminal.Height = size.Columns, size.Rows, size.Width, size.Height
	if c.up == nil {
		return true
	}
	if err := c.on.resized(ctx, int(size.Columns), int(size.Rows)); err != nil {
		c.stop(err)
		return false
	}
	_, err := c.up.SendRequest("window-change", false, payload)
	return err == nil
}

// signals are those of RFC 4254, section 6.10.
var signals = []string{"ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"}

func (c *channel) signal(payload []byte) bool {
	var s struct{ Name string }
	if gossh.Unmarshal(payload, &s) != nil || !slices.Contains(signals, s.Name) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.up == nil {
		return false
	}
	_, err := c.up.SendRequest("signal", false, payload)
	return err == nil
}

// begin returns what starts the channel's one act; nil when there was one, or it
// cannot be read.
func (c *channel) begin(ctx context.Context, request *gossh.Request) (start func()) {
	var what struct{ Text string }
	if c.started || request.Type != "shell" && gossh.Unmarshal(request.Payload, &what) != nil {
		return nil
	}
	c.started = true
	return func() {
		c.acting.Go(func() {
			c.guard(func() {
				defer c.ch.Close()
				c.act(ctx, request.Type, what.Text)
			})
		})
	}
}

// sideways judges the wish for something that the gateway never does, so that
// the recording has it.
func (c *channel) sideways(ctx context.Context, act string) bool {
	if c.refused == nil {
		c.neverServed(ctx, access.SSHCall{Act: act, User: c.user}, "the gateway forwards no agent and no display")
	}
	return false
}

// tell writes lines on the client's stderr.
func (c *channel) tell(text string) error {
	text = "chaperone: " + strings.ReplaceAll(text, "\n", "\nchaperone: ") + "\n"
	if c.terminal != nil { // the client's terminal is raw
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	_, err := c.ch.Stderr().Write([]byte(text))
	return err
}

// deny tells the client why its act does not happen, or goes on no longer, and
// ends it with the exit status of the denial.
func (c *channel) deny(d *access.Denial) {
	_ = c.tell(d.Text()) // the client may have left
	c.exit(d.ExitCode())
}

// exit ends the channel with an exit status.
func (c *channel) exit(status int) {
	_, _ = c.ch.SendRequest("exit-status", false, gossh.Marshal(struct{ Status uint32 }{uint32(status)}))
	_ = c.ch.Close() // the client may have left
}
