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
	c := &cobra.Command{Use: "policy", Short: "Test and explain policies before they go live",
		Example: `  chaperone policy test policies/read-only-analyst
  chaperone policy explain policies < request.json`}
	c.AddCommand(policyTestCommand(), policyExplainCommand())
	return c
}

func policyTestCommand() *cobra.Command {
	output := "table"
	c := &cobra.Command{
		Use:   "test FOLDER...",
		Short: "Run the cases in tests.yaml beside the policies of each folder",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, folders []string) error {
			failed := false
			for _, dir := range folders {
				passed, err := testFolder(c.OutOrStdout(), dir, output)
				if err != nil {
					return err
				}
				failed = failed || !passed
			}
			if failed {
				return errReported
			}
			return nil
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

func testFolder(w io.Writer, dir, output string) (passed bool, err error) {
	set, err := policy.LoadDir(dir)
	if err != nil {
		return false, err
	}
	report, err := policy.RunTests(set, dir)
	if err != nil {
		return false, err
	}
	if output == "json" {
		return report.Passed(), json.NewEncoder(w).Encode(report)
	}
	wrong := 0
	for _, r := range report.Cases {
		if len(r.Wrong) == 0 {
			continue
		}
		wrong++
		fmt.Fprintf(w, "FAIL %s: %s\n", r.At, r.Name)
		for _, why := range r.Wrong {
			fmt.Fprintf(w, "  %s\n", why)
		}
	}
	for _, rule := range report.Untested {
		fmt.Fprintf(w, "note: no case is decided by %s\n", rule)
	}
	fmt.Fprintf(w, "%s: %d passed, %d failed\n", dir, len(report.Cases)-wrong, wrong)
	return report.Passed(), nil
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
