package shell

import (
	"regexp"
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// transfer recognizes the server's command lines of scp, rsync and git, written
// exactly as their clients do, and fills call. False: it is a command like any
// other.
func transfer(call *access.SSHCall, s *simple) bool {
	words := s.words
	if !isInstalled(words[0]) {
		return false
	}
	var paths []string
	ok := false
	switch name := baseName(words[0]); {
	case name == "scp" && !s.tilde:
		call.Act = access.ActSCP
		call.Operation, paths, ok = scpServer(words[1:])
	case name == "rsync" && !s.tilde:
		var why string
		call.Act = access.ActRsync
		if call.Operation, paths, why, ok = rsyncServer(words[1:]); why != "" {
			call.UnknownPaths = append(call.UnknownPaths, why)
		}
	case name == "git" && len(words) > 1:
		call.Act = access.ActGit
		call.Operation, paths, ok = gitServer("git-"+words[1], words[2:])
	case strings.HasPrefix(name, "git-"):
		call.Act = access.ActGit
		call.Operation, paths, ok = gitServer(name, words[1:])
	}
	if !ok {
		*call = access.SSHCall{Act: access.ActExec, Command: call.Command, Environment: call.Environment}
		return false
	}
	j := &judge{commands: [][]string{words}, paths: map[touched]bool{}, unknownPaths: call.UnknownPaths}
	how := reads
	if call.Operation == access.OperationWrite {
		how = writes
	}
	j.touch(how, paths...)
	if call.Act == access.ActRsync && slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, "--delete") }) {
		j.touch(removes, paths...)
	}
	j.changes = j.changes || how == writes
	j.finish(call)
	return true
}

// scpServer reads scp [-vrpdq] -f|-t [--] path…, of which scp -t takes one.
func scpServer(args []string) (operation string, paths []string, ok bool) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		word := args[0][1:]
		args = args[1:]
		if word == "-" {
			break
		}
		if word == "" || strings.Trim(word, "vrpdqft") != "" {
			return "", nil, false
		}
		for _, letter := range word {
			direction := map[rune]string{'f': access.OperationRead, 't': access.OperationWrite}[letter]
			if direction != "" && operation != "" && operation != direction {
				return "", nil, false
			}
			if direction != "" {
				operation = direction
			}
		}
	}
	switch {
	case operation == "" || len(args) == 0 || operation == access.OperationWrite && len(args) != 1:
		return "", nil, false
	case slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }):
		return "", nil, false // options after operands, to some getopt
	}
	return operation, args, true
}

// rsyncFlags are what rsync's client bundles; after "e" come its capabilities,
// which are no flags.
var rsyncFlags = regexp.MustCompile(`^-[acdghiklmnoprtuvxyzACDEFHIJKLNOPRSUWX]*(s?)[acdghiklmnoprtuvxyzACDEFHIJKLNOPRSUWX]*(e[0-9]*\.[A-Za-z]*)?$`)

// rsyncLong are long options of which none names a file or a program.
var rsyncLong = regexp.MustCompile(`^--(sender|delete|delete-before|delete-during|delete-after|delete-delay|delete-excluded|force|partial|inplace|append|append-verify|existing|ignore-existing|ignore-errors|numeric-ids|size-only|no-[a-z-]+|stats|safe-links|copy-unsafe-links|fake-super|sparse|preallocate|fsync|open-noatime|checksum-seed=[0-9]+|checksum-choice=[a-z0-9,]+|compress-choice=[a-z0-9,]+|compress-level=[0-9]+|new-compress|old-compress|max-size=[0-9A-Za-z.]+|min-size=[0-9A-Za-z.]+|max-delete=-?[0-9]+|timeout=[0-9]+|bwlimit=[0-9A-Za-z.]+|block-size=[0-9]+|modify-window=-?[0-9]+|log-format=[^/]*|out-format=[^/]*|info=[A-Za-z0-9,]+|debug=[A-Za-z0-9,]+|iconv=[A-Za-z0-9,.-]+|mkpath|secluded-args|trust-sender|from0|files-from=-)$`)

// rsyncServer reads rsync --server [--sender] options . path…; why says when
// the paths come later, in the protocol.
func rsyncServer(args []string) (operation string, paths []string, why string, ok bool) {
	if len(args) == 0 || args[0] != "--server" {
		return "", nil, "", false
	}
	operation = access.OperationWrite
	args = args[1:]
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		word := args[0]
		args = args[1:]
		m := rsyncFlags.FindStringSubmatch(word)
		switch {
		case strings.HasPrefix(word, "--") && rsyncLong.MatchString(word):
			if word == "--sender" {
				operation = access.OperationRead
			}
			if word == "--secluded-args" || strings.HasPrefix(word, "--files-from") {
				why = "rsync names the files in its own protocol"
			}
		case m != nil:
			if m[1] != "" {
				why = "rsync names the files in its own protocol"
			}
		default:
			return "", nil, "", false
		}
	}
	if len(args) == 0 || args[0] != "." || slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }) {
		return "", nil, "", false
	}
	if len(args) == 1 && why == "" {
		return "", nil, "", false
	}
	return operation, args[1:], why, true
}

// gitServer reads git-upload-pack and its like with the one repository that
// clients name. git looks for repository, repository.git and repository/.git,
// and follows ~ itself.
func gitServer(name string, args []string) (operation string, paths []string, ok bool) {
	operation, ok = map[string]string{
		"git-upload-pack": access.OperationRead, "git-upload-archive": access.OperationRead, "git-receive-pack": access.OperationWrite,
	}[name]
	if !ok || len(args) != 1 || strings.HasPrefix(args[0], "-") {
		return "", nil, false
	}
	return operation, args, true
}
