package shell

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// isShellOwn lists what shells do themselves, as builtin commands or reserved
// words, that changes how the rest of the line is read or run, or runs text.
func isShellOwn(name string) bool {
	return slices.Contains([]string{
		".", "source", "eval", "builtin", "alias", "unalias", "set", "shopt", "setopt", "unsetopt", "emulate", "export", "declare",
		"typeset", "local", "readonly", "unset", "trap", "enable", "disable", "hash", "rehash", "bind", "bindkey", "complete", "compgen",
		"compopt", "compdef", "autoload", "functions", "zmodload", "zle", "zstyle", "zformat", "zparseopts", "zregexparse", "fc", "history",
		"r", "mapfile", "readarray", "read", "getopts", "let", "select", "function", "coproc", "repeat", "foreach", "for", "if", "while",
		"until", "case", "end", "nocorrect", "noglob", "begin", "and", "or", "not", "switch", "else", "then", "do", "done", "fi", "esac",
		"vared", "getln", "pushln", "print", "integer", "float", "private", "nameref", "compound", "enum", "global", "caller", "wait",
		"argparse", "string", "block", "emit", "status", "funced", "funcsave", "abbr", "time", "sched", "logout", "suspend",
		"jobs", "fg", "bg", "disown", "hist", "login", "redirect", "compctl", "compcall", "zpty", "ztcp", "zsocket", "zftp", "zcompile",
		"sysopen", "sysread", "array", "unfunction", "unhash", "bye", "clone",
	}, name)
}

// isUnlistable lists programs that run others, which their arguments, their
// input or a file name.
func isUnlistable(name string) bool {
	return slices.Contains([]string{
		"xargs", "parallel", "watch", "script", "screen", "tmux", "at", "batch", "crontab", "systemd-run", "strace", "ltrace", "gdb", "perf",
		"chroot", "unshare", "nsenter", "setpriv", "su", "runuser", "pkexec", "flock", "taskset", "numactl", "prlimit", "start-stop-daemon",
		"unbuffer", "expect", "entr", "busybox", "toybox", "ssh", "slogin", "mosh-server", "sftp-server", "internal-sftp", "dbclient",
		"ed", "ex", "vi", "vim", "nvim", "view", "rvim", "emacs", "less", "more", "man", "psql", "mysql", "mariadb", "sqlite3", "ftp", "sftp",
		"m4", "ld.so", "ld-linux.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "run-parts", "ionice", "chrt", "cpulimit",
		"setarch", "linux32", "linux64", "i386", "fakeroot", "faketime", "eatmydata", "valgrind", "dbus-run-session", "dbus-launch",
		"xvfb-run", "capsh", "choom", "runcon", "newgrp", "sg", "bwrap", "firejail", "chpst", "setuidgid", "envdir", "rlwrap", "socat",
		"nc", "ncat", "netcat", "ssh-agent", "systemd-cat", "systemd-inhibit", "run0", "torsocks", "proxychains", "proxychains4",
		"daemonize", "logsave", "chronic", "ifne", "sudoedit", "visudo", "deno", "bun", "irb", "R", "scala", "pwsh", "osascript", "fish", "csh", "tcsh",
	}, name)
}

var interpreter = regexp.MustCompile(`^(sh|bash|rbash|dash|ash|zsh|ksh|ksh93|mksh|pdksh|lksh|posh|yash|python[0-9.]*|pypy[0-9.]*|perl[0-9.]*|ruby[0-9.]*|node|nodejs|php[0-9.]*|lua[0-9.]*|luajit|tclsh[0-9.]*|wish[0-9.]*|Rscript|julia|guile|awk|gawk|mawk|nawk|sed)$`)

func isInterpreter(name string) bool { return interpreter.MatchString(name) }

// interpreter judges a program that runs the text it is given. A file with text
// to run is a program by another name.
func (j *judge) interpreter(name string, args []string, depth int) {
	isShell := slices.Contains([]string{"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh"}, name)
	switch {
	case slices.Contains([]string{"awk", "gawk", "mawk", "nawk", "sed"}, name):
		j.editor(name, args)
	case isShell && len(args) == 2 && args[0] == "-c":
		j.each(j.read(args[1]), depth+1)
	case len(args) == 1 && (args[0] == "--version" || args[0] == "-V"):
	case len(args) > 0 && args[0] != "" && !strings.HasPrefix(args[0], "-") && !strings.HasPrefix(args[0], "+"):
		j.dunnoPaths("what %s does is in %s", name, quoted(args[0]))
	default:
		j.dunno("%s runs text that the gateway cannot judge", name)
	}
}

