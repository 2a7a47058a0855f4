package main

import "github.com/spf13/cobra"

func policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Test, lint, explain and replay policies before they go live",
		Example: `  chaperone policy test policies/...
  chaperone policy lint policies
  chaperone policy explain policies --request req_… --recordings data/recordings
  chaperone policy replay --policies proposed --recordings data/recordings`}
	c.AddCommand(policyTestCommand(), policyExplainCommand(), policyReplayCommand(), policyExportCommand(), policyLintCommand())
	return c
}
