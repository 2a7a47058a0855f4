package tapsink_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/tapsink"
)

func TestMaskedAndRecorded(t *testing.T) {
	t.Parallel()
	m := newMemory()
	now := time.Unix(1000, 0)
	path, _ := serve(t, tapsink.Config{Recorder: m, Clock: func() time.Time { now = now.Add(time.Second); return now }})
	s := open(t, path, redact("/ssn", "CREDIT_CARD"))
	change := s.must(headersMessage(false, ":status", "200", "content-type", "application/json; charset=utf-8", "content-length", "60",
		"etag", `"x"`, "set-cookie", "sid=1", "set-cookie", "card=4111111111111111", "x-card", "4111111111111111")).
		GetResponseHeaders().GetResponse().GetHeaderMutation()
	removed := strings.Join(change.GetRemoveHeaders(), " ")
	for _, name := range []string{"content-length", "etag", "set-cookie", "x-card"} {
		if !strings.Contains(removed, name) {
			t.Errorf("removed %s, want %s too", removed, name)
		}
	}
	added := ""
	for _, h := range change.GetSetHeaders() {
		added += h.GetHeader().GetKey() + "=" + string(h.GetHeader().GetRawValue()) + ";"
	}
	for _, want := range []string{"set-cookie=sid=1;", "set-cookie=card=***;", "x-card=***;"} {
		if !strings.Contains(added, want) {
			t.Errorf("added %q, want %q too", added, want)
		}
	}
	got := s.body(false, `{"ssn":"123-4`) + s.body(false, `5-6789","card":"4111 1111 11`) + s.body(true, `11 1111"}`)
	s.end()
	want := `{"ssn":"***","card":"***"}`
	if got != want {
		t.Errorf("client got %s, want %s", got, want)
	}
	events := m.wait(t, hasEnded)
	if got := text(events); got != want {
		t.Errorf("recorded %s, want %s", got, want)
	}
	head := events[0].Body
	if head == nil || head.Status != 200 || head.Headers["set-cookie"][0] != "[redacted]" || head.Headers["x-card"][0] != "***" {
		t.Errorf("recorded head: %s", show(events[:1]))
	}
	if ended := endOf(events); ended.Tag != "200" || ended.Bytes != int64(len(want)) || ended.Masked != 4 || ended.Duration <= 0 || ended.Error != "" {
		t.Errorf("recorded end: %+v", ended)
	}
	for _, ev := range events {
		if ev.Request != "req_1" || ev.Session != "ses_1" {
			t.Errorf("event of another request: %s", show([]access.Event{ev}))
		}
	}
	if m.durable["body"] != access.Written || m.durable["ended"] != access.Written {
		t.Errorf("durability: %v", m.durable)
	}
}

func TestWithoutMasksNothingChanges(t *testing.T) {
	t.Parallel()
	m := newMemory()
	path, _ := serve(t, tapsink.Config{Recorder: m, RecordBytes: 6})
	s := open(t, path, access.Obligations{})
	head := s.must(headersMessage(false, ":status", "200", "content-type", "image/png", "content-encoding", "gzip", "content-length", "9"))
	if head.GetResponseHeaders().GetResponse().GetHeaderMutation() != nil {
		t.Errorf("headers changed: %v", head)
	}
	out := s.must(bodyMessage(false, "ab\xff4"))
	if out.GetResponseBody().GetResponse().GetBodyMutation() != nil {
		t.Errorf("body changed: %v", out)
	}
	s.body(true, "56789")
	s.end()
	events := m.wait(t, hasEnded)
	if got := text(events); got != "ab\xff456" {
		t.Errorf("recorded %q", got)
	}
	if last := events[len(events)-2].Body; last == nil || last.Omitted != 3 {
		t.Errorf("recorded %s, want 3 bytes omitted", show(events))
	}
	if ended := endOf(events); ended.Bytes != 9 || ended.Masked != 0 {
		t.Errorf("end: %+v", ended)
	}
}

