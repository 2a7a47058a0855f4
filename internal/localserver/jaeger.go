package localserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// A Jaeger is a running trace collector that keeps spans in memory.
type Jaeger struct {
	OTLP  string // host:port of its OTLP gRPC receiver
	query string
	proc  *process
}

// A Span is what Jaeger's query API tells of one.
type Span struct {
	TraceID   string `json:"traceID"`
	SpanID    string `json:"spanID"`
	Operation string `json:"operationName"`
	Process   string `json:"processID"`
	Tags      []struct {
		Key   string `json:"key"`
		Value any    `json:"value"`
	} `json:"tags"`
	References []struct {
		Type    string `json:"refType"`
		TraceID string `json:"traceID"`
		SpanID  string `json:"spanID"`
	} `json:"references"`
}

// Tag returns a tag's value as text, "" when the span has none.
func (s Span) Tag(key string) string {
	for _, t := range s.Tags {
		if t.Key == key {
			return fmt.Sprint(t.Value)
		}
	}
	return ""
}

// StartJaeger starts a Jaeger with its log in dir.
func StartJaeger(ctx context.Context, dir string) (*Jaeger, error) {
	path, err := Tool("jaeger")
	if err != nil {
		return nil, err
	}
	ports := make([]int, 9)
	for i := range ports {
		if ports[i], err = FreePort(); err != nil {
			return nil, err
		}
	}
	j := &Jaeger{OTLP: loopback(ports[0]), query: "http://" + loopback(ports[1])}
	cmd := exec.Command(path, "--collector.otlp.enabled=true",
		"--collector.otlp.grpc.host-port="+loopback(ports[0]), "--collector.otlp.http.host-port="+loopback(ports[2]),
		"--query.http-server.host-port="+loopback(ports[1]), "--query.grpc-server.host-port="+loopback(ports[3]),
		"--collector.grpc-server.host-port="+loopback(ports[4]), "--collector.http-server.host-port="+loopback(ports[5]),
		"--admin.http.host-port="+loopback(ports[6]), "--http-server.host-port="+loopback(ports[7]),
		"--processor.jaeger-binary.server-host-port="+loopback(ports[8]), "--processor.jaeger-compact.server-host-port="+loopback(ports[8]+1),
		"--processor.zipkin-compact.server-host-port="+loopback(ports[8]+2))
	cmd.Env = append(os.Environ(), "SPAN_STORAGE_TYPE=memory")
	if j.proc, err = start(cmd, filepath.Join(dir, "jaeger.log")); err != nil {
		return nil, err
	}
	err = j.proc.ready(ctx, func(ctx context.Context) error {
		if _, err := j.Spans(ctx, "none"); err != nil {
			return err
		}
		return dial(j.OTLP)(ctx)
	})
	if err != nil {
		j.Close()
		return nil, err
	}
	return j, nil
}

// Spans returns the newest traces of a service: spans by trace id.
func (j *Jaeger) Spans(ctx context.Context, service string) (map[string][]Span, error) {
	address := j.query + "/api/traces?limit=200&service=" + url.QueryEscape(service)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("jaeger: %w", err)
	}
	defer res.Body.Close()
	var answer struct {
		Data []struct {
			TraceID string `json:"traceID"`
			Spans   []Span `json:"spans"`
		} `json:"data"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("jaeger: %s: %w", res.Status, err)
	}
	traces := map[string][]Span{}
	for _, t := range answer.Data {
		traces[t.TraceID] = t.Spans
	}
	return traces, nil
}

// Close stops the collector.
func (j *Jaeger) Close() error {
	j.proc.stop(syscall.SIGTERM)
	return nil
}
