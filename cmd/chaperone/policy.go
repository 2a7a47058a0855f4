package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/policy"
)

func policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Test, lint, explain and replay policies before they go live",
		Example: `  chaperone policy test policies/...
  chaperone policy lint policies
  chaperone policy explain policies < request.json
  chaperone policy replay --policies proposed --recordings data/recordings`}
	c.AddCommand(policyTestCommand(), policyExplainCommand(), policyReplayCommand(), policyExportCommand(), policyLintCommand())
	return c
}

func policyExplainCommand() *cobra.Command {
	output := "table"
	c := &cobra.Command{
		Use:   "explain FOLDER",
		Short: "Show how a request, read as JSON from standard input, is decided",
		Long: `explain evaluates one request (the "request" member of a recorded decision: see
chaperone sessions show -o json) and shows every policy, rule and condition that
took part.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			set, err := policy.LoadDir(args[0])
			if err != nil {
				return err
			}
			var req access.Request
			decoder := json.NewDecoder(io.LimitReader(os.Stdin, 4<<20))
			decoder.UseNumber()
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&req); err != nil {
				return fmt.Errorf("standard input is not a request: %w", err)
			}
			now := req.Time
			if now.IsZero() {
				now = time.Now()
			}
			x := set.Explain(req, now)
			if output == "json" {
				return json.NewEncoder(c.OutOrStdout()).Encode(x)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), x)
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}
