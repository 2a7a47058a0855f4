package shell

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds on one command line. What is longer is unknown.
const (
	maxText     = 8192 // bytes
	maxCommands = 64
	maxDepth    = 4  // of sh -c in sh -c, and of wrappers in wrappers
	maxReasons  = 16 // that are listed
	maxQuoted   = 60 // bytes of the text in a reason
)

// Judge says what command would run in the login shell of an account, with
// environment set by the client. It fills Act (exec, scp, rsync or git),
// Command, Environment, Operation, Commands, Programs, the paths, ReadOnly and
// the reasons why something is unknown; the rest is the caller's. It never
// fails, and runs in time linear in the text.
func Judge(command string, environment map[string]string) access.SSHCall {
	j := &judge{paths: map[touched]bool{}}
	j.environment(environment)
	lines := j.read(command)
	call := access.SSHCall{Act: access.ActExec, Command: command, Environment: environment}
	if len(lines) == 1 && len(j.unknown) == 0 && lines[0].plain() {
		if transfer(&call, &lines[0]) {
			return call
		}
	}
	j.each(lines, 0)
	j.finish(&call)
	return call
}

// A judge collects what is found in one command line.
type judge struct {
	commands     [][]string
	paths        map[touched]bool
	changes      bool // something may change on the host
	moved        bool // the working directory may be another than the home
	unknown      []string
	unknownPaths []string
}

type touch uint8

const (
	reads touch = iota
	writes
	removes
)

// A touched is a path as written and what happens to it.
type touched struct {
	path string
	how  touch
}

func (j *judge) dunno(format string, args ...any) { j.unknown = reason(j.unknown, format, args) }

func (j *judge) dunnoPaths(format string, args ...any) {
	j.changes = true
	j.unknownPaths = reason(j.unknownPaths, format, args)
}

func reason(list []string, format string, args []any) []string {
	text := fmt.Sprintf(format, args...)
	if len(list) >= maxReasons || slices.Contains(list, text) {
		return list
	}
	return append(list, text)
}

// quoted shortens a piece of the text for a reason.
func quoted(text string) string {
	if len(text) > maxQuoted {
		text = strings.ToValidUTF8(text[:maxQuoted], "") + "…"
	}
	return text
}

func (j *judge) touch(how touch, paths ...string) {
	for _, p := range paths {
		j.paths[touched{p, how}] = true
	}
	j.changes = j.changes || how != reads && len(paths) > 0
}

// finish puts what was found into call.
func (j *judge) finish(call *access.SSHCall) {
	call.Commands, call.Programs = j.commands, access.ProgramsOf(j.commands)
	for _, t := range slices.SortedFunc(maps.Keys(j.paths), func(a, b touched) int {
		return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.how, b.how))
	}) {
		p, err := Path(t.path)
		switch {
		case err != nil:
			j.dunnoPaths("%s", err)
		case j.moved && strings.HasPrefix(p, "~") && !strings.HasPrefix(t.path, "~"):
			j.dunnoPaths("%s is relative to where cd leads", quoted(t.path))
		default:
			list := [...]*[]string{reads: &call.Reads, writes: &call.Writes, removes: &call.Removes}[t.how]
			*list = append(*list, p)
		}
	}
	for _, list := range []*[]string{&call.Reads, &call.Writes, &call.Removes, &j.unknownPaths} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	call.Unknown, call.UnknownPaths = j.unknown, j.unknownPaths
	call.ReadOnly = !j.changes && len(j.unknown) == 0 && len(j.unknownPaths) == 0
}

// harmless are the variables that change no program's course: nothing but
// language, time zone and looks.
func harmless(name string) bool {
	return strings.HasPrefix(name, "LC_") || slices.Contains([]string{"LANG", "LANGUAGE", "TERM", "COLORTERM", "NO_COLOR", "TZ", "COLUMNS", "LINES", "DEBIAN_FRONTEND"}, name)
}

// plainValue are values of such variables that no program takes for a path.
var (
	plainValue  = regexp.MustCompile(`^[A-Za-z0-9_.@:+-]*$`)
	gitProtocol = regexp.MustCompile(`^version=[0-9](:[a-z0-9=-]+)*$`)
)

