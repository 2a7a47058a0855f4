package policy

import (
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

func sshRequest(call access.SSHCall) access.Request {
	call.Programs = access.ProgramsOf(call.Commands)
	return access.Request{ID: "r", Principal: agent(), Resource: access.Resource{Name: "build-1", Kind: access.SSH}, Action: access.Action{SSH: &call}}
}

func TestDecideSSH(t *testing.T) {
	t.Parallel()
	uptime := access.SSHCall{Act: access.ActExec, User: "deploy", Command: "uptime", Commands: [][]string{{"uptime"}}, ReadOnly: true}
	unknown := access.SSHCall{Act: access.ActExec, User: "deploy", Command: "uptime; $x", Commands: [][]string{{"uptime"}}, ReadOnly: true, Unknown: []string{"$x is a variable"}}
	elsewhere := access.SSHCall{Act: access.ActExec, User: "deploy", Command: "make", Commands: [][]string{{"make"}}, ReadOnly: true, UnknownPaths: []string{"make"}}
	shell := access.SSHCall{Act: access.ActShell, User: "deploy", Terminal: true}
	forward := access.SSHCall{Act: access.ActForward, Operation: "direct-tcpip", Host: "db", Port: 5432}
	download := access.SSHCall{Act: access.ActSFTP, Operation: access.OperationRead, Reads: []string{"/srv/a"}, ReadOnly: true}
	for _, tc := range []struct {
		when   string
		effect string
		call   access.SSHCall
		want   access.Effect
	}{
		{`ssh.commands == [["uptime"]]`, "allow", uptime, access.Allow},
		{`ssh.programs == ["uptime"] && ssh.user == "deploy" && !ssh.terminal`, "allow", uptime, access.Allow},
		{`ssh.read_only`, "allow", uptime, access.Allow},
		{`ssh.act == "exec"`, "allow", uptime, access.Allow},

		// What is not known is not allowed, unless the rule says so.
		{`ssh.act == "exec"`, "allow", unknown, access.Deny},
		{`ssh.read_only`, "allow", unknown, access.Deny},
		{`ssh.commands == [["uptime"]]`, "allow", unknown, access.Deny},
		{`ssh.commands == [["uptime"]] && size(ssh.unknown) >= 0`, "allow", unknown, access.Deny},
		{`true`, "allow", unknown, access.Deny},
		{`true`, "allow", uptime, access.Allow},
		{`size(ssh.unknown) > 0`, "allow", unknown, access.Allow},
		{`size(ssh.unknown) > 0`, "approve, approval: {groups: [g]}", unknown, access.Approve},
		{`ssh.act == "exec"`, "approve, approval: {groups: [g]}", unknown, access.Approve},

		// Unknown paths are unknown to conditions on paths alone.
		{`ssh.programs == ["make"]`, "allow", elsewhere, access.Allow},
		{`ssh.paths.all(p, p == "/x")`, "allow", elsewhere, access.Deny},
		{`ssh.read_only`, "allow", elsewhere, access.Deny},

		// An empty list is no answer where there is nothing to list.
		{`ssh.commands.all(c, c == ["uptime"])`, "allow", shell, access.Deny},
		{`!("rm" in ssh.programs)`, "allow", shell, access.Deny},
		{`ssh.writes.all(p, false)`, "allow", shell, access.Deny},
		{`ssh.act == "shell" && ssh.terminal`, "allow", shell, access.Allow},
		{`ssh.commands.all(c, c == ["uptime"])`, "allow", forward, access.Deny},
		{`ssh.host == "db" && ssh.port == 5432`, "allow", forward, access.Allow},
		{`ssh.commands.all(c, c == ["uptime"])`, "allow", download, access.Deny},
		{`ssh.programs == ["sftp"] && ssh.paths.all(p, p.startsWith("/srv/"))`, "allow", download, access.Allow},

		{`sql.read_only`, "allow", uptime, access.Deny},
	} {
		set := mustLoad(t, "p.yaml", everybody("  - {name: a, when: '"+tc.when+"', effect: "+tc.effect+"}\n"))
		if d := set.Decide(sshRequest(tc.call), monday()); d.Effect != tc.want {
			t.Errorf("%s %s %s: got %s (%s %s), want %s", tc.effect, tc.when, tc.call.Command, d.Effect, d.Message, d.Hint, tc.want)
		}
	}
}

// A rule that denies by what is not known denies.
func TestDecideSSHDenies(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: no-rm, when: '\"rm\" in ssh.programs', effect: deny}\n  - {name: rest, when: 'size(ssh.unknown) >= 0', effect: allow}\n"))
	for _, tc := range []struct {
		call access.SSHCall
		want access.Reason
	}{
		{access.SSHCall{Act: access.ActExec, Commands: [][]string{{"rm", "x"}}}, access.DeniedByRule},
		{access.SSHCall{Act: access.ActExec, Command: "$x", Unknown: []string{"$x is a variable"}}, access.Unreadable},
		{access.SSHCall{Act: access.ActShell}, access.Unreadable},
		{access.SSHCall{Act: access.ActSFTP, Operation: "remove", Removes: []string{"/a"}}, ""},
		{access.SSHCall{Act: access.ActExec, Commands: [][]string{{"ls"}}, UnknownPaths: []string{"ls"}}, ""},
	} {
		if d := set.Decide(sshRequest(tc.call), monday()); d.Reason != tc.want {
			t.Errorf("%+v: got %q (%s), want %q", tc.call, d.Reason, d.Message, tc.want)
		}
	}
}

