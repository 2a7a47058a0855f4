package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"chaperone.dev/chaperone/envoy"
	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

// aloneConfig is what somebody would write who wants the same way to the same
// targets and no gateway: TLS with the same certificate, the same rewriting and
// credential, and a TCP proxy straight to the database. A second listener asks
// an authorizer besides.
var aloneConfig = template.Must(template.New("envoy.json").Parse(`{{define "https"}} {"name": "https-{{.Port}}", "address": {"socket_address": {"address": "127.0.0.1", "port_value": {{.Port}}}}, "per_connection_buffer_limit_bytes": 65536, "filter_chains": [{
  "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
   "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
   "common_tls_context": {"tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}, "alpn_protocols": ["h2", "http/1.1"],
    "tls_certificates": [{"certificate_chain": {"filename": "{{.Dir}}/gateway.crt"}, "private_key": {"filename": "{{.Dir}}/gateway.key"}}]}}},
  "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
   "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
   "stat_prefix": "https", "normalize_path": true, "merge_slashes": true, "use_remote_address": true,
   "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/http/billing/"},
    "route": {"cluster": "billing", "prefix_rewrite": "/", "timeout": "0s"},{{if .Decide}}
    "typed_per_filter_config": {"envoy.filters.http.ext_authz": {"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
     "check_settings": {"context_extensions": {"resource": "billing", "prefix": "/http/billing", "host": "billing", "credential": "x-api-key"}}}},{{end}}
    "request_headers_to_add": [{"header": {"key": "x-api-key", "value": "{{.APIKey}}"}}], "request_headers_to_remove": ["authorization"]}]}]},
   "http_filters": [{{if .Decide}}{"name": "envoy.filters.http.ext_authz", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    "transport_api_version": "V3", "encode_raw_headers": true, "validate_mutations": true, "grpc_service": {"envoy_grpc": {"cluster_name": "authorizer"}, "timeout": "30s"}}},
    {{end}}{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]},
{{end}}{{define "tcp"}} {"name": "{{.Name}}", "address": {"socket_address": {"address": "127.0.0.1", "port_value": {{.Port}}}}, "per_connection_buffer_limit_bytes": 65536, "filter_chains": [{
  "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
   "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "{{.Name}}", "cluster": "{{.Name}}"}}]}]}
{{end}}{{define "target"}} {"name": "{{.Name}}", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {"cluster_name": "{{.Name}}", "endpoints": [{"lb_endpoints": [
  {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": {{.Target}}}}}}]}]}}
{{end}}{"static_resources": {
"listeners": [
{{template "https" .Plain}}{{template "https" .Deciding}}{{template "tcp" .Postgres}},
{{template "tcp" .Pooled}}],
"clusters": [
 {"name": "billing", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {"cluster_name": "billing", "endpoints": [{"lb_endpoints": [
  {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": {{.BillingTarget}}}}}}]}]}},
 {"name": "authorizer", "type": "STATIC", "connect_timeout": "5s",
  "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
   "explicit_http_config": {"http2_protocol_options": {}}}},
  "load_assignment": {"cluster_name": "authorizer", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "{{.Authorizer}}"}}}}]}]}},
{{template "target" .Postgres}},
{{template "target" .Pooled}}]}}`))

// An alone is the baseline: an Envoy with nothing beside it.
type alone struct {
	url        string
	deciding   string // url of the listener that asks the authorizer
	postgres   int    // port
	pooled     int    // port of the way through PgBouncer
	pooler     *localserver.PgBouncer
	supervisor *envoy.Supervisor
}

func (a *alone) pids() pids { return pids{envoy: a.supervisor.PID()} }

// startAlone starts the baseline with the arguments that the gateway's Envoy
// has, and returns when both listeners are open.
func startAlone(b *testing.B, s *demo.Site) *alone {
	b.Helper()
	https, err := localserver.FreePort()
	if err != nil {
		b.Fatal(err)
	}
	deciding, err := localserver.FreePort()
	if err != nil {
		b.Fatal(err)
	}
	url := func(port int) string { return "https://localhost:" + strconv.Itoa(port) + "/http/billing" }
	a := &alone{url: url(https), deciding: url(deciding)}
	if a.postgres, err = localserver.FreePort(); err != nil {
		b.Fatal(err)
	}
	if a.pooled, err = localserver.FreePort(); err != nil {
		b.Fatal(err)
	}
	if a.pooler, err = localserver.StartPgBouncer(b.Context(), filepath.Join(s.Dir, "pgbouncer"), s.Database, "chaperone_app", s.DBPassword); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(a.pooler.Close)
	_, billing, err := net.SplitHostPort(strings.TrimPrefix(s.Billing.URL, "http://"))
	if err != nil {
		b.Fatal(err)
	}
	listener := func(port int, decide bool) map[string]any {
		return map[string]any{"Port": port, "Decide": decide, "Dir": s.Dir, "APIKey": s.APIKey}
	}
	var text bytes.Buffer
	if err := aloneConfig.Execute(&text, map[string]any{"Plain": listener(https, false), "Deciding": listener(deciding, true),
		"Postgres":   map[string]any{"Name": "postgres", "Port": a.postgres, "Target": s.Database.Port},
		"Pooled":     map[string]any{"Name": "pooled", "Port": a.pooled, "Target": a.pooler.Port},
		"Authorizer": authorizerSocket(s.Dir), "BillingTarget": billing}); err != nil {
		b.Fatal(err)
	}
	binary, err := envoy.Find(b.Context(), envoy.Options{})
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(s.Dir, "alone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	if a.supervisor, err = envoy.NewSupervisor(envoy.SupervisorConfig{Binary: binary, Bootstrap: text.Bytes(), Dir: dir}); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.supervisor.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	for _, port := range []int{https, deciding, a.postgres, a.pooled} {
		if err := demo.Eventually(b.Context(), 30*time.Second, func() error {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				err = conn.Close()
			}
			return err
		}); err != nil {
			b.Fatalf("the Envoy alone does not serve: %v", err)
		}
	}
	return a
}
