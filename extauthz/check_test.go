package extauthz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/approval"
	"chaperone.dev/chaperone/internal/identity"
)

func get(headers ...string) *authv3.CheckRequest {
	return question(billing(), "", append([]string{":method", "GET", ":path", "/http/billing/customers/1?full=1",
		"authorization", "Bearer good"}, headers...)...)
}

// An outcome is a CheckResponse in short.
type outcome struct {
	forwarded bool
	status    int
	headers   map[string]string
	removed   []string
	body      map[string]any
	metadata  map[string]any
}

func checked(t *testing.T, s *Server, ctx context.Context, in *authv3.CheckRequest) outcome {
	t.Helper()
	resp, err := s.Check(ctx, in)
	if err != nil {
		t.Fatalf("a gRPC error: %v", err)
	}
	o := outcome{headers: map[string]string{}}
	if ok := resp.GetOkResponse(); ok != nil {
		if codes.Code(resp.GetStatus().GetCode()) != codes.OK {
			t.Fatalf("status %v with an OK response", resp.GetStatus())
		}
		o.forwarded, o.removed = true, ok.GetHeadersToRemove()
		for _, h := range ok.GetHeaders() {
			o.headers[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
		}
		o.metadata, _ = resp.GetDynamicMetadata().AsMap()[MetadataKey].(map[string]any)
		return o
	}
	if codes.Code(resp.GetStatus().GetCode()) == codes.OK || resp.GetDynamicMetadata() != nil {
		t.Fatalf("a refusal that Envoy could take for an allow: %v", resp)
	}
	denied := resp.GetDeniedResponse()
	o.status = int(denied.GetStatus().GetCode())
	for _, h := range denied.GetHeaders() {
		o.headers[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
	}
	if err := json.Unmarshal([]byte(denied.GetBody()), &o.body); err != nil {
		t.Fatalf("body %q: %v", denied.GetBody(), err)
	}
	return o
}

func (o outcome) refused(t *testing.T, status int, reason access.Reason) {
	t.Helper()
	if o.forwarded || o.status != status || o.body["reason"] != string(reason) || o.body["type"] != "urn:chaperone:denial:"+string(reason) ||
		o.body["status"] != float64(status) || o.headers["content-type"] != access.ProblemType || o.headers["cache-control"] != "no-store" {
		t.Fatalf("got %+v; want %d %s", o, status, reason)
	}
	if id, _ := o.body["request_id"].(string); !strings.HasPrefix(id, "req_") {
		t.Fatalf("no request id: %+v", o.body)
	}
}

func TestAllow(t *testing.T) {
	t.Parallel()
	w := newWorld()
	masks := []access.Mask{{JSON: "/customers/*/ssn", With: access.Redact}}
	w.decide = func(r access.Request) access.Decision {
		want := &access.HTTPCall{Method: "GET", Host: "billing.internal", Path: "/customers/1", Query: map[string][]string{"full": {"1"}}}
		if !reflect.DeepEqual(r.Action.HTTP, want) || r.Session != "ses_1" || !r.Time.Equal(start) || r.Principal.Subject != "sub-good" || r.Resource.Name != "billing" {
			t.Errorf("decided on %+v", r)
		}
		return access.Decision{Effect: access.Allow, Rules: rule("read"), Obligations: access.Obligations{Masks: masks, Limits: access.Limits{Bytes: 9}}}
	}
	o := checked(t, w.server(t, nil), t.Context(), get())
	if !o.forwarded || !slices.Equal(w.takeSteps(), []string{"verify", "session", "decide", "append decided+executed", "release"}) {
		t.Fatalf("got %+v", o)
	}
	if !slices.Equal(o.removed, []string{"authorization", "proxy-authorization", "cookie"}) {
		t.Errorf("headers removed: %v", o.removed)
	}
	id := w.events[0].Request
	want := map[string]string{"x-chaperone-request-id": id, "x-chaperone-session-id": "ses_1", "x-chaperone-issuer": "dex",
		"x-chaperone-subject": "sub-good", "x-chaperone-user": "ann@example.com", "x-chaperone-subagent": "agent"}
	if !reflect.DeepEqual(o.headers, want) {
		t.Errorf("headers set: %v", o.headers)
	}
	var obligations access.Obligations
	if err := json.Unmarshal([]byte(o.metadata["obligations"].(string)), &obligations); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(obligations.Masks, masks) || obligations.Limits.Bytes != 9 ||
		o.metadata["request"] != id || o.metadata["session"] != "ses_1" || o.metadata["resource"] != "billing" {
		t.Errorf("metadata %v", o.metadata)
	}
	if w.events[0].Decided.Request.ID != id || w.events[1].Executed.HTTP.Path != "/customers/1" || w.events[1].Session != "ses_1" {
		t.Errorf("events %+v", w.events)
	}
	families, err := w.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "chaperone_extauthz_checks_total" && (len(f.GetMetric()) != 1 || f.GetMetric()[0].GetCounter().GetValue() != 1) {
			t.Errorf("metrics %v", f)
		}
	}
}

// A limit that holds beyond one request needs somebody who counts.
func TestNobodyCounts(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]access.Limits{
		"of an hour": {Hour: access.Quota{Statements: 9}}, "of a session": {Session: access.Quota{Bytes: 9}},
	} {
		w := newWorld()
		w.decide = func(access.Request) access.Decision {
			return access.Decision{Effect: access.Allow, Rules: rule("read"), Obligations: access.Obligations{Limits: limits}}
		}
		t.Log(name)
		checked(t, w.server(t, nil), t.Context(), get()).refused(t, 503, access.Unavailable)
	}
}

func TestBodyIsRecordedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld()
	o := checked(t, w.server(t, nil), t.Context(), question(billing("body", "whole"), `{"a":1}`,
		":method", "POST", ":path", "/http/billing/x", "authorization", "Bearer good", "content-type", "application/json"))
	if !o.forwarded {
		t.Fatalf("got %+v", o)
	}
	decided, executed := w.events[0].Decided.Request.Action.HTTP, w.events[1].Executed.HTTP
	if decided.Body == nil || executed.Body != nil || executed.BodyDigest == "" || executed.BodyDigest != decided.BodyDigest {
		t.Errorf("decided on %+v, executed %+v", decided, executed)
	}
}

func TestUnauthenticatedLooksTheSame(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.verify = func(token string) (access.Principal, error) {
		return access.Principal{}, fmt.Errorf("%w: %s", identity.ErrTokenRejected, token)
	}
	s := w.server(t, nil)
	var bodies []map[string]any
	for name, in := range map[string]*authv3.CheckRequest{
		"no token":         question(billing(), "", ":method", "GET", ":path", "/http/billing/"),
		"two tokens":       get("authorization", "Bearer other"),
		"rejected":         get(),
		"no such resource": question(map[string]string{}, "", ":method", "GET", ":path", "/http/nope/", "authorization", "Bearer x"),
		"unreadable path":  question(billing(), "", ":method", "GET", ":path", "/http/billing/%2525", "authorization", "Bearer x"),
	} {
		o := checked(t, s, t.Context(), in)
		o.refused(t, http.StatusUnauthorized, access.Unauthenticated)
		if o.headers["www-authenticate"] != "Bearer" {
			t.Errorf("%s: headers %v", name, o.headers)
		}
		delete(o.body, "request_id")
		bodies = append(bodies, o.body)
	}
	for _, b := range bodies[1:] {
		if !reflect.DeepEqual(b, bodies[0]) {
			t.Errorf("%v differs from %v", b, bodies[0])
		}
	}
	for _, e := range w.events {
		if e.Denied == nil || e.Denied.Cause == "" || e.Denied.Client != "192.0.2.7:4711" || strings.Contains(e.Denied.Text, "Bearer") {
			t.Errorf("recorded %+v", e)
		}
	}
	if len(w.events) != 5 {
		t.Errorf("%d events", len(w.events))
	}
}

