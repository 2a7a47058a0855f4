package ssh

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sftp"
)

// sftp serves the subsystem: each operation is an act of its own. The subsystem
// as such does nothing and needs no permission.
func (c *channel) sftp(ctx context.Context) {
	up, requests, err := c.start(ctx, nil, "subsystem", "sftp")
	if err == nil {
		err = c.runSFTP(ctx, up, requests)
	}
	c.conclude(ctx, access.NewRequestID(), access.Decision{}, err)
}

// runSFTP carries packets until the server has said how it ended, or something
// ends it.
func (c *channel) runSFTP(ctx context.Context, up gossh.Channel, requests <-chan *gossh.Request) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	judge := &operations{c: c, stop: stop, open: map[string]*verdict{}, watches: map[string]func(){}}
	filter := sftp.New(judge, c.ch, up)
	var status atomic.Pointer[gossh.Request]
	var carrying sync.WaitGroup
	carrying.Add(2)
	begin := func(run func()) { c.acting.Go(func() { c.guard(run) }) }
	begin(func() {
		defer carrying.Done()
		if err := filter.FromClient(ctx, c.ch); err != nil {
			stop(&sftpError{err})
		}
		_ = up.CloseWrite() // it may have ended
	})
	begin(func() {
		defer carrying.Done()
		if err := filter.FromServer(up); err != nil {
			stop(&sftpError{err})
		}
	})
	ended := make(chan struct{})
	begin(func() {
		defer close(ended)
		for request := range requests {
			if request.Type == "exit-status" && len(request.Payload) <= maxStatus {
				status.CompareAndSwap(nil, request)
			}
			if request.WantReply {
				_ = request.Reply(false, nil) // as a client answers what it does not know
			}
		}
	})
	select {
	case <-ended:
	case <-ctx.Done():
	}
	err := context.Cause(ctx)
	_ = up.Close()
	if err == nil && status.Load() != nil {
		_, _ = c.ch.SendRequest("exit-status", false, status.Load().Payload) // the client may have left
	}
	if err == nil {
		_ = c.ch.Close()
	}
	begin(func() { // files that are open still are told of once nobody can use them
		carrying.Wait()
		filter.Close()
	})
	return err
}

// An sftpError ends the subsystem: one side broke the protocol, or left.
type sftpError struct{ err error }

func (e *sftpError) Error() string { return "sftp: " + e.err.Error() }
func (e *sftpError) Unwrap() error { return e.err }

// operations are what an SFTP client does, each decided, recorded and counted.
type operations struct {
	c    *channel
	stop context.CancelCauseFunc

	mu      sync.Mutex
	open    map[string]*verdict // let through, not ended
	watches map[string]func()   // that stop their watches over time
}

// Decide asks policy about one operation, and holds it when policy says so.
func (o *operations) Decide(ctx context.Context, call access.SSHCall) (sftp.Verdict, error) {
	c := o.c
	call.User, call.Environment = c.user, c.environment
	v, r := c.permit(ctx, call, c.tell)
	if r != nil {
		c.denied(ctx, r, "")
		c.log.Info("ssh act refused", "request", v.request.ID, "reason", r.denial.Reason, "rule", r.denial.Rule, "cause", r.cause)
		if ctx.Err() != nil {
			return sftp.Verdict{}, context.Cause(ctx)
		}
		_ = c.tell(r.denial.Text()) // sftp itself shows nothing but "Permission denied"
		return sftp.Verdict{ID: v.request.ID, Refusal: r.denial.Text()}, nil
	}
	o.mu.Lock()
	o.open[v.request.ID] = v
	o.watches[v.request.ID] = v.endInTime(o.stop)
	o.mu.Unlock()
	var mu sync.Mutex
	most := v.decision.Obligations.Limits.Bytes
	return sftp.Verdict{ID: v.request.ID, Read: func(bytes int) error {
		mu.Lock()
		defer mu.Unlock()
		if v.bytes += int64(bytes); most > 0 && v.bytes > most {
			return v.limit(fmt.Sprintf("more than %d bytes", most))
		}
		if err := v.use.Read(ctx, 0, int64(bytes)); err != nil {
			return usedUp(v, err)
		}
		c.metrics.bytes.WithLabelValues("out").Add(float64(bytes))
		return nil
	}}, nil
}

// Ended closes an operation.
func (o *operations) Ended(id string, r sftp.Result) {
	o.mu.Lock()
	v, unwatch := o.open[id], o.watches[id]
	delete(o.open, id)
	delete(o.watches, id)
	o.mu.Unlock()
	if v == nil {
		return
	}
	unwatch()
	v.tag = fmt.Sprintf("status %d", r.Status)
	if r.Status != 0 {
		v.failure = access.Printable(r.Text, 200)
	}
	if r.Cut {
		v.failure = "the session ended first"
	}
	for _, s := range []struct {
		name string
		sftp.Content
	}{{access.Stdout, r.Read}, {access.Stdin, r.Written}} {
		if s.Bytes > 0 {
			v.streams = append(v.streams, access.StreamSum{Name: s.name, Bytes: s.Bytes, SHA256: s.SHA256})
		}
	}
	v.end(context.Background())
}
