package demo

import (
	"context"
	"errors"
	"os"
	"regexp"

	"chaperone.dev/chaperone/internal/console"
)

var heldByHost = regexp.MustCompile(`chaperone approvals approve (req_[a-z0-9]+)`)

// hosts is a subagent of Omar's on the host web.
func (t *teller) hosts(ctx context.Context) error {
	home := t.path("sshd", "home")
	const card = "4111 1111 1111 1111"
	ssh := func(command string) string { return "ssh -F ssh/config web " + command }
	err := t.tell(ctx,
		beat{say: "what ssh, scp, sftp, rsync and git need, once: from then on ssh renews its certificate by itself",
			run: "mkdir -p ssh && chaperone env web --ssh-config=ssh --token-file tokens/omar > ssh/config && cat ssh/config", want: []string{"Host web", "ssh-cert web"}},
		beat{run: ssh("cat " + home + "/app.log"), want: []string{"09:30 started", "***1111"}, not: []string{card}},
		beat{say: "another command is not allowed, however it is wrapped", run: ssh("touch " + home + "/evil"), fails: true, want: []string{"denied: ", "request req_"}},
		beat{run: ssh(`'cat $(touch ` + home + `/evil)'`), fails: true, want: []string{"denied: ", "worked out on the host"}},
		beat{run: "ssh -F ssh/config -W localhost:22 web", fails: true, want: []string{"denied: "}},
		beat{say: "the certificate opens the gateway alone, not the host",
			run: "ssh -F /dev/null -i ssh/web -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null $HOST true", fails: true, want: []string{"Permission denied"}},
	)
	if err != nil {
		return err
	}
	if _, err := os.Stat(home + "/evil"); err == nil {
		return errors.New("a refused command ran")
	}
	held, id, err := t.begin(ctx, "a release waits for a reviewer, and ssh says so", ssh("touch "+home+"/release"), heldByHost)
	if err != nil {
		return err
	}
	if err := t.tell(ctx, beat{run: as("GRACE", "approvals approve "+id[1]), want: []string{"granted"}}); err != nil {
		return err
	}
	if err := t.end(ctx, held, beat{say: "and ssh goes on"}); err != nil {
		return err
	}
	if _, err := os.Stat(home + "/release"); err != nil {
		return errors.New("the granted command did not run")
	}
	session, err := t.session(ctx, func(s console.SessionSummary) bool {
		return s.Resource.Name == "web" && s.Requests > 0 && s.Denied == 0 && s.Approved == 0
	})
	if err != nil {
		return err
	}
	return t.tell(ctx, beat{say: "all of it is recorded", run: as("SOFIA", "sessions show "+session), want: []string{"cat " + home + "/app.log", "web-agents/look", "***1111", "exit 0"}, not: []string{card}})
}
