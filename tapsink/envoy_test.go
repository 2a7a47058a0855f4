package tapsink_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"chaperone.dev/chaperone/envoy"
	"chaperone.dev/chaperone/envoy/envoytest"
	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/tapsink"
)

// bootstrap is a whole gateway without a control plane: authorizer, processor
// and router as the product chains them.
var bootstrap = template.Must(template.New("").Parse(`{
"node": {"id": "tapsink", "cluster": "test"},
"admin": {"address": {"pipe": {"path": "{{.Admin}}", "mode": 384}}},
"static_resources": {
 "listeners": [{
  "address": {"socket_address": {"address": "127.0.0.1", "port_value": {{.Port}}}},
  "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
   "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
   "stat_prefix": "http", "codec_type": "HTTP1", "http_protocol_options": {"enable_trailers": true},
   "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "target", "timeout": "0s"}}]}]},
   "http_filters": [
    {"name": "envoy.filters.http.ext_authz", "typed_config": {
     "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
     "transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "authorizer"}, "timeout": "5s"}}},
    {"name": "envoy.filters.http.ext_proc", "typed_config": {
     "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
     "grpc_service": {"envoy_grpc": {"cluster_name": "processor"}}, "message_timeout": "10s",
     "processing_mode": {"request_header_mode": "SKIP", "response_header_mode": "SEND", "response_body_mode": "STREAMED", "response_trailer_mode": "SEND"},
     "metadata_options": {"forwarding_namespaces": {"untyped": ["envoy.filters.http.ext_authz"]}}}},
    {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}],
 "clusters": [
  {"name": "target", "load_assignment": {"cluster_name": "target", "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
    {"socket_address": {"address": "127.0.0.1", "port_value": {{.Target}}}}}}]}]},
   "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {"http_protocol_options": {"enable_trailers": true}}}}},
  {{template "service" .Authorizer}}, {{template "service" .Processor}}]}}
{{define "service"}}{"name": "{{.Name}}", "load_assignment": {"cluster_name": "{{.Name}}", "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
    {"pipe": {"path": "{{.Socket}}"}}}}]}]},
   "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {"http2_protocol_options": {}}}}}{{end}}`))

type service struct{ Name, Socket string }

// A gateway is a real Envoy between a client and a target.
type gateway struct {
	url, target string
	pid         func() int
}

// start runs an Envoy in front of target whose processor listens on processor.
func start(t *testing.T, processor string, target http.Handler) *gateway {
	t.Helper()
	server := httptest.NewServer(target)
	t.Cleanup(server.Close)
	dir := envoytest.SocketDir(t)
	address := envoytest.ReserveAddress(t)
	_, port, _ := net.SplitHostPort(address)
	_, targetPort, _ := net.SplitHostPort(server.Listener.Addr().String())
	var config bytes.Buffer
	if err := bootstrap.Execute(&config, map[string]any{
		"Admin": filepath.Join(dir, "admin"), "Port": port, "Target": targetPort,
		"Authorizer": service{"authorizer", authorizer(t)}, "Processor": service{"processor", processor},
	}); err != nil {
		t.Fatal(err)
	}
	s, err := envoy.NewSupervisor(envoy.SupervisorConfig{
		Binary: envoytest.Binary(t), Bootstrap: config.Bytes(), Dir: dir, AdminSocket: filepath.Join(dir, "admin"), Concurrency: 1,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("envoy: %v", err)
		}
	})
	wait, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	if err := s.Ready(wait); err != nil {
		t.Fatal(err)
	}
	return &gateway{url: "http://" + address, target: server.URL, pid: s.PID}
}

// allowAll is an authorizer that lets everything through under the id and the
// obligations that the request names itself.
type allowAll struct {
	authv3.UnimplementedAuthorizationServer
}

func (allowAll) Check(_ context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	h := in.GetAttributes().GetRequest().GetHttp().GetHeaders()
	out := &authv3.CheckResponse{Status: &rpcstatus.Status{}}
	if h["x-obligations"] == "" {
		return out, nil
	}
	metadata, err := structpb.NewStruct(map[string]any{tapsink.MetadataKey: map[string]any{
		"request": h["x-id"], "session": "ses_1", "resource": "billing", "obligations": h["x-obligations"]}})
	out.DynamicMetadata = metadata
	return out, err
}

func authorizer(t *testing.T) string {
	t.Helper()
	path := socket(t, "a")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	authv3.RegisterAuthorizationServer(g, allowAll{})
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return path
}

