package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxAdminAnswer bounds what Admin reads of one answer.
const maxAdminAnswer = 64 << 20

// An Admin speaks to the admin interface of an Envoy on its unix socket. It is
// safe for concurrent use.
type Admin struct{ client *http.Client }

// NewAdmin returns an Admin for the socket; nothing is dialled yet.
func NewAdmin(socket string) *Admin {
	return &Admin{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, // Envoy may be another one by the next call
	}}}
}

// Get returns the body of path, for example "/config_dump". An answer other
// than 200 is an error with the body in it.
func (a *Admin) Get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("envoy admin %s: %s: %s", path, resp.Status, strings.TrimSpace(string(body[:min(len(body), 256)])))
	}
	return body, nil
}

// Ready waits until Envoy has its first whole configuration and listens, or
// until ctx ends.
func (s *Supervisor) Ready(ctx context.Context) error {
	if s.cfg.AdminSocket == "" {
		return errors.New("envoy ready: there is no admin socket to ask")
	}
	admin := NewAdmin(s.cfg.AdminSocket)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := admin.Get(ctx, "/ready")
		if err == nil && s.PID() != 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("envoy is not ready: %w (%v)", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
