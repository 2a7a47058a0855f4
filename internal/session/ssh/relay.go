package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/session/transcript"
)

// chunk is how much is passed on at a time, which is what one packet holds.
const chunk = 32 << 10

// A relay carries one act between client and target: each piece is counted,
// masked and recorded before it goes on.
type relay struct {
	c      *channel
	v      *verdict
	masker *mask.Masker // nil: nothing is masked on the way to the client
	log    *transcript.Transcript

	up         gossh.Channel
	upRequests <-chan *gossh.Request

	stop   context.CancelCauseFunc
	mu     sync.Mutex
	bytes  int64 // to the client
	masked int64
	over   bool

	status atomic.Pointer[gossh.Request] // exit-status or exit-signal, as the target sent it
}

// newRelay compiles what the act's obligations ask for.
func (c *channel) newRelay(v *verdict) (*relay, error) {
	r := &relay{c: c, v: v}
	if masks := v.decision.Obligations.Masks; len(masks) > 0 {
		m, err := mask.Compile(masks)
		if err != nil || m.Columns() || m.Fields() {
			return nil, &access.Denial{Reason: access.Unsupported, Message: "the output of a host has no columns or fields to mask: use detect", Hint: "tell those who keep the policy"}
		}
		r.masker = m
	}
	r.log = c.newTranscript(v, c.terminal != nil)
	return r, nil
}

// opened records the terminal's first size.
func (r *relay) opened(ctx context.Context, t *terminal) error {
	return r.log.Size(ctx, t.Term, int(t.Columns), int(t.Rows))
}

// resized records another one.
func (r *relay) resized(ctx context.Context, columns, rows int) error {
	return r.log.Size(ctx, "", columns, rows)
}

// run carries everything until the target has said how the act came out, or
// something ends it, and tells the client how. An error means that the client
// has not been told. A target that says nothing more holds up nobody: what still
// reads from it then is waited for by the channel.
func (r *relay) run(ctx context.Context) error {
	ctx, r.stop = context.WithCancelCause(ctx)
	defer r.stop(nil)
	r.c.target.ending.Add(1)
	defer r.v.endInTime(r.fail)()
	var out sync.WaitGroup
	done := make(chan struct{})
	begin := func(run func()) { r.c.acting.Go(func() { r.c.guard(run) }) }
	out.Add(3)
	begin(func() { r.input(ctx) })
	begin(func() { defer out.Done(); r.output(ctx, access.Stdout, r.up, r.c.ch) })
	begin(func() { defer out.Done(); r.output(ctx, access.Stderr, r.up.Stderr(), r.c.ch.Stderr()) })
	begin(func() { defer out.Done(); r.answers() })
	begin(func() { out.Wait(); close(done) })
	select {
	case <-done:
	case <-ctx.Done():
	}
	err := context.Cause(ctx) // nil while nothing ended it
	if err == nil {
		_ = r.c.ch.CloseWrite() // the client may have left
		err = r.finish()
	} else if !errors.Is(err, errClientLeft) { // what sshd does with the commands of those is its own matter
		_, _ = r.up.SendRequest("signal", false, gossh.Marshal(struct{ Name string }{"KILL"}))
	}
	_ = r.up.Close() // the target may have left
	begin(func() { r.c.target.endAct(done) })
	r.mu.Lock()
	r.over = true
	r.v.bytes, r.v.masked = r.bytes, r.masked
	r.mu.Unlock()
	r.v.sums(r.log)
	return err
}

// fail ends the act.
func (r *relay) fail(err error) { r.stop(err) }

// finish tells the client how the act came out.
func (r *relay) finish() error {
	status := r.status.Load()
	if status == nil {
		return &targetError{"the connection to " + r.c.resource.Access.Name + " ended before the command did", nil}
	}
	r.v.tag = tagOf(status)
	_, _ = r.c.ch.SendRequest(status.Type, false, status.Payload) // the client may have left
	_ = r.c.ch.Close()
	return nil
}