func TestFaultsRefuse(t *testing.T) {
	t.Parallel()
	down := errors.New("down: secret detail")
	killed, kill := context.WithCancelCause(context.Background())
	kill(&access.Denial{Reason: access.SessionEnded, Message: "killed by an operator"})
	for _, c := range []struct {
		name   string
		world  func(*world)
		in     *authv3.CheckRequest
		status int
		reason access.Reason
	}{
		{"no verdict on the token", func(w *world) {
			w.verify = func(string) (access.Principal, error) { return access.Principal{}, down }
		}, get(), 503, access.Unavailable},
		{"nothing asked", nil, nil, 503, access.Unavailable},
		{"no route", nil, question(nil, "", ":method", "GET", ":path", "/http/x/", "authorization", "Bearer good"), 404, access.UnknownResource},
		{"no such resource", nil, question(billing("resource", "nope"), "", ":method", "GET", ":path", "/http/billing/", "authorization", "Bearer good"), 404, access.UnknownResource},
		{"resource of another kind", nil, question(billing("resource", "orders"), "", ":method", "GET", ":path", "/http/billing/", "authorization", "Bearer good"), 404, access.UnknownResource},
		{"resource that no policy opens", func(w *world) { w.mayConnect = false }, get(), 404, access.UnknownResource},
		{"path", nil, question(billing(), "", ":method", "GET", ":path", "/http/billing/%2e%2e/x", "authorization", "Bearer good"), 400, access.Unreadable},
		{"method", nil, question(billing(), "", ":method", "TRACE", ":path", "/http/billing/", "authorization", "Bearer good"), 403, access.Unsupported},
		{"session", func(w *world) { w.sessionErr = down }, get(), 503, access.Unavailable},
		{"session refused", func(w *world) {
			w.sessionErr = fmt.Errorf("open: %w", &access.Denial{Reason: access.LimitExceeded, Message: "too many"})
		}, get(), 413, access.LimitExceeded},
		{"session ended", func(w *world) { w.session = killed }, get(), 403, access.SessionEnded},
		{"policy denies", func(w *world) {
			w.decide = func(access.Request) access.Decision {
				return access.Decision{Effect: access.Deny, Reason: access.DeniedByRule, Rules: rule("no"), Message: "no"}
			}
		}, get(), 403, access.DeniedByRule},
		{"policy says what nobody knows", func(w *world) {
			w.decide = func(access.Request) access.Decision { return access.Decision{Effect: 99} }
		}, get(), 403, access.NoRule},
		{"policy panics", func(w *world) { w.decide = func(access.Request) access.Decision { panic("secret detail") } }, get(), 503, access.Unavailable},
		{"recorder down", func(w *world) { w.recordErr = down }, get(), 503, access.Unavailable},
		{"recorder down, policy denies", func(w *world) {
			w.recordErr = down
			w.decide = func(access.Request) access.Decision { return access.Decision{} }
		}, get(), 503, access.Unavailable},
		{"approvals down", func(w *world) { w.decide, w.askErr = approve("x"), down }, get(), 503, access.Unavailable},
		{"too many questions", func(w *world) { w.decide, w.askErr = approve("x"), approval.ErrTooMany }, get(), 429, access.LimitExceeded},
		{"waiting fails", func(w *world) {
			w.decide = approve("x")
			w.wait = func(context.Context, access.Approval) (access.Approval, error) { return access.Approval{}, down }
		}, get(), 503, access.Unavailable},
		{"no answer in time, and no leaving the question behind", func(w *world) {
			w.decide, w.detachErr = approve("x"), down
		}, get(), 503, access.Unavailable},
		{"refused in the last moment", func(w *world) {
			w.decide, w.detachErr = approve("x"), &approval.StateError{State: access.Refused}
		}, get(), 403, access.ApprovalRefused},
		{"consuming fails", func(w *world) {
			w.decide, w.wait, w.consumeErr = approve("x"), answers(access.Granted), down
		}, get(), 503, access.Unavailable},
		{"consumed already", func(w *world) {
			w.decide, w.wait, w.consumeErr = approve("x"), answers(access.Granted), &approval.StateError{State: access.Consumed}
		}, get(), 403, access.ApprovalRequired},
		{"body not read where a reviewer is needed", func(w *world) { w.decide = approve("x") },
			question(billing(), "", ":method", "POST", ":path", "/http/billing/", "authorization", "Bearer good", "content-length", "3"), 503, access.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			if c.world != nil {
				c.world(w)
			}
			o := checked(t, w.server(t, nil), t.Context(), c.in)
			o.refused(t, c.status, c.reason)
			if strings.Contains(fmt.Sprint(o.body), "secret detail") {
				t.Errorf("the client learns %v", o.body)
			}
			for _, e := range w.events {
				if e.Executed != nil {
					t.Error("an execution is on record")
				}
			}
			steps := w.takeSteps()
			if slices.Contains(steps, "session") != slices.Contains(steps, "release") {
				t.Errorf("the session is not released: %v", steps)
			}
			if c.name != "policy panics" && len(w.events) == 0 && w.recordErr == nil {
				t.Error("nothing on record")
			}
		})
	}
}

