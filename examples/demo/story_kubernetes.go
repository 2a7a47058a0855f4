package demo

import (
	"context"
	"errors"
	"io"

	"chaperone.dev/chaperone/internal/console"
)

// TellKubernetes tells the chapter on Kubernetes alone, on a Site that has a
// cluster. It returns the first thing that went wrong.
func TellKubernetes(ctx context.Context, s *Site, out io.Writer) error {
	t := &teller{Site: s, out: out}
	if err := errors.Join(t.links(ctx), t.tokens(ctx)); err != nil {
		return err
	}
	return t.kubernetes(ctx)
}

// kubernetes is a subagent of Omar's in the cluster.
func (t *teller) kubernetes(ctx context.Context) error {
	const card = "4111 1111 1111 1111"
	secrets := []string{clusterSecret, t.Cluster.Gateway, "a2VwdC1pbi10aGUtY2x1c3Rlcg=="}
	err := t.tell(ctx,
		beat{say: "what kubectl needs, once: it holds no token, and asks chaperone for one",
			run: "chaperone env cluster --token-file tokens/omar > kubeconfig && cat kubeconfig", want: []string{"/k8s/cluster", "exec:"}},
		beat{run: "kubectl -n shop get pods", want: []string{"web", "Running"}},
		beat{say: "a Secret comes masked, whatever policy says", run: "kubectl -n shop get secret db -o yaml", want: []string{"password: Kioq"}, not: secrets},
		beat{run: "kubectl -n kube-system get secrets", fails: true, want: []string{"Forbidden", "req_"}},
		beat{say: "a privileged pod is refused before the API server hears of it",
			run: "kubectl -n shop run evil --image evil --privileged", fails: true, want: []string{"Forbidden", "req_"}},
		beat{say: "a modest one is not", run: "kubectl -n shop run modest --image web:1", want: []string{"pod/modest created"}},
	)
	if err != nil {
		return err
	}
	if err := t.kubectl(ctx, "", "-n", "shop", "get", "pod", "evil"); err == nil {
		return errors.New("the refused pod is there")
	}
	held, _, err := t.begin(ctx, "a command in a container waits for a reviewer; kubectl says nothing meanwhile",
		"kubectl -n shop exec web -- cat "+t.path("cluster", "app.log"), anything)
	if err != nil {
		return err
	}
	id, err := t.pending(ctx, "cluster")
	if err != nil {
		return err
	}
	err = t.tell(ctx,
		beat{run: as("GRACE", "approvals show "+id), want: []string{"pods/exec shop/web", "cat", "app.log", Omar, "pending"}},
		beat{run: as("GRACE", "approvals approve "+id), want: []string{"granted"}},
	)
	if err != nil {
		return err
	}
	if err := t.end(ctx, held, beat{say: "and kubectl goes on; what the command prints is masked", want: []string{"09:31 card", "***1111"}, not: []string{card}}); err != nil {
		return err
	}
	session, err := t.session(ctx, func(s console.SessionSummary) bool { return s.Resource.Name == "cluster" && s.Approved > 0 })
	if err != nil {
		return err
	}
	log := t.path("cluster", "audit.log")
	return t.tell(ctx,
		beat{say: "played back", run: as("SOFIA", "sessions replay --speed 0 "+session),
			want: []string{"pods/exec shop/web", "cluster-agents/enter", "***1111", "create pods shop/evil"}, not: append(secrets, card)},
		beat{say: "the API server's own audit log names the gateway's account, the caller, and through whom he came",
			run:  `grep '"subresource":"exec"' ` + log + ` | tail -1 | tr , '\n' | grep -E 'username|chaperone.dev'`,
			want: []string{gatewayAccount, "chaperone:dex:" + Omar, "chaperone.dev/session", "chaperone.dev/subagent", "chaperone.dev/request"}},
	)
}
