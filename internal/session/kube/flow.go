package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/kube"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/quota"
	"chaperone.dev/chaperone/internal/session/transcript"
)

// Times of the end of a flow.
const (
	killGrace    = 100 * time.Millisecond // for a client that does not read
	lastReading  = time.Second            // for a client to see that it is over
	recordWithin = 5 * time.Second
)

// errClientLeft and errOver end a flow without a word.
var (
	errClientLeft = errors.New("client left")
	errOver       = errors.New("over")
)

// A limitError is a limit that a flow ran into.
type limitError string

func (e limitError) Error() string { return string(e) }

// A flow is one permit under way.
type flow struct {
	*Service
	permit   Permit
	call     *access.K8s
	resource Resource
	log      *slog.Logger
	began    time.Time

	placed  bool   // it has one of places
	release func() // nil: it is not tied to its session

	masker *mask.Masker // nil: nothing is masked on the way to the client
	record *transcript.Transcript
	use    *quota.Use
	stop   context.CancelCauseFunc

	// What output, which is one goroutine, has seen.
	bytes, masked int64
	status        []byte // what the API server said on the error channel
}

// A relay carries frames between client and target.
type relay interface {
	// input carries what the client sends until it has no more.
	input(ctx context.Context) error
	// output carries what the target sends until it has no more, and all of it
	// has gone on.
	output(ctx context.Context) error
	// farewell tells the client why the flow ends.
	farewell(d *access.Denial)
}

// prepare makes what the flow's obligations ask for.
func (f *flow) prepare() *access.Denial {
	d := f.permit.Decision
	m, err := kube.Answer{}.Masker(d.Obligations.Masks, 0)
	switch {
	case err != nil:
		return f.denial(access.Unavailable, "the gateway cannot mask as the policy says", "tell those who keep the policy")
	case m.Detects() && f.forwards():
		return f.denial(access.Unsupported, "what goes through a forwarded port cannot be masked, and "+d.Rule()+" masks it", "exec and attach can be masked")
	case m.Detects():
		f.masker = m
	}
	f.record = f.newTranscript()
	limits := d.Obligations.Limits
	if limits.Session == (access.Quota{}) && limits.Hour == (access.Quota{}) {
		return nil
	}
	if f.deps.Usage == nil || d.Obligations.Account == "" {
		return f.denial(access.Unavailable, "the gateway cannot count what this would use", "tell the operators if it lasts")
	}
	f.use = f.deps.Usage.Resume(f.permit.Request.Session, d.Obligations.Account, limits)
	return nil
}

func (f *flow) newTranscript() *transcript.Transcript {
	c := transcript.Config{Text: !f.forwards(), Terminal: f.call.Terminal, Bound: f.cfg.RecordedOutput,
		Append: func(ctx context.Context, c *access.StreamChunk) error {
			return f.deps.Recorder.Append(ctx, access.Written, f.event(access.Event{Stream: c}))
		}}
	if f.call.Terminal {
		c.Bound = f.cfg.RecordedTerminal
	}
	c.Full = func() error { return limitError(fmt.Sprintf("the terminal showed more than %d bytes", c.Bound)) }
	return transcript.New(c)
}

// forwards reports whether this is a port-forward, of whose bytes nothing is
// known.
func (f *flow) forwards() bool { return f.call.Subresource == "portforward" }

func (f *flow) denial(reason access.Reason, message, hint string) *access.Denial {
	return &access.Denial{RequestID: f.permit.Request.ID, Reason: reason, Rule: f.permit.Decision.Rule(), Message: message, Hint: hint,
		Resource: f.permit.Request.Resource.Name, Revision: f.permit.Decision.Revision}
}

func (f *flow) event(e access.Event) access.Event {
	e.Session, e.Request = f.permit.Request.Session, f.permit.Request.ID
	return e
}

// run carries everything until one side has no more or something ends it. Both
// connections are closed when it returns, and the client knows why.
func (f *flow) run(ctx context.Context, r relay, client, target net.Conn) error {
	ctx, f.stop = context.WithCancelCause(ctx)
	defer f.stop(nil)
	defer f.limitTime()()
	var reading, writing sync.WaitGroup
	part := func(work func(context.Context) error, end error) func() {
		return func() {
			defer func() {
				if fault := recover(); fault != nil {
					f.log.Error("stream panics", "fault", fault)
					f.stop(f.denial(access.Unavailable, "the gateway failed", ""))
				}
			}()
			err := work(ctx)
			if err == nil {
				err = end
			}
			f.stop(err)
		}
	}
	reading.Go(part(r.input, errClientLeft))
	writing.Go(part(r.output, errOver))
	<-ctx.Done()
	cause := context.Cause(ctx)
	_ = target.Close() // nothing more comes
	grace := killGrace
	if errors.Is(cause, errOver) {
		grace = lastReading
	}
	_ = client.SetDeadline(time.Now().Add(grace)) // a client that does not read must not keep us
	writing.Wait()
	_ = client.SetDeadline(time.Now().Add(grace))
	var denial *access.Denial
	if !errors.Is(cause, errOver) && !errors.Is(cause, errClientLeft) {
		denial = f.denialOf(cause)
		r.farewell(denial)
	}
	if half, ok := client.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // it may have left
	}
	reading.Wait()
	discard(client) // what is unread would keep the client from reading our last words
	_ = client.Close()
	if denial != nil {
		return denial
	}
	return nil
}

// discard reads to the end, or until the connection's deadline.
func discard(c net.Conn) {
	buffer := make([]byte, 4096)
	for {
		if _, err := c.Read(buffer); err != nil {
			return
		}
	}
}

