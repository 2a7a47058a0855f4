package demo

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"chaperone.dev/chaperone/internal/cluster"
	"chaperone.dev/chaperone/internal/localserver"
)

const (
	clusterPolicy  = "cluster-agents.yaml"
	clusterSecret  = "kept-in-the-cluster" // the password in the Secret
	gatewayAccount = "chaperone-gateway"
)

// cluster starts an API server with what the chapter on Kubernetes needs: a pod
// on a node that is a stand-in, for it runs commands on this machine.
func (s *Site) cluster(ctx context.Context) (err error) {
	if !s.options.Kubernetes {
		return nil
	}
	if s.Cluster, err = localserver.PrepareKubernetes(s.path("cluster")); err != nil {
		return err
	}
	if err := s.Cluster.Start(ctx); err != nil {
		return err
	}
	if s.node, err = localserver.StartNode(); err != nil {
		return err
	}
	if err := write(s.path("secrets", "cluster"), s.Cluster.Gateway, 0o600); err != nil {
		return err
	}
	if err := write(s.path("cluster", "app.log"), "09:31 card 4111 1111 1111 1111 refused\n", 0o644); err != nil {
		return err
	}
	objects, err := files.ReadFile("files/cluster/objects.yaml")
	if err != nil {
		return err
	}
	// What chaperone doctor prints for this configuration.
	account := cluster.Needs{Impersonates: true, Prefix: "chaperone:", Groups: []string{"web-agents"}}.Manifest(gatewayAccount)
	if err := s.kubectl(ctx, strings.Replace(string(objects), "SECRET", clusterSecret, 1)+account, "apply", "-f", "-"); err != nil {
		return err
	}
	address := fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.1"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":%d}}}}`, s.node.Port)
	if err := s.kubectl(ctx, "", "patch", "node", "stand-in", "--subresource=status", "-p", address); err != nil {
		return err
	}
	return s.kubectl(ctx, "", "-n", "shop", "patch", "pod", "web", "--subresource=status", "-p",
		`{"status":{"phase":"Running","containerStatuses":[{"name":"web","image":"web:1","imageID":"","ready":true,"restartCount":0,"state":{"running":{}}}]}}`)
}

// kubectl runs kubectl straight at the cluster, as its administrator.
func (s *Site) kubectl(ctx context.Context, stdin string, args ...string) error {
	tool, err := localserver.Tool("kubectl")
	if err != nil {
		return err
	}
	config, err := s.Cluster.Kubeconfig("admin", s.Cluster.Admin)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, tool, append([]string{"--kubeconfig", config, "--cache-dir", s.path("run", "kube")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
