package main

import (
	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/envoy"
	"chaperone.dev/chaperone/internal/config"
)

func bootstrapCommand() *cobra.Command {
	var file, node string
	c := &cobra.Command{
		Use:   "bootstrap",
		Short: "Print the bootstrap of an Envoy that runs elsewhere",
		Long: `bootstrap prints what an Envoy needs that chaperone does not start itself. It must
reach the sockets folder; run it with --disable-hot-restart, and chaperone with
--no-envoy.`,
		Example: `  chaperone bootstrap --config chaperone.yaml > envoy.json
  envoy -c envoy.json --disable-hot-restart`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			bc := bootstrapConfig(cfg)
			if node != "" {
				bc.NodeID = node
			}
			b, err := envoy.Bootstrap(bc)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(append(b, '\n'))
			return err
		},
	}
	configFlag(c, &file)
	c.Flags().StringVar(&node, "node", "", "node id, unique among the Envoys; default this host's name")
	return c
}
