package shell

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// A grammar is how a program reads its arguments: which are options, and which
// name files. An option that it does not list is not understood.
type grammar struct {
	flags  string   // single letters
	values string   // single letters that take a value which is no path
	long   []string // --name or --name=value, none of them a path
	number bool     // -20 is an option
	files  func(j *judge, operands []string) bool
}

// operands splits off the options, which GNU programs take anywhere before --.
func (g *grammar) operands(args []string) (operands []string, ok bool) {
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		switch {
		case word == "--":
			return append(operands, args...), true
		case word == "-" || !strings.HasPrefix(word, "-"):
			operands = append(operands, word)
		case strings.HasPrefix(word, "--"):
			name, _, _ := strings.Cut(word[2:], "=")
			if !slices.Contains(g.long, name) {
				return nil, false
			}
		case g.number && strings.Trim(word[1:], "0123456789") == "":
		default:
			if args, ok = leadingOne(word, args, g.flags, g.values); !ok {
				return nil, false
			}
		}
	}
	return operands, true
}

// leadingOne reads one word of short options, which may take the next.
func leadingOne(word string, args []string, flags, values string) (rest []string, ok bool) {
	for i := 1; i < len(word); i++ {
		switch {
		case strings.IndexByte(flags, word[i]) >= 0:
		case strings.IndexByte(values, word[i]) >= 0 && i < len(word)-1:
			return args, true
		case strings.IndexByte(values, word[i]) >= 0 && len(args) > 0:
			return args[1:], true
		default:
			return nil, false
		}
	}
	return args, true
}

// files leaves out "-", which stands for the standard streams.
func files(operands []string) []string {
	return slices.DeleteFunc(slices.Clone(operands), func(o string) bool { return o == "-" })
}

// What the operands of a program are.

func noFiles(_ *judge, operands []string) bool { return len(operands) == 0 }
func anyText(*judge, []string) bool            { return true }

func all(how touch) func(*judge, []string) bool {
	return func(j *judge, operands []string) bool {
		j.touch(how, files(operands)...)
		return true
	}
}

// listed reads the working directory when it is given nothing.
func listed(j *judge, operands []string) bool {
	if len(operands) == 0 {
		operands = []string{"."}
	}
	j.touch(reads, operands...)
	return true
}

// afterFirst skips an operand that is no file: a mode, an owner.
func afterFirst(how touch) func(*judge, []string) bool {
	return func(j *judge, operands []string) bool {
		if len(operands) < 2 {
			return false
		}
		j.touch(how, operands[1:]...)
		return true
	}
}

func uniqued(j *judge, operands []string) bool {
	if len(operands) > 2 {
		return false
	}
	for i, how := range []touch{reads, writes} {
		if i < len(operands) {
			j.touch(how, files(operands[i:i+1])...)
		}
	}
	return true
}

func copied(j *judge, operands []string) bool {
	if len(operands) < 2 {
		return false
	}
	j.touch(reads, operands[:len(operands)-1]...)
	j.touch(writes, operands[len(operands)-1])
	return true
}

func moved(j *judge, operands []string) bool {
	if len(operands) < 2 {
		return false
	}
	j.touch(removes, operands[:len(operands)-1]...)
	j.touch(writes, operands[len(operands)-1])
	return true
}

// linked counts what a link leads to as read and written: it can be, through
// the link. A relative target of a symbolic link is relative to the link.
func linked(j *judge, operands []string) bool {
	if len(operands) != 2 || !strings.HasPrefix(operands[0], "/") {
		return false
	}
	j.touch(reads, operands[0])
	j.touch(writes, operands...)
	return true
}

// isDate takes a format, for anything else may set the clock.
func isDate(_ *judge, operands []string) bool {
	return len(operands) == 0 || len(operands) == 1 && strings.HasPrefix(operands[0], "+")
}

