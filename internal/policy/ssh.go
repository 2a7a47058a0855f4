package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"go.yaml.in/yaml/v3"

	"chaperone.dev/chaperone/internal/access"
)

// This file is all of policy that is about hosts alone: what conditions read of
// an act, and how cases say one.

const unknownField = "unknown"

// sshUnknowable lists the fields that may be unknown.
func sshUnknowable() []string {
	return []string{"ssh.commands", "ssh.programs", "ssh.paths", "ssh.reads", "ssh.writes", "ssh.removes"}
}

func sshType(strs *cel.Type) *objectType {
	of := func(name string, kind *cel.Type, doc string, read func(*access.SSHCall, boxer) any) field {
		return field{name, kind, doc, func(source any, box boxer) any { return read(source.(*access.SSHCall), box) }}
	}
	text := func(name, doc string, read func(*access.SSHCall) string) field {
		return of(name, cel.StringType, doc, func(s *access.SSHCall, box boxer) any { return box.str(read(s)) })
	}
	paths := func(name, doc string, read func(*access.SSHCall) []string) field {
		return of(name, strs, doc, func(s *access.SSHCall, box boxer) any {
			if !runsKnown(s) || len(s.UnknownPaths) > 0 {
				return box.unknown["ssh."+name]
			}
			return box.list(read(s))
		})
	}
	return newObjectType("ssh", "chaperone.SSH",
		text("act", strings.Join(access.Acts(), ", "), func(s *access.SSHCall) string { return s.Act }),
		text("user", "the account on the host", func(s *access.SSHCall) string { return s.User }),
		text("command", "the command line, or the name of the subsystem, as sent", func(s *access.SSHCall) string { return s.Command }),
		text("operation", "what a transfer or a forward does", func(s *access.SSHCall) string { return s.Operation }),
		of("terminal", cel.BoolType, "it runs in a terminal", func(s *access.SSHCall, _ boxer) any { return types.Bool(s.Terminal) }),
		of("environment", cel.MapType(cel.StringType, cel.StringType), "what the client set", func(s *access.SSHCall, box boxer) any {
			return types.NewStringStringMap(box.adapter, s.Environment)
		}),
		of("commands", cel.ListType(strs), "every simple command, as its words", commandsOf),
		of("programs", strs, "first words of the commands", func(s *access.SSHCall, box boxer) any {
			switch {
			case !runsKnown(s):
				return box.unknown["ssh.programs"]
			case s.Act == access.ActSFTP:
				return box.list([]string{s.Act})
			}
			return box.list(s.Programs)
		}),
		paths("paths", "paths that it reads, writes or removes", (*access.SSHCall).Paths),
		paths("reads", "paths that it reads", func(s *access.SSHCall) []string { return s.Reads }),
		paths("writes", "paths that it makes or changes", func(s *access.SSHCall) []string { return s.Writes }),
		paths("removes", "paths that it removes", func(s *access.SSHCall) []string { return s.Removes }),
		of("read_only", cel.BoolType, "everything about it is known to change nothing on the host", func(s *access.SSHCall, _ boxer) any {
			return types.Bool(s.ReadOnly && runsKnown(s) && len(s.UnknownPaths) == 0)
		}),
		text("host", "of a forward: where to, or where to listen", func(s *access.SSHCall) string { return s.Host }),
		of("port", cel.IntType, "of a forward", func(s *access.SSHCall, _ boxer) any { return types.Int(s.Port) }),
		of(unknownField, strs, "why it is not known what runs", func(s *access.SSHCall, box boxer) any { return box.list(s.Unknown) }),
		of("unknown_paths", strs, "why it is not known which paths are touched", func(s *access.SSHCall, box boxer) any { return box.list(s.UnknownPaths) }),
	)
}

// runsKnown reports whether it is known which programs run: never of a shell,
// of another subsystem, nor of what lies behind a forward. An empty list of
// commands would say yes to every condition that asks all of them.
func runsKnown(s *access.SSHCall) bool {
	return len(s.Unknown) == 0 && slices.Contains([]string{access.ActExec, access.ActSFTP, access.ActSCP, access.ActRsync, access.ActGit}, s.Act)
}