func tagOf(status *gossh.Request) string {
	if status.Type == "exit-status" {
		var s struct{ Status uint32 }
		if gossh.Unmarshal(status.Payload, &s) == nil {
			return fmt.Sprintf("exit %d", s.Status)
		}
	}
	var s struct {
		Signal string
		Core   bool
		Text   string
		Lang   string
	}
	if gossh.Unmarshal(status.Payload, &s) == nil {
		return "signal " + access.Printable(s.Signal, 16)
	}
	return "unknown"
}

// maxStatus bounds what a target may say about the end of an act.
const maxStatus = 4 << 10

// answers takes the target's requests: how the act came out, and that it reads
// no more.
func (r *relay) answers() {
	for request := range r.upRequests {
		switch request.Type {
		case "exit-status", "exit-signal":
			if len(request.Payload) <= maxStatus {
				r.status.CompareAndSwap(nil, request)
			}
		case "eow@openssh.com":
			_, _ = r.c.ch.SendRequest(request.Type, false, nil) // the client may have left
		}
		if request.WantReply {
			_ = request.Reply(false, nil) // as a client answers what it does not know
		}
	}
}

// input carries what the client sends.
func (r *relay) input(ctx context.Context) {
	buffer := make([]byte, chunk)
	for {
		n, err := r.c.ch.Read(buffer)
		if n > 0 {
			r.c.metrics.bytes.WithLabelValues("in").Add(float64(n))
			if err := r.log.Write(ctx, access.Stdin, buffer[:n]); err != nil {
				r.fail(err)
				return
			}
			if _, err := r.up.Write(buffer[:n]); err != nil {
				return // it reads no more; how it came out is still to come
			}
		}
		if err != nil {
			_ = r.up.CloseWrite() // it may have ended
			return
		}
	}
}

// output carries what the target sends on one stream.
func (r *relay) output(ctx context.Context, name string, from io.Reader, to io.Writer) {
	var stream mask.Writer
	switch {
	case r.masker != nil && r.c.terminal != nil:
		stream = r.masker.NewTerminal()
	case r.masker != nil:
		stream = r.masker.NewText()
	}
	buffer := make([]byte, chunk)
	for {
		n, err := from.Read(buffer)
		piece := buffer[:n]
		if stream != nil && n > 0 {
			var fault error
			if piece, fault = stream.Write(piece); fault != nil {
				r.fail(r.undecodable(fault))
				return
			}
		}
		if fault := r.pass(ctx, name, piece, to); fault != nil {
			r.fail(fault)
			return
		}
		if err == nil {
			continue
		}
		if stream != nil {
			rest, fault := stream.Close()
			if fault == nil {
				fault = r.pass(ctx, name, rest, to)
			}
			if fault != nil {
				r.fail(fault)
			}
			r.mu.Lock()
			r.masked += stream.Masked()
			r.mu.Unlock()
		}
		if !errors.Is(err, io.EOF) {
			r.fail(&targetError{"the connection to " + r.c.resource.Access.Name + " broke", err})
		}
		return
	}
}

// undecodable is the denial of output in which nothing would be found to mask.
func (r *relay) undecodable(err error) error {
	return &access.Denial{Reason: access.MaskedField, Message: "the output is not text, and " + r.v.decision.Rule() + " masks it (" + err.Error() + ")",
		Hint: "have the command print text"}
}

// pass counts, records and sends one masked piece.
func (r *relay) pass(ctx context.Context, name string, piece []byte, to io.Writer) error {
	if len(piece) == 0 {
		return nil
	}
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return errClientLeft
	}
	if most := r.v.decision.Obligations.Limits.Bytes; most > 0 && r.bytes+int64(len(piece)) > most {
		r.mu.Unlock()
		return r.v.limit(fmt.Sprintf("the output is larger than %d bytes", most))
	}
	r.bytes += int64(len(piece))
	err := r.v.use.Read(ctx, 0, int64(len(piece))) // it serves one goroutine
	r.mu.Unlock()
	if err != nil {
		return usedUp(r.v, err)
	}
	if err := r.log.Write(ctx, name, piece); err != nil {
		return err
	}
	r.c.metrics.bytes.WithLabelValues("out").Add(float64(len(piece)))
	if _, err := to.Write(piece); err != nil {
		return errClientLeft
	}
	return nil
}
