package shell

import (
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

func TestTransfers(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`scp -f /srv/a`:             "scp read /srv/a",
		`scp -v -r -p -f -- /srv/a`: "scp read /srv/a",
		`scp -rpf 'a b'`:            "scp read ~/a b",
		`scp -f a b`:                "scp read ~/a,~/b",
		`scp -t .`:                  "scp write ~",
		`scp -p -t ~/in`:            "scp write ~/in",
		`scp -d -t -- /srv/in/`:     "scp write /srv/in",
		`/usr/bin/scp -t /a`:        "scp write /a",
		`scp -t /a/../b`:            "scp write ? /a/../b has .. in it",
		`rsync --server -vlogDtpre.iLsfxCIvu . /srv/`:                        "rsync write /srv",
		`rsync --server --sender -vlogDtpre.iLsfxCIvu . src a`:               "rsync read ~/a,~/src",
		`rsync --server -vlogDtprze.iLsfxCIvu --delete --partial . /srv/x`:   "rsync write /srv/x",
		`rsync --server --sender -slogDtpre.iLsfxCIvu . `:                    "rsync read ? rsync names the files in its own protocol",
		`rsync --server -logDtpre.iLsfxCIvu --timeout=30 --numeric-ids . /a`: "rsync write /a",
		`git-upload-pack '/srv/git/x.git'`:                                   "git read /srv/git/x.git",
		`git-upload-pack '~/x.git'`:                                          "git read ~/x.git",
		`git-upload-pack x.git`:                                              "git read ~/x.git",
		`git-upload-pack '~bob/x.git'`:                                       "git read ? ~bob/x.git may be below another account's home",
		`git upload-archive '/x'`:                                            "git read /x",
		`git-receive-pack '/srv/git/it'\''s.git'`:                            "git write /srv/git/it's.git",
	} {
		call := Judge(text, map[string]string{"GIT_PROTOCOL": "version=2"})
		how := call.Reads
		if call.Operation == access.OperationWrite {
			how = call.Writes
		}
		got := call.Act + " " + call.Operation + " " + strings.Join(how, ",")
		if len(call.UnknownPaths) > 0 {
			got = strings.TrimRight(got, " ") + " ? " + strings.Join(call.UnknownPaths, "; ")
		}
		if got != want || len(call.Unknown) > 0 || len(call.Commands) != 1 || call.ReadOnly != (call.Operation == access.OperationRead && len(call.UnknownPaths) == 0) || call.Command != text {
			t.Errorf("%s: got %q (%q, read only %v), want %q", text, got, call.Unknown, call.ReadOnly, want)
		}
	}
	if removed := Judge(`rsync --server -logDtpre.iLsfxCIvu --delete-after . /srv/x`, nil).Removes; len(removed) != 1 || removed[0] != "/srv/x" {
		t.Errorf("rsync --delete removes %q", removed)
	}
}

// What is no server's command line as the clients write it is a command like
// any other: listed, and with no path known.
func TestNoTransfers(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"scp a b:c", "scp", "scp -t", "scp -f -t /a", "scp -t /a /b", "scp -S /tmp/x -f /a", "scp -o ProxyCommand=id -f /a", "scp -oX -f /a", "scp -f /a -S /tmp/x", "/tmp/scp -f /a", "./scp -t a",
		"scp -f /a; id", "scp -f /a > /b", "scp -f /a | sh", "LANG=C scp -f /a", "scp -f *", "scp -f $x", "scp -f '~/a'", "scp -f - /a",
		"rsync a b:c", "rsync --server", "rsync --server .", "rsync --server --daemon .", "rsync --daemon --config=/tmp/x", "rsync --server -e sh . /a", "rsync --server --rsh=sh . /a", "rsync --server --log-file=/a . /b", "rsync --server -logDtpre.iLsfxCIvu --files-from=/etc/shadow . /a",
		"rsync --server -logDtpre.iLsfxCIvu . /a --config=x", "rsync --server -logDtpre.iLsfxCIvu /a", "rsync --server --sender -logDtpre.iLsfxCIvu --temp-dir=/t . /a", "rsync --server -logDtpre.iLsfxCIvu . '~/a'", "rsync --server --out-format=%i/x . /a",
		"git-upload-pack", "git-upload-pack a b", "git-upload-pack --strict /a", "git-upload-pack -x", "git -c core.pager=id upload-pack /a", "git --exec-path=/tmp upload-pack /a", "git upload-pack --upload-pack=x /a", "git log", "git-shell -c x", "./git-upload-pack /a",
	} {
		call := Judge(text, nil)
		if call.Act != access.ActExec || call.Operation != "" || len(call.Unknown) == 0 && len(call.UnknownPaths) == 0 || call.ReadOnly {
			t.Errorf("%s: %s %s, unknown %q, paths unknown %q", text, call.Act, call.Operation, call.Unknown, call.UnknownPaths)
		}
	}
}
