// Package cluster asks Kubernetes API servers what the gateway itself wants to
// know: what a held request would change, what a deletion would take along, and
// what the gateway's own account may do. It carries no request of a client: what
// it sends changes nothing at the API server.
package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
)

// A Target is an API server as the configuration has it, and who the gateway is
// there.
type Target struct {
	Address string        // host:port
	Host    string        // its Host header
	TLS     *tls.Config   // trusts it alone; holds the client certificate, if that is the credential
	Token   access.Secret // empty: the certificate is the credential
	// Literals are what no answer may show. Nil is nothing.
	Literals *mask.Literals
}

// Bounds on one answer of an API server.
const (
	maxReply       = 8 << 20
	connectTimeout = 5 * time.Second
)

// errTooLong is an answer above maxReply.
var errTooLong = errors.New("the answer is too long")

// A Conn asks one API server. It is safe for concurrent use; Close it.
type Conn struct {
	target Target
	as     http.Header // impersonation; may be nil
	client *http.Client
}

// Connect returns a Conn that acts as the headers say, or as the gateway's
// account when there are none. It does not dial yet.
func (t Target) Connect(as http.Header) *Conn {
	transport := &http.Transport{TLSClientConfig: t.TLS.Clone(), ForceAttemptHTTP2: true, TLSHandshakeTimeout: connectTimeout, MaxConnsPerHost: 4,
		MaxResponseHeaderBytes: 64 << 10, DisableCompression: true}
	return &Conn{target: t, as: as, client: &http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// Close ends idle connections.
func (c *Conn) Close() { c.client.CloseIdleConnections() }

// A call is one request of the gateway.
type call struct {
	method, path string
	query        url.Values
	accept       string // default application/json
	contentType  string
	body         []byte
}

// A reply is an answer, whole.
type reply struct {
	status int
	body   []byte
}

// do sends a call. An error says that there was no whole answer.
func (c *Conn) do(ctx context.Context, in call) (reply, error) {
	u := url.URL{Scheme: "https", Host: c.target.Address, Path: in.path, RawQuery: in.query.Encode()}
	req, err := http.NewRequestWithContext(ctx, in.method, u.String(), bytes.NewReader(in.body))
	if err != nil {
		return reply{}, err
	}
	for name, values := range c.as {
		req.Header[name] = values
	}
	if !c.target.Token.Empty() {
		req.Header.Set("Authorization", "Bearer "+c.target.Token.Reveal())
	}
	req.Host = c.target.Host
	req.Header.Set("User-Agent", "chaperone")
	req.Header.Set("Accept", "application/json")
	if in.accept != "" {
		req.Header.Set("Accept", in.accept)
	}
	if in.contentType != "" {
		req.Header.Set("Content-Type", in.contentType)
	}
	res, err := c.client.Do(req)
	if err != nil {
		return reply{}, fmt.Errorf("the API server: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxReply+1))
	if err != nil {
		return reply{}, fmt.Errorf("the API server's answer: %w", err)
	}
	if len(body) > maxReply {
		return reply{}, errTooLong
	}
	return reply{res.StatusCode, body}, nil
}