// limitTime ends the flow when it has run for as long as it may.
func (f *flow) limitTime() (stop func()) {
	limit := f.permit.Decision.Obligations.Limits.Time
	if left := f.use.Left(); left > 0 && (limit == 0 || left < limit) {
		limit = left
	}
	if limit == 0 {
		return func() {}
	}
	timer := time.AfterFunc(limit, func() { f.stop(limitError("it ran longer than " + limit.Round(time.Millisecond).String())) })
	return func() { timer.Stop() }
}

// denialOf words what ended a flow.
func (f *flow) denialOf(cause error) *access.Denial {
	var denial *access.Denial
	var limit limitError
	switch {
	case errors.As(cause, &denial): // killed, expired, limits, …
		d := *denial
		d.RequestID, d.Resource, d.Revision = f.permit.Request.ID, f.permit.Request.Resource.Name, f.permit.Decision.Revision
		return &d
	case errors.As(cause, &limit):
		return f.denial(access.LimitExceeded, "it was ended: "+string(limit), "ask for less at once")
	case errors.Is(cause, errProtocol):
		return f.denial(access.Unreadable, "the stream cannot be read: "+cause.Error(), "")
	default:
		f.log.Warn("stream failed", "request", f.permit.Request.ID, "error", cause)
		return f.denial(access.Unavailable, "the stream broke off", "try again; tell the operators if it lasts")
	}
}

// An output is one stream of text to the client: masked, counted and recorded
// before it goes on.
type output struct {
	flow   *flow
	name   string // "" is the error channel
	stream mask.Writer
}

func (f *flow) output(name string) *output { return &output{flow: f, name: name} }

// take returns what of a piece may go on, possibly nothing. It is valid until
// the next call.
func (o *output) take(ctx context.Context, p []byte) ([]byte, error) {
	f := o.flow
	if f.masker == nil || f.forwards() {
		return p, o.pass(ctx, p)
	}
	if o.stream == nil {
		o.stream = f.masker.NewText()
	}
	p, err := o.stream.Write(p)
	if err != nil {
		return nil, f.denial(access.MaskedField, "the output is not text, and "+f.permit.Decision.Rule()+" masks it ("+err.Error()+")", "have the command print text")
	}
	return p, o.pass(ctx, p)
}

// rest returns what was held back. What comes after it begins anew.
func (o *output) rest(ctx context.Context) ([]byte, error) {
	if o.stream == nil {
		return nil, nil
	}
	p, err := o.stream.Close()
	o.flow.masked += o.stream.Masked()
	o.stream = nil
	if err != nil {
		return nil, nil // it was refused before
	}
	return p, o.pass(ctx, p)
}

// maxStatus bounds what the error channel may say.
const maxStatus = 64 << 10

func (o *output) pass(ctx context.Context, p []byte) error {
	f := o.flow
	if len(p) == 0 {
		return nil
	}
	if o.name == "" {
		if len(f.status)+len(p) > maxStatus {
			return broken("more than %d bytes of error", maxStatus)
		}
		f.status = append(f.status, p...)
		return nil
	}
	if most := f.permit.Decision.Obligations.Limits.Bytes; most > 0 && f.bytes+int64(len(p)) > most {
		return limitError(fmt.Sprintf("it sent more than %d bytes", most))
	}
	f.bytes += int64(len(p))
	if err := f.use.Read(ctx, 0, int64(len(p))); err != nil {
		return quota.DenialOf(err, f.permit.Request.ID, f.permit.Request.Resource.Name, f.permit.Decision)
	}
	f.metrics.bytes.WithLabelValues("out").Add(float64(len(p)))
	return f.record.Write(ctx, o.name, p)
}

// stdin records what the client writes.
func (f *flow) stdin(ctx context.Context, name string, p []byte) error {
	if name == access.Stdin && !f.call.Stdin {
		return broken("input that was not asked for")
	}
	f.metrics.bytes.WithLabelValues("in").Add(float64(len(p)))
	return f.record.Write(ctx, name, p)
}

// resized records a size of the terminal.
func (f *flow) resized(ctx context.Context) func(columns, rows int) error {
	return func(columns, rows int) error { return f.record.Size(ctx, "", columns, rows) }
}

// end records how the flow came out.
func (f *flow) end(failure error) {
	ctx, cancel := context.WithTimeout(context.Background(), recordWithin)
	defer cancel()
	ended := &access.Ended{Tag: tagOf(f.status), Bytes: f.bytes, Masked: f.masked, Duration: f.deps.Clock().Sub(f.began)}
	var denial *access.Denial
	if errors.As(failure, &denial) {
		ended.Tag, ended.Error = string(denial.Reason), denial.Message
	}
	var err error
	if ended.Streams, err = f.record.Sums(ctx); err == nil {
		err = f.deps.Recorder.Append(ctx, access.Synced, f.event(access.Event{Ended: ended}))
	}
	if err == nil && f.use != nil {
		err = f.use.End(ctx, ended.Duration)
	}
	if err != nil {
		f.log.Error("the end of a stream is not recorded", "request", f.permit.Request.ID, "error", err)
	}
}

// tagOf says in a word how the command came out.
func tagOf(said []byte) string {
	var status metav1.Status
	switch err := json.Unmarshal(said, &status); {
	case len(said) == 0:
		return ""
	case err != nil:
		return "failed"
	case status.Status == metav1.StatusSuccess:
		return "exit 0"
	case status.Reason == remotecommand.NonZeroExitCodeReason && status.Details != nil:
		for _, c := range status.Details.Causes {
			if n, err := strconv.ParseUint(c.Message, 10, 8); err == nil && c.Type == remotecommand.ExitCodeCauseType {
				return "exit " + strconv.FormatUint(n, 10)
			}
		}
	}
	return "failed"
}

// lastWords are a denial as the error channel carries it.
func lastWords(d *access.Denial) []byte { return d.KubernetesStatus(d.Status()) }
