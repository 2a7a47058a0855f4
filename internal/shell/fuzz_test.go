package shell

import (
	"reflect"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

func FuzzJudge(f *testing.F) {
	for _, text := range []string{
		"ls -l /srv | grep 'a b' > f", "sudo -u x env LANG=C timeout 5 sh -c 'a; b'", "scp -t -- /a", "rsync --server --sender -logDtpre.iLsfxCIvu . ~/x", "git-upload-pack '/a'",
		"a $x `b` $(c) {d,e} *", "if a; then b; fi", "cat <<E\nx\nE\n", "find . -exec rm {} +", "a\\\nb", "a 'b\\' \"\\c\"", "x=1 y", "a &! b |& c &> d",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		call := Judge(text, nil)
		if again := Judge(text, nil); !reflect.DeepEqual(call, again) {
			t.Fatalf("two answers: %+v and %+v", call, again)
		}
		if call.Command != text || call.ReadOnly && len(call.Unknown)+len(call.UnknownPaths)+len(call.Writes)+len(call.Removes) > 0 {
			t.Fatalf("%+v", call)
		}
		for _, p := range append(append(call.Reads, call.Writes...), call.Removes...) {
			if again, err := Path(p); err != nil || again != p {
				t.Fatalf("the path %q is %q (%v)", p, again, err)
			}
		}
		if len(call.Commands) > maxCommands || len(call.Unknown) > maxReasons || len(call.UnknownPaths) > maxReasons {
			t.Fatalf("%d commands, %d and %d reasons", len(call.Commands), len(call.Unknown), len(call.UnknownPaths))
		}
		if len(call.Unknown) > 0 || call.Act != access.ActExec {
			return
		}
		// What follows a command that is known is as unknown as it is alone.
		for _, more := range []string{"; $x", " | sh", "; x=1", " && (y)"} {
			if len(text) < maxText-len(more) && len(Judge(text+more, nil).Unknown) == 0 {
				t.Fatalf("%q: %q is known", text, more)
			}
		}
		if longer := Judge(text+"; zzz", nil); len(longer.Unknown) == 0 && !strings.Contains(strings.Join(longer.Programs, " "), "zzz") {
			t.Fatalf("%q hides what follows it", text)
		}
	})
}
