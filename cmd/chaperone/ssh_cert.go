package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/directory"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
)

// defaultSSHFolder is where keys and certificates are kept; ~ is the home.
const defaultSSHFolder = "~/.ssh/chaperone"

func sshCertCommand() *cobra.Command {
	g, dir, refresh := &gateway{}, "", false
	c := &cobra.Command{
		Use:   "ssh-cert RESOURCE",
		Short: "Have a key certified for ssh to a host, for a few minutes",
		Long: `ssh-cert makes a key for the host, once, and has the gateway certify it for as long as its configuration says
(minutes), but never longer than your token lasts. A certificate that is still fresh is kept. The key, the
certificate (RESOURCE-cert.pub) and the gateway's own authority (known_hosts) are in the folder --dir.

The lines that chaperone env --ssh-config prints have ssh run this by itself.`,
		Example: `  chaperone ssh-cert web
  ssh -i ~/.ssh/chaperone/web -o UserKnownHostsFile=~/.ssh/chaperone/known_hosts -p 2222 deploy@web@gateway.internal uptime`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: g.completeResources,
		RunE: func(c *cobra.Command, args []string) error {
			folder, err := sshFolder(dir)
			if err != nil {
				return err
			}
			return g.certify(c.Context(), folder, args[0], refresh)
		},
	}
	g.flags(c)
	c.Flags().StringVar(&dir, "dir", defaultSSHFolder, "folder of keys and certificates")
	c.Flags().BoolVar(&refresh, "refresh", false, "get a new certificate even if the kept one is still good")
	return c
}