// TestLargePiecesAreCut: the recorder takes events of up to 1 MiB, however they
// are encoded, and calls of up to 8 MiB.
func TestLargePiecesAreCut(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.refuse = func(_ int, ev access.Event) error {
		if n := len(show([]access.Event{ev})); n > 1<<20 {
			return fmt.Errorf("event of %d bytes", n)
		}
		return nil
	}
	path, _ := serve(t, tapsink.Config{Recorder: m, RecordBytes: 4 << 20})
	s := open(t, path, access.Obligations{})
	s.must(headersMessage(false, ":status", "200"))
	hard, wide := strings.Repeat("\x01", 3<<20), "x"+strings.Repeat("\u20ac", 1<<19)
	s.body(false, hard)
	s.body(true, wide)
	s.end()
	events := m.wait(t, hasEnded)
	got, whole := text(events), hard+wide
	if !strings.HasPrefix(whole, got) || len(whole)-len(got) < len(whole)-4<<20 || len(got) < 4<<20-3 {
		t.Errorf("recorded %d bytes of %d", len(got), len(whole))
	}
	for _, ev := range events {
		if ev.Body != nil && len(ev.Body.Bytes) > 0 {
			t.Fatal("a character was cut")
		}
	}
	if last := events[len(events)-2].Body; last == nil || last.Omitted != int64(len(whole)-len(got)) {
		t.Errorf("recorded %+v before the end", last)
	}
}

// TestNoDecision: a response without a whole decision is not let through.
func TestNoDecision(t *testing.T) {
	t.Parallel()
	whole := func() map[string]any {
		return map[string]any{"request": "r", "session": "s", "resource": "b", "obligations": "{}"}
	}
	without := func(name string) map[string]any { f := whole(); delete(f, name); return f }
	with := func(name string, value any) map[string]any { f := whole(); f[name] = value; return f }
	for name, c := range map[string]struct {
		metadata *corev3.Metadata
		passes   bool
	}{
		"whole":               {metadata(t, whole()), true},
		"none":                {nil, false},
		"no namespace":        {&corev3.Metadata{}, false},
		"empty":               {metadata(t, nil), false},
		"no request":          {metadata(t, without("request")), false},
		"no session":          {metadata(t, without("session")), false},
		"no resource":         {metadata(t, without("resource")), false},
		"no obligations":      {metadata(t, without("obligations")), false},
		"empty obligations":   {metadata(t, with("obligations", "")), false},
		"null obligations":    {metadata(t, with("obligations", "null")), false},
		"obligations, object": {metadata(t, with("obligations", map[string]any{})), false},
		"unknown obligation":  {metadata(t, with("obligations", `{"watermark":true}`)), false},
		"unknown mask":        {metadata(t, with("obligations", `{"masks":[{"xpath":"//ssn"}]}`)), false},
		"bad mask":            {metadata(t, with("obligations", `{"masks":[{"json":"ssn"}]}`)), false},
		"two documents":       {metadata(t, with("obligations", `{}{"masks":[{"json":"/ssn"}]}`)), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, _ := serve(t, tapsink.Config{Recorder: newMemory()})
			s := open(t, path, access.Obligations{})
			s.metadata = c.metadata
			_, err := s.exchange(headersMessage(false, ":status", "200"))
			if (err == nil) != c.passes {
				t.Errorf("err = %v, passes %v", err, c.passes)
			}
			if err != nil && status.Code(err) != codes.Aborted {
				t.Errorf("err = %v, want a plain Aborted", err)
			}
		})
	}
}