func commandsOf(s *access.SSHCall, box boxer) any {
	if !runsKnown(s) {
		return box.unknown["ssh.commands"]
	}
	commands := s.Commands
	if s.Act == access.ActSFTP {
		commands = [][]string{{s.Act}}
	}
	boxed := make([]ref.Val, len(commands))
	for i, words := range commands {
		boxed[i] = box.list(words)
	}
	return types.NewRefValList(box.adapter, boxed)
}

func isSmallSSH(s *access.SSHCall) bool {
	if len(s.Command) > smallText || len(s.Commands) > smallList || len(s.Environment) > smallList ||
		!areSmall([]string{s.Act, s.User, s.Operation, s.Host}, s.Programs, s.Paths(), s.Unknown, s.UnknownPaths) || !areSmall(s.Commands...) {
		return false
	}
	for name, value := range s.Environment {
		if !isSmallName(name) || !isSmallName(value) {
			return false
		}
	}
	return true
}

func whyUnknownSSH(s *access.SSHCall) string {
	why := slices.Concat(s.Unknown, s.UnknownPaths)
	switch {
	case len(why) > 0:
		return ": " + shortened(strings.Join(why, "; "))
	case !runsKnown(s):
		return ": nothing says what a " + s.Act + " runs"
	}
	return ""
}

type sshFile struct {
	Act         string            `yaml:"act" need:"yes" oneof:"exec,shell,sftp,scp,rsync,git,subsystem,forward,agent,x11"`
	User        string            `yaml:"user"`
	Command     string            `yaml:"command" doc:"As sent; left out, the words of commands."`
	Operation   string            `yaml:"operation"`
	Terminal    bool              `yaml:"terminal"`
	Environment map[string]string `yaml:"environment"`
	Commands    [][]string        `yaml:"commands" doc:"Every simple command, as its words."`
	Reads       []string          `yaml:"reads"`
	Writes      []string          `yaml:"writes"`
	Removes     []string          `yaml:"removes"`
	ReadOnly    bool              `yaml:"read_only"`
	Host        string            `yaml:"host"`
	Port        int               `yaml:"port"`

	Unknown      []string `yaml:"unknown" doc:"Why it is not known what runs."`
	UnknownPaths []string `yaml:"unknown_paths" doc:"Why it is not known which paths are touched."`
}

func (f *sshFile) valid() error {
	switch {
	case !slices.Contains(access.Acts(), f.Act):
		return fmt.Errorf("act is one of %s", strings.Join(access.Acts(), ", "))
	case slices.ContainsFunc(f.Commands, func(words []string) bool { return len(words) == 0 }):
		return errors.New("a command has at least one word")
	case f.Port < 0 || f.Port > 65535:
		return errors.New("a port is between 0 and 65535")
	}
	return nil
}

func (f *sshFile) call() *access.SSHCall {
	s := &access.SSHCall{
		Act: f.Act, User: f.User, Command: f.Command, Operation: f.Operation, Terminal: f.Terminal, Environment: f.Environment,
		Commands: f.Commands, Programs: access.ProgramsOf(f.Commands), Reads: f.Reads, Writes: f.Writes, Removes: f.Removes, ReadOnly: f.ReadOnly,
		Host: f.Host, Port: f.Port, Unknown: f.Unknown, UnknownPaths: f.UnknownPaths,
	}
	if s.Command == "" && len(f.Commands) > 0 {
		lines := make([]string, len(f.Commands))
		for i, words := range f.Commands {
			lines[i] = strings.Join(words, " ")
		}
		s.Command = strings.Join(lines, "; ")
	}
	return s
}

func sshNode(s *access.SSHCall) *yaml.Node {
	n := mappingOf("act", s.Act, "user", s.User, "command", s.Command, "operation", s.Operation, "terminal", s.Terminal, "environment", s.Environment)
	put(n, "commands", s.Commands)
	put(n, "reads", s.Reads)
	put(n, "writes", s.Writes)
	put(n, "removes", s.Removes)
	put(n, "read_only", s.ReadOnly)
	put(n, "host", s.Host)
	put(n, "port", s.Port)
	put(n, "unknown", s.Unknown)
	put(n, "unknown_paths", s.UnknownPaths)
	return n
}
