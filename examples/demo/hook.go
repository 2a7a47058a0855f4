package demo

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// A Hook is a webhook listener that keeps what was signed right.
type Hook struct {
	URL    string
	secret string
	server *http.Server
	ended  chan struct{}

	mu       sync.Mutex
	messages []string
	forged   int
}

func startHook(secret string) (*Hook, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("hook: %w", err)
	}
	h := &Hook{URL: "http://" + l.Addr().String() + "/hook", secret: secret, ended: make(chan struct{})}
	h.server = &http.Server{Handler: http.HandlerFunc(h.receive), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(h.ended)
		_ = h.server.Serve(l) // ends with Close
	}()
	return h, nil
}

func (h *Hook) receive(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	mac := hmac.New(sha256.New, []byte(h.secret))
	fmt.Fprintf(mac, "%s.%s", r.Header.Get("Chaperone-Timestamp"), body)
	want := "v1=" + hex.EncodeToString(mac.Sum(nil))
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil || !hmac.Equal([]byte(r.Header.Get("Chaperone-Signature")), []byte(want)) {
		h.forged++
		w.WriteHeader(http.StatusForbidden)
		return
	}
	h.messages = append(h.messages, string(body))
}

// Messages returns the bodies received so far, and how many had a wrong signature.
func (h *Hook) Messages() (messages []string, forged int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.messages...), h.forged
}

// Close stops the listener and waits for it.
func (h *Hook) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if h.server.Shutdown(ctx) != nil {
		_ = h.server.Close()
	}
	<-h.ended
}
