package tapsink

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/quota"
)

// A phase is how far a response has come.
type phase uint8

const (
	awaitingHeaders phase = iota
	inBody
	ended   // answered to its last byte
	refused // another response was sent in its place
)

// A response is one stream: the answer of a target to one request. Only the
// goroutine of Process touches it.
type response struct {
	server   *Server
	started  time.Time
	first    bool // a message has come
	phase    phase
	decision decision
	masker   *mask.Masker
	literals *mask.Literals
	writer   mask.Writer // nil: the body passes as it is
	watched  bool        // the session is
	answered bool        // Envoy has the answer to the last message of the response

	status   int
	received int64 // bytes of the body, from the target
	sent     int64 // to the client
	masked   int64 // values replaced in headers and trailers
	body     []byte
	record   record

	use     *quota.Use // nil: nothing beyond this response has a limit
	counted int64      // bytes of the body that use knows of
}

// handle answers one message. After an error the response must not go on.
func (r *response) handle(ctx context.Context, in *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	if err := r.checkMode(in); err != nil {
		return nil, err
	}
	switch message := in.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}, nil
	case *extprocv3.ProcessingRequest_RequestBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}, nil
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}}, nil
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		if r.phase != awaitingHeaders {
			return nil, errors.New("headers came twice")
		}
		return r.begin(ctx, in.GetMetadataContext(), message.ResponseHeaders)
	case *extprocv3.ProcessingRequest_ResponseBody:
		if r.phase != inBody {
			return nil, errors.New("body came before the headers or after the end")
		}
		return r.chunk(ctx, message.ResponseBody)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		if r.phase != inBody {
			return nil, errors.New("trailers came before the headers or after the end")
		}
		return r.trailers(ctx, readHeaders(message.ResponseTrailers.GetTrailers()))
	}
	return nil, fmt.Errorf("unknown message %T", in.GetRequest())
}

// checkMode refuses a filter that is set up to let something by: one that does
// not wait for answers, one that sends no bodies, or only as much as fits
// into a buffer.
func (r *response) checkMode(in *extprocv3.ProcessingRequest) error {
	if in.GetObservabilityMode() {
		return errors.New("the filter is in observability mode and does not wait for answers")
	}
	if r.first {
		return nil
	}
	r.first = true
	if mode := in.GetProtocolConfig().GetResponseBodyMode(); mode != filterv3.ProcessingMode_STREAMED {
		return fmt.Errorf("the filter sends response bodies in mode %v, not STREAMED", mode)
	}
	return nil
}

// begin judges the headers of the response.
func (r *response) begin(ctx context.Context, metadata *corev3.Metadata, in *extprocv3.HttpHeaders) (*extprocv3.ProcessingResponse, error) {
	d, err := readDecision(metadata, r.server.cfg.Namespace)
	if err != nil {
		return nil, err
	}
	r.decision = d
	r.record = record{to: r.server.cfg.Recorder, decision: d, left: r.server.cfg.RecordBytes}
	if r.server.cfg.Literals != nil {
		r.literals = r.server.cfg.Literals(d.resource)
	}
	if err := r.resume(); err != nil {
		return nil, err
	}
	hs := readHeaders(in.GetHeaders())
	if r.status, err = strconv.Atoi(first(hs.all(":status"))); err != nil {
		return nil, errors.New("response without a status")
	}
	if r.masker, err = r.server.masker(d, r.status); err != nil {
		return nil, fmt.Errorf("masks of the decision: %w", err)
	}
	if r.writer, err = r.choose(ctx, hs, !in.GetEndOfStream()); err != nil {
		return r.refuse(ctx, err)
	}
	r.phase = inBody
	hs, change := r.maskHeaders(hs)
	if err := r.record.head(ctx, r.status, hs); err != nil {
		return nil, err
	}
	if in.GetEndOfStream() {
		if err := r.end(ctx, nil, nil); err != nil {
			return nil, err
		}
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{
		ResponseHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: change}}}}, nil
}

// resume takes up the counting that began with the request.
func (r *response) resume() error {
	limits := r.decision.obligations.Limits
	if limits.Session == (access.Quota{}) && limits.Hour == (access.Quota{}) {
		return nil
	}
	if r.server.cfg.Usage == nil || r.decision.obligations.Account == "" {
		return errors.New("what the answer uses cannot be counted")
	}
	r.use = r.server.cfg.Usage.Resume(r.decision.session, r.decision.obligations.Account, limits)
	return nil
}

