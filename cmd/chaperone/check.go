package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/envoy"
	"chaperone.dev/chaperone/internal/config"
	"chaperone.dev/chaperone/internal/policy"
	"chaperone.dev/chaperone/xds"
)

func checkCommand() *cobra.Command {
	g := &gateway{}
	var file string
	var live, noEnvoy bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Validate configuration and policies, or ask a running gateway what it runs",
		Long: `check reads configuration, secrets and policies as serve would, prints every fault
with its place, and lets Envoy itself validate what it would be given.

With --live it asks a running gateway (an operator's token is needed) which
revision serves, and what each Envoy took or rejected.`,
		Example: `  chaperone check --config chaperone.yaml
  chaperone check --live`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if live {
				return checkLive(c, g)
			}
			return check(c.Context(), c.OutOrStdout(), file, !noEnvoy)
		},
	}
	g.flags(c)
	configFlag(c, &file)
	c.Flags().BoolVar(&live, "live", false, "ask the running gateway")
	c.Flags().BoolVar(&noEnvoy, "no-envoy", false, "do not ask Envoy")
	return c
}

// validated reads everything that makes a revision, or says every fault.
func validated(file string) (*config.Config, *policy.Set, *xds.Snapshot, error) {
	cfg, err := config.Load(file)
	if err != nil {
		return nil, nil, nil, err
	}
	set, err := policy.LoadDir(cfg.Policies)
	if err != nil {
		return nil, nil, nil, err
	}
	verifier, err := newVerifier(cfg, slog.New(slog.DiscardHandler), nil, nil, nil)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("identity: %w", err)
	}
	verifier.Close()
	snapshot, err := xds.Build(envoyConfig(cfg, set))
	return cfg, set, snapshot, err
}

func check(ctx context.Context, w io.Writer, file string, withEnvoy bool) error {
	cfg, set, snapshot, err := validated(file)
	if err != nil {
		return err
	}
	note := "not asked"
	if withEnvoy {
		if note, err = askEnvoy(ctx, cfg, snapshot); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "configuration: %s, %d resources\npolicies: %s, %d rules\nenvoy: %s\n",
		file, len(cfg.Resources), set.Revision(), len(set.Rules()), note)
	return nil
}

// askEnvoy lets Envoy validate the bootstrap with the whole snapshot in it.
func askEnvoy(ctx context.Context, cfg *config.Config, snapshot *xds.Snapshot) (string, error) {
	binary, err := envoy.Find(ctx, envoy.Options{})
	if errors.Is(err, envoy.ErrNotFound) {
		return "not found on this machine; not asked", nil
	}
	if err != nil {
		return "", err
	}
	static, err := snapshot.Static()
	if err != nil {
		return "", err
	}
	if err := binary.Validate(ctx, static); err != nil {
		return "", fmt.Errorf("envoy refuses the configuration: %w", err)
	}
	return binary.Version + " accepts it", nil
}

// liveStatus is the answer of /api/v1/status.
type liveStatus struct {
	Revision string          `json:"revision"`
	Since    string          `json:"since"`
	Failed   string          `json:"failed,omitempty"`
	Envoys   xds.Status      `json:"envoys"`
	Replicas []replicaStatus `json:"replicas"`
}

// agrees reports whether every replica runs the revision of the one that
// answered, with its configuration, and every Envoy took it.
func (s *liveStatus) agrees() bool {
	if s.Failed != "" || rejected(s.Envoys) {
		return false
	}
	for _, r := range s.Replicas {
		if r.Failed != "" || rejected(r.Envoys) || r.Revision != s.Revision || r.Config != s.Replicas[0].Config {
			return false
		}
	}
	return true
}

func checkLive(c *cobra.Command, g *gateway) error {
	var s liveStatus
	if err := g.get(c.Context(), "/api/v1/status", &s); err != nil {
		return err
	}
	err := g.print(c.OutOrStdout(), s, func(w io.Writer) {
		for _, r := range s.Replicas {
			showReplica(w, &r)
		}
	})
	if err == nil && !s.agrees() {
		return errReported
	}
	return err
}

func showReplica(w io.Writer, r *replicaStatus) {
	fmt.Fprintf(w, "replica %s:\trevision %s, configuration %s, since %s\n", line(r.Replica), line(r.Revision), line(r.Config), r.Since.Format(time.RFC3339))
	if r.Failed != "" {
		fmt.Fprintf(w, "  refused:\t%s\n", block(r.Failed))
	}
	for _, n := range r.Envoys.Nodes {
		state := "in sync"
		if !n.InSync {
			state = "NOT in sync"
		}
		fmt.Fprintf(w, "  envoy %s:\t%s, version %s, connected %s\n", line(n.ID), state, line(n.Version), age(n.Connected))
		for _, r := range n.Rejected {
			fmt.Fprintf(w, "    rejects %s:\t%s\n", r.Type, block(r.Detail))
		}
	}
}

func rejected(s xds.Status) bool {
	for _, n := range s.Nodes {
		if len(n.Rejected) > 0 {
			return true
		}
	}
	return false
}

func schemaCommand() *cobra.Command {
	c := &cobra.Command{
		Use:       "schema config|policy|conditions|tests",
		Short:     "Print a JSON Schema for editors",
		Example:   "  chaperone schema config > chaperone.schema.json",
		ValidArgs: []string{"config", "policy", "conditions", "tests"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(c *cobra.Command, args []string) error {
			schema := map[string]func() []byte{
				"config": config.Schema, "policy": policy.Schema, "conditions": policy.ConditionsSchema, "tests": policy.TestsSchema,
			}[args[0]]()
			if !json.Valid(schema) {
				return errors.New("the schema is not JSON")
			}
			_, err := c.OutOrStdout().Write(schema)
			return err
		},
	}
	return c
}
