package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/directory"
	"chaperone.dev/chaperone/internal/isolate"
)

func execCommand() *cobra.Command {
	g, t, whole, alone := &gateway{}, &tokenWish{}, false, &isolation{}
	c := &cobra.Command{
		Use:   "exec RESOURCE... -- COMMAND [ARGUMENT...]",
		Short: "Run a command with all set that it needs to reach resources",
		Long: `exec sets what chaperone env prints, with the token in files for you alone, which it keeps fresh while the
command runs: PGPASSFILE for psql and drivers, KUBECONFIG for kubectl, CHAPERONE_SSH_CONFIG for ssh -F (git and rsync are told),
CHAPERONE_TOKEN_FILE, and CHAPERONE_HEADER_FILE for curl. Each fresh token also
goes to the PostgreSQL sessions that are open, so that they last longer than the first one.
The exit status is the command's. Your own token is taken out of its environment.

With --isolate the command reaches the gateway and nothing else: no network, no service of this machine, no socket of
its file system. Files it reads and writes as you do. Where your user may make no namespaces, root may, with --user.`,
		Example: `  chaperone exec orders -- psql -c "select count(*) from orders"
  chaperone exec billing --read-only -- sh -c 'curl -H @"$CHAPERONE_HEADER_FILE" "$CHAPERONE_BILLING_URL"'
  chaperone exec orders billing --isolate --read-only -- ./agent`,
		ValidArgsFunction: g.completeResources,
		Args: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at < 1 || at == len(args) {
				return errors.New("write the resources, then --, then the command")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			at := c.ArgsLenAtDash()
			owner, err := alone.as()
			if err != nil {
				return err
			}
			token, found, err := g.reach(c.Context(), t, args[:at], whole)
			if err != nil {
				return err
			}
			dir, err := os.MkdirTemp("", "chaperone-exec-") // 0700
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			files := &tokenFiles{dir: dir, resources: found, gateway: g, owner: owner}
			if err := errors.Join(files.handOver(), files.write(token)); err != nil {
				return err
			}
			renew := func(ctx context.Context) (access.Secret, error) {
				token, _, err := g.reach(ctx, t, args[:at], whole)
				return token, err
			}
			return g.runWith(c, args[at:], alone, files, renew, token)
		},
	}
	g.flags(c)
	t.flags(c)
	alone.flags(c)
	c.Flags().BoolVar(&whole, "whole-token", false, "use your token as it is")
	return c
}

// tokenFiles are where the ordinary clients read the token anew each time.
type tokenFiles struct {
	dir       string
	resources []directory.Resource
	gateway   *gateway      // as the command is told of it
	owner     *isolate.User // of the files, when it is not oneself
}

func (f *tokenFiles) path(name string) string { return filepath.Join(f.dir, name) }

// secret replaces a file whole, for the owner alone.
func (f *tokenFiles) secret(name, text string) error {
	if f.owner == nil {
		return writeSecret(f.path(name), text)
	}
	return writeSecretFor(f.path(name), text, func(file *os.File) error { return file.Chown(f.owner.UID, f.owner.GID) })
}

// handOver prepares the folder for the owner, with certificates to trust that
// they can read. It stays ours: who owned it could put another folder, of the
// system's, in its place, and have us write there. In the one below it, which is
// theirs, we write nothing.
func (f *tokenFiles) handOver() error {
	if err := os.Mkdir(f.path("ssh"), 0o700); err != nil || f.owner == nil {
		return err
	}
	if err := errors.Join(os.Chown(f.path("ssh"), f.owner.UID, f.owner.GID), os.Chmod(f.dir, 0o711)); err != nil || f.gateway.ca == "" {
		return err
	}
	pem, err := os.ReadFile(f.gateway.ca)
	if err != nil {
		return err
	}
	shown := *f.gateway
	shown.ca, f.gateway = f.path("ca.crt"), &shown
	return f.secret("ca.crt", string(pem))
}

