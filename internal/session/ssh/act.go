package ssh

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/shell"
)

// act judges, decides and does what the client asks of a session channel.
func (c *channel) act(ctx context.Context, kind, text string) {
	if c.refused != nil {
		c.deny(c.refused)
		return
	}
	if len(text) > maxCommand || !utf8.ValidString(text) {
		c.denyUnjudged(ctx, access.Unreadable, fmt.Sprintf("a command is UTF-8 text of at most %d bytes", maxCommand), access.Printable(text, 200))
		return
	}
	if kind == "subsystem" && text == "sftp" {
		c.sftp(ctx)
		return
	}
	call := c.call(kind, text)
	v, r := c.permit(ctx, call, c.tell)
	if r != nil {
		c.refuse(ctx, v, r)
		return
	}
	defer v.end(ctx)
	c.run(ctx, v, kind, text)
}

// call is what the client asks for, as the judge understands it.
func (c *channel) call(kind, text string) access.SSHCall {
	var call access.SSHCall
	switch kind {
	case "shell":
		call = access.SSHCall{Act: access.ActShell, Environment: c.environment}
	case "subsystem":
		call = access.SSHCall{Act: access.ActSubsystem, Command: text, Environment: c.environment}
	default:
		call = shell.Judge(text, c.environment)
	}
	call.User, call.Terminal = c.user, c.terminal != nil
	return call
}

// run does at the target what was permitted.
func (c *channel) run(ctx context.Context, v *verdict, kind, text string) {
	r, err := c.newRelay(v)
	if err == nil {
		r.up, r.upRequests, err = c.start(ctx, r, kind, text)
	}
	if err == nil {
		err = r.run(ctx)
	}
	v.failure = c.conclude(ctx, v.request.ID, v.decision, err)
}

// conclude tells the client what went wrong with a permitted act, if anything
// did, and returns it for the recording.
func (c *channel) conclude(ctx context.Context, id string, decision access.Decision, err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errClientLeft), errors.Is(context.Cause(ctx), errClientLeft):
		return errClientLeft.Error()
	}
	d := c.fault(ctx, id, decision, err)
	c.deny(d)
	return d.Message
}

// start opens a channel at the target and begins the act there. r, which may be
// nil, records the terminal. A target that does not answer holds up nobody: what it
// says later is for nobody.
func (c *channel) start(ctx context.Context, r *relay, kind, text string) (gossh.Channel, <-chan *gossh.Request, error) {
	client, err := c.reach(ctx)
	if err != nil {
		return nil, nil, &targetError{"the gateway cannot reach " + c.resource.Access.Name, err}
	}
	type answer struct {
		up       gossh.Channel
		requests <-chan *gossh.Request
		err      error
	}
	answers := make(chan answer)
	given := make(chan struct{})
	defer close(given)
	c.acting.Go(func() { // at the longest until the target's connection closes
		c.guard(func() {
			up, requests, err := c.startAt(ctx, client, r, kind, text)
			select {
			case answers <- answer{up, requests, err}:
			case <-given:
				if up != nil {
					_ = up.Close() // it may have left
				}
			}
		})
	})
	late := time.NewTimer(c.cfg.DialTimeout)
	defer late.Stop()
	select {
	case a := <-answers:
		return a.up, a.requests, a.err
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	case <-late.C:
		return nil, nil, &targetError{c.resource.Access.Name + " does not answer", nil}
	}
}

// startAt is start over a connection.
func (c *channel) startAt(ctx context.Context, client *gossh.Client, r *relay, kind, text string) (up gossh.Channel, requests <-chan *gossh.Request, err error) {
	name := c.resource.Access.Name
	up, requests, err = client.OpenChannel("session", nil)
	if err != nil {
		return nil, nil, &targetError{name + " opens no channel", err}
	}
	defer func() {
		if err != nil {
			up.Close()
		}
	}()
	for name, value := range c.environment { // sshd takes what it likes of it
		if _, err := up.SendRequest("env", false, gossh.Marshal(struct{ Name, Value string }{name, value})); err != nil {
			return nil, nil, &targetError{c.resource.Access.Name + " ended the channel", err}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.terminal; t != nil && r != nil {
		if ok, err := up.SendRequest("pty-req", true, gossh.Marshal(t)); err != nil || !ok {
			return nil, nil, &targetError{name + " gives no terminal", err}
		}
		if err := r.opened(ctx, t); err != nil {
			return nil, nil, err
		}
	}
	var payload []byte
	if kind != "shell" {
		payload = gossh.Marshal(struct{ Text string }{text})
	}
	if ok, err := up.SendRequest(kind, true, payload); err != nil || !ok {
		return nil, nil, &targetError{name + " refuses to do it", err}
	}
	if r != nil {
		c.up, c.on = up, r
	}
	return up, requests, nil
}

// A targetError is a fault of the target's, with words for the client.
type targetError struct {
	message string
	err     error
}

func (e *targetError) Error() string {
	if e.err == nil {
		return e.message
	}
	return e.message + ": " + e.err.Error()
}

func (e *targetError) Unwrap() error { return e.err }

// fault turns what went wrong with a permitted act into a denial and records it.
func (c *channel) fault(ctx context.Context, id string, decision access.Decision, err error) *access.Denial {
	var denial *access.Denial
	var target *targetError
	var files *sftpError
	cause := err.Error()
	switch {
	case ctx.Err() != nil && errors.As(context.Cause(ctx), &denial): // killed, expired, …
		d := *denial
		denial = &d
	case errors.As(err, &denial):
	case errors.As(err, &target):
		denial = &access.Denial{Reason: access.Unavailable, Message: target.message, Hint: "try again; tell the operators if it lasts"}
		if errors.Is(err, errHostKey) {
			denial.Message = c.resource.Access.Name + " does not prove to be the host that the gateway knows; nothing was sent to it"
			denial.Hint = "tell the operators: the host's key is another than the pinned one"
		}
	case errors.As(err, &files):
		denial = &access.Denial{Reason: access.Unreadable, Message: access.Printable(files.Error(), 200)}
	default:
		denial = &access.Denial{Reason: access.Unavailable, Message: "the act ended: the gateway failed", Hint: "tell the operators the request id"}
	}
	denial.RequestID, denial.Resource, denial.Revision = id, c.resource.Access.Name, decision.Revision
	if denial.Rule == "" {
		denial.Rule = decision.Rule()
	}
	c.log.Warn("ssh act failed", "request", id, "error", cause)
	e := c.event(access.Event{Request: id, Denied: &access.Denied{Denial: *denial, Cause: cause, Resource: denial.Resource, Client: c.info.Client}})
	c.lastWords(ctx, e)
	return denial
}
