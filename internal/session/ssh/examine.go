package ssh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
)

// An Examination is what one account of a host lets the gateway, and others, do.
type Examination struct {
	Resource string `json:"resource"`
	Account  string `json:"account"`
	// Missing is what keeps sessions from working, Risks what goes past the
	// gateway or is wider than it need be, Lines what puts it right in the host's
	// sshd_config.
	Missing []string `json:"missing"`
	Risks   []string `json:"risks"`
	Lines   []string `json:"lines"`
}

// examiner looks at one account.
type examiner struct {
	*Examination
	keys     *authority.Keys
	resource Resource
	clock    func() time.Time
}

// Examine logs in at the host as the account, as a session would, and asks it for
// what it should refuse. It changes nothing there. An error means that the host
// could not be reached.
func Examine(ctx context.Context, keys *authority.Keys, r Resource, account string, clock func() time.Time) (*Examination, error) {
	x := &examiner{&Examination{Resource: r.Access.Name, Account: account, Missing: []string{}, Risks: []string{}, Lines: []string{}}, keys, r, clock}
	if account == "root" {
		x.risk("the account is root: whatever a rule allows is done with all rights", "")
	}
	signer, err := keys.ForTarget(account, "chaperone doctor", clock())
	if err != nil {
		return nil, err
	}
	client, err := r.login(ctx, account, clock, gossh.PublicKeys(signer))
	switch {
	case errors.Is(err, errHostKey):
		x.Missing = append(x.Missing, strings.TrimPrefix(err.Error(), "ssh: handshake failed: "))
		return x.Examination, nil
	case err != nil && strings.Contains(err.Error(), "unable to authenticate"):
		x.Missing = append(x.Missing, "the host does not take the gateway's certificate for "+account+": it does not trust the authority, or the account's AuthorizedPrincipals do not name it")
		x.Lines = append(x.Lines, "TrustedUserCAKeys /etc/ssh/chaperone_ca.pub  # with: "+authority.AuthorizedKey(keys.TargetCA()))
	case err != nil:
		return nil, err
	default:
		defer client.Close()
		x.inside(client)
	}
	return x.Examination, x.outside(ctx)
}

func (x *examiner) risk(text, line string) {
	x.Risks = append(x.Risks, text)
	if line != "" && !slices.Contains(x.Lines, line) {
		x.Lines = append(x.Lines, line)
	}
}

// outside tries what must not open the account.
func (x *examiner) outside(ctx context.Context) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	nobody, err := x.keys.ForTarget("chaperone-doctor-nobody", "chaperone doctor", x.clock())
	if err != nil {
		return err
	}
	password := gossh.PasswordCallback(func() (string, error) {
		x.risk("the host asks for passwords: whoever has one goes past the gateway", "PasswordAuthentication no")
		return "", errors.New("none is given")
	})
	interactive := gossh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) {
		x.risk("the host asks questions (keyboard-interactive): whoever answers them goes past the gateway", "KbdInteractiveAuthentication no")
		return nil, errors.New("nothing is answered")
	})
	for _, try := range []struct {
		what, line string
		auth       []gossh.AuthMethod
	}{
		{"any key opens the account", "AuthorizedKeysCommand none", []gossh.AuthMethod{gossh.PublicKeys(key)}},
		{"a certificate for another account opens this one", "AuthorizedPrincipalsFile none", []gossh.AuthMethod{gossh.PublicKeys(nobody)}},
		{"the account opens without a credential", "PermitEmptyPasswords no", nil},
		{"the account opens by a password that nobody gave", "PermitEmptyPasswords no", []gossh.AuthMethod{password}},
		{"the account opens by answers that nobody gave", "KbdInteractiveAuthentication no", []gossh.AuthMethod{interactive}},
	} {
		client, err := x.resource.login(ctx, x.Account, x.clock, try.auth...)
		if err == nil {
			client.Close()
			x.risk(try.what, try.line)
		} else if !strings.Contains(err.Error(), "ssh: ") {
			return err
		}
	}
	return nil
}

func newKey() (gossh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return gossh.NewSignerFromKey(private)
}

// dangerous are variables that change what a permitted command does.
var dangerous = []string{"LD_PRELOAD", "PATH", "BASH_ENV", "GIT_SSH_COMMAND", "CHAPERONE_DOCTOR"}

// inside asks for what a session has no need of.
func (x *examiner) inside(client *gossh.Client) {
	if shell, ok := output(client, `echo "$SHELL"`); !ok {
		x.Missing = append(x.Missing, "commands do not run: the account has a forced command, or no shell")
	} else if name := path.Base(strings.TrimSpace(shell)); !slices.Contains(knownShells, name) {
		x.Missing = append(x.Missing, fmt.Sprintf("the login shell %s does not read commands as the gateway does; choose one of %s", access.Printable(name, 64), strings.Join(knownShells, ", ")))
	}
	if _, ok := output(client, `test -s "$HOME/.ssh/authorized_keys"`); ok {
		x.risk("keys in ~/.ssh/authorized_keys open the account past the gateway", "Match User "+x.Account+"\n    AuthorizedKeysFile none")
	}
	if _, _, err := client.OpenChannel("direct-tcpip", gossh.Marshal(struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}{"127.0.0.1", 1, "127.0.0.1", 1})); !prohibited(err) {
		x.risk("the host forwards connections; needed only if a rule allows forwards", "AllowTcpForwarding no")
	}
	session, err := client.NewSession()
	if err != nil {
		return
	}
	defer session.Close()
	var taken []string
	for _, name := range dangerous {
		if session.Setenv(name, "x") == nil {
			taken = append(taken, name)
		}
	}
	if len(taken) > 0 {
		x.risk("the host takes the variables "+strings.Join(taken, ", ")+"; the gateway passes on only what ssh.environment names", "AcceptEnv LANG LC_* GIT_PROTOCOL")
	}
}

// prohibited reports whether the host refuses to connect at all.
func prohibited(err error) bool {
	var open *gossh.OpenChannelError
	return errors.As(err, &open) && open.Reason == gossh.Prohibited
}

// knownShells read command lines as package shell does.
var knownShells = []string{"sh", "bash", "dash", "ash", "ksh", "ksh93", "mksh", "zsh", "busybox", "fish"}

// output runs a command, and reports whether it succeeded.
func output(client *gossh.Client, command string) (string, bool) {
	session, err := client.NewSession()
	if err != nil {
		return "", false
	}
	defer session.Close()
	out, err := session.Output(command)
	return string(out), err == nil
}
