package approval

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// A Webhook is told of every step of every approval, by the replica that took
// it, in order, at most a few times each. It is told what a reviewer needs to
// find the request, not what the request holds.
type Webhook struct {
	URL    string        // http or https
	Secret access.Secret // signs what is sent
	// FullText adds the statement, or method and path, as it was sent. It may
	// hold values that are masked elsewhere.
	FullText bool
}

// The bounds of delivery. A receiver that hangs costs its own queue and nobody
// else.
const (
	hookQueue   = 256
	hookTries   = 4
	hookTimeout = 5 * time.Second
	hookPause   = time.Second // doubles after each try
)

// A Told is the body of a webhook request.
type Told struct {
	ID       string               `json:"id"`
	State    access.ApprovalState `json:"state"`
	Time     time.Time            `json:"time"`
	Expires  time.Time            `json:"expires"`
	Resource string               `json:"resource"`
	Kind     access.Kind          `json:"kind"`
	Who      Who                  `json:"who"`
	Effect   string               `json:"effect"` // see Effect
	Rule     string               `json:"rule"`
	Groups   []string             `json:"groups"` // who may review
	Count    int                  `json:"count"`  // reviewers needed
	Answers  []ToldAnswer         `json:"answers,omitempty"`
	Text     string               `json:"text,omitempty"` // only with Webhook.FullText
}

// Who asks, and for whom.
type Who struct {
	Subagent string `json:"subagent,omitempty"`
	User     string `json:"user,omitempty"`
	Workflow string `json:"workflow,omitempty"`
	Issuer   string `json:"issuer"`
	Subject  string `json:"subject"`
}

// A ToldAnswer is one reviewer's word, without the comment.
type ToldAnswer struct {
	Reviewer string    `json:"reviewer"`
	Grant    bool      `json:"grant"`
	Time     time.Time `json:"time"`
}

func (s Webhook) told(e *entry, as access.ApprovalState, now time.Time) Told {
	a, r := e.Approval, e.Approval.Ask.Request
	t := Told{
		ID: a.ID, State: as, Time: now.UTC(), Expires: a.Expires, Resource: r.Resource.Name, Kind: r.Resource.Kind,
		Who: Who{Subagent: line(r.Principal.Subagent), User: line(r.Principal.User), Workflow: line(r.Principal.Workflow),
			Issuer: r.Principal.Issuer, Subject: line(r.Principal.Subject)},
		Effect: Effect(r.Action), Rule: a.Ask.Decision.Rule(), Groups: e.terms().Groups, Count: e.terms().Count,
	}
	for _, answer := range a.Answers {
		t.Answers = append(t.Answers, ToldAnswer{line(answer.Reviewer.User), answer.Grant, answer.Time})
	}
	switch {
	case !s.FullText:
	case r.Action.SQL != nil:
		t.Text = r.Action.SQL.Text
	case r.Action.HTTP != nil:
		t.Text = r.Action.HTTP.Method + " " + r.Action.HTTP.Path
	case r.Action.K8s != nil:
		t.Text = line(r.Action.K8s.String())
	case r.Action.SSH != nil:
		t.Text = line(r.Action.SSH.String())
	}
	return t
}

// Signature returns the value of the Chaperone-Signature header: HMAC-SHA256
// over the value of Chaperone-Timestamp, a dot and the body. A receiver compares
// it in constant time and refuses old timestamps.
func Signature(secret access.Secret, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	return "v1=" + hex.EncodeToString(mac.Sum(nil))
}

// A hook is one receiver with its queue.
type hook struct {
	Webhook
	client  *http.Client
	clock   func() time.Time
	log     *slog.Logger
	metrics *metrics
	queue   chan []byte
	pause   time.Duration
}

func newHook(w Webhook, c Config, m *metrics) (*hook, error) {
	u, err := url.Parse(w.URL)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		return nil, errors.New("webhook: the url is not http or https") // it may hold a secret
	}
	if w.Secret.Empty() {
		return nil, fmt.Errorf("webhook to %s has no secret to sign with", u.Host)
	}
	client := c.HTTPClient
	if client == nil {
		client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &hook{Webhook: w, client: client, clock: c.Clock, log: c.Logger.With("webhook", u.Host), metrics: m,
		queue: make(chan []byte, hookQueue), pause: hookPause}, nil
}

// offer queues a step. It never waits: when the queue is full, the step is
// dropped and counted.
func (h *hook) offer(e *entry, as access.ApprovalState) {
	body, err := json.Marshal(h.told(e, as, h.clock()))
	if err != nil { // names, numbers and times
		h.log.Error("webhook not encoded", "approval", e.Approval.ID, "error", err)
		return
	}
	select {
	case h.queue <- body:
	default:
		h.metrics.hooks.WithLabelValues("dropped").Inc()
		h.log.Warn("webhook dropped: its receiver is too slow", "approval", e.Approval.ID, "state", string(as))
	}
}

// run delivers until ctx ends. What is still queued then is lost: webhooks are
// a hint, the recording is the evidence.
func (h *hook) run(ctx context.Context) {
	for {
		select {
		case body := <-h.queue:
			h.deliver(ctx, body)
		case <-ctx.Done():
			return
		}
	}
}

func (h *hook) deliver(ctx context.Context, body []byte) {
	pause := h.pause
	for try := 1; ; try++ {
		err := h.post(ctx, body)
		if err == nil {
			h.metrics.hooks.WithLabelValues("delivered").Inc()
			return
		}
		if try == hookTries || ctx.Err() != nil {
			h.metrics.hooks.WithLabelValues("failed").Inc()
			h.log.Warn("webhook failed", "tries", try, "error", err)
			return
		}
		if sleep(ctx, nil, pause) != nil {
			return
		}
		pause *= 2
	}
}

func (h *hook) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("bad url")
	}
	timestamp := strconv.FormatInt(h.clock().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "chaperone")
	req.Header.Set("Chaperone-Timestamp", timestamp)
	req.Header.Set("Chaperone-Signature", Signature(h.Secret, timestamp, body))
	res, err := h.client.Do(req)
	if err != nil {
		var in *url.Error
		if errors.As(err, &in) { // its text has the url, where chat services put a secret
			err = in.Err
		}
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be used again
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("answered %s", res.Status)
	}
	return nil
}
