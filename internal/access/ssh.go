package access

import (
	"fmt"
	"slices"
	"strings"
)

// The acts of an SSHCall.
const (
	ActExec      = "exec"      // a command line that is none of the transfers below
	ActShell     = "shell"     // a login shell: what is typed in it is recorded, not judged
	ActSFTP      = "sftp"      // one operation of an SFTP session
	ActSCP       = "scp"       // scp's own protocol: the server's command line
	ActRsync     = "rsync"     // rsync --server
	ActGit       = "git"       // git-upload-pack, git-receive-pack, git-upload-archive
	ActSubsystem = "subsystem" // another subsystem than sftp
	ActForward   = "forward"   // a forwarded connection or socket, or the wish to listen for them
	ActAgent     = "agent"     // forwarding of the client's agent
	ActX11       = "x11"       // forwarding of an X display
)

// Acts lists the acts of an SSHCall.
func Acts() []string {
	return []string{ActExec, ActShell, ActSFTP, ActSCP, ActRsync, ActGit, ActSubsystem, ActForward, ActAgent, ActX11}
}

// The operations of a transfer that is more than one file operation.
const (
	OperationRead  = "read"  // from the host: scp -f, rsync --server --sender, git fetch and archive; a file of SFTP
	OperationWrite = "write" // to the host: scp -t, rsync --server, git push; a file of SFTP
)

// SSHCall is one act on a host as the judge understood it. Paths are absolute,
// begin with ~/ (below the home directory of User, whose name the gateway need
// not know), or are ~ itself; none holds a "." or ".." element. Symbolic links
// on the host are not followed.
type SSHCall struct {
	Act  string `json:"act"`
	User string `json:"user"` // the account on the host
	// Command is the command line or the name of the subsystem, as the client
	// sent it, which is as the host gets it.
	Command string `json:"command,omitempty"`
	// Operation is what a transfer does: read or write for scp, rsync and git;
	// for sftp one of the operations that docs/policy/ssh.md lists; for forward
	// the kind of channel or request (RFC 4254, section 7, and OpenSSH's own).
	Operation string `json:"operation,omitempty"`
	Terminal  bool   `json:"terminal,omitempty"` // it runs in a pseudo-terminal
	// Environment is what the client set and the gateway would pass on.
	Environment map[string]string `json:"environment,omitempty"`

	// Commands is every simple command that Command can run, as its words, in
	// the order of the text. Programs are their first words, sorted, unique.
	Commands [][]string `json:"commands,omitempty"`
	Programs []string   `json:"programs,omitempty"`
	Reads    []string   `json:"reads,omitempty"`   // paths, sorted, unique
	Writes   []string   `json:"writes,omitempty"`  // made or changed
	Removes  []string   `json:"removes,omitempty"` // removed, or renamed away
	ReadOnly bool       `json:"read_only"`         // everything about it is known to change nothing on the host

	Host string `json:"host,omitempty"` // of a forward: where to, or where to listen; a path for sockets
	Port int    `json:"port,omitempty"`

	// Unknown is why it is not known what runs: then Commands, Programs and all
	// paths are what was found, and there may be more.
	Unknown []string `json:"unknown,omitempty"`
	// UnknownPaths is why it is not known which paths are touched, though it is
	// known what runs.
	UnknownPaths []string `json:"unknown_paths,omitempty"`
}

// ProgramsOf lists the first words of commands, sorted, each once.
func ProgramsOf(commands [][]string) []string {
	var programs []string
	for _, words := range commands {
		if len(words) > 0 {
			programs = append(programs, words[0])
		}
	}
	slices.Sort(programs)
	return slices.Compact(programs)
}

// String names the act in a few words: "exec of uptime", "sftp read of /srv/a".
func (s *SSHCall) String() string {
	paths := s.Paths()
	switch {
	case s.Act == ActShell:
		return "a shell"
	case s.Command != "" && s.Act != ActSFTP:
		return s.Act + " of " + s.Command
	case len(paths) > 0:
		return strings.TrimSpace(s.Act+" "+s.Operation) + " of " + strings.Join(paths, ", ")
	case s.Act == ActForward:
		return fmt.Sprintf("%s %s to %s:%d", s.Act, s.Operation, s.Host, s.Port)
	}
	return strings.TrimSpace(s.Act + " " + s.Operation)
}

// Shape names the act without any value: "exec: grep, sudo", "sftp read".
func (s *SSHCall) Shape() string {
	shape := strings.TrimSpace(s.Act + " " + s.Operation)
	if s.Act == ActExec && len(s.Programs) > 0 {
		shape += ": " + strings.Join(s.Programs, ", ")
	}
	if len(s.Unknown) > 0 {
		shape += " (partly unknown)"
	}
	return shape
}

// Paths lists what is read, written or removed, sorted, each once.
func (s *SSHCall) Paths() []string {
	all := slices.Concat(s.Reads, s.Writes, s.Removes)
	slices.Sort(all)
	return slices.Compact(all)
}
