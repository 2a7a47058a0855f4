package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// version is the release; the linker sets it.
var version = "dev"

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "chaperone",
		Short: "Access gateway for subagents",
		Long: `chaperone lets subagents (CI jobs, pipelines, LLM agents) reach databases,
hosts and HTTP services without ever holding a credential. Stock Envoy carries the bytes;
this program decides, holds, masks, injects and records.`,
		Example: `  chaperone check --config chaperone.yaml      validate configuration and policies
  chaperone run --config chaperone.yaml        run the gateway with its Envoy
  chaperone approvals list                     what waits for a reviewer
  chaperone sessions list                      what was done, by whom, for whom`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.AddCommand(
		runCommand(), serveCommand(), bootstrapCommand(), checkCommand(), doctorCommand(),
		loginCommand(), tokenCommand(), sshCertCommand(), connectCommand(), envCommand(), execCommand(), approvalsCommand(), sessionsCommand(), evidenceCommand(), policyCommand(),
		schemaCommand(), demoCommand(),
	)
	usageErrors(root)
	return root
}

// usageErrors makes a wrong number of arguments or an unknown subcommand a
// usage error, everywhere below c.
func usageErrors(c *cobra.Command) {
	if args := c.Args; args != nil {
		c.Args = func(c *cobra.Command, given []string) error {
			if err := args(c, given); err != nil {
				return fmt.Errorf("%w: %s: %w", errUsage, c.CommandPath(), err)
			}
			return nil
		}
	}
	if c.HasSubCommands() && c.RunE == nil {
		c.Args = nil
		c.RunE = func(c *cobra.Command, given []string) error {
			if len(given) > 0 {
				return fmt.Errorf("%w: %s has no command %q", errUsage, c.CommandPath(), given[0])
			}
			return c.Help()
		}
	}
	for _, sub := range c.Commands() {
		usageErrors(sub)
	}
}
