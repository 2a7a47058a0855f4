package main

import (
	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/policy"
)

func policyExportCommand() *cobra.Command {
	h := &history{}
	c := &cobra.Command{
		Use:   "export REQUEST...",
		Short: "Print recorded requests as cases for tests.yaml",
		Long: `export prints recorded decisions as a tests.yaml whose cases ask the same again and
expect what was decided: beside the policies that decided them, they pass. What it
prints it has read back and compared with the recording. It holds what the
recording holds: the text of statements, the bodies of calls, names of people.`,
		Example: `  chaperone policy export req_… --recordings data/recordings > policies/tests.yaml
  chaperone policy export req_… --gateway https://chaperone.internal`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, ids []string) error {
			decided, err := h.decisions(c.Context(), c.ErrOrStderr(), ids)
			if err != nil {
				return err
			}
			text, err := policy.ExportCases(decided)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
	h.flags(c)
	if err := c.PersistentFlags().MarkHidden("output"); err != nil { // cases are YAML
		panic("chaperone: " + err.Error())
	}
	return c
}