// count counts the first n bytes of the body, before they are passed on.
func (r *response) count(ctx context.Context, n int64) error {
	if n <= r.counted {
		return nil
	}
	err := r.use.Read(ctx, 0, n-r.counted)
	r.counted = n
	return err
}

// choose finds the writer for the body; the error is a refusal or a denial.
func (r *response) choose(ctx context.Context, hs headers, body bool) (mask.Writer, error) {
	length, err := strconv.ParseInt(first(hs.all("content-length")), 10, 64)
	if err == nil && body && length > 0 {
		if err := r.count(ctx, length); err != nil {
			d := r.decision
			denial := quota.DenialOf(err, d.request, d.resource, access.Decision{})
			denial.Rule = "" // not known here
			return nil, denial
		}
	}
	if limit := r.decision.obligations.Limits.Bytes; err == nil && body && limit > 0 && length > limit {
		return nil, &access.Denial{Reason: access.LimitExceeded, Message: fmt.Sprintf("the answer has %d bytes, the policy allows %d", length, limit)}
	}
	if r.decision.kubernetes != nil && r.status == http.StatusSwitchingProtocols {
		return nil, refusal("it leaves HTTP for another protocol")
	}
	w, err := writerFor(r.masker, r.status, hs, body)
	if r.decision.kubernetes != nil && r.decision.kubernetes.Lines {
		if _, isJSON := w.(*mask.JSON); isJSON {
			w = r.masker.NewJSONLines()
		}
	}
	switch {
	case err != nil || r.literals == nil || !body:
		return w, err
	case w == nil:
		return r.literals.NewStream(), nil
	}
	return mask.Chain(w, r.literals.NewStream()), nil
}

// maskHeaders hides what masks and literals find in headers or trailers.
func (r *response) maskHeaders(hs headers) (headers, *extprocv3.HeaderMutation) {
	dropped := describesBody
	if r.masker.Empty() {
		if r.literals == nil {
			return hs, nil
		}
		dropped = func(string) bool { return false } // a literal is replaced by as many bytes
	}
	hide := func(value string) (string, int64) {
		masked, found := r.masker.Text([]byte(value))
		value, n := r.literals.Replace(string(masked))
		if found {
			n++
		}
		return value, n
	}
	hs, change, n := hs.masked(hide, dropped)
	r.masked += n
	return hs, change
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// refuse answers with a problem document in place of the response, which is
// possible only before its headers went out.
func (r *response) refuse(ctx context.Context, why error) (*extprocv3.ProcessingResponse, error) {
	denial := &access.Denial{Reason: access.Unreadable, Message: "the target's answer cannot be masked, so it was withheld: " + why.Error()}
	if limit := (*access.Denial)(nil); errors.As(why, &limit) {
		denial = limit
	}
	denial.RequestID, denial.Resource = r.decision.request, r.decision.resource
	denial.Hint = "the target may have acted: look before you repeat it"
	if err := r.record.refused(ctx, denial, r.elapsed()); err != nil {
		return nil, err
	}
	r.phase = refused
	media, body := r.decision.refusal(denial, http.StatusBadGateway)
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(http.StatusBadGateway)},
			Body:    body,
			Details: "response_refused",
			Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{
				set("content-type", media), set("cache-control", "no-store"),
			}},
		}}}, nil
}

func set(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// chunk masks one piece of the body.
func (r *response) chunk(ctx context.Context, in *extprocv3.HttpBody) (*extprocv3.ProcessingResponse, error) {
	r.received += int64(len(in.GetBody()))
	if limit := r.decision.obligations.Limits.Bytes; limit > 0 && r.received > limit {
		return nil, fmt.Errorf("the answer has more than the %d bytes that the policy allows", limit)
	}
	if err := r.count(ctx, r.received); err != nil {
		return nil, err
	}
	out := &extprocv3.CommonResponse{}
	body := in.GetBody()
	if r.writer != nil {
		var err error
		if body, err = r.mask(body, in.GetEndOfStream()); err != nil {
			return nil, err
		}
		out.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: body}}
	}
	var err error
	if in.GetEndOfStream() {
		err = r.end(ctx, body, nil)
	} else {
		err = r.record.chunk(ctx, body)
	}
	if err != nil {
		return nil, err
	}
	r.sent += int64(len(body))
	r.server.metrics.bytes.Add(float64(len(body)))
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
		ResponseBody: &extprocv3.BodyResponse{Response: out}}}, nil
}