// environment notes variables that could change what runs. GIT_PROTOCOL comes
// from stock git, to say which version of the protocol it speaks.
func (j *judge) environment(environment map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		value := environment[name]
		isGit := name == "GIT_PROTOCOL" && gitProtocol.MatchString(value)
		if !isGit && !(harmless(name) && plainValue.MatchString(value) && isUTF8Locale(name, value)) {
			j.dunno("the variable %s may change what runs", quoted(name))
		}
	}
}

// isUTF8Locale is false for character sets in which a byte of a longer
// character looks like one that means something to a shell.
func isUTF8Locale(name, value string) bool {
	if !strings.HasPrefix(name, "LC_") && name != "LANG" {
		return true
	}
	_, set, _ := strings.Cut(value, ".")
	return value == "" || value == "C" || value == "POSIX" || slices.Contains([]string{"UTF-8", "utf8", "utf-8", "UTF8"}, set)
}

// read returns the simple commands of a text, as far as they are known.
func (j *judge) read(text string) []simple {
	switch {
	case strings.Trim(text, " \t\n") == "":
		j.dunno("it is empty, which some servers take for a shell")
		return nil
	case len(text) > maxText:
		j.dunno("it is longer than %d bytes", maxText)
		return nil
	case !utf8.ValidString(text):
		j.dunno("it is not UTF-8")
		return nil
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' || r == 0x7f }):
		j.dunno("it has control characters")
		return nil
	case strings.Contains(text, "\\\n"):
		j.dunno("it has a line that goes on in the next")
		return nil
	}
	return j.parse(text)
}

// each judges simple commands, of text that is so deep in other text.
func (j *judge) each(lines []simple, depth int) {
	for i := range lines {
		j.simple(&lines[i], depth)
	}
}

// simple judges one simple command of a line.
func (j *judge) simple(s *simple, depth int) {
	for _, r := range s.redirects {
		j.redirect(r)
	}
	if s.dynamic {
		return
	}
	if s.tilde {
		j.dunno("a word begins with a quoted ~")
	}
	if len(s.words) > 0 {
		j.run(s.words, depth)
	}
}

// redirect notes a file that the shell opens.
func (j *judge) redirect(r redirect) {
	switch {
	case strings.HasPrefix(r.path, "/dev/tcp/"), strings.HasPrefix(r.path, "/dev/udp/"):
		j.dunno("some shells connect to %s", quoted(r.path))
	case slices.Contains([]string{"/dev/null", "/dev/stdout", "/dev/stderr", "/dev/stdin"}, r.path):
	case r.how == writes && strings.HasPrefix(r.path, "/dev/"):
		j.dunno("a redirection to the device %s", quoted(r.path))
	default:
		j.touch(r.how, r.path)
	}
}

// run judges one command that the shell, or a wrapper, runs.
func (j *judge) run(words []string, depth int) {
	if len(j.commands) >= maxCommands {
		j.dunno("it runs more than %d commands", maxCommands)
		return
	}
	j.commands = append(j.commands, words)
	if depth > maxDepth {
		j.dunno("commands in commands are too deep")
		return
	}
	name, args := baseName(words[0]), words[1:]
	if !isInstalled(words[0]) {
		j.dunnoPaths("the gateway does not know what %s touches", quoted(words[0]))
	}
	switch {
	case name == "" || name == "." || name == "..":
		j.dunno("%s is no name of a program", quoted(words[0]))
	case isShellOwn(name):
		j.dunno("%s changes how the rest is run", name)
	case isUnlistable(name):
		j.dunno("%s runs what the gateway cannot list", name)
	case isInterpreter(name):
		j.interpreter(name, args, depth)
	default:
		if unwrap := wrappers()[name]; unwrap != nil {
			j.wrapped(name, unwrap, args, depth)
			return
		}
		j.program(name, args)
	}
}

// baseName is what a program is known by, wherever it lies.
func baseName(word string) string { return word[strings.LastIndexByte(word, '/')+1:] }
