package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/directory"
)

func envCommand() *cobra.Command {
	g, t, whole, hosts, connect := &gateway{}, &tokenWish{}, false, "", false
	c := &cobra.Command{
		Use:   "env RESOURCE...",
		Short: "Print what to set for psql, curl, ssh and kubectl to reach resources",
		Long: `env asks the gateway how your token reaches the resources and prints what to set. When the gateway
has a token service, the token is one for these resources alone (--whole-token keeps yours).

With -o pgservice it prints entries for psql's service file, named after the resources, with the token in them.

For Kubernetes resources it prints a kubeconfig, in which kubectl calls "chaperone token" for a token
whenever it needs one.

With --ssh-config it prints lines for ~/.ssh/config instead, after which ssh, scp, sftp, rsync, git and ansible
reach the hosts by their names, each time with a certificate that is fresh (see chaperone ssh-cert). With --connect as
well they go through the gateway's HTTPS port (see chaperone connect).`,
		Example: `  eval "$(chaperone env orders)"; psql
  chaperone env web --ssh-config >> ~/.ssh/config; ssh web uptime
  chaperone env cluster > kubeconfig; kubectl --kubeconfig kubeconfig get pods
  chaperone env orders -o pgservice > service.conf; PGSERVICEFILE=service.conf psql service=orders
  chaperone env billing -o json`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: g.completeResources,
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("ssh-config") {
				return g.sshConfig(c, args, hosts, connect)
			} else if connect {
				return fmt.Errorf("%w: --connect goes with --ssh-config", errUsage)
			}
			token, found, err := g.reach(c.Context(), t, args, whole)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(found, isKubernetes) {
				return g.printKubeconfig(c, found, len(t.resources) > 0)
			}
			if g.output == "pgservice" {
				return g.printServices(c.OutOrStdout(), found, token)
			}
			set := g.variables(found)
			set["CHAPERONE_TOKEN"] = token.Reveal()
			if slices.ContainsFunc(found, func(r directory.Resource) bool { return r.Kind == access.Postgres }) {
				set["PGPASSWORD"] = token.Reveal()
			}
			return printVariables(c.OutOrStdout(), set, g.output)
		},
	}
	g.flags(c)
	c.PersistentFlags().Lookup("output").Usage = "table, json or pgservice"
	t.flags(c)
	c.Flags().BoolVar(&whole, "whole-token", false, "use your token as it is")
	c.Flags().StringVar(&hosts, "ssh-config", "", "print lines for ssh_config, with keys in this folder; default "+defaultSSHFolder)
	c.Flags().BoolVar(&connect, "connect", false, "with --ssh-config: reach the hosts through the HTTPS port")
	c.Flags().Lookup("ssh-config").NoOptDefVal = defaultSSHFolder
	return c
}

func printVariables(w io.Writer, set map[string]string, output string) error {
	if output == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(set)
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if _, err := fmt.Fprintf(w, "export %s=%s\n", name, shellQuoted(set[name])); err != nil {
			return err
		}
	}
	return nil
}

// printServices writes entries of a PostgreSQL connection service file.
func (g *gateway) printServices(w io.Writer, found []directory.Resource, token access.Secret) error {
	var text strings.Builder
	for _, r := range found {
		if r.Kind != access.Postgres {
			return fmt.Errorf("%w: %q is no database", errUsage, line(r.Name))
		}
		entry := []string{"[" + r.Name + "]", "host=" + r.Host, "port=" + strconv.Itoa(r.Port), "dbname=" + r.Database, "user=" + r.User,
			"password=" + token.Reveal(), "sslmode=verify-full"}
		if g.ca != "" {
			entry = append(entry, "sslrootcert="+absolute(g.ca))
		}
		for _, one := range entry {
			if strings.ContainsAny(one, "\r\n") {
				return fmt.Errorf("%q cannot stand in a service file", line(one))
			}
		}
		text.WriteString(strings.Join(entry, "\n") + "\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// reach returns a token for the resources, and how it reaches each of them.
func (g *gateway) reach(ctx context.Context, t *tokenWish, names []string, whole bool) (access.Secret, []directory.Resource, error) {
	own, err := g.source(t.audience)
	if err != nil {
		return access.Secret{}, nil, err
	}
	token, err := own.get(ctx)
	if err != nil {
		return access.Secret{}, nil, err
	}
	d, err := g.directory(ctx, token)
	if err != nil {
		return access.Secret{}, nil, err
	}
	var found []directory.Resource
	for _, name := range names {
		at := slices.IndexFunc(d.Resources, func(r directory.Resource) bool { return r.Name == name })
		if at < 0 {
			return access.Secret{}, nil, fmt.Errorf("your token does not reach %q; it reaches: %s", line(name), line(strings.Join(resourceNames(d), ", ")))
		}
		found = append(found, d.Resources[at])
	}
	if whole || d.TokenEndpoint == "" {
		if t.exchanges() {
			return access.Secret{}, nil, fmt.Errorf("%w: a token can only be narrowed by a gateway with a token service, and not with --whole-token", errUsage)
		}
		return token, found, nil
	}
	t.resources = names
	token, err = g.obtain(ctx, t)
	return token, found, err
}

func resourceNames(d directory.Document) []string {
	names := make([]string, len(d.Resources))
	for i, r := range d.Resources {
		names[i] = r.Name
	}
	return names
}

// directory asks the gateway what the token reaches.
func (g *gateway) directory(ctx context.Context, token access.Secret) (d directory.Document, err error) {
	body, err := g.send(ctx, http.MethodGet, directory.Path, token, nil)
	if err != nil {
		return d, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&d); err != nil {
		return d, fmt.Errorf("gateway: the answer is not what was expected: %w", err)
	}
	return d, nil
}

// variables are what the ordinary clients read, the token aside. The PG*
// variables are those of the first database.
func (g *gateway) variables(found []directory.Resource) map[string]string {
	set := map[string]string{"CHAPERONE_GATEWAY": g.url}
	if g.ca != "" {
		set["CHAPERONE_CA"], set["CURL_CA_BUNDLE"] = g.ca, g.ca
	}
	for _, r := range found {
		name := "CHAPERONE_" + strings.ToUpper(strings.ReplaceAll(r.Name, "-", "_")) + "_URL"
		switch r.Kind {
		case access.Postgres:
		case access.SSH:
			set[name] = (&url.URL{Scheme: "ssh", User: url.User(r.User + "@" + r.Name), Host: r.Host + ":" + strconv.Itoa(r.Port)}).String()
			continue
		default:
			set[name] = r.URL
			continue
		}
		q := url.Values{"sslmode": {"verify-full"}}
		if g.ca != "" {
			q.Set("sslrootcert", g.ca)
		}
		port := strconv.Itoa(r.Port)
		set[name] = (&url.URL{Scheme: "postgresql", User: url.User(r.User), Host: r.Host + ":" + port, Path: "/" + r.Database, RawQuery: q.Encode()}).String()
		if set["PGHOST"] != "" {
			continue
		}
		maps.Copy(set, map[string]string{"PGHOST": r.Host, "PGPORT": port, "PGDATABASE": r.Database, "PGUSER": r.User, "PGSSLMODE": "verify-full"})
		if g.ca != "" {
			set["PGSSLROOTCERT"] = g.ca
		}
	}
	return set
}

// completeResources offers what the token reaches; without a gateway, nothing.
func (g *gateway) completeResources(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	own, err := g.source("chaperone")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	token, err := own.get(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	d, err := g.directory(ctx, token)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return resourceNames(d), cobra.ShellCompDirectiveNoFileComp
}
