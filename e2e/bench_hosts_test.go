package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/envoy"
	"chaperone.dev/chaperone/examples/demo"
	"chaperone.dev/chaperone/internal/localserver"
)

const (
	benchFile   = 100 << 20 // bytes of the file that scp moves
	benchLogins = 10        // in a row, of each route and round
)

const aloneHost = `{"static_resources": {"listeners": [{"name": "ssh", "address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}, "per_connection_buffer_limit_bytes": 65536, "filter_chains": [{
  "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
   "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "ssh", "cluster": "ssh"}}]}]}],
"clusters": [{"name": "ssh", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {"cluster_name": "ssh", "endpoints": [{"lb_endpoints": [
  {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}}]}]}}]}}`

// BenchmarkHosts measures scp and logging in through the gateway beside the same
// through an Envoy alone straight to sshd.
func BenchmarkHosts(b *testing.B) {
	s, err := start(b.Context(), demo.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		s.Close()
		os.RemoveAll(s.Dir)
	})
	through, straight := hosts(b, s, demo.Omar), toHost(b, s)
	port := startAloneHost(b, s)
	config, err := os.ReadFile(straight.config)
	if err != nil {
		b.Fatal(err)
	}
	known := "[127.0.0.1]:" + strconv.Itoa(port) + " " + s.Host.HostKey + "\n" // beside the host's own
	straight.configure(b, strings.Replace(string(config), "Port "+strconv.Itoa(s.Host.Port), "Port "+strconv.Itoa(port), 1))
	if err := os.WriteFile(filepath.Join(s.Host.Dir, "known_hosts"), []byte(known), 0o644); err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(free(b, s), "large")
	if err := os.WriteFile(file, make([]byte, benchFile), 0o644); err != nil {
		b.Fatal(err)
	}
	timed := func(c *hostClient, name string, args ...string) time.Duration {
		began := time.Now()
		if out, errs, status := c.run(b, "", name, args...); status != 0 {
			b.Fatalf("%s %v: %d %s %s", name, args, status, out, errs)
		}
		return time.Since(began)
	}
	timed(through, "ssh", "web", "true") // has its certificate
	for _, kind := range []struct {
		name string
		run  func(*hostClient) time.Duration
	}{
		{"scp-down", func(c *hostClient) time.Duration {
			return timed(c, "scp", "-q", "-O", "web:"+file, filepath.Join(c.dir, "down"))
		}},
		{"sftp-down", func(c *hostClient) time.Duration {
			return timed(c, "scp", "-q", "web:"+file, filepath.Join(c.dir, "down"))
		}},
		{"scp-up", func(c *hostClient) time.Duration {
			return timed(c, "scp", "-q", "-O", filepath.Join(c.dir, "down"), "web:"+file)
		}},
		{"set-up", func(c *hostClient) (took time.Duration) {
			for range benchLogins {
				took += timed(c, "ssh", "web", "true")
			}
			return took
		}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			var own, direct time.Duration
			for b.Loop() {
				direct += kind.run(straight) // in turn, so that what disturbs the machine meets both
				own += kind.run(through)
			}
			b.ReportMetric(float64(direct)/float64(own), "of-direct-rate")
			b.ReportMetric(float64(own)/float64(direct), "of-direct-time")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// startAloneHost starts an Envoy that is a TCP proxy to sshd, and nothing else.
func startAloneHost(b *testing.B, s *demo.Site) (port int) {
	b.Helper()
	port, err := localserver.FreePort()
	if err != nil {
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
	supervisor, err := envoy.NewSupervisor(envoy.SupervisorConfig{Binary: binary, Bootstrap: fmt.Appendf(nil, aloneHost, port, s.Host.Port), Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- supervisor.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	if err := demo.Eventually(b.Context(), 30*time.Second, func() error {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			err = conn.Close()
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	return port
}