func TestUnmaskable(t *testing.T) {
	t.Parallel()
	field, detect := redact("/ssn"), redact("SSN")
	column := access.Obligations{Masks: []access.Mask{{Column: "a.b.c"}}}
	for name, c := range map[string]struct {
		obligations access.Obligations
		headers     []string // "content-type", … after a status of 200, or ":status" first
		passes      bool
	}{
		"json":                    {field, []string{"content-type", "application/json"}, true},
		"problem json":            {field, []string{":status", "500", "content-type", "application/problem+json"}, true},
		"vendor json":             {field, []string{"content-type", `application/vnd.a.b+json; v="1"`}, true},
		"ndjson":                  {field, []string{"content-type", "application/x-ndjson"}, true},
		"events":                  {field, []string{"content-type", "text/event-stream"}, true},
		"text by detector":        {detect, []string{"content-type", "text/plain; charset=ISO-8859-1"}, true},
		"html by detector":        {detect, []string{"content-type", "text/html"}, true},
		"identity":                {field, []string{"content-type", "application/json", "content-encoding", "Identity"}, true},
		"anything without masks":  {access.Obligations{}, []string{":status", "206", "content-type", "video/mp4", "content-encoding", "br"}, true},
		"gzip":                    {field, []string{"content-type", "application/json", "content-encoding", "gzip"}, false},
		"gzip in a second line":   {field, []string{"content-type", "application/json", "content-encoding", "identity", "content-encoding", "br"}, false},
		"gzip in a list":          {field, []string{"content-type", "application/json", "content-encoding", "identity, gzip"}, false},
		"gzip by detector":        {detect, []string{"content-type", "text/plain", "content-encoding", "gzip"}, false},
		"part":                    {field, []string{":status", "206", "content-type", "application/json"}, false},
		"part, other status":      {field, []string{"content-type", "application/json", "content-range", "bytes 0-9/20"}, false},
		"parts":                   {detect, []string{"content-type", "multipart/byteranges; boundary=x"}, false},
		"no type":                 {field, nil, false},
		"two types":               {field, []string{"content-type", "application/json", "content-type", "image/png"}, false},
		"broken type":             {field, []string{"content-type", "application/json; ="}, false},
		"image":                   {detect, []string{"content-type", "image/png"}, false},
		"xml":                     {detect, []string{"content-type", "application/xml"}, false},
		"form":                    {detect, []string{"content-type", "application/x-www-form-urlencoded"}, false},
		"json sequence":           {field, []string{"content-type", "application/json-seq"}, false},
		"grpc":                    {detect, []string{"content-type", "application/grpc"}, false},
		"text with fields":        {field, []string{"content-type", "text/plain"}, false},
		"json in UTF-16":          {field, []string{"content-type", "application/json; charset=utf-16"}, false},
		"text in UTF-16":          {detect, []string{"content-type", "text/plain; charset=utf-16le"}, false},
		"text in UTF-7":           {detect, []string{"content-type", "text/plain; charset=utf-7"}, false},
		"another protocol":        {detect, []string{":status", "101", "content-type", "text/plain"}, false},
		"columns":                 {column, []string{"content-type", "application/json"}, false},
		"json under another name": {field, []string{"content-type", "text/html"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			path, _ := serve(t, tapsink.Config{Recorder: m})
			s := open(t, path, c.obligations)
			pairs := c.headers
			if len(pairs) == 0 || pairs[0] != ":status" {
				pairs = append([]string{":status", "200"}, pairs...)
			}
			out := s.must(headersMessage(false, pairs...))
			instead := out.GetImmediateResponse()
			if (instead == nil) != c.passes {
				t.Fatalf("answer %v, passes %v", out, c.passes)
			}
			if c.passes {
				return
			}
			if instead.GetStatus().GetCode() != 502 || !strings.Contains(string(instead.GetBody()), `"reason":"unreadable"`) ||
				!strings.Contains(string(instead.GetBody()), `"request_id":"req_1"`) {
				t.Errorf("refused with %d %s", instead.GetStatus().GetCode(), instead.GetBody())
			}
			s.end()
			events := m.wait(t, hasEnded)
			if len(events) != 2 || events[0].Denied == nil || events[0].Denied.Denial.Reason != access.Unreadable ||
				events[1].Ended.Tag != "502" || m.durable["denied"] != access.Synced {
				t.Errorf("recorded %s", show(events))
			}
		})
	}
}

func TestNoBody(t *testing.T) {
	t.Parallel()
	for name, pairs := range map[string][]string{
		"no content":     {":status", "204"},
		"not modified":   {":status", "304", "etag", "x"},
		"answer to HEAD": {":status", "200", "content-type", "image/png", "content-encoding", "gzip", "content-length", "7"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			path, _ := serve(t, tapsink.Config{Recorder: m})
			s := open(t, path, redact("/ssn"))
			if out := s.must(headersMessage(true, pairs...)); out.GetResponseHeaders() == nil {
				t.Errorf("answer %v", out)
			}
			s.end()
			if ended := endOf(m.wait(t, hasEnded)); ended.Tag != pairs[1] || ended.Error != "" {
				t.Errorf("ended %+v", ended)
			}
		})
	}
	t.Run("empty body", func(t *testing.T) {
		t.Parallel()
		path, _ := serve(t, tapsink.Config{Recorder: newMemory()})
		s := open(t, path, redact("/ssn"))
		s.json()
		if got := s.body(true, ""); got != "" {
			t.Errorf("got %q", got)
		}
		s.end()
	})
}