var hostResource = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// certify leaves a fresh certificate for the resource in the folder.
func (g *gateway) certify(ctx context.Context, folder, resource string, refresh bool) error {
	if !hostResource.MatchString(resource) { // it names a file
		return fmt.Errorf("%w: %q is not the name of a resource", errUsage, line(resource))
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	path := filepath.Join(folder, resource)
	key, err := clientKey(path)
	if err != nil {
		return err
	}
	if !refresh && freshCertificate(path+"-cert.pub", key, time.Now()) {
		return nil
	}
	token, err := g.token(ctx)
	if err != nil {
		return err
	}
	d, err := g.directory(ctx, token)
	if err != nil {
		return err
	}
	host, err := hostOf(d, resource)
	if err != nil {
		return err
	}
	body, err := g.send(ctx, http.MethodPost, authority.Path, token, authority.Ask{PublicKey: authority.AuthorizedKey(key), Resources: []string{resource}})
	if err != nil {
		return err
	}
	defer body.Close()
	var answer authority.Answer
	if err := json.NewDecoder(body).Decode(&answer); err != nil {
		return fmt.Errorf("gateway: the answer is not what was expected: %w", err)
	}
	if _, err := parseCertificate(answer.Certificate, key); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	name := host.Host
	if host.Port != 22 {
		name = "[" + host.Host + "]:" + strconv.Itoa(host.Port)
	}
	return errors.Join(writeSecret(path+"-cert.pub", answer.Certificate+"\n"), trustHost(filepath.Join(folder, "known_hosts"), name, answer.CA))
}

// hostOf finds a host in what the token reaches.
func hostOf(d directory.Document, name string) (directory.Resource, error) {
	at := slices.IndexFunc(d.Resources, func(r directory.Resource) bool { return r.Name == name })
	if at < 0 {
		return directory.Resource{}, fmt.Errorf("your token does not reach %q; it reaches: %s", line(name), line(strings.Join(resourceNames(d), ", ")))
	}
	if r := d.Resources[at]; r.Kind == access.SSH && r.Port > 0 && regexp.MustCompile(`^[A-Za-z0-9.:-]+$`).MatchString(r.Host) {
		return r, nil
	}
	return directory.Resource{}, fmt.Errorf("%q is not reached by ssh", line(name))
}

// clientKey reads the client's key for a host, or makes it.
func clientKey(path string) (gossh.PublicKey, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		signer, err := gossh.ParsePrivateKey(b)
		if err != nil {
			return nil, fmt.Errorf("%s is not a private key without a passphrase; remove it to have a new one made", path)
		}
		return signer.PublicKey(), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := gossh.MarshalPrivateKey(private, "chaperone "+filepath.Base(path))
	if err != nil {
		return nil, err
	}
	if err := writeSecret(path, string(pem.EncodeToMemory(block))); err != nil {
		return nil, err
	}
	return gossh.NewPublicKey(public)
}

func parseCertificate(text string, key gossh.PublicKey) (*gossh.Certificate, error) {
	parsed, _, _, rest, err := gossh.ParseAuthorizedKey([]byte(text))
	if err != nil || len(rest) > 0 {
		return nil, errors.New("the certificate cannot be read")
	}
	cert, ok := parsed.(*gossh.Certificate)
	if !ok || string(cert.Key.Marshal()) != string(key.Marshal()) {
		return nil, errors.New("the certificate is for another key")
	}
	return cert, nil
}

// freshCertificate reports whether a third of the certificate's life is left,
// and time enough to connect.
func freshCertificate(path string, key gossh.PublicKey, now time.Time) bool {
	b, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	cert, err := parseCertificate(strings.TrimSpace(string(b)), key)
	if err != nil {
		return false
	}
	from, until := time.Unix(int64(cert.ValidAfter), 0), time.Unix(int64(cert.ValidBefore), 0)
	return until.Sub(now) > max(until.Sub(from)/3, authority.MinLife)
}

// trustHost keeps the one line that says who certifies the gateway, which
// known_hosts calls name.
func trustHost(path, name, ca string) error {
	if _, _, _, _, err := gossh.ParseAuthorizedKey([]byte(ca)); err != nil || strings.ContainsAny(ca, "\r\n") {
		return errors.New("gateway: its authority is not a public key")
	}
	wanted := "@cert-authority " + name + " " + ca
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lines := []string{}
	for l := range strings.Lines(string(b)) {
		l = strings.TrimSpace(l)
		if l == wanted {
			return nil
		}
		if l != "" && !strings.HasPrefix(l, "@cert-authority "+name+" ") {
			lines = append(lines, l)
		}
	}
	return writeSecret(path, strings.Join(append(lines, wanted), "\n")+"\n")
}

func sshFolder(dir string) (string, error) {
	rest, home := strings.CutPrefix(dir, "~/")
	if !home {
		return filepath.Abs(dir)
	}
	folder, err := os.UserHomeDir()
	return filepath.Join(folder, rest), err
}

// sshLines is what ~/.ssh/config needs. The certificate is looked after before
// anything else is read; when that fails, the gateway says why.
var sshLines = template.Must(template.New("ssh_config").Parse(`Match originalhost {{.Name}} exec "{{.Command}}"
Host {{.Name}}
    HostName {{.Host}}
    Port {{.Port}}
    User {{.User}}
    IdentityFile "{{.Folder}}/{{.Name}}"
    CertificateFile "{{.Folder}}/{{.Name}}-cert.pub"
    IdentitiesOnly yes
    PreferredAuthentications publickey
    UserKnownHostsFile "{{.Folder}}/known_hosts"
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com
    UpdateHostKeys no
    ForwardAgent no
    ForwardX11 no
`))

// connectLines are the same for the way through the HTTPS port, where the token
// of the connection is who one is.
var connectLines = template.Must(template.New("ssh_config").Parse(`Host {{.Name}}
    HostName {{.Name}}
    User {{.User}}
    ProxyCommand {{.Command}}
    HostKeyAlias {{.Gateway}}
    PubkeyAuthentication no
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    UserKnownHostsFile "{{.Folder}}/known_hosts"
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com
    UpdateHostKeys no
    ForwardAgent no
    ForwardX11 no
`))

// sshConfig prints the lines for the hosts.
func (g *gateway) sshConfig(c *cobra.Command, names []string, dir string, connect bool) error {
	folder, err := sshFolder(dir)
	if err != nil {
		return err
	}
	token, err := g.token(c.Context())
	if err != nil {
		return err
	}
	d, err := g.directory(c.Context(), token)
	if err != nil {
		return err
	}
	for _, name := range names {
		host, err := hostOf(d, name)
		if err != nil {
			return err
		}
		if err := g.sshHost(c.OutOrStdout(), host, folder, connect); err != nil {
			return err
		}
	}
	return nil
}

// sshHost writes the lines for one host.
func (g *gateway) sshHost(w io.Writer, host directory.Resource, folder string, connect bool) error {
	base, err := g.base()
	if err != nil {
		return err
	}
	gateway, err := url.Parse(base)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	lines, command := sshLines, []string{self, "ssh-cert", host.Name, "--dir", folder, "--gateway", g.url}
	if connect {
		lines, command = connectLines, []string{self, "connect", host.Name, "--known-hosts", folder + "/known_hosts", "--gateway", g.url}
	}
	for _, file := range []struct{ flag, path string }{{"--ca", g.ca}, {"--token-file", g.tokenFile}} {
		if file.path != "" {
			command = append(command, file.flag, absolute(file.path))
		}
	}
	for _, word := range append(command, host.User, gateway.Hostname()) {
		if !regexp.MustCompile(`^[A-Za-z0-9_./:@+,=~-]+$`).MatchString(word) {
			return fmt.Errorf("%q cannot stand in ssh_config: choose plain names for files and folders", line(word))
		}
	}
	return lines.Execute(w, map[string]any{"Name": host.Name, "Command": strings.Join(command, " "), "Host": host.Host,
		"Port": host.Port, "Gateway": gateway.Hostname(), "User": host.User, "Folder": folder})
}