// Scripts of awk and sed that only print.
var (
	plainAwk = regexp.MustCompile(`^(/[A-Za-z0-9 _.:-]*/ *)?(\{ *print( +\$[0-9]+(, *\$[0-9]+)*)? *\})?$`)
	plainSed = regexp.MustCompile(`^([0-9]+|\$|/[A-Za-z0-9 _.:-]*/)?(,([0-9]+|\$))?[pdq=]$`)
)

func (j *judge) editor(name string, args []string) {
	script, options := plainAwk, grammar{values: "F"}
	if name == "sed" {
		script, options = plainSed, grammar{flags: "nEru"}
	}
	operands, ok := options.operands(args)
	if !ok || len(operands) == 0 || operands[0] == "" || !script.MatchString(operands[0]) {
		j.dunno("%s runs text that the gateway cannot judge", name)
		return
	}
	if slices.ContainsFunc(operands[1:], func(o string) bool { return name != "sed" && strings.Contains(o, "=") }) {
		j.dunnoPaths("%s is given a variable", name)
		return
	}
	j.touch(reads, files(operands[1:])...)
}

// An unwrapper returns the command that a wrapper runs: nil when none, and not
// ok when its own arguments are not understood.
type unwrapper func(args []string) (inner []string, ok bool)

var wrappers = sync.OnceValue(func() map[string]unwrapper {
	return map[string]unwrapper{
		"command": after("vV", "", 0), "exec": after("", "", 0), "nohup": after("", "", 0), "setsid": after("cfw", "", 0),
		"nice": after("", "n", 0), "stdbuf": after("", "ioe", 0), "timeout": after("v", "ks", 1),
		"sudo": unsudo, "doas": after("n", "u", 0), "env": unenv,
	}
})

// after skips short flags, short flags with values, and so many operands.
func after(flags, values string, operands int) unwrapper {
	return func(args []string) ([]string, bool) {
		rest, ok := leading(args, flags, values)
		if !ok || len(rest) < operands {
			return nil, false
		}
		return rest[operands:], true
	}
}

// leading skips options up to the first operand, as programs do that run the
// rest.
func leading(args []string, flags, values string) (rest []string, ok bool) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		word := args[0][1:]
		args = args[1:]
		if word == "-" {
			return args, true
		}
		if word == "" {
			return nil, false
		}
		for i := 0; i < len(word); i++ {
			switch {
			case strings.IndexByte(flags, word[i]) >= 0:
			case strings.IndexByte(values, word[i]) >= 0 && i < len(word)-1:
				i = len(word)
			case strings.IndexByte(values, word[i]) >= 0 && len(args) > 0:
				args = args[1:]
			default:
				return nil, false
			}
		}
	}
	return args, true
}

// unsudo refuses what makes sudo start a shell or an editor, or set variables.
func unsudo(args []string) ([]string, bool) {
	if len(args) == 1 && (args[0] == "-l" || args[0] == "-v" || args[0] == "-k") {
		return nil, true
	}
	rest, ok := leading(args, "nHk", "ugp")
	if !ok || len(rest) == 0 || strings.Contains(rest[0], "=") {
		return nil, false
	}
	return rest, true
}

func unenv(args []string) ([]string, bool) {
	rest, ok := leading(args, "", "")
	if !ok {
		return nil, false
	}
	for len(rest) > 0 && strings.Contains(rest[0], "=") {
		name, value, _ := strings.Cut(rest[0], "=")
		if !harmless(name) || !plainValue.MatchString(value) || !isUTF8Locale(name, value) {
			return nil, false
		}
		rest = rest[1:]
	}
	return rest, true
}

// wrapped judges what a wrapper runs.
func (j *judge) wrapped(name string, unwrap unwrapper, args []string, depth int) {
	inner, ok := unwrap(args)
	switch {
	case !ok:
		j.dunno("arguments of %s that the gateway does not know", name)
	case len(inner) == 0 && name == "env":
	case len(inner) == 0:
		j.changes = true
	default:
		if name == "nohup" {
			j.dunnoPaths("nohup may write nohup.out")
		}
		j.run(inner, depth+1)
	}
}