func TestHeldUntilGranted(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.decide, w.wait = approve("pay"), answers(access.Granted)
	o := checked(t, w.server(t, nil), t.Context(), get())
	want := []string{"verify", "session", "decide", "append decided", "ask leased=true", "wait", "verify", "consume", "decide", "append decided+executed", "release"}
	if steps := w.takeSteps(); !o.forwarded || !slices.Equal(steps, want) {
		t.Fatalf("got %+v\n%v", o, steps)
	}
	last := w.events[len(w.events)-1]
	if last.Executed.Approval != last.Request {
		t.Errorf("executed %+v", last.Executed)
	}
}

func TestNotGranted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		state       access.ApprovalState
		reason      access.Reason
		requestable bool
	}{
		{access.Refused, access.ApprovalRefused, false},
		{access.Expired, access.ApprovalExpired, true},
		{access.Abandoned, access.ApprovalRequired, true},
		{access.Consumed, access.ApprovalRequired, true},
		{"", access.ApprovalRequired, true},
	} {
		w := newWorld()
		w.decide, w.wait = approve("pay"), answers(c.state)
		o := checked(t, w.server(t, nil), t.Context(), get())
		o.refused(t, http.StatusForbidden, c.reason)
		if o.body["requestable"] != c.requestable || o.body["rule"] != "p/pay" || slices.Contains(w.takeSteps(), "consume") {
			t.Errorf("%s: %v", c.state, o.body)
		}
	}
}

func TestNoAnswerInTime(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.decide = approve("pay")
	s := w.server(t, nil)
	o := checked(t, s, t.Context(), get())
	o.refused(t, http.StatusForbidden, access.ApprovalRequired)
	first := w.events[0].Request
	if o.body["request_id"] != first || o.body["requestable"] != true || len(w.live) != 1 {
		t.Fatalf("got %v", o.body)
	}
	// The question is left behind and answered later.
	steps := w.takeSteps()
	if slices.Contains(steps, "abandon") || !slices.Contains(steps, "detach") {
		t.Fatalf("steps %v", steps)
	}
	w.grant(t)
	if o := checked(t, s, t.Context(), get()); !o.forwarded {
		t.Fatalf("the repetition is refused: %+v", o)
	}
	if e := w.events[len(w.events)-1].Executed; e == nil || e.Approval != first {
		t.Errorf("executed %+v", e)
	}
}