// mask returns what of the body may go out now, valid until the next call.
func (r *response) mask(body []byte, last bool) ([]byte, error) {
	out, err := r.writer.Write(body)
	if err != nil {
		return nil, fmt.Errorf("the answer cannot be masked: %w", err)
	}
	r.body = append(r.body[:0], out...)
	if last && r.received > 0 { // no body at all is no broken document
		if out, err = r.writer.Close(); err != nil {
			return nil, fmt.Errorf("the answer cannot be masked: %w", err)
		}
		r.body = append(r.body, out...)
	}
	return r.body, nil
}

// trailers end a body whose last chunk did not say that it was the last. What
// the masker still holds then cannot be sent any more: Envoy takes no body in
// answer to trailers. Only text that ends in the middle of something that might
// be secret is held, so this is rare; it is refused rather than cut short.
func (r *response) trailers(ctx context.Context, hs headers) (*extprocv3.ProcessingResponse, error) {
	if r.writer != nil && r.received > 0 {
		rest, err := r.writer.Close()
		if err != nil {
			return nil, fmt.Errorf("the answer cannot be masked: %w", err)
		}
		if len(rest) > 0 {
			return nil, errors.New("trailers came while the end of the body was held back")
		}
	}
	hs, change := r.maskHeaders(hs)
	if err := r.end(ctx, nil, hs); err != nil {
		return nil, err
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{
		ResponseTrailers: &extprocv3.TrailersResponse{HeaderMutation: change}}}, nil
}

// end records the last of the response. Only then may it be answered.
func (r *response) end(ctx context.Context, body []byte, trailers headers) error {
	if err := r.record.end(ctx, body, trailers, r.outcome(int64(len(body)), "")); err != nil {
		return err
	}
	r.phase = ended
	return nil
}

func (r *response) elapsed() time.Duration { return r.server.cfg.Clock().Sub(r.started) }

func (r *response) replaced() int64 {
	if r.writer == nil {
		return r.masked
	}
	return r.masked + r.writer.Masked()
}

// outcome describes how the response ended after more bytes of body.
func (r *response) outcome(more int64, fault string) access.Ended {
	return access.Ended{
		Tag: strconv.Itoa(r.status), Bytes: r.sent + more, Masked: r.replaced(),
		Duration: r.elapsed(), Error: fault,
	}
}

// finish comes when the stream is over for whatever reason. It records a
// response that was cut and turns err into what Envoy is told: an error, unless
// Envoy has the answer to the very last message of the response.
func (r *response) finish(ctx context.Context, err error) error {
	r.endUse(ctx)
	m := &r.server.metrics
	m.masked.Add(float64(r.replaced()))
	if r.answered {
		m.responses.WithLabelValues(r.result()).Inc()
		return nil
	}
	m.responses.WithLabelValues("cut").Inc()
	if err == nil {
		err = errLeft
	}
	r.server.log.Warn("response withheld", "request", r.decision.request, "session", r.decision.session,
		"resource", r.decision.resource, "status", r.status, "bytes", r.sent, "cause", err)
	if r.decision.request != "" && r.phase != ended && r.phase != refused {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		if err := r.record.end(ctx, nil, nil, r.outcome(0, r.told(err))); err != nil {
			r.server.log.Error("the end of a response could not be recorded", "request", r.decision.request, "error", err)
		}
	}
	return errWithheld
}

// endUse gives back what was reserved and not used, and counts the time.
func (r *response) endUse(ctx context.Context) {
	if r.use == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := r.use.End(ctx, r.elapsed()); err != nil {
		r.server.log.Warn("the use of a response is counted too high", "request", r.decision.request, "error", err)
	}
}

// result names how a response that was answered ended, for the metric.
func (r *response) result() string {
	switch {
	case r.phase == refused:
		return "refused"
	case r.replaced() > 0:
		return "masked"
	}
	return "passed"
}

// told words a fault for the recording: what the client received is a reset or
// Envoy's own answer, and why.
func (r *response) told(err error) string {
	if r.phase == awaitingHeaders {
		return "withheld: " + err.Error()
	}
	return "reset: " + err.Error()
}
