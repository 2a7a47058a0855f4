package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/directory"
)

// kubeconfig leads kubectl to Kubernetes resources through the gateway; the
// first is the current context. user is how it gets its token for a resource.
func (g *gateway) kubeconfig(resources []directory.Resource, user func(directory.Resource) map[string]any) map[string]any {
	var clusters, users, contexts []any
	current := ""
	for _, r := range resources {
		if r.Kind != access.Kubernetes {
			continue
		}
		if current == "" {
			current = r.Name
		}
		cluster := map[string]any{"server": r.URL}
		if g.ca != "" {
			cluster["certificate-authority"] = absolute(g.ca)
		}
		clusters = append(clusters, map[string]any{"name": r.Name, "cluster": cluster})
		users = append(users, map[string]any{"name": r.Name, "user": user(r)})
		contexts = append(contexts, map[string]any{"name": r.Name, "context": map[string]any{"cluster": r.Name, "user": r.Name}})
	}
	return map[string]any{"apiVersion": "v1", "kind": "Config", "clusters": clusters, "users": users, "contexts": contexts, "current-context": current}
}

// narrowing are the flags of a wish for a token.
var narrowing = []string{"audience", "actor-token-file", "read-only", "method", "path", "rows", "depth", "expires-in"}

// plugin has kubectl call this program for a token whenever it needs one, with
// the flags that c was given. exchanged says that the token is to be for the
// resource alone.
func (g *gateway) plugin(c *cobra.Command, exchanged bool) (func(directory.Resource) map[string]any, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return func(r directory.Resource) map[string]any {
		args := []string{"token", "--format", "exec-credential", "--gateway", g.url}
		for _, file := range [][2]string{{"--ca", g.ca}, {"--token-file", g.tokenFile}} {
			if file[1] != "" {
				args = append(args, file[0], absolute(file[1]))
			}
		}
		for _, name := range narrowing {
			if c.Flags().Changed(name) {
				args = append(args, "--"+name+"="+strings.Trim(c.Flags().Lookup(name).Value.String(), "[]"))
			}
		}
		if exchanged {
			args = append(args, "--resource", r.Name)
		}
		return map[string]any{"exec": map[string]any{"apiVersion": "client.authentication.k8s.io/v1", "command": self, "args": args, "interactiveMode": "Never"}}
	}, nil
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

func isKubernetes(r directory.Resource) bool { return r.Kind == access.Kubernetes }

// printKubeconfig is env for Kubernetes resources.
func (g *gateway) printKubeconfig(c *cobra.Command, found []directory.Resource, exchanged bool) error {
	if slices.ContainsFunc(found, func(r directory.Resource) bool { return !isKubernetes(r) }) {
		return fmt.Errorf("%w: ask for Kubernetes resources by themselves: what is printed for them is a kubeconfig", errUsage)
	}
	user, err := g.plugin(c, exchanged)
	if err != nil {
		return err
	}
	config, w := g.kubeconfig(found, user), c.OutOrStdout()
	if g.output == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(config)
	}
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(config); err != nil {
		return err
	}
	return encoder.Close()
}

// writeKubeconfig lets kubectl read the token from its file.
func (f *tokenFiles) writeKubeconfig() error {
	if !slices.ContainsFunc(f.resources, isKubernetes) {
		return nil
	}
	b, err := yaml.Marshal(f.gateway.kubeconfig(f.resources, func(directory.Resource) map[string]any {
		return map[string]any{"tokenFile": f.path("token")}
	}))
	if err != nil {
		return err
	}
	return f.secret("kubeconfig", string(b))
}
