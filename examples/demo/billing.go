package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Billing is the small HTTP service of the demo: JSON with personal data, for
// whoever has the API key. It remembers what reached it.
type Billing struct {
	URL    string
	server *http.Server
	key    string
	people []customer
	ended  chan struct{}

	mu   sync.Mutex
	seen []string // "METHOD /path" of every request, refused ones too
}

// startBilling serves on a free loopback port until Close.
func startBilling(people []customer, key string) (*Billing, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("billing: %w", err)
	}
	b := &Billing{URL: "http://" + l.Addr().String(), key: key, people: people, ended: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /customers/{id}", b.customer)
	mux.HandleFunc("GET /echo", echo)
	mux.HandleFunc("GET /events", events)
	mux.HandleFunc("DELETE /customers/{id}", b.done)
	mux.HandleFunc("POST /refunds", b.done)
	b.server = &http.Server{Handler: b.guard(mux), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(b.ended)
		_ = b.server.Serve(l) // ends with Close
	}()
	return b, nil
}

// guard notes the request and demands the API key.
func (b *Billing) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.seen = append(b.seen, r.Method+" "+r.URL.Path)
		b.mu.Unlock()
		if r.Header.Get("X-Api-Key") != b.key {
			http.Error(w, `{"error": "a valid x-api-key is needed"}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Seen lists what reached the service.
func (b *Billing) Seen() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.seen...)
}

func (b *Billing) customer(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || id < 1 || id > len(b.people) {
		http.Error(w, `{"error": "no such customer"}`, http.StatusNotFound)
		return
	}
	p := b.people[id-1]
	writeJSON(w, map[string]any{
		"id": p.ID, "name": p.Name, "ssn": p.SSN, "balance": 129.90, "currency": "EUR",
		"card":  map[string]any{"brand": "visa", "number": p.Card, "expires": "2029-04"},
		"notes": []string{"prefers e-mail", "paid last with " + p.Card},
	})
}

// echo answers with what it was sent, as the debugging pages of some services
// do: the API key is among it.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Echo", r.Header.Get("X-Api-Key"))
	writeJSON(w, map[string]any{"headers": r.Header, "path": r.URL.Path})
}

// events sends one at once, then one a second for as long as somebody listens.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if _, err := io.WriteString(w, "data: {\"paid\": 1}\n\n"); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

func (b *Billing) done(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, map[string]any{"done": r.Method + " " + r.URL.Path})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may have left
}

// Close stops the service and waits for it.
func (b *Billing) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if b.server.Shutdown(ctx) != nil {
		_ = b.server.Close()
	}
	<-b.ended
}