func TestTrailers(t *testing.T) {
	t.Parallel()
	m := newMemory()
	path, _ := serve(t, tapsink.Config{Recorder: m})
	s := open(t, path, redact("/ssn", "SSN"))
	s.json()
	s.body(false, `{"ssn":1}`)
	change := s.must(trailersMessage("x-note", "of 123-45-6789", "digest", "d")).GetResponseTrailers().GetHeaderMutation()
	if len(change.GetSetHeaders()) != 1 || string(change.GetSetHeaders()[0].GetHeader().GetRawValue()) != "of ***" ||
		!strings.Contains(strings.Join(change.GetRemoveHeaders(), " "), "digest") {
		t.Errorf("trailers change by %v", change)
	}
	s.end()
	if events := m.wait(t, hasEnded); text(events) != `{"ssn":"***"}` || !strings.Contains(show(events), "of ***") || endOf(events).Masked != 2 {
		t.Errorf("recorded %s", show(events))
	}
}

// TestResets: what goes wrong after the headers ends the stream with an error,
// never with OK, which would let the rest of the response through.
func TestResets(t *testing.T) {
	t.Parallel()
	limited := redact("/ssn")
	limited.Limits.Bytes = 10
	for name, c := range map[string]struct {
		obligations access.Obligations
		headers     []string
		last        *extprocv3.ProcessingRequest
		cause       string
	}{
		"not JSON":            {redact("/ssn"), nil, bodyMessage(false, "<html>"), "cannot be masked"},
		"cut document":        {redact("/ssn"), nil, bodyMessage(true, `{"a":`), "cannot be masked"},
		"cut before trailers": {redact("/ssn"), nil, trailersMessage("a", "b"), ""},
		"headers again":       {redact("/ssn"), nil, headersMessage(false, ":status", "200"), "twice"},
		"over the limit":      {limited, nil, bodyMessage(false, `[1,2,3,4,5,6]`), "10 bytes"},
		"held at trailers":    {redact("SSN"), []string{":status", "200", "content-type", "text/plain"}, trailersMessage("a", "b"), "held back"},
		"unknown message":     {redact("/ssn"), nil, &extprocv3.ProcessingRequest{}, "unknown message"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			path, _ := serve(t, tapsink.Config{Recorder: m})
			s := open(t, path, c.obligations)
			if c.headers == nil {
				s.json()
			} else {
				s.must(headersMessage(false, c.headers...))
			}
			if name == "held at trailers" {
				s.body(false, "is 123-45-")
			}
			if name == "cut before trailers" {
				s.body(false, "[")
			}
			if out, err := s.exchange(c.last); status.Code(err) != codes.Aborted {
				t.Errorf("answer %v, %v; want Aborted", out, err)
			}
			if ended := endOf(m.wait(t, hasEnded)); !strings.HasPrefix(ended.Error, "reset: ") || !strings.Contains(ended.Error, c.cause) {
				t.Errorf("recorded %+v, want %q", ended, c.cause)
			}
		})
	}
}

func TestLimitKnownBeforehand(t *testing.T) {
	t.Parallel()
	m := newMemory()
	path, _ := serve(t, tapsink.Config{Recorder: m})
	s := open(t, path, access.Obligations{Limits: access.Limits{Bytes: 10}})
	out := s.must(headersMessage(false, ":status", "200", "content-length", "11"))
	if body := string(out.GetImmediateResponse().GetBody()); !strings.Contains(body, `"reason":"limit-exceeded"`) {
		t.Errorf("answer %v", out)
	}
	s.end()
}

// TestNobodyCounts: a limit that holds beyond one request needs somebody who
// counts what the answer uses, and the account to count it on.
func TestNobodyCounts(t *testing.T) {
	t.Parallel()
	m := newMemory()
	path, _ := serve(t, tapsink.Config{Recorder: m})
	s := open(t, path, access.Obligations{Account: "a", Limits: access.Limits{Hour: access.Quota{Bytes: 10}}})
	if out, err := s.exchange(headersMessage(false, ":status", "200", "content-length", "1")); status.Code(err) != codes.Aborted {
		t.Errorf("answer %v, %v; want Aborted", out, err)
	}
	if ended := endOf(m.wait(t, hasEnded)); !strings.Contains(ended.Error, "cannot be counted") {
		t.Errorf("recorded %+v", ended)
	}
}