// The denial says what was not known, and explain why the rule was passed over.
func TestSSHUnknownIsExplained(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: a, when: 'ssh.act == \"exec\"', effect: allow}\n"))
	x := set.Explain(sshRequest(access.SSHCall{Act: access.ActExec, Command: "$x", Unknown: []string{"$x is a variable"}}), monday())
	if !strings.Contains(x.Decision.Hint, "$x is a variable") || !strings.Contains(x.String(), "does not read ssh.unknown") {
		t.Errorf("got %s", x)
	}
}

// What was decided about hosts comes back as cases that pass.
func TestExportSSH(t *testing.T) {
	t.Parallel()
	set := mustLoad(t, "p.yaml", everybody("  - {name: a, when: 'ssh.user == \"deploy\"', effect: allow}\n"))
	var decided []*access.Decided
	for _, call := range []access.SSHCall{
		{Act: access.ActExec, User: "deploy", Command: "cat 'a b' | wc", Commands: [][]string{{"cat", "a b"}, {"wc"}}, Reads: []string{"~/a b"}, ReadOnly: true},
		{Act: access.ActExec, User: "deploy", Command: "$x", Unknown: []string{"$x is a variable"}},
		{Act: access.ActSFTP, User: "deploy", Operation: "rename", Removes: []string{"/a"}, Writes: []string{"/b"}},
		{Act: access.ActForward, User: "deploy", Operation: "direct-tcpip", Host: "db", Port: 5432},
		{Act: access.ActShell, User: "deploy", Terminal: true, Environment: map[string]string{"LANG": "C"}},
		{Act: access.ActExec, User: "root", Command: "make", Commands: [][]string{{"make"}}, UnknownPaths: []string{"make"}},
	} {
		req := sshRequest(call)
		req.ID = "r" + call.Command + call.Act
		req.Time = monday()
		d := set.Decide(req, monday())
		decided = append(decided, &access.Decided{Request: req, Decision: d})
	}
	text, err := ExportCases(decided)
	if err != nil {
		t.Fatal(err)
	}
	passCases(t, set, text, len(decided))
}

func TestSSHConditionFaults(t *testing.T) {
	t.Parallel()
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		`ssh.act == "exec" && sql.ddl`: "no request is both sql and ssh",
		`ssh.acts == "exec"`:           "ssh has no field acts",
		`has(ssh.user)`:                "always there",
		`ssh.commands == "ls"`:         "found no matching overload",
	} {
		_, faults := compileText(env, whenSite, text)
		if len(faults) == 0 || !strings.Contains(faults[0].message, want) {
			t.Errorf("%s: got %v, want %q", text, faults, want)
		}
	}
}
