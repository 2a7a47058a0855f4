package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/record"
)

// A gateway is the API of a running gateway, reached as everyone reaches it:
// through Envoy, with the caller's own token.
type gateway struct {
	url, ca, tokenFile string
	output             string
}

// flags adds what every command that talks to a gateway takes.
func (g *gateway) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&g.url, "gateway", os.Getenv("CHAPERONE_GATEWAY"), "https URL of the gateway (CHAPERONE_GATEWAY)")
	f.StringVar(&g.ca, "ca", os.Getenv("CHAPERONE_CA"), "file with the certificates to trust (CHAPERONE_CA; default the system's)")
	f.StringVar(&g.tokenFile, "token-file", os.Getenv("CHAPERONE_TOKEN_FILE"), "file with your token (CHAPERONE_TOKEN_FILE; or the token itself in CHAPERONE_TOKEN)")
	f.StringVarP(&g.output, "output", "o", "table", "table or json")
}

// token is the caller's own.
func (g *gateway) token(ctx context.Context) (access.Secret, error) {
	own, err := g.source("chaperone")
	if err != nil {
		return access.Secret{}, err
	}
	return own.get(ctx)
}

// base is the gateway's URL without a slash at its end.
func (g *gateway) base() (string, error) {
	base, err := url.Parse(g.url)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return "", fmt.Errorf("%w: --gateway must be an https URL", errUsage)
	}
	return strings.TrimSuffix(base.String(), "/"), nil
}

// do sends one request and returns the body of a good answer; a refusal comes
// back as the *access.Denial that the gateway gave. The caller closes the body.
func (g *gateway) do(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	token, err := g.token(ctx)
	if err != nil {
		return nil, err
	}
	return g.send(ctx, method, path, token, in)
}

// send is do with a token that is not necessarily the caller's own.
func (g *gateway) send(ctx context.Context, method, path string, token access.Secret, in any) (io.ReadCloser, error) {
	base, err := g.base()
	if err != nil {
		return nil, err
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token.Reveal())
	req.Header.Set("Content-Type", "application/json")
	client, err := g.client()
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		return nil, refusal(res)
	}
	return res.Body, nil
}

// tls trusts what the caller trusts.
func (g *gateway) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if g.ca != "" {
		pem, err := os.ReadFile(g.ca)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s holds no certificate in PEM form", g.ca)
		}
	}
	return config, nil
}

func (g *gateway) client() (*http.Client, error) {
	config, err := g.tls()
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
			ResponseHeaderTimeout: time.Minute},
		// A redirect would carry the token to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

func refusal(res *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	var denial access.Denial
	if err != nil || json.Unmarshal(b, &denial) != nil || denial.Message == "" {
		return fmt.Errorf("gateway: %s", res.Status)
	}
	return &denial
}

// get fetches path into v.
func (g *gateway) get(ctx context.Context, path string, v any) error {
	return g.call(ctx, http.MethodGet, path, nil, v)
}

func (g *gateway) call(ctx context.Context, method, path string, in, v any) error {
	body, err := g.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return fmt.Errorf("gateway: the answer is not what was expected: %w", err)
	}
	return nil
}

// print writes v as JSON when asked to, else what table writes into columns.
func (g *gateway) print(w io.Writer, v any, table func(w io.Writer)) error {
	switch g.output {
	case "json":
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(v)
	case "table":
		columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		table(columns)
		return columns.Flush()
	}
	return fmt.Errorf("%w: --output is table or json", errUsage)
}

// block makes text inert and keeps its lines.
func block(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = record.Visible(l)
	}
	return strings.Join(lines, "\n")
}

// line makes text inert and puts it on one line, cut to a length that fits a
// list: what subagents wrote must not steer a reviewer's terminal.
func line(s string) string {
	s = strings.Join(strings.Fields(record.Visible(s)), " ")
	if runes := []rune(s); len(runes) > 80 {
		s = string(runes[:79]) + "…"
	}
	return s
}

// age is a moment for a list: local time, to the second.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
