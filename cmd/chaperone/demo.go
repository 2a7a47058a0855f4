package main

import (
	"os"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/examples/demo"
)

func demoCommand() *cobra.Command {
	o := demo.Options{}
	once := false
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run the main job on this machine, with nothing simulated",
		Long: `demo starts a PostgreSQL, an HTTP service, two OpenID Connect providers, Envoy and
the gateway, tells a story through them with the ordinary psql, curl and ssh, and
leaves it all running until Ctrl-C. 'tools/install demo' installs what it needs.
With --kubernetes there is an API server, too, and a chapter with kubectl;
'tools/install kubernetes' installs that.`,
		Example: "  chaperone demo --once",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			return demo.Run(c.Context(), o, once, colours(c.OutOrStdout()), c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.BoolVar(&once, "once", false, "exit after the story; exit status 1 when a step goes wrong")
	f.BoolVar(&o.Kubernetes, "kubernetes", false, "with a Kubernetes API server, and a chapter on it")
	f.StringVar(&o.Dir, "dir", ".demo", "folder in which everything lives")
	f.IntVar(&o.HTTPS, "https-port", 0, "port for HTTPS; 0 takes a free one")
	f.IntVar(&o.Postgres, "postgres-port", 0, "port for PostgreSQL; 0 takes a free one")
	return c
}