func TestRespondAsync(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.decide = approve("pay")
	s := w.server(t, nil)
	post := func(body string) *authv3.CheckRequest {
		return question(billing("body", "whole"), body, ":method", "POST", ":path", "/http/billing/x", "authorization", "Bearer good",
			"prefer", "respond-async", "x-request-id", access.NewRequestID())
	}
	first := checked(t, s, t.Context(), post("1"))
	if first.status != http.StatusAccepted || first.headers["preference-applied"] != "respond-async" || first.headers["retry-after"] == "" ||
		first.body["status"] != "pending" || first.body["request_id"] != w.events[0].Request {
		t.Fatalf("got %+v", first)
	}
	if steps := w.takeSteps(); slices.Contains(steps, "wait") || !slices.Contains(steps, "ask leased=false") {
		t.Fatalf("steps %v", steps)
	}
	if again := checked(t, s, t.Context(), post("1")); again.status != http.StatusAccepted || again.body["request_id"] != first.body["request_id"] {
		t.Fatalf("before the grant: %+v", again)
	}
	w.grant(t)
	if other := checked(t, s, t.Context(), post("2")); other.status != http.StatusAccepted || other.body["request_id"] == first.body["request_id"] {
		t.Fatalf("another body: %+v", other)
	}
	granted := checked(t, s, t.Context(), post("1"))
	if !granted.forwarded || !slices.Contains(granted.removed, "prefer") {
		t.Fatalf("after the grant: %+v", granted)
	}
	if once := checked(t, s, t.Context(), post("1")); once.status != http.StatusAccepted || once.body["request_id"] == first.body["request_id"] {
		t.Fatalf("a grant served twice: %+v", once)
	}
}

func TestTheDigestCoversEveryByteOfTheTarget(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.decide = approve("pay")
	s := w.server(t, nil)
	for _, path := range []string{"/http/billing/a(1)", "/http/billing/a%281)", "/http/billing/a(1)?", "/http/billing/a(1)?x=%61", "/http/billing/a(1)?x=a"} {
		o := checked(t, s, t.Context(), question(billing(), "", ":method", "GET", ":path", path, "authorization", "Bearer good", "prefer", "respond-async"))
		if o.status != http.StatusAccepted {
			t.Fatalf("%s: %+v", path, o)
		}
	}
	if len(w.live) != 5 {
		t.Errorf("%d questions for 5 requests", len(w.live))
	}
}

func TestWhatChangesDuringTheHold(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		world    func(*world)
		status   int
		reason   access.Reason
		consumed bool
	}{
		{"policy denies now", func(w *world) {
			w.decide = sequence(approve("pay"), func(access.Request) access.Decision {
				return access.Decision{Effect: access.Deny, Reason: access.DeniedByRule}
			})
		}, 403, access.DeniedByRule, true},
		{"policy asks another question now", func(w *world) { w.decide = sequence(approve("pay"), approve("pay more")) }, 403, access.ApprovalRequired, true},
		{"the token is rejected now", func(w *world) {
			n := 0
			good := w.verify
			w.verify = func(token string) (access.Principal, error) {
				if n++; n > 1 {
					return access.Principal{}, identity.ErrTokenRejected
				}
				return good(token)
			}
		}, 401, access.Unauthenticated, false},
		{"the token is somebody else's now", func(w *world) {
			n := 0
			w.verify = func(string) (access.Principal, error) {
				n++
				return access.Principal{Subject: fmt.Sprint("sub", n)}, nil
			}
		}, 401, access.Unauthenticated, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			w.decide, w.wait = approve("pay"), answers(access.Granted)
			c.world(w)
			o := checked(t, w.server(t, nil), t.Context(), get())
			o.refused(t, c.status, c.reason)
			if steps := w.takeSteps(); slices.Contains(steps, "consume") != c.consumed {
				t.Errorf("steps %v", steps)
			}
		})
	}
	t.Run("policy allows now", func(t *testing.T) {
		t.Parallel()
		w := newWorld()
		allow := w.decide
		w.decide, w.wait = sequence(approve("pay"), allow), answers(access.Granted)
		if o := checked(t, w.server(t, nil), t.Context(), get()); !o.forwarded {
			t.Fatalf("got %+v", o)
		}
	})
}