// TestNeverOKBeforeTheEnd cuts the stream at every point, from both sides: the
// status that Envoy sees is not OK unless the last answer reached it.
func TestNeverOKBeforeTheEnd(t *testing.T) {
	t.Parallel()
	messages := []*extprocv3.ProcessingRequest{
		headersMessage(false, ":status", "200", "content-type", "application/json"),
		bodyMessage(false, `{"ssn":`), bodyMessage(true, `"123-45-6789"}`),
	}
	for n := range len(messages) + 1 {
		t.Run(fmt.Sprintf("half closed after %d", n), func(t *testing.T) {
			t.Parallel()
			path, _ := serve(t, tapsink.Config{Recorder: newMemory()})
			s := open(t, path, redact("/ssn"))
			for _, in := range messages[:n] {
				s.must(in)
			}
			if err := s.CloseSend(); err != nil {
				t.Fatal(err)
			}
			_, err := s.Recv()
			if whole := n == len(messages); errors.Is(err, io.EOF) != whole {
				t.Errorf("stream ended with %v after %d of %d messages", err, n, len(messages))
			}
		})
		if n == len(messages) {
			continue
		}
		// Events: the head, the first chunk, the last chunk together with the end.
		t.Run(fmt.Sprintf("recorder fails at event %d", n), func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			m.refuse = func(stored int, _ access.Event) error {
				if stored >= n {
					return errors.New("disk full")
				}
				return nil
			}
			path, _ := serve(t, tapsink.Config{Recorder: m})
			s := open(t, path, redact("/ssn"))
			var err error
			got := ""
			for _, in := range messages {
				var out *extprocv3.ProcessingResponse
				if out, err = s.exchange(in); err != nil {
					break
				}
				got += string(out.GetResponseBody().GetResponse().GetBodyMutation().GetBody())
			}
			if status.Code(err) != codes.Aborted || strings.Contains(got, "}") {
				t.Errorf("got %q and %v, though the recorder failed", got, err)
			}
		})
	}
}

// deafStream is a stream to which nothing can be sent from the n-th answer on,
// though it lives: what gRPC does with a message that it cannot encode.
type deafStream struct {
	grpc.ServerStream
	in   []*extprocv3.ProcessingRequest
	ctx  context.Context
	left int
}

func (d *deafStream) Context() context.Context { return d.ctx }

func (d *deafStream) Recv() (*extprocv3.ProcessingRequest, error) {
	if len(d.in) == 0 {
		return nil, io.EOF
	}
	in := d.in[0]
	d.in = d.in[1:]
	return in, nil
}

func (d *deafStream) Send(*extprocv3.ProcessingResponse) error {
	if d.left--; d.left < 0 {
		return status.Error(codes.ResourceExhausted, "cannot be sent")
	}
	return nil
}

func TestUnsentAnswerIsNoEnd(t *testing.T) {
	t.Parallel()
	for n := range 3 {
		m := newMemory()
		s, err := tapsink.New(tapsink.Config{Recorder: m})
		if err != nil {
			t.Fatal(err)
		}
		in := []*extprocv3.ProcessingRequest{headersMessage(false, ":status", "200", "content-type", "application/json"), bodyMessage(true, `{}`)}
		for _, message := range in {
			message.MetadataContext = decided(t, redact("/ssn"))
			message.ProtocolConfig = &extprocv3.ProtocolConfiguration{ResponseBodyMode: filterv3.ProcessingMode_STREAMED}
		}
		ctx, cancel := context.WithCancel(t.Context())
		err = s.Process(&deafStream{in: in, ctx: ctx, left: n})
		if whole := n == 2; (err == nil) != whole {
			t.Errorf("after %d of 2 answers Process = %v", n, err)
		}
		cancel()
		s.Close()
	}
}

func TestPanicIsAnError(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.refuse = func(n int, ev access.Event) error {
		if ev.Body != nil && ev.Body.Text != "" {
			panic("recorder")
		}
		return nil
	}
	path, _ := serve(t, tapsink.Config{Recorder: unlocked{m}})
	s := open(t, path, redact("/ssn"))
	s.json()
	if out, err := s.exchange(bodyMessage(true, `{}`)); status.Code(err) != codes.Aborted {
		t.Errorf("answer %v, %v", out, err)
	}
}