// request asks for path through the gateway; obligations nil means that nobody
// decides.
func (g *gateway) request(t *testing.T, method, path, id string, obligations *access.Obligations) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, g.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if obligations != nil {
		b, err := json.Marshal(obligations)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("x-obligations", string(b))
		r.Header.Set("x-id", id)
	}
	return do(t, r)
}

func do(t *testing.T, r *http.Request) *http.Response {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	return answer
}

// direct asks the target itself: the positive control.
func (g *gateway) direct(t *testing.T, path string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.target+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := do(t, r)
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const secret = "123-45-6789"

// target is what stands behind the gateway. proceed lets /slow and /events go
// on.
func target(proceed <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	write := func(w http.ResponseWriter, pieces ...string) {
		for _, p := range pieces {
			io.WriteString(w, p)
			w.(http.Flusher).Flush()
		}
	}
	wait := func(r *http.Request) {
		if r.Header.Get("x-id") == "" {
			return // the control does not wait
		}
		select {
		case <-proceed:
		case <-r.Context().Done():
		}
	}
	contentType := func(w http.ResponseWriter, value string) { w.Header().Set("content-type", value) }
	mux.HandleFunc("/json", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "application/json")
		w.Header().Set("etag", `"abc"`)
		w.Header().Set("x-ssn", secret)
		w.Header().Add("set-cookie", "sid=1")
		write(w, `{"s`, `sn": "123-`, `45-67`, `89", "name": "Ann`, `"}`)
	})
	mux.HandleFunc("/length", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "application/json")
		body := `{"ssn": "` + secret + `", "name": "Ann"}`
		w.Header().Set("content-length", strconv.Itoa(len(body)))
		io.WriteString(w, body)
	})
	mux.HandleFunc("/fault", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "application/problem+json")
		w.WriteHeader(http.StatusConflict)
		write(w, `{"detail":"ssn `, secret, ` is taken"}`)
	})
	mux.HandleFunc("/text", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "text/plain")
		write(w, "ssn 123-45", "-6789 is ", "123-45-6789") // ends in the middle of what could go on
	})
	mux.HandleFunc("/gzip", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "application/json")
		w.Header().Set("content-encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, `{"ssn":"`+secret+`"}`)
		z.Close()
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "application/json")
		w.Header().Set("trailer", "x-note")
		write(w, `{"ssn":"`+secret+`"}`)
		w.Header().Set("x-note", "of "+secret)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "application/json")
		write(w, `{"first":"yes",`)
		wait(r)
		write(w, `"ssn":"`+secret+`"}`)
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "text/event-stream")
		for i := range 3 {
			write(w, fmt.Sprintf("data: {\"n\":%d,\"ssn\":", i), "\""+secret+"\"}\n\n")
			wait(r)
		}
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		contentType(w, "application/json")
		row := `{"ssn":"` + secret + `","note":"` + strings.Repeat("x", 1000) + `"},`
		io.WriteString(w, "[")
		for n := 0; n < bigBody; n += len(row) {
			if n > bigBody/2 && n <= bigBody/2+len(row) {
				w.(http.Flusher).Flush()
				wait(r)
			}
			io.WriteString(w, row)
		}
		io.WriteString(w, "null]")
	})
	return mux
}

const bigBody = 20 << 20

func read(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("after %.200q: %v", b, err)
	}
	return string(b)
}

// of returns the events of one request.
func (m *memory) of(t *testing.T, id string) []access.Event {
	t.Helper()
	pick := func(all []access.Event) (events []access.Event) {
		for _, ev := range all {
			if ev.Request == id {
				events = append(events, ev)
			}
		}
		return events
	}
	return pick(m.wait(t, func(all []access.Event) bool { return hasEnded(pick(all)) }))
}

