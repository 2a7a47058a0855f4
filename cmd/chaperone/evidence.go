package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"chaperone.dev/chaperone/internal/record"
)

func evidenceCommand() *cobra.Command {
	c := &cobra.Command{Use: "evidence", Short: "Prove that a recording is whole",
		Example: "  chaperone evidence verify data/recordings"}
	c.AddCommand(verifyCommand())
	return c
}

func verifyCommand() *cobra.Command {
	output := "table"
	c := &cobra.Command{
		Use:   "verify FOLDER",
		Short: "Check a recording's hash chain; names the first bad event",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			report, err := record.Verify(args[0])
			if err != nil {
				return fmt.Errorf("not whole: %w", err)
			}
			if output == "json" {
				return json.NewEncoder(c.OutOrStdout()).Encode(report)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "whole: %d events\n", report.Events())
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}