// unlocked calls refuse without the lock, so that it may panic.
type unlocked struct{ *memory }

func (u unlocked) Append(ctx context.Context, d access.Durability, evs ...access.Event) error {
	for _, ev := range evs {
		if err := u.refuse(0, ev); err != nil {
			return err
		}
	}
	return nil
}

func TestWrongFilterSettings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mode          filterv3.ProcessingMode_BodySendMode
		observability bool
		passes        bool
	}{
		"streamed":         {filterv3.ProcessingMode_STREAMED, false, true},
		"buffered partial": {filterv3.ProcessingMode_BUFFERED_PARTIAL, false, false},
		"buffered":         {filterv3.ProcessingMode_BUFFERED, false, false},
		"none":             {filterv3.ProcessingMode_NONE, false, false},
		"observability":    {filterv3.ProcessingMode_STREAMED, true, false},
	} {
		path, _ := serve(t, tapsink.Config{Recorder: newMemory()})
		s := open(t, path, redact("/ssn"))
		s.sent = true
		in := headersMessage(false, ":status", "200", "content-type", "application/json")
		in.ProtocolConfig = &extprocv3.ProtocolConfiguration{ResponseBodyMode: c.mode}
		in.ObservabilityMode = c.observability
		if _, err := s.exchange(in); (err == nil) != c.passes {
			t.Errorf("%s: err = %v", name, err)
		}
	}
}

func TestClientLeaves(t *testing.T) {
	t.Parallel()
	m := newMemory()
	path, _ := serve(t, tapsink.Config{Recorder: m})
	s := open(t, path, redact("/ssn"))
	s.json()
	s.body(false, `{"ssn":1,`)
	s.cancel()
	ended := endOf(m.wait(t, hasEnded))
	if !strings.Contains(ended.Error, "cut before its end") || ended.Bytes != int64(len(`{"ssn":"***",`)) || ended.Masked != 1 {
		t.Errorf("recorded %+v", ended)
	}
}

func TestIdle(t *testing.T) {
	t.Parallel()
	m := newMemory()
	path, _ := serve(t, tapsink.Config{Recorder: m, Idle: 50 * time.Millisecond})
	s := open(t, path, redact("/ssn"))
	s.json()
	if _, err := s.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("err = %v", err)
	}
	if ended := endOf(m.wait(t, hasEnded)); !strings.Contains(ended.Error, "nothing happened") {
		t.Errorf("recorded %+v", ended)
	}
}

func TestSessionEnds(t *testing.T) {
	t.Parallel()
	m := newMemory()
	session, kill := context.WithCancelCause(t.Context())
	var asked string
	path, _ := serve(t, tapsink.Config{Recorder: m, Watch: func(id string) (context.Context, func()) { asked = id; return session, func() {} }})
	s := open(t, path, redact("/ssn"))
	s.json()
	s.body(false, `[1,`)
	kill(&access.Denial{Reason: access.SessionEnded, Message: "killed by an operator"})
	if _, err := s.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("err = %v", err)
	}
	if ended := endOf(m.wait(t, hasEnded)); !strings.Contains(ended.Error, "killed by an operator") || asked != "ses_1" {
		t.Errorf("recorded %+v of %q", ended, asked)
	}
}

// TestSessionEndedBefore: of an answer that comes after its session has ended
// nothing leaves, not even that there is one.
func TestSessionEndedBefore(t *testing.T) {
	t.Parallel()
	m := newMemory()
	session, kill := context.WithCancelCause(t.Context())
	path, _ := serve(t, tapsink.Config{Recorder: m, Watch: func(string) (context.Context, func()) { return session, func() {} }})
	twin := open(t, path, redact("/ssn"))
	twin.json()
	kill(&access.Denial{Reason: access.SessionEnded, Message: "killed by an operator"})
	for range 20 {
		s := open(t, path, redact("/ssn"))
		if out, err := s.exchange(headersMessage(false, ":status", "200", "content-type", "application/json")); status.Code(err) != codes.Aborted {
			t.Fatalf("answered with %v %v", out, err)
		}
	}
	if ended := endOf(m.wait(t, hasEnded)); !strings.Contains(ended.Error, "killed by an operator") {
		t.Errorf("recorded %+v", ended)
	}
}

