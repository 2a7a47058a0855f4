package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startWithin bounds the start of the gateway and every wait of the story.
const startWithin = 60 * time.Second

// A Gateway is a running `chaperone run` with its Envoy.
type Gateway struct {
	cmd    *exec.Cmd
	dir    string
	ended  chan struct{}
	result error
}

// startGateway runs chaperone, by command, on the configuration in dir until ready says so.
func startGateway(ctx context.Context, command []string, dir string, ready func(context.Context) error) (*Gateway, error) {
	log, err := os.OpenFile(filepath.Join(dir, "gateway.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	defer log.Close()
	command = append(slices.Clone(command), "run", "--config", filepath.Join(dir, "chaperone.yaml"))
	g := &Gateway{cmd: exec.Command(command[0], command[1:]...), dir: dir, ended: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr, g.cmd.Dir = log, log, dir
	g.cmd.SysProcAttr = childAttr()
	started := make(chan error, 1)
	go g.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if err := Eventually(ctx, startWithin, func() error {
		select {
		case <-g.ended:
			return errEnded
		default:
			return ready(ctx)
		}
	}); err != nil {
		g.Close()
		return nil, fmt.Errorf("the gateway does not serve: %w\n%s", err, lastLines(g.Log(), 20))
	}
	return g, nil
}

var errEnded = errors.New("the process ended")

// Eventually asks every 50 ms until ask returns nil; after limit it returns the
// last error. A process that ended is not asked again.
func Eventually(ctx context.Context, limit time.Duration, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", limit, err)
		case <-tick.C:
		}
	}
}

// Log is what chaperone and Envoy logged, one JSON object a line.
func (g *Gateway) Log() string {
	b, err := os.ReadFile(filepath.Join(g.dir, "gateway.log"))
	if err != nil {
		return ""
	}
	return string(b)
}

// PID is the process id of one of the gateway's processes: run, serve or envoy.
func (g *Gateway) PID(name string) (int, error) {
	b, err := os.ReadFile(filepath.Join(g.dir, "run", name+".pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// Kill9 ends one of the gateway's processes as a crash would.
func (g *Gateway) Kill9(name string) error {
	pid, err := g.PID(name)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// Close stops the gateway and waits for it.
func (g *Gateway) Close() {
	_ = g.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-g.ended:
	case <-time.After(15 * time.Second):
		_ = g.cmd.Process.Kill() // it may have ended
		<-g.ended
	}
}

// Client is an HTTPS client that trusts the demo's certificate authority only.
func (s *Site) Client() (*http.Client, error) {
	pem, err := os.ReadFile(s.path("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}, nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