// known maps programs, by the last element of their names, to their grammars.
// Programs that are not here are listed, and what they touch is unknown.
var known = sync.OnceValue(func() map[string]*grammar {
	sum := &grammar{flags: "btz", files: all(reads)}
	return map[string]*grammar{
		"cat":       {flags: "AbEensTtuv", files: all(reads)},
		"tac":       {flags: "br", files: all(reads)},
		"head":      {flags: "qvz", values: "nc", number: true, long: []string{"lines", "bytes"}, files: all(reads)},
		"tail":      {flags: "fFqvzr", values: "ncs", number: true, long: []string{"lines", "bytes", "follow", "retry", "pid"}, files: all(reads)},
		"wc":        {flags: "cmlLw", files: all(reads)},
		"nl":        {values: "bfhilnsvw", files: all(reads)},
		"od":        {flags: "abcdfilosxv", values: "AjNSt", files: all(reads)},
		"strings":   {flags: "a", values: "nt", files: all(reads)},
		"file":      {flags: "bikLN", files: all(reads)},
		"ls":        {flags: "aAbBcCdfFgGhHiklLmnNopqQrRsStuUvxXZ1", values: "IwT", long: []string{"all", "almost-all", "human-readable", "color", "recursive", "time-style", "size", "full-time", "sort", "time", "group-directories-first"}, files: listed},
		"dir":       {flags: "aAlhRrSt1", files: listed},
		"stat":      {flags: "LftZ", values: "c", long: []string{"format", "printf", "terse", "dereference", "file-system"}, files: all(reads)},
		"du":        {flags: "abchkmsxHLPSl0D", values: "dBt", long: []string{"max-depth", "apparent-size", "summarize", "human-readable", "total"}, files: listed},
		"df":        {flags: "ahHiklPT", values: "Btx", long: []string{"human-readable", "total", "output"}, files: all(reads)},
		"cksum":     sum,
		"md5sum":    sum,
		"sha1sum":   sum,
		"sha224sum": sum,
		"sha256sum": sum,
		"sha384sum": sum,
		"sha512sum": sum,
		"b2sum":     sum,
		"grep":      {files: nil}, // see grepped
		"egrep":     {files: nil},
		"fgrep":     {files: nil},
		"zcat":      {flags: "fq", files: all(reads)},
		"sort":      {flags: "bdfghMinrRsuVzmc", values: "kt", files: all(reads)},
		"uniq":      {flags: "cdDiuz", values: "fsw", files: uniqued},
		"cut":       {flags: "snz", values: "bcdf", files: all(reads)},
		"paste":     {flags: "sz", values: "d", files: all(reads)},
		"comm":      {flags: "123z", files: all(reads)},
		"tr":        {flags: "cCdst", files: anyText},
		"diff":      {flags: "abBcdeEiNpqrstTuwy", values: "UCW", files: all(reads)},
		"cmp":       {flags: "bls", files: all(reads)},
		"readlink":  {flags: "fenmqsvz", files: all(reads)},
		"realpath":  {flags: "emLPqsz", files: all(reads)},
		"basename":  {flags: "az", values: "s", files: anyText},
		"dirname":   {flags: "z", files: anyText},
		"seq":       {flags: "w", values: "fs", files: anyText},
		"sleep":     {files: anyText},
		"pwd":       {flags: "LP", files: noFiles},
		"whoami":    {files: noFiles},
		"id":        {flags: "agGnruzZ", files: anyText},
		"groups":    {files: anyText},
		"uptime":    {flags: "ps", files: noFiles},
		"hostname":  {flags: "fdisAI", files: noFiles},
		"uname":     {flags: "asnrvmpio", files: noFiles},
		"arch":      {files: noFiles},
		"nproc":     {long: []string{"all"}, files: noFiles},
		"tty":       {flags: "s", files: noFiles},
		"date":      {flags: "uRI", values: "d", long: []string{"utc", "iso-8601", "rfc-3339", "date"}, files: isDate},
		"w":         {flags: "hsfi", files: anyText},
		"who":       {flags: "abdHlmpqrtTu", files: noFiles},
		"ps":        {flags: "aAdeflHjuwxTLMZ", values: "opuUCtg", long: []string{"sort", "no-headers", "forest"}, files: anyText},
		"free":      {flags: "bkmghtwl", files: noFiles},
		"vmstat":    {flags: "afimsdw", files: anyText},
		"lscpu":     {files: noFiles},
		"lsblk":     {flags: "abdfilmnpPrSt", values: "o", files: noFiles},
		"getent":    {files: anyText},
		"printenv":  {files: anyText},
		"which":     {flags: "as", files: anyText},
		"true":      {files: anyText},
		"false":     {files: anyText},
		"touch":     {flags: "acm", values: "dt", files: all(writes)},
		"tee":       {flags: "ai", files: all(writes)},
		"truncate":  {flags: "c", values: "s", files: all(writes)},
		"mkdir":     {flags: "pv", values: "m", files: all(writes)},
		"rmdir":     {flags: "pv", files: all(removes)},
		"rm":        {flags: "rRfvdiI", long: []string{"recursive", "force", "verbose", "one-file-system"}, files: all(removes)},
		"unlink":    {files: all(removes)},
		"cp":        {flags: "rRfpavnuLPHdxT", long: []string{"recursive", "archive", "force", "no-clobber", "preserve", "verbose"}, files: copied},
		"mv":        {flags: "fnuvT", long: []string{"force", "no-clobber", "verbose"}, files: moved},
		"ln":        {flags: "sfnvT", long: []string{"symbolic", "force"}, files: linked},
		"chmod":     {flags: "Rvcf", files: afterFirst(writes)},
		"chown":     {flags: "Rvcfh", files: afterFirst(writes)},
		"chgrp":     {flags: "Rvcfh", files: afterFirst(writes)},
	}
})