func (f *tokenFiles) write(token access.Secret) error {
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace
	var pass strings.Builder
	for _, r := range f.resources {
		if r.Kind == access.Postgres {
			fmt.Fprintf(&pass, "%s:%d:%s:*:%s\n", escape(r.Host), r.Port, escape(r.Database), escape(token.Reveal()))
		}
	}
	return errors.Join(f.secret("token", token.Reveal()+"\n"), f.secret("header", "Authorization: Bearer "+token.Reveal()+"\n"),
		f.secret("pgpass", pass.String()), f.writeKubeconfig(), f.writeSSHConfig())
}

// writeSSHConfig lets ssh reach hosts through the gateway's HTTPS port, with the
// token in its file: there is no certificate to keep fresh.
func (f *tokenFiles) writeSSHConfig() error {
	var text strings.Builder
	for _, r := range f.resources {
		if r.Kind != access.SSH {
			continue
		}
		shown := *f.gateway
		shown.tokenFile = f.path("token")
		if err := shown.sshHost(&text, r, f.path("ssh"), true); err != nil {
			return err
		}
	}
	if text.Len() == 0 {
		return nil
	}
	return f.secret("ssh_config", text.String())
}

// environment is the caller's own, without what holds or gets its own token.
func (f *tokenFiles) environment(set map[string]string) []string {
	set["PGPASSFILE"], set["CHAPERONE_TOKEN_FILE"], set["CHAPERONE_HEADER_FILE"] = f.path("pgpass"), f.path("token"), f.path("header")
	if slices.ContainsFunc(f.resources, isKubernetes) {
		set["KUBECONFIG"] = f.path("kubeconfig")
	}
	if slices.ContainsFunc(f.resources, func(r directory.Resource) bool { return r.Kind == access.SSH }) {
		set["CHAPERONE_SSH_CONFIG"] = f.path("ssh_config")
		set["GIT_SSH_COMMAND"] = "ssh -F " + f.path("ssh_config")
		set["RSYNC_RSH"] = set["GIT_SSH_COMMAND"]
	}
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "CHAPERONE_TOKEN", "PGPASSWORD", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN":
			continue
		}
		env = append(env, kv)
	}
	for name, value := range set {
		env = append(env, name+"="+value)
	}
	return env
}

// stopGrace is how long a command has after SIGTERM.
const stopGrace = 10 * time.Second

// runWith runs the command and keeps its files fresh.
func (g *gateway) runWith(c *cobra.Command, command []string, alone *isolation, files *tokenFiles, renew func(context.Context) (access.Secret, error), token access.Secret) error {
	env := files.environment(files.gateway.variables(files.resources))
	if alone.on {
		env = unproxied(env)
	}
	cmd := exec.CommandContext(c.Context(), command[0], command[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, os.Stdin, c.OutOrStdout(), c.ErrOrStderr()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	ctx, stop := context.WithCancel(c.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.keepFresh(ctx, c.ErrOrStderr(), files, renew, token)
	}()
	err := alone.run(ctx, cmd, g, files)
	stop()
	<-done
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &exitStatus{exit}
	}
	return err
}

// keepFresh writes a new token whenever the old one has lived for two thirds,
// until ctx ends, and gives it to the sessions that are open. When there is none to be had, the old files stay and it tries
// again.
func (g *gateway) keepFresh(ctx context.Context, stderr io.Writer, files *tokenFiles, renew func(context.Context) (access.Secret, error), token access.Secret) {
	for {
		timer := time.NewTimer(nextRenewal(token, time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		next, err := renew(ctx)
		if err == nil {
			err = files.write(next)
		}
		if err == nil {
			_, err = g.renewSessions(ctx, next)
		}
		if err == nil {
			token = next
		}
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(stderr, "chaperone: the token is not renewed: %v\n", err)
		}
	}
}

// nextRenewal is how long from now until the token is not fresh any more, and at
// least a pause between two tries.
func nextRenewal(token access.Secret, now time.Time) time.Duration {
	const tryAgain = 5 * time.Second
	issued, expires, err := lifeOf(token)
	if err != nil {
		return tryAgain
	}
	return max(expires.Sub(now)-min(expires.Sub(issued)/3, 5*time.Minute)+time.Second, tryAgain)
}

// An exitStatus is how a command that we ran ended.
type exitStatus struct{ *exec.ExitError }

// status is the shell's: 128 and the signal for one that was killed.
func (e *exitStatus) status() int {
	if w, ok := e.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return e.ExitCode()
}
