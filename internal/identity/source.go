package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	fetchTimeout     = 5 * time.Second // for discovery and keys together
	maxDocumentBytes = 1 << 20
)

// A source is where one issuer's keys are. It fetches two addresses at most: the
// discovery document of the configured issuer and a key set, either configured
// or of the issuer's own origin.
type source struct {
	issuer  string
	jwks    string                 // "" to discover
	own     func() ([]byte, error) // nil: fetched
	parse   func([]byte) (*keySet, error)
	client  *http.Client
	timeout time.Duration
}

// newSource trusts roots, or the system's when nil.
func newSource(issuer, jwks string, roots *x509.CertPool) *source {
	return &source{
		issuer: issuer, jwks: jwks, timeout: fetchTimeout, parse: parseKeySet,
		client: &http.Client{
			Transport: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
				MaxConnsPerHost:        2,
				IdleConnTimeout:        time.Minute,
				MaxResponseHeaderBytes: 64 << 10,
				DisableCompression:     true,
				ForceAttemptHTTP2:      true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// fetch returns the issuer's present keys.
func (s *source) fetch(ctx context.Context) (*keySet, error) {
	if s.own != nil {
		body, err := s.own()
		if err != nil {
			return nil, fmt.Errorf("own keys: %w", err)
		}
		return s.parse(body)
	}
	address := s.jwks
	if address == "" {
		var err error
		if address, err = s.discover(ctx); err != nil {
			return nil, err
		}
	}
	body, err := s.get(ctx, address)
	if err != nil {
		return nil, err
	}
	return s.parse(body)
}

// discover returns the jwks_uri (OpenID Connect Discovery 1.0, section 4).
func (s *source) discover(ctx context.Context) (string, error) {
	body, err := s.get(ctx, strings.TrimSuffix(s.issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return "", err
	}
	document, err := decodeObject(body)
	if err != nil {
		return "", fmt.Errorf("the discovery document %w", err)
	}
	if document["issuer"] != s.issuer {
		return "", errors.New("the discovery document is that of another issuer")
	}
	address, ok := document["jwks_uri"].(string)
	if !ok {
		return "", errors.New("the discovery document has no jwks_uri")
	}
	if !sameOrigin(s.issuer, address) {
		return "", errors.New("the jwks_uri of the discovery document is of another origin; configure it if it is right")
	}
	return address, nil
}

// sameOrigin reports whether b can be fetched from the origin of a (RFC 6454).
func sameOrigin(a, b string) bool {
	ua, errA := fetchable(a)
	ub, errB := fetchable(b)
	return errA == nil && errB == nil && ua.Scheme == ub.Scheme &&
		strings.EqualFold(ua.Hostname(), ub.Hostname()) && port(ua) == port(ub)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "http" {
		return "80"
	}
	return "443"
}

// get fetches one bounded document.
func (s *source) get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	req.Header.Set("Accept", "application/json, application/samlmetadata+xml, application/xml")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, fmt.Errorf("fetch %s: redirects are not followed", address)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch %s: status %d", address, resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocumentBytes+1))
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", address, err)
	}
	if len(body) > maxDocumentBytes {
		return nil, fmt.Errorf("fetch %s: the answer is longer than %d bytes", address, maxDocumentBytes)
	}
	return body, nil
}