func sequence(ds ...func(access.Request) access.Decision) func(access.Request) access.Decision {
	n := 0
	return func(r access.Request) access.Decision {
		d := ds[min(n, len(ds)-1)]
		n++
		return d(r)
	}
}

// waiting makes a world whose Wait reports that it has begun, then blocks.
func waiting(w *world) <-chan struct{} {
	begun := make(chan struct{}, 8)
	w.decide = approve("pay")
	w.wait = func(ctx context.Context, a access.Approval) (access.Approval, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return a, ctx.Err()
	}
	return begun
}

func TestClientLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld()
	begun := waiting(w)
	s := w.server(t, func(c *Config) { c.Wait = time.Hour })
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-begun
		leave()
	}()
	checked(t, s, ctx, get()).refused(t, 503, access.Unavailable)
	if len(w.abandoned) != 1 || w.abandoned[0] != nil {
		t.Errorf("abandoned %v: it must be, in a context that still lives", w.abandoned)
	}
	if s.holds.count() != 0 {
		t.Error("the place is not given back")
	}
}

func TestJoinedQuestionIsNotAbandoned(t *testing.T) {
	t.Parallel()
	w := newWorld()
	begun := waiting(w)
	s := w.server(t, func(c *Config) { c.Wait = time.Hour })
	checked(t, s, t.Context(), get("prefer", "respond-async"))
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-begun
		leave()
	}()
	checked(t, s, ctx, get()).refused(t, 503, access.Unavailable)
	if len(w.abandoned) != 0 {
		t.Error("the question of the client that will come back is abandoned")
	}
}

func TestSessionKilledDuringTheHold(t *testing.T) {
	t.Parallel()
	w := newWorld()
	begun := waiting(w)
	session, kill := context.WithCancelCause(context.Background())
	w.session = session
	s := w.server(t, func(c *Config) { c.Wait = time.Hour })
	go func() {
		<-begun
		kill(&access.Denial{Reason: access.SessionEnded, Message: "killed by an operator"})
	}()
	o := checked(t, s, t.Context(), get())
	o.refused(t, 403, access.SessionEnded)
	if o.body["message"] != "killed by an operator" || len(w.abandoned) != 1 {
		t.Errorf("got %v", o.body)
	}
}

func TestHoldsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld()
	begun := waiting(w)
	s := w.server(t, func(c *Config) { c.Wait, c.MaxHolds, c.MaxHoldsPerPrincipal = time.Hour, 2, 1 })
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer leave()
	hold := func(token string) {
		wg.Go(func() {
			s.Check(ctx, question(billing(), "", ":method", "GET", ":path", "/http/billing/"+token, "authorization", "Bearer "+token))
		})
		<-begun
	}
	hold("ann")
	try := func(token string) outcome {
		return checked(t, s, t.Context(), question(billing(), "", ":method", "GET", ":path", "/http/billing/other", "authorization", "Bearer "+token))
	}
	try("ann").refused(t, 429, access.LimitExceeded)
	hold("bob")
	try("eve").refused(t, 429, access.LimitExceeded)
	if n := s.holds.count(); n != 2 {
		t.Errorf("%v holds", n)
	}
}

func TestNewNeedsEverything(t *testing.T) {
	t.Parallel()
	w := newWorld()
	if _, err := New(Config{}, Dependencies{w, w, w, w, w, w, w, nil, nil, nil, nil, nil}); err == nil {
		t.Error("no wait is taken")
	}
	if _, err := New(Config{Wait: 1}, Dependencies{w, w, w, w, w, nil, w, nil, nil, nil, nil, nil}); err == nil {
		t.Error("a missing dependency is taken")
	}
}
