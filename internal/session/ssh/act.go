package ssh

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
)

// act judges, decides and does what the client asks of a session channel.
func (c *channel) act(ctx context.Context, kind, text string) {
	if c.refused != nil {
		c.deny(c.refused)
		return
	}
	if len(text) > maxCommand || !utf8.ValidString(text) {
		c.denyUnjudged(ctx, access.Unreadable, fmt.Sprintf("a command is UTF-8 text of at most %d bytes", maxCommand), printable(text, 200))
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
	call := access.SSHCall{User: c.user, Command: text, Terminal: c.terminal != nil, Environment: c.environment}
	switch kind {
	case "shell":
		call.Act = access.ActShell
	case "subsystem":
		call.Act = access.ActSubsystem
	default:
		call.Act = access.ActExec
		call.Unknown = []string{"commands are not read"}
	}
	return call
}

// run does at the target what was permitted.
func (c *channel) run(ctx context.Context, v *verdict, kind, text string) {
	r, err := c.newRelay(v)
	if err == nil {
		err = c.start(ctx, r, kind, text)
	}
	if err == nil {
		err = r.run(ctx)
	}
	switch {
	case err == nil:
	case errors.Is(err, errClientLeft):
		v.failure = errClientLeft.Error()
	default:
		d := c.fault(ctx, v, err)
		v.failure = d.Message
		c.deny(d)
	}
}

// start opens a channel at the target and begins the act there.
func (c *channel) start(ctx context.Context, r *relay, kind, text string) error {
	client, err := c.reach(ctx)
	if err != nil {
		return &targetError{"the gateway cannot reach " + c.resource.Access.Name, err}
	}
	up, requests, err := client.OpenChannel("session", nil)
	if err != nil {
		return &targetError{c.resource.Access.Name + " opens no channel", err}
	}
	for name, value := range c.environment { // sshd takes what it likes of it
		if _, err := up.SendRequest("env", false, gossh.Marshal(struct{ Name, Value string }{name, value})); err != nil {
			up.Close()
			return &targetError{c.resource.Access.Name + " ended the channel", err}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.terminal; t != nil {
		if ok, err := up.SendRequest("pty-req", true, gossh.Marshal(t)); err != nil || !ok {
			up.Close()
			return &targetError{c.resource.Access.Name + " gives no terminal", err}
		}
		if err := r.opened(ctx, t); err != nil {
			up.Close()
			return err
		}
	}
	var payload []byte
	if kind != "shell" {
		payload = gossh.Marshal(struct{ Text string }{text})
	}
	if ok, err := up.SendRequest(kind, true, payload); err != nil || !ok {
		up.Close()
		return &targetError{c.resource.Access.Name + " refuses to do it", err}
	}
	c.up, c.on = up, r
	r.up, r.upRequests = up, requests
	return nil
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
func (c *channel) fault(ctx context.Context, v *verdict, err error) *access.Denial {
	var denial *access.Denial
	var target *targetError
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
	default:
		denial = &access.Denial{Reason: access.Unavailable, Message: "the act ended: the gateway failed", Hint: "tell the operators the request id"}
	}
	denial.RequestID, denial.Resource, denial.Revision = v.request.ID, c.resource.Access.Name, v.decision.Revision
	if denial.Rule == "" {
		denial.Rule = v.decision.Rule()
	}
	c.log.Warn("ssh act failed", "request", v.request.ID, "error", cause)
	e := c.event(access.Event{Request: v.request.ID, Denied: &access.Denied{Denial: *denial, Cause: cause, Resource: denial.Resource, Client: c.info.Client}})
	c.lastWords(ctx, e)
	return denial
}
