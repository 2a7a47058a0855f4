package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
)

// connectWithin bounds everything before the gateway has let a connection through.
const connectWithin = 30 * time.Second

func connectCommand() *cobra.Command {
	g, knownHosts := &gateway{}, ""
	c := &cobra.Command{
		Use:   "connect RESOURCE",
		Short: "Carry one ssh connection to a host through the gateway's HTTPS port",
		Long: `connect has the gateway's HTTPS listener CONNECT it to the host, with your token, and carries what it reads and
writes: it is a ProxyCommand for ssh, for networks where the gateway's SSH port cannot be reached. ssh then needs no
certificate and no password: the token says who connects. A proxy in HTTPS_PROXY is used.

chaperone env --ssh-config --connect prints the lines for ~/.ssh/config.`,
		Example: `  ssh -o ProxyCommand="chaperone connect web" -o HostKeyAlias=gateway.internal deploy@web uptime
  chaperone env web --ssh-config --connect >> ~/.ssh/config; ssh web uptime`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: g.completeResources,
		RunE: func(c *cobra.Command, args []string) error {
			if !hostResource.MatchString(args[0]) {
				return fmt.Errorf("%w: %q is not the name of a resource", errUsage, line(args[0]))
			}
			token, err := g.token(c.Context())
			if err != nil {
				return err
			}
			if knownHosts != "" {
				if err := g.keepAuthority(c.Context(), token, knownHosts); err != nil {
					return err
				}
			}
			conn, err := g.connect(c.Context(), token, args[0])
			if err != nil {
				return err
			}
			return carry(c.Context(), conn, c.InOrStdin(), c.OutOrStdout())
		},
	}
	g.flags(c)
	c.Flags().StringVar(&knownHosts, "known-hosts", "", "file in which to note the authority of the gateway's host key, when it has none for the gateway yet")
	return c
}

// A tunnel is a connection that a proxy made; what the proxy sent of it along
// with its answer stands in the reader.
type tunnel struct {
	*tls.Conn
	reader *bufio.Reader
}

func (t tunnel) Read(p []byte) (int, error) { return t.reader.Read(p) }

// connect has the gateway let a connection to the host through.
func (g *gateway) connect(ctx context.Context, token access.Secret, resource string) (tunnel, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	base, err := g.base()
	if err != nil {
		return tunnel{}, err
	}
	config, err := g.tls()
	if err != nil {
		return tunnel{}, err
	}
	gateway, err := url.Parse(base)
	if err != nil {
		return tunnel{}, err
	}
	address := net.JoinHostPort(gateway.Hostname(), cmp.Or(gateway.Port(), "443"))
	raw, err := dialProxied(ctx, gateway, address)
	if err != nil {
		return tunnel{}, fmt.Errorf("gateway: %w", err)
	}
	config.ServerName, config.NextProtos = gateway.Hostname(), []string{"http/1.1"}
	conn := tls.Client(raw, config)
	reader, err := ask(ctx, conn, resource+":22", http.Header{"Proxy-Authorization": {"Bearer " + token.Reveal()}})
	if err != nil {
		conn.Close()
		return tunnel{}, err
	}
	return tunnel{conn, reader}, nil
}

// dialProxied reaches address, through the proxy of the environment if there is
// one for it.
func dialProxied(ctx context.Context, to *url.URL, address string) (net.Conn, error) {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: to})
	if err != nil {
		return nil, err
	}
	dial := (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	if proxy == nil {
		return dial(ctx, "tcp", address)
	}
	if proxy.Scheme != "http" {
		return nil, fmt.Errorf("the proxy of the environment is not an http one: %s", proxy.Redacted())
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), cmp.Or(proxy.Port(), "80")))
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	if password, ok := proxy.User.Password(); ok {
		basic := http.Request{Header: http.Header{}}
		basic.SetBasicAuth(proxy.User.Username(), password)
		header.Set("Proxy-Authorization", basic.Header.Get("Authorization"))
	}
	if _, err := ask(ctx, conn, address, header); err != nil { // TLS: the gateway says nothing before we do
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// ask sends a CONNECT and reads its answer. A refusal of the gateway's comes back
// as its *access.Denial.
func ask(ctx context.Context, conn net.Conn, authority string, header http.Header) (*bufio.Reader, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	request := &http.Request{Method: http.MethodConnect, Host: authority, URL: &url.URL{Host: authority}, Header: header}
	reader := bufio.NewReader(conn)
	if err := request.Write(conn); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	answer, err := http.ReadResponse(reader, request)
	switch {
	case err != nil:
		return nil, fmt.Errorf("gateway: %w", errors.Join(context.Cause(ctx), err))
	case answer.StatusCode != http.StatusOK:
		defer answer.Body.Close()
		return nil, refusal(answer)
	case !stop():
		return nil, context.Cause(ctx)
	}
	return reader, nil
}

// carry passes on both directions until the far end has no more, or ctx ends.
func carry(ctx context.Context, conn tunnel, in io.Reader, out io.Writer) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() { // ends with the connection, or with this process
		_, _ = io.Copy(conn.Conn, in)
		_ = conn.CloseWrite()
	}()
	_, err := io.Copy(out, conn)
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil // the far end ended it without ceremony
	}
	return err
}

// keepAuthority notes who certifies the gateway's host key in a known_hosts file
// that says nothing of the gateway yet.
func (g *gateway) keepAuthority(ctx context.Context, token access.Secret, path string) error {
	base, err := g.base()
	if err != nil {
		return err
	}
	gateway, err := url.Parse(base)
	if err != nil {
		return err
	}
	known, err := os.ReadFile(path)
	if err == nil && strings.Contains("\n"+string(known), "\n@cert-authority "+gateway.Hostname()+" ") {
		return nil
	}
	d, err := g.directory(ctx, token)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return trustHost(path, gateway.Hostname(), d.SSHAuthority)
}