func TestThroughEnvoy(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.refuse = func(_ int, ev access.Event) error {
		if ev.Request == "disk-full" && ev.Body != nil && strings.Contains(ev.Body.Text, "***") {
			return errors.New("disk full")
		}
		return nil
	}
	processor, _ := serve(t, tapsink.Config{Recorder: m})
	proceed := make(chan struct{})
	g := start(t, processor, target(proceed))
	field, detect, nothing := redact("/ssn", "/*/ssn"), redact("SSN"), access.Obligations{}

	t.Run("masked across chunks", func(t *testing.T) {
		if got := g.direct(t, "/json"); !strings.Contains(got, secret) { // control
			t.Fatalf("the target answers %s", got)
		}
		answer := g.request(t, "GET", "/json", "json", &field)
		if got := read(t, answer.Body); got != `{"ssn": "***", "name": "Ann"}` {
			t.Errorf("got %s", got)
		}
		if answer.Header.Get("etag") != "" || answer.Header.Get("x-ssn") != secret || answer.Header.Get("set-cookie") != "sid=1" {
			t.Errorf("headers %v", answer.Header)
		}
		if got := text(m.of(t, "json")); got != `{"ssn": "***", "name": "Ann"}` {
			t.Errorf("recorded %s", got)
		}
	})
	t.Run("headers too", func(t *testing.T) {
		answer := g.request(t, "GET", "/json", "header", &detect)
		if got := read(t, answer.Body); got != `{"ssn": "***", "name": "Ann"}` || answer.Header.Get("x-ssn") != "***" {
			t.Errorf("got %s, headers %v", got, answer.Header)
		}
	})
	t.Run("length", func(t *testing.T) {
		answer := g.request(t, "GET", "/length", "length", &field)
		if got := read(t, answer.Body); got != `{"ssn": "***", "name": "Ann"}` || answer.Header.Get("content-length") != "" {
			t.Errorf("got %s, headers %v", got, answer.Header)
		}
		answer = g.request(t, "HEAD", "/length", "head", &field)
		if answer.StatusCode != 200 || answer.Header.Get("content-length") != "" {
			t.Errorf("HEAD: %d, %v: the length of what is hidden shows", answer.StatusCode, answer.Header)
		}
	})
	t.Run("benign twin", func(t *testing.T) {
		answer := g.request(t, "GET", "/length", "twin", &nothing)
		if got, want := read(t, answer.Body), g.direct(t, "/length"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		answer = g.request(t, "GET", "/gzip", "twin-gzip", &nothing)
		if got, want := read(t, answer.Body), g.direct(t, "/gzip"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("faults too", func(t *testing.T) {
		answer := g.request(t, "GET", "/fault", "fault", &detect)
		if got := read(t, answer.Body); got != `{"detail":"ssn *** is taken"}` || answer.StatusCode != http.StatusConflict {
			t.Errorf("got %d %s", answer.StatusCode, got)
		}
	})
	t.Run("text with a held end", func(t *testing.T) {
		if got := read(t, g.request(t, "GET", "/text", "text", &detect).Body); got != "ssn *** is ***" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("gzip", func(t *testing.T) {
		answer := g.request(t, "GET", "/gzip", "gzip", &field)
		got := read(t, answer.Body)
		if answer.StatusCode != http.StatusBadGateway || answer.Header.Get("content-type") != access.ProblemType ||
			!strings.Contains(got, `"reason":"unreadable"`) || !strings.Contains(got, `"request_id":"gzip"`) {
			t.Errorf("got %d %v %q", answer.StatusCode, answer.Header, got)
		}
	})
	t.Run("no decision", func(t *testing.T) {
		answer := g.request(t, "GET", "/json", "", nil)
		if got := read(t, answer.Body); answer.StatusCode != http.StatusInternalServerError || strings.Contains(got, "Ann") {
			t.Errorf("got %d %q", answer.StatusCode, got)
		}
	})
	t.Run("trailers", func(t *testing.T) {
		answer := g.request(t, "GET", "/trailers", "trailers", &detect)
		if got := read(t, answer.Body); got != `{"ssn":"***"}` || answer.Trailer.Get("x-note") != "of ***" {
			t.Errorf("got %s, trailers %v", got, answer.Trailer)
		}
		if ended := endOf(m.of(t, "trailers")); ended.Masked != 2 || ended.Error != "" {
			t.Errorf("recorded %+v", ended)
		}
	})
	t.Run("events as they happen", func(t *testing.T) {
		answer := g.request(t, "GET", "/events", "events", &field)
		lines := bufio.NewReader(answer.Body)
		for i := range 3 {
			line, err := lines.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: {\"n\":%d,\"ssn\":\"***\"}\n", i) {
				t.Fatalf("event %d: %q, %v", i, line, err)
			}
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			proceed <- struct{}{} // the target sends the next one only now
		}
	})
	t.Run("client leaves", func(t *testing.T) {
		answer := g.request(t, "GET", "/slow", "leaves", &field)
		if _, err := io.ReadFull(answer.Body, make([]byte, len(`{"first":"yes",`))); err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if ended := endOf(m.of(t, "leaves")); !strings.Contains(ended.Error, "cut before its end") {
			t.Errorf("recorded %+v", ended)
		}
	})
	t.Run("recorder fails", func(t *testing.T) {
		answer := g.request(t, "GET", "/slow", "disk-full", &field)
		first := make([]byte, len(`{"first":"yes",`))
		if _, err := io.ReadFull(answer.Body, first); err != nil {
			t.Fatal(err)
		}
		proceed <- struct{}{}
		rest, err := io.ReadAll(answer.Body)
		if err == nil || len(rest) > 0 {
			t.Errorf("got %q, %v after the recorder failed; want a reset", rest, err)
		}
		if ended := endOf(m.of(t, "disk-full")); !strings.Contains(ended.Error, "disk full") {
			t.Errorf("recorded %+v", ended)
		}
	})
	t.Run("large body", func(t *testing.T) {
		answer := g.request(t, "GET", "/big", "big", &field)
		half := make([]byte, bigBody/4) // arrives while the target still holds back the second half
		if _, err := io.ReadFull(answer.Body, half); err != nil {
			t.Fatal(err)
		}
		proceed <- struct{}{}
		got := string(half) + read(t, answer.Body)
		if strings.Contains(got, secret) || strings.Count(got, `"***"`) != strings.Count(got, "{") || !json.Valid([]byte(got)) || len(got) < bigBody*9/10 {
			t.Errorf("got %d bytes, %.200q…", len(got), got)
		}
		if peak := peakMemory(t, g.pid()); peak > 200<<20 {
			t.Errorf("envoy needed %d MiB", peak>>20)
		}
		events := m.of(t, "big")
		if n := len(text(events)); n != tapsink.DefaultRecordBytes {
			t.Errorf("recorded %d bytes", n)
		}
		if last := events[len(events)-2].Body; last == nil || last.Omitted != int64(len(got)-tapsink.DefaultRecordBytes) {
			t.Errorf("recorded %+v before the end", last)
		}
	})
}

// peakMemory is the most memory that a process has had.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if found == nil {
		t.Fatal("no VmHWM")
	}
	kilobytes, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}

// TestProcessorDies stops the processor in the middle of a response: the client
// is reset and gets no byte that was not masked.
func TestProcessorDies(t *testing.T) {
	t.Parallel()
	m := newMemory()
	processor, kill := serve(t, tapsink.Config{Recorder: m})
	proceed := make(chan struct{})
	g := start(t, processor, target(proceed))
	field := redact("/ssn")
	answer := g.request(t, "GET", "/slow", "dies", &field)
	first := make([]byte, len(`{"first":"yes",`))
	if _, err := io.ReadFull(answer.Body, first); err != nil {
		t.Fatal(err)
	}
	kill()
	close(proceed) // the target sends the secret now, if it can
	rest, err := io.ReadAll(answer.Body)
	if err == nil || len(rest) > 0 {
		t.Errorf("got %q, %v after the processor died; want a reset", rest, err)
	}
	after := g.request(t, "GET", "/length", "dead", &field)
	if got := read(t, after.Body); after.StatusCode != http.StatusInternalServerError || strings.Contains(got, "Ann") {
		t.Errorf("without a processor: %d %s", after.StatusCode, got)
	}
}

// quitter is a processor that is wrong in the one way that matters: it ends its
// stream with OK after the first piece of the body.
type quitter struct {
	extprocv3.UnimplementedExternalProcessorServer
}

func (quitter) Process(s extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		in, err := s.Recv()
		if err != nil {
			return err
		}
		out := &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}
		body := in.GetResponseBody() != nil
		if body {
			out = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}}
		}
		if err := s.Send(out); err != nil || body {
			return err
		}
	}
}

// TestWhyNeverOK is the control for TestNeverOKBeforeTheEnd: with a processor
// that returns nil early, Envoy sends the rest as it comes from the target.
func TestWhyNeverOK(t *testing.T) {
	t.Parallel()
	processor, _ := serveAny(t, quitter{}, func() {})
	proceed := make(chan struct{})
	g := start(t, processor, target(proceed))
	field := redact("/ssn")
	answer := g.request(t, "GET", "/slow", "ok", &field)
	if _, err := io.ReadFull(answer.Body, make([]byte, len(`{"first":"yes",`))); err != nil {
		t.Fatal(err)
	}
	proceed <- struct{}{}
	if rest := read(t, answer.Body); !strings.Contains(rest, secret) {
		t.Errorf("got %q: Envoy no longer fails open when a processor ends with OK", rest)
	}
}
