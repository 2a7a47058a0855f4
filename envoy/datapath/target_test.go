package datapath_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/xds"
)

// TestTLSTargets: the credential goes only to a target that proves its name.
func TestTLSTargets(t *testing.T) {
	t.Parallel()
	p, stranger := newPKI(t), newPKI(t)
	target := &recordingTarget{}
	server := httptest.NewUnstartedServer(target)
	pair, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	server.StartTLS()
	t.Cleanup(server.Close)
	byName := strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	w := newWorld()
	g := newGateway(t, parts{auth: w.server(t, time.Minute)},
		xds.HTTPResource{Name: "good", Address: server.URL, CA: p.ca, Credential: &xds.Credential{Header: "X-Api-Key", Value: access.NewSecret("k")}},
		xds.HTTPResource{Name: "by-name", Address: byName, CA: p.ca},
		xds.HTTPResource{Name: "wrong-ca", Address: server.URL, CA: stranger.ca, Credential: &xds.Credential{Header: "X-Api-Key", Value: access.NewSecret("k")}},
		xds.HTTPResource{Name: "wrong-name", Address: server.URL, Host: "bank.example", CA: p.ca, Credential: &xds.Credential{Header: "X-Api-Key", Value: access.NewSecret("k")}},
	)
	for _, name := range []string{"good", "by-name"} {
		if got := g.must("GET", "/http/"+name+"/x", "", "Authorization", "Bearer good"); got.status != http.StatusOK || len(target.take()) != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for _, name := range []string{"wrong-ca", "wrong-name"} {
		g.must("GET", "/http/"+name+"/x", "", "Authorization", "Bearer good").refused(t, 503, access.Unavailable)
	}
	if seen := target.take(); len(seen) != 0 {
		t.Errorf("the target was reached: %+v", seen)
	}
}

// TestTargetFaults: the answer says whether the target can have acted.
func TestTargetFaults(t *testing.T) {
	t.Parallel()
	cuts := newTarget(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	})
	gone := newTarget(t, nil)
	gone.Close()
	g := newGateway(t, parts{auth: newWorld().server(t, time.Minute)}, xds.HTTPResource{Name: "cuts", Address: cuts.URL},
		xds.HTTPResource{Name: "gone", Address: gone.URL}, xds.HTTPResource{Name: "unresolved", Address: "http://no-such-host.invalid"})
	for name, acted := range map[string]bool{"cuts": true, "gone": false, "unresolved": false} {
		got := g.must("POST", "/http/"+name+"/x", "body", "Authorization", "Bearer good")
		got.refused(t, 503, access.Unavailable)
		if message := got.problem(t)["message"].(string); strings.Contains(message, "may have acted") != acted || strings.Contains(got.body, "127.0.0.1") {
			t.Errorf("%s: %s", name, got.body)
		}
	}
	if n := len(cuts.take()); n != 1 {
		t.Errorf("the request was made %d times", n)
	}
}

// TestStreams: what the target sends bit by bit arrives bit by bit.
func TestStreams(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	target := newTarget(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	g := newGateway(t, parts{auth: newWorld().server(t, time.Minute)}, xds.HTTPResource{Name: "t", Address: target.URL})
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+g.address+"/http/t/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer good")
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	event := make([]byte, len("data: 0\n\n"))
	for i := range 3 {
		if _, err := io.ReadFull(resp.Body, event); err != nil || string(event) != fmt.Sprintf("data: %d\n\n", i) {
			t.Fatalf("event %d: %q, %v", i, event, err)
		}
		next <- struct{}{}
	}
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
		t.Errorf("after the last event: %q, %v", rest, err)
	}
}