func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	path, _ := serve(t, tapsink.Config{Recorder: newMemory(), MaxStreams: 1})
	one := open(t, path, redact("/ssn"))
	one.json()
	two := open(t, path, redact("/ssn"))
	if _, err := two.exchange(headersMessage(true, ":status", "204")); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("err = %v", err)
	}
	if got := one.body(true, `{"ssn":1}`); got != `{"ssn":"***"}` {
		t.Errorf("the first goes on with %q", got)
	}
	one.end()
}

func TestRequestPhase(t *testing.T) {
	t.Parallel()
	path, _ := serve(t, tapsink.Config{Recorder: newMemory()})
	s := open(t, path, redact("/ssn"))
	out := s.must(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{}}})
	if out.GetRequestHeaders() == nil {
		t.Errorf("answer %v", out)
	}
	s.must(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{}}})
	s.must(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}})
	s.json()
	if got := s.body(true, `{"ssn":1}`); got != `{"ssn":"***"}` {
		t.Errorf("got %q", got)
	}
	s.end()
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	path, stop := serve(t, tapsink.Config{Recorder: newMemory(), Registerer: registry})
	s := open(t, path, redact("/ssn"))
	s.json()
	s.body(true, `{"ssn":1}`)
	s.end()
	stop()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"chaperone_tap_streams": 0, "chaperone_tap_responses_total/masked": 1, "chaperone_tap_masked_total": 1,
		"chaperone_tap_body_bytes_total": float64(len(`{"ssn":"***"}`)),
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s = %v, want %v", name, v, want)
		}
	}
	if _, err := tapsink.New(tapsink.Config{Recorder: newMemory(), Registerer: registry}); err == nil {
		t.Error("registered twice")
	}
	if _, err := tapsink.New(tapsink.Config{}); err == nil {
		t.Error("made without a recorder")
	}
}

// TestCredentialIsHidden: a target that echoes what it was sent shows nobody
// the credential, masks or none, however the body is split; everything else
// stays as it is, its length too.
func TestCredentialIsHidden(t *testing.T) {
	t.Parallel()
	const key = "k3y-of-billing"
	hidden := strings.Repeat("*", len(key))
	literals := func(resource string) *mask.Literals {
		if resource != "billing" {
			return nil
		}
		return mask.NewLiterals(key)
	}
	for name, c := range map[string]struct {
		obligations access.Obligations
		pieces      []string
		want        string
		length      string // what becomes of content-length
	}{
		"without masks": {access.Obligations{}, []string{`{"got":"` + key[:5], key[5:] + `","a":1}`}, `{"got":"` + hidden + `","a":1}`, "kept"},
		"with masks":    {redact("/ssn"), []string{`{"ssn":"1","got":"` + key + `"}`}, `{"ssn":"***","got":"` + hidden + `"}`, "removed"},
		"at the end":    {access.Obligations{}, []string{"x " + key, ""}, "x " + hidden, "kept"},
		"its beginning": {access.Obligations{}, []string{"x " + key[:9]}, "x " + key[:9], "kept"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			path, _ := serve(t, tapsink.Config{Recorder: m, Literals: literals})
			s := open(t, path, c.obligations)
			change := s.must(headersMessage(false, ":status", "200", "content-type", "application/json", "content-length", "99", "x-echo", "key="+key)).
				GetResponseHeaders().GetResponse().GetHeaderMutation()
			if len(change.GetSetHeaders()) != 1 || string(change.GetSetHeaders()[0].GetHeader().GetRawValue()) != "key="+hidden {
				t.Errorf("headers change by %v", change)
			}
			if got := slices.Contains(change.GetRemoveHeaders(), "content-length"); got != (c.length == "removed") {
				t.Errorf("content-length is removed: %v", got)
			}
			got := ""
			for i, piece := range c.pieces {
				got += s.body(i == len(c.pieces)-1, piece)
			}
			s.end()
			events := m.wait(t, hasEnded)
			if got != c.want || text(events) != c.want || strings.Contains(show(events), key) {
				t.Errorf("got %q, recorded %s", got, show(events))
			}
		})
	}
}
