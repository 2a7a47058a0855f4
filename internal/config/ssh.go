package config

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

var (
	accountName  = regexp.MustCompile(`^[a-z_][a-z0-9_.-]{0,31}$`)
	variableName = regexp.MustCompile(`^[A-Z_][A-Z0-9_]{0,63}$`)
)

// loaderVariables change what programs run, wherever they come from; a shell
// reads some of them before any command.
var loaderVariables = regexp.MustCompile(`^(LD_.*|DYLD_.*|BASH_.*|ENV|SHELLOPTS|IFS|PATH|PS4|PROMPT_COMMAND|HOME|SHELL|USER|LOGNAME|PYTHON.*|PERL.*|RUBY.*|NODE_.*|GIT_.*|SSH_.*|EDITOR|VISUAL|PAGER|LESS.*|RSYNC_.*)$`)

func (v *validation) sshGateway(s *SSHGateway) {
	if s.Keys == "" {
		s.Keys = filepath.Join(filepath.Dir(v.config.Store.Key), "ssh")
	}
	v.path(&s.Keys)
	if s.Life == 0 {
		s.Life = 5 * time.Minute
	}
	if s.Life < 10*time.Second || s.Life > time.Hour {
		v.fault("ssh.life", "is %s; it must be from 10s to 1h", s.Life)
	}
}

func (v *validation) ssh(path string, r *Resource) {
	v.address(path+".address", r.Address)
	if r.SSH == nil {
		v.fault(path+".ssh", "is needed")
		return
	}
	s := r.SSH
	path += ".ssh"
	if len(s.Users) == 0 {
		v.fault(path+".users", "at least one account of the host is needed")
	}
	for i, user := range s.Users {
		if !accountName.MatchString(user) || slices.Contains(s.Users[:i], user) {
			v.fault(fmt.Sprintf("%s.users[%d]", path, i), "must be the name of an account, once")
		}
	}
	if len(s.HostKeys) == 0 && len(s.HostCAs) == 0 {
		v.fault(path+".host_keys", "is needed, or host_cas: no host is trusted because it answers (ssh-keyscan shows its keys; compare them on the host)")
	}
	for name, lines := range map[string][]string{"host_keys": s.HostKeys, "host_cas": s.HostCAs} {
		for i, line := range lines {
			if _, err := PublicKey(line); err != nil {
				v.fault(fmt.Sprintf("%s.%s[%d]", path, name, i), "%s", err)
			}
		}
	}
	for i, name := range s.Environment {
		if !variableName.MatchString(name) || loaderVariables.MatchString(name) {
			v.fault(fmt.Sprintf("%s.environment[%d]", path, i), "%q is not a variable that a client may set", name)
		}
	}
}

// PublicKey reads a public key as configuration has it: type, base64, and
// perhaps a comment.
func PublicKey(line string) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("must be one public key: ssh-ed25519 AAAA…")
	}
	if _, ok := key.(*ssh.Certificate); ok || key.Type() == "ssh-dss" {
		return nil, fmt.Errorf("a key of type %s cannot prove a host", key.Type())
	}
	return key, nil
}