// program judges the arguments of a program that runs nothing else.
func (j *judge) program(name string, args []string) {
	switch {
	case j.builtin(name, args):
		return
	case name == "find":
		j.find(args)
		return
	}
	g := known()[name]
	if g == nil {
		j.dunnoPaths("the gateway does not know what %s touches", quoted(name))
		return
	}
	if strings.HasSuffix(name, "grep") {
		j.grepped(name, args)
		return
	}
	operands, ok := g.operands(args)
	if !ok || !g.files(j, operands) {
		j.dunnoPaths("arguments of %s that the gateway does not know", name)
	}
}

// plainFormat leaves out -v and %n, by which bash's printf sets variables.
var plainFormat = regexp.MustCompile(`^([^%]|%[-+ #0-9.]*[sdiuxXocbqfeg%])*$`)

// builtin judges what shells do themselves. Some of them take a number for an
// expression, in which a substitution runs.
func (j *judge) builtin(name string, args []string) bool {
	switch name {
	case "cd", "chdir", "pushd", "popd":
		j.moved = true
	case "echo", ":":
		return true
	case "kill", "umask", "ulimit":
		j.changes = true
	case "printf":
		if len(args) == 0 || strings.HasPrefix(args[0], "-") || !plainFormat.MatchString(args[0]) {
			j.dunno("printf may set a variable")
		}
	case "test", "exit", "return", "break", "continue", "shift", "limit", "unlimit":
	default:
		return false
	}
	if slices.ContainsFunc(args, func(a string) bool { return strings.ContainsAny(a, "[$`") || a == "-v" || a == "-R" }) {
		j.dunno("some shells work out what %s is given", name)
	}
	return true
}

// isInstalled reports whether a word names a program that came with the host,
// rather than a file that somebody gave its name.
func isInstalled(word string) bool {
	dir := strings.TrimSuffix(word, baseName(word))
	return slices.Contains([]string{"", "/bin/", "/usr/bin/", "/sbin/", "/usr/sbin/", "/usr/local/bin/"}, dir)
}

// grepped knows the first operand as a pattern, unless -e gave it.
func (j *judge) grepped(name string, args []string) {
	g := grammar{flags: "abcEFGhHiIlLnoPqrRsvwxyzZU", values: "ABCmeDd", number: true,
		long: []string{"color", "include", "exclude", "exclude-dir", "line-number", "ignore-case", "count", "only-matching", "recursive", "fixed-strings", "extended-regexp", "invert-match"}}
	operands, ok := g.operands(args)
	given := slices.ContainsFunc(args, func(a string) bool {
		return strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && strings.Contains(a, "e")
	})
	switch {
	case !ok || given && !slices.Contains(args, "-e"):
		j.dunnoPaths("arguments of %s that the gateway does not know", name)
		return
	case !given && len(operands) > 0:
		operands = operands[1:]
	}
	recursive := slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") && strings.ContainsAny(a, "rR") })
	if len(operands) == 0 && recursive {
		operands = []string{"."}
	}
	j.touch(reads, files(operands)...)
}

// find lists where find looks, unless it runs or changes something.
func (j *judge) find(args []string) {
	var roots []string
	for len(args) > 0 && slices.Contains([]string{"-L", "-P", "-H"}, args[0]) {
		args = args[1:]
	}
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && args[0] != "(" && args[0] != "!" {
		roots, args = append(roots, args[0]), args[1:]
	}
	j.touch(reads, roots...)
	if len(roots) == 0 {
		j.touch(reads, ".")
	}
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		switch {
		case slices.Contains([]string{"-exec", "-execdir", "-ok", "-okdir"}, word):
			j.dunno("find %s runs a command on what it finds", word)
			return
		case slices.Contains([]string{"-print", "-print0", "-ls", "-empty", "-not", "-o", "-a", "-or", "-and", "!", "(", ")", "-prune", "-quit", "-xdev", "-mount", "-depth", "-readable", "-writable", "-executable"}, word):
		case len(args) > 0 && slices.Contains([]string{"-name", "-iname", "-path", "-ipath", "-regex", "-iregex", "-type", "-maxdepth", "-mindepth", "-mtime", "-mmin", "-atime", "-amin", "-ctime", "-cmin", "-size", "-user", "-group", "-perm", "-uid", "-gid", "-links", "-printf"}, word):
			args = args[1:]
		default:
			j.dunnoPaths("arguments of find that the gateway does not know")
			// a later -exec must still be seen
		}
	}
}
